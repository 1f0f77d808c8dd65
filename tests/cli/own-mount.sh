#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# own-mount.sh - a daemon opens nothing that lies on its own mount, by whatever way a name leads there; a backing device that the mount
# hides is found again by the daemon that takes over.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_root

mkdir "$T/dir" "$T/bound"
truncate -s 64M "$T/a.img" "$T/plain.img"
new_cache c 32M --mode wb --volume "a=$T/a.img"
load c
m=$T/c.mnt

refused() { # NAME SPEC
	refuses 1 "the mount of this very cache" "$1" timeout -k 5 30 "$BLKCACHE" add "$T/c" "x=$2"
}
refused "a volume's file is refused" "$m/a"
refused "also below another device" "delay:read=1ms:$m/a"
refused "and by a way with dots" "$T/dir/../c.mnt/./a"
ln -s "$m/a" "$T/dir/link"
ln -s ../c.mnt "$T/dir/folder"
refused "a symbolic link to it is" "$T/dir/link"
refused "a relative link to its folder is" "$T/dir/folder/a"
mount --bind "$m" "$T/bound" && refused "a bind mount of the folder is" "$T/bound/a"
touch "$T/file"
mount --bind "$m/a" "$T/file" && refused "a bind mount of the file is" "$T/file"
timeout 20 umount "$T/file" "$T/bound"
refuses 1 "this very cache|exists already|already" "mount in one step is refused, too" \
	timeout -k 5 30 "$BLKCACHE" mount "$m/a" "$m" --cache "$T/c" --name x
ok "a file elsewhere is not" bc add "$T/c" "plain=$T/plain.img"
ln -s "$T/plain2.img" "$T/dir/good"
truncate -s 16M "$T/plain2.img"
ok "nor is one behind a link" bc add "$T/c" "linked=$T/dir/good"
exec 6<"$T/plain2.img"
refuses 1 "is volume linked of this cache already" "a file that is a volume already, by another name: in use" bc add "$T/c" "again=/proc/$$/fd/6"
exec 6<&-

if dev=$(losetup --show -f "$m/a" 2>/dev/null); then
	refused "a loop device made of a volume is refused" "$dev"
	if command -v mkfs.ext4 >/dev/null && timeout 60 mkfs.ext4 -q "$dev" && mkdir "$T/fs" && timeout 30 mount "$dev" "$T/fs"; then
		truncate -s 8M "$T/fs/image"
		refused "a file on a file system on it is refused" "$T/fs/image"
		timeout 60 umount "$T/fs"
	else
		skip "a file on a file system on it is refused" "no mkfs.ext4"
	fi
	timeout 30 losetup -d "$dev"
else
	skip "a loop device made of a volume is refused" "no loop devices here"
fi
stop c

# ---- a mount that hides its own backing device ----

mkdir "$T/home" "$T/home/sub"
random_file "$T/home/sub/vm" 1048576
cp "$T/home/sub/vm" "$T/want"
new_cache d 4M --mode wb --volume "vm=$T/home/sub/vm"
must bc load "$T/d" "$T/home"
ok "it can be loaded on a folder that hides its backing device" timeout 20 cmp "$T/home/vm" "$T/want"
ok "and stopped" bc stop "$T/d"
run bc load "$T/d" "$T/home" --survive
if [ "$status" != 0 ]; then
	skip "and survives the daemon's death there" "no --survive here: $err"
else
	timeout 20 cmp "$T/home/vm" "$T/want"
	for n in 1 2; do
		kill -9 "$(cut -d' ' -f1 "$T/d/lock")"
		sleep 0.3
		ok "and survives the daemon's death there ($n)" timeout 60 cmp "$T/home/vm" "$T/want"
	done
	refuses 1 "this very cache" "the daemon that took over refuses its mount's files as well" \
		timeout -k 5 30 "$BLKCACHE" add "$T/d" "x=$T/home/vm"
	head -c 4096 /dev/zero | dd of="$T/home/vm" conv=notrunc,fsync status=none
	ok "and stops" bc stop "$T/d"
	ok "with everything written" cmp -n 4096 "$T/home/sub/vm" /dev/zero
	refuses 1 "would hide the cache" "a mount point that would hide the cache itself is refused" bc load "$T/d" "$T" --survive
fi

done_testing
