#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# create: what it makes, what it refuses, what it leaves behind on failure (P8).
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
random_file "$T/b.img" 8M

exits 0 "create with a size only" bc create "$T/plain" --size 8M
ok "the folder has a data file" test -f "$T/plain/data"
ok "the folder has a journal" test -f "$T/plain/journal.db"
is "$(stat -c %s "$T/plain/data")" $((8 << 20)) "the data file has the size that was asked for"
is "$(stat -c %a "$T/plain/data" "$T/plain/journal.db" | xargs)" "600 600" "both are for their owner only"
ok "the data file is preallocated" test "$(stat -c '%b' "$T/plain/data")" -ge $(((8 << 20) / 512))

exits 0 "create with volumes, line size, mode and ram" \
	bc create "$T/full" --size 16M --line-size 16K --mode wb --ram 8M --volume a="$T/a.img" --volume b="$T/b.img"
is "$(status_of full '[.volumes[].name] | sort | join(",")')" a,b "both volumes are registered"
is "$(status_of full '.cache.line_size')" 16384 "line size as asked"
is "$(status_of full '[.volumes[].mode] | unique | join(",")')" wb "volumes get the default mode"
is "$(status_of full '.cache.state')" stopped "a cache that is not loaded is stopped"

refuses 1 "$T/plain.*" "an existing cache is refused" bc create "$T/plain" --size 8M
exits 0 "--force replaces a clean one" bc create "$T/plain" --size 4M --force
is "$(stat -c %s "$T/plain/data")" $((4 << 20)) "the new one has the new size"

# P8: dirty data is not dropped, not even by --force.
new_cache dirty 8M --mode wb --volume a="$T/a.img"
must bc set "$T/dirty" clean-after=1000s
load dirty
"$TOOLS/ioflags" write "$T/dirty.mnt/a" 0 65536 7 >/dev/null || bail "write"
exits 3 "stop --no-flush keeps dirty data and says so" bc stop "$T/dirty" --no-flush
refuses 1 "dirty" "--force refuses a cache with dirty data" bc create "$T/dirty" --size 8M --force
load dirty
ok "the dirty data is still there" "$TOOLS/ioflags" expect "$T/dirty.mnt/a" 0 65536 7
refuses 1 "$T/dirty.*(running|loaded|use|daemon)" "a loaded cache is not replaced" bc create "$T/dirty" --size 8M --force
stop dirty

refuses 1 "$T/none/sub" "the parent folder must exist" bc create "$T/none/sub" --size 8M
nok "and is not made" test -e "$T/none"
refuses 1 "$T/missing.img" "a missing backing file is refused by name" bc create "$T/c1" --size 8M --volume x="$T/missing.img"
nok "a failed create leaves no cache behind" test -e "$T/c1/journal.db"
touch "$T/file"
refuses 1 "$T/file" "a file in the place of the folder is refused" bc create "$T/file" --size 8M
ok "the file is left alone" test -f "$T/file"
refuses 1 "size|small|least" "a cache below the least size is refused" bc create "$T/c2" --size 4K
mkdir -m 750 "$T/empty"
exits 0 "an empty folder may be used" bc create "$T/empty" --size 4M --volume a="$T/a.img"
is "$(stat -c %a "$T/empty")" 750 "its mode stays"
load empty
is "$(stat -c %a "$T/empty/journal.db" "$T/empty/journal.db-wal" | xargs)" "600 600" "journal and log of a loaded cache are their owner's"
stop empty
done_testing
