/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * oracle.c - see oracle.h. Recording takes a lock (workloads of several threads); all else is the main thread's.
 */
#include "oracle.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t hash_sector(const uint8_t *p)
{
	uint64_t h = 0x9e3779b97f4a7c15ull, w;

	for (unsigned i = 0; i < SECTOR; i += 8) {
		memcpy(&w, p + i, 8);
		h = (h ^ w) * 0xbf58476d1ce4e5b9ull;
		h ^= h >> 29;
	}
	return h;
}

static void hash_block(const uint8_t *p, uint64_t *h)
{
	for (unsigned i = 0; i < SECTORS; i++)
		h[i] = hash_sector(p + i * SECTOR);
}

void oracle_init(struct oracle *o)
{
	memset(o, 0, sizeof *o);
}

void oracle_free(struct oracle *o)
{
	for (unsigned v = 0; v < VOLUMES; v++) {
		struct volume_history *h = &o->vol[v];

		for (uint64_t b = 0; b < h->nblocks; b++)
			free(h->block[b].v);
		free(h->block);
		free(h->now);
	}
	memset(o, 0, sizeof *o);
}

static void add_version(struct volume_history *h, uint64_t b, uint32_t step)
{
	struct block_history *bh = &h->block[b];

	if (bh->n == bh->cap) {
		bh->cap = bh->cap ? 2 * bh->cap : 1;
		bh->v = realloc(bh->v, bh->cap * sizeof bh->v[0]);
		if (!bh->v)
			abort();
	}
	bh->v[bh->n].step = step;
	hash_block(h->now + b * CACHE_BLOCK, bh->v[bh->n].hash);
	bh->n++;
}

void oracle_volume(struct oracle *o, unsigned v, uint64_t bytes, const uint8_t *content)
{
	struct volume_history *h = &o->vol[v];

	h->bytes = bytes;
	h->nblocks = (bytes + CACHE_BLOCK - 1) / CACHE_BLOCK;
	h->now = calloc(h->nblocks, CACHE_BLOCK);
	h->block = calloc(h->nblocks, sizeof h->block[0]);
	if (!h->now || !h->block)
		abort();
	memcpy(h->now, content, bytes);
	for (uint64_t b = 0; b < h->nblocks; b++)
		add_version(h, b, 0);
}

static void record_range(struct oracle *o, struct volume_history *h, uint64_t off, uint64_t len, const uint8_t *data,
			 bool one_step)
{
	if (!len)
		return;
	if (data)
		memcpy(h->now + off, data, len);
	else
		memset(h->now + off, 0, len);
	for (uint64_t b = off / CACHE_BLOCK; b <= (off + len - 1) / CACHE_BLOCK; b++) {
		if (!one_step || b == off / CACHE_BLOCK)
			o->nsteps++;
		add_version(h, b, o->nsteps);
	}
}

void oracle_record(struct oracle *o, struct op *op, const uint8_t *data)
{
	struct volume_history *h = &o->vol[op->volume];
	uint64_t off = op->off, len = op->len;

	pthread_mutex_lock(&lock);
	op->first_step = o->nsteps + 1;
	if (op->type == OP_WRITE || op->type == OP_WRITE_DURABLE || op->type == OP_MEDDLE) {
		record_range(o, h, off, len, data, false);
	} else {
		/* the edges first, each a write; then the whole blocks, all or none */
		uint64_t head = off % CACHE_BLOCK ? CACHE_BLOCK - off % CACHE_BLOCK : 0, tail;

		if (head > len)
			head = len;
		record_range(o, h, off, head, NULL, false);
		off += head;
		len -= head;
		tail = off + len == h->bytes ? 0 : (off + len) % CACHE_BLOCK;
		if (tail > len)
			tail = len;
		record_range(o, h, off + len - tail, tail, NULL, false);
		record_range(o, h, off, len - tail, NULL, true);
	}
	op->last_step = o->nsteps;
	pthread_mutex_unlock(&lock);
}

/* ---- what is promised ---- */

bool oracle_cache_must_exist(const struct oracle *o, const struct op *ops, unsigned nops, uint32_t p)
{
	bool exists = o->cache_exists;

	for (unsigned i = 0; i < nops; i++)
		if (ops[i].ran && ops[i].type == OP_CREATE && ops[i].begin < p)
			exists = ops[i].end <= p;
	return exists;
}

void oracle_expect(const struct oracle *o, const struct op *ops, unsigned nops, unsigned v, uint32_t p,
		   struct expectation *x)
{
	uint32_t last = 0, last_back = 0, last_through = 0, was;
	int mode = o->vol[v].mode;

	memset(x, 0, sizeof *x);
	x->must_exist = x->may_exist = o->vol[v].present;
	x->modes = 1u << mode;
	for (unsigned i = 0; i < nops; i++) {
		const struct op *op = &ops[i];
		bool done = op->ran && op->end <= p, ours = op->volume == v;

		if (!op->ran || op->begin >= p)
			continue;
		was = x->floor;
		switch (op->type) {
		case OP_ADD:
			if (!ours)
				break;
			x->may_exist = true;
			x->must_exist = done;
			x->modes = 1u << op->mode;
			break;
		case OP_CREATE: /* replaces a cache that holds nothing dirty */
		case OP_REMOVE:
			if (!ours && op->type == OP_REMOVE)
				break;
			x->must_exist = false;
			x->may_exist = !done;
			/* it writes everything dirty back first; if it is not there any more, it did */
			x->exact_if_gone = !last_through || last_through <= x->floor;
			if (done && x->exact_if_gone)
				x->floor = last;
			break;
		case OP_MODE:
			if (ours)
				x->modes = done ? 1u << op->mode : x->modes | 1u << op->mode;
			break;
		case OP_WRITE:
		case OP_WRITE_DURABLE:
		case OP_ZERO:
		case OP_PUNCH:
		case OP_FAIL_ZERO:
		case OP_MEDDLE:
			if (!ours)
				break;
			x->ceil = last = op->last_step;
			if (op->through)
				last_through = last;
			else
				last_back = last;
			if (done && (op->type == OP_WRITE_DURABLE || op->type == OP_MEDDLE))
				x->floor = last;
			break;
		case OP_FLUSH:
			if (ours && done)
				x->floor = last;
			break;
		case OP_CLOSE:
			if (done)
				x->floor = last;
			break;
		case OP_WRITE_BACK:
		case OP_WRITE_BACK_ALL:
			/* of what went to backing directly it promises nothing */
			if (done && (ours || op->type == OP_WRITE_BACK_ALL) && last_through <= x->floor &&
			    last_back > x->floor)
				x->floor = last_back;
			break;
		default:
			break;
		}
		if (x->floor != was)
			x->back_floor = last_back;
	}
	x->ordered = last_through <= x->floor;
}

/* ---- comparing ---- */

void verdict_begin(struct verdict *d, const struct oracle *o)
{
	memset(d, 0, sizeof *d);
	d->o = o;
	d->nsteps = o->nsteps;
	d->fits = calloc(o->nsteps + 2, sizeof d->fits[0]);
	if (!d->fits)
		abort();
}

static const char *age(const struct block_history *bh, const uint64_t *hash, const struct expectation *x, char *buf,
		       size_t len)
{
	unsigned known = 0;

	for (uint32_t i = bh->n; i-- > 0;) {
		if (memcmp(bh->v[i].hash, hash, sizeof bh->v[i].hash))
			continue;
		snprintf(buf, len, "its value of step %u, of which %s", bh->v[i].step,
			 bh->v[i].step > x->ceil ? "nobody knew yet" : "a newer one had been promised");
		return buf;
	}
	for (unsigned s = 0; s < SECTORS; s++)
		for (uint32_t i = 0; i < bh->n; i++)
			if (bh->v[i].hash[s] == hash[s]) {
				known++;
				break;
			}
	snprintf(buf, len, "torn or foreign: %u of its %u sectors are known", known, (unsigned)SECTORS);
	return buf;
}

/* The first and last index of versions that may be there. */
static void range_of(const struct block_history *bh, const struct expectation *x, uint32_t *lo, uint32_t *hi)
{
	*lo = 0;
	while (*lo + 1 < bh->n && bh->v[*lo + 1].step <= x->floor)
		++*lo;
	*hi = *lo;
	while (*hi + 1 < bh->n && bh->v[*hi + 1].step <= x->ceil)
		++*hi;
}

static bool check_sectors(const struct block_history *bh, uint32_t lo, uint32_t hi, const uint64_t *hash)
{
	for (unsigned s = 0; s < SECTORS; s++) {
		uint32_t i = lo;

		while (i <= hi && bh->v[i].hash[s] != hash[s])
			i++;
		if (i > hi)
			return false;
	}
	return true;
}

bool verdict_volume(struct verdict *d, unsigned v, const struct expectation *x, const uint8_t *content, char *why,
		    size_t len)
{
	const struct volume_history *h = &d->o->vol[v];
	char buf[200];

	if (x->ordered) {
		if (x->back_floor > d->floor)
			d->floor = x->back_floor;
		if (x->ceil > d->ceil)
			d->ceil = x->ceil;
	}
	for (uint64_t b = 0; b < h->nblocks; b++) {
		const struct block_history *bh = &h->block[b];
		uint64_t hash[SECTORS];
		uint32_t lo, hi;
		bool found = false;

		hash_block(content + b * CACHE_BLOCK, hash);
		range_of(bh, x, &lo, &hi);
		for (uint32_t i = lo; i <= hi; i++) {
			if (memcmp(bh->v[i].hash, hash, sizeof hash))
				continue;
			found = true;
			if (!x->ordered)
				break;
			/* fits every cut from here to the next version; what was promised is there whatever the cut */
			d->fits[i == lo ? 0 : bh->v[i].step]++;
			d->fits[i + 1 < bh->n ? bh->v[i + 1].step : d->nsteps + 1]--;
		}
		if (!found && (x->ordered || !check_sectors(bh, lo, hi, hash))) {
			snprintf(why, len, "volume v%u block %llu (promised: step %u, begun: step %u) reads as %s", v,
				 (unsigned long long)b, x->floor, x->ceil, age(bh, hash, x, buf, sizeof buf));
			return false;
		}
	}
	if (x->ordered)
		d->blocks += (uint32_t)h->nblocks;
	if (d->o->by_volume) {
		bool ok = verdict_end(d, why, len);

		verdict_begin(d, d->o);
		return ok;
	}
	return true;
}

bool verdict_end(struct verdict *d, char *why, size_t len)
{
	uint32_t best = 0, best_at = 0;
	int32_t n = 0;
	bool ok = false;

	for (uint32_t k = 0; k <= d->nsteps && !ok; k++) {
		n += d->fits[k];
		if (k < d->floor || k > d->ceil)
			continue;
		ok = (uint32_t)n == d->blocks;
		if ((uint32_t)n > best) {
			best = (uint32_t)n;
			best_at = k;
		}
	}
	if (!ok && d->blocks)
		snprintf(
			why, len,
			"no moment from step %u to %u at which every block was as it reads now; nearest: step %u, with "
			"%u of %u blocks",
			d->floor, d->ceil, best_at, best, d->blocks);
	else
		ok = true;
	free(d->fits);
	d->fits = NULL;
	return ok;
}
