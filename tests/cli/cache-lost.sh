#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The cache's disk is lost under a loaded cache: an ext4 on a loop device that is told to abort, so that nothing can be written to it
# any more. Clean: the volumes go on without the cache (P7). Dirty: nothing is promised any more and nothing is lost (P6).
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop

state_dir=/var/lib/blkcache # where the second note goes; the test takes back what it left there
notes=()
# shellcheck disable=SC2317 # called by the trap
take_back_notes() {
	[ ${#notes[@]} = 0 ] || rm -f "${notes[@]}"
}
# clean_up takes its exit status from what ran last
trap 'code=$?; take_back_notes; (exit $code); clean_up' EXIT

# The fast disk, with a cache on it, loaded.
insert_disk() { # CREATE-OPTIONS...
	mkdir -p "$T/ssd" "$T/m"
	truncate -s 64M "$T/ssd.img"
	must mkfs.ext4 -q -F "$T/ssd.img"
	dev=$(losetup --show -f "$T/ssd.img") || bail "loop device"
	must mount "$dev" "$T/ssd"
	must bc create "$T/ssd/c" --size 16M --ram 4M "$@"
	must bc set "$T/ssd/c" clean-after=1000s
	must bc load "$T/ssd/c" "$T/m"
	uuid=$(status_of ssd/c .cache.uuid)
	notes+=("$state_dir/${uuid//-/}.bypassed")
}

lose_disk() {
	mount -o remount,abort "$T/ssd" 2>/dev/null
	nok "the disk takes nothing any more" touch "$T/ssd/file"
}

# Repaired and mounted again.
repair_disk() {
	must umount "$T/ssd"
	run fsck.ext4 -fy "$dev"
	[ "$status" -le 1 ] || bail "fsck" "$out" "$err"
	must mount "$dev" "$T/ssd"
}

take_disk() {
	must umount "$T/ssd"
	losetup -d "$dev"
	rm "$T/ssd.img"
}

write_to() { # FILE OFFSET LENGTH SEED [dsync]
	"$TOOLS/ioflags" write "$@"
}

# ---- nothing dirty: P7 ----

random_file "$T/a.img" 8M
random_file "$T/b.img" 4M
insert_disk --mode wt --volume a="$T/a.img" --volume b="$T/b.img"
ok "wt: the volume is read, and cached" same "$T/m/a" "$T/a.img"
write_to "$T/m/a" 0 65536 1 >/dev/null || bail "write"
lose_disk
for i in $(seq 0 15); do # the first of them meet the loss
	ok "wt: write $i succeeds" write_to "$T/m/a" $((i * 300000)) 65536 $((100 + i)) dsync
	ok "wt: and has reached the backing file" "$TOOLS/ioflags" expect "$T/a.img" $((i * 300000)) 65536 $((100 + i))
	ok "wt: and is what is read" "$TOOLS/ioflags" expect "$T/m/a" $((i * 300000)) 65536 $((100 + i))
done
ok "wt: fsync succeeds" sync "$T/m/a"
ok "wt: the whole volume reads as the backing file" same "$T/m/a" "$T/a.img"
ok "wt: so does the other" same "$T/m/b" "$T/b.img"
ok "wt: a discard works" fallocate -p -o 1M -l 64K "$T/m/b"
ok "wt: and has reached the backing file" cmp -n 65536 -i 1048576:0 "$T/b.img" /dev/zero
is "$(status_of ssd/c .cache.state)" degraded "wt: the state is degraded"
is "$(status_of ssd/c '.volumes[0].state')" degraded "wt: the volume's too"
ok "wt: with a reason" test -n "$(status_of ssd/c .cache.why)"
diag "$(status_of ssd/c .cache.why)"
ok "wt: a note is left that the journal is void" test -e "${notes[0]}"
exits 0 "wt: flush: there is nothing to flush" bc flush "$T/ssd/c"
exits 0 "wt: stop" bc stop "$T/ssd/c"
write_to "$T/a.img" 0 4096 77 >/dev/null || bail "write"
repair_disk
exits 0 "wt: load on the repaired disk" bc load "$T/ssd/c" "$T/m"
like "$out" "starts empty" "wt: says that it starts empty"
is "$(status_of ssd/c .usage.occupied_lines)" 0 "wt: it does"
is "$(status_of ssd/c .cache.state)" running "wt: the state is running"
ok "wt: the newest data is served" same "$T/m/a" "$T/a.img"
ok "wt: also of the other volume" same "$T/m/b" "$T/b.img"
nok "wt: the note is gone" test -e "${notes[0]}"
exits 0 "wt: stop" bc stop "$T/ssd/c"
exits 0 "wt: load again" bc load "$T/ssd/c" "$T/m"
unlike "$out" "starts empty" "wt: with the cache in use again"
ok "wt: and something in it" test "$(status_of ssd/c .usage.occupied_lines)" -gt 0
ok "wt: which is right" same "$T/m/a" "$T/a.img"
exits 0 "wt: stop" bc stop "$T/ssd/c"
take_disk

# The daemon dies while it goes on without the cache: the same, without a stop in order.
insert_disk --mode wt --volume a="$T/a.img"
ok "wt, kill: the volume is read, and cached" same "$T/m/a" "$T/a.img"
lose_disk
ok "wt, kill: write" write_to "$T/m/a" 8192 65536 5 dsync
kill -9 "$(status_of ssd/c .cache.pid)"
wait_for 30 eval '[ -z "$(own_daemons)" ]'
umount -l "$T/m"
repair_disk
exits 0 "wt, kill: load" bc load "$T/ssd/c" "$T/m"
ok "wt, kill: the write is there" "$TOOLS/ioflags" expect "$T/m/a" 8192 65536 5
ok "wt, kill: and all else" same "$T/m/a" "$T/a.img"
exits 0 "wt, kill: stop" bc stop "$T/ssd/c"
take_disk

# ---- dirty data: P6 ----

cp "$T/a.img" "$T/a.before"
insert_disk --mode wb --volume a="$T/a.img" --volume b="$T/b.img"
ok "wb: the other volume is read, and cached" same "$T/m/b" "$T/b.img"
write_to "$T/m/a" 1000000 200000 9 dsync >/dev/null || bail "write"
lose_disk
run write_to "$T/m/a" 5000000 65536 10 dsync
ok "wb: a synchronous write fails" test "$status" != 0
run sync "$T/m/a"
ok "wb: fsync fails" test "$status" != 0
like "$err" "Input/output error" "wb: with EIO"
run sync "$T/m/a"
ok "wb: and fails again" test "$status" != 0
nok "wb: a write fails" write_to "$T/m/a" 6000000 65536 11
nok "wb: also to the volume that is clean" write_to "$T/m/b" 0 65536 12
ok "wb: clean data can be read" same "$T/m/b" "$T/b.img"
ok "wb: dirty data too, as long as the disk can be read" "$TOOLS/ioflags" expect "$T/m/a" 1000000 200000 9
is "$(status_of ssd/c .cache.state)" failed "wb: the state is failed"
ok "wb: with a reason" test -n "$(status_of ssd/c .cache.why)"
refuses 1 "dirty data is kept" "wb: flush fails and says what is kept" bc flush "$T/ssd/c"
refuses 1 "$T/ssd/c.*failed.*--no-flush" "wb: stop refuses and names the way out" bc stop "$T/ssd/c"
unlike "$err" "go on working" "wb: and does not claim that all is well"
is "$(status_of ssd/c .cache.state)" failed "wb: the daemon runs on"
refuses 1 "the daemon has ended.*load the cache again" "wb: stop --no-flush" bc stop "$T/ssd/c" --no-flush
unlike "$err" "cache $T/ssd/c.*cache $T/ssd/c" "wb: names the cache once"
is "$(own_daemons | wc -l)" 0 "wb: has ended it"
ok "wb: nothing was written to the backing file" same "$T/a.img" "$T/a.before"
repair_disk
exits 0 "wb: status on the repaired disk" bc status "$T/ssd/c"
like "$out" "not cleanly.*dirty data" "wb: says that it was not stopped in order, and that there is dirty data"
exits 0 "wb: load" bc load "$T/ssd/c" "$T/m"
ok "wb: the dirty data that was flushed is there" "$TOOLS/ioflags" expect "$T/m/a" 1000000 200000 9
exits 0 "wb: stop flushes it" bc stop "$T/ssd/c"
ok "wb: it is in the backing file" "$TOOLS/ioflags" expect "$T/a.img" 1000000 200000 9
take_disk
done_testing
