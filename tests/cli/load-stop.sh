#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# load and stop: data, exit codes, and that stop returns after the daemon has ended.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 8M
cp "$T/a.img" "$T/a.orig"
new_cache c 4M --mode wb --volume a="$T/a.img"
mkdir "$T/c.mnt"

# A daemon that kept our pipe open would hang this line.
text=$(bc load "$T/c" "$T/c.mnt" 2>&1 | cat)
ok "load returns and lets go of its output" mountpoint -q "$T/c.mnt"
diag "$text"
like "$text" "nothing is cached yet" "a new cache is not said to have been stopped"
is "$(status_of c .cache.state)" running "state running"
is "$(status_of c .cache.mountpoint)" "$T/c.mnt" "status tells the mount point"
is "$(own_daemons | wc -l)" 1 "one daemon"
ok "the volume has the backing's size" test "$(stat -c %s "$T/c.mnt/a")" = $((8 << 20))
ok "the volume reads as the backing" same "$T/c.mnt/a" "$T/a.orig"

mkdir "$T/other"
refuses 1 "(running|loaded|use|owner|pid|already)" "a second load is refused" bc load "$T/c" "$T/other"
nok "and mounts nothing" mountpoint -q "$T/other"
daemon=$(own_daemons)
exits 0 "at the same mount point it is there already" bc load "$T/c" "$T/c.mnt/"
like "$out" "$T/c: is loaded already, at $T/c.mnt" "and that is said"
is "$(own_daemons)" "$daemon" "by the daemon there was"
refuses 1 "loaded already.*-f" "not in the foreground" bc load "$T/c" "$T/c.mnt" -f
refuses 1 "loaded already.*--accept-changed" "nor is anything accepted of it" bc load "$T/c" "$T/c.mnt" --accept-changed a
refuses 1 "loaded already.*without --survive" "nor does it survive from now on" bc load "$T/c" "$T/c.mnt" --survive

"$TOOLS/ioflags" write "$T/c.mnt/a" 1000 2000000 5 >/dev/null || bail "write"
exits 0 "stop" bc stop "$T/c"
is "$(own_daemons | wc -l)" 0 "the daemon has ended when stop returns"
nok "nothing is mounted" mountpoint -q "$T/c.mnt"
ok "stop has flushed to the backing file" "$TOOLS/ioflags" expect "$T/a.img" 1000 2000000 5
ok "and left the rest alone" cmp -n 1000 "$T/a.img" "$T/a.orig"
exits 0 "stop of a stopped cache has nothing to do" bc stop "$T/c"
like "$out" "$T/c.*not loaded" "and says so"

load c
ok "after a reload the data is the same" cmp "$T/c.mnt/a" "$T/a.img"

exec 7<"$T/c.mnt/a"
refuses 1 "$T/c.mnt.*(use|open|busy)" "stop is refused while a file is open" bc stop "$T/c"
is "$(status_of c .cache.state)" running "and the cache runs on"
ok "and the file can be read" head -c 4096 /dev/fd/7
exec 7<&-

"$TOOLS/ioflags" write "$T/c.mnt/a" 0 4096 6 >/dev/null || bail "write"
exits 3 "stop --no-flush says that dirty data is left" bc stop "$T/c" --no-flush
ok "it names the amount" grep -qiE 'dirty' "$T/.err" "$T/.out"
ok "the backing file is behind" "$TOOLS/ioflags" expect "$T/a.img" 1000 3096 5
load c
ok "the data comes back from the cache" "$TOOLS/ioflags" expect "$T/c.mnt/a" 0 4096 6
exits 0 "stop cleans it" bc stop "$T/c"
ok "now the backing file has it" "$TOOLS/ioflags" expect "$T/a.img" 0 4096 6

# warm: what was read before is read from the cache after a reload
must bc remove "$T/c" a # one backing, one owner
new_cache warm 32M --volume a="$T/a.img"
load warm
cat "$T/warm.mnt/a" >/dev/null
stop warm
load warm
ok "the volume reads right again" same "$T/warm.mnt/a" "$T/a.img"
is "$(stat_of warm '.totals.requests | .read_misses + .read_partial_misses')" 0 "the cache is warm after stop and load"
stop warm

must bc remove "$T/warm" a
must bc add "$T/c" a="$T/a.img"
# foreground, ended by a signal
load_fg c
kill -TERM "$daemon"
wait "$daemon"
is $? 0 "load -f ends on SIGTERM with status 0"
nok "and unmounts" mountpoint -q "$T/c.mnt"

# A daemon that waited for an answer of its own mount could not be killed once its workers are dead.
ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0 LD_PRELOAD=$TOOLS/mute.so "$BLKCACHE" load "$T/c" "$T/c.mnt" -f >"$T/mute.log" 2>&1 </dev/null &
daemon=$!
ok "load asks nothing of its own mount" wait_for 20 grep -q "serving at" "$T/mute.log"
kill -9 "$daemon"
ok "so it can always be killed" wait_for 20 eval '! grep -q "^State:.[^Z]" "/proc/$daemon/status"'
abort_connections
timeout -k 5 60 umount -l "$T/c.mnt"

# unmounted by somebody
load c
ok "umount by hand" umount "$T/c.mnt"
ok "ends the daemon in order" wait_for 60 eval '[ -z "$(own_daemons)" ]'
load c
ok "and the cache loads again" same "$T/c.mnt/a" "$T/a.img"
stop c
done_testing
