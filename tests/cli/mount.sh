#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# mount: the one-step form.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/disk.img" 8M
mkdir "$T/c.mnt"
exits 0 "creates, adds and loads" bc mount "$T/disk.img" "$T/c.mnt" --cache "$T/c" --size 4M
is "$(ls "$T/c.mnt")" disk.img "the volume is named after its backing file"
ok "it reads as the backing file" same "$T/c.mnt/disk.img" "$T/disk.img"
is "$(status_of c '.volumes[0].mode')" wt "the default mode is write-through"
stop c
exits 0 "again: the cache and the volume are there already" bc mount "$T/disk.img" "$T/c.mnt" --cache "$T/c"
is "$(ls "$T/c.mnt")" disk.img "no second volume"
stop c

random_file "$T/two.img" 4M
exits 0 "another backing on the same cache, with name and mode" \
	bc mount "$T/two.img" "$T/c.mnt" --cache "$T/c" --mode wb --name second
is "$(names c)" "disk.img second" "both volumes"
is "$(status_of c '.volumes[] | select(.name=="second") | .mode')" wb "its mode"
stop c

refuses 1 "nope.img" "a missing backing is refused" bc mount "$T/nope.img" "$T/c.mnt" --cache "$T/d" --size 4M
nok "and no cache is left behind" test -e "$T/d/journal.db"
refuses 1 "$T/nomnt" "a missing mount point is refused" bc mount "$T/disk.img" "$T/nomnt" --cache "$T/e" --size 4M
is "$(own_daemons | wc -l)" 0 "no daemon is left"
done_testing
