#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck disable=SC2015,SC2086
#
# One cycle of the power-cut test: recover, check, then write until the power goes. ttyS1 is the record outside.
R=/dev/ttyS1
rsay() { echo "$*" >$R; echo "$*"; }
rdie() { rsay "ERROR $*"; sleep 1; exit 1; }
mkdir -p /mnt/cache /srv/vm
if [ "$CYCLE" = 0 ]; then
	mkfs.ext4 -q /dev/vdb && mkfs.ext4 -q /dev/vdc || rdie mkfs
fi
mount /dev/vdb /ssd && mount /dev/vdc /disk || rdie "mount of the disks"
if [ "$CYCLE" = 0 ]; then
	truncate -s 64M /disk/fs.img; truncate -s 16M /disk/raw.img; truncate -s 32M /disk/pre.img; truncate -s 32M /disk/load.img
	$B create /ssd/cache --size 64M --ram 16M --mode wb --volume fs=/disk/fs.img --volume raw=/disk/raw.img --volume pre=/disk/pre.img \
		--volume load=/disk/load.img || rdie create
	$B set /ssd/cache clean-after=2s || rdie set
fi
t=$(date +%s%N)
$B load /ssd/cache /mnt/cache >/tmp/load 2>&1 || { cat /tmp/load; rdie "load: $(tail -n 1 /tmp/load)"; }
rsay "LOADED in $((($(date +%s%N) - t) / 1000000)) ms: $(tr '\n' ' ' </tmp/load)"
rsay "STATUS $($B status /ssd/cache --json | jq -c '[.cache.state, .cache.dirty_bytes, .cache.problems]')"
dev=$(losetup --find --show --direct-io=on --sector-size 4096 /mnt/cache/fs) || rdie losetup
[ "$CYCLE" = 0 ] && mkfs.ext4 -q $dev
mount $dev /srv/vm || rdie "mount ext4"   # replays its journal
umount /srv/vm
e2fsck -fn $dev >/tmp/fsck 2>&1; rsay "FSCK $?"; cat /tmp/fsck
mount $dev /srv/vm || rdie "mount ext4 again"
rec=/guest/recorder
if [ "$CYCLE" != 0 ]; then
	$rec check /tmp/found x /srv/vm /mnt/cache/raw /mnt/cache/pre /mnt/cache/load >/tmp/check 2>&1 || rdie "check $(cat /tmp/check)"
	cat /tmp/found >$R
fi
if [ "$LAST" = 1 ]; then
	# The end: everything flushed, the backing files alone must say the same
	umount /srv/vm; losetup -d $dev
	$B stop /ssd/cache || rdie stop
	$B check /ssd/cache; rsay "BLKCACHE-CHECK $?"
	mount -o loop,ro /disk/fs.img /srv/vm && $rec check /tmp/direct x /srv/vm /disk/raw.img /disk/pre.img /disk/load.img
	rsay "DIRECT bad $(grep -c -E '^(BAD|GONE|ERROR)' /tmp/direct) lines $(wc -l </tmp/direct)"
	rsay "END"
	exit 0
fi
# continue the prefix where it is
PREFIX_START=$(sed -n 's/^PREFIX \([0-9]*\).*/\1/p' /tmp/found 2>/dev/null)
export PREFIX_START
(while sleep 3; do $B flush /ssd/cache; done) >/dev/null 2>&1 &
(sleep 20; rsay "STATUS $($B status /ssd/cache --json | jq -c '[.cache.state, .cache.dirty_bytes]')") &
$rec write $R $(((CYCLE + 1) * 10000000)) /srv/vm /mnt/cache/raw /mnt/cache/pre /mnt/cache/load
rsay "ERROR the writer ended: $?"
