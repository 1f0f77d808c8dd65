/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fold.c - journal_maintain(): moving epochs into snapshot rows, merging those of the ring, and checkpoints.
 *
 * One step per call, each a short transaction under `lock`, so that commits get their turn in between; `maint` is held
 * all the time and guards struct fold.
 *
 *   IDLE -> READ -> PATCH -> DELETE -> IDLE
 *                \-> MERGE --------/
 *
 *   IDLE    Deletes rows that an earlier process folded and did not come to delete. When the epochs <= durable_upto
 *           have become many or large, chooses E, the last one of them, to fold all up to it. When they only fill the
 *           ring, chooses to merge all from the first one in the ring up to E.
 *
 *   READ    Reads the fronts of the chosen epochs. Then, without `lock`: the last record of each entry, ordered by
 *           entry.
 *
 *   PATCH   Overwrites snapshot rows in place, a few hundred per step. The first step also raises the state row's
 *           durable_upto to E or more.
 *
 *   DELETE  The first step moves discards of these epochs that are still pending into their table, takes out the ended
 *           ones, and raises folded_upto and ring_upto to E. With that the epochs' rows in the ring are free. Each
 *           step deletes some of the others.
 *
 *   MERGE   One transaction: those of the chosen epochs that have a row in the table lose it; one row with the number
 *           E takes the place of all of them, with the last record of each entry and all discards in their order; and
 *           ring_upto becomes E, which frees the ring. A few pages, where folding changes as many snapshot rows as
 *           there are records: a flush stream of single blocks would rewrite half of the snapshot a few times a second.
 *
 * Why a crash between any two steps is harmless: recovery replays the epochs > folded_upto over the snapshot rows,
 * patched or not. Say the last record <= E of an entry is in epoch e. Before folded_upto is raised all epochs <= E are
 * there and replay sets the entry to that record's state (or a later one's), whatever the snapshot says. Afterwards all
 * rows were patched and none of these epochs counts, deleted or not: an old one that is still there cannot set back
 * what a younger one did whose row was used again. The same goes for a discard and its end.
 *
 * This needs that epochs <= E are never dropped: they are <= durable_upto, and the state row says so on disk no later
 * than the first snapshot row changes.
 *
 * Merging changes nothing about what replay comes to: the merged epochs follow each other without a gap (those between
 * two of the ring are among them wherever they lie), none of them can be dropped, so no state between them is ever
 * asked for, and it is one transaction. The next epoch in the ring names E as the one before it, which is there.
 *
 * Data carried in epochs is not read: epochs <= durable_upto have it in the data file.
 */
#include <errno.h>
#include <stdlib.h>

#include "journal/db.h"

struct journal_fold_limits journal_fold_limits = {
	.rows = 256, /* 1 MiB of WAL */
	.read_epochs = 256,
	.delete_epochs = 256,
	.start_meta = 4u << 20,
	.start_body = 4u << 20,
	.start_epochs = 16384,
	.start_ring = 512,
	.merge_meta = 1u << 20,
	.memory = 64u << 20,
};

#define FOLD_READ_BYTES (1u << 20)
#define FOLD_DELETE_BYTES (4u << 20)
#define FOLD_BODY_MAX (64u << 20)

enum fold_state { FOLD_IDLE, FOLD_READ, FOLD_PATCH, FOLD_DELETE, FOLD_MERGE };

struct fold {
	enum fold_state state;
	bool merge; /* or fold */
	uint64_t upto; /* E */
	uint64_t durable; /* what the caller said when the fold began */
	size_t first, count; /* epochs to fold: held[held_first + first] and so on */
	size_t done; /* of them, read */
	uint8_t **mem; /* their fronts, count of them */
	struct record_list records;
	size_t pos; /* next record to patch in */
	bool state_written; /* of the first step of PATCH, then of DELETE */
	struct journal_discard *discards; /* in order */
	size_t ndiscards, discards_size;
	uint8_t *row; /* of MERGE, encoded */
	size_t row_size;
};

static void fold_reset(struct fold *f)
{
	for (size_t i = 0; f->mem && i < f->count; i++)
		free(f->mem[i]);
	free(f->mem);
	free(f->records.ref);
	free(f->discards);
	free(f->row);
	memset(f, 0, sizeof(*f));
}

void fold_free(struct fold *f)
{
	if (f)
		fold_reset(f);
	free(f);
}

static uint64_t clamp(uint64_t v, uint64_t min, uint64_t max)
{
	return v < min ? min : v > max ? max : v;
}

/* Decides whether to fold. `lock` held. */
static int fold_start(struct journal *j, struct fold *f, uint64_t durable_upto)
{
	uint64_t meta_limit = snapshot_rows(&j->geo) * JOURNAL_PAGE / 8;
	uint64_t body_limit = clamp(j->geo.size_bytes / 8, journal_fold_limits.start_body, FOLD_BODY_MAX);
	uint64_t meta = 0, body = 0, merge_meta = 0, merge_delete = 0;
	size_t n = 0, fit = 0, ring = 0, first = 0, rows = 0;
	uint32_t waiting = 0;
	bool merge;

	if (durable_upto > j->last_id)
		durable_upto = j->last_id;
	if (meta_limit < journal_fold_limits.start_meta)
		meta_limit = journal_fold_limits.start_meta;
	for (size_t i = j->held_first; i < j->held_end && j->held[i].id <= durable_upto; i++, n++) {
		meta += j->held[i].meta;
		body += j->held[i].body;
		ring += j->held[i].row != RING_NONE;
		if (!ring)
			first = n + 1;
		else /* all from the first one there on */
			merge_meta += j->held[i].meta;
		if (ring && j->held[i].row == RING_NONE) {
			merge_delete += j->held[i].body;
			rows++;
		}
		if (meta <= journal_fold_limits.memory || !fit)
			fit = n + 1;
	}
	/* In-line data counts in `body` only; without it both grow alike and `meta` decides. */
	merge = meta <= meta_limit && body - meta <= body_limit && n <= journal_fold_limits.start_epochs;
	if (!n || (merge && ring <= j->nring / 2))
		return 0;
	/* it is all of these or none, in one transaction */
	merge &= merge_meta <= journal_fold_limits.merge_meta && merge_delete <= FOLD_DELETE_BYTES &&
		 rows <= journal_fold_limits.delete_epochs;
	f->merge = merge;
	f->first = merge ? first : 0;
	f->count = merge ? n - first : fit;
	f->mem = calloc(f->count, sizeof(f->mem[0]));
	if (!f->mem)
		return -ENOMEM;
	f->upto = j->held[j->held_first + f->first + f->count - 1].id;
	f->durable = durable_upto;
	f->state = FOLD_READ;
	for (size_t i = j->held_first + f->first + f->count; i < j->held_end; i++)
		waiting += j->held[i].row != RING_NONE;
	atomic_store_explicit(&j->ring_waiting, waiting, memory_order_relaxed);
	return 0;
}

static int keep_discards(const struct journal *j, struct fold *f, const struct epoch_view *v)
{
	if (f->ndiscards + v->ndiscards > f->discards_size) {
		size_t size = (f->ndiscards + v->ndiscards) * 2;
		void *mem = realloc(f->discards, size * sizeof(f->discards[0]));

		if (!mem)
			return -ENOMEM;
		f->discards = mem;
		f->discards_size = size;
	}
	for (uint32_t i = 0; i < v->ndiscards; i++) {
		discard_decode(v->discards + (size_t)i * EPOCH_DISCARD, &f->discards[f->ndiscards]);
		/* What an earlier volume with this id left would be taken for this one's under a new number. */
		if (jdb_discard_counts(j, v->id, &f->discards[f->ndiscards]))
			f->ndiscards++;
	}
	return 0;
}

void fold_forget_volume(struct fold *f, uint16_t id)
{
	size_t n = 0;

	if (f->state == FOLD_READ || f->state == FOLD_MERGE) {
		fold_reset(f); /* nothing of it has been written */
		return;
	}
	for (size_t i = 0; i < f->ndiscards; i++) {
		if (f->discards[i].volume != id)
			f->discards[n++] = f->discards[i];
	}
	f->ndiscards = n;
}

static int fold_read(struct journal *j, struct fold *f, struct bc_error *err)
{
	struct epoch_blobs blobs = { 0 };
	size_t bytes = 0;
	int code = 0;

	for (unsigned n = 0; f->done < f->count && n < journal_fold_limits.read_epochs && bytes < FOLD_READ_BYTES;
	     n++) {
		const struct held_epoch *h = &j->held[j->held_first + f->first + f->done];
		uint64_t id = h->id;
		struct epoch_view v;
		const char *why;
		size_t body;

		code = jdb_epoch_read(j, &blobs, h, &f->mem[f->done], &v, &body, &why);
		if (code == -EBADMSG)
			code = jdb_damaged(j, err, "epoch %llu: %s", (unsigned long long)id, why);
		else if (!code && f->merge && h->row == RING_NONE && MUTATE(MERGE_TABLE))
			;
		else if (!code && (record_list_add(&f->records, &v, j->geo.blocks_per_line) || keep_discards(j, f, &v)))
			code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
		else if (code)
			bc_fail(err, code, "%s: cannot read epoch %llu: %s", j->path, (unsigned long long)id,
				strerror(-code));
		if (code)
			break;
		bytes += v.meta_len;
		f->done++;
	}
	jdb_epoch_close(&blobs);
	return code;
}

/* Encodes the row of MERGE. Needs no lock. */
static int merge_encode(struct journal *j, struct fold *f, struct bc_error *err)
{
	const struct record_list *rl = &f->records;
	size_t stride = journal_line_stride(j->geo.blocks_per_line), meta;
	uint8_t *lines = malloc(rl->n * stride + 1);
	struct journal_epoch e = {
		.id = f->upto,
		.durable_upto = f->upto,
		.lines = (const void *)lines,
		.nlines = (uint32_t)rl->n,
		.discards = f->discards,
		.ndiscards = (uint32_t)f->ndiscards,
	};
	int code = lines ? 0 : -ENOMEM;

	for (size_t i = 0; lines && i < rl->n; i++) {
		union line_buf lb;

		record_decode(j->geo.blocks_per_line, rl->ref[i].p, &lb.line);
		lb.line.fresh = 0; /* in the data file since long */
		memcpy(lines + i * stride, &lb, stride);
	}
	if (!code)
		code = epoch_measure(&j->geo, &e, &meta, &f->row_size);
	if (!code) {
		f->row = malloc(f->row_size);
		code = f->row ? 0 : -ENOMEM;
	}
	if (!code)
		epoch_encode(&j->geo, &e, meta, f->row);
	free(lines);
	return code ? bc_fail(err, code, "%s: epochs cannot be merged: %s", j->path, strerror(-code)) : 0;
}

/* Keeps the last record of each entry. Needs no lock. */
static int fold_sort(struct journal *j, struct fold *f, struct bc_error *err)
{
	struct record_list *rl = &f->records;
	size_t n = 0;

	record_list_sort(rl);
	for (size_t i = 0; i < rl->n; i++) {
		if (i + 1 == rl->n || rl->ref[i + 1].entry != rl->ref[i].entry)
			rl->ref[n++] = rl->ref[i];
	}
	rl->n = n;
	f->state = f->merge ? FOLD_MERGE : FOLD_PATCH;
	return f->merge ? merge_encode(j, f, err) : 0;
}

/* Patches one row with the records from *pos on that belong to it. SQLite result; *why if the row is damaged. */
static int patch_row(struct journal *j, struct fold *f, sqlite3_blob **blob, size_t *pos, const char **why)
{
	const struct record_list *rl = &f->records;
	unsigned bpl = j->geo.blocks_per_line, per_row = snapshot_entries(bpl), size = snapshot_size(bpl);
	uint32_t row = rl->ref[*pos].entry / per_row;
	uint8_t p[JOURNAL_PAGE];
	union line_buf lb;
	int rc;

	if (*blob)
		rc = sqlite3_blob_reopen(*blob, row);
	else
		rc = sqlite3_blob_open(j->db, "main", "snapshot", "body", row, 1, blob);
	if (rc != SQLITE_OK)
		return rc;
	if ((unsigned)sqlite3_blob_bytes(*blob) != size) {
		*why = "not a snapshot row";
		return SQLITE_CORRUPT;
	}
	rc = sqlite3_blob_read(*blob, p, (int)size, 0);
	if (rc != SQLITE_OK)
		return rc;
	*why = snapshot_verify(bpl, row, p, size);
	if (*why)
		return SQLITE_CORRUPT;
	for (; *pos < rl->n && rl->ref[*pos].entry / per_row == row; ++*pos) {
		record_decode(bpl, rl->ref[*pos].p, &lb.line);
		snapshot_put(bpl, p, lb.line.entry % per_row, &lb.line);
	}
	snapshot_seal(bpl, p);
	return sqlite3_blob_write(*blob, p, (int)size, 0);
}

static int fold_patch(struct journal *j, struct fold *f, struct bc_error *err)
{
	struct jdb_state st = j->state;
	sqlite3_blob *blob = NULL;
	const char *why = NULL;
	size_t pos = f->pos;
	int code, rc = SQLITE_OK;

	code = jdb_begin(j, err);
	if (code)
		return code;
	if (!f->state_written) {
		if (st.durable_upto < f->durable)
			st.durable_upto = f->durable;
		st.last_id = j->last_id;
		rc = jdb_state_put(j, &st);
	}
	for (unsigned n = 0;
	     rc == SQLITE_OK && pos < f->records.n && n < journal_fold_limits.rows && !MUTATE(FOLD_PATCH); n++)
		rc = patch_row(j, f, &blob, &pos, &why);
	sqlite3_blob_close(blob);
	code = jdb_end(j, rc, false, "cannot fold epochs into the snapshot", err);
	if (code && why)
		return jdb_damaged(j, err, "snapshot: %s", why);
	if (code)
		return code;
	j->state = st;
	f->state_written = true;
	f->pos = pos;
	if (pos == f->records.n || MUTATE(FOLD_PATCH)) {
		f->state = FOLD_DELETE;
		f->state_written = false;
	}
	return 0;
}

static int move_discards(struct journal *j, const struct fold *f)
{
	uint8_t body[DISCARD_SIZE];
	int rc = SQLITE_OK;

	for (size_t i = 0; rc == SQLITE_OK && i < f->ndiscards; i++) {
		sqlite3_stmt *s = j->stmt[f->discards[i].done ? STMT_DISCARD_DELETE : STMT_DISCARD_PUT];

		sqlite3_bind_int64(s, 1, (int64_t)f->discards[i].id);
		if (!f->discards[i].done) {
			discard_row_encode(&f->discards[i], body);
			sqlite3_bind_blob(s, 2, body, sizeof(body), SQLITE_STATIC);
		}
		rc = jdb_step_reset(s);
	}
	return rc;
}

/* Of the table. SQLite result. */
static int delete_range(struct journal *j, uint64_t from, uint64_t upto)
{
	sqlite3_stmt *s = j->stmt[STMT_EPOCH_DELETE_RANGE];

	sqlite3_bind_int64(s, 1, (int64_t)from);
	sqlite3_bind_int64(s, 2, (int64_t)upto);
	return jdb_step_reset(s);
}

static int fold_delete(struct journal *j, struct fold *f, struct bc_error *err)
{
	struct jdb_state st = j->state;
	size_t end = j->held_first, bytes = 0;
	int code, rc = SQLITE_OK;

	code = jdb_begin(j, err);
	if (code)
		return code;
	if (!f->state_written) {
		st.folded_upto = f->upto;
		if (st.ring_upto < f->upto)
			st.ring_upto = f->upto;
		st.last_id = j->last_id;
		rc = jdb_state_put(j, &st);
		if (rc == SQLITE_OK)
			rc = move_discards(j, f);
	}
	for (; end < j->held_end && j->held[end].id <= f->upto &&
	       end - j->held_first < journal_fold_limits.delete_epochs && bytes < FOLD_DELETE_BYTES;
	     end++)
		bytes += j->held[end].row == RING_NONE ? j->held[end].body : 0;
	if (rc == SQLITE_OK && end > j->held_first)
		rc = delete_range(j, j->held[j->held_first].id, j->held[end - 1].id);
	code = jdb_end(j, rc, false, "cannot delete folded epochs", err);
	if (code)
		return code;
	j->state = st;
	f->state_written = true;
	j->held_first = end;
	atomic_store_explicit(&j->epochs_held, j->held_end - j->held_first, memory_order_relaxed);
	if (end == j->held_end || j->held[end].id > f->upto) {
		fold_reset(f);
		atomic_fetch_add_explicit(&j->folds, 1, memory_order_relaxed);
	}
	return 0;
}

static int fold_merge(struct journal *j, struct fold *f, struct bc_error *err)
{
	struct held_epoch *first = &j->held[j->held_first + f->first];
	sqlite3_stmt *put = j->stmt[STMT_EPOCH_PUT];
	struct jdb_state st = j->state;
	int code, rc;

	code = jdb_begin(j, err);
	if (code)
		return code;
	if (st.durable_upto < f->durable)
		st.durable_upto = f->durable;
	st.ring_upto = f->upto;
	st.last_id = j->last_id;
	rc = jdb_state_put(j, &st);
	if (rc == SQLITE_OK)
		rc = delete_range(j, first->id, f->upto);
	if (rc == SQLITE_OK && !MUTATE(MERGE_PUT)) {
		sqlite3_bind_int64(put, 1, (int64_t)f->upto);
		sqlite3_bind_blob64(put, 2, f->row, f->row_size, SQLITE_STATIC);
		rc = jdb_step_reset(put);
	}
	code = jdb_end(j, rc, false, "cannot merge epochs", err);
	if (code)
		return code;
	j->state = st;
	*first = (struct held_epoch){
		.id = f->upto, .row = RING_NONE, .meta = (uint32_t)f->row_size, .body = (uint32_t)f->row_size
	};
	memmove(first + 1, first + f->count, (j->held_end - j->held_first - f->first - f->count) * sizeof(*first));
	j->held_end -= f->count - 1;
	atomic_store_explicit(&j->epochs_held, j->held_end - j->held_first, memory_order_relaxed);
	fold_reset(f);
	atomic_fetch_add_explicit(&j->merges, 1, memory_order_relaxed);
	return 0;
}

/* Rows that a fold before the last opening left. */
static int delete_leftover(struct journal *j, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_EPOCH_DELETE_SOME];
	size_t n = j->leftover < journal_fold_limits.delete_epochs ? j->leftover : journal_fold_limits.delete_epochs;
	int code = jdb_begin(j, err);

	if (code)
		return code;
	sqlite3_bind_int64(s, 1, (int64_t)j->state.folded_upto);
	sqlite3_bind_int64(s, 2, (int64_t)n);
	code = jdb_end(j, jdb_step_reset(s), false, "cannot delete folded epochs", err);
	if (!code)
		j->leftover -= n;
	return code;
}

/* One step. `maint` held. */
static int maintain_step(struct journal *j, struct fold *f, uint64_t durable_upto, struct bc_error *err)
{
	bool sort, more, checkpoint, leftover;
	int code = 0;

	pthread_mutex_lock(&j->lock);
	checkpoint = j->wal_frames > WAL_SOFT_FRAMES;
	leftover = f->state == FOLD_IDLE && j->leftover;
	if (j->failed || j->read_only)
		code = bc_fail(err, j->failed ? -EIO : -EROFS, "%s: %s", j->path,
			       j->failed ? "an earlier write to the journal failed" : "opened for reading only");
	else if (checkpoint)
		code = jdb_checkpoint(j, err);
	else if (leftover)
		code = delete_leftover(j, err);
	else if (f->state == FOLD_IDLE && fold_start(j, f, durable_upto))
		code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	else if (f->state == FOLD_READ)
		code = fold_read(j, f, err);
	else if (f->state == FOLD_PATCH)
		code = fold_patch(j, f, err);
	else if (f->state == FOLD_DELETE)
		code = fold_delete(j, f, err);
	else if (f->state == FOLD_MERGE)
		code = fold_merge(j, f, err);
	/* After a checkpoint there may be folding to begin; only an idle step that did nothing ends a round. */
	more = checkpoint || leftover || j->wal_frames > WAL_SOFT_FRAMES || f->state != FOLD_IDLE;
	sort = !code && f->state == FOLD_READ && f->done == f->count;
	pthread_mutex_unlock(&j->lock);
	if (sort)
		code = fold_sort(j, f, err);
	return code ? code : more;
}

int journal_maintain(struct journal *j, uint64_t durable_upto, struct bc_error *err)
{
	int code;

	pthread_mutex_lock(&j->maint);
	if (!j->fold)
		j->fold = calloc(1, sizeof(*j->fold));
	if (!j->fold)
		code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	else
		code = maintain_step(j, j->fold, durable_upto, err);
	/* Start over next time: what failed may be a step half read. A full disk only delays. */
	if (code < 0 && code != -ENOSPC && j->fold)
		fold_reset(j->fold);
	pthread_mutex_unlock(&j->maint);
	return code;
}
