#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Speed that does not rot: no operation takes more than 2 % more instructions than tests/bench/instructions.budget says. callgrind
# counts them, so that it does not matter how fast or busy the machine is. What threads do beside each other varies by a percent or
# two: a case may be counted up to three times, and its best count is compared.
. "$(dirname "$0")/../cli/lib.sh"
budget=${BUDGET:-$TOP/tests/bench/instructions.budget}
engine=$BUILD/bench/engine
case $(basename "$BUILD") in
release | mutate) ;;
*) skip_all "the budgets are those of the release build" ;;
esac
requires valgrind callgrind_annotate jq
[ "$(uname -m)" = x86_64 ] || skip_all "the budgets are those of x86_64"
[ -x "$engine" ] || { echo "Bail out! $engine has not been built"; exit 99; }

sets=$(sed -n 's/^SETS //p' "$budget")
count() { # CASE: sets both
	rm -f "$T/result"
	SETS=$sets RESULT=$T/result OUT=$T/out timeout -k 20 "$LIMIT" "$TOP/tests/bench/instructions.sh" "$1" >"$T/log" 2>&1 || return 1
	both=$(jq '.request + .behind' "$T/result")
}

while read -r name allowed; do
	case $name in '#'* | SETS | '') continue ;; esac
	best=
	for _ in 1 2 3; do
		count "$name" || break
		[ -n "$best" ] && [ "$best" -le "$both" ] || best=$both
		[ $((best * 100)) -gt $((allowed * 102)) ] || break
	done
	if [ -z "$best" ]; then
		fail "$name is counted" "$(tail -n 5 "$T/log")"
	elif [ $((best * 100)) -le $((allowed * 102)) ]; then
		pass "$name: $best instructions, budget $allowed"
	else
		fail "$name: $best instructions, budget $allowed" "see: tests/bench/instructions.sh -p $name"
	fi
done <"$budget"
done_testing
