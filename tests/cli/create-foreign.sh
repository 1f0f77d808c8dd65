#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# create and mount touch nothing that they have not made (P8), whatever it is called, and whichever way they end.
. "$(dirname "$0")/lib.sh"
requires_fuse

truncate -s 4M "$T/a.img"
mkdir "$T/mp"

# One file of the user's in the folder, called like one of ours.
for name in data lock control journal.db-wal journal.db-ring journal.db.new journal.db.creating bypassed thesis.txt; do
	mkdir "$T/f"
	echo "mine: $name" >"$T/f/$name"
	refuses 1 "$T/f.*not empty.*$name" "$name: refused" bc create "$T/f" --size 4M
	refuses 1 "$T/f.*not empty.*$name" "$name: --force changes nothing about it" bc create "$T/f" --size 4M --force
	refuses 1 "$T/f.*not empty.*$name" "$name: nor does mount" bc mount "$T/a.img" "$T/mp" --cache "$T/f" --size 4M
	refuses 1 "." "$name: or a lack of space" bc create "$T/f" --size 15T
	is "$(cat "$T/f/$name")" "mine: $name" "$name: is as it was"
	is "$(ls -A "$T/f")" "$name" "$name: alone"
	rm -r "$T/f"
done
mkdir "$T/f" "$T/elsewhere"
echo mine >"$T/elsewhere/data"
ln -s "$T/elsewhere/data" "$T/f/data"
refuses 1 "not empty" "a link of such a name" bc create "$T/f" --size 4M --force
is "$(cat "$T/f/data")" mine "is not followed"
rm -r "$T/f"

# A file beside a cache stays, when the cache is replaced and when that fails.
new_cache c 4M
echo mine >"$T/c/notes"
exits 0 "replaced" bc create "$T/c" --size 4M --force
refuses 1 "missing.img" "not replaced for a volume that is not there" bc create "$T/c" --size 4M --force --volume x="$T/missing.img"
is "$(cat "$T/c/notes")" mine "the file beside it is still there"
exits 0 "and so is the cache" bc status "$T/c"

refuses 1 "a.img.*volume x.*volume y" "one file as two volumes, whatever the spec" \
	bc create "$T/own" --size 4M --volume x="$T/a.img" --volume y="delay:read=1ms:$T/a.img"

# What fails late takes back its own: a volume too large for a cache with such lines is refused when the cache has been made.
mkdir "$T/own"
refuses 1 "too large" "a volume that cannot be added" bc create "$T/own" --size 4M --volume x="$T/a.img" --volume y=null:size=2000000T
is "$(ls -A "$T/own")" "" "leaves an empty folder"
refuses 1 "too large" "the same in a new folder" bc create "$T/new" --size 4M --volume x="$T/a.img" --volume y=null:size=2000000T
nok "leaves none" test -e "$T/new"
refuses 1 "nomnt" "mount without a mount point" bc mount "$T/a.img" "$T/nomnt" --cache "$T/new" --size 4M
nok "leaves none either" test -e "$T/new"
mkdir -p "$T/fs/lost+found"
exits 0 "a new file system is as good as an empty folder" bc create "$T/fs" --size 4M
exits 0 "a slash at the end of the name" bc create "$T/slash/" --size 4M
like "$out" "created $T/slash:" "is left out"

# Broken off: its own files do not stand in the way of the next one.
mkdir "$T/off"
printf 'blkcache create was broken off here; it may be repeated, or this folder be removed\n' >"$T/off/journal.db.creating"
truncate -s 1M "$T/off/data" "$T/off/journal.db.new"
echo 4000000 >"$T/off/lock"
exits 0 "a create that was broken off can be repeated" bc create "$T/off" --size 4M
nok "its note goes" test -e "$T/off/journal.db.creating"
exits 0 "and there is a cache" bc check "$T/off"
rm "$T/off/journal.db"
refuses 1 "not empty" "without such a note, the remains of a cache are not taken for one" bc create "$T/off" --size 4M --force

# names
name=$(printf 'stra\337e.img')
truncate -s 1M "$T/$name"
mkdir "$T/m"
refuses 1 "UTF-8.*another name" "a volume's name that is not UTF-8" bc create "$T/n" --size 4M --volume "$name=$T/$name"
refuses 1 "UTF-8.*another name" "the same from the name of the file" bc mount "$T/$name" "$T/m" --cache "$T/n" --size 4M
nok "nothing was made" test -e "$T/n"
exits 0 "the file may be called so" bc mount "$T/$name" "$T/m" --cache "$T/n" --size 4M --name strasse.img
exits 0 "and again" bc mount "$T/$name" "$T/m" --cache "$T/n" --name strasse.img
refuses 1 "UTF-8" "not the volume, on a loaded cache either" bc add "$T/n" "$name=$T/a.img"
refuses 1 "no volume" "such a name in other commands is a name that is not there" bc remove "$T/n" "$name"
ok "what programs read is UTF-8" eval 'bc status "$T/n" --json | jq -e .volumes[0].backing'
ok "metrics are, too" eval 'bc stats "$T/n" --format prometheus | iconv -f UTF-8 -t UTF-8 >/dev/null'
must bc stop "$T/n"

long=$T
for _ in 1 2 3 4 5 6 7 8; do long=$long/$(printf 'f%.0s' {1..60}); done
must mkdir -p "$long"
refuses 1 "path.*long.*SQLite" "a path that SQLite cannot open is refused with the reason" bc create "$long/c" --size 4M
done_testing
