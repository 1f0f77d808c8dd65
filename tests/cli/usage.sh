#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# --help, --version, and wrong usage (64) for every command.
. "$(dirname "$0")/lib.sh"
[ -x "$BLKCACHE" ] || bail "the program is built"

exits 0 "--help" bc --help
for cmd in create add remove load mount flush stop status stats set get check; do
	like "$out" "\b$cmd\b" "--help lists $cmd"
done
is "$err" "" "on stdout"
exits 0 "--version" bc --version
like "$out" "^blkcache .*[0-9]+\.[0-9]+" "names program and version"
for cmd in create add remove load mount flush stop status stats set get check; do
	exits 0 "$cmd --help" bc $cmd --help
	like "$out" "[Uu]sage:.*$cmd" "$cmd --help shows its usage"
	exits 64 "$cmd without arguments" bc $cmd
	ok "$cmd complains on stderr" test -s "$T/.err"
	exits 64 "$cmd with an unknown option" bc $cmd --no-such-option "$T/x" "$T/y"
done
exits 64 "no command" bc
exits 64 "unknown command" bc frobnicate
like "$err" "frobnicate" "is named"
exits 0 "version" bc version
# one line each, from whatever finds it
for args in "create $T/c --bogus" "create $T/c --siz" "create $T/c --size" "stop" "load $T/c -x" "add $T/c x=$T/y --mode zz" "stats $T/c --format yaml"; do
	# shellcheck disable=SC2086
	run bc $args
	is "$status $(grep -c . "$T/.err")" "64 1" "blkcache ${args//$T/...}: one line"
	like "$err" "^blkcache: ${args%% *}: .*'blkcache ${args%% *} --help'" "with the command, and where to read on"
done
# the empty text that an unset variable of a script leaves; in a folder of ours, as it must not be taken for the current one
cd "$T" || bail "cd"
exits 64 "create: empty DIR" bc create "" --size 8M
exits 64 "create: empty name" bc create "$T/c" --size 8M --volume "=$T/x"
exits 64 "create: empty backing" bc create "$T/c" --size 8M --volume x=
for cmd in status stop check flush stats get; do
	exits 64 "$cmd: empty DIR" bc $cmd ""
done
for cmd in remove flush stats get; do
	exits 64 "$cmd: empty name" bc $cmd "$T" ""
done
exits 64 "set: empty name" bc set "$T" "" mode=wb
exits 64 "load: empty mount point" bc load "$T" ""
exits 64 "mount: empty backing" bc mount "" "$T" --cache "$T/c"
exits 64 "mount: empty mount point" bc mount "$T/x" "" --cache "$T/c"
exits 64 "mount: empty cache" bc mount "$T/x" "$T" --cache ""
exits 64 "mount: empty name" bc mount "$T/x" "$T" --cache "$T/c" --name ""
is "$(cd "$T" && echo *)" "*" "nothing was made of any of them"
cd "$TOP" || bail "cd"
# given, and wrong: not the same as not given
for option in "--size 0" "--size 8M --ram 0"; do
	# shellcheck disable=SC2086
	exits 64 "create $option" bc create "$T/c" $option
	like "$err" "too small" "$option: says so"
done
exits 64 "a size that is too large" bc create "$T/c" --size 99999999T
like "$err" "larger than" "is called that"
run bc create "$T/c" --size 1KB
like "$err" "1KB is taken as 1K" "a size with B is taken as before, and that is said"
refuses 1 "4095 bytes" "a size that is nearly a block is told exactly" bc create "$T/c" --size 4095
if [ -w /dev/full ]; then
	for what in --help "create --help" --version; do
		# shellcheck disable=SC2086
		timeout 20 "$BLKCACHE" $what >/dev/full 2>"$T/.err"
		is $? 1 "$what to a full disk fails"
	done
fi
exits 64 "create without --size" bc create "$T/c"
exits 64 "create with an extra argument" bc create "$T/c" extra --size 8M
for size in 0 -1 1.5G 12Q 99999999999G banana ''; do
	exits 64 "create --size '$size'" bc create "$T/c" --size "$size"
done
for line in 0 1K 4097 5K 128K banana; do
	exits 64 "create --line-size $line" bc create "$T/c" --size 8M --line-size $line
done
exits 64 "create --mode sideways" bc create "$T/c" --size 8M --mode sideways
exits 64 "create --volume without ="  bc create "$T/c" --size 8M --volume novolume
exits 64 "add without =" bc add "$T/c" novolume
exits 64 "set without =" bc set "$T/c" a b
exits 64 "load without a mount point" bc load "$T/c"
nok "nothing was made" test -e "$T/c"
done_testing
