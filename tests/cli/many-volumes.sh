#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Several volumes share one cache; all run at once.
. "$(dirname "$0")/lib.sh"
requires_fuse

n=12
volumes=()
for i in $(seq $n); do
	random_file "$T/$i.img" 2M
	cp "$T/$i.img" "$T/$i.want"
	volumes+=(--volume "v$i=$T/$i.img")
done
new_cache c 8M --mode wb --ram 2M "${volumes[@]}"
load c
is "$(ls "$T/c.mnt" | wc -l)" $n "all volumes are there"
change() { # the same writes to the volume and to the file that says what it should hold
	local i=$1 k
	for k in $(seq 40); do
		dd if=/dev/urandom of="$T/$i.piece" bs=$((k * 700)) count=1 status=none
		dd if="$T/$i.piece" of="$T/c.mnt/v$i" bs=1M seek=$((k * 51001)) oflag=seek_bytes conv=notrunc status=none || return 1
		dd if="$T/$i.piece" of="$T/$i.want" bs=1M seek=$((k * 51001)) oflag=seek_bytes conv=notrunc status=none
	done
}
pids=()
for i in $(seq $n); do
	change "$i" &
	pids+=($!)
done
bad=0
for p in "${pids[@]}"; do wait "$p" || bad=$((bad + 1)); done
is $bad 0 "all writers succeed"
bad=0
for i in $(seq $n); do same "$T/c.mnt/v$i" "$T/$i.want" || bad=$((bad + 1)); done
is $bad 0 "every volume reads what was written to it, and only that"
stop c
bad=0
for i in $(seq $n); do same "$T/$i.img" "$T/$i.want" || bad=$((bad + 1)); done
is $bad 0 "so do the backing files after stop"
load c
bad=0
for i in $(seq $n); do same "$T/c.mnt/v$i" "$T/$i.want" || bad=$((bad + 1)); done
is $bad 0 "and the volumes after load"
stop c
done_testing
