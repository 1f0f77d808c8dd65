#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# report.sh - tables (results.md) and plots (*.svg) from the results that lie in $OUT. Run by run.sh; may be run again at any time.
#
#   report.sh      prints results.md too
#
# A ratio is the median of the rounds' ratios, each of two measurements made one after the other; in brackets the least and the largest.
# Knobs: BUILD, BENCH_OUT, BENCH_PLOT (svg or png).
set -eu
export LC_ALL=C
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-build/release}
[[ $BUILD = /* ]] || BUILD=$top/$BUILD
OUT=${BENCH_OUT:-$BUILD/bench/results}
cd "$OUT" || exit 1

# ---- tables ----

# shellcheck disable=SC2016 # jq's variables
jq_lib='
def median: sort | if length == 0 then null elif length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def round2: . * 100 | round / 100;
def uniq_in_order: reduce .[] as $x ([]; if index($x) then . else . + [$x] end);
# ratios of the value f: of target a on job to target b on job2, round by round
def ratios_of(f; $job; $a; $job2; $b):
	. as $all | [$all[] | select(.job == $job and .target == $a) | . as $x
		| ($all[] | select(.job == $job2 and .target == $b and .round == $x.round)) | ($x | f) / f];
def ratios($job; $a; $job2; $b): ratios_of(.iops; $job; $a; $job2; $b);
def show_ratio: if length == 0 then "" else "\(median | round2) (\(min | round2)-\(max | round2))" end;
def row: "| " + join(" | ") + " |";
'

# matrix FILE YARDSTICK: jobs down, targets across; operations a second, and the ratio to the yardstick
matrix() {
	jq -sr --arg base "$2" "$jq_lib"'
		. as $all | (map(.target) | uniq_in_order) as $targets
		| (["job"] + $targets | row), (["---"] + ($targets | map("---:")) | row),
		(map(.job) | uniq_in_order | .[] as $job | [$job] + [$targets[] as $t
			| ([$all[] | select(.job == $job and .target == $t) | .iops] | median) as $m
			| if $m == null then "" elif $t == $base then "\($m | round)"
			  else ($all | ratios($job; $t; $job; $base)) as $r
				| if ($r | length) == 0 then "\($m | round)" else "\($m | round) (\($r | median | round2))" end end] | row)' "$1"
}

# latency FILE: 99th percentile, microseconds
latency() {
	jq -sr "$jq_lib"'
		. as $all | (map(.target) | uniq_in_order) as $targets
		| (["job, p99 us"] + $targets | row), (["---"] + ($targets | map("---:")) | row),
		(map(.job) | uniq_in_order | .[] as $job | [$job] + [$targets[] as $t
			| ([$all[] | select(.job == $job and .target == $t) | .p99_us] | median) | if . == null then "" else "\(round)" end] | row)' "$1"
}

# goals FILE: lines "JOB TARGET BASE LEAST" on stdin
goals() {
	echo '| job | of | to | wanted | ratio | |'
	echo '|---|---|---|---:|---:|---|'
	while read -r job of to least; do
		jq -sr --arg job "$job" --arg of "$of" --arg to "$to" --argjson least "$least" "$jq_lib"'
			ratios($job; $of; $job; $to) | if length == 0 then empty else
				[$job, $of, $to, "\($least)", show_ratio, (if median >= $least then "reached" else "**missed**" end)] | row end' "$1"
	done
}

fuse_goals='rr1 blkcache-ram floor-mem 0.90
rr32 blkcache-ram floor-mem 0.90
rr1 blkcache-ssd floor-file 0.97
rr32 blkcache-ssd floor-file 0.97
sr blkcache-ssd floor-file 0.95
rw1 blkcache-ram floor-mem 0.85
rw32 blkcache-ram floor-mem 0.85
sw blkcache-ram floor-mem 0.70
rw1 blkcache-ram raw 2.5
rw32 blkcache-ram raw 6
sw blkcache-ram raw 1
fs1 blkcache-ram floor-file 0.85
fs1 blkcache-ssd floor-file 0.85
rr32 loop-ram loop-floor-mem 0.90'

fuse_part() {
	echo '## The volume (fio), operations a second; in brackets the ratio to the raw file'
	echo
	matrix fuse.jsonl raw
	echo
	latency fuse.jsonl
	echo
	echo '## Ratios that are wanted'
	echo
	{
		echo "$fuse_goals"
		for job in rr1 rr32 mix32 rw1 rw32 fs1 sr sw; do
			for peer in nbdkit qsd; do
				for kind in ram ssd; do
					echo "$job blkcache-$kind $peer 3"
				done
			done
		done
	} | goals fuse.jsonl
	if [ -s ext4.jsonl ]; then
		echo
		echo '## ext4 on a loop device; in brackets the ratio to a loop device on the memory floor'
		echo
		matrix ext4.jsonl loop-floor-mem
	fi
}

misses_part() {
	echo '## Hits beside 128 misses of 50 ms: 99th percentile, microseconds'
	echo
	jq -sr "$jq_lib"'
		. as $all | (["job", "hits in", "alone", "beside misses", "ratio", "at most 2 is wanted"] | row), "|---|---|---:|---:|---:|---|",
		(map([.job, (.target | rtrimstr("-misses"))]) | unique[] | . as [$job, $t] | "\($t)-misses" as $with
			| def p99($x): [$all[] | select(.job == $job and .target == $x) | .p99_us] | median | if . == null then "" else "\(round)" end;
			($all | ratios_of(.p99_us; $job; $with; $job; $t)) as $r
			| [$job, $t, p99($t), p99($with), ($r | show_ratio),
				($r | if length == 0 then "" elif median <= 2 then "reached" else "**missed**" end)] | row)' misses.jsonl
}

# Open CAS: engine, one thread, 4 KiB, memory volumes, 1 GiB cache: operations per second, instructions besides the copy, part of these wanted
open_cas='read-hit-ram 609000 3238 0.2
write-hit 521000 3941 0.25
read-miss-insert 402000 null 0.4
write-miss-evict-dirty 276000 13175 0.3'

engine_part() {
	echo '## The engine alone'
	echo
	echo 'One row a case and number of threads. "Per core": by processor time, background threads included. "Besides": without a bare copy'
	echo 'of the same pattern. "Share": the part of the operations that was of the kind.'
	echo
	jq -sr "$jq_lib"'
		(["case", "threads", "ops/s", "ops/s per core", "ns", "copy ns", "besides ns", "share %"] | row), "|---|---:|---:|---:|---:|---:|---:|---:|",
		(group_by([.case, .threads])[] | [.[0].case, "\(.[0].threads)"] + ([
			(map(.ops_per_s) | median), (map(.ops_per_s_per_core) | median), (map(.ns) | median), (map(.copy_ns) | median),
			(map(.besides_ns) | median), (map(.share_percent) | median)] | map("\(round)")) | row)' engine.jsonl
	echo
	echo '| case | ops/s, 1 thread | Open CAS | ratio |'
	echo '|---|---:|---:|---:|'
	while read -r name ops _; do
		jq -sr --arg name "$name" --argjson ops "$ops" "$jq_lib"'
			[.[] | select(.case == $name and .threads == 1) | .ops_per_s] | if length == 0 then empty else
				median | [$name, "\(round)", "\($ops)", "\(. / $ops | round2)"] | row end' engine.jsonl
	done <<<"$open_cas"
}

instructions_part() {
	echo '## User-space instructions per operation'
	echo
	echo '"Request": the thread that makes the call; "behind": background threads. Without copies and checksums, which stand apart.'
	echo
	echo '| case | request | behind | both | copies | crc32c | Open CAS | ratio | wanted |'
	echo '|---|---:|---:|---:|---:|---:|---:|---:|---:|'
	jq -r '[.case, .request, .behind, .copies, .crc] | join(" ")' instructions.jsonl | while read -r name request behind copies crc; do
		read -r _ _ cas part < <(grep "^$name " <<<"$open_cas" || echo - - null -)
		both=$((request + behind))
		ratio=-
		[ "$cas" = null ] || ratio=$(awk -v a=$both -v b="$cas" 'BEGIN { printf "%.2f", a / b }')
		echo "| $name | $request | $behind | $both | $copies | $crc | ${cas/null/-} | $ratio | $part |"
	done
}

scale_part() {
	echo '## Growing with the size of the cache (4 KiB lines, sparse data file, null device)'
	echo
	jq -sr "$jq_lib"'
		(["cache", "lines", "create s", "fill s", "load s", "load after kill s", "flush of 1000 dirty lines s", "stop s", "RSS MiB", "peak MiB",
			"RAM B/line", "journal B/line", "read hit ns"] | row),
		"|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
		(group_by(.size)[] | .[-1] | ["\(.size / 1073741824) GiB", "\(.lines)", "\(.create_s)", "\(.fill_s)", "\(.load_s)", "\(.load_killed_s)", "\(.scan_s)",
			"\(.stop_s)", "\(.rss / 1048576 | round)", "\(.peak / 1048576 | round)", "\(.metadata / .lines | round2)", "\(.journal / .lines | round2)", "\(.read_ns)"] | row)' scale.jsonl
}

# on PART: when and where it was measured
on() {
	echo
	[ ! -s "$1.machine" ] || { cat "$1.machine"; echo; }
}

{
	echo '# Results'
	echo
	[ ! -s engine.jsonl ] || { engine_part; on engine; }
	[ ! -s instructions.jsonl ] || { instructions_part; on instructions; }
	[ ! -s fuse.jsonl ] || { fuse_part; on fuse; }
	if [ -s delay.jsonl ]; then
		echo '## A slow backing device; in brackets the ratio to the device itself'
		echo
		matrix delay.jsonl slow
		on delay
	fi
	[ ! -s misses.jsonl ] || { misses_part; on misses; }
	if [ -s db.jsonl ]; then
		echo '## Databases on ext4 on a loop device, a second; in brackets the ratio to the slow device itself'
		echo
		matrix db.jsonl slow
		on db
	fi
	[ ! -s scale.jsonl ] || { scale_part; on scale; }
} >results.md
cat results.md

# ---- plots ----

command -v gnuplot >/dev/null || { echo "report.sh: no gnuplot, no plots; run 'make bench-deps'" >&2; exit 0; }
kind=${BENCH_PLOT:-svg}
case $kind in
svg) terminal='set terminal svg size 900,420 font "sans,12" background "white"' ;;
png) terminal='set terminal pngcairo size 900,420 font "sans,10"' ;;
*) echo "report.sh: BENCH_PLOT is svg or png" >&2; exit 64 ;;
esac
style="$terminal;"' set style fill solid 0.8 border -1; set grid ytics; set key outside right; set title noenhanced;'

# bars FILE YARDSTICK TITLE OUTPUT TARGET...: ratios to the yardstick, a group of bars a job
bars() {
	local file=$1 base=$2 title=$3 output=$4 plot='' i=2 n
	shift 4
	jq -sr --arg base "$base" --arg targets "$*" "$jq_lib"'
		. as $all | ($targets | split(" ")) as $t | map(.job) | uniq_in_order | .[] as $job
		| [$t[] as $x | $all | ratios($job; $x; $job; $base) | median] as $r
		| if ($r | map(select(. != null)) | length) == 0 then empty else [$job] + ($r | map(if . == null then "NaN" else "\(.)" end)) | join(" ") end' "$file" >"$output.dat"
	for n in "$@"; do
		plot="$plot${plot:+, }\"$output.dat\" using $i:xtic(1) title \"$n\""
		i=$((i + 1))
	done
	gnuplot -e "$style set output \"$output.$kind\"; set title \"$title\"; set style data histograms; set style histogram clustered gap 1;
		set logscale y; set ylabel \"ratio\"; plot $plot, 1 with lines lc rgb \"black\" notitle"
}

targets_in() { jq -sr --arg base "$2" 'reduce .[].target as $x ([]; if index($x) then . else . + [$x] end) | map(select(. != $base)) | join(" ")' "$1"; }

# shellcheck disable=SC2046
{
	[ ! -s fuse.jsonl ] || bars fuse.jsonl raw 'Operations a second, relative to O_DIRECT on the raw file' fuse $(targets_in fuse.jsonl raw | tr ' ' '\n' | grep -v ^loop)
	[ ! -s delay.jsonl ] || bars delay.jsonl slow 'Slow backing device: operations a second, relative to the device' delay $(targets_in delay.jsonl slow)
	[ ! -s db.jsonl ] || bars db.jsonl slow 'Databases on ext4 on a slow backing device, relative to the device' db $(targets_in db.jsonl slow)
}
if [ -s engine.jsonl ]; then
	jq -sr 'group_by(.threads)[] | "\(.[0].threads)"' engine.jsonl | sort -n >threads.list
	plot=
	for name in $(jq -r .case engine.jsonl | awk '!seen[$0]++'); do
		jq -sr --arg n "$name" '[.[] | select(.case == $n)] | group_by(.threads)[] | "\(.[0].threads) \(map(.ops_per_s) | add / length)"' engine.jsonl >"engine-$name.dat"
		plot="$plot${plot:+, }\"engine-$name.dat\" using 1:(\$2/1000) with linespoints lw 2 title \"$name\""
	done
	rm threads.list
	gnuplot -e "$style set output \"engine.$kind\"; set title \"Engine alone: operations a second by threads ($(nproc) processors)\"; set logscale x 2;
		set xlabel \"threads\"; set ylabel \"thousands\"; set yrange [0:*]; plot $plot"
fi
if [ -s scale.jsonl ]; then
	jq -sr 'group_by(.size)[] | .[-1] | "\(.size / 1073741824) \(.load_s) \(.load_killed_s) \(.scan_s) \(.stop_s) \(.create_s) \(.rss / 1048576)"' scale.jsonl >scale.dat
	gnuplot -e "$style set output \"scale.$kind\"; set title \"Growing with the size of the cache\"; set logscale xy; set xlabel \"GiB\"; set ylabel \"seconds\";
		set y2label \"MiB\"; set logscale y2; set ytics nomirror; set y2tics;
		plot \"scale.dat\" using 1:2 with linespoints lw 2 title \"load\", \"\" using 1:3 with linespoints lw 2 title \"load after a kill\",
		\"\" using 1:4 with linespoints lw 2 title \"flush of 1000 dirty lines\", \"\" using 1:5 with linespoints lw 2 title \"stop\",
		\"\" using 1:6 with linespoints lw 2 title \"create\", \"\" using 1:7 axes x1y2 with linespoints lw 2 dt 2 title \"RSS (right)\""
fi
rm -f ./*.dat
