#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# umount returns before the daemon has ended: a command that follows at once waits for that, or tells how it is.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires_root # umount

truncate -s 8M "$T/a.img" "$T/b.img"
# Its end takes a flush of the backing device.
new_cache c 8M --mode wt --volume a="delay:flush=1500ms:$T/a.img"
mkdir "$T/c.mnt"

# A daemon that is just ending, as umount leaves it.
leave_ending() {
	mountpoint -q "$T/c.mnt" || must bc load "$T/c" "$T/c.mnt"
	"$TOOLS/ioflags" write "$T/c.mnt/a" 0 4096 1 >/dev/null || bail "write"
	must umount "$T/c.mnt"
}

leave_ending
exits 0 "status" bc status "$T/c" --json
is "$(jq -r .cache.state <<<"$out")" stopping "says that it is on its way out"
is "$(jq -r '.volumes[0].name' <<<"$out")" a "with its volumes"
exits 0 "load" bc load "$T/c" "$T/c.mnt"
ok "has loaded it again" mountpoint -q "$T/c.mnt"

leave_ending
exits 0 "stats for Prometheus" bc stats "$T/c" --format prometheus
like "$out" 'state="running"\} 0' "say that it does not run"
exits 0 "check waits for the end" bc check "$T/c"

leave_ending
exits 0 "stop waits for the end" bc stop "$T/c"
is "$(own_daemons | wc -l)" 0 "which has come"
like "$out" "not loaded" "and tells that there was nothing to stop any more"

leave_ending
exits 0 "add goes on with the stopped cache" bc add "$T/c" b="$T/b.img"
leave_ending
exits 0 "set, too" bc set "$T/c" dirty-high=50
leave_ending
exits 0 "flush, too" bc flush "$T/c"
leave_ending
exits 0 "and remove" bc remove "$T/c" b
leave_ending
exits 0 "mount loads it again" bc mount "delay:flush=1500ms:$T/a.img" "$T/c.mnt" --cache "$T/c" --name a
leave_ending
exits 0 "create --force replaces it" bc create "$T/c" --size 4M --force

# dirty data is told of
new_cache d 8M --mode wb --volume b="$T/b.img"
must bc set "$T/d" clean-after=1000s
load d
"$TOOLS/ioflags" write "$T/d.mnt/b" 0 8192 1 >/dev/null || bail "write"
must umount "$T/d.mnt"
exits 3 "stop after umount: dirty data is left" bc stop "$T/d"
like "$out$err" "8.0 KiB.*blkcache flush $T/d" "which is said, with what to do"
exits 3 "the same of a cache that has been stopped for long" bc stop "$T/d"
like "$out" "not loaded.*nothing to stop" "there is nothing to stop"
exits 0 "flushed" bc flush "$T/d"
exits 0 "then stop has nothing to tell" bc stop "$T/d"
done_testing
