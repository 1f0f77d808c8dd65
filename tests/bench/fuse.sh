#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# fuse.sh - the volume beside what it is made of and what else there is: the raw file, a FUSE daemon without a cache (floor.c) on memory and on
# a file, blkcache warm in RAM and warm on SSD, loop devices on the memory floor and on blkcache, ext4 on these, and the peers that are
# installed. All run at once and take turns job by job, round by round. Results: $OUT/fuse.jsonl, $OUT/ext4.jsonl.
#
# Knobs: those of common.sh; BENCH_JOBS (default all), BENCH_PEERS=0 leaves the peers out.
need_factor=12
. "$(dirname "$0")/common.sh"

start fio losetup mkfs.ext4
jobs=${BENCH_JOBS:-rr1 rr32 mix32 rw1 rw32 fs1 sr sw}
names=()
declare -A path
add() { # NAME: the target that was just started
	names+=("$1")
	path[$1]=$vol
}

say "making files of $SIZE MiB"
for f in raw floor ram ssd; do
	image "$T/$f.img"
done
vol=$T/raw.img && add raw
floor floor-file -f "$T/floor.img" && add floor-file
floor floor-mem -m "$SIZE" && add floor-mem
blkcache ram "$T/ram.img" $((SIZE * 3 / 2)) $((SIZE * 5 / 4)) wb && add blkcache-ram
blkcache ssd "$T/ssd.img" $((SIZE * 3 / 2)) 16 wb && add blkcache-ssd
if [ "${BENCH_PEERS:-1}" != 0 ]; then
	if command -v nbdkit nbdfuse >/dev/null; then
		image "$T/nbdkit.img"
		# shellcheck disable=SC2015
		peer_nbdkit nbdkit "$T/nbdkit.img" && add nbdkit || say "nbdfuse does not start: $(tail -n 2 "$T/nbdkit.log")"
	fi
	if command -v qemu-storage-daemon >/dev/null; then
		image "$T/qsd.img"
		# shellcheck disable=SC2015
		peer_qsd qsd "$T/qsd.img" && add qsd || say "qemu-storage-daemon does not start: $(tail -n 2 "$T/qsd.log")"
	fi
fi

say "warming up"
for n in "${names[@]}"; do
	case $n in
	blkcache-*) warm_up "${n#blkcache-}" "${path[$n]}" ;;
	nbdkit | qsd) read_all "${path[$n]}" ;;
	esac
done

rm -f "$OUT/fuse.jsonl" "$OUT/ext4.jsonl"
for job in $jobs; do
	for round in $(seq "$ROUNDS"); do
		for n in "${names[@]}"; do
			measure fuse "$job" "$n" "$round" "${path[$n]}"
		done
	done
done

# ---- loop devices on the same files, and a file system on them ----
if loop "$T/raw.img"; then
	names=()
	add loop-raw
	loop "${path[floor-mem]}" && add loop-floor-mem
	loop "${path[blkcache-ram]}" && add loop-ram
	loop "${path[blkcache-ssd]}" && add loop-ssd
	for job in rr1 rr32 rw32; do
		for round in $(seq "$ROUNDS"); do
			for n in "${names[@]}"; do
				measure fuse "$job" "$n" "$round" "${path[$n]}"
			done
		done
	done
	SIZE=$((SIZE / 2)) # of the file on the file system
	for n in "${names[@]}"; do
		mkdir "$T/$n.fs"
		# shellcheck disable=SC2015
		mkfs.ext4 -q "${path[$n]}" && mount "${path[$n]}" "$T/$n.fs" || die "no file system on ${path[$n]}"
		undo unmount "$T/$n.fs"
		image "$T/$n.fs/file"
	done
	for job in rr32 rw32 fs1 sr; do
		for round in $(seq "$ROUNDS"); do
			for n in "${names[@]}"; do
				measure ext4 "$job" "$n" "$round" "$T/$n.fs/file"
			done
		done
	done
else
	say "no loop devices here: these parts are left out"
fi
