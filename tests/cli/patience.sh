#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# patience.sh - commands and devices that do not answer: add and stop give up and say which device it is, remove can be interrupted, and
# whatever they left behind does no harm when the device answers after all.
. "$(dirname "$0")/lib.sh"
requires_fuse

export BLKCACHE_CONF=$T/conf
printf '[daemon]\npatience = 2s\n' >"$BLKCACHE_CONF"
h=$T/hang
mkdir "$h" "$T/hang2"
truncate -s 16M "$T/a.img" "$T/b.img" "$T/x.img"
new_cache c 8M --mode wb --volume "a=$T/a.img" --volume "b=hang:dir=$h:$T/b.img"
load c
m=$T/c.mnt
fill() { head -c 65536 /dev/zero | tr '\0' "$2" | dd of="$m/$1" bs=65536 seek="$3" conv=notrunc,fsync status=none; }
reads() { # VOLUME LETTER BLOCK
	[ "$(timeout 20 dd if="$m/$1" bs=65536 skip="$3" count=1 status=none | tr -d "$2" | wc -c)" = 0 ]
}

# ---- add ----

touch "$T/hang2/open"
started=$SECONDS
refuses 1 "hang:dir=$T/hang2:$T/x.img does not answer" "an add gives up on a device that does not answer, and names it" \
	bc add "$T/c" "x=hang:dir=$T/hang2:$T/x.img"
ok "it does so soon" [ $((SECONDS - started)) -le 20 ]
is "$(status_of c '[.volumes[].name] | join(" ")')" "a b" "nothing was added"
truncate -s 16M "$T/a2.img"
"$BLKCACHE" add "$T/c" "y=hang:dir=$T/hang2:$T/a2.img" >/dev/null 2>&1 &
client=$!
sleep 0.5
refuses 1 "just being added" "a name that is being added is taken" bc add "$T/c" "y=$T/x2.img"
kill -INT "$client"
kill -TERM "$client" 2>/dev/null
wait "$client" 2>/dev/null
truncate -s 16M "$T/x2.img"
ok "the name of an add whose client has gone is free again" wait_for 5 bc add "$T/c" "y=$T/x2.img"
rm "$T/hang2/open"
added_late() { bc add "$T/c" "x=$T/x.img"; }
ok "a device that was opened too late is closed again, and can be added" wait_for 10 added_late

# What is read of a device for later is not worth a flush of a minute.
truncate -s 16M "$T/slow.img"
started=$SECONDS
exits 0 "create does not wait for a flush that is slow" bc create "$T/d" --size 1M --volume "s=delay:flush=100s:$T/slow.img"
truncate -s 16M "$T/slow2.img"
exits 0 "nor does add" bc add "$T/c" "s=delay:flush=100s:$T/slow2.img"
ok "they are soon done" [ $((SECONDS - started)) -le 40 ]
must bc remove "$T/c" s

# on a stopped cache, too
truncate -s 16M "$T/x3.img"
touch "$T/hang2/open"
started=$SECONDS
refuses 1 "does not answer" "an add to a stopped cache gives up" bc add "$T/d" "x=hang:dir=$T/hang2:$T/x3.img"
refuses 1 "does not answer" "and so does a create" bc create "$T/e" --size 1M --volume "x=hang:dir=$T/hang2:$T/x3.img"
ok "soon" [ $((SECONDS - started)) -le 30 ]
rm "$T/hang2/open"

# ---- a flush whose client has gone ----

fill b p 5
touch "$h/write"
"$BLKCACHE" flush "$T/c" b >/dev/null 2>&1 &
client=$!
sleep 1
kill -TERM "$client"
wait "$client" 2>/dev/null
"$BLKCACHE" remove "$T/c" b >"$T/removed" 2>&1 &
client=$!
sleep 1
ok "a flush that hangs is no user: a remove waits for it" kill -0 "$client"
kill -TERM "$client"
wait "$client" 2>/dev/null
unlike "$(<"$T/removed")" "in use" "and says nothing else"
rm "$h/write"

# ---- remove ----

fill b q 0
touch "$h/write"
"$BLKCACHE" remove "$T/c" b >"$T/removed" 2>&1 &
client=$!
sleep 1
kill -TERM "$client"
wait "$client" 2>/dev/null
ok "after an interrupted remove the volume is there" reads b q 0
fill b r 1
ok "and can be written" reads b r 1
rm "$h/write"
sleep 0.5
is "$(status_of c '[.volumes[].name] | join(" ")')" "a b y x" "and it stays when the device answers"
ok "until it is removed" wait_for 10 bc remove "$T/c" b
ok "which wrote it out" cmp -n 65536 <(head -c 65536 /dev/zero | tr '\0' q) "$T/b.img"

# ---- stop ----

must bc add "$T/c" "b=hang:dir=$h:$T/b.img"
fill b s 2
touch "$h/write"
started=$SECONDS
refuses 1 "volume b .*does not answer.*volumes go on" "a stop gives up on a device that does not answer, and names the volume" \
	bc stop "$T/c"
ok "it does so soon" [ $((SECONDS - started)) -le 30 ]
fill a t 3
ok "the volumes go on" reads a t 3
letter_u() { head -c 65536 /dev/zero | tr '\0' u; }
letter_u | dd of="$m/a" bs=65536 seek=4 conv=notrunc status=none # not flushed
started=$SECONDS
run bc stop "$T/c" --no-flush
ok "without its flush the daemon ends" [ "$status" != 0 ]
like "$err" "volume b .*does not answer" "and says why it did not end in order"
ok "soon" [ $((SECONDS - started)) -le 30 ]
nok "the mount has gone" mountpoint -q "$m"
rm "$h/write"
reload() { bc load "$T/c" "$m"; }
ok "the cache can be loaded again" wait_for 20 reload
ok "what was flushed is there" reads b s 2
ok "and what was only answered" reads a u 4
stop c
ok "a stop with a device that answers writes all of it" cmp -n 65536 -i 0:131072 <(head -c 65536 /dev/zero | tr '\0' s) "$T/b.img"

done_testing
