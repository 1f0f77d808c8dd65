#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
#
# compare.py ALL CYCLE - what the guest had recorded as durable up to now (ALL: records of earlier cycles) against what it found now
# (CYCLE: its check at the start; what it then recorded counts for the next). One line, "ok" or "LOST"/"BAD" in it.
import sys, re

last = {}      # (key, block) -> seq made durable
names = []     # files renamed and fsynced, of the latest cycle that wrote
told = []      # (seq, ms) of the unsynced writer, of the latest cycle that wrote
def records(path):
    for line in open(path, errors='replace'):
        yield line.rstrip('\n')
for line in records(sys.argv[1]):
    f = line.split()
    if len(f) == 4 and f[0] == 'R':
        last[f[1], f[2]] = max(last.get((f[1], f[2]), 0), int(f[3]))
    elif len(f) == 2 and f[0] == 'N':
        names.append(int(f[1]))
    elif len(f) == 3 and f[0] == 'P':
        told.append((int(f[1]), int(f[2])))
    elif line.startswith('GO'):
        names, told = [], []
found, files, bad, info, prefix, checked, now = {}, set(), [], [], None, False, 0
for line in records(sys.argv[2]):
    f = line.split()
    if not f:
        continue
    if f[0] == 'C' and len(f) == 4 and not checked:
        found[f[1], f[2]] = int(f[3])
    elif f[0] == 'F':
        files.add(int(f[1]))
    elif f[0] in ('BAD', 'GONE', 'ERROR'):
        bad.append(line)
    elif f[0] == 'PREFIX':
        prefix = int(f[1])
        if f[3] != '0':
            bad.append(line)
    elif f[0] == 'CHECKED':
        checked = True
    elif f[0] in ('R', 'N'):
        now += 1
    elif f[0] in ('LOADED', 'FSCK', 'STATUS', 'DIRECT', 'BLKCACHE-CHECK', 'END'):
        info.append(line)
        if f[0] == 'FSCK' and f[1] != '0' or f[0] == 'BLKCACHE-CHECK' and f[1] != '0' or f[0] == 'DIRECT' and f[2] != '0':
            bad.append(line)
lost = []
if last and not checked:
    bad.append('no check')
if checked:
    for (k, b), s in last.items():
        if found.get((k, b), -1) < s:
            lost.append((k, b, s, found.get((k, b))))
    for n in names[-60:]:
        if n not in files:
            lost.append(('name', n))
    back = ''
    if told:
        at = [ms for s, ms in told if s <= prefix]
        back = ', unsynced writes: %d of %d told were lost, %d ms' % (told[-1][0] - prefix, told[-1][0], told[-1][1] - (at[-1] if at else told[0][1])) \
            if prefix < told[-1][0] else ', no told unsynced write lost'
    print('%s: %d durable blocks and %d names compared%s' % ('LOST %d' % len(lost) if lost else 'BAD' if bad else 'ok', len(last), len(names[-60:]), back))
for x in lost[:10]:
    print('LOST', x)
for x in bad[:20]:
    print('BAD', x)
for x in info:
    print('  ', x)
print('   recorded now: %d' % now)
