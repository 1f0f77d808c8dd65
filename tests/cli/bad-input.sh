#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What users do wrong and what happens around them: every refusal names the object and leaves things as they were.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
mkdir "$T/m" "$T/plain"

# folders and mount points
refuses 1 "$T/none" "load: no such folder" bc load "$T/none" "$T/m"
refuses 1 "$T/plain" "load: a folder without a cache" bc load "$T/plain" "$T/m"
new_cache c 8M --mode wb --volume a="$T/a.img"
refuses 1 "$T/nomnt" "load: no such mount point" bc load "$T/c" "$T/nomnt"
refuses 1 "$T/a.img" "load: the mount point is a file" bc load "$T/c" "$T/a.img"
is "$(own_daemons | wc -l)" 0 "no daemon is left behind"

# sockets
touch "$T/c/control"
exits 0 "a file in the place of the socket: not loaded" bc stop "$T/c"
like "$out" "$T/c.*not loaded" "which is said"
rm "$T/c/control"
exits 0 "a cache loads" bc load "$T/c" "$T/m"
kill_daemons
wait_for 60 eval '[ -z "$(own_daemons)" ]'
exits 0 "a socket nobody listens on" bc stop "$T/c"
like "$out" "$T/c.*not loaded" "is no daemon"
run bc status "$T/c"
is "$status" 0 "status works beside a dead socket"
before=$(cat "$T"/c/journal.db* | md5sum)
refuses 1 "$T/m.*umount|umount.*$T/m" "a stale mount is refused with its remedy" bc load "$T/c" "$T/m"
is "$(cat "$T"/c/journal.db* | md5sum)" "$before" "before the cache was opened"
ok "which works" umount "$T/m"
exits 0 "then it loads, over the dead socket and lock" bc load "$T/c" "$T/m"

# two owners (P10)
mkdir "$T/m2"
refuses 1 "$T/c" "two daemons on one cache" bc load "$T/c" "$T/m2"
must bc create "$T/other" --size 4M
run bc add "$T/other" a="$T/a.img"
added=$status
if [ $added = 0 ]; then
	refuses 1 "a.img" "two caches on one backing: load" bc load "$T/other" "$T/m2"
else
	like "$err" "a.img" "two caches on one backing: add"
fi
ln -s "$T/a.img" "$T/link.img"
run bc add "$T/c" again="$T/link.img"
is "$status" 1 "the same backing by another name"
must bc stop "$T/c"

# two caches on one mount point
must bc create "$T/third" --size 4M
must bc load "$T/c" "$T/m"
refuses 1 "$T/m" "a mount point that is taken" bc load "$T/third" "$T/m"
must bc stop "$T/c"

# the backing file between two loads (P10)
mv "$T/a.img" "$T/a.away"
run bc load "$T/c" "$T/m"
if [ "$status" = 0 ]; then
	ok "missing backing without dirty data: the volume says so" grep -qi 'a.img' "$T/.out" "$T/.err"
	must bc stop "$T/c"
else
	like "$err" "a.img" "missing backing is refused by name"
fi
mv "$T/a.away" "$T/a.img"
must bc load "$T/c" "$T/m"
ok "back again, it loads and reads right" same "$T/m/a" "$T/a.img"
must bc set "$T/c" clean-after=1000s
"$TOOLS/ioflags" write "$T/m/a" 0 65536 3 >/dev/null || bail "write"
run bc stop "$T/c" --no-flush
cp --sparse=never "$T/a.img" "$T/a.copy"
truncate -s 2M "$T/a.img"
refuses 1 "a.img|volume a" "a shrunk backing with dirty data is refused" bc load "$T/c" "$T/m"
nok "nothing is mounted" mountpoint -q "$T/m"
cat "$T/a.copy" >"$T/a.img"
run bc load "$T/c" "$T/m"
if [ "$status" = 0 ]; then
	ok "the right size again: the dirty data is there" "$TOOLS/ioflags" expect "$T/m/a" 0 65536 3
	must bc stop "$T/c"
else
	like "$err" "changed|modif" "touched behind a cache with dirty data: refused, not guessed"
fi

# clean: a change behind the cache is noticed, stale lines are dropped
random_file "$T/b.img" 4M
new_cache d 8M --volume b="$T/b.img"
load d
cat "$T/d.mnt/b" >/dev/null
stop d
sleep 0.05
random_file "$T/b.img" 4M
load d
ok "P10: a backing changed while stopped is not served stale" same "$T/d.mnt/b" "$T/b.img"
stop d

# backings that cannot be used
mkdir "$T/dir.img"
refuses 1 "dir.img" "a folder as backing" bc add "$T/d" x="$T/dir.img"
: >"$T/zero.img"
refuses 1 "zero.img" "an empty backing file" bc add "$T/d" x="$T/zero.img"
refuses 1 "nomodule|x" "an unknown option in a device spec" bc add "$T/d" x="delay:bogus=1:$T/a.img"
random_file "$T/ro.img" 1M
if [ "$(id -u)" != 0 ]; then
	chmod 400 "$T/ro.img"
	refuses 1 "ro.img" "a read-only backing" bc add "$T/d" x="$T/ro.img"
elif ro=$(losetup --show -r -f "$T/ro.img" 2>/dev/null); then # root may write any file, but not to a read-only device
	refuses 1 "$ro" "a read-only backing" bc add "$T/d" x="$ro"
	losetup -d "$ro"
else
	skip "a read-only backing" "root may write anything, and there are no loop devices"
fi
done_testing
