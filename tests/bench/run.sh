#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# run.sh - all benches, or those that are named; `make bench` runs it. Then the tables and plots (report.sh).
#
#   run.sh [engine] [instructions] [fuse] [delay] [misses] [db] [scale]
#
# Each part replaces its own results in $OUT and leaves the others. What an interrupted part has measured until then is kept.
# Knobs: those of common.sh; BENCH_QUICK=1: short runs that only show that all works; BENCH_SCALE ("1G 4G 16G 64G 256G", and 1T where memory and
# disk allow), BENCH_THREADS ("1 2 4 16 64").
set -u
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
BUILD=${BUILD:-build/release}
[[ $BUILD = /* ]] || BUILD=$top/$BUILD
OUT=${BENCH_OUT:-$BUILD/bench/results}
export BUILD BENCH_OUT=$OUT
sizes="1G 4G 16G 64G 256G"
engine_size=1G
engine_ops=1000000
if [ -n "${BENCH_QUICK:-}" ]; then
	export BENCH_SECONDS=${BENCH_SECONDS:-1} BENCH_ROUNDS=${BENCH_ROUNDS:-1} BENCH_SIZE=${BENCH_SIZE:-128}
	sizes="1G 4G"
	engine_size=256M
	engine_ops=100000
fi
rounds=${BENCH_ROUNDS:-3}
threads=${BENCH_THREADS:-1 2 4 16 64}
scale_dir=${BENCH_DIR:-${TMPDIR:-/var/tmp}}

mkdir -p "$OUT"
# said below each table: parts of several runs may stand side by side
machine() {
	echo "$(date -u +%F), $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)," \
		"kernel $(uname -r), commit $(git -C "$top" describe --always --dirty 2>/dev/null || echo unknown), load $(cut -d' ' -f1 /proc/loadavg) before;" \
		"${BENCH_SECONDS:-3} s a measurement, $rounds rounds, working set ${BENCH_SIZE:-1024} MiB"
}

child=
stop() {
	[ -z "$child" ] || { kill -TERM "$child"; wait "$child"; } 2>/dev/null
	exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM HUP
run() { # in the background, so that a signal is seen at once
	"$@" &
	child=$!
	wait "$child"
	local rc=$?
	child=
	return $rc
}

# 1T: 6 GiB for lines and as much again to be safe, about 20 GiB of disk while it is filled
room_for_1t() {
	[ "$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)" -ge 12 ] && [ "$(df --output=avail -BG "$scale_dir" | tr -dc '0-9\n' | tail -1)" -ge 30 ]
}

part() {
	case $1 in
	engine)
		: >"$OUT/engine.jsonl"
		for _ in $(seq "$rounds"); do
			for n in $threads; do
				run "$BUILD/bench/engine" --json --size $engine_size --ops $engine_ops --threads "$n" >>"$OUT/engine.jsonl"
			done
		done
		;;
	instructions)
		: >"$OUT/instructions.jsonl"
		RESULT=$OUT/instructions.jsonl run "$here/instructions.sh"
		;;
	scale)
		: >"$OUT/scale.jsonl"
		[ -n "${BENCH_SCALE:-}${BENCH_QUICK:-}" ] || ! room_for_1t || sizes="$sizes 1T"
		# shellcheck disable=SC2086
		run "$BUILD/bench/scale" --json --dir "$scale_dir" ${BENCH_SCALE:-$sizes} >>"$OUT/scale.jsonl"
		;;
	fuse | delay | misses | db)
		run "$here/$1.sh"
		;;
	*)
		echo "usage: run.sh [engine] [instructions] [fuse] [delay] [misses] [db] [scale]" >&2
		exit 64
		;;
	esac
}

[ $# -gt 0 ] || set -- engine instructions fuse delay misses db scale
failed=
for p in "$@"; do
	echo "== $p" >&2
	info=$(machine)
	part "$p" || failed="$failed $p"
	echo "$info" >"$OUT/$p.machine"
done
"$here/report.sh"
echo "results and plots: $OUT" >&2
[ -z "$failed" ] || { echo "these parts failed, or not in every case:$failed" >&2; exit 1; }
