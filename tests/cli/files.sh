#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A volume as a file: what df, stat, chown, chmod, cp, dd and rsync make of it.
# shellcheck disable=SC2016,SC2317,SC2013 # for inner shells; called by others
. "$(dirname "$0")/lib.sh"
requires_root
requires_fuse
requires rsync fio

random_file "$T/a.img" 8M
new_cache c 4M --volume a="$T/a.img" --mode wb
load c
m=$T/c.mnt

echo "# df, stat"
is "$(df --output=used,pcent "$m" | tail -n 1 | xargs)" "0 0%" "the mount does not look like a full disk"
is "$(df --output=size,avail -B1M "$m" | tail -n 1 | xargs)" "8 8" "its size is that of its volumes"
is "$(df --output=ipcent "$m" | tail -n 1 | xargs)" "1%" "nor do its inodes"
is "$(stat -f -c '%s %S' "$m")" "4096 4096" "the block size, a loop device's discard granularity, is 4096"
is "$(stat -c %o "$m/a")" 1048576 "reads in large pieces are asked for"

echo "# owner and mode"
is "$(stat -c '%u:%g %a' "$m/a")" "0:0 600" "at first it is the daemon's user's alone"
ok "chown, chmod" sh -c 'chown 1234:5678 "$1" && chmod 640 "$1"' sh "$m/a"
bc add "$T/c" "b=null:size=1M" >/dev/null
chown 77 "$m/b"
stop c
load_fg c
is "$(stat -c '%u:%g %a' "$m/a")" "1234:5678 640" "both are there after the next load"
is "$(stat -c '%u:%g %a' "$m/b")" "77:0 600" "each volume has its own"
chmod 604 "$m/a"
kill_hard c
load c
is "$(stat -c '%u:%g %a' "$m/a")" "1234:5678 604" "and after a kill"
commits() {
	stat -c %Y.%Z "$T/c/journal.db-wal"
}
before=$(commits)
chmod 604 "$m/a"
touch "$m/a"
is "$(commits)" "$before" "what changes nothing, and times, take no commit"
must bc remove "$T/c" a
must bc add "$T/c" a="$T/a.img"
is "$(stat -c '%u:%g %a' "$m/a")" "0:0 600" "a volume that is removed and added is a new one"
stop c
load c
is "$(stat -c '%u:%g %a' "$m/a")" "0:0 600" "and stays so"
must bc remove "$T/c" a
stop c
must bc remove "$T/c" b
must bc add "$T/c" a="$T/a.img" --mode wb
load c
is "$(stat -c '%u:%g %a' "$m/a")" "0:0 600" "also if it gets the id of one that was removed from a stopped cache"

echo "# modification time"
touch -d "2001-01-01 00:00 UTC" "$m/a"
is "$(stat -c %Y "$m/a")" 978307200 "it can be set"
dd if="$T/a.img" of="$m/a" bs=4k count=1 conv=notrunc status=none
[ "$(stat -c %Y "$m/a")" -gt 978307200 ]
is $? 0 "and is later after a write"
now=$(stat -c %y "$m/a")
dd if="$m/a" of=/dev/null bs=64k status=none
is "$(stat -c %y "$m/a")" "$now" "but not after a read"
dd if="$T/a.img" of="$m/a" bs=4k count=1 conv=notrunc status=none
touch -d "2001-01-01 00:00 UTC" "$m/a"
is "$(stat -c %Y "$m/a")" 978307200 "what is set after a write stays"

echo "# copies of images"
random_file "$T/new.img" 8M
ok "cp of an image of the same size" cp "$T/new.img" "$m/a"
ok "it is there" same "$T/new.img" "$m/a"
truncate -s 8M "$T/sparse.img"
printf data | dd of="$T/sparse.img" bs=1 seek=5000000 conv=notrunc status=none
ok "cp of a sparse image" cp --sparse=auto "$T/sparse.img" "$m/a"
ok "leaves nothing old in its holes" same "$T/sparse.img" "$m/a"

must cp "$T/new.img" "$m/a"
random_file "$T/short" 3000000
truncate -s 5000001 "$T/short" # ends in a hole, at an odd place
ok "cp of a shorter image" cp "$T/short" "$m/a"
cp "$T/short" "$T/want"
truncate -s 8M "$T/want"
ok "is followed by zeros" same "$T/want" "$m/a"
is "$(stat -c %s "$m/a")" 8388608 "the size stays"

must cp "$T/new.img" "$m/a"
ok "truncate to the size it has" truncate -s 8M "$m/a"
ok "changes nothing" same "$T/new.img" "$m/a"
nok "to a larger one is refused" truncate -s 9M "$m/a"
ok "and changes nothing" same "$T/new.img" "$m/a"
cp "$T/new.img" "$T/larger"
echo more >>"$T/larger"
run cp "$T/larger" "$m/a"
is "$status" 1 "cp of a larger image fails"
must cp "$T/new.img" "$m/a"
ok "dd with notrunc" dd if="$T/short" of="$m/a" bs=1M count=1 conv=notrunc status=none
cp "$T/new.img" "$T/want"
dd if="$T/short" of="$T/want" bs=1M count=1 conv=notrunc status=none
ok "leaves the rest" same "$T/want" "$m/a"
ok "rsync --inplace" rsync -I --inplace "$T/new.img" "$m/a"
ok "it is there" same "$T/new.img" "$m/a"
refuses 23 "not permitted" "rsync that makes a new file beside it is refused" sh -c 'rsync "$1" "$2" 2>&1 | head -n 1 >&2; exit 23' sh "$T/short" "$m/a"
for make in "touch $m/x" "mkdir $m/x" "mkfifo $m/x" "ln -s a $m/x" "ln $m/a $m/x" "mv $m/a $m/x" "rm $m/a"; do
	# shellcheck disable=SC2086 # words
	run $make
	like "$err" "not permitted" "${make%% *} is refused as not permitted"
done
refuses 1 "No such device" "a shared mapping is refused, not granted without being coherent" \
	sh -c 'fio --name=m --filename="$1" --ioengine=mmap --rw=write --bs=4k --size=64k --allow_file_create=0 2>&1 | grep -m1 -i "error" >&2; exit 1' sh "$m/a"
ok "a truncated volume, flushed, is zeros" sh -c ': >"$1" && sync "$1"' sh "$m/a"
must bc flush "$T/c"
ok "on the backing device, too" cmp -n 8388608 "$T/a.img" /dev/zero
is "$(stat -c %s "$T/a.img")" 8388608 "which keeps its size"
stop c
done_testing
