#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P10 for files, where times and numbers do not tell: a backing file that was restored in place, a cache folder that was restored from a
# copy, a file that was written after a crash, and a file system that numbers its files anew at each mount.
. "$(dirname "$0")/lib.sh"
requires_fuse

write() { # CACHE VOLUME OFFSET SEED
	"$TOOLS/ioflags" write "$T/$1.mnt/$2" "$3" 65536 "$4" dsync >/dev/null || bail "write"
}

# ---- everything in the cache is dirty: only remembered blocks tell ----

random_file "$T/a.img" 4M
cp "$T/a.img" "$T/a.old"
new_cache c 8M --mode wb --volume a="$T/a.img"
must bc set "$T/c" clean-after=1000s
load c
write c a 1048576 1
exits 3 "stop --no-flush" bc stop "$T/c" --no-flush
touch -r "$T/a.img" "$T/time"
random_file "$T/other" 4M
cat "$T/other" >"$T/a.img" # the same inode
touch -r "$T/time" "$T/a.img"
refuses 1 "volume a: .*block at byte [0-9]+ is not what the cache knows.*--accept-changed a" \
	"another content with nothing clean in the cache: refused" bc load "$T/c" "$T/c.mnt"
cat "$T/a.old" >"$T/a.img"
touch -r "$T/time" "$T/a.img"
exits 0 "the old content: loaded" bc load "$T/c" "$T/c.mnt"
unlike "$out" "dropped" "without a word"

# ---- a copy of the folder, made while it was busy ----

cat "$T/c.mnt/a" >/dev/null
must bc set "$T/c" clean-after=1s
for i in 1 2 3 4 5 6; do
	write c a $((i * 131072)) $i
	sleep 0.$((i * 3 % 10))
	cp -a "$T/c" "$T/copy.$i"
	rm -f "$T/copy.$i/control"
done
# one block, away from what was dirty in any copy
printf 'moved on' | dd of="$T/c.mnt/a" bs=4096 seek=900 conv=notrunc,fsync status=none
stop c
cp "$T/a.img" "$T/now"
touch -r "$T/a.img" "$T/time"
noticed=0
for i in 1 2 3 4 5 6; do
	rm -rf "$T/c"
	mv "$T/copy.$i" "$T/c"
	cat "$T/now" >"$T/a.img"
	touch -r "$T/time" "$T/a.img"
	run bc load "$T/c" "$T/c.mnt"
	if [ "$status" = 0 ]; then
		cmp -s "$T/c.mnt/a" "$T/now" && noticed=$((noticed + 1))
		stop c
	else
		grep -q "changed behind the cache" "$T/.err" && noticed=$((noticed + 1))
	fi
done
is "$noticed" 6 "copies of a busy cache: each is refused, or serves what is on the file"
ok "and nothing old is written over it" same "$T/a.img" "$T/now"

# ---- after a crash, by others ----

random_file "$T/k.img" 4M
new_cache k 8M --mode wb --volume k="$T/k.img"
must bc set "$T/k" clean-after=1s
load_fg k
write k k 0 5
wait_for 30 sh -c "cmp -s -n 65536 '$T/k.mnt/k' '$T/k.img'" # the cleaner writes: the row is in use
kill_hard k
touch -d "+1 hour" "$T/k.img"
run bc load "$T/k" "$T/k.mnt"
like "$out$err" "modified [0-9]+ s after the cache" "a file that is much younger than the cache's last word: noticed"
[ "$status" = 0 ] && stop k

# ---- inode numbers that are new at each mount: of a volume of ours ----

random_file "$T/o1.img" 4M
random_file "$T/o2.img" 4M
new_cache o 8M --volume first="$T/o1.img" --volume second="$T/o2.img"
load o
new_cache i 8M --mode wb --volume v="$T/o.mnt/second"
must bc set "$T/i" clean-after=1000s
load i
cat "$T/i.mnt/v" >/dev/null
write i v 0 6
exits 3 "on a FUSE file system: stop --no-flush" bc stop "$T/i" --no-flush
ino=$(stat -c %i "$T/o.mnt/second")
stop o
must bc remove "$T/o" first
must bc remove "$T/o" second
must bc add "$T/o" second="$T/o2.img"
load o
if [ "$(stat -c %i "$T/o.mnt/second")" = "$ino" ]; then
	skip "another inode number" "it is the same"
else
	exits 0 "another inode number and time after a mount, nobody has written: loaded" bc load "$T/i" "$T/i.mnt"
	unlike "$out" "dropped" "and warm"
	exits 0 "stop flushes" bc stop "$T/i"
	ok "to the right place" "$TOOLS/ioflags" expect "$T/o.mnt/second" 0 65536 6
fi
stop o
done_testing
