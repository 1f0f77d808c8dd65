#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Does it boot, and what does the kernel have?
nproc; free -m | head -2; lsmod | awk '{print $1}' | tr '\n' ' '; echo
zgrep -E 'CONFIG_(FUSE_FS|IO_URING|BCACHE|DM_CACHE|BLK_DEV_LOOP|BLK_DEV_RAM|PREEMPT[A-Z_]*|HZ)=' /boot/config-* /proc/config.gz 2>/dev/null
grep -m1 -oE 'sse4_2|avx2' /proc/cpuinfo; grep -m1 'model name' /proc/cpuinfo
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
$B --version
