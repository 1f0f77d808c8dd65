#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# misses.sh - hits do not wait for misses (P11): the 99th percentile of the latency of hits, 4 KiB random reads at depth 1 and 4, while 128 misses
# of 50 ms each are outstanding all the time, against the same without misses just before.
#
#   ram, ssd                 all blocks that are hit are in RAM; on the SSD, RAM a fraction of them
#   ram-misses, ssd-misses   the same volume, with a second reader that misses
#
# The volume is larger than the part that is hit. Each measurement has its own stretch of the rest, whose blocks are read once, in random order (no
# read-ahead, no sequential stream that goes past the cache), and the cache has room for all of it: misses fill, and never evict what is hit.
#
# Results: $OUT/misses.jsonl. Knobs: those of common.sh.
. "$(dirname "$0")/common.sh"

# 128 misses of 50 ms are 10 MiB a second. With its ramp and fio's start a measurement takes a second or two more than it measures.
stretch=$(((SECONDS_EACH + 4) * 12))
area=$((stretch * ROUNDS * 2))
# shellcheck disable=SC2034 # of start
need_factor=$((6 + area * 3 / SIZE))
start fio

declare -A path
for n in ram ssd; do
	image "$T/$n.img"
	truncate -s $((SIZE + area))M "$T/$n.img"
	ram=$(((SIZE + area) * 5 / 4))
	[ $n = ram ] || ram=$((SIZE / 16 > 16 ? 16 : SIZE / 16 + 1))
	blkcache $n "delay:read=50ms,write=50ms:$T/$n.img" $(((SIZE + area) * 5 / 4)) $ram wt
	path[$n]=$vol
done

say "warming up"
for n in ram ssd; do
	# most of it by many slow reads at a time, then as usual
	fio_json --filename="${path[$n]}" --size="${SIZE}m" --rw=randread --bs=128k --iodepth=128 --ioengine=io_uring --direct=1 >/dev/null
	warm_up $n "${path[$n]}"
done

missed() { "$BLKCACHE" stats "$T/$1.cache" --format json | jq .totals.requests.read_misses; } # TARGET
has_missed() { [ "$(missed "$1")" -ge "$2" ]; } # TARGET NUMBER

# beside_misses JOB TARGET ROUND: measure() while the misses go on. Their rate tells how many were outstanding.
stretches=0
beside_misses() {
	local mark=${#undo_list[@]} before begin rate
	before=$(missed "$2")
	run_child "$T/misses.log" fio --name=misses --thread --filename="${path[$2]}" --offset=$((SIZE + stretch * (stretches / 2)))m --size=${stretch}m \
		--rw=randread --bs=4k --iodepth=128 --ioengine=io_uring --direct=1 --randrepeat=0
	stretches=$((stretches + 1)) # the targets take turns
	wait_until has_missed "$2" $((before + 128)) || die "no misses: $(tail -n 3 "$T/misses.log")"
	before=$(missed "$2")
	begin=$(date +%s%N)
	measure misses "$1" "$2-misses" "$3" "${path[$2]}"
	rate=$((($(missed "$2") - before) * 1000000 / (($(date +%s%N) - begin) / 1000)))
	say "beside $rate misses a second, $((rate / 20)) outstanding"
	kill -0 "$child" 2>/dev/null || say "the misses ended before the measurement"
	undo_to "$mark"
}

rm -f "$OUT/misses.jsonl"
for job in rr1 rr4; do
	for round in $(seq "$ROUNDS"); do
		for n in ram ssd; do
			measure misses $job $n "$round" "${path[$n]}"
			beside_misses $job $n "$round"
		done
	done
done
