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
