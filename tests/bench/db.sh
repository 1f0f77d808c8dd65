#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# db.sh - databases on ext4 on a loop device on a volume over a slow backing device (`delay:`): sqlite (WAL, synchronous=FULL) and, where
# it is installed, PostgreSQL's pgbench. Targets, in turns, round by round:
#
#   slow   a volume in pass-through mode: the slow device itself
#   wt wb  the same device behind blkcache, write-through and write-back, all blocks cached, RAM 1/16 of them
#   disk   the raw file on the disk that the cache lies on: no FUSE, no cache, not slow
#
# The file system is mounted anew before each read measurement, so that the page cache is cold. Results: $OUT/db.jsonl (transactions or queries a
# second). Knobs: those of common.sh; BENCH_DELAY (1ms).
need_factor=8
. "$(dirname "$0")/common.sh"

start fio losetup mkfs.ext4 sqlite3
delay=${BENCH_DELAY:-1ms}
pgbin=$(echo /usr/lib/postgresql/*/bin)
pgbin=${pgbin##* }
[ "$SIZE" -ge 384 ] || SIZE=384 # what an empty PostgreSQL and its WAL take, and a little more
rows=$((SIZE * 400)) # of 250 bytes: a tenth of the device
declare -A dev

record() { # JOB TARGET ROUND RATE
	printf '{"job":"%s","target":"%s","round":%d,"iops":%s}\n' "$1" "$2" "$3" "$4" >>"$OUT/db.jsonl"
	printf '%-14s %-6s round %s  %9.1f a second\n' "$1" "$2" "$3" "$4" >&2
}

remount() { # TARGET: with nothing of it in the page cache
	unmount "$T/$1.fs"
	mount "${dev[$1]}" "$T/$1.fs" || die "${dev[$1]} cannot be mounted again"
}

# rate N COMMAND...: N per second of the time it takes
rate() {
	local n=$1 begin
	shift
	begin=$(date +%s%N)
	"$@" >"$T/db.log" 2>&1 || { say "$* failed: $(tail -n 3 "$T/db.log")"; return 1; }
	awk -v n="$n" -v a="$begin" -v b="$(date +%s%N)" 'BEGIN { printf "%.1f", n / ((b - a) / 1e9) }'
}

# ---- sqlite ----

sqlite_file() { # FILE.sql TARGET
	sqlite3 -batch -bail "$T/$2.fs/test.db" <"$1"
}

sqlite_scripts() {
	local pragmas="PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-2000; PRAGMA mmap_size=0;"
	echo "$pragmas CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, filler BLOB);
		WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < $rows)
		INSERT INTO t SELECT x, 0, randomblob(230) FROM c; PRAGMA wal_checkpoint(TRUNCATE);" >"$T/fill.sql"
	awk -v p="$pragmas" -v rows="$rows" -v n="$1" 'BEGIN {
		srand(1); print p
		for (i = 0; i < n; i++) print "UPDATE t SET n = n + 1 WHERE id = " int(rand() * rows) + 1 ";" }' >"$T/update.sql"
	awk -v p="$pragmas" -v rows="$rows" -v n="$2" 'BEGIN {
		srand(2); print p
		for (i = 0; i < n; i++) print "SELECT n FROM t WHERE id = " int(rand() * rows) + 1 ";" }' >"$T/select.sql"
}

# ---- PostgreSQL ----

as_postgres() { runuser -u postgres -- "$@"; }

pg_start() { # TARGET
	as_postgres "$pgbin/pg_ctl" -D "$T/$1.fs/pg" -w -t 120 -l "$T/$1.fs/pg.log" start >/dev/null ||
		die "PostgreSQL does not start on $1: $(tail -n 3 "$T/$1.fs/pg.log")"
	undo as_postgres "$pgbin/pg_ctl" -D "$T/$1.fs/pg" -m immediate -w stop
}

pg_stop() { # TARGET MARK
	as_postgres "$pgbin/pg_ctl" -D "$T/$1.fs/pg" -m fast -w stop >/dev/null
	unset 'undo_list[-1]'
}

pg_make() { # TARGET
	local fs=$T/$1.fs
	chmod 755 "$T" "$fs"
	install -d -o postgres "$fs/pg" "$fs/sock"
	install -o postgres /dev/null "$fs/pg.log"
	as_postgres "$pgbin/initdb" -D "$fs/pg" -A trust >/dev/null || die "initdb failed on $1"
	# small, so that pages come from the device, not from PostgreSQL's own buffers
	printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$fs/sock'" 'shared_buffers = 16MB' 'max_wal_size = 64MB' >>"$fs/pg/postgresql.conf"
	pg_start "$1"
	as_postgres "$pgbin/pgbench" -h "$fs/sock" -i -q -s "$pg_scale" postgres >"$T/db.log" 2>&1 || die "pgbench -i failed on $1: $(tail -n 2 "$T/db.log")"
	pg_stop "$1"
}

pg_run() { # TARGET ROUND
	local fs=$T/$1.fs job args tps
	for job in pgbench-select pgbench-tpcb; do
		remount "$1"
		pg_start "$1"
		args=
		[ $job = pgbench-tpcb ] || args=-S
		tps=$(as_postgres "$pgbin/pgbench" -h "$fs/sock" $args -n -c 4 -T "$((SECONDS_EACH * 2))" postgres 2>&1 | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
		[ -n "$tps" ] && record $job "$1" "$2" "$tps"
		pg_stop "$1"
	done
}

# ---- targets ----

setup() { # NAME MODE
	local ram=$((SIZE / 16 + 1))
	image "$T/$1.img"
	if [ "$2" = none ]; then
		vol=$T/$1.img
	else
		blkcache "$1" "delay:read=$delay,write=$delay:$T/$1.img" $((SIZE * 3 / 2)) $ram "$2"
		[ "$2" = pt ] || warm_up "$1" "$vol"
	fi
	loop "$vol" || die "no loop devices here"
	dev[$1]=$vol
	mkfs.ext4 -q "$vol" || die "no file system on $1"
	mkdir "$T/$1.fs"
	undo unmount "$T/$1.fs"
	mount "$vol" "$T/$1.fs" || die "$1 cannot be mounted"
}

targets="slow wt wb disk"
setup slow pt
setup wt wt
setup wb wb
setup disk none
updates=$((SECONDS_EACH * 200))
selects=$((SECONDS_EACH * 1000))
sqlite_scripts $updates $selects
pg_scale=$((SIZE / 128 + 1)) # 15 MiB each
pg=
[ -x "$pgbin/pgbench" ] && id postgres >/dev/null 2>&1 && pg=1
[ -n "$pg" ] || say "PostgreSQL is not installed: left out"
rm -f "$OUT/db.jsonl"
say "filling the databases"
for n in $targets; do
	sqlite_file "$T/fill.sql" "$n" >/dev/null || die "sqlite cannot be filled on $n"
	[ -z "$pg" ] || pg_make "$n"
done
for round in $(seq "$ROUNDS"); do
	for n in $targets; do
		remount "$n"
		r=$(rate $selects sqlite_file "$T/select.sql" "$n") && record sqlite-select "$n" "$round" "$r"
		r=$(rate $updates sqlite_file "$T/update.sql" "$n") && record sqlite-update "$n" "$round" "$r"
		[ -z "$pg" ] || pg_run "$n" "$round"
	done
done
