#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P10 for block devices: names that lead to another disk, disks that were written without the cache, and what must never be taken for
# either.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop

# A write through the volume that stays dirty.
dirty() { # CACHE VOLUME SEED
	"$TOOLS/ioflags" write "$T/$1.mnt/$2" 65536 16384 "$3" dsync >/dev/null || bail "write"
}

for f in one two; do
	random_file "$T/$f.img" 8M
done
one=$(losetup --show -f "$T/one.img")
two=$(losetup --show -f "$T/two.img")
cp "$T/two.img" "$T/two.before"

# ---- a link of the user's that leads to another disk of the same size ----

ln -s "$one" "$T/disk"
new_cache c 4M --mode wb --volume v="$T/disk"
must bc set "$T/c" clean-after=1000s
load c
dirty c v 7
exits 3 "stop --no-flush" bc stop "$T/c" --no-flush
ln -sfn "$two" "$T/disk"
refuses 1 "volume v: .*another device: loop over inode [0-9]+.*, not loop over inode [0-9]+.* as $one.*--discard-dirty" \
	"another disk under the name: refused, and both are named" bc load "$T/c" "$T/c.mnt"
ok "the other disk was not written" same "$T/two.img" "$T/two.before"
ln -sfn "$one" "$T/disk"
exits 0 "the right one again: loaded" bc load "$T/c" "$T/c.mnt"
unlike "$out" "changed|dropped" "without a word"
stop c
ok "and the data is on it" "$TOOLS/ioflags" expect "$T/one.img" 65536 16384 7
load c
head -c 1M "$T/c.mnt/v" >/dev/null
stop c
ln -sfn "$two" "$T/disk"
exits 0 "with clean lines only it is loaded" bc load "$T/c" "$T/c.mnt"
like "$out" "another device.*lines are dropped" "and says that the lines are dropped"
ok "what is read is what is on the disk" same "$T/c.mnt/v" "$T/two.before"
stop c

# ---- names of the kernel's that change places ----

new_cache k 4M --mode wb --volume a="$one" --volume b="$two"
must bc set "$T/k" clean-after=1000s
load k
dirty k a 8
dirty k b 9
exits 3 "stop --no-flush" bc stop "$T/k" --no-flush
losetup -d "$one"
losetup -d "$two"
# both are free now, unless somebody else is quicker
if losetup "$one" "$T/two.img" 2>/dev/null && losetup "$two" "$T/one.img" 2>/dev/null; then
	exits 0 "two disks have each other's name: loaded" bc load "$T/k" "$T/k.mnt"
	like "$out" "volume a: backing $one is $two now" "and it says where it found them"
	like "$out" "volume b: backing $two is $one now" "both"
	exits 0 "stop" bc stop "$T/k"
	ok "the data of one is on it" "$TOOLS/ioflags" expect "$T/one.img" 65536 16384 8
	ok "and that of the other" "$TOOLS/ioflags" expect "$T/two.img" 65536 16384 9
	exits 0 "the next load knows" bc load "$T/k" "$T/k.mnt"
	unlike "$out" "backing" "and has nothing to say"
	stop k
else
	skip "names change places" "the loop devices are taken"
fi
drop_loops

# ---- written without the cache ----

# Nothing but the data may tell it: the file behind the device is as old as it was, and the counts of the device start anew.
behind() { # CACHE FILE COMMAND...
	local c=$1 file=$2
	shift 2
	touch -r "$file" "$T/.time"
	"$@"
	touch -r "$T/.time" "$file"
}

for mode in wt wb; do
	random_file "$T/$mode.img" 8M
	dev=$(losetup --show -f "$T/$mode.img")
	new_cache "$mode" 4M --mode $mode --volume v="$dev"
	load "$mode"
	head -c 2M "$T/$mode.mnt/v" >/dev/null
	stop "$mode"
	exits 0 "$mode: loaded again" bc load "$T/$mode" "$T/$mode.mnt"
	unlike "$out" "changed|dropped" "$mode: nobody wrote to it, and nobody says so"
	stop "$mode"
	# at a place that is no end and no witness
	printf 'one block' | dd of="$dev" bs=4096 seek=333 conv=notrunc,fsync status=none
	exits 0 "$mode: loaded after the device was written" bc load "$T/$mode" "$T/$mode.mnt"
	like "$out" "lines are dropped" "$mode: that is noticed"
	ok "$mode: what is read is what is on it" same "$T/$mode.mnt/v" "$T/$mode.img"
	head -c 2M "$T/$mode.mnt/v" >/dev/null
	stop "$mode"
	losetup -d "$dev"
	behind "$mode" "$T/$mode.img" dd if=/dev/urandom of="$T/$mode.img" bs=4096 seek=77 count=1 conv=notrunc,fsync status=none
	losetup "$dev" "$T/$mode.img" 2>/dev/null || { skip "$mode: only the data tells" "$dev is taken"; continue; }
	exits 0 "$mode: loaded after a change that only the data tells" bc load "$T/$mode" "$T/$mode.mnt"
	like "$out" "block at byte 315392.*dropped" "$mode: which block it was is said"
	ok "$mode: what is read is what is on it" same "$T/$mode.mnt/v" "$T/$mode.img"
	stop "$mode"
done

done_testing
