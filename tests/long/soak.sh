#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Nothing grows: memory, descriptors and threads of the daemon, journal, log, ring and data file stay bounded over very many of each
# operation. After two rounds that warm everything up come ROUNDS more; each prints its figures. SOAK=10: a million of each kind of I/O.
. "$(dirname "$0")/../cli/lib.sh"
requires_fuse
requires fallocate

rounds=${ROUNDS:-5}
many=$((20000 * SOAK)) # requests of each kind in a round
some=$((2000 * SOAK)) # of those that wait for a disk
few=$((20 * SOAK)) # commands
# What may be added in all rounds after the first two: what malloc, and memory that each worker takes at its first large request, make of
# a daemon that leaks nothing. It does not grow with SOAK: 12 MiB are 15 bytes a request by default, and 1.5 with SOAK=10. A worker
# thread is started when more requests wait than ever before, and stays; few are allowed, so that all are there early.
more_rss_kb=$((12 * 1024)) more_fds=4 more_db_kb=4096
printf '[daemon]\nthreads = 16\n' >"$T/conf"
export BLKCACHE_CONF=$T/conf

truncate -s 64M "$T/a.img"
new_cache c 32M --ram 16M --mode wb --volume a="$T/a.img"
truncate -s 16M "$T/b.img"
must bc add "$T/c" b="$T/b.img" --mode wt
must bc set "$T/c" clean-after=1s
load c
m=$T/c.mnt
soak() { # KIND FILE COUNT [THREADS]
	run timeout -k 20 $((3600 * SOAK)) "$TOOLS/soakio" "$@"
	[ "$status" = 0 ] || bail "$1 $2 $3" "$err"
}

kb() { # FILE: its size, 0 if there is none
	echo $(($(stat -c %s "$T/c/$1" 2>/dev/null || echo 0) / 1024))
}

# Sets the figures: of the daemon, then of its folder.
look() {
	local pid
	pid=$(status_of c .cache.pid)
	rss=$(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status")
	fds=$(find "/proc/$pid/fd" -mindepth 1 2>/dev/null | wc -l)
	threads=$(cat "/proc/$pid"/task/*/comm 2>/dev/null | grep -vc '^iou-') # those of io_uring are the kernel's
	db=$(kb journal.db) wal=$(kb journal.db-wal) ring=$(kb journal.db-ring) data=$(kb data)
	files=$(find "$T/c" | wc -l)
}

show() { # NAME
	diag "$(printf '%-10s rss %7d KiB  descriptors %3d  threads %3d  journal %5d  log %6d  ring %5d  data %6d KiB  files %d' \
		"$1" "$rss" "$fds" "$threads" "$db" "$wal" "$ring" "$data" "$files")"
}

requests() {
	local kind file
	for file in a b; do
		for kind in read write open stat; do
			soak $kind "$m/$file" "$many" 4
		done
		for kind in flush sync discard zero; do
			soak $kind "$m/$file" "$some" 4
		done
	done
}

commands() {
	local i
	for i in $(seq $few); do
		must bc set "$T/c" "dirty-high=$((50 + i % 40))"
		must bc set "$T/c" a "mode=$(sed -n $((1 + i % 3))p <<<$'wt\nwo\nwb')"
		must bc get "$T/c" a
		must bc add "$T/c" x="null:size=4M" --mode wb
		dd if=/dev/zero of="$m/x" bs=64k count=4 conv=notrunc status=none
		chmod $((600 + i % 8)) "$m/x"
		must bc remove "$T/c" x
		must bc stats "$T/c" --format json
		: >"$m/b"
	done
	must bc flush "$T/c"
}

for round in 1 2; do
	requests
	commands
	look
	show "warm-up $round"
done
rss0=$rss fds0=$fds threads0=$threads db0=$db wal0=$wal ring0=$ring data0=$data files0=$files
for round in $(seq "$rounds"); do
	requests
	commands
	look
	show "round $round"
done
ok "memory: $((rss - rss0)) KiB more" test $((rss - rss0)) -le $more_rss_kb
ok "descriptors: $((fds - fds0)) more" test $((fds - fds0)) -le $more_fds
ok "threads: $((threads - threads0)) more" test $((threads - threads0)) -le 4
ok "the journal: $((db - db0)) KiB more" test $((db - db0)) -le $more_db_kb
ok "its log: $wal KiB" test "$wal" -le $((2 * wal0 + 8192))
is "$ring" "$ring0" "the ring has its size"
is "$data" "$data0" "so has the data file"
is "$files" "$files0" "there are no more files in the folder"

stop c
look0=$(du -sk "$T/c" | cut -f1)
for i in $(seq $((10 * SOAK))); do
	load c
	soak write "$m/b" 100
	[ $((i % 3)) = 0 ] && chmod $((600 + i % 8)) "$m/b"
	stop c
done
now=$(du -sk "$T/c" | cut -f1)
ok "after $((10 * SOAK)) loads and stops the folder has $((now - look0)) KiB more" test $((now - look0)) -le $more_db_kb
for i in $(seq $((5 * SOAK))); do
	load_fg c
	soak write "$m/a" 2000
	soak flush "$m/b" 20
	kill_hard c
done
load c
stop c
now=$(du -sk "$T/c" | cut -f1)
ok "after $((5 * SOAK)) kills it has $((now - look0)) KiB more" test $((now - look0)) -le $more_db_kb
ok "check finds nothing" bc check "$T/c"
done_testing
