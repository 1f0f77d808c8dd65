#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The cache's file system has too little room.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_root

random_file "$T/a.img" 4M
mkdir "$T/ssd"
mount -t tmpfs -o size=24M tmpfs "$T/ssd" 2>/dev/null || skip_all "cannot mount a tmpfs"
refuses 1 "space|free" "create: no room for the data file" bc create "$T/ssd/big" --size 64M
nok "nothing is left behind" test -e "$T/ssd/big/data"
exits 0 "a smaller one fits" bc create "$T/ssd/c" --size 8M --mode wb --volume a="$T/a.img"
mkdir "$T/m"
exits 0 "load" bc load "$T/ssd/c" "$T/m"
# Somebody fills the file system: what is answered must still be kept or refused, never lost.
dd if=/dev/zero of="$T/ssd/filler" bs=64k 2>/dev/null
answered=0
for i in $(seq 0 63); do
	"$TOOLS/ioflags" write "$T/m/a" $((i * 65536)) 65536 $((i + 1)) dsync >/dev/null 2>&1 && answered=$((answered + 1)) || break
done
diag "$answered of 64 synchronous writes were answered on a full file system"
bad=0
for ((i = 0; i < answered; i++)); do
	"$TOOLS/ioflags" expect "$T/m/a" $((i * 65536)) 65536 $((i + 1)) 2>/dev/null || bad=$((bad + 1))
done
is $bad 0 "every answered write reads back"
rm "$T/ssd/filler"
run bc stop "$T/ssd/c"
ok "stop ends the daemon" test "$status" = 0 -o "$status" = 1 -o "$status" = 3
[ "$status" = 0 ] || diag "stop: status $status: $err"
if [ "$status" != 0 ]; then
	wait_for 60 eval '[ -z "$(own_daemons)" ]' || kill_daemons
	umount -l "$T/m" 2>/dev/null
	must bc load "$T/ssd/c" "$T/m"
	bad=0
	for ((i = 0; i < answered; i++)); do
		"$TOOLS/ioflags" expect "$T/m/a" $((i * 65536)) 65536 $((i + 1)) 2>/dev/null || bad=$((bad + 1))
	done
	is $bad 0 "every answered write survived"
	must bc stop "$T/ssd/c"
fi
bad=0
for ((i = 0; i < answered; i++)); do
	"$TOOLS/ioflags" expect "$T/a.img" $((i * 65536)) 65536 $((i + 1)) 2>/dev/null || bad=$((bad + 1))
done
is $bad 0 "and arrived in the backing file"
done_testing
