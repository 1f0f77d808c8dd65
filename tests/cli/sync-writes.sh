#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P1: O_SYNC, O_DSYNC and RWF_DSYNC writes and fdatasync are durable when they return: kill -9 right after and load again.
. "$(dirname "$0")/lib.sh"
requires_fuse

for mode in wb wt wa wi wo; do
	truncate -s 4M "$T/$mode.img"
	new_cache $mode 8M --mode $mode --volume v="$T/$mode.img"
	load_fg $mode
	vol=$T/$mode.mnt/v
	"$TOOLS/ioflags" write "$vol" 0 4096 1 sync >/dev/null || bail "$mode: write"
	"$TOOLS/ioflags" write "$vol" 10000 5000 2 dsync >/dev/null || bail "$mode: write"
	"$TOOLS/ioflags" write "$vol" 1048576 500000 3 rwf_dsync >/dev/null || bail "$mode: write"
	"$TOOLS/ioflags" write "$vol" 2097153 4095 4 >/dev/null || bail "$mode: write"
	sync -d "$vol" || bail "$mode: fdatasync"
	fallocate -p -o 1050000 -l 10000 "$vol" || bail "$mode: discard"
	sync -d "$vol" || bail "$mode: fdatasync"
	kill_hard $mode
	load $mode
	ok "$mode: O_SYNC" "$TOOLS/ioflags" expect "$vol" 0 4096 1
	ok "$mode: O_DSYNC, unaligned" "$TOOLS/ioflags" expect "$vol" 10000 5000 2
	ok "$mode: RWF_DSYNC, large, before the hole" "$TOOLS/ioflags" expect "$vol" 1048576 1424 3
	ok "$mode: fdatasync" "$TOOLS/ioflags" expect "$vol" 2097153 4095 4
	ok "$mode: the discard" "$TOOLS/ioflags" expect "$vol" 1050000 10000 0
	ok "$mode: after the hole" "$TOOLS/ioflags" expect "$vol" 1060000 488576 3
	ok "$mode: nothing else was touched" "$TOOLS/ioflags" expect "$vol" 4096 5904 0
	stop $mode
	ok "$mode: all in the backing file" "$TOOLS/ioflags" expect "$T/$mode.img" 1060000 488576 3
done
done_testing
