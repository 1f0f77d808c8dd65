#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# --survive: kill -9 of the daemon costs neither the mount nor anything answered. KILLS (default 5 per case; times SOAK).
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_root
requires fio

seed=${SEED:-$RANDOM}
kills=$((${KILLS:-5} * SOAK))
diag "SEED=$seed"
RANDOM=$seed

# Should a takeover fail to come, clients would wait for ever, and no signal ends them: the connection's end does.
# From one load to the next.
watchdog=
watch() {
	[ -n "$watchdog" ] && kill "$watchdog" 2>/dev/null
	[ "${1:-}" = off ] && return
	(
		trap - EXIT INT TERM HUP
		sleep $(((LIMIT + 4 * kills) * SLOW)) &
		trap 'kill $!; exit' TERM
		wait
		kill_daemons
		abort_connections
	) >/dev/null 2>&1 </dev/null &
	watchdog=$!
}

load_surviving() { # NAME
	watch
	mkdir -p "$T/$1.mnt"
	run bc load "$T/$1" "$T/$1.mnt" --survive
	if [ "$status" != 0 ]; then
		watch off
		grep -q FUSE_HAS_RESEND <<<"$err" && skip_all "$err"
		bail "load --survive" "$err"
	fi
	pid=$(status_of "$1" .cache.pid)
	keeper=$(awk '/^PPid/ { print $2 }' "/proc/$pid/status")
}

is_another() { # NAME: another daemon answers
	local now
	now=$(timeout 10 "$BLKCACHE" status "$T/$1" --json 2>/dev/null | jq -r .cache.pid)
	[ -n "$now" ] && [ "$now" != "$pid" ] && pid=$now
}

# Kills the daemon, now and then the one that is just taking over as well.
kill_daemon() { # NAME
	local next
	kill -9 "$pid"
	if [ $((RANDOM % 4)) = 0 ]; then
		sleep "0.0$((RANDOM % 90 + 10))"
		next=$(pgrep -P "$keeper")
		[ -n "$next" ] && [ "$next" != "$pid" ] && kill -9 "$next" && pid=$next
	fi
	wait_for 60 is_another "$1" || bail "$1: another daemon takes over"
}

kill_while() { # NAME PID: kills daemons of NAME as long as PID runs, `kills` times at most
	for ((killed = 0; killed < kills; killed++)); do
		sleep "$((RANDOM % 2)).$((RANDOM % 900 + 100))"
		kill -0 "$2" 2>/dev/null || break
		kill_daemon "$1"
	done
	[ "$killed" -gt 0 ]
}

# ---- nothing answered is lost, no error is seen ----
for combo in wb-4K wb-64K wt-4K wo-16K; do
	mode=${combo%-*} line=${combo#*-}
	truncate -s 48M "$T/$combo.img"
	# Smaller than the volume, buffers smaller still: eviction, cleaning and writing of buffers all run.
	new_cache $combo 12M --mode $mode --line-size $line --ram 2M --volume v="$T/$combo.img"
	must bc set "$T/$combo" clean-after=1s
	load_surviving $combo
	rm -f "$T/enough"
	# one pass after another: with --time_based fio finds fault with its own second pass, on any file
	(
		pass=0
		while [ $pass = 0 ] || [ ! -e "$T/enough" ]; do
			timeout -k 20 $((LIMIT + 4 * kills)) fio --filename="$T/$combo.mnt/v" --rw=randwrite --bsrange=4k-64k --size=48M \
				--ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_backlog=128 --verify_fatal=1 --do_verify=1 \
				--verify_state_save=0 --fdatasync=64 --randseed=$((seed + pass)) --allow_file_create=0 --name=t || exit
			pass=$((pass + 1))
		done
	) >"$T/fio.out" 2>&1 &
	fio=$!
	ok "$combo: the daemon is killed under fio" kill_while $combo $fio
	touch "$T/enough"
	diag "$combo: $killed kills"
	wait $fio
	is $? 0 "$combo: fio sees no error, and reads what it wrote"
	grep -q 'err= *[1-9]' "$T/fio.out" && diag "$(<"$T/fio.out")"
	sum=$(sum "$T/$combo.mnt/v")
	exits 0 "$combo: stop" bc stop "$T/$combo"
	is "$(sum "$T/$combo.img")" "$sum" "$combo: the backing file has it all"
	wait_for 10 test ! -d "/proc/$keeper"
	is $? 0 "$combo: the supervisor has ended"
	exits 0 "$combo: check finds nothing" bc check "$T/$combo"
	rm -r "${T:?}/$combo" "$T/$combo.img"
done

# ---- then the machine dies: P1 as ever ----
truncate -s 16M "$T/p.img"
new_cache p 8M --mode wb --ram 2M --volume v="$T/p.img"
must "$TOOLS/flushrecord" init "$T/p.state" 4096 $((seed + 1))
load_surviving p
timeout -k 20 "$LIMIT" "$TOOLS/flushrecord" write "$T/p.mnt/v" "$T/p.state" 60 >"$T/writer.out" 2>&1 &
writer=$!
for _ in 1 2 3; do
	sleep 0.7
	kill_daemon p
done
sleep 0.3
ok "the writer has seen no error" kill -0 $writer
kill -9 "$keeper" "$pid"
wait $writer
umount -l "$T/p.mnt"
load_surviving p
exits 0 "daemon and supervisor killed: the next load has all that was flushed" "$TOOLS/flushrecord" verify "$T/p.mnt/v" "$T/p.state"
exits 0 "... and stops" bc stop "$T/p"

# ---- what is open stays open, what was set stays set ----
truncate -s 16M "$T/a.img" "$T/b.img"
new_cache s 8M --mode wb --volume a="$T/a.img" --volume b="delay:read=2s:$T/b.img"
load_surviving s
exec 7<>"$T/s.mnt/a"
chmod 640 "$T/s.mnt/a"
chown 1:2 "$T/s.mnt/a"
printf 'before' | dd of="$T/s.mnt/a" bs=4096 conv=notrunc status=none
timeout -k 20 60 dd if="$T/s.mnt/b" bs=4096 count=1 of="$T/read" status=none 2>"$T/read.err" &
reader=$!
sleep 0.5
kill_daemon s
is "$(stat -c '%a %u:%g' "$T/s.mnt/a")" "640 1:2" "mode and owner of a volume's file are as they were"
is "$(head -c 6 "$T/s.mnt/a")" before "what was written before is there"
wait $reader
is "$? $(stat -c %s "$T/read")" "0 4096" "a read that was under way is answered"
printf 'after' >&7
is "$(head -c 5 "$T/s.mnt/a")" after "a file that was open is written through"
refuses 1 'open|in use' "its volume is not removed" bc remove "$T/s" a
refuses 1 'in use' "stop is refused" bc stop "$T/s"
exits 0 "flush works" bc flush "$T/s"
is "$(head -c 5 "$T/a.img")" after "... and reaches the backing file"
exec 7>&-
sleep 0.5
kill_daemon s
exits 0 "closed, it is removed after another takeover" bc remove "$T/s" a
exits 0 "a volume is added" bc add "$T/s" c="$T/a.img"
is "$(stat -c '%a %u:%g' "$T/s.mnt/c")" "600 $(id -u):$(id -g)" "another volume does not inherit what was set"
kill_daemon s
is "$(head -c 5 "$T/s.mnt/c")" after "it works after a takeover"
printf 'newer' | dd of="$T/s.mnt/c" bs=4096 conv=notrunc status=none
kill -STOP "$keeper"
kill -9 "$pid"
mkdir "$T/other"
refuses 1 'in use' "P10: between two daemons nobody else gets the cache" bc load "$T/s" "$T/other"
kill -CONT "$keeper"
ok "... but the next one does" wait_for 60 is_another s
is "$(head -c 5 "$T/s.mnt/c")" newer "... and nothing was lost"
kill -9 "$keeper"
sleep 0.3
is "$(head -c 5 "$T/s.mnt/c")" newer "without its supervisor the daemon goes on"
exits 0 "... and stops" bc stop "$T/s"
load_surviving s
kill -TERM "$keeper"
ok "a signal to the supervisor ends the daemon" wait_for 20 test ! -d "/proc/$pid"
ok "... and the mount" wait_for 5 test ! -e "$T/s.mnt/c"
load_surviving s
exec 7<"$T/s.mnt/c"
kill_daemon s
ok "a lazy umount while a file is open" umount -l "$T/s.mnt"
exec 7<&-
ok "... ends the daemon when it is closed" wait_for 20 test ! -d "/proc/$keeper"
load s
is "$(head -c 5 "$T/s.mnt/c")" newer "an ordinary load goes on from there"
stop s

# ---- where it cannot be had ----
mkdir "$T/n"
chmod 711 "$T"
truncate -s 8M "$T/n/img"
chown -R 65534 "$T/n"
as_nobody() {
	timeout -k 5 60 setpriv --reuid=65534 --clear-groups env BLKCACHE_CONF=/dev/null "$BLKCACHE" "$@"
}
if as_nobody --version >/dev/null 2>&1 && as_nobody create "$T/n/c" --size 4M >/dev/null 2>&1; then
	mkdir -m 777 "$T/n/mnt"
	refuses 1 'run as root|permission' "without the right to mount it is refused" as_nobody load "$T/n/c" "$T/n/mnt" --survive
else
	skip "without the right to mount it is refused" "the program cannot be run by another user"
fi

# ---- a file system ----
if command -v losetup >/dev/null && loop=$(losetup --show -f "$T/a.img" 2>/dev/null); then
	losetup -d "$loop"
	rm -f "$T/enough"
	mkdir "$T/fs" "$T/source"
	cp -r /usr/include/linux /usr/include/x86_64-linux-gnu "$T/source/" 2>/dev/null
	truncate -s 192M "$T/e.img"
	new_cache e 48M --mode wb --ram 4M --volume disk="$T/e.img"
	load_surviving e
	loop=$(losetup --show -f --direct-io=on --sector-size 4096 "$T/e.mnt/disk") || bail "losetup"
	must mkfs.ext4 -q -E nodiscard "$loop"
	must mount "$loop" "$T/fs"
	(
		set -e
		while :; do
			cp -r "$T/source" "$T/fs/tree"
			sync -f "$T/fs"
			diff -r "$T/source" "$T/fs/tree"
			[ ! -e "$T/enough" ] || exit 0
			rm -r "$T/fs/tree"
			fstrim "$T/fs"
			echo 3 >/proc/sys/vm/drop_caches
		done
	) >"$T/copy.out" 2>&1 &
	copy=$!
	ok "ext4: the daemon is killed under it" kill_while e $copy
	touch "$T/enough"
	diag "ext4: $killed kills"
	wait $copy
	is $? 0 "ext4: nobody above sees it"
	diag "$(head -n 5 "$T/copy.out")"
	must umount "$T/fs"
	ok "ext4: e2fsck is content" e2fsck -fn "$loop"
	must mount "$loop" "$T/fs"
	ok "ext4: the tree is whole" diff -r "$T/source" "$T/fs/tree"
	must umount "$T/fs"
	losetup -d "$loop"
	exits 0 "ext4: stop" bc stop "$T/e"
fi
watch off
done_testing
