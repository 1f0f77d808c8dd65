#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck disable=SC2016
#
# More requests at once than there are descriptors, address space or threads for workers: they wait for the workers there are. None
# fails, commands are answered during the burst and after it.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires fio

volumes=()
for i in $(seq 12); do
	truncate -s 8M "$T/v$i.img"
	volumes+=(--volume "v$i=delay:read=20ms,write=20ms:$T/v$i.img")
done
must bc create "$T/c" --size 16M --mode wb --ram 4M "${volumes[@]}"
mkdir "$T/c.mnt"

# burst NAME: 144 readers and writers, and commands meanwhile
burst() {
	local name=$1 i jobs=() answered=0
	for i in $(seq 12); do jobs+=(--name="v$i" --filename="$T/c.mnt/v$i" --numjobs=12); done
	timeout 120 fio --thread --ioengine=psync --rw=randrw --bs=16k --size=8M --time_based --runtime=$((3 * SOAK)) --group_reporting \
		--allow_file_create=0 --minimal "${jobs[@]}" >"$T/fio.out" 2>"$T/fio.err" </dev/null &
	local fio=$!
	for i in 1 2 3; do
		sleep 0.7
		timeout 20 "$BLKCACHE" status "$T/c" >/dev/null 2>&1 && answered=$((answered + 1))
	done
	wait $fio
	is $? 0 "$name: no I/O fails"
	[ -s "$T/fio.err" ] && diag "$(cat "$T/fio.err")"
	is $answered 3 "$name: commands are answered meanwhile"
	is "$(status_of c .cache.state)" running "$name: the cache is in order"
	pid=$(status_of c .cache.pid)
	diag "$name: $(awk '/^Threads/ { print $2 }' "/proc/$pid/status") threads, $(ls "/proc/$pid/fd" | wc -l) descriptors"
	ok "$name: and works" eval '"$TOOLS/ioflags" write "$T/c.mnt/v1" 4096 65536 5 dsync && "$TOOLS/ioflags" expect "$T/c.mnt/v1" 4096 65536 5'
	exits 0 "$name: a volume can be added" bc add "$T/c" extra="$T/extra.img"
	exits 0 "$name: and removed" bc remove "$T/c" extra
}
truncate -s 1M "$T/extra.img"

load c
idle=$(ls "/proc/$(status_of c .cache.pid)/fd" | wc -l)
limit=$(awk '/open files/ { print $4 }' "/proc/$(status_of c .cache.pid)/limits")
run bc stop "$T/c" --no-flush

# Without the privilege to raise limits.
without() {
	if [ "$(id -u)" = 0 ]; then setpriv --bounding-set=-sys_resource "$@"; else "$@"; fi
}
low() { # LIMIT VALUE: loads under it
	without bash -c 'ulimit "$0" "$1" && exec timeout 60 "$2" load "$3" "$4"' "$1" "$2" "$BLKCACHE" "$T/c" "$T/c.mnt"
}

if without true 2>/dev/null && [ "$limit" -gt $((idle + 100)) ]; then
	run low -n $((idle + 12))
	is "$status" 0 "loads with few descriptors to spare"
	burst "descriptors"
	run bc stop "$T/c" --no-flush
	run low -n 24
	is "$status" 1 "refuses where there are too few"
	like "$err" 'ulimit -n' "says what to raise"
	unlike "$err" 'given up|discard' "and does not advise to give a volume up"
	run low -n $((idle - 1))
	is "$status" 1 "refuses where none is left for commands"
	like "$err" 'ulimit -n' "and says so"
	nok "nothing is left mounted" mountpoint -q "$T/c.mnt"
else
	skip "few descriptors" "needs setpriv"
fi

run low -Sv 400000
is "$status" 0 "loads with little address space"
burst "address space"
run bc stop "$T/c" --no-flush

# A limit of threads does not hold for root.
if [ "$(id -u)" != 0 ]; then
	run low -Su $(($(ps -L -u "$(id -u)" --no-headers | wc -l) + 24))
	is "$status" 0 "loads with few threads"
	burst "threads"
	run bc stop "$T/c" --no-flush
fi
done_testing
