/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_journal_fail.c - the journal over a disk that fails (P6): a VFS under SQLite, and a seam
 * under the ring, fail the Nth write or sync, for every N until a run gets through. After the first failed commit no
 * later one may succeed, and what had been committed is there after a restart.
 */
#include <errno.h>

#include "journal_util.h"

/* ---- a VFS that fails ---- */

static struct {
	sqlite3_vfs vfs, *below;
	int countdown; /* calls until the failing one; 0: never */
	int code; /* what it returns */
	bool syncs_only;
	bool failed;
} shim;

struct shim_file {
	sqlite3_file base;
	sqlite3_file *real;
};

#define REAL(f) (((struct shim_file *)(f))->real)

static int step(bool sync)
{
	if ((shim.syncs_only && !sync) || !shim.countdown || --shim.countdown)
		return SQLITE_OK;
	shim.failed = true;
	return shim.code;
}

static int shim_close(sqlite3_file *f)
{
	int rc = REAL(f)->pMethods->xClose(REAL(f));

	free(REAL(f));
	return rc;
}

static int shim_read(sqlite3_file *f, void *p, int n, sqlite3_int64 o)
{
	return REAL(f)->pMethods->xRead(REAL(f), p, n, o);
}

static int shim_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 o)
{
	int rc = step(false);

	return rc ? rc : REAL(f)->pMethods->xWrite(REAL(f), p, n, o);
}

static int shim_truncate(sqlite3_file *f, sqlite3_int64 n)
{
	return REAL(f)->pMethods->xTruncate(REAL(f), n);
}

static int shim_sync(sqlite3_file *f, int flags)
{
	int rc = step(true);

	return rc ? (rc == SQLITE_FULL ? SQLITE_FULL : SQLITE_IOERR_FSYNC) : REAL(f)->pMethods->xSync(REAL(f), flags);
}

static int shim_size(sqlite3_file *f, sqlite3_int64 *n)
{
	return REAL(f)->pMethods->xFileSize(REAL(f), n);
}

static int shim_lock(sqlite3_file *f, int l)
{
	return REAL(f)->pMethods->xLock(REAL(f), l);
}

static int shim_unlock(sqlite3_file *f, int l)
{
	return REAL(f)->pMethods->xUnlock(REAL(f), l);
}

static int shim_reserved(sqlite3_file *f, int *r)
{
	return REAL(f)->pMethods->xCheckReservedLock(REAL(f), r);
}

static int shim_control(sqlite3_file *f, int op, void *a)
{
	return REAL(f)->pMethods->xFileControl(REAL(f), op, a);
}

static int shim_sector(sqlite3_file *f)
{
	return REAL(f)->pMethods->xSectorSize(REAL(f));
}

static int shim_characteristics(sqlite3_file *f)
{
	return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}

static const sqlite3_io_methods shim_methods = {
	.iVersion = 1,
	.xClose = shim_close,
	.xRead = shim_read,
	.xWrite = shim_write,
	.xTruncate = shim_truncate,
	.xSync = shim_sync,
	.xFileSize = shim_size,
	.xLock = shim_lock,
	.xUnlock = shim_unlock,
	.xCheckReservedLock = shim_reserved,
	.xFileControl = shim_control,
	.xSectorSize = shim_sector,
	.xDeviceCharacteristics = shim_characteristics,
};

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out)
{
	struct shim_file *sf = (struct shim_file *)f;
	int rc;

	(void)vfs;
	sf->base.pMethods = NULL;
	sf->real = calloc(1, (size_t)shim.below->szOsFile);
	rc = shim.below->xOpen(shim.below, name, sf->real, flags, out);
	if (rc != SQLITE_OK) {
		free(sf->real);
		return rc;
	}
	sf->base.pMethods = &shim_methods;
	return SQLITE_OK;
}

/* Under the ring. */
static int ring_step(bool sync)
{
	int rc = step(sync);

	return rc == SQLITE_OK ? 0 : rc == SQLITE_FULL ? -ENOSPC : -EIO;
}

static void setup(void)
{
	scratch_make();
	journal_ring_step = ring_step;
	sqlite3_initialize();
	shim.below = sqlite3_vfs_find(NULL);
	shim.vfs = *shim.below; /* its other functions take no notice of which VFS they are called for */
	shim.vfs.zName = "failing";
	shim.vfs.szOsFile = sizeof(struct shim_file);
	shim.vfs.xOpen = shim_open;
	shim.vfs.pNext = NULL;
	sqlite3_vfs_register(&shim.vfs, 0);
	journal_vfs_name = "failing";
}

TestSuite(journal_fail, .init = setup, .fini = scratch_remove, .timeout = 120);

/* ---- the script ---- */

#define EPOCHS 14

/* Commits epochs until one fails, with folding in between. Returns the last one reported durable. Any failure of a
 * commit must be final. */
static uint64_t run_script(struct journal *j)
{
	struct journal_mark mark = { 1, 7 };
	static uint8_t data[4096];
	uint64_t good = 0;
	bool failed = false;

	for (uint64_t id = 1; id <= EPOCHS; id++) {
		int code;

		data[0] = (uint8_t)id;
		code = commit_one(j, id, id - 1, (uint32_t)id, id, (uint32_t)id, (uint32_t)id, id % 3 ? NULL : data);
		cr_assert(code == 0 || code == -EIO || code == -ENOSPC, "%d %s", code, err->msg);
		if (!code) {
			cr_assert(!failed, "P6: epoch %lu was reported durable after a failure", id);
			good = id;
		} else {
			failed = true;
		}
		code = journal_maintain(j, good, err);
		/* A step without a commit may meet a full disk without harm; else it is final too. */
		if (code < 0 && code != -ENOSPC)
			failed = true;
		if (failed) {
			cr_assert_lt(journal_setting_put(j, "a", "b", err), 0, "P6");
			cr_assert_lt(journal_marks_set(j, &mark, 1, err), 0, "P6");
			cr_assert_eq(journal_maintain(j, good, err), -EIO, "P6");
		}
	}
	return good;
}

static void fail_each(int code, bool syncs_only)
{
	struct journal_geometry geo = geometry(1000, 1000, 1);
	unsigned runs = 0;
	char template[300];

	journal_wal_reserve = 0;
	journal_close(fresh_journal(&geo));
	snprintf(template, sizeof(template), "%s/template", scratch);
	copy_journal(scratch, template);
	journal_fold_limits = (struct journal_fold_limits){ 2, 2, 2, 0, 0, 5 };
	for (int n = 1;; n++) {
		struct collected c = { 0 };
		struct journal *j;
		uint64_t good;

		copy_journal(template, scratch);
		ok(journal_open(scratch, false, &j, err));
		cr_assert_eq(load_into(j, &c), 0, "%s", c.err.msg);
		memset(&c, 0, sizeof(c));
		shim.countdown = n;
		shim.code = code;
		shim.syncs_only = syncs_only;
		shim.failed = false;
		good = run_script(j);
		journal_close(j);
		shim.countdown = 0;

		cr_assert_eq(load_dir(scratch, n & 1, &c), 0, "n=%d: %s", n, c.err.msg);
		cr_assert_geq(c.report.last_epoch, good, "P1: n=%d", n);
		cr_assert_leq(c.report.last_epoch, good + 1, "n=%d", n);
		for (uint32_t e = 1; e <= good; e++)
			cr_assert_eq(line_of(c.lines, 1, e)->volume, 1, "P1: n=%d epoch %u", n, e);
		remove_journal();
		runs++;
		if (!shim.failed)
			break;
	}
	cr_log_info("%u runs", runs);
	cr_assert_gt(runs, 20);
}

Test(journal_fail, every_write_fails_once)
{
	fail_each(SQLITE_IOERR_WRITE, false);
}

Test(journal_fail, every_sync_fails_once)
{
	fail_each(SQLITE_IOERR_FSYNC, true);
}

Test(journal_fail, disk_full_at_every_write)
{
	fail_each(SQLITE_FULL, false);
}

/* A create that fails anywhere leaves no file behind. */
Test(journal_fail, create_leaves_nothing)
{
	struct journal_geometry geo = geometry(1000, 1000, 1);
	int n, code;

	for (n = 1; n < 3000; n += n < 20 ? 1 : 97) {
		shim.countdown = n;
		shim.code = n & 1 ? SQLITE_FULL : SQLITE_IOERR_WRITE;
		shim.failed = false;
		code = journal_create(scratch, &geo, err);
		if (!shim.failed)
			break;
		cr_assert_eq(code, n & 1 ? -ENOSPC : -EIO, "n=%d: %s", n, err->msg);
		cr_assert_eq(rmdir(scratch), 0, "n=%d: something is left behind", n);
		mkdir(scratch, 0700);
	}
	cr_assert_gt(n, 20);
	shim.countdown = 0;
	remove_journal();
	ok(journal_create(scratch, &geo, err));
}
