#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# power-loss.sh - a share of the power-loss rig (rig.c): P1-P5 after any crash. The states follow from the seed, so that
# it is the same test each time; CRASH_STATES and SEED ask for another. `make crash` is the full run.
set -u
cd "$(dirname "$0")/../.." || exit 1
rig=${BUILD:-build/release}/crash/rig
case ${BUILD:-} in
*san*) states=4000 ;; # sanitizers make it about ten times as slow
*) states=${CRASH_STATES:-25000} ;;
esac
exec "$rig" --states "$states" --seed "${SEED:-1}" --shrink
