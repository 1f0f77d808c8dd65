#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P1, P3, P8: kill -9 of the daemon while management commands are under way: volumes are added and removed, modes and tunables
# changed, everything is flushed, and some commands meet the stopped cache between two loads. Volume v stays; w comes and goes,
# under ids and names that were used before. A writer writes v all the time, and w whenever it is there. After each kill both are as
# the last flush left them or newer, whether w is a volume of the cache at that moment or has just been removed, and what lies on
# `other`, which was never written through the cache, is unchanged. CYCLES (default 12; times SOAK).
. "$(dirname "$0")/lib.sh"
requires_fuse

seed=${SEED:-$RANDOM}
cycles=$((${CYCLES:-12} * SOAK))
diag "SEED=$seed"
RANDOM=$seed
truncate -s 16M "$T/v.img"
truncate -s 8M "$T/w.img"
random_file "$T/other.img" $((4 << 20))
other=$(md5sum <"$T/other.img")
new_cache c 8M --mode wb --ram 2M --volume v="$T/v.img"
must bc set "$T/c" clean-after=1s
must "$TOOLS/flushrecord" init "$T/v.state" 4096 $((seed + 1))
must "$TOOLS/flushrecord" init "$T/w.state" 2048 $((seed + 2))

has() { # VOLUME: of the loaded cache
	[ -e "$T/c.mnt/$1" ]
}

# One random command; whether it succeeds is not the question here. Also on the stopped cache.
command_at_random() {
	case $((RANDOM % 9)) in
	0 | 1) bc add "$T/c" w="$T/w.img" --mode wb ;;
	2) bc remove "$T/c" w ;;
	3) bc add "$T/c" other="$T/other.img" --mode wt ;;
	4) bc remove "$T/c" other ;;
	5) bc set "$T/c" v mode=$(one_of wb wt wa wi wo pt) ;;
	6) bc set "$T/c" w mode=$(one_of wb wt wo) ;;
	7) bc set "$T/c" epoch-interval=$(one_of 100ms 1s 3s) clean-after=$(one_of 1s 5s) ;;
	8) bc flush "$T/c" ;;
	esac
}
one_of() {
	shift $((RANDOM % $#))
	echo "$1"
}

# Reads of `other` fill the cache with its lines, which must not come up in another volume later.
manage() {
	trap - EXIT
	RANDOM=$1
	while kill -0 "$daemon" 2>/dev/null; do
		command_at_random
		! has other || timeout 20 cat "$T/c.mnt/other"
	done >/dev/null 2>&1 </dev/null
}

write_v() {
	timeout -k 20 "$LIMIT" "$TOOLS/flushrecord" write "$T/c.mnt/v" "$T/v.state" 60
}

# Its file may be gone by the time it is opened, and cannot be removed while it is written: in short pieces.
write_w() {
	trap - EXIT
	while kill -0 "$daemon" 2>/dev/null; do
		! has w || timeout -k 20 "$LIMIT" "$TOOLS/flushrecord" write "$T/c.mnt/w" "$T/w.state" 1
		sleep 0.05
	done >/dev/null 2>&1 </dev/null
}

# Where w is now: in the cache, or on its own.
w_is_at() {
	if has w; then echo "$T/c.mnt/w"; else echo "$T/w.img"; fi
}

load_fg c
for cycle in $(seq $cycles); do
	write_v >"$T/writer.out" 2>&1 &
	writer=$!
	write_w &
	writer_w=$!
	manage $RANDOM &
	manager=$!
	sleep "$(printf '%d.%03d' $((RANDOM % 2)) $((RANDOM % 1000)))"
	kill_hard c
	wait $writer || bail "kill $cycle: the writer ended by itself" "$(<"$T/writer.out")"
	wait $writer_w $manager
	between=
	for _ in $(seq $((RANDOM % 3))); do
		command_at_random >"$T/.between" 2>&1 </dev/null && between="$between+"
	done
	load_fg c
	at=$(w_is_at)
	exits 0 "kill $cycle$between: v" "$TOOLS/flushrecord" verify "$T/c.mnt/v" "$T/v.state"
	[ "$status" = 0 ] || bail "the rest makes no sense" "$(tail -n 20 "$T/c.log")"
	exits 0 "kill $cycle$between: w, at ${at#"$T"/}" "$TOOLS/flushrecord" verify "$at" "$T/w.state"
	[ "$status" = 0 ] || bail "the rest makes no sense" "$(tail -n 20 "$T/c.log")"
	is "$(md5sum <"$T/other.img")" "$other" "kill $cycle$between: what nobody wrote"
	! has other || is "$(timeout 60 md5sum <"$T/c.mnt/other")" "$other" "kill $cycle: and as the cache shows it"
done
at=$(w_is_at)
exits 0 "stop" bc stop "$T/c"
wait "$daemon"
exits 0 "v's backing file after an orderly stop" "$TOOLS/flushrecord" verify "$T/v.img" "$T/v.state"
exits 0 "w's" "$TOOLS/flushrecord" verify "$T/w.img" "$T/w.state"
exits 0 "check finds nothing" bc check "$T/c"
done_testing
