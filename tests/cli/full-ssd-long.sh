#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Somebody fills the cache's disk while the cache is loaded: flushes go on, however long it stays full.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_loop
requires fio

seconds=$((6 * SOAK))

fill() { # FOLDER
	dd if=/dev/zero of="$1/filler" bs=1M status=none 2>/dev/null
	dd if=/dev/zero of="$1/filler2" bs=1k status=none 2>/dev/null
}

# Flushes of 1, of a few and of many blocks: rows of the ring, epochs with in-line data, full ones.
work() { # CACHE
	timeout $((60 * SOAK)) fio --filename="$T/$1.mnt/v" --ioengine=psync --rw=randwrite --bs=4k --size=128M --time_based \
		--runtime=$seconds --allow_file_create=0 --minimal --name=one --fsync=1 --name=some --fsync=14 --name=many --fsync=200
}

for line in 4K 64K; do
	c=c$line
	truncate -s 192M "$T/$c.ssd"
	truncate -s 128M "$T/$c.img"
	mkfs.ext4 -q -F -m 0 "$T/$c.ssd"
	mkdir "$T/$c.fs" "$T/$c.mnt"
	must mount -o loop "$T/$c.ssd" "$T/$c.fs"
	must bc create "$T/$c.fs/c" --size 64M --line-size $line --mode wb --ram 8M --volume v="$T/$c.img"
	ln -s "$T/$c.fs/c" "$T/$c"
	"$BLKCACHE" load "$T/$c" "$T/$c.mnt" -f >"$T/$c.log" 2>&1 </dev/null &
	daemon=$!
	wait_for 60 is_up "$c" || bail "lines of $line: load" "$(cat "$T/$c.log")"
	fill "$T/$c.fs"
	diag "$(df --output=avail "$T/$c.fs" | tail -1) KiB are free"
	run work $c
	is "$status" 0 "lines of $line: flushes go on with a full disk"
	[ "$status" = 0 ] || diag "$err"
	is "$(status_of $c .cache.state)" running "the cache is in order"
	diag "$(stat_of $c '.totals.requests.flushes') flushes"
	ok "a last write is answered" "$TOOLS/ioflags" write "$T/$c.mnt/v" 8192 65536 77 dsync
	kill_hard $c
	run bc load "$T/$c" "$T/$c.mnt"
	is "$status" 0 "after a crash it loads with the disk still full"
	[ "$status" = 0 ] || diag "$err"
	ok "and has the last write" "$TOOLS/ioflags" expect "$T/$c.mnt/v" 8192 65536 77
	rm -f "$T/$c.fs"/filler*
	run work $c
	is "$status" 0 "with room again it goes on"
	run bc stop "$T/$c"
	is "$status" 0 "and stops in order"
	ok "the journal is whole" bc check "$T/$c"
done
done_testing
