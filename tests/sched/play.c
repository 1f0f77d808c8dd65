/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * play.c - see play.h. The world in which a kind of case begins (a cache with its volumes, part of each cached and
 * clean) is made once and cloned for every run. Recovery and what is looked at after it run as fibers too, in their
 * plain course.
 */
#include "play.h"
#include "engine/life/life.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bdev/error.h"
#include "bdev/file.h"
#include "check.h"
#include "engine/durable/bypass.h"
#include "engine/request/request.h"
#include "engine/work/clean_batch.h"
#include "journal/db.h"
#include "sync.h"

#define SLOTS 64u
#define RAM_BYTES (64u * CACHE_BLOCK)
#define CACHED_BLOCKS 20u /* of each volume, at the start */

struct play_stats play_stats;

static struct world *start_of[MAX_KINDS];

static struct {
	struct scase *c;
	struct history h;
	struct cache *cache;
	char why[600];
	uint64_t seed;
	const struct schedule *list;
	uint32_t clients_done; /* log position */
	uint32_t opened;
	bool closed; /* and everything is promised */
	struct schedule taken;
	uint32_t steps, turns;
	uint32_t loss; /* log position of the power loss that is looked at */
	bool write_back;
} now;

void play_setup(const char *folder)
{
	mallopt(M_MMAP_THRESHOLD, 64 << 20); /* nothing goes back to the system between runs */
	mallopt(M_TRIM_THRESHOLD, 512 << 20);
	log_set_level((enum log_level) - 1);
	snprintf(crash_dir, sizeof crash_dir, "%s", folder);
	recvfs_register();
	journal_vfs_name = "recorder";
	journal_wal_reserve = 16 << 10;
	journal_ring_max = 6;
	bypass_state_dir = "/nonexistent/blkcache";
	sync_exempt(true);
	world = world_new();
	log_length();
	sync_exempt(false);
	world_free(world);
	world = NULL;
	world_pause = sched_point;
}

static void went_wrong(const char *fmt, ...)
{
	va_list ap;

	if (now.why[0])
		return;
	va_start(ap, fmt);
	vsnprintf(now.why, sizeof now.why, fmt, ap);
	va_end(ap);
}

static void volume_names(unsigned v, bool as_file, char *name, size_t nlen, char *spec, size_t slen)
{
	snprintf(name, nlen, "v%u", v);
	if (as_file)
		snprintf(spec, slen, "%s/b%u", crash_dir, v);
	else
		snprintf(spec, slen, "rec:b%u", v);
}

/* ---- the world at the start ---- */

static void fill_backing(unsigned v)
{
	uint8_t sector[SECTOR];
	char name[8];
	int file;

	snprintf(name, sizeof name, "b%u", v);
	file = file_create(name);
	for (unsigned s = 0; s < volume_sectors(v); s++) {
		stamp_sector(sector, v, s, 0);
		file_write(file, sector, SECTOR, (uint64_t)s * SECTOR, false);
	}
}

static void prepare(void *arg)
{
	const struct kind *k = arg;
	struct cache_create_params p = { .size_bytes = (k->slots ? k->slots : SLOTS) * CACHE_BLOCK,
					 .line_size = k->line_size,
					 .mode = CACHE_MODE_WT,
					 .ram_bytes = RAM_BYTES,
					 .force = true };
	static uint8_t buf[CACHED_BLOCKS * CACHE_BLOCK];
	struct bc_error err = { 0 };
	struct cache *c = NULL;
	char name[16], spec[300];
	int rc;

	for (unsigned v = 0; v < k->volumes; v++)
		fill_backing(v);
	rc = cache_create(crash_dir, &p, &err);
	if (!rc)
		rc = cache_open(crash_dir, 0, &c, NULL, &err);
	if (!rc)
		rc = cache_set(c, NULL, "clean-after", k->clean_after, NULL, &err);
	for (unsigned v = 0; v < k->volumes && !rc; v++) {
		struct volume *vol;

		volume_names(v, k->as_file[v], name, sizeof name, spec, sizeof spec);
		rc = cache_volume_add(c, name, spec, (enum cache_mode)k->mode[v], &err);
		vol = rc ? NULL : cache_volume_get(c, name);
		if (vol) {
			rc = volume_pread(vol, buf, sizeof buf, 0);
			volume_put(vol);
		}
	}
	if (c && cache_close(c, &err) && !rc)
		rc = err.code;
	if (rc)
		went_wrong("the start could not be made: %s (%s)", err.msg, strerror(-rc));
}

static bool make_start(const struct kind *k)
{
	char lock[300];

	if (start_of[k - kinds])
		return true;
	snprintf(lock, sizeof lock, "%s/" CACHE_LOCK_FILE, crash_dir);
	unlink(lock); /* a real file, of the last one */
	world = world_new();
	cache_data_spec = "rec:" CACHE_DATA_FILE;
	if (sched_run(prepare, (void *)(uintptr_t)k) != SCHED_FINE)
		went_wrong("the start could not be made: %s", sched_report());
	if (now.why[0])
		return false;
	world_settle(world);
	start_of[k - kinds] = world;
	world = NULL;
	return true;
}

/* ---- operations ---- */

static struct volume *get_volume(const struct operation *op)
{
	char name[16];

	snprintf(name, sizeof name, "v%u", op->volume);
	return cache_volume_get(now.cache, name);
}

static int do_write(struct volume *v, const struct operation *op)
{
	uint8_t *buf = malloc((size_t)op->n * SECTOR);
	int rc;

	for (unsigned i = 0; i < op->n; i++)
		stamp_sector(buf + (size_t)i * SECTOR, op->volume, op->first + i, (unsigned)(op - now.c->op) + 1);
	rc = volume_write(v, buf, op->n * SECTOR, (uint64_t)op->first * SECTOR, op->type == DO_WRITE_DURABLE);
	free(buf);
	return rc;
}

static int do_read(struct volume *v, const struct operation *op)
{
	uint8_t *buf = malloc((size_t)op->n * SECTOR), floor[VOLUME_SECTORS];
	int rc;

	memcpy(floor, now.h.ended[op->volume], sizeof floor);
	rc = volume_pread(v, buf, op->n * SECTOR, (uint64_t)op->first * SECTOR);
	if (!rc && !now.why[0])
		history_read(&now.h, op, floor, buf, now.why, sizeof now.why);
	free(buf);
	return rc;
}

static int do_add(const struct operation *op, struct bc_error *err)
{
	char name[16], spec[300];

	volume_names(op->volume, now.c->kind->as_file[op->volume], name, sizeof name, spec, sizeof spec);
	return cache_volume_add(now.cache, name, spec, (enum cache_mode)op->mode, err);
}

static int do_set(const struct operation *op, struct bc_error *err)
{
	static const char *const settings[][2] = {
		{ "dirty-high", "10" }, { "dirty-high", "90" },    { "epoch-interval", "10ms" },
		{ "read-ahead", "0" },  { "clean-after", "10ms" }, { "tidy", "8K" },
	};
	const char *const *s = settings[op->first % (sizeof settings / sizeof settings[0])];

	return cache_set(now.cache, NULL, s[0], s[1], NULL, err);
}

static int do_settle(struct volume *v)
{
	int rc = intent_clear_idle(v, false);

	return rc ? rc : intent_settle(v);
}

static int do_lose(const struct operation *op)
{
	char name[8];

	snprintf(name, sizeof name, "b%u", op->volume);
	file_lose(file_find(name));
	return 0;
}

static int carry_out(struct operation *op, struct volume *v, struct bc_error *err)
{
	char name[16];

	switch (op->type) {
	case DO_WRITE:
	case DO_WRITE_DURABLE:
		return do_write(v, op);
	case DO_READ:
		return do_read(v, op);
	case DO_FLUSH:
		return volume_flush(v);
	case DO_ZERO:
	case DO_PUNCH:
		return volume_zero(v, (uint64_t)op->first * SECTOR, (uint64_t)op->n * SECTOR, op->type == DO_PUNCH);
	case DO_MODE:
		return volume_set_mode(v, (enum cache_mode)op->mode, err);
	case DO_WRITE_BACK:
		return cache_write_back(now.cache, v, NULL, NULL, err);
	case DO_REMOVE:
		snprintf(name, sizeof name, "v%u", op->volume);
		return cache_volume_remove(now.cache, name, false, err);
	case DO_ADD:
		return do_add(op, err);
	case DO_SET:
		return do_set(op, err);
	case DO_FAIL_JOURNAL:
		world_journal_fails = true;
		return 0;
	case DO_FAIL_CACHE:
		return bdev_error_set(now.cache->data, op->first % 3 ? "op=flush" : "op=write", err);
	case DO_SETTLE:
		return do_settle(v);
	default:
		return do_lose(op);
	}
}

static bool needs_volume(const struct operation *op)
{
	return op->type != DO_ADD && op->type != DO_REMOVE && op->type != DO_SET && op->type != DO_FAIL_CACHE &&
	       op->type != DO_FAIL_JOURNAL && op->type != DO_LOSE;
}

/* What may fail although nothing is broken. */
static bool may_fail(const struct operation *op, int rc)
{
	return now.c->kind->fails || (op->type == DO_REMOVE && (rc == -EBUSY || rc == -ENOENT)) ||
	       (op->type == DO_ADD && rc == -EEXIST) || (op->type == DO_ADD && rc == -EBUSY);
}

static void *client_main(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	static const char *const client_names[CASE_CLIENTS] = { "client 0", "client 1", "client 2", "client 3" };

	fiber_name(fiber_self(), client_names[me]);
	for (unsigned i = 0; i < now.c->nops && !now.why[0]; i++) {
		struct operation *op = &now.c->op[i];
		struct bc_error err = { 0 };
		struct volume *v = NULL;
		int rc;

		if (op->client != me || op->dropped || (!op->n && op->type <= DO_PUNCH))
			continue;
		if (needs_volume(op) && !(v = get_volume(op)))
			continue;
		history_start(&now.h, op);
		rc = carry_out(op, v, &err);
		history_finish(&now.h, op, rc);
		if (now.cache->failed && op->back)
			op->back = false; /* it may have gone around the cache */
		if (v)
			volume_put(v);
		if (rc < 0 && !may_fail(op, rc))
			went_wrong("operation %u failed: %s", i + 1,
				   err.code            ? err.msg
				   : now.cache->why[0] ? now.cache->why
						       : strerror(-rc));
	}
	return NULL;
}

#define CODE(f) ((const char *)(uintptr_t)(f))

/* Where a source file is in memory: its functions lie side by side, in whatever order; about where the last one ends.
 */
static struct code_range code_of(enum near near)
{
	const char *const within[][10] = {
		[NEAR_INTENT] = { CODE(intent_init), CODE(intent_destroy), CODE(intent_begin), CODE(intent_end),
				  CODE(intent_hold), CODE(intent_forget), CODE(intent_settle), CODE(intent_release),
				  CODE(intent_clear_idle) },
		[NEAR_EPOCH] = { CODE(epoch_init), CODE(epoch_destroy), CODE(epoch_ends_early), CODE(epoch_add_discard),
				 CODE(epoch_commit), CODE(epoch_commit_to), CODE(epoch_durable_upto),
				 CODE(epoch_write_data) },
		[NEAR_FLUSH] = { CODE(file_flushes_init), CODE(file_flushes_destroy), CODE(file_flush_begin),
				 CODE(file_flush_end), CODE(file_flush_settle) },
		[NEAR_BACKING] = { CODE(backing_flush), CODE(backing_flush_on), CODE(backing_write),
				   CODE(backing_zero) },
		[NEAR_PLAN] = { CODE(plan_from_ram), CODE(plan_lookup), CODE(plan_release) },
		[NEAR_CLEAN] = { CODE(clean_batch_get), CODE(clean_batch_put), CODE(clean_batch), CODE(clean_collect) },
	};
	struct code_range r = { .from = within[near][0], .to = within[near][0] };

	for (unsigned i = 1; within[near][i]; i++) {
		if (within[near][i] < r.from)
			r.from = within[near][i];
		if (within[near][i] > r.to)
			r.to = within[near][i];
	}
	r.to += 1024;
	return r;
}

static void record(void *arg)
{
	struct bc_error err = { 0 };
	pthread_t t[CASE_CLIENTS];
	const struct schedule *taken;
	struct code_range near[MAX_NEAR];
	unsigned nnear = 0;
	int rc;

	(void)arg;
	rc = cache_open(crash_dir, 0, &now.cache, NULL, &err);
	if (rc) {
		went_wrong("the cache cannot be opened: %s", err.msg);
		return;
	}
	now.opened = log_length();
	while (nnear < MAX_NEAR && now.c->kind->near[nnear]) {
		near[nnear] = code_of(now.c->kind->near[nnear]);
		nnear++;
	}
	if (now.list)
		sched_follow(now.list);
	else
		sched_explore(now.seed, near, nnear);
	for (unsigned i = 0; i < now.c->clients; i++)
		if (pthread_create(&t[i], NULL, client_main, (void *)(uintptr_t)i))
			abort();
	for (unsigned i = 0; i < now.c->clients; i++)
		pthread_join(t[i], NULL);
	now.clients_done = log_length();
	rc = cache_close(now.cache, &err);
	if (rc && !now.c->kind->fails)
		went_wrong("closing failed: %s", err.msg);
	now.closed = !rc;
	world_journal_fails = false;
	now.steps = sched_steps();
	now.turns = sched_turns_total();
	taken = sched_settle();
	now.taken.seed = taken->seed;
	now.taken.atomics = taken->atomics;
	now.taken.n = taken->n < MAX_TURNS ? taken->n : MAX_TURNS;
	memcpy(now.taken.turn, taken->turn, now.taken.n * sizeof taken->turn[0]);
}

/* ---- after a power loss ---- */

static bool read_volume(struct volume *v, unsigned index, uint8_t *content)
{
	uint32_t bytes = volume_sectors(index) * SECTOR;
	int rc = volume_pread(v, content, bytes, 0);

	if (rc)
		went_wrong("after the power loss volume v%u cannot be read: %s", index, strerror(-rc));
	return !rc;
}

static void look_at_volumes(struct cache *c)
{
	static uint8_t memory[CASE_VOLUMES][VOLUME_SECTORS * SECTOR];
	uint8_t *content[CASE_VOLUMES];

	for (unsigned i = 0; i < now.c->kind->volumes; i++) {
		char name[16], spec[16];
		struct volume *v;

		snprintf(name, sizeof name, "v%u", i);
		snprintf(spec, sizeof spec, "b%u", i);
		content[i] = memory[i];
		v = cache_volume_get(c, name);
		if (!v && !now.h.removed[i])
			went_wrong("volume %s is gone after the power loss", name);
		if (v) {
			read_volume(v, i, memory[i]);
			volume_put(v);
		} else {
			file_read(file_find(spec), memory[i], volume_sectors(i) * SECTOR, 0);
		}
	}
	if (!now.why[0])
		history_crash(&now.h, now.loss, content, now.why, sizeof now.why);
}

static void recover_and_look(void *arg)
{
	struct cache_open_report report;
	struct bc_error err = { 0 };
	struct cache *c;

	(void)arg;
	if (cache_open(crash_dir, 0, &c, &report, &err)) {
		went_wrong("after the power loss the cache cannot be opened: %s", err.msg);
		return;
	}
	/* nobody but us was there: loading must not see others, nor hide a stale block by dropping it (P4, P10) */
	if (report.changed_volumes) {
		report.notes[strcspn(report.notes, "\n")] = 0;
		went_wrong("after the power loss: nobody else wrote to backing, but %s", report.notes);
	}
	check_stats.warm = check_stats.dirty = 0;
	check_lines(c, now.why, sizeof now.why);
	play_stats.warm += check_stats.warm;
	play_stats.dirty += check_stats.dirty;
	look_at_volumes(c);
	if (now.write_back && !now.why[0]) {
		if (cache_write_back(c, NULL, NULL, NULL, &err))
			went_wrong("after the power loss writing back failed: %s", err.msg);
		else
			check_lines(c, now.why, sizeof now.why);
		look_at_volumes(c);
	}
	if (cache_close(c, &err))
		went_wrong("closing failed after the power loss: %s", err.msg);
}

static void lose_power(struct sweep *s, uint32_t at, struct rng *r, struct outcome *out)
{
	uint8_t *choice;

	sweep_to(s, at);
	choice = malloc(s->nunsure + 1);
	choose(s, rng_below(r, STYLES), r, choice);
	world = crash(s, choice);
	free(choice);
	now.loss = at;
	now.write_back = !rng_below(r, 16);
	play_stats.losses++;
	cache_data_spec = "rec:" CACHE_DATA_FILE;
	if (sched_run(recover_and_look, NULL) != SCHED_FINE) {
		went_wrong("after the power loss: %s", sched_report());
		out->stuck = true;
		return;
	}
	world_free(world);
	world = NULL;
	if (now.why[0])
		out->at = at;
}

/* When an operation has just returned, and what it has promised holds; else anywhere. */
static uint32_t any_moment(struct rng *r, uint32_t end)
{
	const struct operation *op = &now.c->op[rng_below(r, now.c->nops)];

	if (rng_below(r, 2) && op->ran && op->end >= now.opened && op->end <= end)
		return op->end;
	return now.opened + rng_below(r, end - now.opened + 1);
}

/* Mostly at the moment when the clients are done and nothing has been tidied up. */
static void lose_power_often(struct world *start, struct log *log, unsigned losses, struct outcome *out)
{
	struct rng r = { .s = now.seed ^ 0x10ad };
	uint32_t at[64];
	struct sweep s;

	losses = losses < 64 ? losses : 64;
	for (unsigned i = 0; i < losses; i++) {
		uint32_t x = i == 0 && rng_below(&r, 4) ? now.clients_done : any_moment(&r, log->n), k = i;

		for (; k && at[k - 1] > x; k--)
			at[k] = at[k - 1];
		at[k] = x;
	}
	sweep_begin(&s, start, log);
	for (unsigned i = 0; i < losses && !now.why[0]; i++)
		lose_power(&s, at[i], &r, out);
	sweep_end(&s);
}

void play(struct scase *c, uint64_t seed, const struct schedule *list, unsigned losses, struct outcome *out)
{
	struct world *start;
	enum sched_result r;
	struct log *log;

	out->failed = out->stuck = false;
	out->at = 0;
	now.c = c;
	now.seed = seed;
	now.list = list;
	now.why[0] = 0;
	now.closed = false;
	world_journal_fails = false;
	recbdev_anonymous = c->kind->anonymous;
	history_begin(&now.h, c);
	if (!make_start(c->kind))
		goto out;
	start = start_of[c->kind - kinds];
	world = world_clone(start);
	world->log = calloc(1, sizeof *world->log);
	cache_data_spec = c->kind->weight[DO_FAIL_CACHE] ? "error::rec:" CACHE_DATA_FILE : "rec:" CACHE_DATA_FILE;
	play_stats.schedules++;
	r = sched_run(record, NULL);
	play_stats.steps += now.steps;
	play_stats.turns += now.turns;
	if (r != SCHED_FINE) {
		const struct schedule *taken = sched_settle();

		memcpy(&now.taken, taken, sizeof now.taken);
		if (now.taken.n > MAX_TURNS)
			now.taken.n = MAX_TURNS;
		went_wrong("%s", sched_report());
		out->stuck = true;
		goto out;
	}
	log = world->log;
	world->log = NULL;
	world_free(world);
	world = NULL;
	out->events = log->n;
	if (!now.why[0])
		lose_power_often(start, log, losses, out);
	log_free(log);
out:
	out->failed = now.why[0];
	memcpy(out->why, now.why, sizeof out->why);
	out->steps = now.steps;
	out->turns = now.turns;
	memcpy(&out->schedule, &now.taken, sizeof out->schedule);
}
