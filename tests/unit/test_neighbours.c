/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_neighbours.c - a volume whose backing device hangs keeps no other volume waiting: not its flush, its cleaning,
 * its marks, its removal, the epochs of the cache, nor its writes when the cache is full of what cannot be cleaned.
 *
 * Each test runs in a process of its own, which ends without closing the cache: that would wait for the device.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bdev/error.h"
#include "engine_util.h"

#define HANGS "600s"
#define LIMIT_S 20u /* for what takes moments on an idle machine */

static struct rig r;
static char block_buf[MIB] __attribute__((aligned(4096)));

/* v[0] hangs in `what`, v[1] is well. Both are written back. */
static void two_volumes(const char *what)
{
	struct bc_error err = { 0 };
	char rule[64];

	snprintf(rule, sizeof rule, "op=%s,delay=" HANGS, what);
	rig_open(&r);
	rig_set(&r, "epoch-interval", "50ms");
	rig_add(&r, "error::", 64 * MIB, CACHE_MODE_WB);
	rig_add(&r, "", 64 * MIB, CACHE_MODE_WB);
	must(!bdev_error_set(r.v[0]->bdev, rule, &err), "%s", err.msg);
}

/* A helper is at v[0], and will be for as long as the test runs. */
static void hang_cleaner(void)
{
	must(!volume_write(r.v[0], block_buf, 8 * CACHE_BLOCK, 0, false), "write");
	rig_set(&r, "clean-after", "0s");
	for (int i = 0; i < 500 && !r.c->help.busy[volume_id(r.v[0])]; i++)
		usleep(10000);
	usleep(200000);
	must(r.c->help.busy[volume_id(r.v[0])], "nobody cleans it");
}

static void in_child(void (*body)(void))
{
	int status;
	pid_t pid;

	rig_create(&r, 2 * MIB, 4096, MIB, CACHE_MODE_WB);
	pid = fork();
	if (!pid) {
		alarm(LIMIT_S);
		body();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	rig_destroy(&r);
	must(!(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM), "it waited for the other volume's device");
	must(WIFEXITED(status) && !WEXITSTATUS(status), "failed, status %x", (unsigned)status);
}

static void until(const char *what, bool (*done)(void))
{
	for (int i = 0; i < 1500; i++) {
		if (done())
			return;
		usleep(10000);
	}
	must(false, "%s", what);
}

static bool second_is_clean(void)
{
	return !ctr_get(r.v[1]->dirty_blocks);
}

static bool second_has_no_marks(void)
{
	return !ctr_get(r.v[1]->intent.nmarked);
}

static int stop_soon(const struct cache_progress *p, void *ctx)
{
	(void)p;
	return ++*(int *)ctx > 1;
}

static void others_go_on(void)
{
	struct bc_error err = { 0 };
	uint64_t epoch;
	int asked = 0;

	hang_cleaner();
	must(!volume_write(r.v[1], block_buf, 8 * CACHE_BLOCK, 0, false), "write");
	epoch = epoch_open_id(r.c);
	while (ctr_get(r.c->epoch.durable_id) < epoch)
		usleep(10000);
	must(!volume_flush(r.v[1]), "fsync");
	until("it is not cleaned in the background", second_is_clean);
	rig_set(&r, "clean-after", "86400s");
	must(!volume_write(r.v[1], block_buf, 8 * CACHE_BLOCK, 0, false), "write");
	must(!cache_write_back(r.c, r.v[1], NULL, NULL, &err), "flush: %s", err.msg);
	must(second_is_clean(), "dirty after a flush");
	rig_mode(r.v[1], CACHE_MODE_WT);
	must(!volume_write(r.v[1], block_buf, 8 * CACHE_BLOCK, 0, false), "write");
	until("its marks are not cleared", second_has_no_marks);
	/* whoever waits for the volume that hangs is heard */
	must(cache_write_back(r.c, r.v[0], stop_soon, &asked, &err) == -EINTR, "not interrupted");
	volume_put(r.v[1]);
	must(!cache_volume_remove(r.c, "v1", false, &err), "remove: %s", err.msg);
}

static void flush_hangs(void)
{
	two_volumes("flush");
	others_go_on();
}

static void write_hangs(void)
{
	two_volumes("write");
	others_go_on();
}

Test(neighbours, one_hangs_in_a_flush, .timeout = 60) /* P11 */
{
	in_child(flush_hangs);
}

Test(neighbours, one_hangs_in_a_write, .timeout = 60)
{
	in_child(write_hangs);
}

static void *fill_main(void *arg)
{
	for (uint64_t off = 0; off < 32 * MIB; off += 16 * CACHE_BLOCK)
		if (volume_write(r.v[0], block_buf, 16 * CACHE_BLOCK, off, false))
			break;
	return arg;
}

static bool cache_is_full(void)
{
	return ctr_get(r.v[0]->dirty_blocks) > r.c->slots.n - r.c->space.low;
}

static void full_of_dirty(void)
{
	char got[2 * CACHE_BLOCK];
	pthread_t t;

	two_volumes("flush");
	pthread_create(&t, NULL, fill_main, NULL);
	until("the cache does not fill up", cache_is_full);
	for (unsigned i = 0; i < 64; i++) {
		memset(block_buf, 'a' + (int)i % 26, sizeof got);
		must(!volume_write(r.v[1], block_buf + 100, sizeof got - 100, (uint64_t)i * sizeof got, true),
		     "write %u", i);
	}
	for (unsigned i = 0; i < 64; i++) {
		must(!volume_pread(r.v[1], got, sizeof got, (uint64_t)i * sizeof got), "read");
		must(got[0] == 'a' + (int)i % 26 && got[sizeof got - 200] == got[0] && !got[sizeof got - 1],
		     "block %u reads as something else", 2 * i);
	}
}

Test(neighbours, the_cache_is_full_of_what_cannot_be_cleaned, .timeout = 60)
{
	in_child(full_of_dirty);
}

/* Hundreds of volumes hang, and one does not. No more threads than are waited for, and they go when it is over. */
#define MANY 100u
static struct cache *many;

static void many_hang(void)
{
	struct bc_error err = { 0 };
	char name[16], spec[64];
	struct volume *v;

	rig_open(&r);
	many = r.c;
	rig_set(&r, "clean-after", "86400s");
	rig_set(&r, "epoch-interval", "50ms");
	for (unsigned i = 0; i < MANY; i++) {
		snprintf(name, sizeof name, "h%u", i);
		snprintf(spec, sizeof spec, "delay:flush=" HANGS ":malloc:size=%uK", 64 + i);
		must(!cache_volume_add(many, name, spec, CACHE_MODE_WT, &err), "%s", err.msg);
		v = cache_volume_get(many, name);
		must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write");
		volume_put(v);
	}
	must(!cache_volume_add(many, "well", "malloc:size=1M", CACHE_MODE_WT, &err), "%s", err.msg);
	v = cache_volume_get(many, "well");
	must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write");
	for (int i = 0; ctr_get(v->intent.nmarked); i++) {
		must(i < 1500, "its mark stays, with %u threads and %u waiting", many->help.threads, many->help.n);
		usleep(10000);
	}
	must(many->help.threads <= MANY + 16, "%u threads", many->help.threads);
}

Test(neighbours, a_hundred_hang, .timeout = 60)
{
	in_child(many_hang);
}
