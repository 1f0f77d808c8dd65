#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A backing whose size is no multiple of anything, lines of all sizes.
. "$(dirname "$0")/lib.sh"
requires_fuse

size=$(((10 << 20) + 777))
for line in 4K 16K 64K; do
	random_file "$T/$line.img" $size
	cp "$T/$line.img" "$T/want"
	new_cache $line 4M --mode wb --line-size $line --volume odd="$T/$line.img"
	load $line
	vol=$T/$line.mnt/odd
	is "$(stat -c %s "$vol")" $size "$line: the exact size"
	ok "$line: reads as the backing, tail included" same "$vol" "$T/$line.img"
	is "$(tail -c 777 "$vol" | md5sum)" "$(tail -c 777 "$T/want" | md5sum)" "$line: the tail alone"
	is "$("$TOOLS/ioflags" write "$vol" $((size - 100)) 100 8)" 100 "$line: a write up to the end"
	printf '\010%.0s' $(seq 100) | dd of="$T/want" bs=1M seek=$((size - 100)) oflag=seek_bytes conv=notrunc status=none
	is "$("$TOOLS/ioflags" write "$vol" $((size - 10)) 5000 8)" 10 "$line: across the end, as far as it goes"
	like "$("$TOOLS/ioflags" write "$vol" $size 1 8)" "No space left" "$line: beyond the end there is no space"
	is "$(dd if="$vol" bs=1 skip=$size count=1 status=none | wc -c)" 0 "$line: reading there is the end of the file"
	ok "$line: what is cut off reads as zeros" truncate -s $((size - 3000)) "$vol"
	dd if=/dev/zero of="$T/want" bs=3000 count=1 seek=$((size - 3000)) oflag=seek_bytes conv=notrunc status=none
	nok "$line: it cannot become larger" truncate -s $((size + 1)) "$vol"
	is "$(stat -c %s "$vol")" $size "$line: the size stays"
	ok "$line: all as expected" same "$vol" "$T/want"
	stop $line
	ok "$line: in the backing file too" same "$T/$line.img" "$T/want"
	is "$(stat -c %s "$T/$line.img")" $size "$line: whose size has not changed"
done
done_testing
