#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# schedules.sh - a share of the schedules (sched.c): which thread goes on when, and a power loss after it. They follow
# from the seed, so that it is the same test each time; SCHEDULES and SEED ask for others. `make sched` is the full run.
set -u
cd "$(dirname "$0")/../.." || exit 1
sched=${BUILD:-build/release}/scheduled/sched/sched
if [ ! -x "$sched" ]; then # only the plain build has it: a sanitizer would want to know about every change of stack
	echo "1..0 # SKIP built without the scheduler"
	exit 0
fi
exec "$sched" --schedules "${SCHEDULES:-8000}" --seed "${SEED:-1}"
