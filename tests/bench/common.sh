# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
#
# common.sh - what the benches share: a scratch folder, taking everything back, starting targets, running fio. Source it first.
#
# Whatever is made is entered with `undo COMMAND...` right away; at the end, also after an interruption, the entries run in reverse.
# Everything lies below $T. Daemons run in the foreground as our children, so that ending them is certain.
#
# Knobs: BUILD, BENCH_OUT (results, default $BUILD/bench/results), BENCH_DIR (where the scratch folder goes: a disk, not tmpfs; default
# TMPDIR or /var/tmp), BENCH_SECONDS (per measurement, 3), BENCH_ROUNDS (3), BENCH_SIZE (working set in MiB, 1024).

set -u
export LC_ALL=C
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${BUILD:-build/release}
[[ $BUILD = /* ]] || BUILD=$top/$BUILD
BLKCACHE=${BLKCACHE:-$BUILD/blkcache}
OUT=${BENCH_OUT:-$BUILD/bench/results}
SECONDS_EACH=${BENCH_SECONDS:-3}
# shellcheck disable=SC2034 # for those that source this
ROUNDS=${BENCH_ROUNDS:-3}
SIZE=${BENCH_SIZE:-1024}
PATH=$PATH:/usr/sbin:/sbin
ME=$(basename "$0")
T=

say() { echo "$ME: $*" >&2; }
die() { say "$@"; exit 1; }

# ---- taking back ----

undo_list=()
undo() { undo_list+=("$(printf '%q ' "$@")"); }

# Runs what was entered since the mark (the list's length then), the newest first.
undo_to() {
	local i=${#undo_list[@]}
	while [ "$i" -gt "$1" ]; do
		i=$((i - 1))
		eval "${undo_list[$i]}" >/dev/null 2>&1
		unset "undo_list[$i]"
	done
}

clean_up() {
	local code=$?
	trap - EXIT
	trap '' INT TERM HUP
	undo_to 0
	[ -z "$T" ] || rm -rf --one-file-system "$T"
	exit "$code"
}

start() { # makes $T
	local p
	for p in "$@" jq; do
		command -v "$p" >/dev/null || die "$p is not installed; run 'make bench-deps'"
	done
	[ -x "$BLKCACHE" ] || die "$BLKCACHE has not been built; run 'make'"
	mkdir -p "$OUT"
	T=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/var/tmp}}/blkcache-bench.XXXXXX") || exit 1
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	# fewer MiB than this and the scratch folder does not hold a bench
	local need=$((SIZE * ${need_factor:-4})) have
	have=$(df --output=avail -m "$T" | tail -1)
	[ "$have" -gt "$need" ] || die "$T: $need MiB are needed, $have are free; set BENCH_DIR or a smaller BENCH_SIZE"
}

end_child() { # PID: politely, then not
	local i
	kill -TERM "$1" 2>/dev/null || return 0
	for i in $(seq 300); do
		kill -0 "$1" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL "$1" 2>/dev/null
	wait "$1" 2>/dev/null
}

unmount() {
	local i
	for i in 1 2 3 4 5 6; do
		mountpoint -q "$1" || return 0
		umount "$1" 2>/dev/null && return 0
		sleep 0.5
	done
	umount -l "$1"
}

wait_until() { # COMMAND...: up to 60 seconds, while the child runs
	local i
	for i in $(seq 600); do
		"$@" >/dev/null 2>&1 && return 0
		kill -0 "$child" 2>/dev/null || return 1
		sleep 0.1
	done
	return 1
}

# ---- files ----

# image FILE [MIB]: incompressible contents, on disk
image() {
	local mib=${2:-$SIZE}
	fallocate -l "${mib}M" "$1" || die "$1: no space"
	head -c "${mib}M" /dev/urandom | dd of="$1" bs=1M conv=notrunc,fsync oflag=direct iflag=fullblock status=none || die "$1: cannot be written"
}

# ---- targets; each sets `vol` to the file or device to measure ----

run_child() { # LOG COMMAND...
	local log=$1
	shift
	"$@" >"$log" 2>&1 </dev/null &
	child=$!
	undo end_child "$child"
}

floor() { # NAME -m MIB | -f FILE
	local m=$T/$1.mnt
	mkdir "$m"
	undo unmount "$m"
	run_child "$T/$1.log" "$BUILD/bench/floor" "$2" "$3" "$m"
	wait_until mountpoint -q "$m" || die "the floor does not start: $(tail -n 3 "$T/$1.log")"
	vol=$m/vol
}

# blkcache NAME BACKING CACHE_MIB RAM_MIB MODE. Cleaning is put off: it would go on while the next target is measured.
blkcache() {
	local d=$T/$1.cache m=$T/$1.mnt
	mkdir "$m"
	"$BLKCACHE" create "$d" --size "$3M" --ram "$4M" --mode "$5" --volume "vol=$2" >&2 || die "create $1 failed"
	"$BLKCACHE" set "$d" clean-after=3600s dirty-high=95 >&2 || die "set $1 failed"
	undo rm -rf "$d"
	undo unmount "$m"
	run_child "$T/$1.log" "$BLKCACHE" load "$d" "$m" -f
	# not by `status`: before the daemon is there, it would open the cache itself, and be in the daemon's way
	wait_until mountpoint -q "$m" || die "load $1 failed: $(tail -n 3 "$T/$1.log")"
	wait_until "$BLKCACHE" status "$d" || die "load $1 failed: $(tail -n 3 "$T/$1.log")"
	vol=$m/vol
}

loop() { # FILE: a loop device on it
	vol=$(losetup --direct-io=on --sector-size 4096 --show -f "$1") || return 1
	undo losetup -d "$vol"
}

peer_nbdkit() { # NAME FILE. Its cache lies in TMPDIR, unlinked.
	local f=$T/$1.vol
	touch "$f"
	undo unmount "$f"
	TMPDIR=$T run_child "$T/$1.log" nbdfuse "$f" [ nbdkit --filter=cache file "$2" cache=writeback cache-on-read=true ]
	wait_until mountpoint -q "$f" || return 1
	vol=$f
}

peer_qsd() { # NAME FILE
	local f=$T/$1.vol ov=$T/$1.qcow2
	touch "$f"
	qemu-img create -q -f qcow2 -F raw -b "$2" "$ov" || return 1
	undo unmount "$f"
	run_child "$T/$1.log" qemu-storage-daemon \
		--blockdev "driver=file,filename=$ov,cache.direct=on,aio=io_uring,node-name=f0" \
		--blockdev "driver=file,filename=$2,cache.direct=on,aio=io_uring,node-name=b0" \
		--blockdev driver=raw,file=b0,node-name=bb0 \
		--blockdev driver=qcow2,file=f0,backing=bb0,node-name=q0 \
		--blockdev driver=copy-on-read,file=q0,node-name=cor0 \
		--export "type=fuse,id=e0,node-name=cor0,mountpoint=$f,writable=on,growable=off"
	wait_until mountpoint -q "$f" || return 1
	vol=$f
}

# ---- load ----

declare -A fio_job=(
	[rr1]="--rw=randread --bs=4k --ioengine=psync --direct=1"
	[rr4]="--rw=randread --bs=4k --iodepth=4 --ioengine=io_uring --direct=1"
	[rr32]="--rw=randread --bs=4k --iodepth=32 --ioengine=io_uring --direct=1"
	[rw1]="--rw=randwrite --bs=4k --ioengine=psync --direct=1"
	[rw32]="--rw=randwrite --bs=4k --iodepth=32 --ioengine=io_uring --direct=1"
	[fs1]="--rw=randwrite --bs=4k --ioengine=psync --direct=1 --fdatasync=1"
	[mix32]="--rw=randrw --rwmixread=70 --bs=4k --iodepth=32 --ioengine=io_uring --direct=1"
	[sr]="--rw=read --bs=128k --iodepth=16 --ioengine=io_uring --direct=1"
	[sw]="--rw=write --bs=128k --iodepth=16 --ioengine=io_uring --direct=1"
)

# fio_json ARGUMENTS...: {"iops", "p50_us", "p99_us"} of one run
fio_json() {
	fio --name=x --output-format=json "$@" 2>"$T/fio.err" >"$T/fio.json" </dev/null || { tail -n 3 "$T/fio.err" >&2; return 1; }
	sed -n '/^{/,$p' "$T/fio.json" | jq -ce '.jobs[0] | select(.error == 0) |
		{iops: (.read.iops + .write.iops),
		 p50_us: ([.read, .write | .clat_ns.percentile["50.000000"] // 0] | max / 1000),
		 p99_us: ([.read, .write | .clat_ns.percentile["99.000000"] // 0] | max / 1000)}'
}

# measure TABLE JOB TARGET ROUND PATH: one line into $OUT/TABLE.jsonl. Then what was written is flushed, outside the time measured, so
# that the next target does not pay for it.
measure() {
	local r
	# shellcheck disable=SC2086
	r=$(fio_json ${fio_job[$2]} "--filename=$5" "--size=${SIZE}m" "--runtime=$SECONDS_EACH" --time_based --ramp_time=0.5 \
		--norandommap --randrepeat=0) || { say "$2 on $3 failed"; return 1; }
	jq -c --arg job "$2" --arg target "$3" --argjson round "$4" '{job: $job, target: $target, round: $round} + .' <<<"$r" >>"$OUT/$1.jsonl"
	printf '%-10s %-14s round %s  %9.0f IOPS  p99 %8.1f us\n' "$2" "$3" "$4" "$(jq .iops <<<"$r")" "$(jq .p99_us <<<"$r")" >&2
	sync "$5"
}

# read_all PATH: every block once, in scattered pieces (a sequential stream might go past a cache)
read_all() {
	fio_json --filename="$1" --size="${SIZE}m" --rw=randread --bs=128k --iodepth=8 --ioengine=io_uring --direct=1 >/dev/null || die "$1 cannot be read"
	sync "$1"
}

# warm_up NAME PATH: reads all until blkcache NAME has it all; it leaves a fill out rather than let a read wait for memory
warm_up() {
	local blocks
	for _ in 1 2 3 4 5; do
		read_all "$2"
		blocks=$("$BLKCACHE" stats "$T/$1.cache" --format json | jq .usage.occupied_lines)
		[ "$blocks" -lt $((SIZE * 255)) ] || return 0
	done
	die "only $blocks of $((SIZE * 256)) blocks of $1 were cached by reading them all five times"
}
