#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The documents say what the program does: commands, options, tunables and configuration keys in README, man page, completion and
# example configuration; mutations in durability.md. What the program itself says (--help, get) is the reference.
# shellcheck disable=SC2016,SC2317,SC2013 # for inner shells; called by others
. "$(dirname "$0")/../cli/lib.sh"
[ -x "$BLKCACHE" ] || { echo "Bail out! $BLKCACHE has not been built"; exit 99; }
readme=$TOP/README.md
man=$TOP/contrib/man/blkcache.1
durability=$TOP/contrib/doc/durability.md
export BLKCACHE_CONF=$T/none
: >"$BLKCACHE_CONF"

# Lines of both, sorted: `same_words NAME "$a" "$b"` says which are missing where.
same_words() { # NAME EXPECTED FOUND
	local missing unknown
	missing=$(comm -23 <(sort -u <<<"$2") <(sort -u <<<"$3") | xargs)
	unknown=$(comm -13 <(sort -u <<<"$2") <(sort -u <<<"$3") | xargs)
	if [ -n "$2" ] && [ -z "$missing$unknown" ]; then
		pass "$1"
	else
		fail "$1" "missing: $missing" "unknown: $unknown"
	fi
}

options_of() { # COMMAND: its long options
	bc "$1" --help | grep -oE '^ +(-., )?--[a-z-]+' | grep -oE -- '--[a-z-]+' | grep -vxE -- '--(help|usage)'
}

plain_man=$(sed 's/\\-/-/g; s/\\&//g' "$man")
commands=$(bc --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on { print $1 }')
all_options=$(for c in $commands; do options_of "$c"; done)

echo "# commands and options"
same_words "man page: its commands are those of --help" "$commands" "$(sed -n 's/^\.SY "blkcache \(.*\)"/\1/p' "$man")"
same_words "man page: its section COMMANDS has the same" "$commands" \
	"$(awk '/^\.SH COMMANDS/ { on = 1 } /^\.SH MODES/ { on = 0 } on && was == ".TP" && /^\.B [a-z]+$/ { print $2 } { was = $1 }' "$man")"
same_words "man page: its options are those of the commands' --help" "$all_options" \
	"$(grep -oE -- '(^|[^-a-z])--[a-z][a-z-]*' <<<"$plain_man" | grep -oE -- '--[a-z-]+' | grep -vxE -- '--(help|version|direct-io|sector-size|find|show)')"

# README: `blkcache COMMAND ... --option` in its examples and running text.
used=$(grep -oE 'blkcache [a-z]+ [^`'"'"']*' "$readme" | grep -E "^blkcache ($(tr '\n' '|' <<<"$commands" | sed 's/|$//')) ")
same_words "README: names no command that does not exist" "$commands" \
	"$(printf '%s\n' "$commands" "$(grep -oE '^ *(`|    )blkcache [a-z]+' "$readme" | awk '{ print $NF }' | grep -v '^blkcache$')" | grep .)"
unknown=$(while read -r _ command rest; do
	for option in $(grep -oE -- '--[a-z][a-z-]+' <<<"$rest" | grep -vx -- --help); do
		options_of "$command" | grep -qx -- "$option" || echo "$command $option"
	done
done <<<"$used")
is "$unknown" "" "README: the options in its examples exist"
for option in $(grep -oE -- '`--[a-z][a-z-]+`' "$readme" | tr -d '`' | sort -u); do
	grep -qx -- "$option" <<<"$all_options" || echo "$option"
done | grep -vxE -- '--(direct-io|sector-size|help|inplace)' >"$T/unknown"
is "$(xargs <"$T/unknown")" "" "README: so do those in its text"

echo "# completion"
complete_after() { # WORD...
	(
		# shellcheck source=/dev/null
		. "$TOP/contrib/completion/blkcache.bash"
		# shellcheck disable=SC2034 # what completion functions read
		COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
		_blkcache
		printf '%s\n' "${COMPREPLY[@]}"
	)
}
same_words "completion: its commands are those of --help" "$commands" "$(complete_after blkcache '' | grep -vxE -- '--.*|help|version')"
wrong=$(for c in $commands; do
	diff <(options_of "$c" | sort) <(complete_after blkcache "$c" -- | grep -vx -- --help | sort) | sed -n "s/^[<>]/$c/p"
done)
is "$wrong" "" "completion: each command's options are those of its --help"

echo "# tunables"
must bc create "$T/c" --size 1M
tunables=$(bc get "$T/c" --json | jq -r 'keys[]')

rows=$(awk '/^## Tunables/ { on = 1 } /^## systemd/ { on = 0 } on && /^\| `/' "$readme")
same_words "README: the table has all tunables and no other" "$tunables" "$(grep -oE '^\| `[a-z-]+`' <<<"$rows" | tr -d '|` ')"
same_words "man page: so does 'set'" "$tunables" \
	"$(awk '/^\.B set$/ { on = 1 } /^\.B get$/ { on = 0 } on && /^\.BR? [a-z-]+ ?\.?$/ { print $2 }' <<<"$plain_man" | grep -v '^set$')"
wrong=$(for key in $tunables; do
	default=$(bc get "$T/c" "$key")
	grep -qE "^\| \`$key\` \| ${default}[ |]" <<<"$rows" || echo "README: $key is $default"
	[ "$key" = mode ] || grep -A1 -x ".B $key" <<<"$plain_man" | grep -qE "^\(${default}[,:;]" || echo "man page: $key is $default"
done)
is "$wrong" "" "their defaults are right in both"
same_words "completion: 'set' offers them" "$tunables" "$(
	timeout() { "${@:2}"; } # has no functions
	blkcache() { "$BLKCACHE" "$@"; }
	compopt() { :; }
	# a stopped cache is not asked by a Tab; here it is
	# shellcheck source=/dev/null
	. <(sed 's/\[ -S "$1\/control" \]/true/' "$TOP/contrib/completion/blkcache.bash")
	# shellcheck disable=SC2034 # what completion functions read
	COMP_WORDS=(blkcache set "$T/c" '') COMP_CWORD=3
	_blkcache
	printf '%s\n' "${COMPREPLY[@]}" | sed -n 's/=$//p'
)"

echo "# configuration"
keys=$(grep -oE '^	\{ "(cache|daemon)", "[a-z-]+"' "$TOP/src/daemon/config.c" | sed 's/.*, "//; s/"//')
same_words "blkcache.conf.example shows every key and no other" "$keys" \
	"$(sed -n 's/^# \([a-z-]*\) = .*/\1/p' "$TOP/blkcache.conf.example")"
sed 's/^# \([a-z-]* = .*\)/\1/' "$TOP/blkcache.conf.example" >"$T/conf"
ok "and is a configuration with all of them set" env BLKCACHE_CONF="$T/conf" "$BLKCACHE" create "$T/d" --size 1M
is "$(bc get "$T/d" --json)" "$(bc get "$T/c" --json)" "its defaults are the built-in ones"

echo "# mutations"

same_words "durability.md: its table has the mutations of mutate.h" \
	"$(tr '\n' ' ' <"$TOP/src/util/mutate.h" | grep -oE 'X\([A-Z_]+, *"[a-z-]+"' | sed 's/.*"\(.*\)"/\1/')" \
	"$(awk '/^\| step \| mutations \|/ { on = 1; next } on && !/^\|/ { on = 0 } on { split($0, f, "|"); print f[3] }' "$durability" |
		grep -oE '`[a-z-]+`' | tr -d '`')"

echo "# headings and files"
dead=$(for f in "$readme" "$durability"; do
	grep -oE '\]\([^)# ]+\)' "$f" | sed 's/](\(.*\))/\1/' | grep -v '://' | while read -r link; do
		[ -e "$(dirname "$f")/$link" ] || echo "$(basename "$f"): $link"
	done
	grep -oE '\]\(#[^)]+\)' "$f" | sed 's/](#\(.*\))/\1/' | while read -r anchor; do
		grep -E '^#+ ' "$f" | sed 's/^#* //' | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9\n_-' | grep -qx -- "$anchor" || echo "$(basename "$f"): #$anchor"
	done
done)
is "$dead" "" "links lead somewhere"

echo "# names"
gone=$(grep -oE '\b[a-z]+_[a-z_]+\b' "$TOP/contrib/doc/walks.md" | sort -u | while read -r name; do
	grep -rqw -- "$name" "$TOP/src" "$TOP/include" || echo "$name"
done)
is "$gone" "" "walks.md names functions that exist"
done_testing
