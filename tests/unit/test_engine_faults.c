/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_engine_faults.c - backing devices that fail, blocks of the data file that rot, backing devices that change
 * behind the cache: an error or the right data, never wrong data, and nothing dirty lost without a word.
 */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "bdev/error.h"
#include "engine_util.h"

#define BLOCKS 64u

static char block_buf[16 * CACHE_BLOCK] __attribute__((aligned(4096)));

static void rules(struct volume *v, const char *text)
{
	struct bc_error err = { 0 };

	must(!bdev_error_set(v->bdev, text, &err), "%s: %s", text, err.msg);
}

static int write_version(struct volume *v, unsigned first, unsigned n, uint64_t version)
{
	for (unsigned i = 0; i < n; i++)
		stamp(block_buf + (size_t)i * CACHE_BLOCK, first + i, version);
	return volume_write(v, block_buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, false);
}

/* What a block reads as; STAMP_TORN and so on; INT64_MIN if it cannot be read. */
static int64_t read_version(struct volume *v, unsigned b)
{
	if (volume_pread(v, block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK))
		return INT64_MIN;
	return stamp_read(block_buf, b);
}

static int64_t backing_version(struct rig *r, unsigned i, unsigned b)
{
	rig_backing(r, i, block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK);
	return stamp_read(block_buf, b);
}

/* Nothing happens in the background but the epochs. */
static struct volume *faulty_rig(struct rig *r, enum cache_mode mode, uint32_t line)
{
	struct volume *v;

	rig_create(r, 2 * MIB, line, CACHE_MIN_RAM, mode);
	rig_open(r);
	rig_set(r, "clean-after", "86400s");
	rig_set(r, "dirty-high", "95");
	v = rig_add(r, "error::", BLOCKS * CACHE_BLOCK, mode);
	return v;
}

/* ---- the Nth I/O of a kind fails ---- */

/* A block has its last answered version, or one of those whose write failed since. */
struct expect {
	int64_t good;
	int64_t maybe[16];
	unsigned nmaybe;
};

static void put(struct volume *v, struct expect *x, unsigned first, unsigned n, uint64_t version)
{
	bool ok = !write_version(v, first, n, version);

	for (unsigned b = first; b < first + n; b++) {
		if (ok) {
			x[b].good = (int64_t)version;
			x[b].nmaybe = 0;
		} else {
			x[b].maybe[x[b].nmaybe++] = (int64_t)version;
		}
	}
}

static void put_zero(struct volume *v, struct expect *x, unsigned first, unsigned n)
{
	bool ok = !volume_zero(v, (uint64_t)first * CACHE_BLOCK, (uint64_t)n * CACHE_BLOCK, true);

	for (unsigned b = first; b < first + n; b++) {
		if (ok) {
			x[b].good = STAMP_ZERO;
			x[b].nmaybe = 0;
		} else {
			x[b].maybe[x[b].nmaybe++] = STAMP_ZERO;
		}
	}
}

static void look(const struct expect *x, unsigned b, int64_t got, const char *where)
{
	bool ok = got == x->good;

	for (unsigned i = 0; i < x->nmaybe; i++)
		ok |= got == x->maybe[i];
	must(ok, "%s: block %u has version %lld instead of %lld", where, b, (long long)got, (long long)x->good);
}

/* Some of everything. A quarter of a block is written too, so that writes read. */
static void scenario(struct rig *r, struct volume *v, struct expect *x)
{
	static const char rest[CACHE_BLOCK / 4];
	struct bc_error err;

	put(v, x, 0, 8, 10);
	put(v, x, 6, 8, 11);
	/* makes the block no stamp any more, until it is written again as a whole */
	if (volume_write(v, rest, sizeof rest, 20 * CACHE_BLOCK + 100, false))
		x[20].maybe[x[20].nmaybe++] = STAMP_TORN;
	else
		x[20].good = STAMP_TORN;
	put(v, x, 20, 1, 12);
	for (unsigned b = 0; b < 32; b += 3) {
		int64_t got = read_version(v, b);

		if (got != INT64_MIN)
			look(&x[b], b, got, "reading");
	}
	(void)!volume_flush(v);
	put_zero(v, x, 2, 3);
	put(v, x, 30, 4, 13);
	put(v, x, 3, 1, 14);
	(void)!cache_write_back(r->c, v, NULL, NULL, &err);
	put(v, x, 31, 2, 15);
	(void)!volume_flush(v);
}

static void nth_fails(const char *op, enum cache_mode mode, uint32_t line)
{
	bool flush = !strcmp(op, "flush");
	uint64_t injected = 1;

	for (unsigned nth = 1; injected && nth < 60; nth++) {
		struct expect x[BLOCKS] = { 0 };
		char rule[64], where[96];
		struct bc_error err = { 0 };
		struct rig r;
		struct volume *v = faulty_rig(&r, CACHE_MODE_WB, line);

		for (unsigned b = 0; b < BLOCKS; b++)
			x[b].good = STAMP_ZERO;
		put(v, x, 0, 16, 1);
		put(v, x, 16, 16, 2);
		rig_write_back(&r, v);
		put(v, x, 4, 4, 3); /* some dirty, most clean, some absent when the mode is switched */
		must(!volume_flush(v), "flush");
		rig_mode(v, mode);
		snprintf(rule, sizeof rule, "op=%s,nth=%u", op, nth);
		snprintf(where, sizeof where, "%s in mode %s", rule, cache_mode_name(mode));
		rules(v, rule);
		scenario(&r, v, x);
		injected = bdev_error_injected(v->bdev);
		rules(v, "");
		if (flush && injected) { /* P6: final for this device, until it is opened again */
			must(volume_flush(v) == -EIO || atomic_load(&v->backing_failed), "%s: a later flush", where);
			if (ctr_get(v->write_seq) > ctr_get(v->flushed_seq))
				must(volume_flush(v) == -EIO, "%s: a later flush succeeds", where);
			must(volume_state(v) == CACHE_STATE_DEGRADED, "%s: nobody is told", where);
		} else {
			must(!cache_write_back(r.c, v, NULL, NULL, &err), "%s: afterwards: %s", where, err.msg);
			must(!volume_flush(v), "%s: flush afterwards", where);
		}
		for (unsigned b = 0; b < BLOCKS; b++) {
			int64_t got = read_version(v, b);

			look(&x[b], b, got, where);
			if (!flush || !injected)
				must(backing_version(&r, 0, b) == got, "%s: block %u on the backing device", where, b);
		}
		rig_destroy(&r);
	}
	must(!injected, "%s in mode %s: no end", op, cache_mode_name(mode));
}

Test(engine_faults, nth_read, .timeout = 60)
{
	for (int mode = 0; mode < CACHE_MODE_COUNT; mode++)
		nth_fails("read", (enum cache_mode)mode, mode & 1 ? 4096 : 16384);
}

Test(engine_faults, nth_write, .timeout = 60)
{
	for (int mode = 0; mode < CACHE_MODE_COUNT; mode++)
		nth_fails("write", (enum cache_mode)mode, mode & 1 ? 16384 : 4096);
}

Test(engine_faults, nth_flush, .timeout = 60)
{
	for (int mode = 0; mode < CACHE_MODE_COUNT; mode++)
		nth_fails("flush", (enum cache_mode)mode, 4096);
}

Test(engine_faults, nth_discard, .timeout = 60)
{
	for (int mode = 0; mode < CACHE_MODE_COUNT; mode++)
		nth_fails("unmap|zero", (enum cache_mode)mode, 4096);
}

Test(engine_faults, failed_cleaning_keeps_the_data_dirty)
{
	struct bc_error err = { 0 };
	struct volume_stats s;
	struct rig r;
	struct volume *v = faulty_rig(&r, CACHE_MODE_WB, 8192);

	must(!write_version(v, 0, 9, 1), "write");
	rules(v, "op=write");
	must(cache_write_back(r.c, v, NULL, NULL, &err) == -EIO && err.msg[0], "no error");
	volume_get_stats(v, &s);
	must(s.dirty_bytes == 9 * CACHE_BLOCK && s.errors.backing_write, "%llu bytes dirty, %llu errors",
	     (unsigned long long)s.dirty_bytes, (unsigned long long)s.errors.backing_write);
	must(cache_volume_remove(r.c, "v0", false, &err), "removed with dirty data"); /* P8 */
	must(read_version(v, 8) == 1, "read");
	must(!volume_flush(v), "the cache still makes it durable");
	rules(v, "");
	rig_write_back(&r, v);
	volume_get_stats(v, &s);
	must(!s.dirty_bytes, "still dirty");
	for (unsigned b = 0; b < 9; b++)
		must(backing_version(&r, 0, b) == 1, "block %u", b);
	rig_destroy(&r);
}

Test(engine_faults, failed_backing_flush_is_final) /* P6 */
{
	struct bc_error err = { 0 };
	struct volume_stats s;
	struct rig r;
	struct volume *v = faulty_rig(&r, CACHE_MODE_WB, 4096);

	must(!write_version(v, 0, 4, 1), "write");
	rules(v, "op=flush,count=1");
	must(cache_write_back(r.c, v, NULL, NULL, &err), "no error");
	volume_get_stats(v, &s);
	must(s.dirty_bytes == 4 * CACHE_BLOCK, "clean without a flush (P5)");
	must(cache_write_back(r.c, v, NULL, NULL, &err), "a later flush succeeded");
	must(volume_flush(v) == -EIO, "a later flush succeeded");
	must(volume_state(v) == CACHE_STATE_DEGRADED, "nobody is told");
	must(read_version(v, 0) == 1, "read");
	/* opened anew, the device gets another chance */
	rig_try_close(&r, &err);
	rig_open(&r);
	rig_write_back(&r, r.v[0]);
	must(backing_version(&r, 0, 3) == 1, "lost");
	rig_destroy(&r);
}

/* One dead backing device does not keep another volume's data from being cleaned. */
Test(engine_faults, cleaning_goes_on_with_other_volumes)
{
	struct bc_error err = { 0 };
	struct volume_stats s;
	struct rig r;
	struct volume *v = faulty_rig(&r, CACHE_MODE_WB, 4096), *other = rig_add(&r, "", MIB, CACHE_MODE_WB);

	must(!write_version(v, 0, 4, 1) && !write_version(other, 0, 4, 2), "write");
	rules(v, "op=write");
	must(cache_write_back(r.c, NULL, NULL, NULL, &err) == -EIO, "no error");
	volume_get_stats(other, &s);
	must(!s.dirty_bytes, "the other volume is still dirty");
	must(backing_version(&r, 1, 3) == 2, "the other volume's backing device");
	volume_get_stats(v, &s);
	must(s.dirty_bytes == 4 * CACHE_BLOCK, "lost");
	rules(v, "");
	rig_write_back(&r, NULL);
	rig_destroy(&r);
}

/* A dead backing device, and a cache full of its data: writers wait for room, but nobody waits for them. */
static void *filler(void *arg)
{
	struct volume *v = arg;
	char *buf = calloc(16, CACHE_BLOCK);

	for (unsigned i = 0; i < 32; i++)
		must(!volume_write(v, buf, 16 * CACHE_BLOCK, i * 16ull * CACHE_BLOCK + 100, false), "write");
	free(buf);
	return NULL;
}

Test(engine_faults, nobody_waits_for_writers_without_room, .timeout = 30)
{
	struct rig r;
	struct volume *v;
	pthread_t t;
	uint64_t before = 1;

	rig_create(&r, MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	v = rig_add(&r, "error::", 4 * MIB, CACHE_MODE_WB);
	rules(v, "op=write");
	must(!pthread_create(&t, NULL, filler, v), "pthread_create");
	while (before != ctr_get(v->dirty_blocks) || before < 200) { /* until it is stuck */
		before = ctr_get(v->dirty_blocks);
		usleep(50000);
	}
	rig_mode(v, CACHE_MODE_WO);
	must(read_version(v, 900) == STAMP_ZERO, "a miss");
	must(!volume_flush(v), "flush");
	rules(v, "");
	pthread_join(t, NULL);
	rig_write_back(&r, v);
	rig_destroy(&r);
}

/* ---- rot in the data file ---- */

static void flip(struct rig *r, uint32_t slot)
{
	char path[PATH_MAX + 8], c;
	off_t at = (off_t)slot * CACHE_BLOCK + 1234;
	int fd;

	snprintf(path, sizeof path, "%s/%s", r->dir, CACHE_DATA_FILE);
	fd = open(path, O_RDWR | O_CLOEXEC);
	must(fd >= 0 && pread(fd, &c, 1, at) == 1, "%s", path);
	c ^= 0x10;
	must(pwrite(fd, &c, 1, at) == 1 && !fsync(fd), "%s", path);
	close(fd);
}

static void rot(uint32_t line) /* P9 */
{
	uint32_t clean_slot = 0, dirty_slot = 0;
	bool clean_dirty = true, dirty_dirty = false;
	struct bc_error err = { 0 };
	struct volume_stats s;
	struct rig r;
	struct volume *v;

	rig_create(&r, 2 * MIB, line, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	v = rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	must(!write_version(v, 0, 16, 1), "write");
	rig_write_back(&r, v);
	must(!write_version(v, 16, 16, 2), "write");
	must(rig_slot(v, 5, &clean_slot, &clean_dirty) && !clean_dirty, "block 5 is not clean");
	must(rig_slot(v, 21, &dirty_slot, &dirty_dirty) && dirty_dirty, "block 21 is not dirty");
	rig_close(&r);
	flip(&r, clean_slot);
	flip(&r, dirty_slot);
	rig_open(&r);
	v = r.v[0];
	must(!r.report.epochs_dropped, "%s", r.report.notes);
	/* a clean block: read from backing, in the middle of others, and put right */
	must(!volume_pread(v, block_buf, 8 * CACHE_BLOCK, 2 * CACHE_BLOCK), "read");
	for (unsigned i = 0; i < 8; i++)
		must(stamp_read(block_buf + (size_t)i * CACHE_BLOCK, 2 + i) == 1, "block %u", 2 + i);
	volume_get_stats(v, &s);
	must(s.errors.checksum == 1, "%llu checksum errors counted", (unsigned long long)s.errors.checksum);
	must(read_version(v, 5) == 1, "block 5");
	must(read_version(v, 5) == 1, "block 5");
	volume_get_stats(v, &s);
	must(s.errors.checksum == 1, "block 5 was not put right");
	/* a dirty one: lost, but only this one */
	for (unsigned b = 16; b < 32; b++)
		must(read_version(v, b) == (b == 21 ? INT64_MIN : 2), "block %u", b);
	must(volume_pread(v, block_buf, 4 * CACHE_BLOCK, 20 * CACHE_BLOCK) == -EIO, "a read over block 21");
	must(volume_write(v, "x", 1, 21 * CACHE_BLOCK + 7, false) == -EIO, "a part of block 21 written");
	must(cache_write_back(r.c, v, NULL, NULL, &err) == -EIO, "nobody is told");
	volume_get_stats(v, &s);
	must(s.dirty_bytes == CACHE_BLOCK, "%llu bytes dirty", (unsigned long long)s.dirty_bytes);
	must(backing_version(&r, 0, 21) == STAMP_ZERO, "rot reached the backing device");
	must(backing_version(&r, 0, 22) == 2, "block 22 was not cleaned");
	/* written anew it is whole again */
	must(!write_version(v, 21, 1, 3) && read_version(v, 21) == 3, "block 21 written anew");
	rig_write_back(&r, v);
	must(backing_version(&r, 0, 21) == 3, "block 21 on the backing device");
	rig_destroy(&r);
}

/* A read of several blocks side by side that fails as a whole: only the bad block of them is bad. */
Test(engine_faults, bad_block_fails_alone) /* P9 */
{
	uint32_t first = 0, slot = 0;
	char path[PATH_MAX + 8];
	struct volume_stats s;
	struct volume *v;
	struct rig r;
	bool dirty;

	v = faulty_rig(&r, CACHE_MODE_WB, 4096);
	must(!write_version(v, 0, 7, 2), "write");
	must(read_version(v, 7) == STAMP_ZERO, "a miss");
	must(!epoch_commit(r.c, true), "commit");
	must(rig_slot(v, 0, &first, &dirty) && dirty && rig_slot(v, 7, &slot, &dirty) && !dirty && slot == first + 7,
	     "block 7 does not lie where it should");
	buffer_forget(r.c->buffers, 0, r.c->geo.nslots);
	snprintf(path, sizeof path, "%s/%s", r.dir, CACHE_DATA_FILE);
	must(!truncate(path, (off_t)slot * CACHE_BLOCK), "truncate");
	must(!volume_pread(v, block_buf, 8 * CACHE_BLOCK, 0), "read");
	for (unsigned b = 0; b < 8; b++)
		must(stamp_read(block_buf + (size_t)b * CACHE_BLOCK, b) == (b < 7 ? 2 : STAMP_ZERO), "block %u", b);
	volume_get_stats(v, &s);
	must(s.errors.cache_read == 1, "%llu errors counted", (unsigned long long)s.errors.cache_read);
	rig_destroy(&r);
}

Test(engine_faults, rot_in_small_lines)
{
	rot(4096);
}

Test(engine_faults, rot_in_large_lines)
{
	rot(65536);
}

/* ---- backing devices that change behind the cache (P10) ---- */

/* Blocks 0..7 clean and cached, version 1; stopped in order. */
static void stopped_rig(struct rig *r, bool dirty)
{
	rig_create(r, 2 * MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(r);
	rig_set(r, "clean-after", "86400s");
	rig_add(r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	must(!write_version(r->v[0], 0, 8, 1), "write");
	rig_write_back(r, r->v[0]);
	if (dirty)
		must(!write_version(r->v[0], 4, 1, 2), "write");
	rig_close(r);
}

static void expect_dropped_once(struct rig *r, int64_t version)
{
	rig_open(r);
	must(r->report.dropped_clean_lines >= 8 && strstr(r->report.notes, "v0"), "not noticed: %s", r->report.notes);
	must(read_version(r->v[0], 3) == version, "block 3 has version %lld", (long long)read_version(r->v[0], 3));
	/* from now on it is known as it is, with new data on it or not */
	must(!write_version(r->v[0], 6, 1, 9), "write");
	rig_close(r);
	rig_open(r);
	must(!r->report.dropped_clean_lines && r->report.dirty_lines == 1 && !r->report.notes[0],
	     "the next load: %llu lines dropped, %llu dirty: %s", (unsigned long long)r->report.dropped_clean_lines,
	     (unsigned long long)r->report.dirty_lines, r->report.notes);
	must(read_version(r->v[0], 6) == 9, "block 6");
	rig_destroy(r);
}

Test(engine_faults, changed_contents)
{
	struct rig r;

	stopped_rig(&r, false);
	stamp(block_buf, 3, 7);
	usleep(10000); /* file systems' clocks are coarse */
	rig_backing_write(&r, 0, block_buf, CACHE_BLOCK, 3 * CACHE_BLOCK);
	expect_dropped_once(&r, 7);
}

Test(engine_faults, changed_size)
{
	struct rig r;

	stopped_rig(&r, false);
	must(!truncate(r.path[0], BLOCKS * CACHE_BLOCK / 2), "truncate");
	expect_dropped_once(&r, 1);
}

Test(engine_faults, another_file)
{
	char command[4 * PATH_MAX];
	struct rig r;

	stopped_rig(&r, false);
	snprintf(command, sizeof command, "cp -a '%s' '%s.new' && mv '%s.new' '%s'", r.path[0], r.path[0], r.path[0],
		 r.path[0]);
	must(!system(command), "%s", command);
	expect_dropped_once(&r, 1);
}

Test(engine_faults, changed_under_dirty_data_refuses)
{
	struct bc_error err = { 0 };
	struct timespec times[2];
	struct stat st;
	struct rig r;

	stopped_rig(&r, true);
	must(!stat(r.path[0], &st), "stat");
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	times[1].tv_sec += 100;
	must(!utimensat(AT_FDCWD, r.path[0], times, 0), "utimensat");
	must(rig_try_open(&r, &err) == -ESTALE && strstr(err.msg, "v0"), "not refused: %s", err.msg);
	/* nothing was lost by trying */
	times[1] = st.st_mtim;
	must(!utimensat(AT_FDCWD, r.path[0], times, 0), "utimensat");
	rig_open(&r);
	must(read_version(r.v[0], 4) == 2 && r.report.dirty_lines == 1, "the dirty block");
	rig_destroy(&r);
}

Test(engine_faults, missing_backing_is_named)
{
	struct bc_error err = { 0 };
	struct rig r;

	stopped_rig(&r, false);
	must(!unlink(r.path[0]), "unlink");
	must(rig_try_open(&r, &err) == -ENOENT && strstr(err.msg, "v0"), "%s", err.msg);
	rig_destroy(&r);
}

/* Marks of a crash that lie beyond the new end. */
Test(engine_faults, shrunk_after_a_crash)
{
	struct rig r;
	int status;
	pid_t pid;

	rig_create(&r, 2 * MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WT);
	rig_open(&r);
	rig_add(&r, "", 256 * MIB, CACHE_MODE_WT);
	rig_close(&r);
	pid = fork();
	must(pid >= 0, "fork");
	if (!pid) {
		struct bc_error err;

		if (rig_try_open(&r, &err) || write_version(r.v[0], 60000, 2, 1))
			_exit(1);
		kill(getpid(), SIGKILL);
	}
	must(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "child: %x", status);
	must(!truncate(r.path[0], MIB), "truncate");
	rig_open(&r);
	rig_close(&r);
	rig_open(&r);
	rig_destroy(&r);
}

Test(engine_faults, one_owner)
{
	struct cache_create_params p = { .size_bytes = MIB };
	struct cache_open_report report;
	struct bc_error err = { 0 };
	char other[PATH_MAX], pid[32];
	struct cache *second;
	struct rig r;

	stopped_rig(&r, false);
	rig_open(&r);
	snprintf(pid, sizeof pid, "%d", (int)getpid());
	must(cache_open(r.dir, 0, &second, &report, &err) == -EBUSY && strstr(err.msg, pid), "%s", err.msg);
	snprintf(other, sizeof other, "%.4000s/other", r.top);
	must(!cache_create(other, &p, &err), "%s", err.msg);
	must(!cache_open(other, 0, &second, &report, &err), "%s", err.msg);
	must(cache_volume_add(second, "x", r.path[0], CACHE_MODE_WT, &err) == -EBUSY, "%s", err.msg);
	must(!cache_close(second, &err), "%s", err.msg);
	rig_destroy(&r);
}

/* ---- P11 ---- */

struct slow {
	struct volume *v;
	unsigned block;
	_Atomic unsigned *done;
	pthread_t thread;
};

static void *slow_read(void *arg)
{
	struct slow *s = arg;
	char buf[CACHE_BLOCK];

	must(!volume_pread(s->v, buf, CACHE_BLOCK, (uint64_t)s->block * CACHE_BLOCK), "read");
	++*s->done;
	return NULL;
}

Test(engine_faults, hits_do_not_wait_for_misses, .timeout = 30)
{
	struct slow s[64];
	_Atomic unsigned done = 0;
	unsigned seen;
	struct rig r;
	struct volume *v;

	rig_create(&r, 8 * MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	v = rig_add(&r, "delay:read=700ms:", 16 * MIB, CACHE_MODE_WB);
	for (unsigned b = 0; b < 1024; b += 16) /* four times as many as fit in RAM */
		must(!write_version(v, b, 16, 1), "write");
	must(!volume_flush(v), "flush");
	for (unsigned i = 0; i < 64; i++) {
		s[i] = (struct slow){ .v = v, .block = 2048 + i, .done = &done };
		must(!pthread_create(&s[i].thread, NULL, slow_read, &s[i]), "pthread_create");
	}
	usleep(50000);
	for (unsigned i = 0; i < 100; i++)
		must(read_version(v, i * 10) == 1, "block %u", i * 10);
	must(!write_version(v, 5, 1, 2), "write");
	must(!volume_flush(v), "flush");
	seen = done;
	for (unsigned i = 0; i < 64; i++)
		pthread_join(s[i].thread, NULL);
	must(!seen, "%u misses had ended before the hits", seen);
	rig_destroy(&r);
}
