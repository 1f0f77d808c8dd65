/* SPDX-License-Identifier: BSD-3-Clause */
/* replay.c - see replay.h. Main thread only. */
#include "replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_change(const struct event *e)
{
	return e->type != EV_SYNC && e->type != EV_SYNCED;
}

static int domain(const struct event *e)
{
	return e->type == EV_LINK || e->type == EV_UNLINK || e->type == EV_RENAME ? FOLDER : e->file;
}

void sweep_begin(struct sweep *s, const struct world *start, const struct log *log)
{
	memset(s, 0, sizeof *s);
	s->log = log;
	s->base = world_clone(start);
	s->cap = log->n + 1;
	s->pending = malloc(s->cap * sizeof s->pending[0]);
	if (!s->pending)
		abort();
	for (int i = 0; i < start->nfiles; i++)
		s->mtime[i] = s->durable_mtime[i] = start->file[i].mtime;
}

void sweep_end(struct sweep *s)
{
	world_free(s->base);
	free(s->pending);
}

static void synced(struct sweep *s, int file, uint32_t begin)
{
	bool blocked = false;
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->npending; i++) {
		struct pending *p = &s->pending[i];
		const struct event *e = &s->log->ev[p->event];

		if (domain(e) == file) {
			if (!p->durable && e->end <= begin) {
				p->durable = true;
				s->nunsure--;
			}
			if (p->durable && !blocked) {
				world_apply(s->base, e, NULL);
				continue;
			}
			blocked = true;
		}
		s->pending[n++] = *p;
	}
	s->npending = n;
}

void sweep_to(struct sweep *s, uint32_t pos)
{
	for (; s->pos < pos && s->pos < s->log->n; s->pos++) {
		const struct event *e = &s->log->ev[s->pos];

		if (is_change(e)) {
			s->pending[s->npending++] = (struct pending){ .event = s->pos };
			s->nunsure++;
			if (e->type == EV_WRITE)
				s->mtime[e->file] = e->mtime;
		} else if (e->type == EV_SYNCED) {
			synced(s, e->file, e->end);
			if (e->file != FOLDER && s->log->ev[e->end].len)
				s->durable_mtime[e->file] = s->log->ev[e->end].mtime;
		}
	}
}

void choose(const struct sweep *s, unsigned style, struct rng *r, uint8_t *choice)
{
	uint32_t n = s->nunsure, k = 0, odd = n ? rng_below(r, n) : 0;
	uint8_t file_choice[MAX_FILES + 1];
	uint32_t cut[MAX_FILES + 1];

	for (int i = 0; i <= MAX_FILES; i++) {
		file_choice[i] = (uint8_t)rng_below(r, 2);
		cut[i] = rng_below(r, n + 1);
	}
	for (uint32_t i = 0; i < s->npending; i++) {
		const struct event *e = &s->log->ev[s->pending[i].event];
		int file = domain(e) + 1;
		uint8_t torn = (uint8_t)(CHOICE_TORN + rng_below(r, 250));

		if (s->pending[i].durable)
			continue;
		switch (style) {
		case 0: /* all */
			choice[k] = CHOICE_KEEP;
			break;
		case STYLE_NONE:
			choice[k] = CHOICE_DROP;
			break;
		case 2: /* whole files */
			choice[k] = file_choice[file];
			break;
		case 3: /* each by itself */
			choice[k] = (uint8_t)rng_below(r, 2);
			break;
		case 4: /* with torn ones */
			choice[k] = rng_below(r, 3) ? (uint8_t)rng_below(r, 2) : torn;
			break;
		case 5: /* up to some point in each file, torn there */
			choice[k] = k < cut[file] ? CHOICE_KEEP : k == cut[file] ? torn : CHOICE_DROP;
			break;
		case 6: /* all but one */
			choice[k] = k == odd ? CHOICE_DROP : CHOICE_KEEP;
			break;
		case 7: /* one */
			choice[k] = k == odd ? CHOICE_KEEP : CHOICE_DROP;
			break;
		default: /* most, a few torn */
			choice[k] = rng_below(r, 8) ? CHOICE_KEEP : torn;
		}
		k++;
	}
}

/* Half of the torn writes end early, the others have holes. */
static void tear(struct world *w, const struct event *e, uint32_t index, uint8_t how)
{
	struct rng r = { .s = (uint64_t)index * 1000003 + how };
	uint64_t sectors = (e->off + e->len + SECTOR - 1) / SECTOR - e->off / SECTOR;
	uint8_t *mask;

	if (e->type != EV_WRITE || sectors == 1) {
		if (how & 1)
			world_apply(w, e, NULL);
		return;
	}
	mask = calloc(1, sectors / 8 + 1);
	if (!mask)
		abort();
	if (rng_below(&r, 2)) {
		uint32_t n = 1 + rng_below(&r, (uint32_t)sectors - 1);

		for (uint32_t i = 0; i < n; i++)
			mask[i / 8] |= (uint8_t)(1u << (i % 8));
	} else {
		for (uint64_t i = 0; i < sectors; i++)
			if (rng_below(&r, 2))
				mask[i / 8] |= (uint8_t)(1u << (i % 8));
	}
	world_apply(w, e, mask);
	free(mask);
}

/* Old, new or something between; decided by the choice, so that it is the same again. */
static void choose_mtimes(const struct sweep *s, const uint8_t *choice, struct world *w)
{
	struct rng r = { .s = s->pos };

	for (uint32_t i = 0; i < s->nunsure; i++)
		r.s = r.s * 31 + choice[i];
	for (int i = 0; i < w->nfiles; i++) {
		int64_t lo = s->durable_mtime[i], hi = s->mtime[i];
		uint32_t how = rng_below(&r, 3);

		w->file[i].mtime = !how || hi <= lo ? lo : how == 1 ? hi : lo + rng_below(&r, (uint32_t)(hi - lo) + 1);
	}
	/* time goes on: what is written next is newer than anything before */
	w->clock = s->base->clock + s->log->n;
}

struct world *crash(const struct sweep *s, const uint8_t *choice)
{
	struct world *w = world_clone(s->base);
	uint32_t k = 0;

	for (uint32_t i = 0; i < s->npending; i++) {
		uint32_t at = s->pending[i].event;
		const struct event *e = &s->log->ev[at];
		uint8_t c = s->pending[i].durable ? CHOICE_KEEP : choice[k++];

		if (c == CHOICE_KEEP)
			world_apply(w, e, NULL);
		else if (c >= CHOICE_TORN)
			tear(w, e, at, c);
	}
	choose_mtimes(s, choice, w);
	world_settle(w);
	return w;
}

void explain(const struct sweep *s, const uint8_t *choice)
{
	static const char *const names[] = { "write", "truncate", "link", "unlink", "rename" };
	uint32_t k = 0;

	for (uint32_t i = 0; i < s->npending; i++) {
		uint32_t at = s->pending[i].event;
		const struct event *e = &s->log->ev[at];
		const char *file;
		uint8_t c;

		if (s->pending[i].durable)
			continue;
		c = choice[k++];
		file = world ? world_name(world, e->file) : NULL;
		printf("#   %-5s event %u: %s file %d (%s) offset %llu length %llu %s%s%s\n",
		       c == CHOICE_DROP   ? "lost"
		       : c == CHOICE_KEEP ? "kept"
					  : "torn",
		       at, names[e->type], e->file, file ? file : "?", (unsigned long long)e->off,
		       (unsigned long long)e->len, e->name, *e->name2 ? " -> " : "", e->name2);
	}
}
