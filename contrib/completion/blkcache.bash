# SPDX-License-Identifier: BSD-3-Clause
# bash completion of blkcache. Source it, or install it as /usr/share/bash-completion/completions/blkcache.
# shellcheck shell=bash disable=SC2207

# Words a status of the cache in $1 gives: volume names. Quick: the daemon answers without waiting for I/O. A stopped cache is not
# opened for a Tab, that would take its lock.
_blkcache_volumes()
{
	[ -S "$1/control" ] && command -v jq >/dev/null || return 0
	blkcache status "$1" --json 2>/dev/null | jq -r '.volumes[].name' 2>/dev/null
}

_blkcache_tunables()
{
	[ -S "$1/control" ] && command -v jq >/dev/null || return 0
	blkcache get "$1" --json 2>/dev/null | jq -r 'keys[]' 2>/dev/null
}

_blkcache()
{
	local cur prev cmd options positional=() i
	local commands="create add remove load mount flush stop status stats set get check help"
	local IFS=$'\n'

	COMPREPLY=()
	cur=${COMP_WORDS[COMP_CWORD]}
	prev=${COMP_WORDS[COMP_CWORD - 1]}
	if [ "$COMP_CWORD" -eq 1 ]; then
		COMPREPLY=($(IFS=' ' compgen -W "$commands --help --version" -- "$cur"))
		return
	fi
	cmd=${COMP_WORDS[1]}
	case $cmd in
	create) options="--size --line-size --mode --ram --volume --force --help" ;;
	add) options="--mode --help" ;;
	remove) options="--discard-dirty --help" ;;
	load) options="--accept-changed --survive --foreground --help" ;;
	mount) options="--cache --size --line-size --ram --mode --name --survive --foreground --help" ;;
	stop) options="--no-flush --help" ;;
	status | get) options="--json --help" ;;
	stats) options="--format --help" ;;
	help)
		COMPREPLY=($(IFS=' ' compgen -W "$commands" -- "$cur"))
		return
		;;
	*) options="--help" ;;
	esac

	case $prev in
	--mode)
		COMPREPLY=($(IFS=' ' compgen -W "wt wb wa wi wo pt" -- "$cur"))
		return
		;;
	--line-size)
		COMPREPLY=($(IFS=' ' compgen -W "4K 8K 16K 32K 64K" -- "$cur"))
		return
		;;
	--format)
		COMPREPLY=($(IFS=' ' compgen -W "table json prometheus" -- "$cur"))
		return
		;;
	--cache)
		COMPREPLY=($(compgen -d -- "$cur"))
		return
		;;
	--size | --ram | --name | --volume | --accept-changed)
		return
		;;
	esac
	if [[ $cur == -* ]]; then
		COMPREPLY=($(IFS=' ' compgen -W "$options" -- "$cur"))
		return
	fi

	# Which positional argument is this? Options of ours take their value as the next word.
	for ((i = 2; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--size | --line-size | --mode | --ram | --volume | --cache | --name | --format | --accept-changed) ((i++)) ;;
		-*) ;;
		*) positional+=("${COMP_WORDS[i]}") ;;
		esac
	done
	compopt -o filenames 2>/dev/null
	case $cmd:${#positional[@]} in
	mount:0) COMPREPLY=($(compgen -f -- "$cur")) ;;
	*:0 | load:1 | mount:1) COMPREPLY=($(compgen -d -- "$cur")) ;;
	add:1) compopt +o filenames 2>/dev/null ;;
	remove:1 | flush:1 | stats:1) COMPREPLY=($(compgen -W "$(_blkcache_volumes "${positional[0]}")" -- "$cur")) ;;
	get:*) COMPREPLY=($(compgen -W "$(_blkcache_volumes "${positional[0]}"; _blkcache_tunables "${positional[0]}")" -- "$cur")) ;;
	set:*)
		compopt -o nospace 2>/dev/null
		COMPREPLY=($(compgen -W "$(_blkcache_volumes "${positional[0]}"; _blkcache_tunables "${positional[0]}" | sed 's/$/=/')" -- "$cur"))
		;;
	esac
}
complete -F _blkcache blkcache
