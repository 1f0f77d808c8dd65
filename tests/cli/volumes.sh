#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# add and remove, while stopped and while running.
. "$(dirname "$0")/lib.sh"
requires_fuse

for v in a b c; do random_file "$T/$v.img" 4M; done
new_cache c 16M --mode wb

exits 0 "add while stopped" bc add "$T/c" a="$T/a.img"
load c
is "$(ls "$T/c.mnt")" a "the volume is a file in the mount"
ok "it reads as its backing file" same "$T/c.mnt/a" "$T/a.img"
exits 0 "add while running" bc add "$T/c" b="$T/b.img" --mode wt
is "$(names c)" "a b" "it appears at once"
ok "and can be read" same "$T/c.mnt/b" "$T/b.img"
is "$(status_of c '.volumes[] | select(.name=="b") | .mode')" wt "with the mode that was asked for"

refuses 1 "a" "a name that is taken is refused" bc add "$T/c" a="$T/c.img"
refuses 1 "a.img" "a backing that is taken is refused" bc add "$T/c" z="$T/a.img"
refuses 1 "gone.img" "a missing backing is refused" bc add "$T/c" z="$T/gone.img"
for bad in . .. x/y ''; do
	run bc add "$T/c" "$bad=$T/c.img"
	ok "the name '$bad' is refused" test "$status" = 1 -o "$status" = 64
done
refuses 1 "$T/nowhere" "no such cache" bc add "$T/nowhere" a="$T/a.img"

exec 7<"$T/c.mnt/b"
refuses 1 "b.*(use|open|busy)" "remove is refused while the file is open" bc remove "$T/c" b
exec 7<&-
# The kernel tells of a close a moment after it.
ok "and works once it is closed" wait_for 30 bc remove "$T/c" b
is "$(ls "$T/c.mnt")" a "the file is gone at once"
nok "and cannot be opened any more" head -c 1 "$T/c.mnt/b"

must bc set "$T/c" clean-after=1000s
cp "$T/a.img" "$T/a.before"
"$TOOLS/ioflags" write "$T/c.mnt/a" 8192 100000 9 >/dev/null || bail "write"
exec 7<"$T/c.mnt/a"
refuses 1 "a.*(use|open|busy)" "remove of an open volume with dirty data is refused" bc remove "$T/c" a
exec 7<&-
ok "before anything was written back" same "$T/a.img" "$T/a.before"
ok "remove writes dirty data to the backing file first" wait_for 30 bc remove "$T/c" a
ok "it is there" "$TOOLS/ioflags" expect "$T/a.img" 8192 100000 9
is "$(ls "$T/c.mnt" | wc -l)" 0 "no volume is left"
refuses 1 "a" "removing an unknown volume is refused" bc remove "$T/c" a

must bc add "$T/c" c="$T/c.img"
cp "$T/c.img" "$T/c.before"
"$TOOLS/ioflags" write "$T/c.mnt/c" 0 8192 9 >/dev/null || bail "write"
ok "remove --discard-dirty" wait_for 30 bc remove "$T/c" c --discard-dirty
ok "drops the dirty data" same "$T/c.img" "$T/c.before"

# stopped
must bc add "$T/c" c="$T/c.img"
stop c
ln "$T/c.img" "$T/c2.img"
ln -s c.img "$T/c3.img"
for spec in "$T/c2.img" "$T/c3.img" "file:$T/c.img" "delay:read=1ms:$T/c.img"; do
	refuses 1 "is volume c of this cache already" "the same file as ${spec#"$T/"} is refused" bc add "$T/c" "z=$spec"
done
exits 0 "remove while stopped" bc remove "$T/c" c
is "$(status_of c '.volumes | length')" 0 "it is gone"
done_testing
