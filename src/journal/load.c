/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * load.c - journal_load(): which epochs count after a crash. What they amount to is in load_lines.c. Runs once, on the
 * opening thread, with the journal's lock held; callbacks must not call back into the journal.
 *
 * The rows of the database are what committed transactions left: SQLite's WAL sees to that. An epoch's row and its
 * data in the data file are made durable side by side, so a row may be there without its data.
 *
 * D = the largest durable_upto in any row that can be decoded, and in the state row. A row saying durable_upto = N was
 * written after all epochs <= N were durable on both sides; that stays true if the row itself is dropped.
 *
 * Epochs <= D are kept unseen. (Their data cannot even be checked: a slot freed by them may hold newer data by now.)
 *
 * Of the later ones, the longest prefix is kept that gives a state whose every block is really there. The state after
 * epoch K holds the fresh blocks of the epochs (D, K] that no epoch <= K superseded; each must be carried in its row,
 * or be in the data file (verify). So a bad block that nothing supersedes ends the prefix before its epoch; a
 * superseded one only forbids the states before the epoch that supersedes it.
 *
 * The latter matters. Once an epoch is durable on both sides, the slots it freed are given out again, and slots are
 * overwritten in place with data that durable rows carry, before any later row had the occasion to tell a higher
 * durable_upto. Dropping the epoch that lost a slot that way would drop flushed epochs after it (P1).
 *
 * Every epoch that was reported durable is in the prefix: all blocks alive after it are in the data file or in a row,
 * and none of their slots was reused, for reuse waits until the epoch that frees the slot is durable itself - and is
 * then in the prefix by the same argument. The result is the exact state after some epoch (P2), and every block in it
 * has the content it was given then (P3).
 *
 * A row that cannot be decoded is damage that leaves no safe reading, whether it is above D or not: rows of the table
 * are whole or not there, since SQLite applies a transaction as a whole. The same goes for the ring, but for its newest
 * row, if there is no later epoch in the table either: one row is written at a time, and synced before the next commit
 * begins, so power loss can tear only that one. Above D it is then an epoch that nobody was told is durable.
 *
 * Whether a block is there has three answers. What cannot be read, or needs memory that is not to be had, is not
 * "not there": the load ends with the error, nothing has been changed, and the next one starts with everything again.
 *
 * Epochs <= folded_upto are not looked at, in whichever table: the snapshot has them, their rows wait to be deleted or
 * used again. Which epoch a damaged row of the ring held is known nevertheless, see ring.c.
 *
 * Dropped rows are deleted in one transaction with the highest id ever used: new epochs must not be taken for the
 * dropped ones, nor dropped ones come back between new ones. For those in the ring, the same transaction makes their
 * ids void (ring.c). It is the last thing a load does, so that one which ends with an error, the caller's or our own,
 * has changed nothing. Until then a crash leads to the same judgement again: what redo wrote lies in slots that the
 * kept state uses, and no dropped epoch got one of those for its data.
 */
#include <errno.h>
#include <stdlib.h>

#include "journal/load.h"
#include "util/crc.h"

size_t load_epoch_of(const struct load *ld, uint32_t seq)
{
	size_t lo = 0, hi = ld->nep;

	/* The last epoch with first_seq <= seq; those without records share the first_seq of the next one. */
	while (hi - lo > 1) {
		size_t mid = lo + (hi - lo) / 2;

		if (ld->ep[mid].first_seq <= seq)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

int64_t load_find_inline(const struct epoch_view *v, const struct journal_block *b)
{
	for (uint32_t i = 0; i < v->ninlines; i++) {
		const uint8_t *p = v->inlines + (size_t)i * EPOCH_INLINE;

		if (get32(p) == b->slot && get32(p + 4) == b->crc)
			return i;
	}
	return -1;
}

int load_inline(struct load *ld, size_t epoch, uint32_t index, uint8_t *data)
{
	const struct epoch_view *v = &ld->ep[epoch].v;
	int code = jdb_epoch_data(ld->j, &ld->blobs, &ld->j->held[ld->j->held_first + epoch],
				  v->meta_len + index * JOURNAL_PAGE, data);

	if (code)
		return bc_fail(ld->err, code, "%s: cannot read the data of epoch %llu: %s", ld->j->path,
			       (unsigned long long)ld->ep[epoch].id, strerror(-code));
	return crc32c(data, JOURNAL_PAGE) == get32(v->inlines + (size_t)index * EPOCH_INLINE + 4) ? 0 : -EBADMSG;
}

/* ---- judging epochs ---- */

/* A fresh block of the epoch under examination that is not carried in its row. */
struct candidate {
	struct journal_block b;
	uint32_t entry, seq;
	uint16_t volume, bit;
	uint64_t line;
};

struct candidates {
	struct candidate *c;
	struct journal_block *b; /* room for as many, to call verify */
	size_t n;
};

static int collect_fresh(struct load *ld, size_t e, struct candidates *out)
{
	const struct loaded_epoch *le = &ld->ep[e];
	unsigned bpl = ld->j->geo.blocks_per_line;
	const uint8_t *p = le->v.records;
	size_t max = (size_t)le->v.nlines * bpl;
	union line_buf lb;

	*out = (struct candidates){ .c = malloc((max + 1) * sizeof(out->c[0])),
				    .b = malloc((max + 1) * sizeof(out->b[0])) };
	if (!out->c || !out->b)
		return -ENOMEM;
	for (uint32_t i = 0; i < le->v.nlines; i++) {
		p = record_decode(bpl, p, &lb.line);
		for (uint32_t m = lb.line.fresh; m; m &= m - 1) {
			unsigned bit = (unsigned)__builtin_ctz(m);

			if (le->v.ninlines && load_find_inline(&le->v, &lb.line.blk[bit]) >= 0)
				continue;
			out->c[out->n++] = (struct candidate){ .b = lb.line.blk[bit],
							       .entry = lb.line.entry,
							       .seq = le->first_seq + i,
							       .volume = lb.line.volume,
							       .bit = (uint16_t)bit,
							       .line = lb.line.line };
		}
	}
	return 0;
}

/* The first epoch after which the block is not part of the state any more; SIZE_MAX if none of those at hand. */
static size_t superseded_by(const struct load *ld, const struct candidate *c)
{
	const struct record_list *rl = &ld->records;
	size_t lo = 0, hi = rl->n;
	union line_buf lb;

	while (lo < hi) { /* the first record after c's own */
		size_t mid = lo + (hi - lo) / 2;
		const struct record_ref *r = &rl->ref[mid];

		if (r->entry < c->entry || (r->entry == c->entry && r->seq <= c->seq))
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < rl->n && rl->ref[lo].entry == c->entry; lo++) {
		const struct journal_line *l = &lb.line;

		record_decode(ld->j->geo.blocks_per_line, rl->ref[lo].p, &lb.line);
		/* A block that is fresh again answers for itself in its own epoch. */
		if (l->volume != c->volume || l->line != c->line || !(l->valid >> c->bit & 1) ||
		    l->fresh >> c->bit & 1 || l->blk[c->bit].slot != c->b.slot || l->blk[c->bit].crc != c->b.crc)
			return load_epoch_of(ld, rl->ref[lo].seq);
	}
	return SIZE_MAX;
}

/* 1: all are there; 0: not all; -errno: it cannot be told. */
static int verify(struct load *ld, const struct journal_block *b, size_t n)
{
	int code = n ? ld->ops->verify(ld->ctx, b, (uint32_t)n) : 1;

	if (code < 0 && !ld->err->code)
		bc_fail(ld->err, code, "%s: whether the data of the last epochs is there cannot be told: %s",
			ld->j->path, strerror(-code));
	return code;
}

/* *need: the first epoch whose state may be whole as far as epoch e's own blocks go: 0 if all are there, SIZE_MAX if
 * none. 0 or -errno. */
static int judge_blocks(struct load *ld, struct candidates *cs, size_t *need)
{
	size_t later = 0, must = 0;
	int code;

	*need = 0;
	for (size_t i = 0; i < cs->n; i++)
		cs->b[i] = cs->c[i].b;
	code = verify(ld, cs->b, cs->n);
	if (code)
		return code < 0 ? code : 0;
	for (size_t i = 0; i < cs->n; i++) {
		if (superseded_by(ld, &cs->c[i]) == SIZE_MAX)
			cs->b[must++] = cs->c[i].b;
		else
			cs->c[later++] = cs->c[i];
	}
	code = later ? verify(ld, cs->b, must) : 0;
	if (code <= 0) {
		*need = SIZE_MAX;
		return code;
	}
	for (size_t i = 0; i < later; i++) {
		size_t at;

		code = verify(ld, &cs->c[i].b, 1);
		if (code < 0)
			return code;
		at = code ? 0 : superseded_by(ld, &cs->c[i]);
		if (at > *need)
			*need = at;
	}
	return 0;
}

/* The first epoch that could not be kept says why. One that was superseded in a kept state is none. */
static void say_why(struct load *ld)
{
	for (size_t e = ld->keep; e < ld->nep; e++) {
		if (!ld->ep[e].bad)
			continue;
		snprintf(ld->report->why_dropped, sizeof(ld->report->why_dropped), "epoch %llu: %s",
			 (unsigned long long)ld->ep[e].id, ld->ep[e].bad);
		return;
	}
}

static int check_inlines(struct load *ld, size_t e)
{
	uint8_t data[JOURNAL_PAGE];

	for (uint32_t i = 0; i < ld->ep[e].v.ninlines; i++) {
		int code = load_inline(ld, e, i, data);

		if (code)
			return code;
	}
	return 0;
}

/* Can it be that power was lost while this row was written? */
static bool may_be_torn(const struct load *ld, size_t e)
{
	return ld->j->held[ld->j->held_first + e].row != RING_NONE && e + 1 == ld->nep;
}

/* The row of epoch e is bad. 0: it was never durable, and ends the prefix. */
static int bad_row(struct load *ld, size_t e, const char *why)
{
	ld->ep[e].bad = why;
	if (may_be_torn(ld, e))
		return 0;
	return jdb_damaged(ld->j, ld->err,
			   "epoch %llu: %s; it had been committed, so nothing is dropped: restore the journal from a "
			   "copy, or make the cache anew",
			   (unsigned long long)ld->ep[e].id, why);
}

int load_judge(struct load *ld)
{
	size_t need = 0;
	int code = 0;

	ld->keep = ld->first_unsure;
	for (size_t e = ld->first_unsure; e < ld->nep; e++) {
		struct candidates cs = { 0 };
		size_t first = SIZE_MAX;

		if (ld->ep[e].bad)
			break;
		code = check_inlines(ld, e);
		if (code == -EBADMSG) {
			code = bad_row(ld, e, "the data in its row has a wrong checksum");
			if (code)
				return code;
			break;
		}
		if (!code)
			code = collect_fresh(ld, e, &cs);
		if (!code)
			code = judge_blocks(ld, &cs, &first);
		free(cs.c);
		free(cs.b);
		if (code == -ENOMEM && !ld->err->code)
			bc_fail(ld->err, code, "%s: out of memory", ld->j->path);
		if (code)
			return code;
		if (first)
			ld->ep[e].bad = "its data is not in the data file as its checksums say";
		if (first == SIZE_MAX)
			break;
		if (first > need)
			need = first;
		if (need <= e)
			ld->keep = e + 1;
	}
	say_why(ld);
	return code;
}

/* ---- reading ---- */

static int read_epochs(struct load *ld)
{
	struct journal *j = ld->j;

	ld->nep = j->held_end - j->held_first;
	ld->ep = calloc(ld->nep + 1, sizeof(ld->ep[0]));
	if (!ld->ep)
		return bc_fail(ld->err, -ENOMEM, "%s: out of memory", j->path);
	ld->durable = j->state.durable_upto;
	for (size_t e = 0; e < ld->nep; e++) {
		struct held_epoch *h = &j->held[j->held_first + e];
		struct loaded_epoch *le = &ld->ep[e];
		size_t body = 0;
		int code;

		le->id = h->id;
		le->first_seq = (uint32_t)ld->records.n;
		code = jdb_epoch_read(j, &ld->blobs, h, &le->mem, &le->v, &body, &le->bad);
		h->body = (uint32_t)body;
		h->meta = le->bad ? 0 : le->v.meta_len;
		if (code == -EBADMSG || code == -EUCLEAN) { /* the latter: a broken page of the database */
			code = bad_row(ld, e, le->bad ? le->bad : "its row cannot be read");
			if (code)
				return code;
			continue;
		}
		if (!code)
			code = record_list_add(&ld->records, &le->v, j->geo.blocks_per_line);
		if (code)
			return bc_fail(ld->err, code, "%s: cannot read epoch %llu: %s", j->path,
				       (unsigned long long)h->id, strerror(-code));
		if (le->v.durable_upto > ld->durable)
			ld->durable = le->v.durable_upto;
	}
	for (ld->first_unsure = 0; ld->first_unsure < ld->nep && ld->ep[ld->first_unsure].id <= ld->durable;
	     ld->first_unsure++) {
		if (ld->ep[ld->first_unsure].bad)
			return jdb_damaged(j, ld->err, "epoch %llu: %s",
					   (unsigned long long)ld->ep[ld->first_unsure].id,
					   ld->ep[ld->first_unsure].bad);
	}
	record_list_sort(&ld->records);
	return 0;
}

static int read_volumes(struct load *ld)
{
	sqlite3_stmt *s = ld->j->stmt[STMT_VOLUME_ALL];
	int rc, code = 0;

	while (!code && (rc = sqlite3_step(s)) == SQLITE_ROW) {
		uint64_t id = (uint64_t)sqlite3_column_int64(s, 0);
		struct journal_volume v;
		struct identity_mem mem;
		char *backing = NULL;
		const void *body = sqlite3_column_blob(s, 1);
		size_t len = (size_t)sqlite3_column_bytes(s, 1);
		const char *why = volume_decode(id, body, len, &v, &backing);

		if (!why)
			why = identity_decode(sqlite3_column_blob(s, 2), (size_t)sqlite3_column_bytes(s, 2),
					      volume_row_crc(body, len), &v, &mem);
		if (why && sqlite3_errcode(ld->j->db) == SQLITE_NOMEM) {
			code = -ENOMEM;
		} else if (why) {
			code = jdb_damaged(ld->j, ld->err, "volume %llu: %s", (unsigned long long)id, why);
		} else if (!backing) {
			code = -ENOMEM;
		} else {
			ld->j->since[v.id] = 1;
			code = ld->ops->volume ? ld->ops->volume(ld->ctx, &v) : 0;
		}
		free(backing);
	}
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(ld->j, rc, "cannot read its volumes", ld->err);
	sqlite3_reset(s);
	return code;
}

static int read_settings(struct load *ld)
{
	sqlite3_stmt *s = ld->j->stmt[STMT_SETTING_ALL];
	int rc, code = 0;

	while (!code && (rc = sqlite3_step(s)) == SQLITE_ROW) {
		const char *key = (const char *)sqlite3_column_text(s, 0);
		const char *value = (const char *)sqlite3_column_text(s, 1);

		if ((!key || !value) && sqlite3_errcode(ld->j->db) == SQLITE_NOMEM)
			code = -ENOMEM;
		else if (!key || !value || (uint32_t)sqlite3_column_int64(s, 2) != setting_crc(key, value))
			code = jdb_damaged(ld->j, ld->err, "setting %.50s: checksum mismatch", key ? key : "?");
		else if (!jdb_since_load(ld->j, key, value))
			code = ld->ops->setting ? ld->ops->setting(ld->ctx, key, value) : 0;
	}
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(ld->j, rc, "cannot read its settings", ld->err);
	sqlite3_reset(s);
	return code;
}

static int read_marks(struct load *ld)
{
	sqlite3_stmt *s = ld->j->stmt[STMT_MARK_ALL];
	int rc, code = 0;

	while (!code && (rc = sqlite3_step(s)) == SQLITE_ROW) {
		uint64_t key = (uint64_t)sqlite3_column_int64(s, 0);
		struct journal_mark m = { .volume = (uint16_t)(key >> 32), .region = (uint32_t)key };

		if ((uint32_t)sqlite3_column_int64(s, 1) != mark_crc(key) || key >> 32 > JOURNAL_MAX_VOLUME)
			code = jdb_damaged(ld->j, ld->err, "mark %llx: checksum mismatch", (unsigned long long)key);
		else
			code = ld->ops->mark ? ld->ops->mark(ld->ctx, &m) : 0;
	}
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(ld->j, rc, "cannot read its marks", ld->err);
	sqlite3_reset(s);
	return code;
}

/* ---- the load ---- */

/* Empties the ring's rows of what was dropped: the ids are void by now. */
static int clear_dropped(struct load *ld)
{
	struct journal *j = ld->j;
	const struct held_epoch *held = j->held + j->held_first;
	uint32_t *rows = malloc((ld->nep - ld->keep) * sizeof(rows[0]));
	size_t n = 0;
	int code;

	if (!rows)
		return bc_fail(ld->err, -ENOMEM, "%s: out of memory", j->path);
	for (size_t e = ld->keep; e < ld->nep; e++) {
		if (held[e].row != RING_NONE)
			rows[n++] = held[e].row;
	}
	code = jdb_ring_clear(j, rows, n);
	atomic_fetch_sub_explicit(&j->ring_waiting, (uint32_t)n, memory_order_relaxed);
	free(rows);
	return code ? bc_fail(ld->err, code, "%s" RING_SUFFIX ": cannot delete what recovery dropped: %s", j->path,
			      strerror(-code))
		    : 0;
}

static int delete_dropped(struct load *ld)
{
	struct journal *j = ld->j;
	struct jdb_state st = j->state;
	sqlite3_stmt *s = j->stmt[STMT_EPOCH_DELETE_FROM];
	int code, rc;

	/* An open handle on a table would keep the transaction from being checkpointed. */
	jdb_epoch_close(&ld->blobs);
	code = jdb_begin(j, ld->err);
	if (code)
		return code;
	st.last_id = j->last_id;
	st.durable_upto = ld->durable; /* may be known from a row that goes now */
	st.void_from = ld->ep[ld->keep].id;
	st.void_upto = j->last_id;
	sqlite3_bind_int64(s, 1, (int64_t)ld->ep[ld->keep].id);
	rc = jdb_step_reset(s);
	if (rc == SQLITE_OK)
		rc = jdb_state_put(j, &st);
	code = jdb_end(j, rc, true, "cannot delete the epochs that recovery dropped", ld->err);
	if (!code)
		code = clear_dropped(ld);
	if (code)
		return code;
	j->state = st;
	j->held_end = j->held_first + ld->keep;
	atomic_store_explicit(&j->epochs_held, ld->keep, memory_order_relaxed);
	return 0;
}

static void fill_report(struct load *ld)
{
	struct journal_load_report *r = ld->report;

	r->last_epoch = ld->keep ? ld->ep[ld->keep - 1].id : ld->j->state.folded_upto;
	r->next_id = ld->j->last_id + 1;
	r->epochs_replayed = ld->keep;
	r->epochs_dropped = ld->nep - ld->keep;
}

static int load_locked(struct load *ld)
{
	struct journal *j = ld->j;
	int code;

	if (j->loaded)
		return bc_fail(ld->err, -EINVAL, "%s: loaded already", j->path);
	code = read_volumes(ld);
	if (!code)
		code = read_settings(ld);
	if (!code)
		code = read_epochs(ld);
	if (!code)
		code = load_judge(ld);
	if (code)
		return code;
	fill_report(ld);
	code = read_marks(ld);
	if (!code)
		code = load_lines(ld);
	if (!code)
		code = load_discards(ld);
	/* All is known and nothing failed: only now is anything changed. */
	if (!code && ld->keep < ld->nep && !j->read_only && !MUTATE(DROPPED_ROWS))
		code = delete_dropped(ld);
	if (code)
		return code;
	if (ld->durable > j->state.durable_upto)
		j->state.durable_upto = ld->durable;
	j->loaded = true;
	return 0;
}

int journal_load(struct journal *j, const struct journal_load_ops *ops, void *ctx, struct journal_load_report *report,
		 struct bc_error *err)
{
	struct journal_load_report dummy;
	struct load ld = { .j = j, .ops = ops, .ctx = ctx, .report = report ? report : &dummy, .err = err };
	struct bc_error local = { 0 };
	int code;

	if (!err)
		ld.err = &local;
	ld.err->code = 0;
	memset(ld.report, 0, sizeof(*ld.report));
	pthread_mutex_lock(&j->lock);
	code = load_locked(&ld);
	if (code && !ld.err->code)
		bc_fail(ld.err, code, "%s: loading was given up: %s", j->path,
			strerror(-code)); /* a callback's error */
	jdb_epoch_close(&ld.blobs);
	for (size_t e = 0; ld.ep && e < ld.nep; e++)
		free(ld.ep[e].mem);
	free(ld.ep);
	free(ld.records.ref);
	pthread_mutex_unlock(&j->lock);
	return code;
}
