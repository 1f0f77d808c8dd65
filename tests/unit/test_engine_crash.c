/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_engine_crash.c - the process dies (SIGKILL), the machine does not: a child writes and records in shared memory
 * what was started, answered and flushed; the parent opens the cache again and compares. What power loss does to
 * device caches is tests/crash's subject. Random; ENGINE_SEED=n repeats choices, not timing; ENGINE_ROUNDS=n.
 */
#include <signal.h>
#include <sys/wait.h>

#include "engine_util.h"

#define BLOCKS 1024u /* of the volume: 4 MiB on a cache of 1 or 2 */
#define THREADS 4u
#define LOG 65536u

struct shared {
	/* by block; versions count up from 1, 0 is the zeros of the beginning */
	_Atomic uint64_t started[BLOCKS], answered[BLOCKS], flushed[BLOCKS];
	_Atomic uint64_t zeroed[BLOCKS]; /* the last version that was a zeroing */
	/* the single writer's history: which block its i-th write was for */
	uint16_t log[LOG];
	_Atomic uint32_t nlog, nflushed;
	_Atomic uint32_t ready;
};

static struct shared *share(void)
{
	struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	must(s != MAP_FAILED, "mmap");
	return s;
}

struct child {
	struct rig *r;
	struct shared *s;
	uint64_t rng;
	unsigned number;
	bool modes;
};

static void child_flush(struct child *ch)
{
	static __thread uint64_t before[BLOCKS];

	for (unsigned b = ch->number; b < BLOCKS; b += THREADS)
		before[b] = ch->s->answered[b];
	if (volume_flush(ch->r->v[0]))
		_exit(3);
	for (unsigned b = ch->number; b < BLOCKS; b += THREADS)
		ch->s->flushed[b] = before[b];
}

/* Writes its own blocks (number modulo THREADS), so that versions have an order. */
static void *child_thread(void *arg)
{
	struct child *ch = arg;
	struct volume *v = ch->r->v[0];
	char *buf = aligned_alloc(4096, CACHE_BLOCK);
	struct bc_error err;

	for (;;) {
		unsigned b = (unsigned)rnd(&ch->rng, BLOCKS / THREADS) * THREADS + ch->number;
		uint64_t version = ch->s->started[b] + 1;
		unsigned what = (unsigned)rnd(&ch->rng, 100);

		if (what < 6) {
			child_flush(ch);
			continue;
		}
		if (what == 6 && ch->modes) {
			if (volume_set_mode(v, (enum cache_mode)rnd(&ch->rng, CACHE_MODE_COUNT), &err))
				_exit(4);
			continue;
		}
		if (what == 7 && cache_write_back(ch->r->c, NULL, NULL, NULL, &err))
			_exit(5);
		if (what == 8) {
			if (volume_pread(v, buf, CACHE_BLOCK, (uint64_t)rnd(&ch->rng, BLOCKS) * CACHE_BLOCK))
				_exit(6);
			continue;
		}
		ch->s->started[b] = version;
		if (what < 12) {
			ch->s->zeroed[b] = version;
			if (volume_zero(v, (uint64_t)b * CACHE_BLOCK, CACHE_BLOCK, what & 1))
				_exit(7);
		} else {
			stamp(buf, b, version);
			if (volume_write(v, buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, what > 97))
				_exit(8);
			if (what > 97)
				ch->s->flushed[b] = version;
		}
		ch->s->answered[b] = version;
	}
	return NULL;
}

static void child_main(struct rig *r, struct shared *s, uint64_t seed, bool modes)
{
	static struct child ch[THREADS];
	struct bc_error err;
	pthread_t t;

	if (rig_try_open(r, &err)) {
		fprintf(stderr, "child: %s\n", err.msg);
		_exit(2);
	}
	if (cache_set(r->c, NULL, "epoch-interval", "20ms", NULL, &err) ||
	    cache_set(r->c, NULL, "clean-after", seed & 1 ? "20ms" : "30s", NULL, &err))
		_exit(2);
	s->ready = 1;
	for (unsigned i = 0; i < THREADS; i++) {
		ch[i] = (struct child){ .r = r, .s = s, .rng = seed + i, .number = i, .modes = modes };
		if (pthread_create(&t, NULL, child_thread, &ch[i]))
			_exit(2);
	}
	for (;;)
		pause();
}

/* Starts fn in a child, kills it after `ms` of work. */
static void kill_child(pid_t pid, struct shared *s, unsigned us)
{
	int status;

	for (int i = 0; i < 10000 && !s->ready; i++) {
		must(!waitpid(pid, &status, WNOHANG), "the child ended with status %x", status);
		usleep(1000);
	}
	must(s->ready, "the child does not start");
	usleep(us);
	kill(pid, SIGKILL);
	must(waitpid(pid, &status, 0) == pid, "waitpid");
	must(WIFSIGNALED(status), "the child ended with status %x", status);
	s->ready = 0;
}

static void check_blocks(struct rig *r, struct shared *s, unsigned round)
{
	char *buf = aligned_alloc(4096, CACHE_BLOCK);

	for (unsigned b = 0; b < BLOCKS; b++) {
		uint64_t lo = s->flushed[b], hi = s->started[b];
		int64_t version;

		must(!volume_pread(r->v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "round %u: read", round);
		version = stamp_read(buf, b);
		must(version >= STAMP_ZERO, "round %u: block %u is %s", round, b,
		     version == STAMP_TORN ? "torn" : "another block's");
		if (version == STAMP_ZERO)
			must(!lo || (s->zeroed[b] >= lo && s->zeroed[b] <= hi),
			     "round %u: block %u is zero; flushed %llu, answered %llu, started %llu, zeroed %llu, mode "
			     "%s",
			     round, b, (unsigned long long)lo, (unsigned long long)s->answered[b],
			     (unsigned long long)hi, (unsigned long long)s->zeroed[b],
			     cache_mode_name(volume_mode(r->v[0])));
		else
			must((uint64_t)version >= lo && (uint64_t)version <= hi,
			     "round %u: block %u has version %lld; flushed %llu, answered %llu, started %llu", round, b,
			     (long long)version, (unsigned long long)lo, (unsigned long long)s->answered[b],
			     (unsigned long long)hi);
	}
	free(buf);
}

/* After a crash everything is made durable and numbered anew, so that each round's rules start from what it found. */
static void settle(struct rig *r, struct shared *s)
{
	char *buf = aligned_alloc(4096, CACHE_BLOCK);

	for (unsigned b = 0; b < BLOCKS; b++) {
		uint64_t version = s->started[b] + 1;

		stamp(buf, b, version);
		must(!volume_write(r->v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, false), "write");
		s->started[b] = s->answered[b] = s->flushed[b] = version;
	}
	must(!volume_flush(r->v[0]), "flush");
	free(buf);
}

static void crash_rounds(uint32_t line, bool modes, unsigned rounds)
{
	struct shared *s = share();
	uint64_t seed = engine_seed(), rng = seed;
	struct rig r;

	rounds = (unsigned)env_number("ENGINE_ROUNDS", rounds);
	rig_create(&r, 2 * MIB, line, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	rig_close(&r);
	for (unsigned i = 0; i < rounds; i++) {
		pid_t pid = fork();

		must(pid >= 0, "fork");
		if (!pid)
			child_main(&r, s, rng, modes);
		kill_child(pid, s, 500 + (unsigned)rnd(&rng, 60000));
		rig_open(&r);
		must(!r.report.clean_stop, "round %u: the crash was not noticed", i);
		check_blocks(&r, s, i);
		if (rnd(&rng, 2))
			settle(&r, s);
		else /* what was answered and is lost must not count as flushed by the next child's flush */
			for (unsigned b = 0; b < BLOCKS; b++)
				s->answered[b] = s->flushed[b];
		rig_mode(r.v[0], rnd(&rng, 2) ? CACHE_MODE_WB : CACHE_MODE_WT);
		rig_close(&r);
	}
	rig_destroy(&r);
	munmap(s, sizeof *s);
}

Test(engine_crash, killed_in_write_back, .timeout = 600) /* P1, P3 */
{
	crash_rounds(4096, false, 6);
}

Test(engine_crash, killed_in_all_modes, .timeout = 600) /* P1, P3, P4 */
{
	crash_rounds(4096, true, 8);
}

Test(engine_crash, killed_in_all_modes_large_lines, .timeout = 600)
{
	crash_rounds(32768, true, 8);
}

/* One thread in write-back: what survives is the state between two of its writes (P2), and not before the last flush
 * (P1). */
static void prefix_child(struct rig *r, struct shared *s, uint64_t rng)
{
	char *buf = aligned_alloc(4096, CACHE_BLOCK);
	struct bc_error err;

	if (rig_try_open(r, &err))
		_exit(2);
	if (cache_set(r->c, NULL, "epoch-interval", "10ms", NULL, &err) ||
	    cache_set(r->c, NULL, "clean-after", "10ms", NULL, &err))
		_exit(2);
	s->ready = 1;
	for (uint32_t i = 0; i < LOG; i++) {
		unsigned b = (unsigned)rnd(&rng, BLOCKS);

		s->log[i] = (uint16_t)b;
		s->nlog = i + 1;
		stamp(buf, b, i + 1);
		if (volume_write(r->v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, false))
			_exit(8);
		if (!rnd(&rng, 50)) {
			if (volume_flush(r->v[0]))
				_exit(3);
			s->nflushed = i + 1;
		}
	}
	for (;;)
		pause();
}

/* The survivors must be the state after some number of writes: each block narrows it down. */
static void check_prefix(struct rig *r, struct shared *s)
{
	uint32_t lo = s->nflushed, hi = s->nlog, *next = malloc(sizeof *next * LOG), after[BLOCKS];
	char *buf = aligned_alloc(4096, CACHE_BLOCK);

	for (unsigned b = 0; b < BLOCKS; b++)
		after[b] = UINT32_MAX;
	for (uint32_t i = s->nlog; i-- > 0;) { /* next[i]: when the block of write i was written again */
		next[i] = after[s->log[i]];
		after[s->log[i]] = i;
	}
	for (unsigned b = 0; b < BLOCKS; b++) {
		int64_t version;
		uint32_t from, until;

		must(!volume_pread(r->v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
		version = stamp_read(buf, b);
		must(version >= STAMP_ZERO, "block %u is %s", b, version == STAMP_TORN ? "torn" : "another block's");
		must(version <= (int64_t)s->nlog, "block %u is of the future", b);
		from = version == STAMP_ZERO ? 0 : (uint32_t)version;
		until = version == STAMP_ZERO ? after[b] : next[version - 1];
		if (from > lo)
			lo = from;
		if (until < hi)
			hi = until;
		must(lo <= hi,
		     "block %u is of a time between writes %u and %u, others are of write %u at least (of %u)", b, from,
		     until, lo, s->nlog);
	}
	free(next);
	free(buf);
}

Test(engine_crash, what_survives_is_a_prefix, .timeout = 600) /* P2 */
{
	unsigned rounds = (unsigned)env_number("ENGINE_ROUNDS", 8);
	uint64_t rng = engine_seed();

	for (unsigned i = 0; i < rounds; i++) {
		struct shared *s = share();
		struct rig r;
		pid_t pid;

		rig_create(&r, 2 * MIB, i & 1 ? 65536 : 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
		rig_open(&r);
		rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
		rig_close(&r);
		pid = fork();
		must(pid >= 0, "fork");
		if (!pid)
			prefix_child(&r, s, rng + i);
		kill_child(pid, s, 500 + (unsigned)rnd(&rng, 80000));
		rig_open(&r);
		check_prefix(&r, s);
		/* and once more, from what recovery wrote */
		rig_close(&r);
		rig_open(&r);
		check_prefix(&r, s);
		rig_destroy(&r);
		munmap(s, sizeof *s);
	}
}

/* Runs fn in a child that is killed as soon as it returns: nothing of what it left is tidied up. */
static void die_after(struct rig *r, void (*fn)(struct rig *r))
{
	int status;
	pid_t pid = fork();

	must(pid >= 0, "fork");
	if (!pid) {
		struct bc_error err;

		if (rig_try_open(r, &err))
			_exit(2);
		fn(r);
		kill(getpid(), SIGKILL);
	}
	must(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
	     "the child ended with status %x", status);
}

static void child_write(struct rig *r, uint64_t version, bool flush)
{
	static char buf[CACHE_BLOCK] __attribute__((aligned(4096)));

	stamp(buf, 7, version);
	if (volume_write(r->v[0], buf, CACHE_BLOCK, 7 * CACHE_BLOCK, false) || (flush && volume_flush(r->v[0])))
		_exit(3);
}

static void child_mode(struct rig *r, enum cache_mode mode)
{
	struct bc_error err;

	if (volume_set_mode(r->v[0], mode, &err))
		_exit(4);
}

/* Nothing is committed or cleaned but on request, so that the durable state is exactly the last flush's. */
static void quiet_rig(struct rig *r)
{
	rig_create(r, 2 * MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(r);
	rig_set(r, "epoch-interval", "60s");
	rig_set(r, "clean-after", "86400s");
	rig_add(r, "", MIB, CACHE_MODE_WB);
	rig_close(r);
}

static void expect_version(struct rig *r, int64_t version)
{
	char buf[CACHE_BLOCK];
	int64_t got;

	rig_open(r);
	must(!volume_pread(r->v[0], buf, sizeof buf, 7 * CACHE_BLOCK), "read");
	got = stamp_read(buf, 7);
	must(got == version, "version %lld came back instead of the flushed %lld", (long long)got, (long long)version);
	rig_destroy(r);
}

static enum cache_mode over_mode;

static void overwrite_dirty(struct rig *r)
{
	child_write(r, 1, true);
	/* the cleaner is woken by the switch; whichever comes first, the flushed version counts */
	child_mode(r, over_mode);
	child_write(r, 2, true);
}

/* A dirty block is overwritten on the backing device: the flush must cover the cache forgetting its copy. */
static void overwrite_and_die(enum cache_mode mode)
{
	struct rig r;

	quiet_rig(&r);
	over_mode = mode;
	die_after(&r, overwrite_dirty);
	expect_version(&r, 2);
}

Test(engine_crash, write_through_over_dirty)
{
	overwrite_and_die(CACHE_MODE_WT);
}

Test(engine_crash, write_invalidate_over_dirty)
{
	overwrite_and_die(CACHE_MODE_WI);
}

Test(engine_crash, pass_through_over_dirty)
{
	overwrite_and_die(CACHE_MODE_PT);
}

static void overwrite_cleaned(struct rig *r)
{
	child_write(r, 1, true);
	/* cleans, but does not commit that it did */
	if (cleaner_step(r->c, 100, NULL) < 0)
		_exit(5);
	child_mode(r, CACHE_MODE_WT);
	child_write(r, 2, true);
}

Test(engine_crash, write_through_over_just_cleaned)
{
	struct rig r;

	quiet_rig(&r);
	die_after(&r, overwrite_cleaned);
	expect_version(&r, 2);
}

static void zero_cleaned(struct rig *r)
{
	child_write(r, 1, true);
	if (cleaner_step(r->c, 100, NULL) < 0)
		_exit(5);
	child_mode(r, CACHE_MODE_WT);
	if (volume_zero(r->v[0], 7 * CACHE_BLOCK, CACHE_BLOCK, true) || volume_flush(r->v[0]))
		_exit(6);
}

Test(engine_crash, zeroed_after_cleaned)
{
	struct rig r;

	quiet_rig(&r);
	die_after(&r, zero_cleaned);
	expect_version(&r, STAMP_ZERO);
}

/* Copies the cache folder while it is loaded and idle: what was flushed is all there. */
Test(engine_crash, snapshot_after_flush)
{
	char buf[CACHE_BLOCK], command[3 * PATH_MAX];
	struct rig r;

	rig_create(&r, 2 * MIB, 8192, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "epoch-interval", "60s");
	rig_add(&r, "", 4 * MIB, CACHE_MODE_WB);
	for (uint64_t b = 0; b < 100; b++) {
		stamp(buf, b, 1);
		must(!volume_write(r.v[0], buf, CACHE_BLOCK, b * CACHE_BLOCK, false), "write");
	}
	must(!volume_flush(r.v[0]), "flush");
	for (uint64_t b = 0; b < 10; b++) { /* a small flush: carried in the row */
		stamp(buf, b, 2);
		must(!volume_write(r.v[0], buf, CACHE_BLOCK, b * CACHE_BLOCK, false), "write");
	}
	must(!volume_flush(r.v[0]), "flush");
	snprintf(command, sizeof command, "cp -a '%s' '%s/copy'", r.dir, r.top);
	must(!system(command), "%s", command);
	rig_close(&r);
	snprintf(r.dir, sizeof r.dir, "%s/copy", r.top);
	rig_open(&r);
	must(!r.report.clean_stop && !r.report.epochs_dropped, "%s", r.report.notes);
	for (uint64_t b = 0; b < 100; b++) {
		must(!volume_pread(r.v[0], buf, CACHE_BLOCK, b * CACHE_BLOCK), "read");
		must(stamp_read(buf, b) == (b < 10 ? 2 : 1), "block %u has version %lld", (unsigned)b,
		     (long long)stamp_read(buf, b));
	}
	rig_destroy(&r);
}
