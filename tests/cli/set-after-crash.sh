#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P10: commands on a stopped cache that crashed leave it loadable. A crash must not look like "somebody else has modified the backing
# device" only because a command wrote the volume's row in between.
. "$(dirname "$0")/lib.sh"
requires_fuse

truncate -s 8M "$T/a.img"
new_cache c 16M --mode wb --volume a="$T/a.img"
load_fg c
"$TOOLS/ioflags" write "$T/c.mnt/a" 0 1000000 1 >/dev/null || bail "write"
must bc flush "$T/c" # moves the backing file's modification time on
must bc set "$T/c" clean-after=1000s
"$TOOLS/ioflags" write "$T/c.mnt/a" 4096 500000 2 >/dev/null || bail "write"
must sync "$T/c.mnt/a"
kill_hard c
exits 0 "status" bc status "$T/c"
like "$out" "stopped .*not cleanly.*dirty data" "tells that it was not stopped in order, and of the dirty data"
exits 0 "status again" bc status "$T/c" --json
is "$(jq -r .cache.clean_stop "$T/.out")" false "tells it as often as it is asked"
is "$(jq -r .cache.state "$T/.out")" stopped "state"
exits 0 "set of a volume's mode" bc set "$T/c" a mode=wt
load_fg c
ok "the flushed data is there" "$TOOLS/ioflags" expect "$T/c.mnt/a" 4096 500000 2
exits 0 "stop" bc stop "$T/c"
ok "and reaches the backing file" "$TOOLS/ioflags" expect "$T/a.img" 4096 500000 2
done_testing
