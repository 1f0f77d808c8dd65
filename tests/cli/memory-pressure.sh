#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck disable=SC2317
#
# The daemon serves a loop device whose dirty pages the machine must write back to gain memory: ext4 on a loop device on a volume,
# writers that dirty many times the memory their group may have, and a memory hog beside them.
#
# DAEMON_TOO=1: then the daemon as well, being in the same group. A daemon that waits there for write-back that only it can do hangs for
# good, with everybody else; PR_SET_IO_FLUSHER keeps it from that, so this part needs CAP_SYS_RESOURCE.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop
requires mkfs.ext4 fsck.ext4

files=6 file_mb=$((24 * SOAK)) group_mb=40 hog_mb=12
size=$((files * file_mb + 64))M
time_limit=$((240 * SOAK))

# ---- a group with little memory ----

group=
leave_group() {
	local p
	[ -n "$group" ] || return 0
	for _ in $(seq 50); do
		for p in $(cat "$group/cgroup.procs" 2>/dev/null); do kill -9 "$p" 2>/dev/null; done
		rmdir "$group" 2>/dev/null && return
		# nobody ends who waits for a daemon that hangs, nor does that
		[ -z "${hung:-}" ] || echo 1 >"/sys/fs/fuse/connections/$connection/abort"
		sleep 0.1
	done
}
trap 'code=$?; leave_group; (exit $code); clean_up' EXIT

make_group() {
	local base
	base=$(awk '$9 == "cgroup" && /[, ]memory/ || / - cgroup .*[ ,]memory/ { print $5; exit }' /proc/self/mountinfo)
	if [ -n "$base" ]; then
		mkdir "$base/${T##*/}" 2>/dev/null || return 1
		group=$base/${T##*/}
		echo ${group_mb}M >"$group/memory.limit_in_bytes" 2>/dev/null
		return
	fi
	base=$(awk '/ - cgroup2 / { print $5; exit }' /proc/self/mountinfo)
	[ -n "$base" ] && grep -qw memory "$base/cgroup.controllers" || return 1
	grep -qw memory "$base/cgroup.subtree_control" || echo +memory >"$base/cgroup.subtree_control" || return 1
	mkdir "$base/${T##*/}" || return 1
	group=$base/${T##*/}
	echo ${group_mb}M >"$group/memory.max" 2>/dev/null
}
make_group 2>/dev/null || skip_all "no memory cgroup can be made here"

# in_group COMMAND...: in the background
in_group() {
	bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$group" "$@" &
}

# ---- how the daemon protects itself ----

truncate -s "$size" "$T/a.img"
new_cache c 64M --mode wb --ram 8M --volume a="$T/a.img"
must bc set "$T/c" dirty-high=50
load_fg c
case ${BUILD:-} in
*san*) skip "the daemon's memory is locked" "mlockall does nothing under a sanitizer" ;;
*) like "$(awk '/^VmLck/ { print $2 }' "/proc/$daemon/status")" '^[1-9]' "the daemon's memory is locked" ;;
esac
# The other two need CAP_SYS_RESOURCE (bit 24), which containers often lack.
resource=$((0x$(awk '/^CapEff/ { print $2 }' /proc/self/status) >> 24 & 1))
connection=$(awk -v m="$T/c.mnt" '$5 == m { split($3, d, ":"); print d[2] }' /proc/self/mountinfo)
# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE are what PR_SET_IO_FLUSHER sets; the flags are the 7th field after the name.
unprotected=0 threads=0
for stat in "/proc/$daemon"/task/*/stat; do
	flags=$(sed 's/.*) //' "$stat" 2>/dev/null | cut -d' ' -f7)
	[ -n "$flags" ] || continue
	threads=$((threads + 1))
	(((flags & 0x180000) == 0x180000)) || unprotected=$((unprotected + 1))
done
if [ $resource = 1 ]; then
	is "$(cat "/proc/$daemon/oom_score_adj")" -1000 "the OOM killer takes others"
	is "$unprotected" 0 "each of its $threads threads is an I/O flusher"
else
	skip "the OOM killer takes others" "CAP_SYS_RESOURCE is missing"
	skip "its threads are I/O flushers" "CAP_SYS_RESOURCE is missing"
fi

# ---- the load ----

dev=$(losetup --show -f --direct-io=on --sector-size 4096 "$T/c.mnt/a") || bail "losetup"
must mkfs.ext4 -q -F -E lazy_itable_init=0 "$dev"
mkdir "$T/fs"
random_file "$T/seed" $((file_mb << 20))

round() { # NAME
	local i pids=() hog failed=0 end=$((SECONDS + time_limit * SLOW))
	must mount "$dev" "$T/fs"
	in_group bash -c "exec 2>/dev/null; (head -c ${hog_mb}M /dev/zero; sleep 3600) | tail -n 1 >/dev/null"
	hog=$!
	for i in $(seq $files); do
		# each file differs: it begins with its number
		in_group bash -c "(echo $1 $i; cat '$T/seed') >'$T/fs/f$i'"
		pids+=($!)
	done
	for i in "${pids[@]}"; do
		while kill -0 "$i" 2>/dev/null && [ $SECONDS -lt $end ]; do sleep 0.1; done
		if kill -0 "$i" 2>/dev/null; then
			failed=hang hung=1
			break
		fi
		wait "$i" || failed=$((failed + 1))
	done
	is "$failed" 0 "$1: all writers get through in time"
	[ "$failed" != hang ] || bail "$1: hang" "$(cat "/proc/${pids[0]}/stack" "/proc/$daemon/task"/*/wchan 2>&1 | head -n 40)"
	ok "$1: sync" timeout $time_limit sync -f "$T/fs"
	kill -0 "$daemon" 2>/dev/null
	is $? 0 "$1: the daemon lives"
	kill_tree "$hog"
	must timeout $time_limit umount "$T/fs"
	ok "$1: the file system is in order" fsck.ext4 -f -n "$dev"
	must mount "$dev" "$T/fs"
	failed=0
	for i in $(seq $files); do
		(echo "$1 $i"; cat "$T/seed") | cmp -s - "$T/fs/f$i" || failed=$((failed + 1))
	done
	is $failed 0 "$1: what was written reads back"
	must umount "$T/fs"
}

kill_tree() { # PID
	pkill -9 -P "$1" 2>/dev/null
	kill -9 "$1" 2>/dev/null
	wait "$1" 2>/dev/null
}

round "writers short of memory"
peak=$(cat "$group/memory.max_usage_in_bytes" "$group/memory.peak" 2>/dev/null | head -n 1)
diag "most memory the group had: ${peak:-unknown} of $((group_mb << 20)) bytes; limit met $(cat "$group/memory.failcnt" 2>/dev/null) times"
[ -z "$peak" ] || ok "the group was short of memory" test "$peak" -ge $(((group_mb << 20) * 9 / 10))

daemon_too() {
	local limit rss_mb
	# its locked memory counts as well now
	rss_mb=$(($(awk '/^VmRSS/ { print $2 }' "/proc/$daemon/status") / 1024))
	for limit in memory.limit_in_bytes memory.max; do
		[ -e "$group/$limit" ] && echo $((group_mb + rss_mb))M >"$group/$limit"
	done
	echo "$daemon" >"$group/cgroup.procs" || bail "moving the daemon into the group"
	round "the daemon short of memory too"
	echo "$daemon" >"${group%/*}/cgroup.procs"
}
if [ -z "${DAEMON_TOO:-}" ]; then
	skip "the daemon short of memory too" "DAEMON_TOO is not set"
elif [ $resource = 0 ]; then
	skip "the daemon short of memory too" "CAP_SYS_RESOURCE is missing"
else
	daemon_too
fi
must losetup -d "$dev"
exits 0 "stop" bc stop "$T/c"
exits 0 "check" bc check "$T/c"
done_testing
