#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P10, P8: a backing device that changed behind the cache, or is missing, while the cache holds dirty data for it. No volume is loaded,
# the message says how to go on, and --accept-changed keeps the dirty data.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
random_file "$T/b.img" 4M
new_cache c 16M --mode wb --volume a="$T/a.img" --volume b="$T/b.img"
must bc set "$T/c" clean-after=1000s
load c
cat "$T/c.mnt/a" "$T/c.mnt/b" >/dev/null
"$TOOLS/ioflags" write "$T/c.mnt/a" 8192 100000 7 dsync >/dev/null || bail "write"
exits 3 "stop --no-flush" bc stop "$T/c" --no-flush

touch "$T/a.img"
refuses 1 "volume a: .*a.img.*no volume.*--accept-changed a.*--discard-dirty" "a touched backing: load names the remedies" \
	bc load "$T/c" "$T/c.mnt"
refuses 1 "no volume 'nosuch'|volume a: " "--accept-changed of another volume does not help" \
	bc load "$T/c" "$T/c.mnt" --accept-changed nosuch --accept-changed b
nok "nothing is mounted" mountpoint -q "$T/c.mnt"
# The user has written to it as well: what is cached clean is old, what is dirty is the user's decision.
printf 'new' | dd of="$T/a.img" bs=1 seek=1000000 conv=notrunc status=none
cp "$T/a.img" "$T/a.before"
exits 0 "load --accept-changed" bc load "$T/c" "$T/c.mnt" --accept-changed a
like "$out" "clean lines are dropped" "says what it drops"
ok "the dirty data is there" "$TOOLS/ioflags" expect "$T/c.mnt/a" 8192 100000 7
ok "the rest is read from the changed backing" cmp -i 110592 "$T/c.mnt/a" "$T/a.before"
ok "the other volume reads right" same "$T/c.mnt/b" "$T/b.img"
ok "and is still cached" test "$(stat_of c '.volumes[1].usage.clean_lines')" -gt 0
exits 0 "stop flushes" bc stop "$T/c"
ok "the dirty data is on the backing file" "$TOOLS/ioflags" expect "$T/a.img" 8192 100000 7
ok "and the rest as it was" cmp -i 110592 "$T/a.img" "$T/a.before"
exits 0 "the next load needs no consent" bc load "$T/c" "$T/c.mnt"
unlike "$out" "dropped" "and drops nothing"
stop c
refuses 1 "no volume 'nosuch'" "an unknown name is refused" bc load "$T/c" "$T/c.mnt" --accept-changed nosuch

# another size cannot be accepted
load c
"$TOOLS/ioflags" write "$T/c.mnt/a" 0 4096 8 dsync >/dev/null || bail "write"
run bc stop "$T/c" --no-flush
truncate -s 5M "$T/a.img"
refuses 1 "volume a: .*size" "another size: refused" bc load "$T/c" "$T/c.mnt" --accept-changed a
unlike "$err" "accept-changed" "without the remedy that does not help"

# missing
truncate -s 4M "$T/a.img"
mv "$T/a.img" "$T/a.away"
refuses 1 "volume a: /[^ ]*a.img: no such file.*no volume.*remove $T/c a" "a missing backing: load says how to go on" \
	bc load "$T/c" "$T/c.mnt"
unlike "$err" ": :" "without a doubled colon"
exits 0 "remove --discard-dirty" bc remove "$T/c" a --discard-dirty
exits 0 "lets the others load" bc load "$T/c" "$T/c.mnt"
ok "which read right" same "$T/c.mnt/b" "$T/b.img"
stop c
done_testing
