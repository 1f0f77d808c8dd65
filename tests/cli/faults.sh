#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck disable=SC2317
#
# The Nth system call of a command or of its daemon fails (failnth.so), for growing N until a run meets no failure. A command that
# fails says why in one line and exits with 1; it hangs nowhere and leaves no process, no mount and no half-made cache; afterwards the
# cache loads and holds what was answered. tests/unit/test_faults.c does every N; here N grows by steps. SOAK=2: every N here too.
. "$(dirname "$0")/lib.sh"
requires_fuse
shim=$TOOLS/failnth.so
[ -e "$shim" ] || { echo "Bail out! $shim has not been built"; exit 99; }
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0

EIO=5 ENOSPC=28 SHORT=0
problems=
problem() {
	problems+="$fault: $*"$'\n'
}

# faulty COMMAND...: the program under the current fault; sets status, out, err.
faulty() {
	LD_PRELOAD=$shim FAILNTH=$fault FAILNTH_PATHS=$paths FAILNTH_LOG=$T/injected \
		timeout -k 20 120 "$BLKCACHE" "$@" >"$T/.out" 2>"$T/.err" </dev/null
	status=$?
	out=$(<"$T/.out")
	err=$(<"$T/.err")
}

# fails_well WHAT [STATUS...]: after a command: 0, or 1 (or another that is named) with one line on stderr.
fails_well() {
	local what=$1 want
	shift
	for want in 0 1 "$@"; do
		[ "$status" = "$want" ] && break
		want=
	done
	[ -n "$want" ] || problem "$what: exit status $status: $err"
	[ "$status" = 0 ] || [ "$(grep -c '^blkcache: ' "$T/.err")" -ge 1 ] || problem "$what: exit status $status without a reason: $err"
	[ "$status" != 1 ] || [ "$(grep -cv ' warning: ' "$T/.err")" = 1 ] || problem "$what: more than one line: $err"
}

# each_n KINDS ERROR PATHS FUNCTION NAME [sticky]: FUNCTION under the fault, N = 1, 2, ... with growing steps.
each_n() {
	local n=1 runs=0 kinds=$1 error=$2 fn=$4 name=$5 sticky=${6:+:$6}
	paths=$3
	problems=
	while [ $n -lt 5000 ]; do
		fault=$kinds:$n:$error$sticky
		rm -f "$T/injected"
		"$fn"
		runs=$((runs + 1))
		[ -e "$T/injected" ] || break
		n=$((n + 1 + (SOAK > 1 ? 0 : n * 3 / 4)))
	done
	[ -e "$T/injected" ] && problem "no end"
	if [ -z "$problems" ] && [ $runs -gt 1 ]; then
		pass "$name ($runs runs)"
	else
		fail "$name ($runs runs)" "$problems"
	fi
}

nothing_left() { # WHAT
	[ -z "$(own_daemons)" ] || wait_for 60 eval '[ -z "$(own_daemons)" ]' || { problem "$1: a process is left"; kill_daemons; }
	[ -z "$(own_mounts)" ] || { problem "$1: a mount is left"; drop_mounts; }
}

# ---- create ----

create_once() {
	faulty create "$T/new" --size 1M --ram 1M --volume a="$T/a.img"
	fails_well create
	if [ "$status" != 0 ]; then
		[ ! -e "$T/new" ] || problem "create: something is left: $(ls -A "$T/new")"
		run bc create "$T/new" --size 1M --ram 1M --volume a="$T/a.img"
		[ "$status" = 0 ] || problem "create cannot be repeated: $err"
	fi
	run bc check "$T/new"
	[ "$status" = 0 ] || problem "check of what was created: $out $err"
	rm -rf "$T/new"
}

random_file "$T/a.img" 1M
each_n orwsat $EIO "$T/new|$T/new/*" create_once "create with failing I/O"
each_n wsa $ENOSPC "$T/new|$T/new/*" create_once "create on a disk that becomes full" sticky

# ---- a cache with clean and dirty data, put back before each run ----

must bc create "$T/c" --size 1M --ram 1M --mode wb --volume a="$T/a.img"
must bc set "$T/c" clean-after=1000s
load c
head -c 256K "$T/c.mnt/a" >/dev/null
"$TOOLS/ioflags" write "$T/c.mnt/a" 65536 16384 1 dsync >/dev/null || bail "write"
run bc stop "$T/c" --no-flush
[ "$status" = 3 ] || bail "stop --no-flush" "status $status: $err"
mkdir "$T/saved"
cp -a "$T/a.img" "$T/c" "$T/saved/"

put_back() {
	cat "$T/saved/a.img" >"$T/a.img"
	touch -r "$T/saved/a.img" "$T/a.img"
	rm -rf "$T/c"
	cp -a "$T/saved/c" "$T/c"
}

byte_at() { # OFFSET
	od -An -tu1 -j "$1" -N1 "$T/c.mnt/a" 2>/dev/null | tr -d ' '
}

loads_and_holds() { # ANSWERED: was the write of 2 at 131072 answered?
	local got
	run bc load "$T/c" "$T/c.mnt"
	[ "$status" = 0 ] || { problem "afterwards it does not load: $err"; return; }
	"$TOOLS/ioflags" expect "$T/c.mnt/a" 65536 16384 1 2>/dev/null || problem "the dirty data of before is not there"
	got=$(byte_at 131072)
	[ "$got" = 2 ] || { [ "$1" = no ] && [ "$got" = "$before" ]; } || problem "a byte reads as '$got' (answered: $1)"
	run bc stop "$T/c"
	[ "$status" = 0 ] || problem "afterwards it does not stop: $status $err"
	nothing_left "the run afterwards"
	run bc check "$T/c"
	[ "$status" = 0 ] || problem "check afterwards: $out $err"
	cmp -s -n 65536 "$T/a.img" "$T/saved/a.img" || problem "the backing file is not what it was"
}
before=$(od -An -tu1 -j 131072 -N1 "$T/saved/a.img" | tr -d ' ')

life_once() {
	local answered=no
	put_back
	faulty load "$T/c" "$T/c.mnt"
	fails_well load
	if [ "$status" = 0 ]; then
		timeout 60 "$TOOLS/ioflags" write "$T/c.mnt/a" 131072 4096 2 dsync >/dev/null 2>&1 && answered=yes
		timeout 60 head -c 256K "$T/c.mnt/a" >/dev/null 2>&1
		run bc status "$T/c"
		fails_well status
		run bc flush "$T/c"
		fails_well flush 3
		run bc stop "$T/c"
		fails_well stop 3
		# what refused to stop for the sake of its dirty data gets another chance
		[ -z "$(own_daemons)" ] || wait_for 5 eval '[ -z "$(own_daemons)" ]' || run bc stop "$T/c" --no-flush
	fi
	nothing_left "load to stop"
	loads_and_holds $answered
}

each_n orwsatu $EIO "$T/c|$T/c/*" life_once "load, write, flush, stop with failing I/O on the cache's files"
each_n ws $ENOSPC "$T/c/*" life_once "the same, the disk being full" sticky
each_n orws $EIO "$T/a.img" life_once "the same, with failing I/O on the backing file"

# ---- commands on a stopped cache ----

random_file "$T/b.img" 256K
managing_once() {
	put_back
	faulty add "$T/c" b="$T/b.img"
	fails_well add
	nothing_left add
	loads_and_holds no
}

checking_once() {
	faulty check "$T/c"
	fails_well check
	# a check that could not read something must not say that all is well
	[ "$status" != 0 ] || ! grep -qE 'pread|open' "$T/injected" 2>/dev/null || problem "check succeeds: $(cat "$T/injected")"
	nothing_left check
}

each_n orwsat $EIO "$T/c|$T/c/*" managing_once "add with failing I/O"
put_back
each_n or $EIO "$T/c|$T/c/*" checking_once "check with failing reads"
each_n r $SHORT "$T/c/data" life_once "short reads of the data file"
done_testing
