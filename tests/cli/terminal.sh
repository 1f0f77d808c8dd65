#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Progress on a terminal: one line, as wide as the terminal at most, whatever its width.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires script stty python3

truncate -s 8M "$T/a.img"
new_cache c 16M --mode wb --volume a="delay:write=200ms:$T/a.img"
must bc set "$T/c" clean-after=1000s
load c

# widest COLUMNS: the longest progress line of a flush on a terminal of that width
widest() { # scattered blocks: a write each
	python3 - "$T/c.mnt/a" <<-'END' || bail "write"
		import os, sys
		f = os.open(sys.argv[1], os.O_RDWR)
		for i in range(0, 1600, 2):
		    os.pwrite(f, os.urandom(4096), i * 4096)
		os.fsync(f)
	END
	timeout 60 script -qec "stty cols $1; $BLKCACHE flush $T/c" /dev/null </dev/null >"$T/typed"
	tr '\r' '\n' <"$T/typed" | sed 's/\x1b\[K//g' | grep -a '%' | awk '{ if (length($0) > n) n = length($0) } END { print n + 0 }'
}

for columns in 20 40 60 200; do
	n=$(widest $columns)
	ok "$columns columns: progress is shown ($n)" test "$n" -gt 0
	ok "$columns columns: and fits" test "$n" -lt $columns
done
stop c
done_testing
