/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_engine_limits.c - discards that are large by their range and small by what is cached there; an epoch that cannot
 * get memory; errors of the cache's device are counted.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bdev/error.h"
#include "engine_util.h"

#define TIB (UINT64_C(1) << 40)

static char block_buf[16 * CACHE_BLOCK] __attribute__((aligned(4096)));

/* ---- discards ---- */

static void put(struct volume *v, uint64_t block)
{
	stamp(block_buf, block, 1);
	must(!volume_write(v, block_buf, CACHE_BLOCK, block * CACHE_BLOCK, false), "write of block %llu",
	     (unsigned long long)block);
}

static int64_t get(struct volume *v, uint64_t block)
{
	must(!volume_pread(v, block_buf, CACHE_BLOCK, block * CACHE_BLOCK), "read of block %llu",
	     (unsigned long long)block);
	return stamp_read(block_buf, block);
}

#define SPREAD 64u /* blocks, over all of it */

static void large_discards(enum cache_mode mode)
{
	const uint64_t size = 4 * TIB, step = size / CACHE_BLOCK / SPREAD;
	struct rig r;
	struct volume *v;
	uint64_t start;

	rig_create(&r, 8 * MIB, 4096, 2 * MIB, mode);
	rig_open(&r);
	v = rig_add(&r, "", size, mode);
	for (unsigned i = 0; i < SPREAD; i++)
		put(v, i * step);
	start = now_ns();
	/* all but the first and the last of the blocks */
	must(!volume_zero(v, CACHE_BLOCK, (SPREAD - 1) * step * CACHE_BLOCK - CACHE_BLOCK, true), "discard");
	/* in pieces, as a loop device passes them on */
	for (uint64_t off = TIB; off < 2 * TIB; off += UINT64_C(16) << 30)
		must(!volume_zero(v, off, UINT64_C(16) << 30, true), "discard");
	must(now_ns() - start < 30000000000u, "took %llu ms", (unsigned long long)(now_ns() - start) / 1000000);
	must(!volume_flush(v), "flush");
	for (int again = 0; again < 2; again++) {
		for (unsigned i = 0; i < SPREAD; i++) {
			bool kept = !i || i == SPREAD - 1;

			must(get(v, i * step) == (kept ? 1 : STAMP_ZERO), "%s: block %u of %u",
			     again ? "after a restart" : "at once", i, SPREAD);
		}
		rig_close(&r);
		rig_open(&r);
		v = r.v[0];
	}
	rig_destroy(&r);
}

Test(engine_limits, discard_of_terabytes_written_through, .timeout = 120)
{
	large_discards(CACHE_MODE_WT);
}

Test(engine_limits, discard_of_terabytes_written_back, .timeout = 120)
{
	large_discards(CACHE_MODE_WB);
}

/* The process dies between the discard's record and its end: recovery zeroes 4 TiB on a file that could not hold them.
 */
Test(engine_limits, a_large_discard_is_repeated, .timeout = 120)
{
	struct rig r;
	int status;
	pid_t pid;

	rig_create(&r, 8 * MIB, 4096, 2 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_add(&r, "", 4 * TIB, CACHE_MODE_WB);
	put(r.v[0], 5);
	rig_close(&r);
	pid = fork();
	if (!pid) {
		struct journal_discard d = { .id = 1, .volume = 1, .offset = 0, .length = 4 * TIB };

		rig_open(&r);
		d.volume = (uint16_t)volume_id(r.v[0]);
		epoch_enter(r.c);
		if (epoch_add_discard(r.c, &d))
			_exit(1);
		epoch_leave(r.c);
		_exit(epoch_commit(r.c, false) != 0);
	}
	waitpid(pid, &status, 0);
	must(WIFEXITED(status) && !WEXITSTATUS(status), "child");
	rig_open(&r);
	must(get(r.v[0], 5) == STAMP_ZERO, "not repeated");
	rig_destroy(&r);
}

/* A block is dirty when a discard drops the clean ones, and clean when it ends: the cleaner had written it before, and
 * its flush was under way. It must not come up again. */
static void *clean_it(void *v)
{
	struct bc_error err = { 0 };

	must(!cache_write_back(((struct volume *)v)->cache, v, NULL, NULL, &err), "%s", err.msg);
	return NULL;
}

Test(engine_limits, a_block_becomes_clean_under_a_discard, .timeout = 60) /* P3 */
{
	struct rig r;
	struct volume *v;
	pthread_t t;

	rig_create(&r, 8 * MIB, 4096, 2 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	v = rig_add(&r, "delay:flush=500ms:", 64 * MIB, CACHE_MODE_WB);
	rig_mode(v, CACHE_MODE_WB);
	put(v, 7);
	must(!epoch_commit(r.c, true), "commit");
	pthread_create(&t, NULL, clean_it, v);
	usleep(200000); /* it is written by now, and being flushed */
	must(ctr_get(v->dirty_blocks) == 1, "still dirty");
	must(!volume_zero(v, 0, MIB, true), "discard");
	must(get(v, 7) == STAMP_ZERO, "it is back");
	pthread_join(t, NULL);
	must(get(v, 7) == STAMP_ZERO, "it is back");
	rig_destroy(&r);
}

/* The process dies when a discard has zeroed backing, and what it covers is still cached: that is no sign of anybody
 * else.
 */
Test(engine_limits, an_unended_discard_is_no_other_writer, .timeout = 60) /* P10 */
{
	struct rig r;
	int status;
	pid_t pid;

	rig_create(&r, 8 * MIB, 4096, 2 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_add(&r, "", 64 * MIB, CACHE_MODE_WB);
	rig_close(&r);
	pid = fork();
	if (!pid) {
		struct journal_discard d = { .id = 1, .volume = 1, .offset = 0, .length = MIB };
		struct volume *v;
		struct bc_error err;

		rig_open(&r);
		v = r.v[0];
		rig_set(&r, "clean-after", "86400s");
		put(v, 7);
		if (cache_write_back(r.c, v, NULL, NULL, &err))
			_exit(1);
		put(v, 7 + MIB / CACHE_BLOCK); /* dirty: a device that others wrote to would be refused */
		d.volume = (uint16_t)volume_id(v);
		epoch_enter(r.c);
		if (epoch_add_discard(r.c, &d))
			_exit(2);
		epoch_leave(r.c);
		if (epoch_commit(r.c, true))
			_exit(3);
		memset(block_buf, 0, CACHE_BLOCK);
		rig_backing_write(&r, 0, block_buf, CACHE_BLOCK, 7ull * CACHE_BLOCK);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	must(WIFEXITED(status) && !WEXITSTATUS(status), "child: %x", status);
	rig_open(&r);
	must(get(r.v[0], 7) == STAMP_ZERO, "not repeated");
	must(get(r.v[0], 7 + MIB / CACHE_BLOCK) != STAMP_ZERO, "lost");
	rig_destroy(&r);
}

/* A backing device that shrinks, or goes, while it is loaded: the row keeps the size that the lines were made for. */
Test(engine_limits, a_device_that_shrinks_keeps_its_lines, .timeout = 60) /* P10, P1 */
{
	const uint64_t block = 15 * MIB / CACHE_BLOCK;
	struct rig r;
	struct bc_error err = { 0 };
	int status;
	pid_t pid;

	rig_create(&r, 8 * MIB, 4096, 2 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_add(&r, "", 16 * MIB, CACHE_MODE_WB);
	rig_close(&r);
	pid = fork();
	if (!pid) {
		rig_open(&r);
		rig_set(&r, "clean-after", "86400s");
		put(r.v[0], block);
		if (epoch_commit(r.c, true) || truncate(r.path[0], MIB) || volume_record(r.v[0], true, &err))
			_exit(1);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	must(WIFEXITED(status) && !WEXITSTATUS(status), "child: %x", status);
	must(rig_try_open(&r, &err) && strstr(err.msg, "size has changed"), "not refused for its size: %s", err.msg);
	must(!truncate(r.path[0], 16 * MIB), "truncate");
	rig_open(&r);
	must(get(r.v[0], block) == 1, "lost");
	rig_destroy(&r);
}

/* ---- memory ---- */

static void limit_memory(bool on)
{
	struct rlimit l;
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	must(f && fscanf(f, "%lu", &pages) == 1, "statm");
	fclose(f);
	must(!getrlimit(RLIMIT_AS, &l), "getrlimit");
	l.rlim_cur = on ? pages * 4096 + 65536 : l.rlim_max;
	must(!setrlimit(RLIMIT_AS, &l), "setrlimit");
}

static void *lift_limit(void *arg)
{
	usleep(200000);
	limit_memory(false);
	return arg;
}

/* In a process of its own: many entries have changed, and there is no memory for their records. */
static void without_memory(bool comes_back)
{
	struct rig r;
	int status;
	pid_t pid;

	rig_create(&r, 128 * MIB, 65536, 4 * MIB, CACHE_MODE_WB);
	pid = fork();
	if (!pid) {
		pthread_t t;
		int rc;

		alarm(30);
		rig_open(&r);
		rig_set(&r, "epoch-interval", "60s");
		rig_set(&r, "clean-after", "86400s");
		rig_add(&r, "", 256 * MIB, CACHE_MODE_WB);
		must(!volume_write(r.v[0], block_buf, CACHE_BLOCK, 0, false) && !epoch_commit(r.c, false), "write");
		for (unsigned i = 0; i < 1500; i++)
			must(!volume_write(r.v[0], block_buf, CACHE_BLOCK, i * UINT64_C(65536), false), "write");
		if (comes_back)
			pthread_create(&t, NULL, lift_limit, NULL);
		limit_memory(true);
		rc = epoch_commit(r.c, false);
		limit_memory(false);
		if (comes_back)
			_exit(rc || r.c->failed);
		must(rc == -EIO && r.c->failed, "%d: an epoch that cannot be sealed is no failure", rc);
		must(volume_flush(r.v[0]) == -EIO, "a later flush succeeds");
		_exit(0);
	}
	waitpid(pid, &status, 0);
	rig_destroy(&r);
	must(WIFEXITED(status) && !WEXITSTATUS(status), "status %x", (unsigned)status);
}

Test(engine_limits, an_epoch_waits_for_memory, .timeout = 60)
{
	without_memory(true);
}

Test(engine_limits, an_epoch_without_memory_fails, .timeout = 60) /* P6 */
{
	without_memory(false);
}

/* ---- counting ---- */

static void counted(const char *rule, bool in_background)
{
	char spec[PATH_MAX + 16];
	struct volume_stats s[3];
	struct bc_error err = { 0 };
	struct rig r;

	rig_create(&r, 8 * MIB, 4096, 2 * MIB, CACHE_MODE_WB);
	snprintf(spec, sizeof spec, "error::%s/data", r.dir);
	cache_data_spec = spec;
	rig_open(&r);
	rig_set(&r, "epoch-interval", "60s");
	rig_set(&r, "clean-after", "86400s");
	usleep(100000);
	rig_add(&r, "", 16 * MIB, CACHE_MODE_WB);
	rig_add(&r, "", 16 * MIB, CACHE_MODE_WB);
	for (unsigned i = 0; i < 64; i++)
		must(!volume_write(r.v[0], block_buf, CACHE_BLOCK, i * 8 * CACHE_BLOCK, false), "write");
	must(!bdev_error_set(r.c->data, rule, &err), "%s", err.msg);
	must((in_background ? epoch_write_data(r.c) : volume_flush(r.v[0])) == -EIO, "no error");
	volume_get_stats(r.v[0], &s[0]);
	volume_get_stats(r.v[1], &s[1]);
	cache_get_totals(r.c, &s[2]);
	must(s[0].errors.cache_write == 1 && !s[1].errors.cache_write && s[2].errors.cache_write == 1,
	     "%s: counted %llu, %llu, in all %llu", rule, (unsigned long long)s[0].errors.cache_write,
	     (unsigned long long)s[1].errors.cache_write, (unsigned long long)s[2].errors.cache_write);
	rig_destroy(&r);
	cache_data_spec = NULL;
}

Test(engine_limits, errors_of_the_cache_are_counted)
{
	counted("op=write", false);
	counted("op=flush", false);
	counted("op=write", true);
}
