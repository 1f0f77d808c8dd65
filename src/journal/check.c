/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * check.c - journal_check(): damage that can be told from the database alone. Any thread; takes the journal's lock for
 * its whole time and changes nothing. Made for a journal opened read-only, works on any.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

#include "journal/db.h"
#include "util/crc.h"

struct check {
	struct journal *j;
	void (*report)(void *ctx, const char *what);
	void *ctx;
	int found;
	uint64_t next_row; /* of the snapshot: they must all be there */
	struct epoch_blobs blobs;
};

static void found(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void found(struct check *c, const char *fmt, ...)
{
	char what[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	c->found++;
	if (c->report)
		c->report(c->ctx, what);
}

/* Steps through a statement, calling row() for each; a read that fails is a finding too. */
static void each(struct check *c, sqlite3_stmt *s, const char *table,
		 void (*row)(struct check *c, sqlite3_stmt *s, uint64_t id))
{
	int rc;

	while ((rc = sqlite3_step(s)) == SQLITE_ROW)
		row(c, s, (uint64_t)sqlite3_column_int64(s, 0));
	if (rc != SQLITE_DONE)
		found(c, "table %s cannot be read to its end: %s", table, sqlite3_errmsg(c->j->db));
	sqlite3_reset(s);
}

static void check_volume(struct check *c, sqlite3_stmt *s, uint64_t id)
{
	struct journal_volume v;
	char *backing = NULL;
	const void *p = sqlite3_column_blob(s, 1);
	size_t len = (size_t)sqlite3_column_bytes(s, 1);
	const char *why = volume_decode(id, p, len, &v, &backing);
	struct identity_mem mem;

	if (!why)
		why = identity_decode(sqlite3_column_blob(s, 2), (size_t)sqlite3_column_bytes(s, 2),
				      volume_row_crc(p, len), &v, &mem);
	if (why || !backing)
		found(c, "volume %llu: %s", (unsigned long long)id, why ? why : "out of memory");
	free(backing);
}

static void check_setting(struct check *c, sqlite3_stmt *s, uint64_t id)
{
	const char *key = (const char *)sqlite3_column_text(s, 0), *value = (const char *)sqlite3_column_text(s, 1);

	(void)id;
	if (!key || !value || (uint32_t)sqlite3_column_int64(s, 2) != setting_crc(key, value))
		found(c, "setting %.50s: checksum mismatch", key ? key : "?");
}

static void check_mark(struct check *c, sqlite3_stmt *s, uint64_t id)
{
	if ((uint32_t)sqlite3_column_int64(s, 1) != mark_crc(id))
		found(c, "mark %llx: checksum mismatch", (unsigned long long)id);
}

static void check_discard(struct check *c, sqlite3_stmt *s, uint64_t id)
{
	struct journal_discard d;
	const void *p = sqlite3_column_blob(s, 1);
	const char *why = discard_row_decode(id, p, (size_t)sqlite3_column_bytes(s, 1), &d);

	if (why)
		found(c, "discard %llu: %s", (unsigned long long)id, why);
}

static void check_snapshot(struct check *c, sqlite3_stmt *s, uint64_t id)
{
	const struct journal_geometry *geo = &c->j->geo;
	unsigned bpl = geo->blocks_per_line, per_row = snapshot_entries(bpl);
	const uint8_t *p = sqlite3_column_blob(s, 1);
	const char *why = snapshot_verify(bpl, id, p, (size_t)sqlite3_column_bytes(s, 1));
	union line_buf lb;

	if (id != c->next_row)
		found(c, "snapshot rows from %llu on: missing", (unsigned long long)c->next_row);
	c->next_row = id + 1;
	for (unsigned i = 0; !why && i < per_row; i++) {
		if (!snapshot_get(bpl, p, i, &lb.line))
			continue;
		lb.line.entry = (uint32_t)(id * per_row + i);
		why = line_check(geo, &lb.line);
	}
	if (why)
		found(c, "snapshot row %llu: %s", (unsigned long long)id, why);
}

static void check_ring(struct check *c)
{
	for (uint32_t k = 0; k < c->j->nring; k++) {
		const char *why = jdb_ring_check(c->j, k);

		if (why)
			found(c, "ring row %u: %s", k, why);
	}
}

static void check_epoch(struct check *c, const struct held_epoch *h)
{
	uint8_t *mem = NULL, data[JOURNAL_PAGE];
	struct epoch_view v;
	const char *why;
	size_t body;
	uint64_t id = h->id;
	int code = jdb_epoch_read(c->j, &c->blobs, h, &mem, &v, &body, &why);

	if (code) {
		found(c, "epoch %llu: %s", (unsigned long long)id, code == -EBADMSG ? why : strerror(-code));
		/* A handle after an error may be unusable. */
		jdb_epoch_close(&c->blobs);
	}
	for (uint32_t i = 0; !code && i < v.ninlines; i++) {
		if (jdb_epoch_data(c->j, &c->blobs, h, v.meta_len + i * JOURNAL_PAGE, data))
			found(c, "epoch %llu: its data cannot be read", (unsigned long long)id);
		else if (crc32c(data, JOURNAL_PAGE) != get32(v.inlines + (size_t)i * EPOCH_INLINE + 4))
			found(c, "epoch %llu: the data in its row has a wrong checksum", (unsigned long long)id);
	}
	free(mem);
}

static void check_integrity(struct check *c)
{
	sqlite3_stmt *s = NULL;
	int rc = sqlite3_prepare_v2(c->j->db, "PRAGMA integrity_check(100)", -1, &s, NULL);

	if (rc == SQLITE_OK) {
		while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
			const char *text = (const char *)sqlite3_column_text(s, 0);

			if (text && strcmp(text, "ok"))
				found(c, "database: %s", text);
		}
	}
	if (rc != SQLITE_DONE)
		found(c, "database: cannot be checked: %s", sqlite3_errmsg(c->j->db));
	sqlite3_finalize(s);
}

int journal_check(struct journal *j, void (*report)(void *ctx, const char *what), void *ctx)
{
	struct check c = { .j = j, .report = report, .ctx = ctx };
	struct jdb_state st;
	struct bc_error err;

	pthread_mutex_lock(&j->lock);
	check_integrity(&c);
	if (jdb_state_get(j, &st, &err))
		found(&c, "%s", err.msg);
	each(&c, j->stmt[STMT_VOLUME_ALL], "volume", check_volume);
	each(&c, j->stmt[STMT_SETTING_ALL], "setting", check_setting);
	each(&c, j->stmt[STMT_MARK_ALL], "mark", check_mark);
	each(&c, j->stmt[STMT_DISCARD_ALL], "discard", check_discard);
	each(&c, j->stmt[STMT_SNAPSHOT_ALL], "snapshot", check_snapshot);
	if (c.next_row != snapshot_rows(&j->geo))
		found(&c, "snapshot rows: %llu instead of %llu", (unsigned long long)c.next_row,
		      (unsigned long long)snapshot_rows(&j->geo));
	check_ring(&c);
	for (size_t i = j->held_first; i < j->held_end; i++) {
		if (j->held[i].id > j->state.folded_upto)
			check_epoch(&c, &j->held[i]);
	}
	jdb_epoch_close(&c.blobs);
	pthread_mutex_unlock(&j->lock);
	return c.found;
}
