#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# instructions.sh - user-space instructions per operation of the engine, counted by callgrind: unlike times they do not depend on what
# else the machine is doing, so a regression shows.
#
#   instructions.sh [-p] [-l] [CASE]...      (cases of engine.c; default: the four that have a figure to beat, and read-hit-ssd)
#     -p  each function's share besides    -l  each source line's (the hottest)
#
# Counted is the measured part of engine.c, all threads: `request` is the thread that makes the calls, `behind` the background ones
# (writing buffers out, cleaning, evicting, committing). Copies (memcpy, memmove, memset) and checksums (crc32c) are listed apart; the
# bench's own loop is left out. Kernel instructions are not counted.
#
# Knobs: BUILD, ENGINE (program), SIZE (cache, 64M), OPS (40000), SETS (tunables, KEY=VALUE...), OUT (folder for callgrind's files; default: a scratch folder, removed).
# RESULT: a file to which one JSON object a case is appended.
set -euo pipefail
export LC_ALL=C
top=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-build/release}
[[ $build = /* ]] || build=$top/$build
engine=${ENGINE:-$build/bench/engine}
size=${SIZE:-64M}
ops=${OPS:-40000}
read -ra sets <<<"${SETS:-}"
functions=''
lines=''
while getopts plh o; do
	case $o in
	p) functions=1 ;;
	l) lines=1 ;;
	*)
		sed -n '3,/^set/p' "$0" | grep '^#' | cut -c3-
		[ "$o" = h ]
		exit $(($? ? 64 : 0))
		;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- read-hit-ram write-hit read-miss-insert write-miss-evict-dirty read-hit-ssd
command -v callgrind_annotate >/dev/null || { echo "instructions.sh: valgrind is not installed; run 'make deps'" >&2; exit 1; }
[ -x "$engine" ] || { echo "instructions.sh: $engine has not been built; run 'make $engine'" >&2; exit 1; }

scratch=
child=
# shellcheck disable=SC2317 # called by the trap
clean_up() {
	trap - EXIT
	[ -z "$child" ] || { kill -TERM "$child" && wait "$child"; } 2>/dev/null || true # it removes its own cache folder
	[ -z "$scratch" ] || rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if [ -n "${OUT:-}" ]; then
	mkdir -p "$OUT"
	out=$OUT
else
	scratch=$(mktemp -d "${TMPDIR:-/tmp}/blkcache-instructions.XXXXXX")
	out=$scratch
fi

# FILE -> lines "COUNT FUNCTION"
flat() {
	callgrind_annotate --threshold=100 --show=Ir --tree=none --auto=no "$1" 2>/dev/null | awk '
		/^ *[0-9,]+ \([ 0-9.]+%\) +[^ ]/ && !/PROGRAM TOTALS/ {
			n = $1; gsub(/,/, "", n)
			sub(/^ *[0-9,]+ \([ 0-9.]+%\) +/, "")
			object = $0; sub(/.*\[/, "", object); sub(/\]$/, "", object); sub(/.*\//, "", object); sub(/\.so.*/, "", object)
			sub(/ \[[^]]*\]$/, ""); sub(/^.*[\/?]*:/, ""); sub(/\047[0-9]+$/, "")
			if ($0 ~ /^0x/) $0 = object ":" $0 # a library without symbols
			f[$0] += n
		}
		END { for (k in f) print f[k], k }' | sort -rn
}

# Sums of kinds, per operation: "COPY CRC REST"
kinds() {
	awk -v ops="$1" '
		$2 ~ /^_*(mem(cpy|move|set|pcpy))/ { copy += $1; next }
		$2 ~ /crc32|^libisal/ { crc += $1; next }
		$2 ~ /^(run_ops|run_copies|run_threads|worker_main)$/ { next }
		{ rest += $1 }
		END { printf "%.0f %.0f %.0f\n", copy / ops, crc / ops, rest / ops }'
}

one() { # CASE
	local name=$1 log=$out/$1.log f n done_ops copy crc rest bcopy bcrc brest
	rm -f "$out/$name".callgrind*
	valgrind --tool=callgrind --instr-atstart=no --separate-threads=yes --fair-sched=yes \
		--callgrind-out-file="$out/$name.callgrind" "$engine" --json --size "$size" --ops "$ops" "${sets[@]/#/--set=}" "$name" >"$log" 2>"$log.err" &
	child=$!
	wait "$child" || { echo "instructions.sh: $name failed:" >&2; grep -v "^==" "$log.err" | tail -n 5 >&2; child=; return 1; }
	child=
	done_ops=$(sed -n 's/.*"ops":\([0-9]*\).*/\1/p' "$log")
	# thread 1 makes the calls; a file without a number is the empty head
	: >"$out/$name.request"
	: >"$out/$name.behind"
	for f in "$out/$name".callgrind-*; do
		n=${f##*-}
		if [ "$((10#$n))" = 1 ]; then
			flat "$f" >>"$out/$name.request"
		else
			flat "$f" >>"$out/$name.behind"
		fi
	done
	read -r copy crc rest < <(kinds "$done_ops" <"$out/$name.request")
	read -r bcopy bcrc brest < <(kinds "$done_ops" <"$out/$name.behind")
	printf '%-24s %8d %9d %8d %8d %8d %8d   %8s\n' "$name" "$done_ops" "$rest" "$brest" "$((rest + brest))" "$((copy + bcopy))" \
		"$((crc + bcrc))" "$(sed -n 's/.*"share_percent":\([0-9.]*\).*/\1/p' "$log")"
	[ -z "${RESULT:-}" ] || printf '{"case":"%s","ops":%d,"request":%d,"behind":%d,"copies":%d,"crc":%d}\n' "$name" "$done_ops" "$rest" \
		"$brest" "$((copy + bcopy))" "$((crc + bcrc))" >>"$RESULT"
	if [ -n "$functions" ]; then
		for f in request behind; do
			echo "    $f, instructions per operation by function"
			awk -v ops="$done_ops" '{ a[$2] += $1 } END { for (k in a) if (a[k] / ops >= 1) printf "    %10.1f  %s\n", a[k] / ops, k }' "$out/$name.$f" |
				sort -rn
		done
	fi
	if [ -n "$lines" ]; then
		echo "    request, by source line (part of all, at least 0.3 %)"
		callgrind_annotate --threshold=99 --show=Ir --auto=yes --context=0 --include="$top" "$out/$name.callgrind-01" 2>/dev/null |
			awk -v ops="$done_ops" -v min=0.3 '
				/=> |events annotated/ { next }
				/^-- Auto-annotated source: / { file = $4; sub(/.*\//, "", file) }
				match($0, /^ *[0-9,]+ \( *[0-9.]+%\)/) && file {
					n = $1; gsub(/,/, "", n); p = $0; sub(/^[^(]*\( */, "", p)
					if (p + 0 >= min) { t = $0; sub(/^ *[0-9,]+ \( *[0-9.]+%\) */, "", t); printf "    %8.1f  %-12s %s\n", n / ops, file, t }
				}' | sort -rn | head -90
	fi
}

printf '%-24s %8s %9s %8s %8s %8s %8s   %8s\n' case ops request behind both copies crc32c 'share %'
status=0
for name in "$@"; do
	one "$name" || status=1
done
exit $status
