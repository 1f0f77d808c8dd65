#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# check: a sound cache, a damaged one, and that it changes nothing.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
new_cache c 8M --mode wb --ram 1M --volume a="$T/a.img"
exits 0 "a new cache is sound" bc check "$T/c"
must bc set "$T/c" clean-after=1000s
load c
head -c 2M "$T/c.mnt/a" >/dev/null
"$TOOLS/ioflags" write "$T/c.mnt/a" $((3 << 20)) 65536 1 >/dev/null || bail "write"
refuses 1 "$T/c.*(running|loaded|use|stop)" "a loaded cache cannot be checked" bc check "$T/c"
exits 3 "stop --no-flush" bc stop "$T/c" --no-flush

before=$(find "$T/c" -type f ! -name lock -exec md5sum {} + | sort)
exits 0 "a cache with dirty data is sound" bc check "$T/c"
is "$(find "$T/c" -type f ! -name lock -exec md5sum {} + | sort)" "$before" "check changes nothing"

# Clean lines damaged: no data is lost. Every 4 KiB block of the data file gets one byte turned.
load c
stop c
cp "$T/c/data" "$T/data.good"
turn() { # FILE OFFSET
	local byte
	byte=$(od -An -tu1 -j "$2" -N1 "$1")
	printf "\\$(printf %o $((byte ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
for i in $(seq 0 4096 $(((8 << 20) - 1))); do turn "$T/c/data" $((i + 100)); done
exits 3 "damage in clean lines costs no data" bc check "$T/c"
load c
ok "P9: the damaged lines are read again from the backing file" same "$T/c.mnt/a" "$T/a.img"
ok "and counted" test "$(stat_of c .totals.errors.checksum)" -gt 0
stop c
exits 0 "they are mended now" bc check "$T/c"

# Dirty lines damaged: data is lost.
load c
"$TOOLS/ioflags" write "$T/c.mnt/a" 0 65536 2 >/dev/null || bail "write"
run bc stop "$T/c" --no-flush
for i in $(seq 0 4096 $(((8 << 20) - 1))); do turn "$T/c/data" $((i + 200)); done
exits 1 "damage in dirty lines is an error" bc check "$T/c"

# The journal.
new_cache d 8M --volume a="$T/a.img"
load d
head -c 2M "$T/d.mnt/a" >/dev/null
stop d
printf 'garbage garbage' | dd of="$T/d/journal.db" bs=1 conv=notrunc status=none
refuses 1 "journal" "a damaged journal is an error" bc check "$T/d"
mkdir "$T/d.mnt2"
refuses 1 "journal" "and does not load" bc load "$T/d" "$T/d.mnt2"
nok "nothing is mounted" mountpoint -q "$T/d.mnt2"
refuses 1 "$T/none" "no such cache" bc check "$T/none"
done_testing
