#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck disable=SC2016
#
# What a process inherits from who starts it: a limit of file sizes, signals that are ignored or blocked.
. "$(dirname "$0")/lib.sh"
requires_fuse

# ---- a limit of file sizes ----

truncate -s 64M "$T/a.img"
new_cache c 8M --mode wb --volume a="$T/a.img"
must bc set "$T/c" clean-after=1000s
mkdir "$T/c.mnt"
limited() { (ulimit -S -f 20480 && exec timeout "$LIMIT" "$@"); } # KiB
run limited "$BLKCACHE" load "$T/c" "$T/c.mnt"
is "$status" 0 "a cache is loaded under a limit that its backing file exceeds"
ok "writes within and beyond it are answered" eval '
	"$TOOLS/ioflags" write "$T/c.mnt/a" 0 65536 1 && "$TOOLS/ioflags" write "$T/c.mnt/a" $((40 << 20)) 65536 2 &&
	"$TOOLS/ioflags" write "$T/c.mnt/a" $((4 << 20)) 65536 3 dsync'
refuses 1 'too large' "a flush that must write beyond it fails and says why" bc flush "$T/c"
ok "the daemon lives" bc status "$T/c"
ok "what could not be written back is not lost" "$TOOLS/ioflags" expect "$T/c.mnt/a" $((40 << 20)) 65536 2
run bc stop "$T/c" --no-flush
is "$status" 3 "it stops with dirty data left"
run limited "$BLKCACHE" flush "$T/c"
is "$status" 1 "a flush of the stopped cache under the limit fails"
like "$err" 'too large' "the same way"
exits 0 "without the limit all is written back" bc flush "$T/c"
ok "and arrives" eval '"$TOOLS/ioflags" expect "$T/a.img" 0 65536 1 && "$TOOLS/ioflags" expect "$T/a.img" $((40 << 20)) 65536 2'

tiny() { (ulimit -S -f 100 && exec timeout "$LIMIT" "$@"); }
for command in status get check; do
	run tiny "$BLKCACHE" $command "$T/c"
	ok "$command under a tiny limit is not killed" test "$status" -lt 2
done
run tiny "$BLKCACHE" load "$T/c" "$T/c.mnt"
is "$status" 1 "load refuses where the data file is beyond the limit"
like "$err" 'file sizes.*ulimit -f' "and says so"
refuses 1 'too large|ulimit -f' "create says so too" tiny "$BLKCACHE" create "$T/new" --size 8M
nok "and leaves nothing behind" test -e "$T/new"

# ---- signals ----

# env(1) sets what a program inherits.
strange() { timeout "$LIMIT" env --ignore-signal=CHLD --block-signal=CHLD,TERM,INT "$@"; }
if [ "$(id -u)" = 0 ] && env --ignore-signal=CHLD true 2>/dev/null; then
	run strange "$BLKCACHE" load "$T/c" "$T/c.mnt"
	is "$status" 0 "loads where SIGCHLD is ignored and signals are blocked"
	pid=$(status_of c .cache.pid)
	ignored=0x$(awk '/^SigIgn/ { print $2 }' "/proc/$pid/status")
	is $((ignored & 1 << 16)) 0 "the daemon can wait for its children"
	ok "a signal ends it" kill -TERM "$pid"
	ok "in a moment" wait_for 30 eval '[ ! -d /proc/'"$pid"' ]'
	is "$(status_of c .cache.clean_stop)" true "in order"
	run strange "$BLKCACHE" load "$T/c" "$T/c.mnt" --survive
	is "$status" 0 "with a supervisor too"
	pid=$(status_of c .cache.pid)
	kill -9 "$pid"
	ok "which sees the daemon's end" wait_for 30 eval '[ "$(status_of c .cache.pid)" -gt 1 ] && [ "$(status_of c .cache.pid)" != '"$pid"' ]'
	run bc stop "$T/c"
	is "$status" 0 "stop"
fi
done_testing
