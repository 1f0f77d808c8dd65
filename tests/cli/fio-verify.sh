#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# fio writes and verifies with random sizes and offsets, a cache much smaller than the volume, all modes and line sizes.
# SOAK=N runs N times as long.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires fio

seed=${SEED:-$RANDOM}
diag "SEED=$seed"
for line in 4K 16K 64K; do
	for mode in wb wt wa wi wo pt; do
		name=$mode-$line
		truncate -s 48M "$T/$name.img"
		new_cache $name 6M --mode $mode --line-size $line --ram 2M --volume v="$T/$name.img"
		load $name
		# Unaligned sizes and offsets (the mount is direct I/O, so they arrive as they are); two jobs, each on its half.
		run fio --filename="$T/$name.mnt/v" --rw=randwrite --bsrange=512-1M --bs_unaligned --size=24M \
			--offset_increment=24M --numjobs=2 --ioengine=psync --direct=0 --verify=crc32c --verify_state_save=0 --verify_backlog=32 \
			--verify_fatal=1 --do_verify=1 --fsync=16 --randseed="$seed" --allow_file_create=0 --loops=$((2 * SOAK)) \
			--group_reporting --name=odd
		is "$status" 0 "$name: odd sizes and offsets"
		[ "$status" = 0 ] || diag "$out" "$err"
		# Many small ones in flight at once.
		run fio --filename="$T/$name.mnt/v" --rw=randwrite --bs=4k --size=48M --ioengine=libaio --iodepth=32 --direct=1 \
			--verify=crc32c --verify_state_save=0 --verify_fatal=1 --do_verify=1 --io_size=24M --loops=$SOAK --randseed="$seed" --allow_file_create=0 \
			--fdatasync=500 --name=deep
		is "$status" 0 "$name: 4 KiB, 32 deep"
		[ "$status" = 0 ] || diag "$out" "$err"
		sum=$(sum "$T/$name.mnt/v")
		stop $name
		is "$(sum "$T/$name.img")" "$sum" "$name: the backing file has it all after stop"
		load $name
		is "$(sum "$T/$name.mnt/v")" "$sum" "$name: the volume reads the same after load"
		stop $name
		rm -r "${T:?}/$name" "$T/$name.img"
	done
done
done_testing
