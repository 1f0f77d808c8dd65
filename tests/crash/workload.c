/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * workload.c - see workload.h. Background work is done by operations of the workload's own thread (OP_MAINTAIN, ...),
 * with the periods of the real background threads set beyond the run, so that a seed gives the same log again; reclaim
 * and the `busy` workloads are the exception. What is replayed is the log anyway.
 */
#include "workload.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/durable/bypass.h"
#include "engine/durable/identity.h"
#include "engine/life/recover.h"
#include "journal/db.h"

static const char *const op_names[OP_TYPES] = {
	"create", "open",       "close",       "add",   "remove",     "mode",           "write",    "write-durable",
	"flush",  "read",       "zero",        "punch", "write-back", "write-back-all", "maintain", "clean",
	"epoch",  "checkpoint", "clear-marks", "set",   "sleep",      "fail-zero",      "meddle",
};

void fill_data(uint8_t *buf, uint64_t len, uint64_t seed)
{
	struct rng r = { .s = seed };

	for (uint64_t i = 0; i < len; i += 8) {
		uint64_t w = rng_next(&r);

		memcpy(buf + i, &w, len - i < 8 ? len - i : 8);
	}
}

/* ---- making operations ---- */

static unsigned weight_of(const struct config *cfg, unsigned type)
{
	return cfg->weight[type] + (cfg->from_nothing ? 0 : basic_weights[type]);
}

static enum op_type pick_type(const struct config *cfg, struct rng *r)
{
	unsigned sum = 0, x;

	for (unsigned i = 0; i < OP_TYPES; i++)
		sum += weight_of(cfg, i);
	x = rng_below(r, sum);
	for (unsigned i = 0;; i++) {
		if (x < weight_of(cfg, i))
			return (enum op_type)i;
		x -= weight_of(cfg, i);
	}
}

static uint8_t pick_mode(const struct config *cfg, struct rng *r)
{
	uint8_t m;

	do
		m = (uint8_t)rng_below(r, CACHE_MODE_COUNT);
	while (cfg->modes && !(cfg->modes >> m & 1));
	return m;
}

static void pick_range(const struct config *cfg, struct rng *r, struct op *op)
{
	uint64_t bytes = cfg->bytes[op->volume], area = bytes;
	uint32_t max = op->type == OP_READ                                                       ? 65536
		       : op->type == OP_ZERO || op->type == OP_PUNCH || op->type == OP_FAIL_ZERO ? 100 * 1024u
												 : cfg->max_write;

	if (cfg->hot_blocks && rng_below(r, 4) && cfg->hot_blocks * CACHE_BLOCK < bytes)
		area = cfg->hot_blocks * CACHE_BLOCK;
	op->off = rng_below(r, (uint32_t)area);
	op->len = 1 + rng_below(r, rng_below(r, 3) ? CACHE_BLOCK * 2 : max);
	if (rng_below(r, 2)) { /* whole blocks */
		op->off &= ~(uint64_t)(CACHE_BLOCK - 1);
		op->len = (op->len + CACHE_BLOCK - 1) & ~(CACHE_BLOCK - 1);
	}
	if (op->off + op->len > bytes)
		op->len = (uint32_t)(bytes - op->off);
}

static void add_change(struct run *r, struct rng *rng, enum op_type type, unsigned volume)
{
	struct op *op = &r->ops[r->nops++];

	op->type = type;
	op->volume = (uint8_t)volume;
	op->mode = pick_mode(&r->cfg, rng);
}

/* Of the stopped cache: often the volume that is most in use makes place for another one, which gets its id. */
static void add_offline(struct run *r, struct rng *rng)
{
	unsigned n = r->cfg.offline ? rng_below(rng, 6) : 0;

	if (n >= 3) {
		add_change(r, rng, OP_REMOVE, 0);
		add_change(r, rng, OP_ADD, 1 + rng_below(rng, VOLUMES - 1));
		n -= 3;
	}
	while (n--)
		add_change(r, rng, rng_below(rng, 2) ? OP_ADD : OP_REMOVE, rng_below(rng, VOLUMES));
}

/* In place of the last operation. */
static void add_replacing(struct run *r, struct op *last)
{
	static const enum op_type types[] = { OP_MODE, OP_WRITE_DURABLE, OP_MODE, OP_WRITE, OP_EPOCH };
	struct op op = *last;

	r->nops--;
	for (unsigned i = 0; i < sizeof types / sizeof *types; i++) {
		op.type = types[i];
		op.mode = i ? CACHE_MODE_WT : CACHE_MODE_WB;
		op.seed += i;
		r->ops[r->nops++] = op;
	}
}

void workload_generate(struct run *r)
{
	const struct config *cfg = &r->cfg;
	struct rng rng = { .s = r->seed * 0x9e3779b9ull + 7 };
	unsigned n = cfg->min_ops + rng_below(&rng, cfg->max_ops - cfg->min_ops + 1);

	r->ops = calloc(8 * n + 12, sizeof r->ops[0]);
	if (!r->ops)
		abort();
	r->nops = 0;
	if (cfg->from_nothing)
		r->ops[r->nops++].type = OP_CREATE;
	add_offline(r, &rng);
	r->ops[r->nops++].type = OP_OPEN;
	for (unsigned i = 0; i < n; i++) {
		struct op *op = &r->ops[r->nops++];

		op->type = pick_type(cfg, &rng);
		op->volume = (uint8_t)rng_below(&rng, op->type == OP_ADD || op->type == OP_REMOVE || !cfg->volumes ||
								      cfg->weight[OP_ADD]
							      ? VOLUMES
							      : cfg->volumes);
		op->mode = pick_mode(cfg, &rng);
		op->seed = rng_next(&rng);
		pick_range(cfg, &rng, op);
		if (op->type == OP_MODE && cfg->replace) {
			add_replacing(r, op);
			continue;
		}
		if (op->type == OP_PUNCH && cfg->nested_every) { /* without dirty blocks it would not be recorded */
			struct op punch = *op;

			op->type = OP_WRITE;
			op->len = op->len < CACHE_BLOCK ? op->len : CACHE_BLOCK;
			r->ops[r->nops++] = punch;
			continue;
		}
		if (op->type == OP_FAIL_ZERO) { /* whole blocks: others are written first, and make the cache dirty */
			op->off &= ~(uint64_t)(CACHE_BLOCK - 1);
			op->len = (op->len + CACHE_BLOCK) & ~(CACHE_BLOCK - 1);
			/* and then something is written there, without the cache, and promised */
			r->ops[r->nops] = *op;
			r->ops[r->nops].type = OP_WRITE_DURABLE;
			r->ops[r->nops++].len = CACHE_BLOCK;
		}
		if (op->type == OP_MEDDLE) { /* a load that notices comes soon */
			struct op meddle = *op;

			op->type = OP_WRITE_BACK_ALL;
			r->ops[r->nops++].type = OP_CLOSE;
			meddle.off &= ~(uint64_t)(CACHE_BLOCK - 1);
			meddle.len = CACHE_BLOCK;
			r->ops[r->nops++] = meddle;
			r->ops[r->nops++].type = OP_OPEN;
			continue;
		}
		if (op->type == OP_CREATE) { /* in place of the old one */
			op->type = OP_CLOSE;
			r->ops[r->nops++].type = OP_CREATE;
		}
		if (op->type == OP_CLOSE) {
			add_offline(r, &rng);
			r->ops[r->nops++].type = OP_OPEN;
		}
	}
	r->ops[r->nops++].type = OP_CLOSE;
}

void print_op(const struct op *op, unsigned index)
{
	printf("#   %3u %-14s", index, op_names[op->type]);
	switch (op->type) {
	case OP_ADD:
	case OP_MODE:
		printf(" v%u %s", op->volume, cache_mode_name((enum cache_mode)op->mode));
		break;
	case OP_WRITE:
	case OP_WRITE_DURABLE:
	case OP_READ:
	case OP_ZERO:
	case OP_PUNCH:
	case OP_FAIL_ZERO:
	case OP_MEDDLE:
		printf(" v%u %llu+%u", op->volume, (unsigned long long)op->off, op->len);
		break;
	case OP_FLUSH:
	case OP_REMOVE:
	case OP_WRITE_BACK:
		printf(" v%u", op->volume);
		break;
	default:
		break;
	}
	if (op->last_step >= op->first_step && op->first_step)
		printf("  steps %u..%u", op->first_step, op->last_step);
	printf("  log %u..%d\n", op->begin, (int)op->end);
}

/* ---- running them ---- */

struct exec {
	struct run *r;
	struct cache *c;
	pthread_mutex_t lock; /* r->why */
	uint8_t *buf;
	bool nothing_dirty; /* for certain */
	bool meddled; /* once is enough: until it is noted all data has to be compared */
	uint8_t *added[VOLUMES]; /* before the first open after a crash: what was on its backing device then */
};

static void went_wrong(struct exec *x, const struct op *op, const char *what)
{
	pthread_mutex_lock(&x->lock);
	if (!x->r->why[0])
		snprintf(x->r->why, sizeof x->r->why, "operation %d (%s) failed: %s", (int)(op - x->r->ops),
			 op_names[op->type], what);
	pthread_mutex_unlock(&x->lock);
}

/* Whether it is worth it or not. */
static void tidy_everything(struct cache *c)
{
	for (unsigned i = 1; i <= VOLUMES; i++) {
		struct volume *v = cache_volume_get_id(c, i);

		if (!v)
			continue;
		idle_tidy_later(v, 0, (unsigned)v->nblocks);
		volume_put(v);
	}
	compact_run(c, true);
}

static int maintain(struct cache *c, bool tidy, struct bc_error *err)
{
	int rc = epoch_commit(c, true);

	for (unsigned i = 1; i <= VOLUMES + 1 && !rc; i++) {
		struct volume *v = cache_volume_get_id(c, i);
		uint64_t seq;

		if (!v)
			continue;
		seq = ctr_get(v->write_seq);
		rc = intent_clear_idle(v, false);
		if (!rc && v->settle_seq == seq)
			rc = intent_settle(v);
		v->settle_seq = seq;
		volume_put(v);
	}
	if (!rc && atomic_exchange(&c->compact_wanted, false))
		compact_run(c, false);
	idle_look(c, 1000000000);
	if (!rc && tidy)
		tidy_everything(c);
	if (!rc)
		idle_run(c);
	if (!rc)
		while ((rc = journal_maintain(c->journal, ctr_get(c->epoch.data_upto), err)) == 1)
			;
	return rc;
}

static int checkpoint(struct cache *c, struct bc_error *err)
{
	int rc;

	pthread_mutex_lock(&c->journal->lock);
	rc = jdb_checkpoint(c->journal, err);
	pthread_mutex_unlock(&c->journal->lock);
	return rc;
}

static struct cache *to_fail;

static void fail_now(void)
{
	cache_fail(to_fail, "its disk is gone, says the rig");
}

/* The cache's disk is lost while a discard is under way, and nothing is dirty (P7). */
static int fail_while_zeroing(struct op *op, struct volume *v)
{
	int rc = cache_write_back(v->cache, NULL, NULL, NULL, NULL);

	if (rc)
		return rc;
	to_fail = v->cache;
	recbdev_on_zero = fail_now;
	rc = volume_zero(v, op->off, op->len, op->seed & 1);
	recbdev_on_zero = NULL;
	return rc;
}

static bool goes_through(struct volume *v)
{
	return cache_bypassed(v->cache) || !mode_traits[volume_mode(v)].writes_back;
}

static int do_io(struct op *op, struct volume *v, uint8_t *buf, struct oracle *o)
{
	switch (op->type) {
	case OP_WRITE:
	case OP_WRITE_DURABLE:
		fill_data(buf, op->len, op->seed);
		oracle_record(o, op, buf);
		op->through = goes_through(v);
		return volume_write(v, buf, op->len, op->off, op->type == OP_WRITE_DURABLE);
	case OP_ZERO:
	case OP_PUNCH:
		oracle_record(o, op, NULL);
		op->through = goes_through(v);
		return volume_zero(v, op->off, op->len, op->type == OP_PUNCH);
	case OP_FAIL_ZERO:
		oracle_record(o, op, NULL);
		op->through = true;
		return fail_while_zeroing(op, v);
	case OP_FLUSH:
		return volume_flush(v);
	default:
		return volume_pread(v, buf, op->len, op->off);
	}
}

static void vol_names(unsigned v, char *name, char *spec)
{
	sprintf(name, "v%u", v);
	sprintf(spec, "rec:b%u", v);
}

void workload_forget_lock(void)
{
	char path[300];

	snprintf(path, sizeof path, "%s/" CACHE_LOCK_FILE, crash_dir);
	unlink(path);
}

static int create_cache(const struct config *cfg, struct bc_error *err)
{
	struct cache_create_params p = { .size_bytes = cfg->cache_size,
					 .line_size = cfg->line_size,
					 .mode = CACHE_MODE_WT,
					 .ram_bytes = 1 << 20,
					 .force = true };

	if (!cache_exists(crash_dir))
		workload_forget_lock();
	return cache_create(crash_dir, &p, err);
}

/* Adds or removes a volume of the stopped cache, if that makes sense. After a crash also one with dirty data: nobody
 * knows yet what is there. */
static int change_stopped(struct exec *x, struct op *op, const char *name, const char *spec, struct bc_error *err)
{
	bool crashed = x->r->rerun && !x->r->opened, there;
	uint32_t begin = log_length();
	struct cache *c;
	struct volume *v;
	int rc = cache_open(crash_dir, CACHE_OPEN_NO_VOLUMES, &c, NULL, err), rc2;

	if (rc)
		return rc;
	v = cache_volume_get(c, name);
	there = v != NULL;
	if (v)
		volume_put(v);
	if (there != (op->type == OP_REMOVE)) {
		op->ran = false;
	} else if (op->type == OP_ADD) {
		rc = cache_volume_add(c, name, spec, (enum cache_mode)op->mode, err);
		if (!rc && crashed && !x->added[op->volume])
			x->added[op->volume] = malloc(x->r->cfg.bytes[op->volume]);
		if (!rc && crashed)
			file_read(file_find(spec + 4), x->added[op->volume], x->r->cfg.bytes[op->volume], 0);
	} else {
		rc = cache_volume_remove(c, name, crashed, err);
		if (rc == -EBUSY && !crashed) { /* P8: it holds dirty data, nothing happens */
			op->ran = false;
			rc = 0;
		}
		free(x->added[op->volume]);
		x->added[op->volume] = NULL;
	}
	if (crashed && !x->r->changed)
		x->r->changed = begin + 1;
	rc2 = cache_close(c, rc ? NULL : err);
	return rc ? rc : rc2;
}

static uint32_t noted_at; /* log position */

static void note_position(void)
{
	noted_at = log_length();
}

static int open_cache(struct exec *x, struct bc_error *err)
{
	int rc;

	sample_ns = UNHURRIED;
	noted_at = UINT32_MAX;
	recover_noted = note_position;
	rc = cache_open(crash_dir, 0, &x->c, &x->r->report, err);
	recover_noted = NULL;
	if (x->meddled && !x->r->noted && noted_at != UINT32_MAX)
		x->r->noted = noted_at + 1;
	return rc;
}

/* Behind the cache's back, durably, and the device's time is as it was. */
static void meddle(struct exec *x, struct op *op, uint8_t *buf, const char *spec)
{
	int file = file_find(spec + 4);
	int64_t mtime = file_mtime(file);
	uint32_t len = op->off + op->len > x->r->cfg.bytes[op->volume]
			       ? (uint32_t)(x->r->cfg.bytes[op->volume] - op->off)
			       : op->len;

	fill_data(buf, len, op->seed);
	op->len = len;
	op->through = true;
	oracle_record(&x->r->oracle, op, buf);
	file_write(file, buf, len, op->off, false);
	world->file[file].mtime = mtime;
	if (world->log)
		world->log->ev[world->log->n - 1].mtime = mtime;
	sync_end(file, sync_begin(file, true));
	x->meddled = true;
}

static int run_op(struct exec *x, struct op *op, uint8_t *buf, struct bc_error *err)
{
	struct cache *c = x->c;
	char name[16], spec[16];
	struct volume *v = NULL;
	int rc = 0;

	vol_names(op->volume, name, spec);
	if (op->type == OP_CREATE) {
		rc = create_cache(&x->r->cfg, err);
		if (rc == -ENOTEMPTY) /* P8: it holds dirty data, nothing happens */
			op->ran = false;
		return op->ran ? rc : 0;
	}
	if (op->type == OP_MEDDLE) {
		meddle(x, op, buf, spec);
		return 0;
	}
	if (op->type == OP_OPEN)
		return open_cache(x, err);
	if (op->type == OP_CLOSE) {
		x->c = NULL;
		return cache_close(c, err);
	}
	if (!c)
		return change_stopped(x, op, name, spec, err);
	if (op->type == OP_ADD)
		return cache_volume_add(c, name, spec, (enum cache_mode)op->mode, err);
	v = cache_volume_get(c, name);
	if (op->type == OP_REMOVE) {
		volume_put(v);
		return cache_volume_remove(c, name, false, err);
	}
	switch (op->type) {
	case OP_MODE:
		rc = volume_set_mode(v, (enum cache_mode)op->mode, err);
		break;
	case OP_WRITE_BACK:
	case OP_WRITE_BACK_ALL:
		rc = cache_write_back(c, op->type == OP_WRITE_BACK ? v : NULL, NULL, NULL, err);
		break;
	case OP_MAINTAIN:
		rc = maintain(c, x->r->cfg.tidy, err);
		break;
	case OP_CLEAN:
		rc = (int)cleaner_step(c, 1 + op->seed % 64, NULL);
		break;
	case OP_EPOCH:
		rc = epoch_commit(c, op->seed & 1);
		break;
	case OP_CHECKPOINT:
		rc = checkpoint(c, err);
		break;
	case OP_CLEAR_MARKS:
		rc = intent_clear_idle(v, true);
		break;
	case OP_SET:
		rc = cache_set(c, NULL, "dirty-high", op->seed & 1 ? "60" : "80", NULL, err);
		break;
	case OP_SLEEP:
		nanosleep(&(struct timespec){ .tv_nsec = 3000000 + (long)(op->seed % 16) * 1000000 }, NULL);
		break;
	default:
		rc = do_io(op, v, buf, &x->r->oracle);
	}
	if (v)
		volume_put(v);
	return rc;
}

/* Is its volume, when it runs? For one that is not, nobody answers. */
static bool in_cache(const struct run *r, const struct op *op)
{
	bool is = r->oracle.vol[op->volume].present;

	for (const struct op *p = r->ops; p < op; p++) {
		if (!p->ran)
			continue;
		if (p->type == OP_CREATE)
			is = false;
		if ((p->type == OP_ADD || p->type == OP_REMOVE) && p->volume == op->volume)
			is = p->type == OP_ADD;
	}
	return is;
}

static bool makes_sense(struct exec *x, const struct op *op)
{
	char name[16], spec[16];
	struct volume *v;

	if (op->type == OP_CREATE)
		return !x->c;
	if (op->type == OP_OPEN)
		return !x->c && cache_exists(crash_dir);
	if (op->type == OP_MEDDLE)
		return !x->c && !x->r->rerun && x->nothing_dirty && !x->meddled && cache_exists(crash_dir) &&
		       in_cache(x->r, op);
	if (!x->c)
		return x->r->cfg.offline && (op->type == OP_ADD || op->type == OP_REMOVE) && cache_exists(crash_dir);
	if (x->c->failed && op->type != OP_CLOSE && op->type != OP_WRITE && op->type != OP_WRITE_DURABLE &&
	    op->type != OP_READ && op->type != OP_ZERO && op->type != OP_PUNCH && op->type != OP_FLUSH)
		return false;
	vol_names(op->volume, name, spec);
	v = cache_volume_get(x->c, name);
	if (v)
		volume_put(v);
	switch (op->type) {
	case OP_ADD:
		return !v;
	case OP_CLOSE:
	case OP_MAINTAIN:
	case OP_CLEAN:
	case OP_EPOCH:
	case OP_CHECKPOINT:
	case OP_SET:
	case OP_SLEEP:
	case OP_WRITE_BACK_ALL:
		return true;
	case OP_WRITE:
	case OP_WRITE_DURABLE:
	case OP_READ:
	case OP_ZERO:
	case OP_PUNCH:
		return v && op->len && op->off + op->len <= x->r->cfg.bytes[op->volume];
	case OP_FAIL_ZERO:
		return v && op->len && op->off + op->len <= x->r->cfg.bytes[op->volume] &&
		       mode_traits[volume_mode(v)].writes_back;
	default:
		return v != NULL;
	}
}

static void execute(struct exec *x, struct op *op, uint8_t *buf)
{
	struct bc_error err = { 0 };
	int rc;

	if (x->r->why[0] || !makes_sense(x, op))
		return;
	op->begin = log_length();
	op->end = UINT32_MAX;
	op->ran = true;
	rc = run_op(x, op, buf, &err);
	if (op->type != OP_CLOSE)
		x->nothing_dirty = op->type == OP_WRITE_BACK_ALL && !rc;
	op->end = log_length();
	if (rc < 0)
		went_wrong(x, op, err.code ? err.msg : x->c && x->c->why[0] ? x->c->why : strerror(-rc));
	if (op->type == OP_READ && !rc && memcmp(buf, x->r->oracle.vol[op->volume].now + op->off, op->len))
		went_wrong(x, op, "what was read is not what was written");
}

/* After a recovery: from now on what reads now is what must stay. */
static void take_as_given(struct exec *x)
{
	struct run *r = x->r;
	uint8_t *content = calloc(1, 4 * VOLUME_MAX_IO);
	char name[16], spec[16];

	if (!content)
		abort();
	for (unsigned i = 0; i < VOLUMES; i++) {
		struct volume *v;
		int rc = 0;

		vol_names(i, name, spec);
		v = cache_volume_get(x->c, name);
		file_read(file_find(spec + 4), content, r->cfg.bytes[i], 0);
		for (uint64_t at = 0; v && at < r->cfg.bytes[i] && !rc; at += 65536)
			rc = volume_pread(v, content + at,
					  r->cfg.bytes[i] - at < 65536 ? (uint32_t)(r->cfg.bytes[i] - at) : 65536, at);
		if (rc)
			snprintf(r->why, sizeof r->why, "%s cannot be read after a recovery: %s", name, strerror(-rc));
		if (!rc && x->added[i] && memcmp(x->added[i], content, r->cfg.bytes[i]))
			snprintf(r->why, sizeof r->why,
				 "P3: %s was added to the stopped cache and reads as something else "
				 "than its backing device did",
				 name);
		free(x->added[i]);
		x->added[i] = NULL;
		oracle_volume(&r->oracle, i, r->cfg.bytes[i], content);
		r->oracle.vol[i].present = v != NULL;
		r->oracle.vol[i].mode = v ? (int)volume_mode(v) : 0;
		if (v)
			volume_put(v);
	}
	free(content);
}

static bool single(const struct op *op)
{
	return op->type == OP_OPEN || op->type == OP_CLOSE || op->type == OP_CREATE;
}

struct thread_arg {
	struct exec *x;
	unsigned index, threads;
};

static void *thread_main(void *p)
{
	struct thread_arg *a = p;
	uint8_t *buf = malloc(VOLUME_MAX_IO);

	if (!buf)
		abort();
	for (unsigned i = 0; i < a->x->r->nops; i++)
		if (!single(&a->x->r->ops[i]) && a->x->r->ops[i].volume % a->threads == a->index)
			execute(a->x, &a->x->r->ops[i], buf);
	free(buf);
	return NULL;
}

static void opened(struct exec *x, const struct op *op)
{
	if (x->r->opened || op->type != OP_OPEN || !op->ran || x->r->why[0])
		return;
	x->r->opened = op->end;
	if (x->r->rerun)
		take_as_given(x);
}

static void run_all(struct exec *x)
{
	struct run *r = x->r;
	unsigned n = r->cfg.threads;
	pthread_t thread[VOLUMES];
	struct thread_arg arg[VOLUMES];

	if (n <= 1) {
		for (unsigned i = 0; i < r->nops; i++) {
			execute(x, &r->ops[i], x->buf);
			opened(x, &r->ops[i]);
		}
		return;
	}
	for (unsigned i = 0; i < r->nops && r->ops[i].type != OP_CLOSE; i++) {
		if (single(&r->ops[i])) {
			execute(x, &r->ops[i], x->buf);
			opened(x, &r->ops[i]);
		}
	}
	for (unsigned i = 0; i < n; i++) {
		arg[i] = (struct thread_arg){ .x = x, .index = i, .threads = n };
		if (pthread_create(&thread[i], NULL, thread_main, &arg[i]))
			abort();
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	for (unsigned i = 0; i < r->nops; i++)
		if (r->ops[i].type == OP_CLOSE)
			execute(x, &r->ops[i], x->buf);
}

static void record_run(struct run *r)
{
	struct exec x = { .r = r };

	pthread_mutex_init(&x.lock, NULL);
	x.buf = malloc(VOLUME_MAX_IO);
	world->log = calloc(1, sizeof *world->log);
	if (!x.buf || !world->log)
		abort();
	run_all(&x);
	if (x.c)
		cache_close(x.c, NULL);
	free(x.buf);
	pthread_mutex_destroy(&x.lock);
	r->log = world->log;
	world->log = NULL;
	world_free(world);
	world = NULL;
}

static void set_folding(const struct config *cfg)
{
	static unsigned ring_max;

	ring_max = ring_max ? ring_max : journal_ring_max;
	journal_ring_max = cfg->merge ? 5 : ring_max;
	journal_low_at = cfg->low ? 4 : 0;
	journal_fold_limits.start_meta = cfg->fold ? 64 : 4u << 20;
	journal_fold_limits.rows = cfg->fold ? 1 : 256;
	journal_fold_limits.delete_epochs = cfg->fold ? 1 : 256;
	recover_piece = cfg->offline || cfg->weight[OP_MEDDLE] ? 4 : 65536;
}

/* A world with a cache in it, as configured, stopped. */
static void prepare(struct run *r)
{
	struct bc_error err = { 0 };
	struct cache *c = NULL;
	char name[16], spec[16];
	int rc;

	rc = create_cache(&r->cfg, &err);
	if (!rc)
		rc = cache_open(crash_dir, 0, &c, NULL, &err);
	for (unsigned v = 0; v < r->cfg.volumes && !rc; v++) {
		vol_names(v, name, spec);
		rc = cache_volume_add(c, name, spec, (enum cache_mode)r->cfg.mode[v], &err);
		r->oracle.vol[v].present = true;
		r->oracle.vol[v].mode = r->cfg.mode[v];
	}
	if (!rc)
		rc = cache_set(c, NULL, "epoch-interval", r->cfg.busy ? "10ms" : "60s", NULL, &err);
	if (!rc)
		rc = cache_set(c, NULL, "tidy", "8K", NULL, &err);
	if (!rc)
		rc = cache_set(c, NULL, "clean-after", r->cfg.busy ? "0" : "3600s", NULL, &err);
	if (c && cache_close(c, &err) && !rc)
		rc = err.code;
	if (rc)
		snprintf(r->why, sizeof r->why, "the cache could not be prepared: %s", err.msg);
	r->oracle.cache_exists = true;
}

void workload_run(struct run *r)
{
	uint8_t *content = malloc(VOLUME_MAX_IO * 4);

	set_folding(&r->cfg);
	zero_marked_max = r->seed % 2 ? 0 : 4ull << REGION_SHIFT; /* volumes here are small, discards may be large */
	oracle_init(&r->oracle);
	r->oracle.by_volume = r->cfg.threads > 1;
	for (unsigned i = 0; i < r->nops; i++) {
		struct op *op = &r->ops[i];

		op->ran = op->through = false;
		op->begin = op->end = op->first_step = op->last_step = 0;
	}
	r->why[0] = 0;
	r->opened = r->changed = r->noted = 0;
	world = world_new();
	for (unsigned v = 0; v < VOLUMES; v++) {
		char name[16], spec[16];

		vol_names(v, name, spec);
		fill_data(content, r->cfg.bytes[v], 1000 + v);
		oracle_volume(&r->oracle, v, r->cfg.bytes[v], content);
		file_write(file_create(spec + 4), content, r->cfg.bytes[v], 0, false);
	}
	free(content);
	if (!r->cfg.from_nothing)
		prepare(r);
	world_settle(world);
	r->start = world_clone(world);
	record_run(r);
}

void workload_rerun(struct run *r, struct world *crashed)
{
	set_folding(&r->cfg);
	oracle_init(&r->oracle);
	r->oracle.by_volume = r->cfg.threads > 1;
	r->oracle.cache_exists = true;
	r->rerun = true;
	r->start = world_clone(crashed);
	world = crashed;
	record_run(r);
}

void run_free(struct run *r)
{
	free(r->ops);
	oracle_free(&r->oracle);
	world_free(r->start);
	log_free(r->log);
	memset(r, 0, sizeof *r);
}
