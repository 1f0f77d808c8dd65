#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# status: what it says about a running, a stopped and a missing cache.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
new_cache c 8M --mode wb --volume a="$T/a.img"
exits 0 "stopped cache" bc status "$T/c"
like "$out" "stopped" "says that it is stopped"
exits 0 "as JSON" bc status "$T/c" --json
ok "which parses" jq -e . "$T/.out"
is "$(jq -r .cache.state "$T/.out")" stopped "state"
is "$(jq -r '.cache | [.why, .clean_stop] | join(",")' "$T/.out")" ",true" "nothing is wrong"
load c
exits 0 "running cache" bc status "$T/c"
like "$out" "running" "says that it runs"
like "$out" "\ba\b" "names the volume"
exits 0 "as JSON" bc status "$T/c" --json
for key in dir uuid state size_bytes line_size lines ram_bytes metadata_bytes dirty_bytes mountpoint; do
	ok "cache.$key" jq -e ".cache | has(\"$key\")" "$T/.out"
done
for key in name backing size_bytes mode state; do
	ok "volumes[].$key" jq -e ".volumes[0] | has(\"$key\")" "$T/.out"
done
is "$(jq -r .volumes[0].size_bytes "$T/.out")" $((4 << 20)) "size of the volume"
is "$(jq -r .volumes[0].backing "$T/.out")" "$T/a.img" "backing of the volume"
stop c
refuses 1 "$T/nowhere" "no such folder" bc status "$T/nowhere"
mkdir "$T/plain"
refuses 1 "$T/plain" "a folder without a cache" bc status "$T/plain"
done_testing
