#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P1, P3: what kill.sh does, for an ext4 on a loop device on a volume. kill -9 of the daemon at random moments, also of the one that
# has just recovered, while files are written, fsynced, renamed and deleted. Then every file that was fsynced is there, with what was
# fsynced or something newer of its own, and e2fsck finds nothing. CYCLES (default 3 per combination; times SOAK).
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop
requires e2fsck

seed=${SEED:-$RANDOM}
cycles=$((${CYCLES:-3} * SOAK))
diag "SEED=$seed"
RANDOM=$seed
fsrecord=$TOOLS/fsrecord
loop=
mkdir "$T/fs"

# Should a daemon hang instead of dying, whoever uses the file system waits where no signal reaches him: only the end of the FUSE
# connection does. From one call to the next.
watchdog=
unwatch() {
	local code=$?
	[ -z "$watchdog" ] || kill "$watchdog" 2>/dev/null
	watchdog=
	return $code
}
watch() {
	unwatch
	(
		trap - EXIT INT HUP
		trap '[ -z "${!:-}" ] || kill $!; exit' TERM
		sleep $((LIMIT * SLOW)) &
		wait
		kill_daemons
		abort_connections
	) >/dev/null 2>&1 </dev/null &
	watchdog=$!
}
trap 'unwatch; clean_up' EXIT

attach() { # FILE
	loop=$(losetup --show -f --direct-io=on --sector-size 4096 "$1") || bail "losetup $1"
}

detach() {
	must timeout -k 5 60 losetup -d "$loop"
	loop=
}

# After an error nothing may be written any more; a panic or going on would be another test.
mount_fs() { # with $options
	timeout -k 5 60 mount -t ext4 -o "errors=remount-ro,$options" "$loop" "$T/fs"
}

unmount_fs() { # with $options
	must timeout -k 5 60 umount "$T/fs"
}

start_load() { # NAME: load_fg without waiting
	"$BLKCACHE" load "$T/$1" "$T/$1.mnt" -f >"$T/$1.log" 2>&1 </dev/null &
	daemon=$!
}

# The daemon dies and with it the FUSE connection; the loop device fails whatever is under way or comes later, and so does ext4. That
# ends its users ($@), then it can be unmounted. The mount of the volumes goes last: before, the loop device's file would lose its path.
crash() { # NAME [PID...]
	local name=$1 pid
	shift
	kill -9 "$daemon"
	wait "$daemon" 2>/dev/null
	daemon=
	for pid in "$@"; do
		wait_for 60 gone "$pid" || abort_connections
		wait_for 60 gone "$pid" || bail "$name: process $pid outlives the daemon it waits for" "$(cat "/proc/$pid/stack" 2>&1)"
	done
	! mounted fs || wait_for 60 timeout -k 5 30 umount "$T/fs" || bail "$name: the file system is not unmounted"
	[ -z "$loop" ] || detach
	! mounted "$name.mnt" || must timeout -k 5 60 umount -l "$T/$name.mnt"
}

# shellcheck disable=SC2317
gone() { # PID
	! kill -0 "$1"
}

# mountpoint(1) cannot tell of a dead mount.
mounted() { # NAME
	own_mounts | grep -qxF "$T/$1"
}

nap() { # MILLISECONDS: a random time below
	local ms=$((RANDOM % $1))
	sleep "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
}

# A daemon that dies while it recovers, while ext4 recovers on it, or soon after. May not break anything, need not come far.
interrupted_recovery() { # NAME
	local what=$((RANDOM % 3)) user code
	if [ $what = 0 ]; then
		start_load "$1"
		nap 60
		crash "$1"
		return
	fi
	load_fg "$1"
	attach "$T/$1.mnt/v"
	if [ $what = 1 ]; then
		mount_fs 2>/dev/null &
	else
		mount_fs || bail "$1: mount"
		"$fsrecord" verify "$T/fs" "$T/$1.state" >"$T/verify.out" 2>&1 &
	fi
	user=$!
	nap 90
	crash "$1" $user
	wait $user
	code=$?
	[ $what = 1 ] || [ $code = 0 ] || [ $code = 2 ] || bail "$1: verify, before another kill: $code" "$(<"$T/verify.out")"
}

for combo in wb-4K wb-64K wt-4K; do
	watch
	mode=${combo%-*} line=${combo#*-}
	# 64K: discards come with each commit, elsewhere by FITRIM only
	options=nodiscard
	[ "$line" != 64K ] || options=discard
	truncate -s 64M "$T/$combo.img"
	# The files need more than the cache has: eviction and cleaning run too.
	new_cache $combo 24M --mode "$mode" --line-size "$line" --ram 4M --volume v="$T/$combo.img"
	must bc set "$T/$combo" clean-after=1s
	load_fg $combo
	attach "$T/$combo.mnt/v"
	must mkfs.ext4 -q -F -b 4096 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$loop"
	must mount_fs
	must "$fsrecord" init "$T/fs" "$T/$combo.state" $((seed + 1))
	for cycle in $(seq $cycles); do
		watch
		timeout -k 20 "$LIMIT" "$fsrecord" write "$T/fs" "$T/$combo.state" 60 >"$T/writer.out" 2>&1 &
		writer=$!
		nap 1200
		kill -0 $writer 2>/dev/null || bail "$combo $cycle: the writer ended by itself" "$(<"$T/writer.out")"
		crash $combo $writer
		wait $writer || bail "$combo $cycle: the writer" "$(<"$T/writer.out")"
		again=
		while [ $((RANDOM % 3)) = 0 ]; do
			interrupted_recovery $combo
			again="$again and again"
		done
		load_fg $combo
		attach "$T/$combo.mnt/v"
		run mount_fs
		[ "$status" = 0 ] || bail "$combo: mount after kill $cycle$again" "$err" "$(tail -n 20 "$T/$combo.log")"
		run "$fsrecord" verify "$T/fs" "$T/$combo.state"
		if [ "$status" = 0 ]; then
			pass "$combo: kill $cycle$again ($(<"$T/writer.out"))"
		else
			bail "$combo: kill $cycle$again" "$(<"$T/writer.out")" "$out" "$err" "$(tail -n 20 "$T/$combo.log")"
		fi
		unmount_fs
		exits 0 "$combo: e2fsck after kill $cycle" e2fsck -fn "$loop"
		must mount_fs
	done
	unmount_fs
	detach
	exits 0 "$combo: stop" bc stop "$T/$combo"
	wait "$daemon"
	exits 0 "$combo: check finds nothing" bc check "$T/$combo"
	attach "$T/$combo.img"
	must mount_fs
	exits 0 "$combo: the backing file after an orderly stop" "$fsrecord" verify "$T/fs" "$T/$combo.state"
	[ $combo = wt-4K ] && break
	unmount_fs
	detach
done

# ---- would it be noticed? ----
must "$fsrecord" damage "$T/fs" "$T/$combo.state"
damaged=$out
unmount_fs
must mount_fs
run "$fsrecord" verify "$T/fs" "$T/$combo.state"
is "$status" 1 "verify sees that files were damaged"
while read -r kind path; do
	like "$err" "^$path: " "... this one: $kind"
done <<<"$damaged"
unmount_fs
detach
done_testing
