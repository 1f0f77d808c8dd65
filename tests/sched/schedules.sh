#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# schedules.sh - a share of the schedules (sched.c): which thread goes on when, and a power loss after it. They follow
# from the seed, so that it is the same test each time; SCHEDULES and SEED ask for others. `make sched` is the full run.
#
# Then the search itself is tried: with the answer to a known race left out it has to find that race. Those that take
# about a thousand schedules only; `make sched-mutations` tries all.
set -u
cd "$(dirname "$0")/../.." || exit 1
sched=${BUILD:-build/release}/scheduled/sched/sched
if [ ! -x "$sched" ]; then # only the plain build has it: a sanitizer would want to know about every change of stack
	echo "1..0 # SKIP built without the scheduler"
	exit 0
fi
out=$("$sched" --schedules "${SCHEDULES:-4000}" --seed "${SEED:-1}")
bad=$?
n=$(sed -n 's/^1\.\.//p' <<<"$out")
sed '/^1\.\./d' <<<"$out"
# a race a line; the number of schedules is far more than any of them takes
races=$("$sched" --schedules 30000 --seed "${SEED:-1}" --quick-races)
while read -r line; do
	n=$((n + 1))
	case $line in
	*" caught "*) echo "ok $n - left out: $line" ;;
	*) echo "not ok $n - left out: $line" && bad=1 ;;
	esac
done <<<"$races"
echo "1..$n"
exit $bad
