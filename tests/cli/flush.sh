#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# flush: all of it, one volume, progress, interruption (P5, P8).
. "$(dirname "$0")/lib.sh"
requires_fuse

truncate -s 8M "$T/a.img" "$T/b.img"
new_cache c 32M --mode wb --volume a="$T/a.img" --volume b="$T/b.img"
must bc set "$T/c" clean-after=1000s
load c
"$TOOLS/ioflags" write "$T/c.mnt/a" 0 1000000 1 >/dev/null && "$TOOLS/ioflags" write "$T/c.mnt/b" 4096 1000000 2 >/dev/null || bail "write"
ok "status counts the dirty data" test "$(status_of c .cache.dirty_bytes)" -ge 2000000
exits 0 "flush of one volume" bc flush "$T/c" a
ok "is in its backing file" "$TOOLS/ioflags" expect "$T/a.img" 0 1000000 1
ok "the other one is still dirty" test "$(stat_of c '.volumes[] | select(.name=="b") | .usage.dirty_lines')" -gt 0
exits 0 "flush of all" bc flush "$T/c"
ok "is in the backing file" "$TOOLS/ioflags" expect "$T/b.img" 4096 1000000 2
is "$(status_of c .cache.dirty_bytes)" 0 "nothing is dirty"
exits 0 "flush with nothing to do" bc flush "$T/c"
is "$(status_of c '[.volumes[].mode] | unique | join(",")')" wb "the mode has not changed"
ok "the volumes work on" "$TOOLS/ioflags" write "$T/c.mnt/a" 0 4096 3
refuses 1 "nosuch" "an unknown volume is refused" bc flush "$T/c" nosuch
stop c
load c
"$TOOLS/ioflags" write "$T/c.mnt/a" 0 65536 6 >/dev/null || bail "write"
exits 3 "stop with dirty data" bc stop "$T/c" --no-flush
exits 0 "flush of a stopped cache" bc flush "$T/c"
ok "is in the backing file" "$TOOLS/ioflags" expect "$T/a.img" 0 65536 6
is "$(status_of c .cache.dirty_bytes)" 0 "and nothing is dirty"
refuses 1 "$T/none" "flush of no cache" bc flush "$T/none"

# A slow backing: interrupt and resume.
truncate -s 16M "$T/slow.img"
new_cache s 32M --mode wb --volume s="delay:write=2s:$T/slow.img"
must bc set "$T/s" clean-after=1000s
load s
for i in $(seq 0 2 62); do
	"$TOOLS/ioflags" write "$T/s.mnt/s" $((i * 262144)) 4096 4 >/dev/null || bail "write"
done
before=$(status_of s .cache.dirty_bytes)
# Background jobs of a script start with SIGINT ignored; env(1) gives it back.
env --default-signal=INT "$BLKCACHE" flush "$T/s" >"$T/.out" 2>"$T/.err" &
pid=$!
sleep 1
kill -INT $pid
wait $pid
is $? 130 "an interrupted flush exits with 130"
is_running() { [ "$(status_of s .cache.state)" = running ]; }
ok "the cache runs on" wait_for 30 is_running
ok "nothing is lost" "$TOOLS/ioflags" expect "$T/s.mnt/s" $((62 * 262144)) 4096 4
diag "dirty before $before, after the interruption $(status_of s .cache.dirty_bytes)"
exits 0 "and resumed" bc flush "$T/s"
is "$(status_of s .cache.dirty_bytes)" 0 "all clean"
ok "the last block arrived" "$TOOLS/ioflags" expect "$T/slow.img" $((62 * 262144)) 4096 4

stop s
done_testing
