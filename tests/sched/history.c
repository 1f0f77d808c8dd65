/* SPDX-License-Identifier: BSD-3-Clause */
/* history.c - see history.h. */
#include "history.h"

#include <stdio.h>
#include <string.h>

static bool writes(const struct operation *op)
{
	return op->type == DO_WRITE || op->type == DO_WRITE_DURABLE || op->type == DO_ZERO || op->type == DO_PUNCH;
}

static bool covers(const struct operation *op, unsigned volume, unsigned sector)
{
	return op->ran && writes(op) && op->volume == volume && sector >= op->first && sector < op->first + op->n;
}

static bool changes_mode(const struct operation *op)
{
	return op->type == DO_MODE || op->type == DO_ADD || op->type == DO_REMOVE;
}

static bool mode_back(unsigned mode)
{
	return mode == CACHE_MODE_WB || mode == CACHE_MODE_WO;
}

void history_begin(struct history *h, struct scase *c)
{
	memset(h, 0, sizeof *h);
	h->c = c;
	memcpy(h->mode, c->kind->mode, sizeof h->mode);
	for (unsigned i = 0; i < c->nops; i++) {
		struct operation *op = &c->op[i];

		op->ran = op->ok = op->back = false;
		op->rc = 0;
		op->begin = op->t0 = 0;
		op->end = op->t1 = UINT32_MAX;
	}
}

void history_start(struct history *h, struct operation *op)
{
	op->ran = true;
	op->begin = log_length();
	op->t0 = ++h->clock;
	if (writes(op)) {
		memset(&h->begun[op->volume][op->first], (int)(op - h->c->op) + 1, op->n);
		op->back = !h->changing[op->volume] && mode_back(h->mode[op->volume]);
		op->changes = h->mode_changes[op->volume];
	}
	if (changes_mode(op)) {
		h->changing[op->volume]++;
		op->changes = ++h->mode_changes[op->volume];
	}
	if (op->type == DO_REMOVE)
		h->removed[op->volume] = true;
}

void history_finish(struct history *h, struct operation *op, int rc)
{
	op->rc = rc;
	op->ok = !rc;
	op->t1 = ++h->clock;
	op->end = rc ? UINT32_MAX : log_length();
	if (writes(op)) {
		/* (a zeroing is several steps) */
		op->back = op->back && !rc && op->changes == h->mode_changes[op->volume] && op->type != DO_ZERO &&
			   op->type != DO_PUNCH;
		if (!rc)
			memset(&h->ended[op->volume][op->first], (int)(op - h->c->op) + 1, op->n);
	}
	if (changes_mode(op)) {
		/* known only if there was no other one meanwhile */
		bool alone = !--h->changing[op->volume], moved = ++h->mode_changes[op->volume] != op->changes + 1;

		h->mode[op->volume] = alone && !moved && !rc && op->type != DO_REMOVE ? op->mode : CACHE_MODE_PT;
	}
}

/* The latest of the versions from lo to hi that the data fits, or -1. */
static int find_version(const struct scase *c, unsigned volume, unsigned sector, const uint8_t *data, unsigned lo,
			unsigned hi)
{
	for (unsigned id = hi; id > lo; id--)
		if (covers(&c->op[id - 1], volume, sector) && stamp_fits(data, volume, sector, c, id))
			return (int)id;
	return stamp_fits(data, volume, sector, c, lo) ? (int)lo : -1;
}

static void explain_sector(const struct scase *c, unsigned volume, unsigned sector, const uint8_t *data, unsigned lo,
			   unsigned hi, const char *when, char *why, size_t len)
{
	int id = find_version(c, volume, sector, data, 0, c->nops);
	char what[100];

	if (id < 0)
		snprintf(what, sizeof what, "what nobody wrote there");
	else if (id == 0)
		snprintf(what, sizeof what, "what was there before all");
	else
		snprintf(what, sizeof what, "what operation %d wrote", id);
	snprintf(why, len, "%s volume v%u block %u sector %u reads as %s; it has to be operation %u's%s", when, volume,
		 sector / (unsigned)SPB, sector % (unsigned)SPB, what, lo, hi > lo ? " or a later one's" : "");
}

bool history_read(const struct history *h, const struct operation *op, const uint8_t *floor, const uint8_t *data,
		  char *why, size_t len)
{
	for (unsigned i = 0; i < op->n; i++) {
		unsigned s = op->first + i, lo = floor[s], hi = h->begun[op->volume][s];

		if (find_version(h->c, op->volume, s, data + (size_t)i * SECTOR, lo, hi) < 0) {
			explain_sector(h->c, op->volume, s, data + (size_t)i * SECTOR, lo, hi,
				       "a read while it ran:", why, len);
			return false;
		}
	}
	return true;
}

/* Does f, at power loss p, promise the write w of the same volume? */
static bool promises(const struct operation *f, const struct operation *w, uint32_t p)
{
	if (!f->ran || !f->ok || f->end > p || f->volume != w->volume)
		return false;
	if (f == w)
		return w->type == DO_WRITE_DURABLE;
	if (w->t1 >= f->t0)
		return false;
	/* of what went to the backing device directly, the last two promise nothing */
	return f->type == DO_FLUSH || (w->back && (f->type == DO_REMOVE || f->type == DO_WRITE_BACK));
}

static bool promised(const struct scase *c, const struct operation *w, uint32_t p)
{
	for (unsigned i = 0; i < c->nops; i++)
		if (promises(&c->op[i], w, p))
			return true;
	return false;
}

/* P2, for the states that were found. */
static bool check_order(const struct scase *c, uint8_t (*state)[VOLUME_SECTORS], const bool *skip, char *why,
			size_t len)
{
	for (unsigned j = 0; j < c->nops; j++) {
		const struct operation *w2 = &c->op[j];
		bool there = false;

		if (!w2->ran || !w2->back || skip[w2->volume])
			continue;
		for (unsigned s = w2->first; s < w2->first + w2->n; s++)
			there |= state[w2->volume][s] == j + 1;
		for (unsigned i = 0; there && i < c->nops; i++) {
			const struct operation *w1 = &c->op[i];

			if (!w1->ran || !w1->back || !w1->ok || skip[w1->volume] || w1->t1 >= w2->t0)
				continue;
			for (unsigned s = w1->first; s < w1->first + w1->n; s++) {
				if (state[w1->volume][s] >= i + 1)
					continue;
				snprintf(why, len,
					 "P2: operation %u's write is there, and operation %u's, which had ended when "
					 "it "
					 "began, is not (volume v%u block %u)",
					 j + 1, i + 1, w1->volume, s / (unsigned)SPB);
				return false;
			}
		}
	}
	return true;
}

/* A block that only writes to a volume in write-back have been at is as one of them left it. */
static bool check_whole(const struct scase *c, unsigned v, unsigned block, const uint8_t *state, char *why, size_t len)
{
	unsigned newest = 0;

	for (unsigned i = 0; i < c->nops; i++) {
		const struct operation *op = &c->op[i];

		if (op->ran && writes(op) && op->volume == v && op->first < (block + 1) * SPB &&
		    op->first + op->n > block * SPB && !op->back)
			return true;
	}
	for (unsigned s = block * SPB; s < (block + 1) * SPB && s < volume_sectors(v); s++)
		if (state[s] > newest)
			newest = state[s];
	for (unsigned s = block * SPB; s < (block + 1) * SPB && s < volume_sectors(v); s++) {
		for (unsigned id = newest; id > state[s]; id--) {
			if (!covers(&c->op[id - 1], v, s))
				continue;
			snprintf(why, len, "P3: volume v%u block %u is torn: operation %u's write is there in part", v,
				 block, id);
			return false;
		}
	}
	return true;
}

static bool find_states(const struct history *h, unsigned v, uint32_t p, const uint8_t *content, uint8_t *state,
			char *why, size_t len)
{
	const struct scase *c = h->c;
	uint8_t lo[VOLUME_SECTORS] = { 0 }, hi[VOLUME_SECTORS] = { 0 };

	for (unsigned i = 0; i < c->nops; i++) {
		const struct operation *op = &c->op[i];

		if (!op->ran || !writes(op) || op->volume != v || op->begin >= p)
			continue;
		memset(hi + op->first, (int)i + 1, op->n);
		if (op->ok && promised(c, op, p))
			memset(lo + op->first, (int)i + 1, op->n);
	}
	for (unsigned s = 0; s < volume_sectors(v); s++) {
		int id = find_version(c, v, s, content + (size_t)s * SECTOR, lo[s], hi[s]);

		if (id < 0) {
			explain_sector(c, v, s, content + (size_t)s * SECTOR, lo[s], hi[s], "after the power loss", why,
				       len);
			return false;
		}
		state[s] = (uint8_t)id;
	}
	for (unsigned b = 0; b < VOLUME_BLOCKS; b++)
		if (!check_whole(c, v, b, state, why, len))
			return false;
	return true;
}

bool history_crash(const struct history *h, uint32_t p, uint8_t *const *content, char *why, size_t len)
{
	uint8_t state[CASE_VOLUMES][VOLUME_SECTORS];

	memset(state, 0, sizeof state);
	for (unsigned v = 0; v < h->c->kind->volumes; v++)
		if (!find_states(h, v, p, content[v], state[v], why, len))
			return false;
	return check_order(h->c, state, h->removed, why, len);
}
