#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P11: hits do not wait for misses, management commands do not wait for I/O.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/slow.img" 64M
new_cache c 16M --mode wb --volume s="delay:read=$((4 * SLOW))s:$T/slow.img"
load c
vol=$T/c.mnt/s
"$TOOLS/ioflags" write "$vol" 0 65536 1 >/dev/null || bail "write"
# 100 misses, each of which takes seconds
start=$SECONDS
for i in $(seq 100); do
	dd if="$vol" bs=4k count=1 skip=$((1000 + i * 100)) of=/dev/null status=none &
done
sleep $((SLOW / 2)).5
t0=$(date +%s%N)
ok "a hit while 100 misses are under way" "$TOOLS/ioflags" expect "$vol" 0 65536 1
ms=$((($(date +%s%N) - t0) / 1000000))
ok "does not wait for them ($ms ms)" test "$ms" -lt $((2000 * SLOW))
t0=$(date +%s%N)
"$TOOLS/ioflags" write "$vol" 65536 65536 1 >/dev/null
ms=$((($(date +%s%N) - t0) / 1000000))
ok "nor does a write ($ms ms)" test "$ms" -lt $((2000 * SLOW))
t0=$(date +%s%N)
exits 0 "nor status" bc status "$T/c"
exits 0 "nor stats" bc stats "$T/c" --format json
exits 0 "nor get" bc get "$T/c"
ms=$((($(date +%s%N) - t0) / 1000000))
ok "all three within $ms ms" test "$ms" -lt $((3000 * SLOW))
wait
ok "the misses ran side by side ($((SECONDS - start)) s)" test $((SECONDS - start)) -lt $((60 * SLOW))
stop c
done_testing
