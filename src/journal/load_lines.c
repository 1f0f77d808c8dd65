/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * load_lines.c - what the kept epochs amount to: the final state of every entry, the data to put into the data file
 * again, the discards to repeat. Part of journal_load(); lock held.
 *
 * The final state of an entry is its last record in a kept epoch, else its place in the snapshot. Snapshot rows stream
 * by in order beside the list of records sorted by entry, so memory grows with the epochs (bounded by folding), not
 * with the cache.
 *
 * Redo: a row's data goes to its slot only if the final state of the very entry it was written for still has that slot
 * with that crc. Otherwise the slot was freed, perhaps given to newer data since, which must not be overwritten. Rows
 * <= durable need no redo.
 *
 * Everything read is checked before the engine sees it: numbers in range, the volume known, no slot used twice. That no
 * (volume, line) is there twice is left to the engine's map, which notices it for free; its `line` callback can refuse.
 */
#include <errno.h>
#include <stdlib.h>

#include "journal/load.h"

struct replay {
	struct load *ld;
	uint8_t *slots; /* a bit per slot in use */
	struct redo *redo; /* sorted by slot */
	size_t nredo;
	size_t pos; /* in the record list */
};

static int redo_cmp(const void *pa, const void *pb)
{
	const struct redo *a = pa, *b = pb;

	if (a->slot != b->slot)
		return a->slot < b->slot ? -1 : 1;
	return a->epoch < b->epoch ? -1 : a->epoch > b->epoch;
}

static int redo_order(const void *pa, const void *pb)
{
	const struct redo *a = pa, *b = pb;

	if (a->epoch != b->epoch)
		return a->epoch < b->epoch ? -1 : 1;
	return a->index < b->index ? -1 : a->index > b->index;
}

static int collect_redo(struct replay *rp)
{
	struct load *ld = rp->ld;
	unsigned bpl = ld->j->geo.blocks_per_line;
	size_t max = 0;
	union line_buf lb;

	for (size_t e = ld->first_unsure; e < ld->keep; e++) {
		if (ld->ep[e].v.ninlines)
			max += (size_t)ld->ep[e].v.nlines * bpl;
	}
	rp->redo = malloc((max + 1) * sizeof(rp->redo[0]));
	if (!rp->redo)
		return -ENOMEM;
	for (size_t e = ld->first_unsure; e < ld->keep; e++) {
		const struct epoch_view *v = &ld->ep[e].v;
		const uint8_t *p = v->records;

		for (uint32_t i = 0; v->ninlines && i < v->nlines; i++) {
			p = record_decode(bpl, p, &lb.line);
			for (uint32_t m = lb.line.fresh; m; m &= m - 1) {
				const struct journal_block *b = &lb.line.blk[__builtin_ctz(m)];
				int64_t k = load_find_inline(v, b);

				if (k >= 0)
					rp->redo[rp->nredo++] = (struct redo){ .slot = b->slot,
									       .crc = b->crc,
									       .entry = lb.line.entry,
									       .epoch = (uint32_t)e,
									       .index = (uint32_t)k };
			}
		}
	}
	qsort(rp->redo, rp->nredo, sizeof(rp->redo[0]), redo_cmp);
	return 0;
}

static void redo_want(struct replay *rp, uint32_t entry, const struct journal_block *b)
{
	size_t lo = 0, hi = rp->nredo, last = SIZE_MAX;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (rp->redo[mid].slot < b->slot)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < rp->nredo && rp->redo[lo].slot == b->slot; lo++) {
		if (rp->redo[lo].crc == b->crc && rp->redo[lo].entry == entry)
			last = lo;
	}
	if (last != SIZE_MAX)
		rp->redo[last].wanted = true;
}

static int deliver(struct replay *rp, const struct journal_line *l, bool unsure)
{
	struct load *ld = rp->ld;
	const char *why = line_check(&ld->j->geo, l);

	if (!why && !l->volume)
		why = "bits without a volume";
	if (!why && !load_volume_known(ld, l->volume))
		return jdb_damaged(ld->j, ld->err, "entry %u: belongs to volume %u, which is not there", l->entry,
				   l->volume);
	if (why)
		return jdb_damaged(ld->j, ld->err, "entry %u: %s", l->entry, why);
	for (uint32_t m = l->valid; m; m &= m - 1) {
		const struct journal_block *b = &l->blk[__builtin_ctz(m)];
		uint8_t bit = (uint8_t)(1u << (b->slot & 7));

		if (rp->slots[b->slot >> 3] & bit)
			return jdb_damaged(ld->j, ld->err, "entry %u: slot %u is used twice", l->entry, b->slot);
		rp->slots[b->slot >> 3] |= bit;
		if (unsure && rp->nredo)
			redo_want(rp, l->entry, b);
	}
	ld->report->lines++;
	return ld->ops->line ? ld->ops->line(ld->ctx, l) : 0;
}

/* A volume's lines are freed, in epochs that no recovery drops, before its row is deleted. So what an earlier volume
 * with this id left is never the last record. */
static int check_age(struct replay *rp, const struct journal_line *l, const struct record_ref *r)
{
	struct load *ld = rp->ld;
	uint64_t since = load_volume_known(ld, l->volume) ? ld->j->since[l->volume] : 0;

	if (since > 1 && ld->ep[load_epoch_of(ld, r->seq)].id < since)
		return jdb_damaged(ld->j, ld->err, "entry %u: its line was recorded before volume %u was added",
				   l->entry, l->volume);
	return 0;
}

/* The last kept record of `entry`, the list's position being at or before its records; NULL if there is none. */
static const struct record_ref *last_record(struct replay *rp, uint32_t entry)
{
	const struct record_list *rl = &rp->ld->records;
	const struct record_ref *last = NULL;
	/* Records of dropped epochs are those from this one on; a cut-off by number needs no look-up per record. */
	uint64_t cut = rp->ld->keep < rp->ld->nep ? rp->ld->ep[rp->ld->keep].first_seq : UINT64_MAX;

	while (rp->pos < rl->n && rl->ref[rp->pos].entry < entry)
		rp->pos++;
	for (; rp->pos < rl->n && rl->ref[rp->pos].entry == entry; rp->pos++) {
		if (rl->ref[rp->pos].seq < cut)
			last = &rl->ref[rp->pos];
	}
	return last;
}

static int replay_row(struct replay *rp, uint64_t row, const uint8_t *p)
{
	struct load *ld = rp->ld;
	const struct journal_geometry *geo = &ld->j->geo;
	unsigned bpl = geo->blocks_per_line, per_row = snapshot_entries(bpl);
	uint64_t unsure_seq = ld->first_unsure < ld->nep ? ld->ep[ld->first_unsure].first_seq : UINT64_MAX;
	union line_buf lb = { 0 };
	struct journal_line *l = &lb.line;
	int code = 0;

	for (unsigned i = 0; !code && i < per_row; i++) {
		uint64_t entry = row * per_row + i;
		const struct record_ref *r;

		if (entry >= geo->nlines) {
			if (snapshot_get(bpl, p, i, l))
				return jdb_damaged(ld->j, ld->err, "snapshot row %llu: entry beyond the line table",
						   (unsigned long long)row);
			continue;
		}
		r = rp->pos < ld->records.n ? last_record(rp, (uint32_t)entry) : NULL;
		if (r) {
			record_decode(bpl, r->p, l);
			l->fresh = 0;
			if (l->volume)
				code = check_age(rp, l, r);
			if (l->volume && !code)
				code = deliver(rp, l, r->seq >= unsure_seq);
		} else if (snapshot_get(bpl, p, i, l)) {
			l->entry = (uint32_t)entry;
			code = deliver(rp, l, false);
		}
	}
	return code;
}

static int send_redo(struct replay *rp)
{
	struct load *ld = rp->ld;
	uint8_t *data = aligned_alloc(JOURNAL_PAGE, JOURNAL_PAGE);
	int code = data ? 0 : -ENOMEM;

	qsort(rp->redo, rp->nredo, sizeof(rp->redo[0]), redo_order);
	for (size_t i = 0; !code && i < rp->nredo; i++) {
		const struct redo *r = &rp->redo[i];

		if (!r->wanted)
			continue;
		code = load_inline(ld, r->epoch, r->index, data);
		if (code == -EBADMSG)
			code = jdb_damaged(ld->j, ld->err, "epoch %llu: its data changed while it was read",
					   (unsigned long long)ld->ep[r->epoch].id);
		if (code)
			break;
		ld->report->redo_blocks++;
		code = ld->ops->redo ? ld->ops->redo(ld->ctx, r->slot, data) : 0;
	}
	free(data);
	return code;
}

int load_lines(struct load *ld)
{
	struct journal *j = ld->j;
	struct replay rp = { .ld = ld };
	sqlite3_stmt *s = j->stmt[STMT_SNAPSHOT_ALL];
	uint64_t row = 0, rows = snapshot_rows(&j->geo);
	int rc = SQLITE_OK, code;

	rp.slots = calloc(1, (size_t)j->geo.nslots / 8 + 1);
	code = rp.slots ? collect_redo(&rp) : -ENOMEM;
	while (!code && (rc = sqlite3_step(s)) == SQLITE_ROW) {
		const uint8_t *p = sqlite3_column_blob(s, 1);
		const char *why = snapshot_verify(j->geo.blocks_per_line, row, p, (size_t)sqlite3_column_bytes(s, 1));

		if (!p && sqlite3_errcode(j->db) == SQLITE_NOMEM) {
			code = -ENOMEM;
			break;
		}
		if (!why && (uint64_t)sqlite3_column_int64(s, 0) != row)
			why = "row is missing";
		if (!why && row >= rows)
			why = "row beyond the line table";
		code = why ? jdb_damaged(j, ld->err, "snapshot row %llu: %s", (unsigned long long)row, why)
			   : replay_row(&rp, row, p);
		row++;
	}
	sqlite3_reset(s);
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(j, rc, "cannot read its snapshot", ld->err);
	if (!code && row != rows)
		code = jdb_damaged(j, ld->err, "snapshot rows are missing (%llu of %llu found)",
				   (unsigned long long)row, (unsigned long long)rows);
	if (!code)
		code = send_redo(&rp);
	if (code == -ENOMEM && !ld->err->code)
		bc_fail(ld->err, code, "%s: out of memory", j->path);
	free(rp.redo);
	free(rp.slots);
	return code;
}

/* ---- discards ---- */

struct discard_list {
	struct journal_discard *d;
	size_t n, size;
};

/* In the order they happened: a pending one enters, its `done` removes it. */
static int discard_apply(struct discard_list *dl, const struct journal_discard *d)
{
	size_t i = 0;

	while (i < dl->n && dl->d[i].id != d->id)
		i++;
	if (d->done) {
		if (i < dl->n) {
			memmove(&dl->d[i], &dl->d[i + 1], (dl->n - i - 1) * sizeof(dl->d[0]));
			dl->n--;
		}
		return 0;
	}
	if (i == dl->size) {
		size_t size = dl->size ? dl->size * 2 : 64;
		void *mem = realloc(dl->d, size * sizeof(dl->d[0]));

		if (!mem)
			return -ENOMEM;
		dl->d = mem;
		dl->size = size;
	}
	if (i == dl->n)
		dl->n++;
	dl->d[i] = *d;
	return 0;
}

int load_discards(struct load *ld)
{
	struct journal *j = ld->j;
	sqlite3_stmt *s = j->stmt[STMT_DISCARD_ALL];
	struct discard_list dl = { 0 };
	struct journal_discard d;
	int rc = SQLITE_OK, code = 0;

	while (!code && (rc = sqlite3_step(s)) == SQLITE_ROW) {
		uint64_t id = (uint64_t)sqlite3_column_int64(s, 0);
		const void *body = sqlite3_column_blob(s, 1);
		const char *why = discard_row_decode(id, body, (size_t)sqlite3_column_bytes(s, 1), &d);

		if (!body && sqlite3_errcode(j->db) == SQLITE_NOMEM)
			code = -ENOMEM;
		else
			code = why ? jdb_damaged(j, ld->err, "discard %llu: %s", (unsigned long long)id, why)
				   : discard_apply(&dl, &d);
	}
	sqlite3_reset(s);
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(j, rc, "cannot read its discards", ld->err);
	for (size_t e = 0; !code && e < ld->keep; e++) {
		const struct epoch_view *v = &ld->ep[e].v;

		for (uint32_t i = 0; !code && i < v->ndiscards; i++) {
			discard_decode(v->discards + (size_t)i * EPOCH_DISCARD, &d);
			if (load_volume_known(ld, d.volume) && v->id >= j->since[d.volume])
				code = discard_apply(&dl, &d);
		}
	}
	/* Of a volume that was removed by a release that left them: there is nothing left to zero. */
	for (size_t i = 0; !code && i < dl.n; i++) {
		if (load_volume_known(ld, dl.d[i].volume))
			code = ld->ops->discard ? ld->ops->discard(ld->ctx, &dl.d[i]) : 0;
	}
	if (code == -ENOMEM && !ld->err->code)
		bc_fail(ld->err, code, "%s: out of memory", j->path);
	free(dl.d);
	return code;
}
