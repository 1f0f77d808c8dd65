#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# delay.sh - a slow backing device (`delay:`), cold and warm: what the cache is for. Targets take turns, round by round; in each round the
# cold read touches blocks that no round before has touched.
#
#   slow         the device itself: a volume in pass-through mode
#   cold         blkcache, each block for the first time (miss and fill)
#   warm-ssd     blkcache, all blocks cached, RAM a fraction of them
#   warm-ram     blkcache, all blocks cached and in RAM
#
# Results: $OUT/delay.jsonl. Knobs: those of common.sh; BENCH_DELAY (1ms, for reads and for writes).
need_factor=8
. "$(dirname "$0")/common.sh"

start fio
delay=${BENCH_DELAY:-1ms}
spec() { echo "delay:read=$delay,write=$delay:$1"; }

declare -A path
for n in slow cold warm-ssd warm-ram; do
	image "$T/$n.img"
	ram=16
	mode=wb
	[ $n = warm-ram ] && ram=$((SIZE * 5 / 4))
	[ $n = slow ] && mode=pt
	# 16 MiB would not be a fraction of a small working set
	[ $ram -lt $((SIZE / 16)) ] || [ $n = warm-ram ] || ram=$((SIZE / 16 + 1))
	blkcache $n "$(spec "$T/$n.img")" $((SIZE * 3 / 2)) $ram $mode
	path[$n]=$vol
done
say "warming up"
warm_up warm-ssd "${path[warm-ssd]}"
warm_up warm-ram "${path[warm-ram]}"

# cold JOB ROUND DEPTH: a region of its own, each block once
cold() {
	local part=$((SIZE / (ROUNDS * 2))) off r
	off=$((part * (2 * ($2 - 1) + ($3 > 1))))
	# shellcheck disable=SC2086
	r=$(fio_json ${fio_job[$1]} "--filename=${path[cold]}" "--offset=${off}m" "--size=${part}m" "--runtime=$SECONDS_EACH" \
		--randrepeat=0) || { say "$1 on cold failed"; return; }
	jq -c --arg job "$1" --argjson round "$2" '{job: $job, target: "cold", round: $round} + .' <<<"$r" >>"$OUT/delay.jsonl"
	printf '%-10s %-14s round %s  %9.0f IOPS  p99 %8.1f us\n' "$1" cold "$2" "$(jq .iops <<<"$r")" "$(jq .p99_us <<<"$r")" >&2
	sync "${path[cold]}"
}

rm -f "$OUT/delay.jsonl"
for job in rr1 rr32 rw1 rw32 mix32 fs1; do
	for round in $(seq "$ROUNDS"); do
		for n in slow cold warm-ssd warm-ram; do
			if [ $n = cold ]; then
				[ $job = rr1 ] && cold rr1 "$round" 1
				[ $job = rr32 ] && cold rr32 "$round" 32
			else
				measure delay $job $n "$round" "${path[$n]}"
			fi
		done
	done
done
