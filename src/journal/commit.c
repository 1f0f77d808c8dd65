/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * commit.c - the commit of an epoch: one row, one transaction, one sync. Any thread; takes the journal's lock for its
 * whole time. A small epoch with data overwrites a row of the ring (ring.c), any other is a new row of table `epoch`.
 * The single statement is its own transaction: BEGIN and COMMIT around it would only cost time.
 *
 * A commit that fails makes the journal failed (P6), whatever the reason. What it left in the WAL may or may not be
 * found by recovery: the caller must treat the epoch as neither durable nor absent.
 */
#include <errno.h>

#include "journal/db.h"

static int put_row(struct journal *j, const struct journal_epoch *e, size_t meta, size_t body, bool ring,
		   struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_EPOCH_PUT];
	int code = jdb_writable(j, err), rc;

	if (code)
		return code;
	if (ring) {
		code = jdb_ring_put(j, e, meta, body);
		if (code) {
			j->failed = true;
			bc_fail(err, code, "%s" RING_SUFFIX ": cannot commit an epoch: %s", j->path, strerror(-code));
		}
		return code;
	}
	jdb_log_room(j, body / JOURNAL_PAGE + 32);
	code = jdb_writable(j, err);
	if (code)
		return code;
	epoch_encode(&j->geo, e, meta, j->buf);
	sqlite3_bind_int64(s, 1, (int64_t)e->id);
	sqlite3_bind_blob64(s, 2, j->buf, body, SQLITE_STATIC);
	rc = jdb_step_reset(s);
	if (rc == SQLITE_OK)
		return 0;
	j->failed = true;
	return jdb_fail(j, rc, "cannot commit an epoch", err);
}

static int commit_locked(struct journal *j, const struct journal_epoch *e, struct bc_error *err)
{
	size_t meta, body;
	bool ring;
	int code;

	if (!j->read_only && !j->loaded)
		return bc_fail(err, -EINVAL, "%s: commit before load", j->path);
	if (e->id <= j->last_id || e->id > INT64_MAX)
		return bc_fail(err, -EINVAL, "%s: epoch %llu does not follow epoch %llu", j->path,
			       (unsigned long long)e->id, (unsigned long long)j->last_id);
	code = epoch_measure(&j->geo, e, &meta, &body);
	if (code)
		return bc_fail(err, code, "%s: epoch %llu cannot be written: %s", j->path, (unsigned long long)e->id,
			       code == -E2BIG ? "too large" : "a record is out of range");
	ring = jdb_ring_fits(j, e, meta, body);
	if ((!ring && jdb_reserve_buf(j, body)) || jdb_held_add(j, e->id, ring ? j->ring_next : RING_NONE, meta, body))
		return bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	code = put_row(j, e, meta, body, ring, err);
	if (code) {
		j->held_end--;
		return code;
	}
	j->last_id = e->id;
	if (e->durable_upto > j->state.durable_upto)
		j->state.durable_upto = e->durable_upto; /* known from this row; written to the state row by folding */
	atomic_fetch_add_explicit(&j->commits, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&j->bytes_committed, body, memory_order_relaxed);
	if (!ring)
		jdb_room_used(j, body);
	return 0;
}

/* The journal cannot grow: what is durable in the data file leaves it. A failure shows at the commit. */
static void make_room(struct journal *j, uint64_t durable_upto)
{
	if (MUTATE(LOW_FOLD))
		durable_upto = UINT64_MAX;
	while (journal_is_low(j) && journal_maintain(j, durable_upto, NULL) == 1)
		;
}

int journal_commit(struct journal *j, const struct journal_epoch *e, struct bc_error *err)
{
	int code;

	make_room(j, e->durable_upto);
	pthread_mutex_lock(&j->lock);
	code = commit_locked(j, e, err);
	pthread_mutex_unlock(&j->lock);
	return code;
}

int journal_note_durable(struct journal *j, uint64_t durable_upto, struct bc_error *err)
{
	struct jdb_state st;
	int code = 0;

	pthread_mutex_lock(&j->lock);
	if (durable_upto > j->last_id)
		durable_upto = j->last_id;
	st = j->state;
	/* known from a row is not the same as noted: that row is one of those that would be checked */
	if (durable_upto >= st.durable_upto && j->held_end > j->held_first) {
		st.durable_upto = durable_upto;
		code = jdb_begin(j, err);
		if (!code)
			code = jdb_end(j, jdb_state_put(j, &st), true, "cannot note what is durable", err);
		if (!code)
			j->state = st;
	}
	pthread_mutex_unlock(&j->lock);
	return code;
}
