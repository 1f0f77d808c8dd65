#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The name is not the thing: a backing file, or the cache's data file, that is deleted, moved or replaced while it is loaded. What is
# dirty must not go to a file that is gone with the daemon.
. "$(dirname "$0")/lib.sh"
requires_fuse

write() { # CACHE VOLUME SEED
	"$TOOLS/ioflags" write "$T/$1.mnt/$2" 8192 65536 "$3" dsync >/dev/null || bail "write"
}

random_file "$T/a.img" 4M
random_file "$T/b.img" 4M
random_file "$T/t.img" 4M
new_cache c 8M --mode wb --volume a="$T/a.img" --volume b="$T/b.img"
must bc add "$T/c" t="$T/t.img" --mode wt
must bc set "$T/c" clean-after=1000s
load c
exits 0 "everything in place: flush" bc flush "$T/c"
is "$(status_of c .cache.state)" running "and running"

# ---- written through to a file that is deleted ----

truncate -s 4M "$T/w.img"
must bc add "$T/c" w="$T/w.img" --mode wt
"$TOOLS/ioflags" write "$T/c.mnt/w" 8192 65536 7 >/dev/null || bail "write"
ok "fsync of what was written through" dd if=/dev/null of="$T/c.mnt/w" conv=notrunc,fsync status=none
"$TOOLS/ioflags" write "$T/c.mnt/w" 8192 65536 8 >/dev/null || bail "write"
rm "$T/w.img"
nok "fsync to a deleted file fails" dd if=/dev/null of="$T/c.mnt/w" conv=notrunc,fsync status=none
nok "and fails again" dd if=/dev/null of="$T/c.mnt/w" conv=notrunc,fsync status=none
like "$(status_of c .cache.why)" "volume w: its backing file was moved or deleted" "status says why"
ok "what was written is read" "$TOOLS/ioflags" expect "$T/c.mnt/w" 8192 65536 8
ok "others are flushed" dd if=/dev/null of="$T/c.mnt/t" conv=notrunc,fsync status=none
ok "it can be removed" wait_for 10 bc remove "$T/c" w --discard-dirty

# ---- deleted, and another file put there ----

write c a 1
write c b 2
random_file "$T/new.img" 4M
mv "$T/new.img" "$T/a.img"
cp "$T/a.img" "$T/a.before"
is "$(status_of c .cache.state)" degraded "status: degraded"
like "$(status_of c .cache.why)" "volume a: its backing file was moved or deleted" "and why"
is "$(status_of c '.volumes[] | select(.name == "b") | .state')" running "the other volume is not"
refuses 1 "volume a: .*a.img was deleted, and another file has its name \(its data is there as /proc/.*--no-flush.*--accept-changed a" \
	"flush of the volume fails and says what to do" bc flush "$T/c" a
data=$(grep -o '/proc/[0-9]*/fd/[0-9]*' <<<"$err")
refuses 1 "volume a: .*was deleted" "flush of all" bc flush "$T/c"
is "$(status_of c '.volumes[] | select(.name == "a") | .dirty_bytes')" 65536 "its dirty data stays in the cache"
is "$(status_of c '.volumes[] | select(.name == "b") | .dirty_bytes')" 0 "the other volume's is flushed"
ok "to its file" "$TOOLS/ioflags" expect "$T/b.img" 8192 65536 2
refuses 1 "volume a: .*was deleted.*go on working" "stop" bc stop "$T/c"
must bc set "$T/c" clean-after=1s # the background cleaner
sleep 2.5
is "$(status_of c '.volumes[] | select(.name == "a") | .dirty_bytes')" 65536 "the cleaner leaves it there, too"
ok "the volume works on" "$TOOLS/ioflags" expect "$T/c.mnt/a" 8192 65536 1
ok "nothing was written to the file that took the name" same "$T/a.img" "$T/a.before"
refuses 1 "volume a: .*was deleted" "remove keeps it" bc remove "$T/c" a
must bc set "$T/c" clean-after=1000s

# The remedy: the old file's data, in its place.
ok "the data of the deleted file is where the message says" cp "$data" "$T/a.img"
exits 3 "stop --no-flush" bc stop "$T/c" --no-flush
refuses 1 "volume a: .*it is another file" "another file under the name is noticed at load" bc load "$T/c" "$T/c.mnt"
exits 0 "and used when the user says so" bc load "$T/c" "$T/c.mnt" --accept-changed a
exits 0 "then it can be flushed" bc flush "$T/c"
ok "the dirty data is on the file" "$TOOLS/ioflags" expect "$T/a.img" 8192 65536 1

# ---- moved away and back ----

write c a 3
mv "$T/a.img" "$T/away.img"
refuses 1 "volume a: .*was moved away or deleted" "moved away: flush says so" bc flush "$T/c"
mv "$T/away.img" "$T/a.img"
exits 0 "moved back: it goes on" bc flush "$T/c"
is "$(status_of c .cache.state)" running "and is running again"
ok "with the data on it" "$TOOLS/ioflags" expect "$T/a.img" 8192 65536 3

# ---- nothing dirty, but written through ----

write c t 4
rm "$T/t.img"
refuses 1 "volume t: .*was deleted" "a write-through volume's file is deleted: stop says so" bc stop "$T/c"
refuses 1 "volume t: .*was deleted" "remove, too" bc remove "$T/c" t
exits 0 "remove --discard-dirty does it" bc remove "$T/c" t --discard-dirty
exits 0 "stop" bc stop "$T/c"

# ---- a name whose look-up hangs: nobody waits for it long (P11) ----

random_file "$T/o.img" 4M
new_cache o 4M --volume o="$T/o.img"
load o
new_cache h 8M --mode wb --volume far="$T/o.mnt/o" --volume near="$T/b.img"
load h
write h near 6
kill -STOP "$(cat "$T/o/lock")"
sleep 1.5 # what the kernel remembers of the name is too old by now
ok "status comes" timeout 10 "$BLKCACHE" status "$T/h"
ok "again" timeout 10 "$BLKCACHE" status "$T/h"
ok "a flush of the other volume, too" timeout 10 "$BLKCACHE" flush "$T/h" near
kill -CONT "$(cat "$T/o/lock")"
exits 0 "stop" bc stop "$T/h"
stop o

# ---- the cache's own data file ----

load c
write c a 5
rm "$T/c/data"
is "$(status_of c .cache.state)" degraded "the data file is deleted: degraded"
refuses 1 "its data file was deleted" "stop --no-flush would lose it: refused" bc stop "$T/c" --no-flush
umount "$T/c.mnt"
wait_for 60 sh -c "! kill -0 \$(cat '$T/c/lock') 2>/dev/null"
ok "an umount writes it to the backing file" "$TOOLS/ioflags" expect "$T/a.img" 8192 65536 5
done_testing
