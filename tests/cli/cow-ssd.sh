#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The cache lies on btrfs, which copies on write: its files are made so that they are overwritten in place, and a full disk does not
# stop writes.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop
requires mkfs.btrfs lsattr

truncate -s 300M "$T/ssd.img"
truncate -s 48M "$T/a.img"
mkfs.btrfs -q "$T/ssd.img" >/dev/null 2>&1 || skip_all "mkfs.btrfs fails"
mkdir "$T/ssd" "$T/c.mnt"
mount -o loop "$T/ssd.img" "$T/ssd" 2>/dev/null || skip_all "btrfs cannot be mounted"
must bc create "$T/ssd/c" --size 64M --mode wb --ram 4M --volume a="$T/a.img"
ln -s "$T/ssd/c" "$T/c"
unlike "$out$err" 'copie' "create has nothing to say"
must bc set "$T/c" clean-after=1000s
load c
unlike "$out$err" 'copied' "nor has load"
for file in data journal.db journal.db-ring journal.db-wal; do
	like "$(lsattr "$T/ssd/c/$file" | cut -d' ' -f1)" C "$file is not copied on write"
done
dd if=/dev/zero of="$T/ssd/fill" bs=1M status=none 2>/dev/null
sync -f "$T/ssd"
dd if=/dev/zero of="$T/ssd/fill2" bs=4k status=none 2>/dev/null
for round in 1 2 3; do
	ok "round $round of overwriting with a full disk" dd if=/dev/urandom of="$T/c.mnt/a" bs=1M count=48 conv=notrunc,fsync status=none
done
is "$(status_of c .cache.state)" running "the cache is in order"
rm "$T/ssd/fill" "$T/ssd/fill2"
run bc stop "$T/c" --no-flush
done_testing
