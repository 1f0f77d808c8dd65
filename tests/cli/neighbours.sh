#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# neighbours.sh - one volume hangs, the others do not notice (P11). A matrix: down, what the backing device of volume `sick` does not
# answer (device hang:, held by a file with the name of that kind of I/O); across, everything that does not need it. Every cell has
# CELL seconds; a hang lasts until its file is removed, so what answers at all does not wait for it.
. "$(dirname "$0")/lib.sh"
requires_fuse
requires fallocate dd

CELL=${CELL:-3} # what is promised is one; machines that run tests are busy
kinds="read write flush clean discard open close identity"
probes="hit miss write fsync discard status stats set mode sick_mode add remove epoch"
# KIND:PROBE that cannot be had yet
left_out=" "

export BLKCACHE_CONF=$T/conf
printf '[daemon]\npatience = 2s\n' >"$BLKCACHE_CONF"
block() { # FILE N [dd options]: writes block N with the letter x
	head -c 4096 /dev/zero | tr '\0' "${letter:-x}" | dd of="$1" bs=4096 seek="$2" conv=notrunc status=none "${@:3}"
}

set_up() {
	mkdir -p "$T/hang" "$T/spare.d"
	rm -f "$T"/*.img "$T"/r.*
	truncate -s 16M "$T/spare.d/img" "$T/well.img" "$T/sick.img" "$T/through.img" "$T/new.img" "$T/old.img" "$T/other.img"
	new_cache c 8M --mode wb --volume "well=$T/well.img" --volume "sick=hang:dir=$T/hang:$T/sick.img" \
		--volume "through=$T/through.img" --volume "old=$T/old.img" --volume "other=hang:dir=$T/hang:$T/other.img"
	must bc set "$T/c" through mode=wt
	load c
	m=$T/c.mnt
	exec 7<>"$m/well" # its look-up and open are cells of their own below
	block "$m/well" 1 conv=notrunc,fsync
	block "$m/old" 1
	[[ $1 = clean || $1 = close ]] || must bc set "$T/c" sick mode=wt
	[[ $1 = clean ]] && block "$m/sick" 1
	[[ $1 = flush || $1 = identity ]] && block "$m/sick" 1
	return 0
}

# Something that needs the sick device; in the background, until it is let go.
fall_ill() {
	touch "$T/hang/$1"
	case $1 in
	read) dd if="$m/sick" of=/dev/null bs=4096 skip=100 count=1 iflag=direct status=none ;;
	write) block "$m/sick" 100 ;;
	flush) dd if=/dev/null of="$m/sick" conv=notrunc,fsync status=none ;;
	clean)
		touch "$T/hang/write"
		bc flush "$T/c" sick
		;;
	discard) fallocate -p -o 1M -l 1M "$m/sick" ;;
	open) bc add "$T/c" "x=hang:dir=$T/hang:$T/new.img" ;;
	close) bc remove "$T/c" other ;;
	identity) sleep 3 ;; # it is looked at when nothing was written for a while
	esac >/dev/null 2>&1
}

probe() {
	case $1 in
	hit) dd if=/dev/fd/7 of=/dev/null bs=4096 skip=1 count=1 iflag=direct status=none ;;
	miss) dd if="$m/well" of=/dev/null bs=4096 skip=200 count=1 iflag=direct status=none ;;
	write) block "$m/well" 300 && block "$m/through" 300 ;;
	fsync) block "$m/well" 301 conv=notrunc,fsync && block "$m/through" 301 conv=notrunc,fsync ;;
	discard) fallocate -p -o 2M -l 64K "$m/well" && fallocate -p -o 2M -l 64K "$m/through" ;;
	status) bc status "$T/c" ;;
	stats) bc stats "$T/c" ;;
	set) bc set "$T/c" clean-after=31s ;;
	mode) bc set "$T/c" well mode=wo && bc set "$T/c" well mode=wb ;;
	sick_mode) bc set "$T/c" sick mode=wi ;;
	add) bc add "$T/c" "added=$T/spare.d/img" && [ -e "$m/added" ] ;;
	remove) bc remove "$T/c" old && ! [ -e "$m/old" ] ;;
	esac
}

# Runs a probe in the background; its time in milliseconds goes to r.PROBE, if it succeeds.
start_probe() {
	local t0 t1
	t0=$(date +%s%N)
	probe "$1" >"$T/o.$1" 2>&1 || return
	t1=$(date +%s%N)
	echo $(((t1 - t0) / 1000000)) >"$T/r.$1"
}

cell() { # KIND PROBE MILLISECONDS
	[[ $left_out = *" $1:$2 "* ]] && return
	if [ -n "$3" ] && [ "$3" -lt $((CELL * 1000)) ]; then
		pass "$1 hangs: $2 goes on"
	else
		fail "$1 hangs: $2 goes on" "${3:-no answer} ms" "$(cat "$T/o.$2" 2>/dev/null)"
	fi
}

# What is written and not flushed is durable after an epoch, and kill -9 ends the daemon whatever hangs.
epoch_and_kill() { # KIND
	local pid
	letter=e block "$m/well" 400
	sleep 2.5
	pid=$(cut -d' ' -f1 "$T/c/lock")
	kill -9 "$pid"
	exec 7<&-
	rm -rf "$T/hang"
	wait_for 20 is_dead "$pid" || fail "$1 hangs: kill -9 ends the daemon" "$(grep State "/proc/$pid/status")"
	timeout 30 umount -l "$m"
	wait
	mkdir "$T/hang"
	load c
	cell "$1" epoch "$([ "$(dd if="$m/well" bs=4096 skip=400 count=1 status=none | tr -d e | wc -c)" = 0 ] && echo 0)"
}

is_dead() {
	! [ -e "/proc/$1" ] || grep -q '^State:.*Z' "/proc/$1/status"
}

for kind in $kinds; do
	set_up "$kind"
	fall_ill "$kind" &
	sleep 0.7
	[ "$kind" = identity ] && sleep 3
	for p in $probes; do
		[ "$p" = epoch ] || start_probe "$p" &
	done
	sleep "$CELL"
	for p in $probes; do
		[ "$p" = epoch ] || cell "$kind" "$p" "$(cat "$T/r.$p" 2>/dev/null)"
	done
	epoch_and_kill "$kind"
	stop c
	rm -rf "$T/c" "$T/hang"
done

done_testing
