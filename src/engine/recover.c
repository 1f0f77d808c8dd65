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
 * What is dropped is recorded in the first epoch, and only when that is durable the marks are cleared.
 */
#include "recover.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "blkcache/units.h"
#include "bypass.h"

#define LOAD_BATCH 64u

struct recovery {
	struct cache *c;
	struct cache_open_report *report;
	struct bc_error *err;
	struct bdev_channel *ch;
	const char *changed[CACHE_MAX_VOLUMES + 1]; /* how its backing device changed; NULL: not at all */
	bool accepted[CACHE_MAX_VOLUMES + 1]; /* changed, but the user vouches for it: dirty lines stay */
	struct journal_discard *discards;
	uint32_t ndiscards;
	uint64_t redone;
	char *batch; /* lines not put into the table yet */
	unsigned nbatch;
	bool void_journal; /* bypass.h */
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

/* What is different about the backing device, or NULL. Device numbers may change at a reboot, so only the file's inode
 * counts. */
static const char *what_changed(struct volume *v, bool was_in_use)
{
	struct bdev_identity now;

	bdev_get_identity(v->bdev, &now);
	if (now.size != v->identity.size)
		return "its size has changed";
	if (now.id[1] != v->identity.id[1])
		return "it is another file";
	/* our own writes after the last record would show as well: exact only after a clean stop */
	if (!was_in_use && now.mtime_ns != v->identity.mtime_ns)
		return "it was modified while the cache was not loaded";
	return NULL;
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
		       "'blkcache remove DIR %s' (--discard-dirty if dirty data for it is to be lost)",
		       (int)(sizeof why - 250), why, jv->name);
}

static int on_volume(void *ctx, const struct journal_volume *jv)
{
	struct recovery *r = ctx;
	bool open = !(r->c->open_flags & CACHE_OPEN_NO_VOLUMES);
	const char *why;
	struct volume *v;
	int rc;

	if (!jv->id || jv->id > CACHE_MAX_VOLUMES || r->c->volume[jv->id])
		return bc_fail(r->err, -EUCLEAN, "the journal names volume id %u, which cannot be", jv->id);
	rc = volume_attach(r->c, jv, open, true, &v, r->err);
	if (rc)
		return open ? no_backing(r, jv, rc) : rc;
	r->c->volume[jv->id] = v;
	r->c->nvolumes++;
	v->row_in_use = jv->in_use;
	v->write_seq = 1; /* the backing device may hold unflushed writes of before: marks are not cleared until it was
			     flushed */
	why = open ? what_changed(v, jv->in_use) : NULL;
	if (why) {
		r->changed[jv->id] = why;
		r->accepted[jv->id] = v->size == jv->identity.size && is_accepted(r->c, v->name);
		if (!r->void_journal) /* else it was us */
			note(r->report, "volume %s: backing %s: %s; its %s lines are dropped", v->name, v->backing, why,
			     r->accepted[jv->id] ? "clean" : "cached");
	}
	return 0;
}

static int on_setting(void *ctx, const char *key, const char *value)
{
	struct recovery *r = ctx;

	if (!strcmp(key, CLEAN_STOP_KEY))
		r->report->clean_stop = !strcmp(value, "yes");
	return tunables_load(r->c, key, value);
}

static int by_slot(const void *a, const void *b)
{
	const struct journal_block *x = a, *y = b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* Reads the slots, neighbours in one go, and compares. */
static bool on_verify(void *ctx, const struct journal_block *blocks, uint32_t n)
{
	struct recovery *r = ctx;
	struct journal_block *b = malloc((n ? n : 1) * sizeof *b);
	bool ok = b != NULL;

	if (!ok)
		return false;
	if (MUTATE(CRC_CHECK))
		n = 0;
	memcpy(b, blocks, n * sizeof *b);
	qsort(b, n, sizeof *b, by_slot);
	for (uint32_t i = 0, run; ok && i < n; i += run) {
		for (run = 1; i + run < n && run < MAX_BLOCKS && b[i + run].slot == b[i].slot + run; run++)
			;
		ok = !bdev_pread(r->ch, r->buf, (size_t)run * CACHE_BLOCK, (uint64_t)b[i].slot * CACHE_BLOCK);
		for (uint32_t k = 0; ok && k < run; k++)
			ok = crc32c(r->buf + (size_t)k * CACHE_BLOCK, CACHE_BLOCK) == b[i + k].crc;
	}
	free(b);
	return ok;
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
		"volume %s: backing %s changed behind the cache (%s), which holds dirty data for it; no volume of "
		"this cache is loaded until you restore it, %s%s%sor give up the dirty data with 'blkcache remove "
		"DIR %s --discard-dirty'",
		v->name, v->backing, r->changed[v->id],
		same_size ? "say that it is the right one with 'blkcache load --accept-changed " : "",
		same_size ? v->name : "", same_size ? "' (dirty data is kept and goes over it), " : "", v->name);
}

/* Which of the line's blocks cannot be trusted, or -errno. */
static int untrusted(struct recovery *r, struct volume *v, const struct journal_line *jl)
{
	uint64_t block = jl->line << r->c->lines.bpl_shift;

	if (r->void_journal)
		return 0xffff;
	if (r->changed[v->id] && !r->accepted[v->id])
		return jl->dirty ? refuse_changed(r, v) : 0xffff;
	if (block >= v->nblocks)
		return bc_fail(r->err, -EUCLEAN, "the journal has line %llu of volume %s, beyond its end",
			       (unsigned long long)jl->line, v->name);
	if (r->accepted[v->id])
		return jl->valid & ~jl->dirty;
	if (intent_is_marked(v, block) || MUTATE(WARM))
		return MUTATE(INTENT_DROP) ? 0 : jl->valid & ~jl->dirty;
	return 0;
}

/* Nobody else is here yet: no need for a locked instruction. */
static void bump(counter *n, uint64_t by)
{
	atomic_store_explicit(n, GET(*n) + by, memory_order_relaxed);
}

static int load_line(struct recovery *r, const struct journal_line *jl, struct line_chain *ch)
{
	struct cache *c = r->c;
	struct lines *l = &c->lines;
	struct volume *v = c->volume[jl->volume];
	uint32_t dirty = mask_count(jl->dirty);
	int drop = untrusted(r, v, jl);

	if (drop < 0)
		return drop;
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
	bump(&c->occupied_lines, 1);
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
		r->report->dropped_clean_lines += drop != 0;
	}
	if (drop)
		line_drop(c, v, ch, jl->entry, (uint16_t)drop);
	return 0;
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

/* zero.c's order, from where it was broken off. */
static int repeat_discard(struct recovery *r, struct journal_discard *d)
{
	struct cache *c = r->c;
	struct volume *v = d->volume <= CACHE_MAX_VOLUMES ? c->volume[d->volume] : NULL;
	struct bdev_io io = { .type = BDEV_WRITE_ZEROES, .offset = d->offset, .length = d->length };
	struct bdev_channel *ch;
	int rc;

	if (!v || !v->bdev)
		return 0; /* gone, or for the load that opens it */
	if (r->changed[v->id] && !r->accepted[v->id]) {
		/* nobody was told that it was done, and this is not what it was about */
		d->done = true;
		return epoch_add_discard(c, d);
	}
	if (d->offset > v->size || d->length > v->size - d->offset)
		return bc_fail(r->err, -EUCLEAN, "the journal has a discard beyond the end of volume %s", v->name);
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
	return epoch_add_discard(c, d);
}

/* The lines of changed backing devices are gone, durably: from now on they are known as they are. */
static int accept_changed(struct recovery *r)
{
	int rc = 0;

	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES && !rc; i++)
		if (r->changed[i])
			rc = volume_record(r->c->volume[i], r->c->volume[i]->row_in_use, r->err);
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
	uint64_t set = GET(c->tunables.ram_bytes);
	char a[32], b[32];

	if (c->ram_bytes >= set || c->open_flags & (CACHE_OPEN_NO_VOLUMES | CACHE_OPEN_BRIEF) ||
	    (c->shared && c->shared->takeover))
		return;
	note(report, "ram is set to %s, and %s is what can be had here: buffers take that",
	     units_format_size(a, sizeof a, set), units_format_size(b, sizeof b, c->ram_bytes));
	log_warn("%s: ram is set to %s, and %s is what can be had here: buffers take that", c->dir, a, b);
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
	int rc, noted;

	memset(report, 0, sizeof *report);
	report->clean_stop = true;
	r.ch = bdev_channel_open(c->data, 0);
	r.buf = aligned_alloc(CACHE_BLOCK, MAX_BLOCKS * CACHE_BLOCK);
	r.batch = malloc(LOAD_BATCH * journal_line_stride(c->lines.bpl));
	rc = r.ch && r.buf && r.batch ? 0 : bc_fail(err, -ENOMEM, "out of memory");
	noted = bypass_noted(c);
	if (!rc && noted < 0)
		rc = bc_fail(err, noted, "cache %s: whether its journal is void cannot be told: %s", c->dir,
			     strerror(-noted));
	r.void_journal = noted > 0;
	if (r.void_journal)
		note(report, "the volumes went on without the cache after it had failed; it starts empty");
	/* recovery has the cache to itself, but drops go through the same paths as ever */
	if (!rc)
		rc = journal_load(c->journal, &ops, &r, &jr, err);
	if (!rc)
		rc = load_batch(&r);
	if (!rc)
		rc = check_accepted(c, err);
	if (!rc)
		rc = cache_setup_buffers(c, err); /* how large they are is a setting */
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
	for (uint32_t i = 0; i < r.ndiscards && !rc; i++)
		rc = repeat_discard(&r, &r.discards[i]);
	if (!rc && !c->read_only && !MUTATE(RECOVER_COMMIT)) {
		rc = epoch_commit(c, true);
		if (rc)
			bc_fail(err, rc, "the recovered state cannot be written: %s", c->why);
		else if (r.void_journal && (rc = bypass_clear_note(c)))
			bc_fail(err, rc, "cache %s: the note that its journal was void cannot be removed: %s", c->dir,
				strerror(-rc));
	}
	if (!rc)
		rc = accept_changed(&r);
out:
	bdev_channel_close(r.ch);
	free(r.buf);
	free(r.batch);
	free(r.discards);
	return rc;
}
