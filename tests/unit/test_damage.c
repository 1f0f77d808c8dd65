/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_damage.c - bytes flipped, zeroed, swapped or cut off in a stopped cache: in every page of the journal, every
 * frame of its log, and every block of the data file. Never wrong data, never a crash or a hang: the load refuses with
 * a reason, or every block reads right; what is lost (a damaged dirty block, a dropped epoch) is said. Whatever has an
 * effect is found by `check`, which itself survives it. The exception is the end of the log (see wal.c).
 *
 * DAMAGE_ROUNDS=N: N rounds with other random places. ENGINE_SEED=N repeats one.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>

#include "engine/durable/bypass.h"
#include "engine_util.h"
#include "journal/db.h"
#include "util/log.h"

#define BLOCKS 64u
#define VERSIONS 4u
#define UNREADABLE INT64_MIN

struct saved {
	char path[PATH_MAX];
	char *data;
	size_t len;
	struct timespec mtime;
};

static struct {
	struct rig r;
	bool crashed;
	struct saved file[8];
	unsigned nfiles;
	int64_t version[2][BLOCKS][VERSIONS]; /* the block's values, the present one first; 0: none */
	bool dirty[2][BLOCKS];
	uint8_t at_end[2][BLOCKS]; /* the value is in the last transaction of the log (1), the one before (2) */
	bool log_hurt; /* where the damage is now */
	unsigned refused, loaded, dropped, lost, silent, untold;
} d;

static char where[600];
static uint64_t seed;
static char block_buf[BLOCKS * CACHE_BLOCK] __attribute__((aligned(4096)));

/* ---- the template ---- */

static void save(const char *path)
{
	struct saved *s = &d.file[d.nfiles++];
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	must(d.nfiles <= 8 && fd >= 0 && !fstat(fd, &st), "save %s", path);
	snprintf(s->path, sizeof s->path, "%s", path);
	s->len = (size_t)st.st_size;
	s->mtime = st.st_mtim;
	s->data = malloc(s->len + 1);
	must(pread(fd, s->data, s->len, 0) == (ssize_t)s->len, "save %s", path);
	close(fd);
}

static void remove_all(const char *dir)
{
	DIR *dp = opendir(dir);
	struct dirent *e;
	char path[PATH_MAX + 300];

	while ((e = readdir(dp))) {
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (e->d_name[0] != '.')
			must(!unlink(path), "%s", path);
	}
	closedir(dp);
}

static void restore(void)
{
	remove_all(d.r.dir);
	for (unsigned i = 0; i < d.nfiles; i++) {
		struct saved *s = &d.file[i];
		struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, s->mtime };
		int fd = open(s->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		must(fd >= 0 && pwrite(fd, s->data, s->len, 0) == (ssize_t)s->len && !futimens(fd, times), "restore %s",
		     s->path);
		close(fd);
	}
}

static struct saved *saved_file(const char *name)
{
	for (unsigned i = 0; i < d.nfiles; i++)
		if (!strcmp(strrchr(d.file[i].path, '/') + 1, name))
			return &d.file[i];
	return NULL;
}

static void put(unsigned vol, unsigned first, unsigned n, int64_t version)
{
	for (unsigned i = 0; i < n; i++) {
		int64_t *h = d.version[vol][first + i];

		stamp(block_buf + (size_t)i * CACHE_BLOCK, first + i, (uint64_t)version);
		memmove(h + 1, h, (VERSIONS - 1) * sizeof *h);
		h[0] = version;
	}
	must(!volume_write(d.r.v[vol], block_buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, true), "write");
}

static void fold_all(void)
{
	struct bc_error err = { 0 };
	int more;

	must(!epoch_commit(d.r.c, true), "commit");
	while ((more = journal_maintain(d.r.c->journal, ctr_get(d.r.c->epoch.data_upto), &err)) > 0)
		;
	must(!more, "fold: %s", err.msg);
}

static void note_dirty(void)
{
	for (unsigned vol = 0; vol < 2; vol++)
		for (unsigned b = 0; b < BLOCKS; b++) {
			uint32_t slot;
			bool dirty = false;

			d.dirty[vol][b] = rig_slot(d.r.v[vol], b, &slot, &dirty) && dirty;
		}
}

/* A write through that reached the backing device and not the cache: only the mark tells that the cached copy is
 * stale. */
static void diverge(unsigned b, int64_t version)
{
	stamp(block_buf, b, (uint64_t)version);
	d.version[1][b][0] = version;
	rig_backing_write(&d.r, 1, block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK);
}

static void make_template(uint32_t line, bool crashed)
{
	char path[PATH_MAX + 40];

	memset(&d, 0, sizeof d);
	d.crashed = crashed;
	if (!access("/dev/shm", W_OK))
		setenv("TMPDIR", "/dev/shm", 0);
	if (!getenv("DAMAGE_LOG"))
		log_set_level((enum log_level) - 1);
	journal_wal_reserve = 0;
	journal_fold_limits.start_epochs = 0;
	snprintf(where, sizeof where, "template");
	rig_create(&d.r, MIB, line, CACHE_MIN_RAM, CACHE_MODE_WB);
	bypass_state_dir = strdup(d.r.top);
	rig_open(&d.r);
	rig_set(&d.r, "clean-after", "86400s");
	rig_set(&d.r, "epoch-interval", "60s");
	rig_add(&d.r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	rig_add(&d.r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WT);
	for (unsigned vol = 0; vol < 2; vol++)
		for (unsigned b = 0; b < BLOCKS; b++)
			d.version[vol][b][0] = STAMP_ZERO;
	put(0, 0, 24, 1);
	put(1, 0, 16, 2);
	rig_write_back(&d.r, d.r.v[0]);
	fold_all();
	put(0, 8, 8, 3);
	put(0, 40, 2, 4);
	if (crashed) {
		put(0, 10, 1, 5); /* in the row */
		put(1, 4, 2, 6);
		put(0, 41, 20, 7); /* in the data file */
		put(0, 50, 1, 8); /* in the ring, with the record of its whole line */
		d.at_end[0][40] = 2;
		for (unsigned b = 41; b < 61; b++)
			d.at_end[0][b] = b / 4 != 50 / 4;
		note_dirty();
		snprintf(path, sizeof path, "%s/journal.db-wal", d.r.dir);
		save(path);
	} else {
		note_dirty();
		rig_close(&d.r);
	}
	snprintf(path, sizeof path, "%s/journal.db", d.r.dir);
	save(path);
	snprintf(path, sizeof path, "%s/journal.db" RING_SUFFIX, d.r.dir);
	save(path);
	snprintf(path, sizeof path, "%s/data", d.r.dir);
	save(path);
	if (crashed) {
		rig_close(&d.r);
		diverge(5, 9);
	}
	save(d.r.path[0]);
	save(d.r.path[1]);
}

static void drop_template(void)
{
	rig_destroy(&d.r);
	for (unsigned i = 0; i < d.nfiles; i++)
		free(d.file[i].data);
	free((char *)bypass_state_dir);
	fprintf(stderr,
		"%s: %u refused, %u loaded: %u with dropped epochs, %u with lost blocks, %u without the log's end; "
		"%u without any effect\n",
		d.crashed ? "crashed" : "stopped", d.refused, d.loaded, d.dropped, d.lost, d.untold, d.silent);
}

/* ---- what damage did ---- */

static unsigned findings;

static void finding(void *ctx, const char *what)
{
	(void)ctx;
	must(what && what[0], "%s: an empty finding", where);
	findings++;
}

static int64_t read_version(unsigned vol, unsigned b)
{
	int rc = volume_pread(d.r.v[vol], block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK);

	must(!rc || rc == -EIO, "%s: read: %d", where, rc);
	return rc ? UNREADABLE : stamp_read(block_buf, b);
}

static bool was(unsigned vol, unsigned b, int64_t version)
{
	for (unsigned i = 0; i < VERSIONS; i++)
		if (d.version[vol][b][i] == version && version)
			return true;
	return false;
}

/* Returns how many blocks are lost: unreadable, or older than they were. Not counted are those that the log lost with
 * its end: of the last transaction, and of the one before if the frame between them is damaged as a whole. */
static unsigned judge_values(int64_t now[2][BLOCKS])
{
	bool dropped = d.r.report.epochs_dropped > 0;
	unsigned lost = 0, at_end[3] = { 0 }, gone[3] = { 0 };

	must(!dropped || d.r.report.notes[0], "%s: epochs are dropped and nothing is said", where);
	for (unsigned vol = 0; vol < 2; vol++) {
		for (unsigned b = 0; b < BLOCKS; b++) {
			int64_t got = now[vol][b] = read_version(vol, b);

			at_end[d.at_end[vol][b]]++;
			if (got == d.version[vol][b][0])
				continue;
			if (d.log_hurt && !dropped && d.at_end[vol][b] && was(vol, b, got)) {
				gone[d.at_end[vol][b]]++;
				continue;
			}
			lost++;
			must((got == UNREADABLE && d.dirty[vol][b]) || (dropped && was(vol, b, got)),
			     "%s: volume %u block %u reads as %lld instead of %lld (%s) and check has %u findings",
			     where, vol, b, (long long)got, (long long)d.version[vol][b][0], d.r.report.notes,
			     findings);
		}
	}
	must((!gone[1] || gone[1] == at_end[1]) && (!gone[2] || (gone[2] == at_end[2] && gone[1])),
	     "%s: of the last transactions of the log %u of %u and %u of %u blocks are lost", where, gone[1], at_end[1],
	     gone[2], at_end[2]);
	d.untold += gone[1] > 0;
	return lost;
}

/* Rot does not reach the backing devices. */
static void judge_backing(int64_t now[2][BLOCKS])
{
	for (unsigned vol = 0; vol < 2; vol++)
		for (unsigned b = 0; b < BLOCKS; b++) {
			rig_backing(&d.r, vol, block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK);
			must(now[vol][b] == UNREADABLE ? was(vol, b, stamp_read(block_buf, b)) || d.dirty[vol][b]
						       : stamp_read(block_buf, b) == now[vol][b],
			     "%s: backing %u block %u", where, vol, b);
		}
}

static void judge(void)
{
	struct cache_check_report check;
	struct bc_error err = { 0 };
	int64_t now[2][BLOCKS];
	bool found;
	unsigned lost;
	int rc;

	findings = 0;
	rc = cache_check(d.r.dir, &check, finding, NULL, NULL, &err);
	must(!rc || (err.code && err.msg[0]), "%s: check fails with %d and says nothing", where, rc);
	found = rc || findings;
	memset(&err, 0, sizeof err);
	rc = rig_try_open(&d.r, &err);
	if (rc) {
		must(err.code && err.msg[0], "%s: refused with %d and nothing is said", where, rc);
		must(found, "%s: refused (%s), but check finds nothing", where, err.msg);
		d.refused++;
		return;
	}
	d.loaded++;
	lost = judge_values(now);
	must(!lost || found, "%s: %u blocks are lost, but check finds nothing", where, lost);
	d.dropped += d.r.report.epochs_dropped > 0;
	d.lost += lost > 0;
	d.silent += !found;
	rc = cache_write_back(d.r.c, NULL, NULL, NULL, &err);
	must(rc ? err.msg[0] && found : true, "%s: write back: %d %s, findings: %u", where, rc, err.msg, findings);
	if (!rc)
		judge_backing(now);
	rc = rig_try_close(&d.r, &err);
	must(!rc || (err.msg[0] && found), "%s: close: %s", where, err.msg);
}

/* ---- damage ---- */

enum { FLIP_BIT, FLIP_HEAD, ZERO, GARBAGE, SWAP, CUT, HOW_MANY };
static const char *const how_name[] = { "a bit flipped", "a byte of its head changed", "zeroed",
					"garbage",       "swapped with another",       "cut off" };

struct area {
	const char *file;
	size_t first, unit; /* its pieces */
	size_t count; /* 0: to its end */
};

static bool is_empty(const char *p, size_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

/* False: it would change nothing. */
static bool damage(const struct saved *s, const struct area *a, size_t piece, int how)
{
	size_t at = a->first + piece * a->unit, n = (s->len - a->first) / a->unit, other;
	char *buf = malloc(2 * a->unit), *second = buf + a->unit;
	int fd = open(s->path, O_RDWR | O_CLOEXEC);
	bool did = true;

	memcpy(buf, s->data + at, a->unit);
	switch (how) {
	case FLIP_BIT:
		buf[rnd(&seed, a->unit)] ^= (char)(1 << rnd(&seed, 8));
		break;
	case FLIP_HEAD:
		buf[rnd(&seed, 32)] ^= (char)(1 + rnd(&seed, 255));
		break;
	case ZERO:
		did = !is_empty(buf, a->unit);
		memset(buf, 0, a->unit);
		break;
	case GARBAGE:
		for (size_t i = 0; i < a->unit; i++)
			buf[i] = (char)rnd64(&seed);
		break;
	case SWAP:
		for (unsigned tries = 0; tries < 50; tries++) {
			other = a->first + rnd(&seed, n) * a->unit;
			if (!is_empty(s->data + other, a->unit) && memcmp(buf, s->data + other, a->unit))
				break;
		}
		memcpy(second, s->data + other, a->unit);
		did = memcmp(buf, second, a->unit);
		must(pwrite(fd, buf, a->unit, (off_t)other) == (ssize_t)a->unit, "write");
		memcpy(buf, second, a->unit);
		break;
	}
	if (how == CUT)
		must(!ftruncate(fd, (off_t)(at + rnd(&seed, 2) * rnd(&seed, a->unit))), "truncate");
	else
		must(pwrite(fd, buf, a->unit, (off_t)at) == (ssize_t)a->unit, "write");
	close(fd);
	free(buf);
	return did;
}

static void dies(int sig)
{
	(void)!write(2, where, strlen(where));
	(void)!write(2, sig == SIGALRM ? ": hangs\n" : ": crash\n", 8);
	signal(SIGABRT, SIG_DFL);
	abort();
}

/* Every piece that holds something, in each way. */
static void damage_each(const struct area *a)
{
	const struct saved *s = saved_file(a->file);
	unsigned rounds = (unsigned)env_number("DAMAGE_ROUNDS", 1);

	must(s, "no %s", a->file);
	d.log_hurt = strstr(a->file, "-wal");
	signal(SIGALRM, dies);
	for (size_t piece = 0; a->first + (piece + 1) * a->unit <= s->len && (!a->count || piece < a->count); piece++) {
		/* of the empty ones, which are room for growth, a few */
		if (is_empty(s->data + a->first + piece * a->unit, a->unit) && piece % 61)
			continue;
		for (unsigned i = 0; i < HOW_MANY * rounds; i++) {
			/* A shorter log is one of an earlier time. */
			if (d.log_hurt && i % HOW_MANY == CUT)
				continue;
			snprintf(where, sizeof where, "%s: %s: piece %zu %s", d.crashed ? "crashed" : "stopped",
				 a->file, piece, how_name[i % HOW_MANY]);
			alarm(60);
			restore();
			if (damage(s, a, piece, (int)(i % HOW_MANY)))
				judge();
			alarm(0);
		}
	}
}

static const struct area database = { "journal.db", 0, JOURNAL_PAGE }, data_file = { "data", 0, CACHE_BLOCK },
			 log_header = { "journal.db-wal", 0, 32, 1 },
			 log_frames = { "journal.db-wal", 32, JOURNAL_PAGE + 24 };

static void undamaged(void)
{
	int64_t now[2][BLOCKS];

	snprintf(where, sizeof where, "undamaged");
	restore();
	rig_open(&d.r);
	must(!judge_values(now) && !d.r.report.epochs_dropped, "the template is not in order: %s", d.r.report.notes);
	rig_close(&d.r);
}

TestSuite(damage, .timeout = 1200);

Test(damage, stopped)
{
	seed = engine_seed();
	make_template(4096, false);
	undamaged();
	damage_each(&database);
	damage_each(&data_file);
	drop_template();
}

Test(damage, crashed)
{
	seed = engine_seed();
	make_template(16384, true);
	undamaged();
	damage_each(&database);
	damage_each(&log_header);
	damage_each(&log_frames);
	damage_each(&data_file);
	drop_template();
}
