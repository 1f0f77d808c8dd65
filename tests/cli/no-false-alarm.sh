#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# P10 must not cry wolf: whatever we do to a backing device ourselves, and wherever a kill ends it, the next load takes the device for
# what it is. All modes, switched under load, sizes that are no multiple of a block, discards; one volume on a file, one on a loop device
# where there are any.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/f.img" 5000001
volumes=(--volume f="$T/f.img")
names=(f)
truncate -s 8M "$T/l.img"
if [ "$(id -u)" = 0 ] && dev=$(losetup --show -f "$T/l.img" 2>/dev/null); then
	volumes+=(--volume l="$dev")
	names+=(l)
fi
new_cache c 2M --mode wb "${volumes[@]}" # smaller than what is written: lines come and go
must bc set "$T/c" clean-after=1s

load_it() { # COMMENT
	"$BLKCACHE" load "$T/c" "$T/c.mnt" -f >"$T/c.log" 2>&1 </dev/null &
	daemon=$!
	wait_for "$LIMIT" is_up_or_gone c
	if ! is_up c >/dev/null 2>&1; then
		bail "$1: loads" "$(tail -n 5 "$T/c.log")"
	fi
	if grep -qE 'changed|not what the cache|another|modified|written to while' "$T/c.log"; then
		fail "$1: nobody but us was there" "$(cat "$T/c.log")"
	else
		pass "$1: nobody but us was there"
	fi
}

# Writes of all sizes, at places that come again, with discards and flushes between.
work() { # FILE
	local n=0 size
	size=$(stat -c %s "$1")
	while :; do
		n=$((n + 1))
		dd if=/dev/urandom of="$1" bs=$((512 + RANDOM % 40000)) count=1 seek=$((RANDOM % (size / 41000))) conv=notrunc \
			status=none 2>/dev/null || return 0
		[ $((n % 7)) = 0 ] && fallocate -p -o $((RANDOM * 64)) -l $((RANDOM * 8 + 1)) "$1" 2>/dev/null
		[ $((n % 5)) = 0 ] && sync "$1" 2>/dev/null
	done
}

mkdir "$T/c.mnt"
load_it "first"
cat "$T/c.mnt"/* >/dev/null
modes=(wb wt wa wi wo pt wb)
for ((i = 0; i < 6; i++)); do
	workers=()
	for v in "${names[@]}"; do
		must bc set "$T/c" "$v" mode="${modes[i]}"
		work "$T/c.mnt/$v" &
		workers+=($!)
	done
	sleep 1.$((RANDOM % 10))
	if [ $((i % 2)) = 1 ]; then
		for v in "${names[@]}"; do
			bc set "$T/c" "$v" mode="${modes[i + 1]}" >/dev/null
		done
		sleep 0.$((RANDOM % 10))
	fi
	kill_hard c
	for pid in "${workers[@]}"; do
		kill "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	load_it "killed in mode ${modes[i]}"
done

# stopped in order, with dirty data and without; and left in peace until the rows have settled
"$TOOLS/ioflags" write "$T/c.mnt/f" 4096 8192 1 dsync >/dev/null || bail "write"
exits 3 "stop --no-flush" bc stop "$T/c" --no-flush
wait "$daemon" 2>/dev/null
load_it "after stop --no-flush"
sleep 2.5
kill_hard c
load_it "killed when all was quiet"
exits 0 "stop" bc stop "$T/c"
wait "$daemon" 2>/dev/null
load_it "after stop"
exits 0 "stop" bc stop "$T/c"
done_testing
