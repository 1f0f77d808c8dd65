#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Every range over every mix of absent, clean, dirty and partly dirty neighbours reads right.
. "$(dirname "$0")/lib.sh"
requires_fuse

for line in 4K 8K 64K; do
	"$TOOLS/readranges" fill "$T/$line.img" || bail "fill"
	new_cache $line 8M --mode wb --line-size $line --volume v="$T/$line.img"
	must bc set "$T/$line" clean-after=1000s
	load $line
	must "$TOOLS/readranges" prepare "$T/$line.mnt/v"
	ok "$line: right after writing" "$TOOLS/readranges" check "$T/$line.mnt/v"
	run bc stop "$T/$line" --no-flush
	is "$status" 3 "$line: stopped with dirty lines"
	load $line
	ok "$line: after a reload, from the cache device" "$TOOLS/readranges" check "$T/$line.mnt/v"
	for mode in wo pt; do
		must bc set "$T/$line" v mode=$mode
		ok "$line: in mode $mode" "$TOOLS/readranges" check "$T/$line.mnt/v"
	done
	stop $line
	ok "$line: the backing file" "$TOOLS/readranges" check "$T/$line.img"
done
done_testing
