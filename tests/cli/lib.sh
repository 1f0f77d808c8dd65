# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
#
# lib.sh - the harness of the black-box tests. Source it first:
#
#	. "$(dirname "$0")/lib.sh"
#
# A test is a bash script that prints TAP. It works in $T, a scratch folder of its own, and may run beside any other test: no fixed
# paths, names or loop numbers. However it ends, clean_up() takes back what it made and only that: processes of our program that
# have a file below $T open, mounts below $T, loop devices whose file lies below $T, and $T itself.
#
# Every command runs under a limit that is far above what it needs on a slow machine; it only keeps a hang from hanging the run.
#
# Knobs: BUILD, BLKCACHE (program), TOOLS (folder of test tools), TMPDIR, LIMIT (seconds), SOAK (factor for loops and run times),
# BLKCACHE_TEST_SLOW (factor for all limits: of timeout(1), wait_for, and what a test multiplies with $SLOW itself).

set -u
export LC_ALL=C
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${BUILD:-build/release}
[[ $BUILD = /* ]] || BUILD=$TOP/$BUILD
BLKCACHE=${BLKCACHE:-$BUILD/blkcache}
TOOLS=${TOOLS:-$BUILD/tools}
LIMIT=${LIMIT:-300}
SOAK=${SOAK:-1}
SLOW=${BLKCACHE_TEST_SLOW:-1}
PATH=$PATH:/usr/sbin:/sbin

T=$(mktemp -d "${TMPDIR:-/tmp}/blkcache-test.XXXXXX") || exit 99
T=$(realpath "$T")
tests_run=0
tests_failed=0
status=0

# A timeout(1) of ours goes before the system's, so that its limits are longer wherever a test calls it.
slow_timeout() {
	local real
	real=$(command -v timeout)
	mkdir "$T/.bin"
	cat >"$T/.bin/timeout" <<END
#!/bin/bash
longer() { if [[ \$1 =~ ^([0-9]+)([smhd]?)\$ ]]; then echo \$((BASH_REMATCH[1] * $SLOW))\${BASH_REMATCH[2]}; else echo "\$1"; fi; }
options=()
while [[ \${1:-} == -* ]]; do
	case \$1 in
	-k) options+=(-k "\$(longer "\$2")") && shift ;;
	-s) options+=(-s "\$2") && shift ;;
	*) options+=("\$1") ;;
	esac
	shift
done
exec $real "\${options[@]}" "\$(longer "\$1")" "\${@:2}"
END
	chmod +x "$T/.bin/timeout"
	PATH=$T/.bin:$PATH
}
[ "$SLOW" = 1 ] || slow_timeout

# ---- taking back ----

# Processes of the program under test with an open file or a mount below $T: daemons of this test and nobody else's.
own_daemons() {
	local p exe
	exe=$(realpath "$BLKCACHE" 2>/dev/null) || return 0
	for p in /proc/[0-9]*; do
		[ "$(readlink "$p/exe" 2>/dev/null)" = "$exe" ] || continue
		find "$p/fd" -lname "$T/*" 2>/dev/null | grep -q . && echo "${p#/proc/}"
	done
}

# Mount points below $T, the newest first, one per line. mountinfo writes blanks as \040. other: only those that are not ours, that is
# file systems on loop devices.
own_mounts() { # [other]
	awk -v top="$T/" -v other="${1:-}" '
		{ gsub(/\\040/, " ", $5) }
		index($5, top) == 1 && !(other && / - fuse\.blkcache /) { a[++n] = $5 }
		END { while (n) print a[n--] }' /proc/self/mountinfo
}

# Ends the connection of FUSE mounts below $T, for a daemon that does not die. The number is the minor of the mount's device.
abort_connections() {
	local minor
	[ -n "$(ls /sys/fs/fuse/connections 2>/dev/null)" ] || mount -t fusectl none /sys/fs/fuse/connections 2>/dev/null
	awk -v top="$T/" 'index($5, top) == 1 && / - fuse\.blkcache / { split($3, d, ":"); print d[2] }' /proc/self/mountinfo |
		while read -r minor; do
			echo 1 >"/sys/fs/fuse/connections/$minor/abort"
		done 2>/dev/null
}

drop_mounts() { # [other]
	local m
	own_mounts "$@" | while read -r m; do
		timeout -k 5 30 umount -l "$m"
	done 2>/dev/null
}

drop_loops() {
	local dev file
	losetup -l -n -O NAME,BACK-FILE 2>/dev/null | while read -r dev file; do
		[[ $file = "$T"/* ]] && timeout -k 5 30 losetup -d "$dev"
	done 2>/dev/null
}

kill_daemons() {
	local pid pids
	for _ in $(seq 100); do
		# again each time: a supervisor may have started another daemon in between
		pids=$(own_daemons)
		[ -z "$pids" ] && return
		for pid in $pids; do
			kill -9 "$pid" 2>/dev/null
		done
		sleep 0.1
	done
	abort_connections
}

clean_up() {
	local code=$?
	trap '' INT TERM
	trap - EXIT
	kill_daemons
	drop_mounts other
	drop_loops # before our own mounts go: a loop device's file then loses the path it is known by
	drop_mounts
	if [ -n "${KEEP:-}" ]; then
		echo "# kept $T"
	else
		rm -rf --one-file-system "$T"
	fi
	exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- TAP ----

diag() { # each argument's first lines; the rest rarely says more
	local text
	for text in "$@"; do
		printf '%s\n' "$text" | sed -n '1,40s/^/# /p; 41s/.*/# .../p'
	done
}

pass() {
	tests_run=$((tests_run + 1))
	echo "ok $tests_run - ${1//#/no.}"
}

fail() {
	tests_run=$((tests_run + 1))
	tests_failed=$((tests_failed + 1))
	echo "not ok $tests_run - ${1//#/no.}"
	diag "at ${BASH_SOURCE[-1]##*/} line ${BASH_LINENO[-2]}"
	shift
	[ $# = 0 ] || diag "$@"
}

skip() { # NAME REASON
	tests_run=$((tests_run + 1))
	echo "ok $tests_run - $1 # SKIP $2"
}

skip_all() {
	echo "1..0 # SKIP $1"
	exit 0
}

done_testing() {
	echo "1..$tests_run"
	[ "$tests_failed" = 0 ]
	exit
}

# Ends the file when nothing after this point can make sense.
bail() {
	fail "$@"
	echo "1..$tests_run"
	exit 1
}

ok() { # NAME COMMAND...: passes if the command succeeds
	local name=$1
	shift
	if timeout_if_program "$@" >"$T/.ok" 2>&1; then
		pass "$name"
	else
		fail "$name" "failed: $*" "$(tail -n 30 "$T/.ok")"
	fi
}

nok() { # NAME COMMAND...: passes if the command fails
	local name=$1
	shift
	if timeout_if_program "$@" >"$T/.ok" 2>&1; then
		fail "$name" "should have failed: $*" "$(tail -n 30 "$T/.ok")"
	else
		pass "$name"
	fi
}

is() { # GOT WANT NAME
	if [ "$1" = "$2" ]; then
		pass "$3"
	else
		fail "$3" "got:  $1" "want: $2"
	fi
}

like() { # TEXT REGEX NAME
	if grep -qE -- "$2" <<<"$1"; then
		pass "$3"
	else
		fail "$3" "text: $1" "does not match: $2"
	fi
}

unlike() { # TEXT REGEX NAME
	if grep -qE -- "$2" <<<"$1"; then
		fail "$3" "text: $1" "matches: $2"
	else
		pass "$3"
	fi
}

# ---- running things ----

# Shell functions cannot run under timeout(1); what they call does.
timeout_if_program() {
	if [ "$(type -t "$1")" = file ]; then
		timeout -k 20 "$LIMIT" "$@"
	else
		"$@"
	fi
}

# bc ARGUMENTS...: the program, limited. Output to files, never to a pipe: a daemon that kept it open must not hang the test.
bc() {
	timeout -k 20 "$LIMIT" "$BLKCACHE" "$@"
}

# run COMMAND...: sets status, out and err.
run() {
	if [ "$1" = bc ]; then
		bc "${@:2}" >"$T/.out" 2>"$T/.err" </dev/null
	else
		timeout_if_program "$@" >"$T/.out" 2>"$T/.err" </dev/null
	fi
	status=$?
	out=$(<"$T/.out")
	err=$(<"$T/.err")
}

# exits STATUS NAME COMMAND...: runs it and compares its exit status.
exits() {
	local want=$1 name=$2
	shift 2
	run "$@"
	if [ "$status" = "$want" ]; then
		pass "$name"
	else
		fail "$name" "ran: $*" "exit status $status, want $want" "stdout: $out" "stderr: $err"
	fi
}

# refuses STATUS REGEX NAME COMMAND...: fails with that status and one line on stderr that matches.
refuses() {
	local want=$1 regex=$2 name=$3 lines
	shift 3
	run "$@"
	lines=$(grep -c . "$T/.err")
	if [ "$status" = "$want" ] && grep -qiE -- "$regex" "$T/.err" && { [ "$want" = 64 ] || [ "$lines" = 1 ]; }; then
		pass "$name"
	else
		fail "$name" "ran: $*" "exit status $status, want $want; stderr has $lines lines, should match: $regex" "stdout: $out" "stderr: $err"
	fi
}

# must COMMAND...: part of the set-up; without it the rest is pointless.
must() {
	run "$@"
	[ "$status" = 0 ] || bail "set-up: $*" "exit status $status" "stdout: $out" "stderr: $err"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
	local end=$((SECONDS + $1 * SLOW))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.1
	done
}

# ---- pieces that tests share ----

requires() { # PROGRAM...
	local p
	for p in "$@"; do
		command -v "$p" >/dev/null || skip_all "$p is not installed"
	done
}

requires_fuse() {
	[ -x "$BLKCACHE" ] || { echo "Bail out! $BLKCACHE has not been built"; exit 99; }
	if ! [ -r /dev/fuse ] || ! [ -w /dev/fuse ]; then
		skip_all "no access to /dev/fuse"
	fi
	requires jq
}

requires_root() {
	[ "$(id -u)" = 0 ] || skip_all "needs root"
}

# May a loop device be made here? (Containers often say no.)
requires_loop() {
	local dev
	requires_root
	requires losetup mkfs.ext4
	truncate -s 1M "$T/.probe"
	dev=$(losetup --show -f "$T/.probe" 2>/dev/null) || skip_all "no loop devices here"
	losetup -d "$dev"
	rm "$T/.probe"
}

# random_file FILE BYTES: contents differ from file to file and from block to block.
random_file() {
	head -c "$2" /dev/urandom >"$1"
}

# new_cache NAME SIZE [OPTIONS...]: $T/NAME
new_cache() {
	local name=$1 size=$2
	shift 2
	must bc create "$T/$name" --size "$size" "$@"
}

# load NAME: mounts $T/NAME on $T/NAME.mnt
load() {
	mkdir -p "$T/$1.mnt"
	must bc load "$T/$1" "$T/$1.mnt"
}

# load_fg NAME: the same with the daemon as our child, its pid in $daemon; for tests that kill it.
load_fg() {
	mkdir -p "$T/$1.mnt"
	"$BLKCACHE" load "$T/$1" "$T/$1.mnt" -f >"$T/$1.log" 2>&1 </dev/null &
	daemon=$!
	# Usable means: the socket answers and the mount is there.
	wait_for "$LIMIT" is_up_or_gone "$1" && is_up "$1" >/dev/null 2>&1 || bail "load -f of $1 comes up" "$(tail -n 20 "$T/$1.log")"
}

is_up() {
	kill -0 "$daemon" && mountpoint -q "$T/$1.mnt" && timeout 60 "$BLKCACHE" status "$T/$1"
}

is_up_or_gone() {
	! kill -0 "$daemon" || is_up "$1"
}

# kill_hard NAME: kill -9 of the daemon that load_fg started, and away with its dead mount.
kill_hard() {
	kill -9 "$daemon"
	wait "$daemon" 2>/dev/null
	timeout -k 5 60 umount -l "$T/$1.mnt" 2>/dev/null
	daemon=
}

stop() {
	must bc stop "$T/$1" "${@:2}"
}

# stat_of CACHE FILTER: a value out of `stats --format json`
stat_of() {
	bc stats "$T/$1" --format json 2>/dev/null | jq -r "$2"
}

status_of() { # CACHE FILTER
	bc status "$T/$1" --json 2>/dev/null | jq -r "$2"
}

# sum FILE [dd-options]: checksum of what a client reads, past any page cache
sum() {
	dd if="$1" bs=1M status=none "${@:2}" | md5sum | cut -d' ' -f1
}

same() { # FILE FILE
	cmp "$1" "$2"
}

names() { # CACHE: the files in its mount, on one line
	(cd "$T/$1.mnt" && echo *)
}
