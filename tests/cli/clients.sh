#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Commands to a daemon that does not answer: each gives up, names the process and what is wrong with it, and nothing of
# what it asked for is done later.
. "$(dirname "$0")/lib.sh"
requires_fuse

truncate -s 8M "$T/a.img" "$T/b.img"
new_cache c 8M --mode wb --volume a="$T/a.img"
load c
daemon=$(cut -d' ' -f1 "$T/c/lock")
is "$(status_of c .cache.pid)" "$daemon" "the lock file names the daemon"

# start NAME COMMAND...: in the background, its exit status in $T/NAME.rc
start() {
	local name=$1
	shift
	{
		timeout -k 5 60 "$@" >"$T/$name.out" 2>"$T/$name.err" </dev/null
		echo $? >"$T/$name.rc"
	} &
}

kill -STOP "$daemon"
begun=$SECONDS
start status "$BLKCACHE" status "$T/c"
start stats "$BLKCACHE" stats "$T/c"
start prom "$BLKCACHE" stats "$T/c" --format prometheus
start set "$BLKCACHE" set "$T/c" dirty-high=33
start add "$BLKCACHE" add "$T/c" b="$T/b.img"
start flush "$BLKCACHE" flush "$T/c"
start load "$BLKCACHE" load "$T/c" "$T/c.mnt"
start check "$BLKCACHE" check "$T/c"
start stop "$BLKCACHE" stop "$T/c" --no-flush
wait
ok "nobody waits for long" test $((SECONDS - begun)) -lt 40
for cmd in status stats set add flush load check stop; do
	is "$(cat "$T/$cmd.rc")" 1 "$cmd: gives up"
	like "$(cat "$T/$cmd.err")" "does not answer.*process $daemon .*stopped by a signal.*kill -CONT $daemon" "$cmd: says which process, why, and what to do"
	is "$(grep -c . "$T/$cmd.err")" 1 "$cmd: in one line"
done
is "$(cat "$T/prom.rc")" 0 "metrics are written all the same"
like "$(cat "$T/prom.out")" '^blkcache_state\{.*state="running"\} 0' "and do not say that it runs"
like "$(cat "$T/prom.out")" '^blkcache_up\{.*\} 0' "but that it is not up"

# interrupted while nothing answers: what was asked for is off
start stopint timeout -s INT 3 "$BLKCACHE" stop "$T/c"
wait
like "$(cat "$T/stopint.err")" "interrupted.*process $daemon" "an interrupted stop tells that nobody has confirmed that"
kill -CONT "$daemon"
is "$(status_of c .cache.state)" running "when the daemon goes on, it runs on"
sleep 1
is "$(status_of c .cache.state)" running "and goes on running"
is "$(bc get "$T/c" dirty-high)" 70 "no request of a client that has gone was carried out: set"
is "$(names c)" a "nor add"

# work that is slow, not hung, is waited for: its daemon gives signs of life
must bc add "$T/c" slow="delay:flush=12s:$T/b.img"
"$TOOLS/ioflags" write "$T/c.mnt/slow" 0 4096 1 >/dev/null || bail "write"
exits 0 "a flush that is silent for twelve seconds is waited for" bc flush "$T/c" slow
must bc stop "$T/c" --no-flush
done_testing
