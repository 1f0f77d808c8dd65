#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Nothing includes upward: the layers of README's architecture section and, within the engine, its rooms. The order is the list
# below, from the bottom up. A folder that does not exist (yet) does no harm; one that is in src/ and not in the list is an error, so
# that a new folder gets its place.
#
# A public header include/blkcache/LAYER.h is the contract of src/LAYER: everything in that layer, all its rooms, may include it.
order=(
	src/util
	src/bdev
	src/buffer
	src/journal
	src/policy
	src/engine/map
	src/engine/policy
	src/engine
	src/engine/durable
	src/engine/request
	src/engine/work
	src/engine/life
	src/export
	src/control
	src/daemon
	src/sim
	cmd
)
# Public headers that belong to no layer of their name.
declare -A contract=([error]=src/util [units]=src/util [counters]=src/engine)
# What only one layer may know.
only=(
	'fuse3/|linux/fuse.h src/export'
	'sqlite3.h src/journal'
	'liburing.h src/bdev'
)
top=${TREE:-$(cd "$(dirname "$0")/../.." && pwd)} # TREE: another tree, for the test of this one
cd "$top" || exit 99
declare -A rank
for i in "${!order[@]}"; do
	rank[${order[i]}]=$i
done

# Prints the listed folder that a file lies in.
folder_of() {
	local dir=${1%/*}
	while [ -n "$dir" ] && [ -z "${rank[$dir]:-}" ]; do
		[[ $dir == */* ]] || return 1
		dir=${dir%/*}
	done
	echo "$dir"
}

# The lowest rank of a layer: its contract may be included from all of it.
contract_rank() { # LAYER-FOLDER
	local d lowest=${rank[$1]}
	for d in "${order[@]}"; do
		[[ $d == "$1"/* ]] && [ "${rank[$d]}" -lt "$lowest" ] && lowest=${rank[$d]}
	done
	echo "$lowest"
}

# Sets rank_of_file: -1 if unknown.
rank_of() {
	local layer folder
	rank_of_file=-1
	case $1 in
	include/blkcache/*)
		layer=$(basename "$1" .h)
		layer=${contract[$layer]:-src/$layer}
		[ -z "${rank[$layer]:-}" ] || rank_of_file=$(contract_rank "$layer")
		;;
	*)
		folder=$(folder_of "$1") && rank_of_file=${rank[$folder]}
		;;
	esac
}

# The file that an include names, as the compiler finds it.
resolve() { # INCLUDER NAME
	local dir path
	for dir in "${1%/*}" include src; do
		path=$dir/$2
		[ -e "$path" ] || continue
		[[ $path != *../* ]] || path=$(realpath --relative-to=. "$path")
		echo "$path"
		return
	done
	return 1
}

wrong=()
checked=0
files=$(find src cmd include -name '*.[ch]' | sort)
for file in $files; do
	rank_of "$file"
	own=$rank_of_file
	[ "$own" -ge 0 ] || { wrong+=("$file: its folder is not in the list of layers"); continue; }
	while read -r name; do
		target=$(resolve "$file" "$name") || { wrong+=("$file: $name is not found"); continue; }
		rank_of "$target"
		checked=$((checked + 1))
		[ "$rank_of_file" -le "$own" ] || wrong+=("$file includes $target, which lies above it")
	done < <(sed -n 's/^#[ \t]*include "\([^"]*\)".*/\1/p' "$file")
	for rule in "${only[@]}"; do
		owner=${rule##* }
		[[ $file == "$owner"/* ]] && continue
		if name=$(grep -oE "^#[ 	]*include <(${rule% *})[^>]*>" "$file"); then
			wrong+=("$file: $name is for $owner alone")
		fi
	done
done

if [ ${#wrong[@]} = 0 ] && [ "$checked" -gt 0 ]; then
	echo "ok 1 - nothing includes upward ($checked includes)"
else
	echo "not ok 1 - nothing includes upward ($checked includes)"
	printf '# %s\n' "${wrong[@]}"
fi
[ -n "${TREE:-}" ] && { echo "1..1"; exit "$((${#wrong[@]} > 0))"; }

# The check notices: a tree with one include of each kind that it should not have.
T=$(mktemp -d "${TMPDIR:-/tmp}/blkcache-test.XXXXXX") || exit 99
trap 'rm -rf "$T"' EXIT
mkdir -p "$T"/{src/{bdev,engine/{map,life},journal},cmd,include/blkcache,src/new}
echo '#include "engine/life/b.h"' >"$T/src/engine/map/a.c"
echo '#include "blkcache/engine.h"' >"$T/src/journal/a.c"
printf '#include "blkcache/engine.h"\n#include "../life/b.h"\n' >"$T/src/engine/map/c.c"
echo '#include <sqlite3.h>' >"$T/src/engine/life/b.h"
echo '#include "blkcache/error.h"' >"$T/src/bdev/fine.c"
touch "$T/include/blkcache/engine.h" "$T/include/blkcache/error.h" "$T/src/new/a.c"
found=$(TREE=$T bash "$0" | grep -c '^# ')
if [ "$found" = 5 ]; then
	echo "ok 2 - and each kind of wrong include would be found"
else
	echo "not ok 2 - and each kind of wrong include would be found"
	TREE=$T bash "$0" | sed 's/^/# /'
fi
echo "1..2"
[ ${#wrong[@]} = 0 ] && [ "$found" = 5 ]
