#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A loop device with an ext4 on a volume, for each mode.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop
requires rsync e2fsck

mkdir "$T/fs" "$T/source"
cp -r /usr/include/linux "$T/source/"
for mode in wb wt wo; do
	truncate -s 96M "$T/$mode.img"
	new_cache $mode 32M --mode $mode --volume disk="$T/$mode.img"
	load $mode
	loop=$(losetup --show -f --direct-io=on --sector-size 4096 "$T/$mode.mnt/disk") || bail "$mode: losetup"
	must mkfs.ext4 -q -E nodiscard "$loop"
	must mount "$loop" "$T/fs"
	ok "$mode: a tree is copied in" rsync -a "$T/source/" "$T/fs/tree/"
	sync -f "$T/fs"
	must umount "$T/fs"
	refuses 1 "$T/$mode.mnt" "$mode: stop is refused while a loop device sits on the volume" bc stop "$T/$mode"
	must mount "$loop" "$T/fs"
	ok "$mode: it reads back the same" diff -r "$T/source" "$T/fs/tree"
	ok "$mode: fstrim works" fstrim "$T/fs"
	must umount "$T/fs"
	ok "$mode: e2fsck is content" e2fsck -fn "$loop"
	losetup -d "$loop"
	exits 0 "$mode: stop" bc stop "$T/$mode"
	must mount -o loop,ro "$T/$mode.img" "$T/fs"
	ok "$mode: the backing file alone holds the tree" diff -r "$T/source" "$T/fs/tree"
	must umount "$T/fs"
	rm -r "${T:?}/$mode" "$T/$mode.img"
done
done_testing
