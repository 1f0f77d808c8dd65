#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Black-box tests, one after the other so that the log tells how long each took.
mkfs.ext4 -q /dev/vdb && mount /dev/vdb /ssd
mkfs.ext4 -q /dev/vdc && mount /dev/vdc /disk
mkdir /ssd/tmp
export TMPDIR=/ssd/tmp BLKCACHE_TEST_SLOW=${BLKCACHE_TEST_SLOW:-20} J=1 CYCLES=1 KILLS=1
bad=0
for t in ${TESTS:-tests/cli/*.sh}; do
	t=$(basename "$t" .sh)
	[ "$t" = lib ] && continue
	s=$(date +%s)
	tests/run "tests/cli/$t.sh" >/tmp/t.log 2>&1 || { bad=1; cat /tmp/t.log; }
	echo "RESULT $t: $(tail -n 1 /tmp/t.log), $(($(date +%s) - s)) s"
	grep skipped: /tmp/t.log
	mkdir -p "/results/$t"
	cp -r build/release/logs/. "/results/$t/"
	tar -C /results -cf /dev/vde . 2>/dev/null # what there is, should this never end
done
exit $bad
