#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Unit tests.
mkfs.ext4 -q /dev/vdb && mount /dev/vdb /ssd
mkdir /ssd/tmp
export TMPDIR=/ssd/tmp BLKCACHE_TEST_SLOW=${BLKCACHE_TEST_SLOW:-20} J=2
time tests/run unit
rc=$?
echo "RESULT $(cat build/release/logs/totals)"
cp -r build/release/logs /results/
exit $rc
