#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P1, P3, P4: kill -9 of the daemon at random moments under writes, flushes and discards; each block is then as old as the last
# flush at most, whole, and its own. CYCLES (default 6 per combination; times SOAK).
. "$(dirname "$0")/lib.sh"
requires_fuse

seed=${SEED:-$RANDOM}
cycles=$((${CYCLES:-6} * SOAK))
diag "SEED=$seed"
RANDOM=$seed
for combo in wb-4K wb-64K wt-4K wt-64K wo-16K; do
	mode=${combo%-*} line=${combo#*-}
	truncate -s 16M "$T/$combo.img"
	# The cache is smaller than the volume: eviction and cleaning run too.
	new_cache $combo 8M --mode $mode --line-size $line --ram 2M --volume v="$T/$combo.img"
	must bc set "$T/$combo" clean-after=1s
	must "$TOOLS/flushrecord" init "$T/$combo.state" 4096 $((seed + 1))
	load_fg $combo
	for cycle in $(seq $cycles); do
		timeout -k 20 "$LIMIT" "$TOOLS/flushrecord" write "$T/$combo.mnt/v" "$T/$combo.state" 60 >"$T/writer.out" 2>&1 &
		writer=$!
		sleep "$(printf '%d.%03d' $((RANDOM % 2)) $((RANDOM % 1000)))"
		kill_hard $combo
		wait $writer || bail "$combo $cycle: the writer ended by itself" "$(<"$T/writer.out")"
		load_fg $combo
		run "$TOOLS/flushrecord" verify "$T/$combo.mnt/v" "$T/$combo.state"
		if [ "$status" = 0 ]; then
			pass "$combo: kill $cycle ($(<"$T/writer.out"))"
		else
			cp "$T/$combo.log" "$T/.log"
			bail "$combo: kill $cycle" "$(<"$T/writer.out")" "$out" "$err" "$(tail -n 20 "$T/.log")"
		fi
	done
	exits 0 "$combo: stop" bc stop "$T/$combo"
	wait "$daemon"
	run "$TOOLS/flushrecord" verify "$T/$combo.img" "$T/$combo.state"
	is "$status" 0 "$combo: the backing file after an orderly stop"
	exits 0 "$combo: check finds nothing" bc check "$T/$combo"
done
done_testing
