# SPDX-License-Identifier: BSD-3-Clause
# bash completion of blkcache. Source it, or install it as /usr/share/bash-completion/completions/blkcache.
# shellcheck shell=bash disable=SC2207

# Words that the cache in $1 gives. Quick: the daemon answers without waiting for I/O, and one that does not is not waited for. A
# stopped cache is not opened for a Tab, that would take its lock.
_blkcache_ask()
{
	[ -S "$1/control" ] && timeout 1 blkcache "${@:2:1}" "$1" "${@:3}" 2>/dev/null
}

# The names of volumes: the first column of the table behind the empty line.
_blkcache_volumes()
{
	_blkcache_ask "$1" status | awk 'table && NF { print $1 } /^VOLUME / { table = 1 }'
}

_blkcache_tunables()
{
	_blkcache_ask "$1" get | awk '{ print $1 }'
}

# NAME=FILE: completes FILE. bash takes = for the end of a word, so $cur is what stands behind it, or the sign itself.
_blkcache_files()
{
	compopt -o filenames 2>/dev/null
	COMPREPLY=($(compgen -f -- "${cur#=}"))
}

_blkcache()
{
	local cur prev cmd options positional=() i modes="wt wb wa wi wo pt"
	local commands="create add remove load mount flush stop status stats set get check help version"
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

	# --OPTION=VALUE, NAME=BACKING and KEY=VALUE come as three words.
	if [ "$cur" = = ]; then
		cur=
	elif [ "$prev" = = ]; then
		prev=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	case $prev:$cmd in
	mode:set)
		COMPREPLY=($(IFS=' ' compgen -W "$modes" -- "$cur"))
		return
		;;
	esac
	if [[ ${COMP_WORDS[COMP_CWORD]} == = || ${COMP_WORDS[COMP_CWORD - 1]} == = ]] && [[ $prev != --* ]]; then
		case $cmd in
		create | add) _blkcache_files ;;
		esac
		return
	fi

	case $prev in
	--mode)
		COMPREPLY=($(IFS=' ' compgen -W "$modes" -- "$cur"))
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
