/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_intent.c - write-intent marks where threads meet: a mark is there before a write and stays until both sides are
 * durable, whoever else begins, ends or clears at the same moment; a write to a marked region waits for no lock.
 */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "engine/durable/bypass.h"
#include "engine_util.h"

static char block_buf[CACHE_BLOCK];

static struct volume *intent_rig(struct rig *r, uint64_t size, enum cache_mode mode)
{
	struct volume *v;

	rig_create(r, 8 * MIB, 4096, 2 * MIB, CACHE_MODE_WT);
	rig_open(r);
	rig_set(r, "epoch-interval", "60s"); /* nobody else at work */
	rig_set(r, "clean-after", "86400s");
	usleep(100000);
	v = rig_add(r, "", size, mode);
	return v;
}

static bool marked(struct volume *v, unsigned region)
{
	return v->intent.region[region].marked == REGION_MARKED;
}

/* Two writes of a region end in the order opposite to that of their epochs. */
Test(intent, the_later_epoch_counts) /* P4 */
{
	struct rig r;
	struct volume *v = intent_rig(&r, 16 * MIB, CACHE_MODE_WT);
	uint64_t early = epoch_open_id(r.c);

	must(!intent_begin(v, 0, CACHE_BLOCK) && !intent_begin(v, 0, CACHE_BLOCK), "begin");
	must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write");
	must(!epoch_commit(r.c, false), "commit");
	must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write"); /* in the open epoch */
	must(epoch_open_id(r.c) > early, "still epoch %llu", (unsigned long long)early);
	intent_end(v, 0, CACHE_BLOCK, epoch_open_id(r.c));
	intent_end(v, 0, CACHE_BLOCK, early);
	must(!intent_clear_idle(v, false), "clear");
	must(marked(v, 0), "the mark went before its epoch was durable");
	must(!epoch_commit(r.c, false) && !intent_clear_idle(v, false), "clear");
	must(!marked(v, 0), "the mark stays for ever");
	rig_destroy(&r);
}

struct thread {
	pthread_t t;
	struct volume *v;
	uint64_t off;
	_Atomic int result; /* 1: still at it */
};

static void *write_main(void *arg)
{
	struct thread *x = arg;

	atomic_store(&x->result, volume_write(x->v, block_buf, CACHE_BLOCK, x->off, false));
	return NULL;
}

static void start_write(struct thread *x, struct volume *v, uint64_t off)
{
	*x = (struct thread){ .v = v, .off = off, .result = 1 };
	must(!pthread_create(&x->t, NULL, write_main, x), "thread");
}

static bool done_within(struct thread *x, unsigned ms)
{
	for (unsigned i = 0; i < ms && x->result == 1; i++)
		usleep(1000);
	return x->result != 1;
}

static void set_mark(struct volume *v, unsigned region, enum region_mark mark)
{
	pthread_mutex_lock(&v->intent.lock);
	v->intent.region[region].marked = (uint8_t)mark;
	pthread_cond_broadcast(&v->intent.changed);
	pthread_mutex_unlock(&v->intent.lock);
}

/* Somebody takes the mark away while a write begins: it waits, and then makes a mark of its own. */
Test(intent, a_write_waits_for_a_mark_that_goes) /* P4 */
{
	struct rig r;
	struct volume *v = intent_rig(&r, 256 * MIB, CACHE_MODE_WT);
	struct thread x, y;

	must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write");
	must(!volume_write(v, block_buf, CACHE_BLOCK, 64 * MIB, false), "write");
	set_mark(v, 0, REGION_CLEARING);
	start_write(&x, v, 0);
	start_write(&y, v, 64 * MIB);
	must(done_within(&y, 5000) && !y.result, "a write to another region waits");
	must(!done_within(&x, 100), "written while the mark was going");
	set_mark(v, 0, REGION_UNMARKED);
	must(done_within(&x, 5000) && !x.result && marked(v, 0), "written without a mark");
	pthread_join(x.t, NULL);
	pthread_join(y.t, NULL);
	rig_destroy(&r);
}

Test(intent, a_marked_region_needs_no_lock) /* P11 */
{
	struct rig r;
	struct volume *v = intent_rig(&r, 16 * MIB, CACHE_MODE_WT);
	struct thread x;

	must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write");
	atomic_store(&v->known.nwitness, 0); /* looking for one of them takes the lock */
	pthread_mutex_lock(&v->intent.lock);
	start_write(&x, v, 8 * MIB);
	must(done_within(&x, 5000) && !x.result, "waits for a lock");
	pthread_mutex_unlock(&v->intent.lock);
	pthread_join(x.t, NULL);
	rig_destroy(&r);
}

/* The cache fails while a write waits for its mark; another volume has dirty data, so it is not bypassed. */
Test(intent, no_write_without_a_mark_when_the_cache_fails) /* P1, P4 */
{
	for (unsigned dirty = 0; dirty < 2; dirty++) {
		struct rig r;
		struct volume *v = intent_rig(&r, 16 * MIB, CACHE_MODE_WT),
			      *w = rig_add(&r, "", 16 * MIB, CACHE_MODE_WB);
		static char state[PATH_MAX + 16];
		char got[CACHE_BLOCK];
		struct thread x;

		snprintf(state, sizeof state, "%s/state", r.top);
		bypass_state_dir = state;
		memset(block_buf, 0, sizeof block_buf);
		must(!volume_write(v, block_buf, CACHE_BLOCK, 0, false), "write");
		must(!dirty || !volume_write(w, block_buf, CACHE_BLOCK, 0, false), "write");
		must(!epoch_commit(r.c, false) && !intent_clear_idle(v, false) && !marked(v, 0), "clear");
		set_mark(v, 0, REGION_MARKING);
		memset(block_buf, 'x', sizeof block_buf);
		start_write(&x, v, 0);
		must(!done_within(&x, 100), "it does not wait for the mark");
		cache_fail(r.c, "for the test");
		set_mark(v, 0, REGION_UNMARKED);
		must(done_within(&x, 5000), "it waits for ever");
		pthread_join(x.t, NULL);
		if (dirty) {
			rig_backing(&r, 0, got, CACHE_BLOCK, 0);
			must(x.result == -EIO && got[0] != 'x', "written without a mark: %d", x.result);
		} else {
			must(!x.result && r.c->bypass_noted, "neither mark nor note: %d", x.result);
		}
		rig_destroy(&r);
	}
}

/* The row must not say `not in use` while somebody writes without a mark. */
Test(intent, a_row_is_not_settled_under_a_holder) /* P10 */
{
	struct rig r;
	struct volume *v = intent_rig(&r, 16 * MIB, CACHE_MODE_WB);

	must(!intent_hold(v) && v->row_in_use, "hold");
	must(!intent_settle(v) && v->row_in_use, "settled under a holder");
	intent_release(v);
	must(!intent_settle(v) && !v->row_in_use, "not settled");
	must(!intent_begin(v, 0, CACHE_BLOCK) && !intent_settle(v) && v->row_in_use, "settled under a mark");
	intent_end(v, 0, CACHE_BLOCK, epoch_open_id(r.c));
	rig_destroy(&r);
}

Test(intent, marks_of_one_request_are_one_commit)
{
	struct rig r;
	struct volume *v = intent_rig(&r, 512 * MIB, CACHE_MODE_WT);
	struct journal_stats before, after;

	must(!intent_begin(v, 0, 1), "begin"); /* the row, and the first mark */
	journal_get_stats(r.c->journal, &before);
	must(!intent_begin(v, 0, 512 * MIB), "begin");
	journal_get_stats(r.c->journal, &after);
	must(after.commits - before.commits <= 1, "%llu commits", (unsigned long long)(after.commits - before.commits));
	for (unsigned i = 0; i < 8; i++)
		must(marked(v, i), "region %u", i);
	intent_end(v, 0, 1, 0);
	intent_end(v, 0, 512 * MIB, 0);
	rig_destroy(&r);
}

#define REGIONS 4u
static _Atomic bool stop;
static struct rig stress;

static void *stress_writer(void *arg)
{
	uint64_t s = (uint64_t)(uintptr_t)arg * 77 + 1;

	while (!stop) {
		uint64_t region = rnd(&s, REGIONS), off = (region << REGION_SHIFT) + rnd(&s, 32) * CACHE_BLOCK;
		struct volume *v = stress.v[0];
		uint64_t epoch;

		must(!intent_begin(v, off, CACHE_BLOCK), "begin");
		must(marked(v, (unsigned)region), "no mark under a write");
		epoch = epoch_open_id(stress.c);
		sched_yield();
		must(marked(v, (unsigned)region), "the mark went under a write");
		intent_end(v, off, CACHE_BLOCK, epoch);
		must(!volume_write(v, block_buf, CACHE_BLOCK, off, false), "write");
	}
	return NULL;
}

/* Clears and settles all the time, and looks: an unmarked region that nobody is at has nothing in an open epoch. */
Test(intent, writers_and_clearing, .timeout = 60)
{
	struct volume *v = intent_rig(&stress, (uint64_t)REGIONS << REGION_SHIFT, CACHE_MODE_WT);
	uint64_t end = now_ns() + 2000000000u;
	pthread_t t[6];

	for (uintptr_t i = 0; i < 6; i++)
		must(!pthread_create(&t[i], NULL, stress_writer, (void *)i), "thread");
	while (now_ns() < end) {
		must(!epoch_commit(stress.c, false) && !intent_clear_idle(v, false) && !intent_settle(v), "clear");
		must(v->row_in_use || !v->intent.nmarked, "a mark under a row that is not in use");
	}
	stop = true;
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	must(!epoch_commit(stress.c, false) && !intent_clear_idle(v, true) && !v->intent.nmarked, "marks stay");
	must(!intent_settle(v) && !v->row_in_use, "not settled");
	for (unsigned i = 0; i < REGIONS; i++)
		must(!v->intent.region[i].in_flight && !marked(v, i), "region %u", i);
	rig_destroy(&stress);
}
