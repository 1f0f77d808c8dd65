#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# demo.sh - shows blkcache's main job from end to end; run it as `make demo`.
#
# Works in a scratch folder of its own (below TMPDIR or /var/tmp), takes under two minutes and up to 2 GiB there, and takes everything
# back at the end, also when it fails or is interrupted. Needs root, for the loop device and the mounts.
set -euo pipefail
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
top=$(cd "$(dirname "$0")/../.." && pwd)
program=$(realpath "${BLKCACHE:-$top/build/release/blkcache}")
trees=(/usr/include /usr/share/doc)
work=
loop=
step=0

say() {
	step=$((step + 1))
	printf '\n%2d. %s\n' "$step" "$*"
}

# Shows the command and runs it.
do_it() {
	printf '      $ %s\n' "${*/#$program/blkcache}"
	"$@" 2>&1 | sed 's/^/        /'
}

clean_up() {
	code=$?
	trap - EXIT
	trap '' INT TERM
	set +e
	if [ -n "$work" ]; then
		[ -n "${reader:-}" ] && kill "$reader" 2>/dev/null
		for m in "$work/fs" "$work/direct"; do
			mountpoint -q "$m" && { umount "$m" || umount -l "$m"; }
		done
		[ -n "$loop" ] && losetup -d "$loop" 2>/dev/null
		if mountpoint -q "$work/volumes"; then
			timeout 60 "$program" stop "$work/ssd/cache" --no-flush >/dev/null 2>&1
			mountpoint -q "$work/volumes" && umount -l "$work/volumes"
		fi
		rm -rf --one-file-system "$work"
	fi
	[ "$code" = 0 ] || echo "demo: ended early (status $code); it has cleaned up after itself" >&2
	exit "$code"
}

need() {
	[ "$(id -u)" = 0 ] || { echo "demo: the loop device and the mounts need root: run 'sudo make demo'" >&2; exit 1; }
	[ -x "$program" ] || { echo "demo: $program is not there: run 'make' first" >&2; exit 1; }
	[ -e /dev/fuse ] || { echo "demo: no /dev/fuse here: load FUSE with 'modprobe fuse', in a container pass the device in" >&2; exit 1; }
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/blkcache-demo.XXXXXX")
	mkdir "$work"/{disk,ssd,volumes,fs,direct}
}

# Copies what of the trees exists; documentation may be missing in small images. Large trees are cut off at 260 MB.
choose_source() {
	sources=()
	local tree size total=0
	for tree in "${trees[@]}"; do
		[ -d "$tree" ] || continue
		size=$(du -sm --apparent-size "$tree" | cut -f1)
		if [ $((total + size)) -gt 260 ]; then
			echo "      (leaving out $tree: $size MB)"
			continue
		fi
		total=$((total + size))
		sources+=("$tree")
	done
	[ ${#sources[@]} -gt 0 ] || sources=("$top/src" "$top/include")
}

attach() {
	loop=$(losetup --show -f --direct-io=on --sector-size 4096 "$work/volumes/disk")
	echo "      $loop is the volume"
}

detach() {
	losetup -d "$loop"
	loop=
}

# What the sources hold is noted before they are copied, since a living system may change them meanwhile.
note_sources() {
	find "${sources[@]}" -type f -print0 | xargs -0 sha256sum | sed 's|  /|  ./|' >"$work/sums"
	find "${sources[@]}" -type l -printf './%P %l\n' | sort >"$work/links"
}

verify() { # FOLDER
	local tree
	(cd "$1" && sha256sum -c --quiet "$work/sums") || { echo "demo: files below $1 differ from their sources" >&2; exit 1; }
	for tree in "${sources[@]}"; do find "$1$tree" -type l -printf './%P %l\n'; done | sort | cmp - "$work/links" ||
		{ echo "demo: symbolic links below $1 differ from their sources" >&2; exit 1; }
	echo "      $(wc -l <"$work/sums") files and $(wc -l <"$work/links") links are the same as their sources"
}

# Counters are since load; this prints what changed since the last call.
hits=0 misses=0 backing=0
show_counters() {
	local h m b
	read -r h m b < <("$program" stats "$work/ssd/cache" --format json |
		jq -r '.totals | "\(.requests.read_hits) \(.requests.read_misses + .requests.read_partial_misses) \(.bytes.backing_read)"')
	printf '      read hits %d, read misses %d, %d MiB read from the slow disk\n' \
		$((h - hits)) $((m - misses)) $(((b - backing) >> 20))
	hits=$h misses=$m backing=$b
}

# The file system's own page cache is emptied by mounting it anew; where another mount namespace keeps it mounted, by asking.
read_all() {
	umount "$work/fs"
	mount "$loop" "$work/fs"
	sync -f "$work/fs"
	echo 1 >/proc/sys/vm/drop_caches 2>/dev/null || true
	local t0 t1
	show_counters >/dev/null
	t0=$(date +%s%N)
	tar -C "$work/fs" -cf - . | wc -c >"$work/size"
	t1=$(date +%s%N)
	printf '      %d MiB in %d ms\n' $(($(<"$work/size") >> 20)) $(((t1 - t0) / 1000000))
	show_counters
}

main() {
	need
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	choose_source
	echo "blkcache demo, in $work"

	say "A slow disk: a 1 GiB image, behind a delay of 1 ms for each request. A fast SSD: a folder with a 512 MiB cache."
	truncate -s 1G "$work/disk/disk.img"
	do_it "$program" create "$work/ssd/cache" --size 512M --mode wb --volume "disk=delay:read=1ms,write=1ms:$work/disk/disk.img"

	say "Load the cache: the disk appears as a file, the volume."
	do_it "$program" load "$work/ssd/cache" "$work/volumes"
	do_it ls -l "$work/volumes"

	say "A loop device on the volume, an ext4 on it, and ${sources[*]} copied there."
	attach
	do_it mkfs.ext4 -q "$loop"
	do_it mount "$loop" "$work/fs"
	note_sources
	rsync -a --relative "${sources[@]}" "$work/fs/"
	do_it sync -f "$work/fs"
	do_it df -h "$work/fs"

	say "Stop the cache, drop it and make a new one: nothing is cached now, so that reading shows misses first."
	umount "$work/fs"
	detach
	do_it "$program" stop "$work/ssd/cache"
	do_it "$program" create "$work/ssd/cache" --size 512M --mode wb --force --volume "disk=delay:read=1ms,write=1ms:$work/disk/disk.img"
	do_it "$program" load "$work/ssd/cache" "$work/volumes"
	attach
	mount "$loop" "$work/fs"

	say "Read everything the first time: from the slow disk."
	read_all

	say "Read everything the second time: from the cache."
	read_all

	say "Change something, and look at the dirty data this leaves in the cache."
	head -c 8M /dev/urandom >"$work/new"
	do_it cp "$work/new" "$work/fs/new"
	sync -f "$work/fs"
	do_it "$program" status "$work/ssd/cache"

	say "Flush the dirty data to the slow disk, while everything stays in use."
	do_it "$program" flush "$work/ssd/cache"

	say "Stop, and load again: the cache is still warm."
	umount "$work/fs"
	detach
	do_it "$program" stop "$work/ssd/cache"
	do_it "$program" load "$work/ssd/cache" "$work/volumes"
	hits=0 misses=0 backing=0
	attach
	mount "$loop" "$work/fs"
	read_all

	say "Compare every file with its source."
	verify "$work/fs"

	say "Stop, and mount the disk image itself, without blkcache."
	umount "$work/fs"
	detach
	do_it "$program" stop "$work/ssd/cache"
	do_it mount -o loop,ro "$work/disk/disk.img" "$work/direct"
	verify "$work/direct"
	cmp "$work/new" "$work/direct/new" || { echo "demo: the change did not reach the disk image" >&2; exit 1; }
	umount "$work/direct"

	printf '\nDone in %d seconds. It has cleaned up after itself.\n' $SECONDS
}

main "$@"
