/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_survive.c - a killed process's state found again by the next (src/engine/writelog.c, survive.c): nothing that
 * was answered is lost, whatever the moment of death, and no block is another's (P3).
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "engine/durable/writelog.h"
#include "engine_util.h"

/* ---- the log's format ---- */

static int memfd(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	cr_assert(fd > 0);
	return fd;
}

static struct writelog open_log(int fd)
{
	struct writelog w;

	cr_assert_eq(writelog_open(&w, fd), 0);
	return w;
}

static void put(struct writelog *w, uint64_t epoch, unsigned volume, uint64_t block, uint32_t slot, bool dirty)
{
	const struct writelog_record r = { .volume = (uint16_t)volume,
					   .block = block,
					   .slot = slot,
					   .crc = ~slot,
					   .frame = slot + 7,
					   .dirty = dirty };

	writelog_append(w, epoch, &r);
}

Test(writelog, the_last_record_of_a_block_wins_across_epochs)
{
	int fd = memfd();
	struct writelog w = open_log(fd), w2;
	struct writelog_record *r;
	uint32_t n;

	writelog_start(&w, 7);
	put(&w, 7, 1, 5, 100, true);
	put(&w, 7, 1, 5, 101, true);
	put(&w, 7, 2, 5, 102, true);
	put(&w, 7, 1, 6, 103, true);
	writelog_next(&w, 8); /* 7 is sealed, not durable */
	put(&w, 8, 1, 6, 0, false);
	put(&w, 8, 1, 5, 104, true);

	/* as another process sees it */
	w2 = open_log(fd);
	cr_assert_eq(writelog_collect(&w2, &r, &n), 0);
	cr_assert_eq(n, 3);
	cr_assert(r[0].volume == 1 && r[0].block == 5 && r[0].slot == 104 && r[0].dirty);
	cr_assert(r[0].crc == ~104u && r[0].frame == 111);
	cr_assert(r[1].volume == 1 && r[1].block == 6 && !r[1].dirty);
	cr_assert(r[2].volume == 2 && r[2].block == 5 && r[2].slot == 102 && r[2].dirty);
	free(r);
	writelog_close(&w2);
	writelog_close(&w);
	close(fd);
}

Test(writelog, a_durable_epoch_is_forgotten_and_its_successor_is_not)
{
	int fd = memfd();
	struct writelog w = open_log(fd);
	struct writelog_record *r;
	uint32_t n;

	writelog_start(&w, 7);
	put(&w, 7, 1, 5, 100, true);
	put(&w, 7, 1, 6, 101, true);
	writelog_next(&w, 8);
	put(&w, 8, 1, 6, 102, true);
	writelog_durable(&w, 7);
	writelog_durable(&w, 7); /* again does no harm ... */
	cr_assert_eq(writelog_collect(&w, &r, &n), 0);
	cr_assert(n == 1 && r[0].block == 6 && r[0].slot == 102);
	free(r);
	writelog_next(&w, 9); /* ... nor in the segment's next epoch: */
	put(&w, 9, 1, 1, 103, true);
	writelog_durable(&w, 7);
	cr_assert_eq(writelog_collect(&w, &r, &n), 0);
	cr_assert_eq(n, 2);
	free(r);
	writelog_close(&w);
	close(fd);
}

/* Who dies between taking an index and the stamp leaves what was there before. */
Test(writelog, a_torn_record_never_was_and_old_ones_do_not_come_back)
{
	int fd = memfd();
	struct writelog w = open_log(fd);
	struct writelog_record *r;
	uint32_t n;

	writelog_start(&w, 7);
	for (unsigned i = 0; i < 4; i++)
		put(&w, 7, 1, i, 100 + i, true);
	writelog_next(&w, 8);
	writelog_durable(&w, 7);
	writelog_next(&w, 9); /* the segment of 7 */
	writelog_durable(&w, 8);
	put(&w, 9, 1, 50, 200, true);
	w.h->segment[1].count++; /* torn, over a record of epoch 7 */
	put(&w, 9, 1, 51, 201, true);
	cr_assert_eq(writelog_collect(&w, &r, &n), 0);
	cr_assert_eq(n, 2);
	cr_assert(r[0].block == 50 && r[1].block == 51);
	free(r);
	/* epoch ids may be given out again after a takeover: nothing of before is valid */
	writelog_start(&w, 9);
	w.h->segment[1].count = 3;
	cr_assert_eq(writelog_collect(&w, &r, &n), 0);
	cr_assert_eq(n, 0);
	free(r);
	writelog_close(&w);
	close(fd);
}

Test(writelog, an_overflow_or_foreign_memory_is_told)
{
	int fd = memfd();
	struct writelog w = open_log(fd);
	struct writelog_record *r;
	uint32_t n;

	cr_assert_eq(writelog_collect(&w, &r, &n), -EUCLEAN);
	writelog_start(&w, 7);
	cr_assert(!writelog_full(&w, 7));
	for (uint32_t i = 0; i <= WRITELOG_SOFT_LIMIT; i++)
		put(&w, 7, 1, i, i, true);
	cr_assert(writelog_full(&w, 7));
	cr_assert(!writelog_full(&w, 8));
	for (uint32_t i = WRITELOG_SOFT_LIMIT + 1; i < WRITELOG_RECORDS; i++)
		put(&w, 7, 1, i, i, true);
	cr_assert_eq(writelog_collect(&w, &r, &n), 0);
	cr_assert_eq(n, WRITELOG_RECORDS);
	free(r);
	put(&w, 7, 1, 1, 1, true);
	cr_assert_eq(writelog_collect(&w, &r, &n), -ENOSPC);
	writelog_durable(&w, 7);
	cr_assert_eq(writelog_collect(&w, &r, &n), 0);
	cr_assert_eq(n, 0);
	free(r);
	writelog_close(&w);
	close(fd);
}

/* ---- the engine ---- */

#define BLOCKS 2048u /* of the volume: twice the cache */
#define THREADS 3u
#define MAX_RUN 16u

/* What the clients know; outlives them. A version of 0: zeros. */
struct world {
	_Atomic uint64_t version; /* last given out */
	_Atomic uint64_t begun[BLOCKS], answered[BLOCKS];
	_Atomic unsigned opened, errors;
	_Atomic uint64_t requests;
};

struct client {
	struct world *world;
	struct volume *v;
	uint64_t rng;
	unsigned index;
};

static void check_block(struct world *w, uint64_t b, const char *data)
{
	const uint64_t *words = (const void *)data;
	uint64_t found = words[1], begun = w->begun[b], answered = w->answered[b];
	char want[CACHE_BLOCK];

	if (found)
		stamp(want, b, found);
	else
		memset(want, 0, sizeof want);
	if ((found == begun || found == answered) && !memcmp(want, data, CACHE_BLOCK))
		return;
	fprintf(stderr, "block %llu: found version %llu of block %llu, answered %llu, begun %llu\n",
		(unsigned long long)b, (unsigned long long)found, (unsigned long long)words[0],
		(unsigned long long)answered, (unsigned long long)begun);
	w->errors++;
}

/* One request on blocks that are this client's: runs of MAX_RUN, dealt out in turn. */
static int request(struct client *cl, char *buf)
{
	struct world *w = cl->world;
	uint64_t group = rnd(&cl->rng, BLOCKS / MAX_RUN / THREADS) * THREADS + cl->index;
	uint64_t first = group * MAX_RUN + rnd(&cl->rng, MAX_RUN), off = first * CACHE_BLOCK;
	unsigned n = 1 + (unsigned)rnd(&cl->rng, (group + 1) * MAX_RUN - first), what = (unsigned)rnd(&cl->rng, 200);
	uint64_t version = what < 138 ? ++w->version : 0;
	struct volume_reply reply;
	int rc;

	if (what < 140) {
		for (unsigned i = 0; i < n; i++) {
			w->begun[first + i] = version;
			if (version)
				stamp(buf + i * CACHE_BLOCK, first + i, version);
		}
		rc = version ? volume_write(cl->v, buf, n * CACHE_BLOCK, off, what < 2)
			     : volume_zero(cl->v, off, n * CACHE_BLOCK, what & 1);
		for (unsigned i = 0; i < n && !rc; i++)
			w->answered[first + i] = version;
	} else if (what < 142) {
		rc = volume_flush(cl->v);
	} else if (what < 143 && !cl->index) {
		static const enum cache_mode modes[] = { CACHE_MODE_WB, CACHE_MODE_WT, CACHE_MODE_WB, CACHE_MODE_WI };

		rc = volume_set_mode(cl->v, modes[rnd(&cl->rng, 4)], NULL);
	} else {
		size_t at = 0;

		rc = volume_read(cl->v, off, n * CACHE_BLOCK, &reply);
		if (!rc) {
			for (int i = 1; i <= reply.iovcnt; i++) {
				memcpy(buf + at, reply.iov[i].iov_base, reply.iov[i].iov_len);
				at += reply.iov[i].iov_len;
			}
			volume_read_done(cl->v, &reply);
			for (unsigned i = 0; i < n; i++)
				check_block(w, first + i, buf + i * CACHE_BLOCK);
		}
	}
	w->requests++;
	return rc;
}

static void *client_main(void *arg)
{
	struct client *cl = arg;
	char *buf = malloc(MAX_RUN * CACHE_BLOCK);

	while (buf)
		if (request(cl, buf))
			cl->world->errors++;
	return NULL;
}

static void check_all(struct world *w, struct volume *v)
{
	for (uint64_t b = 0; b < BLOCKS; b++) {
		struct volume_reply reply;
		char data[CACHE_BLOCK];

		if (volume_read(v, b * CACHE_BLOCK, CACHE_BLOCK, &reply)) {
			w->errors++;
			continue;
		}
		memcpy(data, reply.iov[1].iov_base, CACHE_BLOCK);
		volume_read_done(v, &reply);
		check_block(w, b, data);
		/* unlike a client's request, it does not come again: what is there now counts */
		w->answered[b] = w->begun[b] = ((uint64_t *)(void *)data)[1];
	}
}

/* A daemon: opens or takes over, checks, then serves clients until it is killed. */
static void __attribute__((noreturn))
serve(struct rig *r, struct world *w, const struct cache_shared *shared, uint64_t seed)
{
	struct client cl[THREADS];
	struct bc_error err = { 0 };
	struct volume *v;
	struct cache *c;
	pthread_t t;
	int rc;

	alarm(60);
	log_set_level(LOG_LEVEL_WARN);
	do
		rc = cache_open_shared(r->dir, 0, NULL, shared, &c, NULL, &err);
	while (rc == -EBUSY); /* the dead one's I/O */
	if (rc) {
		fprintf(stderr, "%s\n", err.msg);
		w->errors++;
		_exit(1);
	}
	v = cache_volume_get(c, "v0");
	check_all(w, v);
	for (unsigned i = 0; i < THREADS; i++) {
		cl[i] = (struct client){ .world = w, .v = v, .rng = seed + i, .index = i };
		pthread_create(&t, NULL, client_main, &cl[i]);
	}
	w->opened++;
	for (;;)
		pause();
}

static void kill_again_and_again(uint32_t line, enum cache_mode mode, unsigned kills)
{
	struct world *w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct cache_shared shared = { .frames_fd = memfd(), .log_fd = memfd() };
	uint64_t rng = engine_seed();
	struct rig r;

	rig_create(&r, 4 * MIB, line, 1 * MIB, mode);
	rig_open(&r);
	rig_set(&r, "clean-after", "50ms");
	rig_add(&r, "", BLOCKS * CACHE_BLOCK, mode);
	rig_close(&r);
	for (unsigned n = 0; n < kills; n++) {
		uint64_t seed = rnd64(&rng);
		pid_t pid = fork();

		if (!pid)
			serve(&r, w, &shared, seed);
		if (n % 5 < 4) /* else it may die while it takes over */
			for (unsigned ms = 0; w->opened <= n - n / 5 && !w->errors && ms < 30000; ms++)
				usleep(1000);
		usleep((useconds_t)rnd(&rng, n % 5 < 4 ? 60000 : 20000));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		shared.takeover = w->opened > 0;
		cr_assert_eq(w->errors, 0, "after kill %u", n);
	}
	fprintf(stderr, "%u takeovers, %llu requests\n", w->opened, (unsigned long long)w->requests);
	cr_assert_gt(w->requests, 50);
	/* and the machine may die now: what is loaded without any of that memory is whole */
	rig_open(&r);
	rig_write_back(&r, NULL);
	rig_close(&r);
	rig_destroy(&r);
	close(shared.frames_fd);
	close(shared.log_fd);
	munmap(w, sizeof *w);
}

Test(survive, write_back, .timeout = 120)
{
	kill_again_and_again(4096, CACHE_MODE_WB, (unsigned)env_number("KILLS", 10));
}

Test(survive, write_back_large_lines, .timeout = 120)
{
	kill_again_and_again(65536, CACHE_MODE_WB, (unsigned)env_number("KILLS", 10));
}

Test(survive, write_through, .timeout = 120)
{
	kill_again_and_again(16384, CACHE_MODE_WT, (unsigned)env_number("KILLS", 10));
}

/* P6: what could not be made durable before is not made so by the next process. */
Test(survive, a_cache_that_had_failed_is_not_taken_over)
{
	struct cache_shared shared = { .frames_fd = memfd(), .log_fd = memfd() };
	struct bc_error err = { 0 };
	char data[CACHE_BLOCK];
	struct rig r;
	int status;
	pid_t pid;

	rig_create(&r, 4 * MIB, 4096, 1 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "epoch-interval", "60s");
	rig_add(&r, "", 1 * MIB, CACHE_MODE_WB);
	rig_close(&r);
	stamp(data, 3, 1);
	pid = fork();
	if (!pid) {
		struct volume *v;

		if (cache_open_shared(r.dir, 0, NULL, &shared, &r.c, NULL, &err))
			_exit(1);
		v = cache_volume_get(r.c, "v0");
		if (volume_write(v, data, CACHE_BLOCK, 3 * CACHE_BLOCK, false))
			_exit(2);
		cache_fail(r.c, "for the test");
		kill(getpid(), SIGKILL);
	}
	waitpid(pid, &status, 0);
	cr_assert(WIFSIGNALED(status), "status %x", status);
	shared.takeover = true;
	cr_assert_eq(cache_open_shared(r.dir, 0, NULL, &shared, &r.c, NULL, &err), -EIO);
	cr_assert(strstr(err.msg, "failed"), "%s", err.msg);
	r.c = NULL;
	rig_open(&r); /* an ordinary load goes on from the last flush */
	rig_destroy(&r);
}
