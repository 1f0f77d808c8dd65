/* SPDX-License-Identifier: BSD-3-Clause */
/* test_journal.c - the journal: creating, opening and its refusals, round trips, folding, the bound of the WAL. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

#include "journal_util.h"

TestSuite(journal, .init = scratch_make, .fini = scratch_remove, .timeout = 60);

static char *in_scratch(const char *name)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	return path;
}

/* A journal is there whole or not at all, and never replaces one. */
Test(journal, create_is_exclusive_and_leaves_one_file)
{
	struct journal_geometry geo = geometry(1000, 1000, 1), got;
	struct journal *j;

	ok(journal_create(scratch, &geo, err));
	cr_assert_eq(access(in_scratch(JOURNAL_FILE), F_OK), 0);
	cr_assert_neq(access(in_scratch(JOURNAL_FILE ".new"), F_OK), 0);
	cr_assert_neq(access(in_scratch(JOURNAL_FILE "-wal"), F_OK), 0);
	cr_assert_eq(journal_create(scratch, &geo, err), -EEXIST);
	cr_assert(strstr(err->msg, "exists"), "%s", err->msg);
	ok(journal_open(scratch, false, &j, err));
	journal_get_geometry(j, &got);
	cr_assert_eq(memcmp(&got, &geo, sizeof(geo)), 0);
	journal_close(j);
	cr_assert_neq(access(in_scratch(JOURNAL_FILE "-wal"), F_OK), 0, "a clean stop leaves one file");
}

Test(journal, create_fails_cleanly)
{
	struct journal_geometry geo = geometry(1000, 1000, 1), odd = geometry(1000, 1000, 1);

	cr_assert_eq(journal_create("/nonexistent/folder", &geo, err), -ENOENT, "%s", err->msg);
	odd.line_size = 8192;
	cr_assert_eq(journal_create(scratch, &odd, err), -EINVAL);
	odd = geometry(0, 1000, 1);
	cr_assert_eq(journal_create(scratch, &odd, err), -EINVAL);
	odd = geometry(10, 1000, 17);
	cr_assert_eq(journal_create(scratch, &odd, err), -EINVAL);
	cr_assert_eq(rmdir(scratch), 0, "nothing is left behind");
	mkdir(scratch, 0700);
}

/* The log of a journal that was deleted must not be applied to the new one in its place. */
Test(journal, create_ignores_an_old_log)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	struct collected c = { 0 };

	ok(commit_one(j, 1, 0, 5, 5, 5, 5, NULL));
	copy_journal(scratch, copy_dir);
	journal_close(j);
	unlink(in_scratch("copy/" JOURNAL_FILE));
	ok(journal_create(copy_dir, &geo, err));
	cr_assert_eq(load_dir(copy_dir, false, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.report.lines, 0);
	cr_assert_eq(c.nvolumes, 0);
}

static void write_file(const char *name, const void *data, size_t n)
{
	FILE *f = fopen(in_scratch(name), "w");

	cr_assert(f);
	fwrite(data, 1, n, f);
	fclose(f);
}

/* The message tells a missing file, a foreign one and another version apart, and a foreign one is not changed. */
Test(journal, open_refuses_what_is_no_journal)
{
	static char noise[8192];
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j;
	sqlite3 *db;

	for (int ro = 0; ro < 2; ro++) {
		cr_assert_eq(journal_open(scratch, ro, &j, err), -ENOENT, "%s", err->msg);
		cr_assert(strstr(err->msg, "no cache"), "%s", err->msg);

		memset(noise, 'x', sizeof(noise));
		write_file(JOURNAL_FILE, noise, sizeof(noise));
		cr_assert_eq(journal_open(scratch, ro, &j, err), -EINVAL, "%s", err->msg);
		cr_assert(strstr(err->msg, "is not a blkcache journal"), "%s", err->msg);
		write_file(JOURNAL_FILE, "", 0);
		cr_assert_eq(journal_open(scratch, ro, &j, err), -EINVAL, "%s", err->msg);
		cr_assert(strstr(err->msg, "is not a blkcache journal"), "%s", err->msg);

		unlink(in_scratch(JOURNAL_FILE));
		sqlite3_open(in_scratch(JOURNAL_FILE), &db);
		cr_assert_eq(sqlite3_exec(db, "CREATE TABLE t(a); PRAGMA application_id=77", NULL, NULL, NULL),
			     SQLITE_OK);
		sqlite3_close(db);
		cr_assert_eq(journal_open(scratch, ro, &j, err), -EINVAL, "%s", err->msg);
		cr_assert(strstr(err->msg, "is not a blkcache journal"), "%s", err->msg);
		cr_assert_neq(access(in_scratch(JOURNAL_FILE "-wal"), F_OK), 0);

		unlink(in_scratch(JOURNAL_FILE));
		ok(journal_create(scratch, &geo, err));
		sqlite3_open(in_scratch(JOURNAL_FILE), &db);
		cr_assert_eq(sqlite3_exec(db, "PRAGMA user_version=999", NULL, NULL, NULL), SQLITE_OK);
		sqlite3_close(db);
		cr_assert_eq(journal_open(scratch, ro, &j, err), -EPROTONOSUPPORT, "%s", err->msg);
		cr_assert(strstr(err->msg, "format version 999"), "%s", err->msg);
		unlink(in_scratch(JOURNAL_FILE));
		unlink(in_scratch(JOURNAL_FILE "-wal")); /* SQLite makes an empty one to look at a WAL database */
	}
}

/* P10: nobody else opens the journal of a running owner, for reading neither. */
Test(journal, second_opener_is_refused)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo), *k;
	int status;
	pid_t pid;

	for (int ro = 0; ro < 2; ro++) {
		cr_assert_eq(journal_open(scratch, ro, &k, err), -EBUSY, "%s", err->msg);
		pid = fork();
		if (!pid)
			_exit(journal_open(scratch, ro, &k, err) == -EBUSY ? 0 : 1);
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert_eq(status, 0);
	}
	ok(commit_one(j, 1, 0, 5, 5, 5, 5, NULL));
	journal_close(j);
	ok(journal_open(scratch, false, &j, err));
	journal_close(j);
}

Test(journal, volumes_settings_marks_round_trip)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	struct journal_volume v = { .id = 4095,
				    .name = "two",
				    .backing = "delay:read=5ms:/data/disk.img",
				    .mode = "wt",
				    .identity = { .size = 1ull << 40, .id = { 7, 1ull << 63 }, .mtime_ns = -5 },
				    .in_use = true };
	struct journal_mark m[] = { { 1, 0 }, { 1, UINT32_MAX }, { 4095, 0 }, { 2, 3 } };
	struct collected c = { 0 };

	memset(v.name, 'n', JOURNAL_NAME_MAX - 1);
	ok(journal_volume_put(j, &v, err));
	v.mode[1] = 'b';
	ok(journal_volume_put(j, &v, err));
	ok(journal_setting_put(j, "ram", "64M", err));
	ok(journal_setting_put(j, "ram", "128M", err));
	ok(journal_setting_put(j, "empty", "", err));
	ok(journal_marks_set(j, m, 4, err));
	ok(journal_marks_set(j, m, 2, err));
	ok(journal_marks_clear(j, m, 1, err));
	journal_close(j);

	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.nvolumes, 2);
	cr_assert_str_eq(c.volumes[0].name, "one");
	cr_assert_eq(c.volumes[1].id, 4095);
	cr_assert_str_eq(c.volumes[1].name, v.name);
	cr_assert_str_eq(c.backing[1], v.backing);
	cr_assert_str_eq(c.volumes[1].mode, "wb");
	cr_assert_eq(memcmp(&c.volumes[1].identity, &v.identity, sizeof(v.identity)), 0);
	cr_assert(c.volumes[1].in_use);
	cr_assert_eq(c.nsettings, 2);
	cr_assert_str_eq(c.settings[0][0], "empty");
	cr_assert_str_eq(c.settings[0][1], "");
	cr_assert_str_eq(c.settings[1][1], "128M");
	cr_assert_eq(c.nmarks, 3);
	cr_assert(c.marks[0].volume == 1 && c.marks[0].region == UINT32_MAX);

	ok(journal_open(scratch, false, &j, err));
	ok(journal_volume_delete(j, 4095, err));
	journal_close(j);
	memset(&c, 0, sizeof(c));
	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.nvolumes, 1);
	cr_assert_eq(c.nmarks, 2, "its marks went, the others stayed");
	cr_assert(c.marks[1].volume == 2 && c.marks[1].region == 3);
}

/* A volume's own settings go with it, in the same transaction; those of one whose id begins with the same digits stay.
 */
Test(journal, settings_of_a_volume_go_with_it)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal_volume v = { .id = 4, .name = "four", .backing = "/b", .mode = "wt" };
	struct collected c = { 0 };
	struct journal *j;

	ok(journal_create(scratch, &geo, err));
	ok(journal_open(scratch, false, &j, err));
	ok(journal_volume_put(j, &v, err));
	ok(journal_setting_put(j, "volume.4.access", "0640 1 2", err));
	ok(journal_setting_put(j, "volume.41.access", "0600 3 4", err));
	ok(journal_setting_put(j, "volume.4", "not one of its own", err));
	ok(journal_volume_delete(j, 4, err));
	journal_close(j);

	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.nvolumes, 0);
	cr_assert_eq(c.nsettings, 2);
	cr_assert_str_eq(c.settings[0][0], "volume.4");
	cr_assert_str_eq(c.settings[1][0], "volume.41.access");
}

/* Commits that recovery could not read are refused and do no harm. */
Test(journal, commit_refuses_bad_input)
{
	struct journal_geometry geo = geometry(100, 50, 2);
	union line_buf lb;
	struct journal_line *l = &lb.line;
	struct journal_epoch e = { .id = 5, .lines = l, .nlines = 1 };
	struct journal *j, *unloaded;
	struct collected c = { 0 };

	ok(journal_create(scratch, &geo, err));
	ok(journal_open(scratch, false, &unloaded, err));
	memset(&lb, 0, sizeof(lb));
	cr_assert_eq(journal_commit(unloaded, &e, err), -EINVAL, "before the load");
	journal_close(unloaded);
	unlink(in_scratch(JOURNAL_FILE));
	j = fresh_journal(&geo);

#define REFUSED(change)                                                                                                \
	do {                                                                                                           \
		memset(&lb, 0, sizeof(lb));                                                                            \
		l->volume = 1;                                                                                         \
		l->valid = 3;                                                                                          \
		l->blk[1].slot = 1;                                                                                    \
		change;                                                                                                \
		cr_assert_eq(journal_commit(j, &e, err), -EINVAL, #change);                                            \
	} while (0)
	REFUSED(l->entry = 100);
	REFUSED(l->volume = 4096);
	REFUSED(l->line = 1ull << 48);
	REFUSED(l->valid = 4);
	REFUSED(l->dirty = 4);
	REFUSED((l->valid = 1, l->fresh = 2));
	REFUSED(l->blk[1].slot = 50);
	REFUSED(e.durable_upto = 6);
	e.durable_upto = 0;
	l->blk[1].slot = 1;
	ok(journal_commit(j, &e, err));
	cr_assert_eq(journal_commit(j, &e, err), -EINVAL, "the same id again");
	e.id = 4;
	cr_assert_eq(journal_commit(j, &e, err), -EINVAL, "an id before");
	journal_close(j);
	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.report.last_epoch, 5);
	cr_assert_eq(c.report.lines, 1);
}

/* The WAL is reused, not grown: with maintenance it stays within its bounds for good, without it a commit sees to that.
 */
Test(journal, wal_stays_bounded)
{
	struct journal_geometry geo = geometry(100000, 100000, 1);
	struct journal *j = fresh_journal(&geo);
	struct journal_stats s;
	struct stat st;
	uint64_t id = 1;

	for (int maintained = 1; maintained >= 0; maintained--) {
		for (unsigned i = 0; i < 3000; i++, id++) {
			uint32_t x = rnd(100000);

			ok(commit_one(j, id, id - 1, x, x, x, 0, NULL));
			while (maintained && i % 100 == 0) {
				int more = journal_maintain(j, id, err);

				cr_assert_geq(more, 0, "%s", err->msg);
				if (!more)
					break;
			}
		}
		cr_assert_eq(stat(in_scratch(JOURNAL_FILE "-wal"), &st), 0);
		cr_assert_leq(st.st_size, (maintained ? WAL_SOFT_FRAMES + 1000 : WAL_HARD_FRAMES + 100) * 4200ll);
		journal_get_stats(j, &s);
		cr_assert_geq(s.wal_bytes, (uint64_t)st.st_size);
		cr_assert_gt(s.checkpoints, 1);
	}
	cr_assert_eq(s.commits, 6000);
	journal_close(j);
}

/* Snapshot rows take one page each, whatever the line size, and folding them does not make the file grow. */
Test(journal, snapshot_rows_are_one_page)
{
	for (unsigned bpl = 1; bpl <= JOURNAL_MAX_BLOCKS; bpl++) {
		struct journal_geometry geo = geometry(20000, 20000, bpl);
		struct stat st;

		ok(journal_create(scratch, &geo, err));
		cr_assert_eq(stat(in_scratch(JOURNAL_FILE), &st), 0);
		/* the reserve, the schema, and a few inner pages */
		cr_assert_leq((uint64_t)st.st_size,
			      (snapshot_rows(&geo) * 101 / 100 + 1024 + 20000 * 24 / 4096 + 40) * 4096, "bpl %u", bpl);
		unlink(in_scratch(JOURNAL_FILE));
	}
}

/* The commit of one block writes its row of the ring and nothing else, as long as the ring is folded in time. */
Test(journal, commit_of_a_block_leaves_the_database_alone)
{
	struct journal_geometry geo = geometry(4096, 4096, 1);
	unsigned rows = ring_rows(&geo);
	struct journal *j;
	static uint8_t data[4096];

	cr_assert_eq(rows, 256);
	j = fresh_journal(&geo);
	for (uint32_t id = 1; id <= 3 * rows; id++) {
		int before;

		while (id % 64 == 1 && journal_maintain(j, id - 1, err) > 0)
			;
		before = j->wal_frames;
		memset(data, (int)id, sizeof(data));
		ok(commit_one(j, id, id - 1, id % 4096, id, id % 4096, 0, data));
		cr_assert_eq(j->wal_frames, before, "epoch %u: %d frames", id, j->wal_frames - before);
	}
	journal_close(j);
}

/* ---- threads ---- */

static atomic_uint_fast64_t committed;
static atomic_bool stop;

static void *maintainer(void *arg)
{
	struct bc_error e;

	while (!atomic_load(&stop)) {
		struct journal_stats s;

		journal_get_stats(arg, &s);
		cr_assert_geq(journal_maintain(arg, atomic_load(&committed), &e), 0, "%s", e.msg);
	}
	return NULL;
}

static void *marker(void *arg)
{
	struct bc_error e;

	for (uint32_t i = 0; i < 150; i++) {
		struct journal_mark m = { 1, i };

		cr_assert_eq(journal_marks_set(arg, &m, 1, &e), 0, "%s", e.msg);
		if (i & 1)
			cr_assert_eq(journal_marks_clear(arg, &m, 1, &e), 0, "%s", e.msg);
	}
	return NULL;
}

/* Commits, marks, maintenance and statistics may come from different threads at once. */
Test(journal, threads)
{
	struct journal_geometry geo = geometry(2000, 2000, 1);
	struct collected c = { 0 };
	pthread_t t[2];
	struct journal *j;

	journal_fold_limits = (struct journal_fold_limits){ 1, 4, 4, UINT64_MAX, 4 << 20, 8 };
	j = fresh_journal(&geo);
	pthread_create(&t[0], NULL, maintainer, j);
	pthread_create(&t[1], NULL, marker, j);
	for (uint64_t id = 1; id <= 400; id++) {
		uint32_t x = (uint32_t)(id * 7 % 2000);

		ok(commit_one(j, id, id - 1, x, x, x, x, NULL));
		atomic_store(&committed, id);
	}
	pthread_join(t[1], NULL);
	atomic_store(&stop, true);
	pthread_join(t[0], NULL);
	journal_close(j);
	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.report.last_epoch, 400);
	cr_assert_eq(c.report.lines, 400);
	cr_assert_eq(c.nmarks, 75);
}

/* Not asserted, only told: what a load of a million lines takes here. */
Test(journal, load_a_million)
{
	struct journal_geometry geo = geometry(1000000, 1000000, 1);
	struct journal *j = fresh_journal(&geo);
	uint8_t *lines = calloc(100000, journal_line_stride(1));
	struct journal_epoch e = { .lines = (void *)lines, .nlines = 100000 };
	struct collected c = { 0 };
	struct timespec a, b;
	int more;

	for (e.id = 1; e.id <= 10; e.id++) {
		for (uint32_t i = 0; i < 100000; i++) {
			struct journal_line *l = line_of(lines, 1, i);
			uint32_t x = (uint32_t)((e.id - 1) * 100000 + i);

			*l = (struct journal_line){ .entry = x, .line = x * 7ull, .volume = 1, .valid = 1, .fresh = 1 };
			l->blk[0] = (struct journal_block){ 999999 - x, x };
		}
		ok(journal_commit(j, &e, err));
		while ((more = journal_maintain(j, e.id, err)) > 0)
			;
		cr_assert_eq(more, 0, "%s", err->msg);
	}
	journal_close(j);
	clock_gettime(CLOCK_MONOTONIC, &a);
	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	clock_gettime(CLOCK_MONOTONIC, &b);
	cr_assert_eq(c.report.lines, 1000000);
	cr_log_info("1,000,000 lines in %.0f ms",
		    (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6);
	free(lines);
}
