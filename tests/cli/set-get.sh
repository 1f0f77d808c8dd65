#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# set and get: tunables change live and are kept.
. "$(dirname "$0")/lib.sh"
requires_fuse

random_file "$T/a.img" 4M
new_cache c 8M --volume a="$T/a.img"
exits 0 "get on a stopped cache" bc get "$T/c"
like "$out" "clean-after" "shows the tunables"
exits 0 "set on a stopped cache" bc set "$T/c" clean-after=7s
load c
exits 0 "get on a running cache" bc get "$T/c"
like "$out" "clean-after.*7s" "the value was kept"
exits 0 "set on a running cache" bc set "$T/c" clean-after=9s
exits 0 "get" bc get "$T/c"
like "$out" "clean-after.*9s" "shows it at once"
exits 0 "mode of a volume" bc set "$T/c" a mode=wb
is "$(status_of c '.volumes[0].mode')" wb "switched"
exits 0 "get of a volume" bc get "$T/c" a
like "$out" "mode.*wb" "shows it"
exits 0 "long names of modes" bc set "$T/c" a mode=write-around
is "$(status_of c '.volumes[0].mode')" wa "switched"
exits 0 "two at once" bc set "$T/c" clean-after=11s dirty-high=55
exits 0 "get" bc get "$T/c"
like "$out" "dirty-high.*55" "the second too"
stop c
load c
exits 0 "get after a reload" bc get "$T/c"
like "$out" "clean-after.*11s" "values outlive the daemon"
is "$(status_of c '.volumes[0].mode')" wa "modes too"
refuses 64 "nosuch" "unknown key" bc set "$T/c" nosuch=1
refuses 64 "mode|sideways" "unknown mode" bc set "$T/c" a mode=sideways
refuses 64 "clean-after|banana" "bad time" bc set "$T/c" clean-after=banana
refuses 64 "dirty-high" "percent out of range" bc set "$T/c" dirty-high=300
readers() { cat /proc/"$(cut -d' ' -f1 "$T/c/lock")"/task/*/comm | grep -c read-ahead; }
is "$(readers)" 0 "reading ahead is off, and has no threads"
exits 0 "it can be switched on" bc set "$T/c" read-ahead=1M
ok "and has some then" wait_for 10 [ "$(readers)" -gt 0 ]
stop c
load c
ok "after a load as well" wait_for 10 [ "$(readers)" -gt 0 ]
run bc set "$T/c"
is "$status" 64 "nothing to set is wrong usage"
stop c
done_testing
