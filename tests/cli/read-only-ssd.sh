#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The cache's disk can only be read (ext4 does that to itself after an error), or has lost a file: what only looks works, the rest says
# what is wrong, and nothing advises to give data up.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_root

mkdir "$T/ssd" "$T/c.mnt"
mount -t tmpfs -o size=48M tmpfs "$T/ssd" 2>/dev/null || skip_all "cannot mount a tmpfs"
random_file "$T/a.img" 4M
must bc create "$T/ssd/c" --size 8M --mode wb --ram 2M --volume a="$T/a.img"
ln -s "$T/ssd/c" "$T/c"
must bc set "$T/c" clean-after=1000s
load_fg c
must "$TOOLS/ioflags" write "$T/c.mnt/a" 65536 65536 7 dsync
must "$TOOLS/ioflags" write "$T/c.mnt/a" 262144 4096 8 dsync # a row of the ring
kill_hard c
must mount -o remount,ro "$T/ssd"

exits 0 "status of a cache that crashed, on a read-only disk" bc status "$T/c"
like "$out" 'state +stopped .*68.0 KiB of dirty data' "tells of its dirty data"
exits 0 "as JSON" bc status "$T/c" --json
exits 0 "get" bc get "$T/c"
like "$out" 'clean-after.*1000s' "shows the settings"
exits 0 "check" bc check "$T/c"
like "$out" 'all is well' "finds all in order"
refuses 1 'read-only file system' "load refuses and says why" bc load "$T/c" "$T/c.mnt"
refuses 1 'read-only file system' "set" bc set "$T/c" clean-after=5s
refuses 1 'read-only file system' "set of a volume's mode" bc set "$T/c" a mode=wt
refuses 1 'read-only file system' "add" bc add "$T/c" b="$T/a.img"
refuses 1 'read-only file system' "remove" bc remove "$T/c" a --discard-dirty
refuses 1 'read-only file system' "flush" bc flush "$T/c"
refuses 1 'dirty data' "create --force" bc create "$T/c" --size 8M --force
must mount -o remount,rw "$T/ssd"
load c
ok "writable again, all is there" "$TOOLS/ioflags" expect "$T/c.mnt/a" 262144 4096 8
ok "and there" "$TOOLS/ioflags" expect "$T/c.mnt/a" 65536 65536 7
run bc stop "$T/c" --no-flush

mv "$T/ssd/c/data" "$T/ssd/lost"
for command in load check status; do
	run bc $command "$T/c" $([ $command = load ] && echo "$T/c.mnt")
	is "$status" 1 "$command without the data file fails"
	like "$err" 'data file.*missing.*put it back' "says what to do"
	unlike "$err" 'truncate|SIZE|check the path' "and not to make an empty one"
done
mv "$T/ssd/lost" "$T/ssd/c/data"
exits 0 "put back, it flushes" bc flush "$T/c"
ok "all of it" "$TOOLS/ioflags" expect "$T/a.img" 262144 4096 8
done_testing
