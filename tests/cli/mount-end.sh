#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What ends is our mount, not whatever lies at its name by then: file systems mounted over it or over a folder above it, moved and
# renamed mount points, copies of the mount. The daemon is asked by `stop` and by a signal.
# shellcheck disable=SC2016,SC2317,SC2013 # for inner shells; called by others
. "$(dirname "$0")/lib.sh"
requires_root
requires_fuse
requires setpriv unshare findmnt

# A private mount of its own below everything, so that mounts can be moved, and nothing spreads.
mkdir "$T/w"
must mount -t tmpfs none "$T/w"
must mount --make-private "$T/w"
truncate -s 4M "$T/a.img"
new_cache c 8M --volume a="$T/a.img" --mode wb
m=$T/w/m
mkdir "$m"

mounts_at() { # PATH: file system types there, the lowest first
	awk -v m="$1" '$5 == m { for (i = 7; $i != "-"; i++); print $(i + 1) }' /proc/self/mountinfo | xargs
}

ours() {
	awk -v top="$T/" 'index($5, top) == 1 && / - fuse\.blkcache / { print $5 }' /proc/self/mountinfo | xargs
}

gone() {
	! kill -0 "$1" 2>/dev/null
}

start() {
	mkdir -p "$m"
	must bc load "$T/c" "$m"
	pid=$(status_of c .cache.pid)
	[ "$pid" != null ] || pid=$(cut -d' ' -f1 "$T/c/lock")
}

ends_by_signal() { # NAME
	kill -TERM "$pid"
	ok "$1" wait_for 20 gone "$pid"
}

is_precious() { # FOLDER NAME
	is "$(cat "$1/file" 2>&1)" precious "$2"
}

put_tmpfs() { # FOLDER
	must mount -t tmpfs other "$1"
	echo precious >"$1/file"
}

start
is "$(findmnt -n -o SOURCE "$m")" "$T/c" "the source of the mount is the cache's folder"

echo "# a file system over the mount point"
dd if=/dev/urandom of="$m/a" bs=64k count=1 conv=notrunc status=none
put_tmpfs "$m"
refuses 1 "$m.*mounted over it.*umount $m.*nothing was stopped" "stop refuses, and says what lies there" bc stop "$T/c"
is_precious "$m" "it was not unmounted"
is "$(status_of c .cache.state)" running "nothing was stopped"
must umount "$m"
ok "below it the volumes work" dd if="$m/a" of=/dev/null bs=64k status=none
exits 0 "and can be stopped afterwards" bc stop "$T/c"
is "$(ours)" "" "nothing is left"

start
put_tmpfs "$m"
ends_by_signal "a signal ends the daemon all the same"
is_precious "$m" "and leaves the other file system alone"
must umount "$m"
is "$(mounts_at "$m")" fuse.blkcache "below it lies what is left of ours"
ok "which can be unmounted" umount "$m"

echo "# a file system over a folder above the mount point"
mkdir -p "$T/w/up/m"
m=$T/w/up/m
start
put_tmpfs "$T/w/up"
refuses 1 "$m.*hides it.*umount $T/w/up'" "stop refuses, and names what hides the mount" bc stop "$T/c"
is "$(status_of c .cache.state)" running "nothing was stopped"
mkdir "$m" && put_tmpfs "$m"
refuses 1 "hides it" "also if the name leads to another mount there" bc stop "$T/c"
is_precious "$m" "which stays"
ends_by_signal "a signal ends the daemon"
is_precious "$m" "and leaves the other mount alone"
is_precious "$T/w/up" "and the one above"
must umount "$m"
must umount "$T/w/up"
must umount "$m"

echo "# a file system inside: over a volume's file"
m=$T/w/m
start
echo precious >"$T/w/precious"
must mount --bind "$T/w/precious" "$m/a"
refuses 1 "inside it.*$m/a" "stop refuses" bc stop "$T/c"
ends_by_signal "a signal ends the daemon"
is "$(mounts_at "$m/a")" tmpfs "and leaves it there"
umount -l "$m"

echo "# moved and renamed"
start
mkdir "$T/w/elsewhere"
must mount --move "$m" "$T/w/elsewhere"
put_tmpfs "$m"
exits 0 "stop finds a mount that was moved" bc stop "$T/c"
is_precious "$m" "and leaves alone what is at its old place"
is "$(ours)" "" "nothing of ours is left"
must umount "$m"

mkdir -p "$T/w/folder/m"
m=$T/w/folder/m
start
mv "$T/w/folder" "$T/w/renamed"
mkdir -p "$m"
put_tmpfs "$m"
ends_by_signal "a signal ends a daemon whose mount point got another name"
is_precious "$m" "what is at its old name stays"
is "$(ours)" "" "nothing of ours is left"
must umount "$m"

echo "# copies of the mount"
m=$T/w/m
mkdir "$T/w/copy"
start
must mount --bind "$m" "$T/w/copy"
touch "$T/w/one"
must mount --bind "$m/a" "$T/w/one"
put_tmpfs "$T/w/copy"
refuses 1 "$T/w/copy.*mounted over it" "stop refuses if something lies over a copy" bc stop "$T/c"
is "$(ours | wc -w)" 3 "all copies are still there"
must umount "$T/w/copy"
cd "$T/w/copy" || exit 99
refuses 1 "$T/w/copy.*in use" "stop refuses if a copy is in use" bc stop "$T/c"
cd "$T" || exit 99
exits 0 "else stop unmounts the copies, too" bc stop "$T/c"
is "$(ours)" "" "none is left dead"

start
must mount --bind "$m" "$m"
exits 0 "a copy over the mount itself is no stranger" bc stop "$T/c"
is "$(ours)" "" "both are gone"

echo "# unmounted by somebody, alive in a copy"
start
must mount --bind "$m" "$T/w/copy"
must umount "$m"
put_tmpfs "$m"
exits 0 "stop" bc stop "$T/c"
is_precious "$m" "what was mounted there since stays"
is "$(ours)" "" "the copy is gone"
must umount "$m"

echo "# a mount that another daemon took over"
mkdir -p "$m"
run bc load "$T/c" "$m" --survive
if [ "$status" = 0 ]; then
	pid=$(status_of c .cache.pid)
	must mount --move "$m" "$T/w/elsewhere"
	kill -9 "$pid"
	taken_over() {
		local now
		now=$(status_of c .cache.pid)
		[ -n "$now" ] && [ "$now" != "$pid" ]
	}
	ok "it is taken over" wait_for 30 taken_over
	put_tmpfs "$T/w/elsewhere"
	refuses 1 "$T/w/elsewhere.*mounted over it" "the other daemon knows it, too" bc stop "$T/c"
	is_precious "$T/w/elsewhere" "and leaves alone what is not ours"
	must umount "$T/w/elsewhere"
	exits 0 "and can end it" bc stop "$T/c"
	is "$(ours)" "" "nothing is left"
else
	skip "a takeover" "$err"
fi

echo "# an ordinary user, with fusermount3"
# In a mount namespace of its own, where everybody may open /dev/fuse.
u=$T/w/user
mkdir "$u"
chown 65534:65534 "$u"
chmod 755 "$T" "$T/w"
cp "$BLKCACHE" "$T/w/blkcache"
cat >"$T/user.sh" <<'END'
u=$1 b=$2
ulimit -l 0
as_user() {
	timeout -k 5 60 setpriv --reuid=65534 --regid=65534 --clear-groups env BLKCACHE_CONF=/dev/null "$@"
}
mknod "$u/../fuse" c 10 229 && chmod 666 "$u/../fuse" && mount --bind "$u/../fuse" /dev/fuse || exit 77
cd "$u"
as_user sh -c 'mkdir m && truncate -s 4M a.img && "$1" create "c,\\x y" --size 4M --volume a=a.img && "$1" load "c,\\x y" m' sh "$b" || exit 77
awk -v m="$u/m" '$5 == m { print "source " $(NF - 1) }' /proc/self/mountinfo
mount -t tmpfs other m && echo precious >m/file
as_user "$b" stop 'c,\x y' 2>&1
echo "stop $? $(cat m/file)"
umount m
as_user chmod 640 m/a
as_user "$b" stop 'c,\x y'
as_user "$b" load 'c,\x y' m >/dev/null && echo "mode $(as_user stat -c %u:%a m/a)" && as_user "$b" stop 'c,\x y'
echo "stop $? $(grep -c "$u/m" /proc/self/mountinfo)"
END
run unshare -m --propagation private bash "$T/user.sh" "$u" "$T/w/blkcache"
if [ "$status" = 77 ]; then
	skip "an ordinary user's mount" "users cannot mount here"
else
	like "$out" "^source $u/c,.134x.040y$" "the source is the cache's folder, whatever is in its name"
	like "$out" "mounted over it.*nothing was stopped" "stop refuses if something lies over the mount"
	like "$out" "^stop 1 precious$" "which stays"
	like "$out" "^stop 0 0$" "and works afterwards"
	like "$out" "^mode 65534:640$" "the mode that a user gave his volume's file is kept"
fi
done_testing
