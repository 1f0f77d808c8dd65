#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Punched and zeroed ranges read as zeros: at once, after stop and load, after a kill, in every mode; the edges stay.
. "$(dirname "$0")/lib.sh"
requires_fuse

check() { # WHAT VOLUME
	ok "$1: before the first" "$TOOLS/ioflags" expect "$2" 0 1000 9
	ok "$1: unaligned hole" "$TOOLS/ioflags" expect "$2" 1000 100000 0
	ok "$1: between" "$TOOLS/ioflags" expect "$2" 101000 98456 9
	ok "$1: inside one block" "$TOOLS/ioflags" expect "$2" 199456 100 0
	ok "$1: after it" "$TOOLS/ioflags" expect "$2" 199556 849020 9
	ok "$1: 2 MiB zeroed range" "$TOOLS/ioflags" expect "$2" 1048576 2097152 0
	ok "$1: written over again" "$TOOLS/ioflags" expect "$2" 3145728 8192 5
	ok "$1: the hole's rest" "$TOOLS/ioflags" expect "$2" 3153920 24576 0
	ok "$1: the end" "$TOOLS/ioflags" expect "$2" 3178496 1015808 9
}
for mode in wb wt wa wi wo pt; do
	head -c 4M /dev/zero | tr '\0' '\011' >"$T/$mode.img"
	new_cache $mode 3M --mode $mode --line-size 16K --ram 1M --volume v="$T/$mode.img"
	load_fg $mode
	vol=$T/$mode.mnt/v
	head -c 2M "$vol" >/dev/null                                  # some of it cached
	"$TOOLS/ioflags" write "$vol" 65536 131072 9 >/dev/null       # some of it dirty
	ok "$mode: punch" fallocate -p -o 1000 -l 100000 "$vol"
	ok "$mode: punch inside a block" fallocate -p -o 199456 -l 100 "$vol"
	ok "$mode: zero range" fallocate -z -o 1048576 -l 2097152 "$vol"
	ok "$mode: punch" fallocate -p -o 3145728 -l 32768 "$vol"
	"$TOOLS/ioflags" write "$vol" 3145728 8192 5 >/dev/null
	check "$mode at once" "$vol"
	sync -d "$vol"
	kill_hard $mode
	load $mode
	check "$mode after a kill" "$vol"
	stop $mode
	check "$mode in the backing file" "$T/$mode.img"
	load $mode
	check "$mode after stop and load" "$vol"
	ok "$mode: discarding all of it" fallocate -p -o 0 -l 4M "$vol"
	ok "$mode: leaves zeros" "$TOOLS/ioflags" expect "$vol" 0 $((4 << 20)) 0
	ok "$mode: beyond the end is clipped" fallocate -p -o $(((4 << 20) - 4096)) -l 1M "$vol"
	ok "$mode: the size stays" test "$(stat -c %s "$vol")" = $((4 << 20))
	stop $mode
	ok "$mode: the backing file reads as zeros" "$TOOLS/ioflags" expect "$T/$mode.img" 0 $((4 << 20)) 0
done
done_testing
