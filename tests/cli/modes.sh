#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# M1-M6: what each mode does with the cache and the backing, and switching live under I/O.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires fio

vstat() { stat_of "$1" ".volumes[0].$2"; }
for mode in wt wb wa wi wo pt; do
	random_file "$T/$mode.img" 4M
	cp "$T/$mode.img" "$T/want"
	new_cache $mode 8M --mode $mode --volume v="$T/$mode.img"
	must bc set "$T/$mode" clean-after=1000s
	load $mode
	vol=$T/$mode.mnt/v

	head -c 1M "$vol" >/dev/null
	sync -d "$vol"
	wait_for 10 test "$(vstat $mode usage.occupied_lines)" -gt 0
	case $mode in
	wt | wb | wa | wi) ok "$mode: a read miss fills the cache" test "$(vstat $mode usage.clean_lines)" -gt 0 ;;
	wo | pt) is "$(vstat $mode usage.occupied_lines)" 0 "$mode: a read miss fills nothing" ;;
	esac
	"$TOOLS/ioflags" write "$vol" $((2 << 20)) 65536 7 >/dev/null || bail "write"
	case $mode in
	wb | wo)
		ok "$mode: a write makes lines dirty" test "$(vstat $mode usage.dirty_lines)" -gt 0
		ok "$mode: and does not reach the backing yet" cmp -i $((2 << 20)) -n 65536 "$T/$mode.img" "$T/want"
		;;
	*)
		is "$(vstat $mode usage.dirty_lines)" 0 "$mode: a write leaves nothing dirty"
		ok "$mode: it is in the backing when it returns" "$TOOLS/ioflags" expect "$T/$mode.img" $((2 << 20)) 65536 7
		;;
	esac
	ok "$mode: reads back" "$TOOLS/ioflags" expect "$vol" $((2 << 20)) 65536 7
	"$TOOLS/ioflags" write "$vol" 4096 8192 8 >/dev/null || bail "write"
	ok "$mode: a write over read data reads back" "$TOOLS/ioflags" expect "$vol" 4096 8192 8
	if [ $mode = pt ]; then
		ok "pt: counts pass-through" test "$(vstat pt requests.pass_through_reads)" -gt 0 -a "$(vstat pt requests.pass_through_writes)" -gt 0
	fi
	stop $mode
	ok "$mode: after stop it is in the backing file" "$TOOLS/ioflags" expect "$T/$mode.img" $((2 << 20)) 65536 7
	ok "$mode: that too" "$TOOLS/ioflags" expect "$T/$mode.img" 4096 8192 8
done

# Live switching under a verified load.
truncate -s 32M "$T/live.img"
new_cache live 8M --mode wb --line-size 16K --ram 2M --volume v="$T/live.img"
load live
# Not time_based: fio 3.33 then reports false mismatches, on a plain file too.
fio --name=v --filename="$T/live.mnt/v" --rw=randwrite --bsrange=512-128k --bs_unaligned --size=32M --loops=$((8 * SOAK)) \
	--rate=64m,64m --verify=crc32c --verify_state_save=0 --verify_backlog=64 --verify_fatal=1 --ioengine=psync --direct=0 \
	--randseed="$RANDOM" --allow_file_create=0 >"$T/fio.out" 2>&1 &
fio=$!
bad=0 switches=0
while kill -0 $fio 2>/dev/null; do
	for mode in wt wo wi wb pt wa wb; do
		bc set "$T/live" v mode=$mode >"$T/.out" 2>&1 || { bad=$((bad + 1)); diag "$(<"$T/.out")"; }
		switches=$((switches + 1))
		sleep 0.2
	done
done
wait $fio
status=$?
is $status 0 "data stays right while the mode is switched"
[ "$status" = 0 ] || diag "$(tail -n 20 "$T/fio.out")"
is $bad 0 "every one of $switches switches succeeds"
sum=$(sum "$T/live.mnt/v")
stop live
is "$(sum "$T/live.img")" "$sum" "the backing file equals what the volume read last"
done_testing
