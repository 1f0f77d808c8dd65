#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# boot.sh - runs blkcache on the stock kernel of Debian 12 (6.1) in qemu, emulated (TCG): no KVM, no network in the guest. What the
# host needs is in contrib/packages.kernel.debian.
#
#	boot.sh build                   root file system, kernel, initramfs: below $W (default /var/tmp/blkcache-kernel), with a clone of this checkout
#	boot.sh task NAME [SECONDS]     boots, runs guest/NAME.sh, powers off; console in out/NAME.log, what it left in /results in out/NAME/.
#	                                Fails unless the guest's script ended with status 0.
#	boot.sh powercut N KIND [DIR]   N times: boot, recover, check, write; then SIGKILL for the machine. KIND says what the two disks are:
#	                                  none, writeback   host files with that cache mode of qemu: what was sent to the disk stays
#	                                  volatile          disks with a cache that loses a random part of what was not flushed (volatile.c)
#	                                  control           the same, but from the second cycle on they lie about flushes: losses must be found
#
# The guest: root (throw-away: snapshot=on), vdb "ssd", vdc "disk" (4 GiB each), vdd: a tar of guest/, vde: a tar of the results.
# Environment: SMP, MEM, ACCEL, CPU, EXTRA (more options of qemu). To count instructions: guest/peers.sh.
# ttyS0 is the console, ttyS1 goes to a file: what the guest said there is known outside even if it dies the moment after.
set -eu
W=${W:-/var/tmp/blkcache-kernel}
HERE=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
SMP=${SMP:-2} MEM=${MEM:-4G} ACCEL=${ACCEL:-tcg,thread=multi} CPU=${CPU:-max}
mkdir -p "$W/out" "$W/deb"
cd "$W"

# ---- root file system ----

build() {
	local repo version sources=/etc/apt/sources.list # this machine's own
	[ -s "$sources" ] || sources=$(find /etc/apt/sources.list.d -name '*.sources' | head -n 1)
	repo=$(git -C "$HERE" rev-parse --show-toplevel)
	if [ ! -d root ]; then
		mmdebstrap --variant=minbase --include="$(grep -v '^#' "$repo/contrib/packages.debian" | tr '\n' ',')kmod,udev,dmsetup,bcache-tools,git,strace" \
			bookworm root "$sources"
	fi
	if [ ! -d kernel ]; then # unpacked, not installed
		(cd deb && apt-get download "$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -n 1)" busybox-static)
		dpkg-deb -x deb/linux-image-*.deb kernel
		dpkg-deb -x deb/busybox-static*.deb bb
	fi
	version=$(basename kernel/boot/vmlinuz-* | sed s/vmlinuz-//)
	mkdir -p root/lib/modules
	cp -a kernel/lib/modules/. root/lib/modules/
	chroot root depmod "$version"

	# a clean clone, built in the guest's own user land
	rm -rf root/root/blkcache
	git clone -q "$repo" root/root/blkcache
	# shellcheck disable=SC2016
	chroot root sh -c 'cd /root/blkcache && LC_ALL=C make -j"$(nproc)" && LC_ALL=C make -j"$(nproc)" tests'

	grep -q '^user:' root/etc/passwd || chroot root useradd -m user
	cp "$HERE/guest/init" root/sbin/guest-init
	chmod 755 root/sbin/guest-init
	rm -f root.img
	truncate -s 6G root.img
	mke2fs -q -t ext4 -d root root.img
	initramfs "$version"
}

# busybox and what a virtio disk with an ext4 needs; Debian has these as modules
initramfs() {
	rm -rf ir && mkdir -p ir/bin ir/proc ir/sys ir/dev ir/root ir/m
	cp bb/bin/busybox ir/bin/
	local m f n=0
	for m in virtio_pci virtio_blk ext4 crc32c_generic; do
		chroot root modprobe --show-depends -S "$1" "$m" | sed -n 's/^insmod //p'
	done | awk '!seen[$1]++' | while read -r f; do
		n=$((n + 1))
		cp "root/$f" "$(printf 'ir/m/%02d.ko' "$n")"
	done
	cat >ir/init <<-'END'
		#!/bin/busybox sh
		/bin/busybox mount -t proc none /proc
		/bin/busybox mount -t devtmpfs none /dev
		for m in /m/*.ko; do /bin/busybox insmod $m; done
		while [ ! -b /dev/vda ]; do /bin/busybox sleep 0.1; done
		/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox sh
		/bin/busybox mount -o move /dev /root/dev
		/bin/busybox umount /proc
		exec /bin/busybox switch_root /root /sbin/guest-init
	END
	chmod 755 ir/init
	(cd ir && find . | cpio -o -H newc --quiet | gzip -1) >initrd.gz
}

# ---- boots ----

# machine NAME SSD DISK [QEMU OPTIONS...]: the console goes to out/NAME.log, ttyS1 to out/NAME.rec
machine() {
	local name=$1 ssd=$2 disk=$3
	shift 3
	tar -C "$HERE/guest" -cf "out/$name.in" .
	truncate -s %1M "out/$name.in"
	rm -f "out/$name.res"
	truncate -s 64M "out/$name.res"
	# shellcheck disable=SC2086
	TMPDIR=$W exec qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -accel "$ACCEL" -cpu "$CPU" -smp "$SMP" -m "$MEM" \
		-kernel kernel/boot/vmlinuz-* -initrd initrd.gz -append "console=ttyS0 panic=1 quiet no_timer_check guest=$name $APPEND" \
		-drive file=root.img,format=raw,if=virtio,snapshot=on,cache=unsafe -drive "$ssd,if=virtio,format=raw" -drive "$disk,if=virtio,format=raw" \
		-drive "file=out/$name.in,format=raw,if=virtio,readonly=on" -drive "file=out/$name.res,format=raw,if=virtio,cache=unsafe" \
		-device virtio-rng-pci -serial "file:out/$name.log" -serial "file:out/$name.rec" ${EXTRA:-} "$@"
}

task() {
	local name=$1 rc=0
	APPEND=${APPEND:-}
	rm -f "out/$name.ssd" "out/$name.disk"
	truncate -s 4G "out/$name.ssd" "out/$name.disk"
	# unsafe: the guest's flushes are not the host's; they need not be here, and take long on a busy host
	(machine "$name" "file=out/$name.ssd,cache=unsafe" "file=out/$name.disk,cache=unsafe") &
	local pid=$! end=$((SECONDS + ${2:-3000}))
	while kill -0 $pid 2>/dev/null && [ $SECONDS -lt $end ]; do sleep 1; done
	if kill -0 $pid 2>/dev/null; then
		echo "boot.sh: $name took longer than ${2:-3000} s: killed" >&2
		kill -9 $pid
		rc=124
	fi
	wait $pid 2>/dev/null || rc=$?
	rm -rf "out/$name" && mkdir "out/$name"
	tar -C "out/$name" -xf "out/$name.res" 2>/dev/null || true
	rm -f "out/$name.ssd" "out/$name.disk" "out/$name.res" "out/$name.in"
	echo "$name: $(($(date +%s) - START)) s, status $rc"
	grep -a '^RESULT' "out/$name.log" || true
	[ $rc != 0 ] || grep -qa '^RESULT task ended: status 0' "out/$name.log" || rc=1
	return $rc
}

# ---- power cuts ----

# wait_for_line FILE REGEX SECONDS PID
wait_for_line() {
	local end=$((SECONDS + $3))
	until grep -qaE "$2" "$1" 2>/dev/null; do
		kill -0 "$4" 2>/dev/null || return 1
		[ $SECONDS -lt $end ] || return 1
		sleep 0.2
	done
}

powercut() {
	local n=$1 kind=$2 d=${3:-pc-$2} i ssd disk pid nbd=() f seconds start target lie bad=0
	mkdir -p "out/$d"
	gcc -O2 -Wall -static -pthread -o "$W/recorder.new" "$HERE/guest/recorder.c" && mv "$W/recorder.new" "$HERE/guest/recorder"
	if [[ $kind = volatile || $kind = control ]]; then
		gcc -O2 -Wall -shared -fPIC -o volatile.so.new "$HERE/volatile.c" && mv volatile.so.new volatile.so # one may be in use
	fi
	for f in ssd disk; do
		[ -e "out/$d/$f.img" ] || truncate -s 4G "out/$d/$f.img"
	done
	: >>"out/$d/all.rec"
	for i in $(seq 0 "$n"); do # the last one only checks
		ssd="file=out/$d/ssd.img,cache=$kind" disk="file=out/$d/disk.img,cache=$kind" nbd=()
		if [[ $kind = volatile || $kind = control ]]; then
			lie=$([ "$kind" = control ] && [ "$i" -gt 0 ] && echo 1 || echo 0)
			for f in ssd disk; do
				rm -f "out/$d/$f.sock"
				nbdkit -f -U "$PWD/out/$d/$f.sock" ./volatile.so file="$PWD/out/$d/$f.img" seed="$RANDOM" lie="$lie" 2>>"out/$d/nbdkit.log" &
				nbd+=($!)
			done
			sleep 1
			ssd="file=nbd+unix:///?socket=$PWD/out/$d/ssd.sock,cache=writeback" disk="file=nbd+unix:///?socket=$PWD/out/$d/disk.sock,cache=writeback"
		fi
		APPEND="guesttask=power guestcycle=$i guestlast=$([ "$i" = "$n" ] && echo 1 || echo 0)"
		(machine "$d.$i" "$ssd" "$disk") &
		pid=$!
		if [ "$i" = "$n" ]; then
			wait $pid || true
		elif wait_for_line "out/$d.$i.rec" '^GO' 900 $pid; then
			# some way into the writing, counted in what was recorded, as machines differ; then a moment more
			target=$((20 + RANDOM % 400)) start=$SECONDS
			until [ "$(grep -caE '^[RN] ' "out/$d.$i.rec")" -ge $target ] || [ $((SECONDS - start)) -gt 150 ]; do sleep 0.2; done
			sleep 0.$((RANDOM % 10))$((RANDOM % 10))
			seconds=$((SECONDS - start))
			kill -9 $pid # the power cut
			wait $pid 2>/dev/null || true
		else
			echo "cycle $i: the guest did not get to writing: out/$d.$i.log" >&2
			kill -9 $pid 2>/dev/null || true
			bad=1
		fi
		for f in "${nbd[@]}"; do # with the connection gone: loses a part of what was not flushed
			kill -TERM "$f"
			wait "$f" 2>/dev/null || true
		done
		python3 "$HERE/compare.py" "out/$d/all.rec" "out/$d.$i.rec" | sed "s/^/cycle $i (${seconds:-} s): /" | tee -a "out/$d/verdict"
		cat "out/$d.$i.rec" >>"out/$d/all.rec"
		rm -f "out/$d.$i.res" "out/$d.$i.in"
		[ $bad = 0 ] || return 1
	done
	# "control" is the test of the test: with disks that lie about flushes it has to see losses
	if [ "$kind" = control ]; then
		grep -qE 'LOST|BAD' "out/$d/verdict"
	else
		if grep -E 'LOST|BAD' "out/$d/verdict"; then return 1; fi
	fi
}

START=$(date +%s)
"$@"
