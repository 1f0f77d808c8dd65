/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * recover.c - from the journal to the state in memory. The journal decides which epochs survive (journal.h); here the
 * lines are put into the table, and those are dropped that cannot be trusted:
 *
 *   - clean blocks in marked regions: backing may have changed after they were recorded (P4, intent.c)
 *   - all lines of a volume whose backing device changed behind the cache; if some are dirty, the load is refused
 *     (P10), unless the user vouches for the device: then those stay
 *   - blocks in the range of a discard that had begun: it is repeated
 *
 * What is dropped is recorded in the first epochs, and only when these are durable the marks are cleared. They are
 * pieces of a size that memory and the journal are made for, however many lines go. A crash between two pieces leads to
 * the same again: the reasons to drop outlive all of them. That a backing device changed may have been seen by chance
 * (sample.c looks at other blocks each time) or from what the next boot forgets (counts of sectors written), so it is
 * written down first, as a setting of the volume, and believed until all is done. A mark is cleared, a volume's row
 * gets the identity that its backing device has now, the note that the journal is void is removed, and a discard is
 * recorded as done, only when every line that goes for that reason is durably gone. What was told dirty before is so
 * after any piece: dirty lines go only from a void journal, or under a discard.
 *
 * Nothing is changed durably before everything is known: the journal's load has ended without an error, no volume is
 * refused, and there is memory for the buffers. Errors until then are the caller's to see, and the next load starts
 * with what this one found.
 */
#include "engine/life/life.h"

#include "engine/life/recover.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "blkcache/units.h"
#include "engine/durable/bypass.h"

#define LOAD_BATCH 64u

/* Setting: in which way a load saw that the backing device has changed; empty: it has not. It is there from before the
 * first of the volume's lines is dropped until the volume's row holds the device as it is now. */
#define CHANGED_KEY JOURNAL_VOLUME_KEY "changed"

struct recovery {
	struct cache *c;
	struct cache_open_report *report;
	struct bc_error *err;
	struct bdev_channel *ch;
	char *changed[CACHE_MAX_VOLUMES + 1]; /* how its backing device changed; NULL: not at all */
	bool proven[CACHE_MAX_VOLUMES + 1]; /* that it did not */
	bool written_down[CACHE_MAX_VOLUMES + 1]; /* CHANGED_KEY says that it did */
	bool record[CACHE_MAX_VOLUMES + 1]; /* its row does not say what the volume is by now */
	bool accepted[CACHE_MAX_VOLUMES + 1]; /* changed, but the user vouches for it: dirty lines stay */
	struct journal_discard *discards;
	uint32_t ndiscards;
	uint64_t redone;
	uint64_t seed; /* which blocks are looked at: others each time */
	char *batch; /* lines not put into the table yet */
	unsigned nbatch;
	bool void_journal; /* bypass.h */
	bool old_note; /* it is about an earlier time of this cache */
	bool drops; /* there are lines, or blocks of some, that go */
	bool no_memory; /* for a reason to drop lines */
	char *buf;
};

static void note(struct cache_open_report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(struct cache_open_report *r, const char *fmt, ...)
{
	size_t n = strlen(r->notes);
	va_list ap;

	if (n && n + 1 < sizeof r->notes) {
		r->notes[n++] = '\n';
		r->notes[n] = 0;
	}
	va_start(ap, fmt);
	vsnprintf(r->notes + n, sizeof r->notes - n, fmt, ap);
	va_end(ap);
}

static bool is_accepted(struct cache *c, const char *name)
{
	for (const char *const *p = c->accepted; p && *p; p++)
		if (!strcmp(*p, name))
			return true;
	return false;
}

/* One volume that cannot be opened keeps all others from being loaded: the message says how to go on without it. */
static int no_backing(struct recovery *r, const struct journal_volume *jv, int rc)
{
	char why[sizeof r->err->msg];

	if (!r->err || rc == -EBUSY || rc == -EUCLEAN || rc == -ENOMEM || rc == -EFBIG || rc == -EMFILE ||
	    rc == -ENFILE)
		return rc;
	memcpy(why, r->err->msg, sizeof why);
	return bc_fail(r->err, rc,
		       "%.*s; no volume of this cache is loaded until it is back, or the volume is given up with "
		       "'blkcache remove %s %s' (--discard-dirty if dirty data for it is to be lost)",
		       (int)(sizeof why - 250), why, r->c->dir, jv->name);
}

/* Notes that the backing device is not what it was. text: taken over. */
static void changed(struct recovery *r, struct volume *v, char *text)
{
	if (!text)
		return;
	r->changed[v->id] = text;
	r->record[v->id] = true;
	r->accepted[v->id] = v->size == v->identity.size && is_accepted(r->c, v->name);
	/* what is remembered of it dates from before; that also holds if the user vouches for it */
	atomic_store(&v->known.nwitness, 0);
	if (r->void_journal) /* else it was us */
		return;
	r->report->changed_volumes++;
	note(r->report, "volume %s: backing %s: %s; its %s lines are dropped", v->name, v->backing, text,
	     r->accepted[v->id] ? "clean" : "cached");
}

/* Opens the backing device: the one that is known, if its name has gone to another one. */
static int attach(struct recovery *r, const struct journal_volume *jv, struct volume **out)
{
	struct journal_volume moved = *jv;
	bool open = !(r->c->open_flags & CACHE_OPEN_NO_VOLUMES);
	char said[600], *found = open ? identity_find(jv, said, sizeof said) : NULL;
	int rc;

	if (found)
		moved.backing = found;
	rc = volume_attach(r->c, &moved, open, true, out, r->err);
	if (!rc && found) {
		note(r->report, "%s", said);
		r->record[jv->id] = true;
	}
	free(found);
	return rc && open ? no_backing(r, jv, rc) : rc;
}

static int on_volume(void *ctx, const struct journal_volume *jv)
{
	struct recovery *r = ctx;
	struct volume *v;
	int rc;

	if (!jv->id || jv->id > CACHE_MAX_VOLUMES || r->c->volume[jv->id])
		return bc_fail(r->err, -EUCLEAN, "the journal names volume id %u, which cannot be", jv->id);
	rc = attach(r, jv, &v);
	if (rc)
		return rc;
	r->c->volume[jv->id] = v;
	r->c->nvolumes++;
	v->row_in_use = jv->in_use;
	v->write_seq = 1; /* the backing device may hold unflushed writes of before: marks are not cleared until it was
			     flushed */
	if (r->void_journal) { /* backing was written without a word to the journal */
		atomic_store(&v->known.nwitness, 0);
		r->record[jv->id] = true;
	}
	if (v->bdev) {
		changed(r, v, identity_difference(v, jv->in_use, &r->proven[jv->id]));
		r->record[jv->id] |= !v->known.there;
	}
	return 0;
}

/* The load that saw the change did not come to its end. It counts whatever the device looks like now: some lines are
 * gone by it. */
static void changed_load(struct recovery *r, const char *key, const char *value)
{
	struct volume *v;
	unsigned id;
	int end = 0;

	if (sscanf(key, CHANGED_KEY "%n", &id, &end) != 1 || !end || key[end] || !id || id > CACHE_MAX_VOLUMES ||
	    !value[0])
		return;
	v = r->c->volume[id];
	if (!v)
		return;
	r->written_down[id] = true;
	if (v->bdev && !r->changed[id]) {
		char *text = strdup(value);

		r->no_memory |= !text;
		changed(r, v, text);
	}
}

static int on_setting(void *ctx, const char *key, const char *value)
{
	struct recovery *r = ctx;

	changed_load(r, key, value);
	if (!strcmp(key, CLEAN_STOP_KEY))
		r->report->clean_stop = !strcmp(value, "yes");
	access_load(r->c, key, value);
	return tunables_load(r->c, key, value);
}

static int by_slot(const void *a, const void *b)
{
	const struct journal_block *x = a, *y = b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* A read that failed says nothing about what is there (P1, P8): nothing may be dropped for it. */
static int cannot_read(struct recovery *r, uint32_t slot, int rc)
{
	return bc_fail(
		r->err, rc,
		"%s/%s cannot be read at byte %llu: %s; it may hold flushed data, so nothing is dropped: try again "
		"when the disk can be read",
		r->c->dir, CACHE_DATA_FILE, (unsigned long long)slot * CACHE_BLOCK, strerror(-rc));
}

/* Reads the slots, neighbours in one go, and compares. 1: all as the crcs say; 0: not; -errno: cannot be told. */
static int on_verify(void *ctx, const struct journal_block *blocks, uint32_t n)
{
	struct recovery *r = ctx;
	struct journal_block *b;
	int yes = 1;

	if (MUTATE(CRC_CHECK) || r->void_journal) /* nothing of a void journal is kept */
		return 1;
	b = malloc((n ? n : 1) * sizeof *b);
	if (!b)
		return bc_fail(r->err, -ENOMEM, "out of memory");
	memcpy(b, blocks, n * sizeof *b);
	qsort(b, n, sizeof *b, by_slot);
	for (uint32_t i = 0, run; yes == 1 && i < n; i += run) {
		int rc;

		for (run = 1; i + run < n && run < MAX_BLOCKS && b[i + run].slot == b[i].slot + run; run++)
			;
		rc = bdev_pread(r->ch, r->buf, (size_t)run * CACHE_BLOCK, (uint64_t)b[i].slot * CACHE_BLOCK);
		if (rc)
			yes = cannot_read(r, b[i].slot, rc);
		for (uint32_t k = 0; yes == 1 && k < run; k++)
			yes = crc32c(r->buf + (size_t)k * CACHE_BLOCK, CACHE_BLOCK) == b[i + k].crc;
	}
	free(b);
	return yes;
}

static int on_mark(void *ctx, const struct journal_mark *m)
{
	struct recovery *r = ctx;
	struct volume *v = m->volume <= CACHE_MAX_VOLUMES ? r->c->volume[m->volume] : NULL;

	if (!v)
		return bc_fail(r->err, -EUCLEAN, "the journal marks region %u of volume id %u, which does not exist",
			       m->region, m->volume);
	if (m->region >= v->intent.nregions)
		return 0; /* the backing device shrank, at this load or an earlier one: nothing is cached there */
	if (!v->intent.region[m->region].marked) {
		v->intent.region[m->region].marked = true;
		v->intent.nmarked++;
	}
	return 0;
}

/* P10. The remedies are for this volume; without one the others cannot be loaded either. */
static int refuse_changed(struct recovery *r, struct volume *v)
{
	bool same_size = v->size == v->identity.size;

	return bc_fail(
		r->err, -ESTALE,
		"volume %s: backing %.150s changed behind the cache (%.190s), which holds dirty data for it; no volume "
		"is loaded until you restore it, %s%s%s%s%sor give that data up with 'blkcache remove %s %s "
		"--discard-dirty'",
		v->name, v->backing, r->changed[v->id], same_size ? "vouch for it with 'blkcache load " : "",
		same_size ? r->c->dir : "", same_size ? " MOUNTPOINT --accept-changed " : "", same_size ? v->name : "",
		same_size ? "' (dirty data goes over it), " : "", r->c->dir, v->name);
}

/* Which of a line's blocks cannot be trusted. */
static uint16_t untrusted(struct recovery *r, struct volume *v, uint64_t line, uint16_t valid, uint16_t dirty)
{
	if (r->void_journal || (r->changed[v->id] && !r->accepted[v->id]))
		return valid;
	if (r->accepted[v->id])
		return valid & ~dirty;
	if (intent_is_marked(v, line << r->c->lines.bpl_shift) || MUTATE(WARM))
		return MUTATE(INTENT_DROP) ? 0 : valid & ~dirty;
	return 0;
}

/* May the load go on with this line? */
static int check_line(struct recovery *r, struct volume *v, const struct journal_line *jl)
{
	if (r->void_journal)
		return 0;
	if (r->changed[v->id] && !r->accepted[v->id])
		return jl->dirty ? refuse_changed(r, v) : 0;
	if (jl->line << r->c->lines.bpl_shift >= v->nblocks)
		return bc_fail(r->err, -EUCLEAN, "the journal has line %llu of volume %s, beyond its end",
			       (unsigned long long)jl->line, v->name);
	return 0;
}

/* Nobody else is here yet: no need for a locked instruction. */
static void bump(counter *n, uint64_t by)
{
	atomic_store_explicit(n, ctr_get(*n) + by, memory_order_relaxed);
}

static int load_line(struct recovery *r, const struct journal_line *jl, struct line_chain *ch)
{
	struct cache *c = r->c;
	struct lines *l = &c->lines;
	struct volume *v = c->volume[jl->volume];
	uint32_t dirty = mask_count(jl->dirty);
	bool drop;
	int rc = check_line(r, v, jl);

	if (rc)
		return rc;
	drop = untrusted(r, v, jl->line, jl->valid, jl->dirty) != 0;
	r->drops |= drop;
	for (unsigned b = 0; b < l->bpl; b++) {
		if (!(jl->valid >> b & 1))
			continue;
		if (!slots_claim(&c->slots, jl->blk[b].slot))
			return bc_fail(r->err, -EUCLEAN, "the journal gives slot %u to two blocks", jl->blk[b].slot);
		*line_block(l, jl->entry, b) = jl->blk[b];
	}
	if (lines_find(ch) != LINE_NONE || lines_word(l, jl->entry) & LINE_KEY_MASK)
		return bc_fail(r->err, -EUCLEAN, "the journal has line %llu of volume %s twice",
			       (unsigned long long)jl->line, v->name);
	lines_insert_at(ch, jl->entry);
	line_set_masks(l, jl->entry, jl->valid, jl->dirty, 0);
	bump(&v->lines, 1);
	ctr_add(region_of_line(v, jl->line)->lines, 1);
	if (dirty) {
		bump(&v->dirty_lines, 1);
		bump(&c->dirty_lines, 1);
		bump(&v->dirty_blocks, dirty);
		bump(&c->dirty_blocks, dirty);
	}
	if (!r->void_journal) { /* else there is nothing, and nothing of value goes */
		r->report->lines++;
		r->report->dirty_lines += dirty != 0;
		r->report->dirty_bytes += (uint64_t)dirty * CACHE_BLOCK;
		r->report->dropped_clean_lines += drop;
	}
	return 0;
}

uint32_t recover_piece = 65536;
void (*recover_noted)(void);

static void drop_entry(struct recovery *r, uint32_t e)
{
	struct cache *c = r->c;
	struct lines *l = &c->lines;
	uint64_t key = lines_word(l, e) & LINE_KEY_MASK;
	struct volume *v = c->volume[line_key_volume(key)];
	struct line_chain ch;
	uint16_t mask;

	if (!v)
		return;
	ch = lines_lock(l, key);
	mask = untrusted(r, v, line_key_line(key), line_valid(l, e), line_dirty(l, e));
	if (mask)
		line_drop(c, v, &ch, e, mask);
	lines_unlock(&ch);
}

#define DROP_BATCH 1024u /* entries looked at in one stay in the gate */

/* Takes the lines that cannot be trusted out of the map. Each piece is an epoch of its own, durable before the next one
 * begins, and the journal folds in between: neither memory nor an epoch's row grows with their number. */
static int drop_untrusted(struct recovery *r)
{
	struct cache *c = r->c;
	struct lines *l = &c->lines;
	int rc = 0;

	for (uint32_t e = 0; r->drops && e < l->n && !rc;) {
		epoch_enter(c);
		for (uint32_t i = 0; i < DROP_BATCH && i < recover_piece && e < l->n; i++)
			drop_entry(r, e++);
		epoch_leave(c);
		if (ctr_get(c->epoch.nchanged) < recover_piece)
			continue;
		rc = epoch_commit(c, true);
		jobs_fold_journal(c);
	}
	return rc;
}

/*
 * Lines come in the order of entries, so their chains lie all over the table and each is a miss in the CPU's caches, or
 * two. They are put in by the batch: what the whole batch is going to touch is asked for first.
 */
static int load_batch(struct recovery *r)
{
	struct lines *l = &r->c->lines;
	size_t stride = journal_line_stride(l->bpl);
	struct line_chain ch[LOAD_BATCH];
	int rc = 0;

	for (unsigned i = 0; i < r->nbatch; i++) {
		const struct journal_line *jl = (void *)(r->batch + i * stride);

		ch[i] = (struct line_chain){ .l = l, .key = line_key(jl->volume, jl->line) };
		ch[i].bucket = lines_bucket(l, ch[i].key);
		__builtin_prefetch(&l->head[ch[i].bucket], 1);
		__builtin_prefetch(&r->c->slots.free[jl->blk[0].slot / 64], 1);
	}
	for (unsigned i = 0; i < r->nbatch; i++) {
		uint32_t e = l->head[ch[i].bucket];

		if (e != LINE_NONE) {
			__builtin_prefetch((const void *)&l->key[e]);
			__builtin_prefetch(&l->next[e]);
		}
	}
	for (unsigned i = 0; i < r->nbatch && !rc; i++)
		rc = load_line(r, (void *)(r->batch + i * stride), &ch[i]);
	r->nbatch = 0;
	return rc;
}

static int on_line(void *ctx, const struct journal_line *jl)
{
	struct recovery *r = ctx;
	struct lines *l = &r->c->lines;
	size_t stride = journal_line_stride(l->bpl);

	if (jl->volume > CACHE_MAX_VOLUMES || !r->c->volume[jl->volume] || jl->line >> LINE_BITS || jl->entry >= l->n ||
	    !jl->valid)
		return bc_fail(r->err, -EUCLEAN, "the journal's line %u belongs to volume id %u, which does not exist",
			       jl->entry, jl->volume);
	memcpy(r->batch + r->nbatch * stride, jl, stride);
	return ++r->nbatch == LOAD_BATCH ? load_batch(r) : 0;
}

static int on_redo(void *ctx, uint32_t slot, const void *data)
{
	struct recovery *r = ctx;
	int rc;

	if (r->c->read_only) /* for the next who opens it */
		return 0;
	memcpy(r->buf, data, CACHE_BLOCK);
	rc = MUTATE(INLINE_REDO) ? 0 : bdev_pwrite(r->ch, r->buf, CACHE_BLOCK, (uint64_t)slot * CACHE_BLOCK);
	r->redone++;
	return rc ? bc_fail(r->err, rc, "%s/%s cannot be written: %s", r->c->dir, CACHE_DATA_FILE, strerror(-rc)) : 0;
}

static int on_discard(void *ctx, const struct journal_discard *d)
{
	struct recovery *r = ctx;
	struct journal_discard *p = realloc(r->discards, (r->ndiscards + 1) * sizeof *p);

	if (!p)
		return bc_fail(r->err, -ENOMEM, "out of memory");
	r->discards = p;
	p[r->ndiscards++] = *d;
	return 0;
}

/* request/discard.c's order, from where it was broken off. */
static int repeat_discard(struct recovery *r, struct journal_discard *d)
{
	struct cache *c = r->c;
	struct volume *v = d->volume <= CACHE_MAX_VOLUMES ? c->volume[d->volume] : NULL;
	/* zeros in any case; of a large range on a sparse file, zeros that are written or allocated might not fit */
	struct bdev_io io = { .type = BDEV_UNMAP, .offset = d->offset, .length = d->length };
	struct bdev_channel *ch;
	int rc;

	if (!v)
		return 0; /* gone */
	if ((r->void_journal && !MUTATE(VOID_DISCARD)) || (r->changed[v->id] && !r->accepted[v->id])) {
		/* nobody was told that it was done, and this is not what it was about: the range may have been written
		 * since, by us without the cache, or by others */
		d->done = true;
		rc = epoch_add_discard(c, d);
		return rc ? bc_fail(r->err, rc, "out of memory") : 0;
	}
	if (!v->bdev)
		return 0; /* for the load that opens it */
	if (d->offset > v->size || d->length > v->size - d->offset)
		return bc_fail(r->err, -EUCLEAN, "the journal has a discard beyond the end of volume %s", v->name);
	/* backing's time is going to change. A row that is to be replaced when drops are durable stays until then. */
	rc = r->changed[v->id] ? 0 : intent_hold(v);
	if (!rc && !r->changed[v->id]) {
		rc = intent_forget(v, d->offset / CACHE_BLOCK, (d->length + CACHE_BLOCK - 1) / CACHE_BLOCK);
		intent_release(v); /* the row stays as it is until something settles it */
	}
	if (rc)
		return bc_fail(r->err, rc, "volume %s: the journal cannot be written: %s", v->name, c->why);
	ch = bdev_channel_open(v->bdev, 0);
	if (!ch)
		return bc_fail(r->err, -ENOMEM, "out of memory");
	if (!MUTATE(DISCARD_DROP))
		blocks_drop(c, v, d->offset / CACHE_BLOCK, (d->length + CACHE_BLOCK - 1) / CACHE_BLOCK);
	rc = MUTATE(DISCARD_REDO) ? 0 : bdev_rw_wait(ch, &io, 1);
	if (!rc)
		rc = bdev_flush(ch);
	bdev_channel_close(ch);
	if (rc)
		return bc_fail(r->err, rc, "volume %s: an unfinished discard cannot be completed on backing %s: %s",
			       v->name, v->backing, strerror(-rc));
	d->done = true;
	rc = epoch_add_discard(c, d);
	return rc ? bc_fail(r->err, rc, "out of memory") : 0;
}

/* Does the data agree? Not for a journal that is void, nor when a process takes over from one that has just died. */
static int compare_data(struct recovery *r)
{
	struct cache *c = r->c;
	struct sample *s;
	unsigned n = 0;
	int rc = 0;

	if (r->void_journal || (c->shared && c->shared->takeover))
		return 0;
	s = calloc(CACHE_MAX_VOLUMES, sizeof *s);
	if (!s)
		return bc_fail(r->err, -ENOMEM, "out of memory");
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		if (c->volume[i] && c->volume[i]->bdev && c->volume[i]->identity.id[0] && !r->changed[i])
			s[n++] = (struct sample){ .v = c->volume[i],
						  .proven = r->proven[i],
						  .discards = r->discards,
						  .ndiscards = r->ndiscards };
	if (n && sample_backings(c, s, n, r->seed))
		rc = bc_fail(r->err, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < n && !rc; i++) {
		struct volume *v = s[i].v;
		char *text;

		if (!s[i].differs)
			continue;
		if (asprintf(&text, "its block at byte %llu is not what the cache knows of it",
			     (unsigned long long)s[i].block * CACHE_BLOCK) < 0)
			text = strdup("its data is not what the cache knows of it");
		if (!text) {
			rc = bc_fail(r->err, -ENOMEM, "out of memory");
			break;
		}
		changed(r, v, text);
		if (!r->accepted[v->id] && ctr_get(v->dirty_blocks))
			rc = refuse_changed(r, v);
		r->drops = true;
		r->report->dropped_clean_lines += ctr_get(v->lines) - ctr_get(v->dirty_lines);
	}
	free(s);
	return rc;
}

static int put_changed(struct recovery *r, unsigned id, const char *text)
{
	char key[sizeof CHANGED_KEY + 16];

	snprintf(key, sizeof key, CHANGED_KEY, id);
	return journal_setting_put(r->c->journal, key, text, r->err);
}

/* Before the first line goes: a load that finds some of them gone finds the reason, too. */
static int write_down_changed(struct recovery *r)
{
	int rc = 0;

	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES && !rc && !MUTATE(CHANGED_NOTE); i++) {
		if (!r->changed[i] || r->written_down[i] || !ctr_get(r->c->volume[i]->lines))
			continue;
		rc = put_changed(r, i, r->changed[i]);
		r->written_down[i] = !rc;
	}
	if (!rc && recover_noted)
		recover_noted();
	return rc;
}

/* The lines of changed backing devices are gone, durably: from now on they are known as they are. So are those that
 * nothing was known of. */
static int accept_changed(struct recovery *r)
{
	int rc = 0;

	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES && !rc; i++) {
		if (r->record[i])
			rc = volume_record(r->c->volume[i], r->c->volume[i]->row_in_use, r->err);
		if (!rc && r->record[i] && r->written_down[i])
			rc = put_changed(r, i, "");
	}
	return rc;
}

/* A name that is spelled wrong must not pass for the user's consent. */
static int check_accepted(struct cache *c, struct bc_error *err)
{
	for (const char *const *p = c->accepted; p && *p; p++) {
		struct volume *v = cache_volume_get(c, *p);

		if (!v)
			return bc_fail(err, -ENOENT, "there is no volume '%s' in %s; 'blkcache status' lists them", *p,
				       c->dir);
		volume_put(v);
	}
	return 0;
}

static void note_less_ram(const struct cache *c, struct cache_open_report *report)
{
	uint64_t set = ctr_get(c->tunables.ram_bytes);
	char a[32], b[32];

	if (c->ram_bytes >= set || c->open_flags & (CACHE_OPEN_NO_VOLUMES | CACHE_OPEN_BRIEF) ||
	    (c->shared && c->shared->takeover))
		return;
	note(report, "ram is set to %s, and %s is what can be had here: buffers take that",
	     units_format_size(a, sizeof a, set), units_format_size(b, sizeof b, c->ram_bytes));
	log_warn("%s: ram is set to %s, and %s is what can be had here: buffers take that", c->dir, a, b);
}

/* Is the journal void? Before anything is read from it but settings. */
static int look_for_note(struct recovery *r)
{
	struct cache *c = r->c;
	char loads[32] = "0", clean[8] = "";
	int rc = journal_setting_get(c->journal, LOADS_KEY, loads, sizeof loads, r->err), noted;

	if (rc >= 0)
		rc = journal_setting_get(c->journal, CLEAN_STOP_KEY, clean, sizeof clean, r->err);
	if (rc < 0)
		return rc;
	c->loads = strtoull(loads, NULL, 10);
	noted = bypass_noted(c, !strcmp(clean, "yes"));
	if (noted < 0)
		return bc_fail(r->err, noted, "cache %s: whether its journal is void cannot be told: %s", c->dir,
			       strerror(-noted));
	r->void_journal = noted == BYPASS_VOID;
	if (r->void_journal)
		note(r->report, "the volumes went on without the cache after it had failed; it starts empty");
	r->old_note = noted == BYPASS_OUT_OF_DATE;
	return 0;
}

/* What was noted, the journal says now, or it was not about this journal. */
static int clear_note(struct recovery *r)
{
	struct cache *c = r->c;
	int rc = r->void_journal || r->old_note ? bypass_clear_note(c) : 0;

	if (r->old_note && !rc)
		log_warn("%s: there was a note that its journal is void; the cache has been used since, so it was "
			 "removed",
			 c->dir);
	return rc ? bc_fail(r->err, rc, "cache %s: the note that its journal was void cannot be removed: %s", c->dir,
			    strerror(-rc))
		  : 0;
}

/* What load and note have found becomes the journal's: durable, in pieces. */
static int record_drops(struct recovery *r)
{
	struct cache *c = r->c;
	int rc = MUTATE(VOID_EARLY) ? clear_note(r) : 0, rc2 = write_down_changed(r);

	if (rc2)
		return rc2;
	if (!rc)
		rc = drop_untrusted(r);
	for (uint32_t i = 0; i < r->ndiscards && !rc && !rc2; i++)
		rc2 = repeat_discard(r, &r->discards[i]);
	if (!rc && !rc2 && !MUTATE(RECOVER_COMMIT))
		rc = epoch_commit(c, true);
	if (rc)
		return bc_fail(r->err, rc, "the recovered state cannot be written: %s", c->why);
	/* the note last: without it the journal counts, with what it remembers of the backing devices */
	if (!rc2)
		rc2 = accept_changed(r);
	return rc2 ? rc2 : clear_note(r);
}

int recover(struct cache *c, struct cache_open_report *report, struct bc_error *err)
{
	static const struct journal_load_ops ops = {
		.volume = on_volume,
		.setting = on_setting,
		.verify = on_verify,
		.mark = on_mark,
		.line = on_line,
		.redo = on_redo,
		.discard = on_discard,
	};
	struct recovery r = { .c = c, .report = report, .err = err };
	struct journal_load_report jr;
	int rc;

	memset(report, 0, sizeof *report);
	report->clean_stop = true;
	r.ch = bdev_channel_open(c->data, 0);
	r.buf = aligned_alloc(CACHE_BLOCK, MAX_BLOCKS * CACHE_BLOCK);
	r.batch = malloc(LOAD_BATCH * journal_line_stride(c->lines.bpl));
	rc = r.ch && r.buf && r.batch ? 0 : bc_fail(err, -ENOMEM, "out of memory");
	if (!rc)
		rc = look_for_note(&r);
	/* recovery has the cache to itself, but drops go through the same paths as ever */
	if (!rc)
		rc = journal_load(c->journal, &ops, &r, &jr, err);
	if (!rc)
		rc = load_batch(&r);
	if (!rc && r.no_memory)
		rc = bc_fail(err, -ENOMEM, "out of memory");
	if (!rc)
		rc = check_accepted(c, err);
	if (!rc)
		rc = cache_setup_buffers(c, err); /* how large they are is a setting */
	r.seed = jr.next_id;
	if (!rc)
		rc = compare_data(&r);
	if (rc)
		goto out;
	note_less_ram(c, report);
	lines_rebuild_free(&c->lines);
	/* also what was only found there: the last owner may have been killed between writing and flushing it, and from
	 * now on it counts as durable (data_upto) */
	if (!c->read_only && (r.redone || (jr.epochs_replayed && !MUTATE(FOUND_FLUSH))) && !MUTATE(INLINE_FLUSH) &&
	    (rc = bdev_flush(r.ch))) {
		bc_fail(err, rc, "%s/%s cannot be flushed: %s", c->dir, CACHE_DATA_FILE, strerror(-rc));
		goto out;
	}
	report->epochs_replayed = jr.epochs_replayed;
	report->epochs_dropped = jr.epochs_dropped;
	report->redo_blocks = jr.redo_blocks;
	if (jr.epochs_dropped)
		note(report, "%llu unflushed epoch(s) were incomplete and dropped: %s",
		     (unsigned long long)jr.epochs_dropped, jr.why_dropped);
	c->epoch.open_id = jr.next_id;
	c->epoch.durable_id = jr.next_id - 1;
	c->epoch.data_upto = jr.next_id - 1;
	if (!c->read_only)
		rc = record_drops(&r);
out:
	bdev_channel_close(r.ch);
	free(r.buf);
	free(r.batch);
	free(r.discards);
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		free(r.changed[i]);
	return rc;
}
