#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck disable=SC2016
#
# Limits of memory: a setting `ram` that no machine can give, and a limit of locked memory that an ordinary user has.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires fio

# ---- ram ----

random_file "$T/a.img" 4M
refuses 1 'ram.*give less' "create refuses buffers that this machine cannot give" bc create "$T/none" --size 8M --ram 2T
nok "and makes nothing" test -e "$T/none"
new_cache c 8M --mode wb --ram 2M --volume a="$T/a.img"
refuses 64 'ram.*give less' "set refuses them on a stopped cache" bc set "$T/c" ram=2T
load c
refuses 64 'ram.*give less' "and on a loaded one" bc set "$T/c" ram=2T
stop c
exits 0 "what can be had is accepted" bc set "$T/c" ram=3M
load c
is "$(status_of c .cache.ram_bytes)" $((3 << 20)) "and taken"
must bc set "$T/c" ram=512M
stop c
(ulimit -S -v 600000 && exec "$BLKCACHE" load "$T/c" "$T/c.mnt" >"$T/.out" 2>"$T/.err" </dev/null) || bail "load with little memory" "$(<"$T/.err")"
like "$(cat "$T/.out" "$T/.err")" 'ram is set to 512.0 MiB, and' "a load that can have less says so"
like "$(bc status "$T/c")" 'of buffers \(ram is set to 512.0 MiB\)' "status too"
ok "it has less" test "$(status_of c .cache.ram_bytes)" -lt $((500 << 20))
stop c

# ---- locked memory ----

# Without the privileges that make the limit void.
limited() { # KIB COMMAND...
	setpriv --bounding-set=-ipc_lock,-sys_resource bash -c 'ulimit -l "$0" && exec "$@"' "$@"
}
if [ "$(id -u)" != 0 ] || ! limited 64 true 2>/dev/null; then
	skip "loads under a limit of locked memory" "needs setpriv and root"
	done_testing
fi
must bc set "$T/c" ram=64M
for kib in 64 4096 65536 262144; do
	limited $kib true 2>/dev/null || continue # more than our own limit
	run limited $kib timeout 60 "$BLKCACHE" load "$T/c" "$T/c.mnt"
	is "$status" 0 "ulimit -l $kib: loads"
	[ "$status" = 0 ] || { diag "$err"; continue; }
	like "$err" "locked in memory.*ulimit -l" "it says that not all is locked"
	like "$(status_of c .cache.locked_memory)" '^(part|none|cache)$' "status too"
	run timeout 60 fio --name=burst --thread --numjobs=96 --group_reporting --filename="$T/c.mnt/a" --ioengine=psync --rw=randrw \
		--bs=64k --size=4M --time_based --runtime=$((2 * SOAK)) --allow_file_create=0 --minimal
	is "$status" 0 "no I/O fails under load"
	[ "$status" = 0 ] || diag "$err"
	is "$(status_of c .cache.state)" running "the cache is in order"
	stop c
done
done_testing
