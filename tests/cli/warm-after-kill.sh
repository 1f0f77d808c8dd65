#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P4: after kill -9 in the middle of write-through writes, at least 99 % of the clean lines outside the regions (64 MiB) that were being
# written are still hits, and none inside or outside is stale.
. "$(dirname "$0")/lib.sh"
requires_fuse

stat_of() { # KEY
	bc stats "$T/c" --format json | jq ".totals.requests.$1"
}

truncate -s 256M "$T/b.img"
new_cache c 96M --mode wt --ram 8M --volume v="$T/b.img"
load_fg c
vol=$T/c.mnt/v
head -c 1M /dev/urandom >"$T/piece"
for m in 0 20 40 140; do # regions 0 and 2; region 3 is the one that is written
	dd if="$T/piece" of="$vol" bs=1M seek=$m conv=notrunc status=none || bail "write at $m M"
done
sync -d "$vol"
read_both() {
	for from in 0 130; do
		dd if="$vol" of=/dev/null bs=64k skip=$((from * 16)) count=$((30 * 16)) status=none || bail "read from $from M"
	done
}
misses() {
	echo $(($(stat_of read_misses) + $(stat_of read_partial_misses)))
}
# until all is cached: a fill that would have to wait is left out
for _ in $(seq 20); do
	before=$(misses)
	read_both
	[ "$(misses)" = "$before" ] && break
done
is "$(misses)" "$before" "everything is cached"
sleep $((4 * SLOW)) # marks of the writes above are cleared, an epoch is durable
( # writes until the daemon is gone
	i=0
	while dd if="$T/piece" of="$vol" bs=64k count=16 seek=$(((200 + i % 8) * 16)) conv=notrunc status=none 2>/dev/null; do
		i=$((i + 1))
	done
) &
writer=$!
sleep 2
kill_hard c
wait $writer
load_fg c
read_both
hits=$(stat_of read_hits)
diag "$hits hits, $(misses) misses of 960 reads outside the region that was written"
ok "99 % are still hits" [ "$hits" -ge 951 ]
run cmp -n 1M "$T/piece" "$vol"
is "$status" 0 "what was written before is there"
cmp <(dd if="$vol" bs=1M skip=192 status=none) <(dd if="$T/b.img" bs=1M skip=192 status=none)
is $? 0 "the region that was being written reads as the backing file has it"
exits 0 "stop" bc stop "$T/c"
wait "$daemon"
done_testing
