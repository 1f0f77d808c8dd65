#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# stats: every key of the contract, counters that count, and the three formats.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
random_file "$T/b.img" 4M
new_cache c 16M --mode wt --volume a="$T/a.img" --volume b="$T/b.img"
load c
head -c 1M "$T/c.mnt/a" >/dev/null
sync "$T/c.mnt/a"
for _ in 1 2 3; do head -c 1M "$T/c.mnt/a" >/dev/null; done
"$TOOLS/ioflags" write "$T/c.mnt/a" 0 65536 1 dsync >/dev/null || bail "write"
fallocate -p -o 2M -l 64K "$T/c.mnt/a" || bail "discard"

exits 0 "stats as JSON" bc stats "$T/c" --format json
cp "$T/.out" "$T/json"
ok "parses" jq -e . "$T/json"
while read -r path keys; do
	for key in $keys; do
		ok "$path.$key is a number" jq -e "$path.$key | type == \"number\"" "$T/json"
	done
done <<'KEYS'
.cache size_bytes line_size lines ram_bytes metadata_bytes
.usage occupied_lines free_lines clean_lines dirty_lines
.volumes[0] size_bytes
.volumes[0].usage occupied_lines clean_lines dirty_lines
.volumes[0].requests read_hits read_partial_misses read_misses write_hits write_partial_misses write_misses pass_through_reads pass_through_writes flushes discards
.volumes[0].bytes volume_read volume_written ram_read cache_read cache_written backing_read backing_written
.volumes[0].errors cache_read cache_write backing_read backing_write checksum
.volumes[0].latency_us.read_hit count p50 p99 max
.volumes[0].latency_us.read_miss count p50 p99 max
.volumes[0].latency_us.write count p50 p99 max
.volumes[0].latency_us.flush count p50 p99 max
.totals.usage occupied_lines clean_lines dirty_lines
.totals.requests read_hits read_partial_misses read_misses write_hits write_partial_misses write_misses pass_through_reads pass_through_writes flushes discards
.totals.bytes volume_read volume_written ram_read cache_read cache_written backing_read backing_written
.totals.errors cache_read cache_write backing_read backing_write checksum
.totals.latency_us.read_hit count p50 p99 max
KEYS
while read -r path keys; do
	for key in $keys; do
		ok "$path.$key is text" jq -e "$path.$key | type == \"string\"" "$T/json"
	done
done <<'KEYS'
.cache dir uuid state
.volumes[0] name backing mode state
KEYS

j() { jq -r "$1" "$T/json"; }
ok "reads were counted" test "$(j '.volumes[0].bytes.volume_read')" -ge $((4 << 20))
is "$(j '.volumes[0].bytes.volume_written')" 65536 "written bytes are exact"
ok "the first read missed" test "$(j '.volumes[0].requests.read_misses')" -gt 0
ok "the later ones hit" test "$(j '.volumes[0].requests.read_hits')" -gt 0
ok "the backing device was read about once" test "$(j '.volumes[0].bytes.backing_read')" -le $((3 << 20))
ok "the discard was counted" test "$(j '.volumes[0].requests.discards')" -ge 1
is "$(j '.volumes[1].bytes.volume_read')" 0 "the other volume was not touched"
is "$(j '.usage.occupied_lines + .usage.free_lines')" "$(j .cache.lines)" "occupied and free lines make up the cache"
is "$(j '.usage.clean_lines + .usage.dirty_lines')" "$(j .usage.occupied_lines)" "clean and dirty lines make up the occupied"
is "$(j '[.volumes[].bytes.volume_read] | add')" "$(j .totals.bytes.volume_read)" "the totals are sums"
ok "latencies are in order" jq -e '.volumes[0].latency_us.read_hit | .count > 0 and .p50 <= .p99 and .p99 <= .max * 1.07' "$T/json"

exits 0 "one volume only" bc stats "$T/c" b --format json
is "$(jq -r '[.volumes[].name] | join(",")' "$T/.out")" b "just that"
refuses 1 "nosuch" "an unknown volume" bc stats "$T/c" nosuch
exits 0 "as a table" bc stats "$T/c"
like "$out" "\ba\b" "with the volume's name"
exits 0 "--format table is the same" bc stats "$T/c" --format table
exits 64 "an unknown format" bc stats "$T/c" --format yaml

exits 0 "for Prometheus" bc stats "$T/c" --format prometheus
bad=$(grep -vE '^(# (HELP|TYPE) [a-zA-Z_:][a-zA-Z0-9_:]* .+|[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\]|\\.)*",?)*\})? ([-+0-9.eE]+|NaN|[+-]Inf))$' "$T/.out")
is "$bad" "" "every line is well formed"
is "$(grep -E '^# TYPE' "$T/.out" | sort | uniq -d)" "" "each metric has one TYPE line"
ok "names begin with blkcache_" test "$(grep -v '^#' "$T/.out" | grep -vc '^blkcache_')" = 0
like "$out" 'volume="a"' "volumes are labels"
# Histograms: buckets only grow, the last is the count, and the sum is about count times a time between 0 and the maximum.
hist() { grep "^blkcache_request_duration_seconds_$1{.*volume=\"a\",op=\"read_hit\"" "$T/.out" | sed 's/.* //'; }
ok "buckets are cumulative" awk '$1 < last { exit 1 } { last = $1 }' <(hist bucket)
is "$(hist bucket | tail -n 1)" "$(hist count)" "the bucket +Inf has them all"
ok "something was timed" test "$(hist count)" -gt 0
ok "the sum fits the maximum" awk -v sum="$(hist sum)" -v n="$(hist count)" -v max="$(jq '.volumes[0].latency_us.read_hit.max' "$T/json")" \
	'BEGIN { exit !(sum > 0 && sum <= n * max / 1e6 * 10) }'

# The manual page has every counter, and its section is what counters.h makes.
root=$(dirname "$0")/../..
for key in $(jq -r '.totals | .requests, .bytes, .errors, .latency_us | keys[]' "$T/json"); do
	ok "the manual page has $key" grep -qx "\.B $key" "$root/contrib/man/blkcache.1"
done
ok "and its section is up to date (make man)" diff "$BUILD/counters.man" \
	<(sed -n '/counters:begin/,/counters:end/{/counters:/!p}' "$root/contrib/man/blkcache.1")
stop c
refuses 1 "$T/c.*not loaded.*blkcache status" "stats of a stopped cache" bc stats "$T/c"
exits 0 "as JSON" bc stats "$T/c" --format json
is "$(jq -r .cache.state <<<"$out")" stopped "they say that it is stopped"
exits 0 "for Prometheus" bc stats "$T/c" --format prometheus
like "$out" 'blkcache_state\{.*state="stopped"\} 1' "they do, too"
like "$out" 'blkcache_up\{.*\} 0' "and that nobody serves it"
like "$out" '^blkcache_size_bytes' "what is known is there"
unlike "$out" '^blkcache_requests_total' "counters are not"
run bc stats "$T/nowhere" --format prometheus
is "$status" 1 "no cache there"
like "$out" 'blkcache_up\{.*\} 0' "is told to a collector as well"

# many volumes, and nothing asked for yet
options=()
for i in 1 2 3 4 5 6 7 8 9; do options+=(--volume "volume-with-a-long-name-$i=null:size=${i}M"); done
new_cache many 4M "${options[@]}"
load many
exits 0 "a table of many volumes" bc stats "$T/many"
is "$(grep -c '^volume-with-a-long-name-[1-9] ' <<<"$out")" 9 "has a row for each"
ok "and fits on a screen" test "$(awk '{ if (length($0) > n) n = length($0) } END { print n }' <<<"$out")" -lt 120
like "$out" "^  read +-$" "without requests there is no hit ratio"
unlike "$out" "0.0 %" "not even one of 0"
stop many
done_testing
