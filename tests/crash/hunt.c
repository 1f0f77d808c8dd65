/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hunt.c - see hunt.h. Which states are looked at follows from the seed alone. Shrinking first drops operations, as
 * long as some power loss of the rest fails, then makes as much of what was lost survive as it can.
 */
#include "hunt.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/engine.h"

#define SHRINK_SECONDS 40
#define SHRINK_STATES 4000

unsigned stuck_seconds = 100;

void failure_free(struct failure *f)
{
	free(f->choice);
	memset(f, 0, sizeof *f);
}

static void set_failure(struct failure *f, const char *why, uint32_t at, const uint8_t *choice, uint32_t n)
{
	f->found = true;
	if (why != f->why)
		snprintf(f->why, sizeof f->why, "%s", why);
	f->at = at;
	free(f->choice);
	f->choice = malloc(n + 1);
	if (!f->choice)
		abort();
	memcpy(f->choice, choice, n);
	f->nchoice = n;
}

/* ---- a second power loss ---- */

/*
 * What a process that dies leaves: everything it has written is there, and goes on to be unsure if the power fails
 * after its successor has begun. That a successor's log does not know of; `before` are the changes to put in front of
 * it.
 */
struct death {
	struct world *durable; /* what no power loss takes away */
	struct log before;
};

/* The log to sweep over: as if both processes had been one. Shares the events' data. */
static struct log joined(const struct death *d, const struct log *log)
{
	struct log both = { .n = d->before.n + log->n };

	both.ev = malloc((both.n + 1) * sizeof both.ev[0]);
	if (!both.ev)
		abort();
	memcpy(both.ev, d->before.ev, d->before.n * sizeof both.ev[0]);
	for (uint32_t i = 0; i < log->n; i++) {
		struct event *e = &both.ev[d->before.n + i];

		*e = log->ev[i];
		if (e->type != EV_SYNC && e->end != UINT32_MAX)
			e->end += d->before.n;
	}
	return both;
}

/* After a process's death, what it left unsynced counts when the next one's journal is durable and the data may not be.
 */
static bool journal_synced(const struct run *c, uint32_t q)
{
	const struct event *e = &c->log->ev[q - 1];
	const char *name = e->type == EV_SYNCED && e->file != FOLDER ? world_name(c->start, e->file) : NULL;

	return name && name[0] != 'b' && strcmp(name, CACHE_DATA_FILE) != 0;
}

/* The power loss at q of the run c, which came after the first one at p of r; w: what is left, freed here. */
static void nested_state(const struct run *r, uint32_t p, const struct run *c, uint32_t q, const struct death *d,
			 struct world *w, struct rng *rng, struct failure *f)
{
	char why[600];
	bool ok;

	alarm(stuck_seconds);
	check_stats.nested++;
	/* before recovery had returned, what counts is what was promised before the first power loss */
	if (q < c->opened)
		ok = check_state(r, p, w, false, why, sizeof why);
	else
		ok = check_state(c, q, w, rng_below(rng, 4) == 0, why, sizeof why);
	if (ok)
		return;
	snprintf(f->why, sizeof f->why, "after a %spower loss at %u (recovery ended at %u): %s",
		 d ? "kill and a " : "second ", q, c->opened, why);
	f->found = f->nested = true;
	f->at2 = q;
}

/* After a power loss at p, or the process's death there (d); `crashed` is what it left. */
static void nested(const struct run *r, uint32_t p, struct world *crashed, const struct death *d, struct rng *rng,
		   struct failure *f)
{
	struct run c = { .cfg = r->cfg, .seed = rng_next(rng) };
	uint32_t step, next, shift = d ? d->before.n : 0;
	struct log log;
	struct sweep s;
	uint8_t *choice;

	c.cfg.min_ops = 3;
	c.cfg.max_ops = 8;
	c.cfg.from_nothing = false;
	workload_generate(&c);
	world = crashed;
	workload_rerun(&c, crashed);
	if (c.why[0]) {
		snprintf(f->why, sizeof f->why, "after a recovery: %s", c.why);
		f->found = f->nested = true;
		run_free(&c);
		return;
	}
	/* where there are many, most is seen by the recovery itself */
	step = 1 + c.log->n / (r->cfg.nested_every ? 3 : 12);
	log = d ? joined(d, c.log) : *c.log;
	sweep_begin(&s, d ? d->durable : c.start, &log);
	choice = malloc(log.n + 1);
	if (!choice)
		abort();
	next = 1 + rng_below(rng, step);
	for (uint32_t q = 1; q <= c.log->n && !f->found; q++) {
		bool chosen = q == next;

		if (chosen)
			next += 1 + rng_below(rng, step * 2);
		else if (!d || !journal_synced(&c, q))
			continue;
		/* what was promised before is about volumes that may be others by now */
		if (c.changed && q >= c.changed && q < c.opened)
			continue;
		sweep_to(&s, shift + q);
		choose(&s, chosen ? rng_below(rng, STYLES) : STYLE_NONE, rng, choice);
		nested_state(r, p, &c, q, d, crash(&s, choice), rng, f);
	}
	free(choice);
	sweep_end(&s);
	if (d)
		free(log.ev);
	run_free(&c);
}

/*
 * The process dies at s->pos, another one loads the cache, and then power is lost. Of the backing devices all is taken
 * for durable at the death: that somebody has read a write through that nobody flushed is no promise that it stays.
 * Nothing is done where names are unsure, or the order of what is (few places).
 */
static void killed(const struct run *r, const struct sweep *s, struct rng *rng, uint8_t *choice, struct failure *f)
{
	struct death d = { .durable = world_clone(s->base) };
	struct world *left;
	bool clear = true;

	memset(choice, CHOICE_KEEP, s->nunsure);
	left = crash(s, choice);
	world_settle(d.durable);
	d.before.ev = malloc((s->npending + 1) * sizeof d.before.ev[0]);
	if (!d.before.ev)
		abort();
	for (uint32_t i = 0; i < s->npending && clear; i++) {
		const struct event *e = &s->log->ev[s->pending[i].event];
		const char *name =
			e->file == FOLDER || e->type == EV_LINK || e->type == EV_UNLINK || e->type == EV_RENAME
				? NULL
				: world_name(d.durable, e->file);

		clear = name && !s->pending[i].durable;
		if (clear && name[0] == 'b') {
			world_apply(d.durable, e, NULL);
		} else if (clear) {
			d.before.ev[d.before.n] = *e;
			d.before.ev[d.before.n].end = d.before.n + 1;
			d.before.n++;
		}
	}
	for (int i = 0; i < left->nfiles; i++) {
		const char *name = world_name(left, i);

		left->file[i].mtime = s->mtime[i];
		if (name && name[0] == 'b')
			d.durable->file[i].mtime = s->mtime[i];
	}
	if (clear) {
		check_stats.kills++;
		nested(r, s->pos, left, &d, rng, f);
		if (f->found)
			set_failure(f, f->why, s->pos, choice, s->nunsure);
	} else {
		world_free(left);
	}
	world_free(d.durable);
	free(d.before.ev);
}

/* ---- all power losses of a run ---- */

/* The beginning of a sync changes nothing, and of a long row of writes to one file (a new journal) a few will do. */
static bool worth_it(const struct run *r, uint32_t p)
{
	const struct event *ev = r->log->ev;
	uint32_t row = 0;

	if (p == r->log->n)
		return true;
	while (row < p && row < 40 && ev[p - 1 - row].type == EV_WRITE && ev[p - 1 - row].file == ev[p].file)
		row++;
	return ev[p - 1].type != EV_SYNC && (row < 40 || ev[p].type != EV_WRITE || p % 97 == 0);
}

static unsigned states_at(const struct sweep *s)
{
	return s->nunsure == 0 ? 1 : s->nunsure == 1 ? 3 : STYLES;
}

static void try_state(const struct run *r, const struct sweep *s, unsigned style, struct rng *rng,
		      const struct limits *lim, uint8_t *choice, struct failure *f)
{
	char why[600];
	uint64_t dropped = check_stats.dropped_epochs + check_stats.void_journals;
	bool extra = rng_below(rng, 4) == 0;
	uint32_t odds;

	alarm(stuck_seconds);
	choose(s, s->nunsure == 1 && style == 2 ? 4 : style, rng, choice);
	if (!check_state(r, s->pos, crash(s, choice), extra, why, sizeof why)) {
		set_failure(f, why, s->pos, choice, s->nunsure);
		return;
	}
	/* a recovery that gives something up is rare, and what it leaves behind worth a closer look */
	odds = r->cfg.nested_every ? r->cfg.nested_every : lim->nested_every;
	if (check_stats.dropped_epochs + check_stats.void_journals > dropped && odds > 3)
		odds = 3;
	if (!odds || rng_below(rng, odds) || !oracle_cache_must_exist(&r->oracle, r->ops, r->nops, s->pos))
		return;
	nested(r, s->pos, crash(s, choice), NULL, rng, f);
	if (f->found)
		set_failure(f, f->why, s->pos, choice, s->nunsure);
}

static uint32_t count_states(const struct run *r)
{
	struct sweep s;
	uint32_t n = 0;

	sweep_begin(&s, r->start, r->log);
	for (uint32_t p = 1; p <= r->log->n; p++) {
		sweep_to(&s, p);
		if (worth_it(r, p))
			n += states_at(&s);
	}
	sweep_end(&s);
	return n;
}

static void all_states(const struct run *r, const struct limits *lim, struct failure *f)
{
	uint32_t total = count_states(r), want = lim->exhaustive || total < lim->states ? total : lim->states;
	struct rng rng = { .s = r->seed ^ 0x5eed };
	uint8_t *choice = malloc(r->log->n + 1);
	struct sweep s;

	if (!choice)
		abort();
	sweep_begin(&s, r->start, r->log);
	for (uint32_t p = 1; p <= r->log->n && !f->found; p++) {
		sweep_to(&s, p);
		if (!worth_it(r, p))
			continue;
		for (unsigned k = 0; k < states_at(&s) && !f->found; k++)
			if (want == total || rng_below(&rng, total) < want)
				try_state(r, &s, k, &rng, lim, choice, f);
		if (!f->found && lim->nested_every && !rng_below(&rng, total / want * lim->nested_every / 4 + 1) &&
		    oracle_cache_must_exist(&r->oracle, r->ops, r->nops, p))
			killed(r, &s, &rng, choice, f);
	}
	sweep_end(&s);
	free(choice);
}

/* ---- runs ---- */

static void keep_only(struct run *r, const uint32_t *keep, unsigned nkeep)
{
	if (!keep)
		return;
	for (unsigned i = 0; i < nkeep; i++)
		r->ops[i] = r->ops[keep[i]]; /* ascending */
	r->nops = nkeep;
}

static void start_run(struct run *r, const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep)
{
	*r = (struct run){ .cfg = *cfg, .seed = seed };
	alarm(stuck_seconds);
	workload_generate(r);
	keep_only(r, keep, nkeep);
	workload_run(r);
}

static void hunt_quietly(const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep,
			 const struct limits *lim, struct failure *f)
{
	struct run r;

	memset(f, 0, sizeof *f);
	start_run(&r, cfg, seed, keep, nkeep);
	if (r.why[0])
		set_failure(f, r.why, 0, NULL, 0);
	else
		all_states(&r, lim, f);
	run_free(&r);
}

/* ---- shrinking ---- */

static time_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/* Drops runs of operations, shorter and shorter ones, as long as something fails. Fills keep[]; returns how many. */
static unsigned shrink_ops(const struct config *cfg, uint64_t seed, uint32_t *keep, unsigned n, struct failure *f)
{
	const struct limits lim = { .states = SHRINK_STATES, .nested_every = f->nested ? 4 : 0 };
	uint32_t *attempt = malloc((n + 1) * sizeof *attempt);
	time_t end = now() + SHRINK_SECONDS;
	unsigned size = n / 2;

	if (!attempt)
		abort();
	while (size && now() < end) {
		bool shorter = false;

		for (unsigned at = 0; at + size <= n && now() < end;) {
			struct failure g;

			memcpy(attempt, keep, at * sizeof *keep);
			memcpy(attempt + at, keep + at + size, (n - at - size) * sizeof *keep);
			hunt_quietly(cfg, seed, attempt, n - size, &lim, &g);
			if (g.found) {
				failure_free(f);
				*f = g;
				n -= size;
				memcpy(keep, attempt, n * sizeof *keep);
				shorter = true;
			} else {
				at += size;
			}
		}
		if (!shorter || size > 1)
			size /= 2;
	}
	free(attempt);
	return n;
}

/* What was lost and need not have been survives; what was torn is lost or survives. */
static void shrink_choice(const struct run *r, struct sweep *s, struct failure *f)
{
	char why[600];

	for (uint32_t i = 0; i < f->nchoice && i < 2000; i++) {
		for (uint8_t c = CHOICE_KEEP + 1; c-- > CHOICE_DROP;) {
			uint8_t was = f->choice[i];

			if (was == CHOICE_KEEP || was == c)
				continue;
			f->choice[i] = c;
			alarm(stuck_seconds);
			if (check_state(r, f->at, crash(s, f->choice), true, why, sizeof why))
				f->choice[i] = was;
			else
				snprintf(f->why, sizeof f->why, "%s", why);
		}
	}
}

/* ---- telling ---- */

static void describe(const struct config *cfg, const struct run *r, const uint32_t *keep, unsigned nkeep,
		     struct sweep *s, const struct failure *f)
{
	printf("# workload %s, seed %llu, %u operations: %s\n", cfg->name, (unsigned long long)r->seed, r->nops,
	       f->why);
	if (keep)
		printf("# again: --workload %s --seed %llu", cfg->name, (unsigned long long)r->seed);
	for (unsigned i = 0; i < nkeep; i++)
		printf("%s%u", i ? "," : " --ops ", keep[i]);
	if (f->at && !f->nested) {
		printf(" --at %u --choice ", f->at);
		for (uint32_t i = 0; i < f->nchoice; i++)
			printf("%02x", f->choice[i]);
	}
	printf("\n");
	for (unsigned i = 0; i < r->nops; i++)
		if (r->ops[i].ran && (!f->at || r->ops[i].begin < f->at))
			print_op(&r->ops[i], i);
	if (f->at) {
		printf("# power lost after event %u of %u\n", f->at, r->log->n);
		world = s->base;
		explain(s, f->choice);
		world = NULL;
	}
}

static void finish_failure(const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep,
			   const struct limits *lim, struct failure *f)
{
	uint32_t own[1000];
	struct sweep s = { 0 };
	FILE *was = stdout, *mem;
	struct run r;

	if (!keep) {
		struct run g = { .cfg = *cfg, .seed = seed };

		workload_generate(&g);
		for (nkeep = 0; nkeep < g.nops && nkeep < 1000; nkeep++)
			own[nkeep] = nkeep;
		free(g.ops);
		if (lim->shrink)
			nkeep = shrink_ops(cfg, seed, own, nkeep, f);
		keep = own;
	}
	start_run(&r, cfg, seed, keep, nkeep);
	if (f->at && f->at <= r.log->n) {
		sweep_begin(&s, r.start, r.log);
		sweep_to(&s, f->at);
		if (lim->shrink && !f->nested && s.nunsure == f->nchoice)
			shrink_choice(&r, &s, f);
	}
	mem = fmemopen(f->text, sizeof f->text, "w");
	if (mem && (!f->at || s.nunsure == f->nchoice)) {
		stdout = mem;
		describe(cfg, &r, keep, nkeep, &s, f);
		stdout = was;
	} else if (mem) {
		fprintf(mem, "# workload %s, seed %llu: %s\n# (the next run of it went another way; try again)\n",
			cfg->name, (unsigned long long)seed, f->why);
	}
	if (mem)
		fclose(mem);
	if (s.base)
		sweep_end(&s);
	run_free(&r);
}

void hunt(const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep, const struct limits *lim,
	  struct failure *f)
{
	hunt_quietly(cfg, seed, keep, nkeep, lim, f);
	if (f->found)
		finish_failure(cfg, seed, keep, nkeep, lim, f);
}

void hunt_one(const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep, uint32_t at,
	      const uint8_t *choice, uint32_t nchoice, struct failure *f)
{
	struct sweep s;
	struct run r;
	char why[600];

	memset(f, 0, sizeof *f);
	start_run(&r, cfg, seed, keep, nkeep);
	sweep_begin(&s, r.start, r.log);
	sweep_to(&s, at);
	if (r.why[0]) {
		set_failure(f, r.why, 0, NULL, 0);
	} else if (s.nunsure != nchoice) {
		snprintf(why, sizeof why, "%u changes are unsure there, not %u", s.nunsure, nchoice);
		set_failure(f, why, at, choice, nchoice);
	} else if (!check_state(&r, at, crash(&s, choice), true, why, sizeof why)) {
		set_failure(f, why, at, choice, nchoice);
	}
	sweep_end(&s);
	run_free(&r);
	if (f->found)
		finish_failure(cfg, seed, keep, nkeep, &(struct limits){ .states = 1 }, f);
}
