/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volume_rows.c - volumes, settings and write-intent marks: one durable transaction per call. Any thread; each takes
 * the journal's lock.
 *
 * A mark must be durable before the first write that makes backing and cache differ (P4), so setting marks is a commit
 * like any other.
 *
 * Ids are small (12 bits in each record) and are used again, so nothing durable may outlive its volume and count for
 * the next one. Deleting a volume expects that the epochs which free its lines cannot be dropped any more (journal.h).
 * The same transaction that deletes its row deletes its marks and the discards of its that were folded. Discards that
 * are still in epochs' rows cannot be deleted there. They are told by their age: the transaction that adds a volume
 * notes the first epoch that can name it, as a setting of the journal's own (SINCE_KEY and the id). What an older epoch
 * says of that id is about an earlier volume: recovery and folding leave it out. A volume that has no such note was
 * added by a release that did not write any, and all epochs count for it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "journal/db.h"

static int64_t mark_key(const struct journal_mark *m)
{
	return (int64_t)((uint64_t)m->volume << 32 | m->region);
}

static int change_marks(struct journal *j, const struct journal_mark *marks, size_t n, bool set, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[set ? STMT_MARK_PUT : STMT_MARK_DELETE];
	int code, rc = SQLITE_OK;

	if (!n)
		return 0;
	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code) {
		for (size_t i = 0; rc == SQLITE_OK && i < n; i++) {
			sqlite3_bind_int64(s, 1, mark_key(&marks[i]));
			if (set)
				sqlite3_bind_int64(s, 2, mark_crc((uint64_t)mark_key(&marks[i])));
			rc = jdb_step_reset(s);
		}
		code = jdb_end(j, rc, true, "cannot write marks", err);
	}
	pthread_mutex_unlock(&j->lock);
	return code;
}

int journal_marks_set(struct journal *j, const struct journal_mark *marks, size_t n, struct bc_error *err)
{
	return change_marks(j, marks, n, true, err);
}

int journal_marks_clear(struct journal *j, const struct journal_mark *marks, size_t n, struct bc_error *err)
{
	return change_marks(j, marks, n, false, err);
}

/* ---- volumes ---- */

/* Inside a transaction; SQLite result. */
static int put_setting(struct journal *j, const char *key, const char *value)
{
	sqlite3_stmt *s = j->stmt[STMT_SETTING_PUT];

	sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 2, value, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 3, setting_crc(key, value));
	return jdb_step_reset(s);
}

bool jdb_since_load(struct journal *j, const char *key, const char *value)
{
	unsigned long id;

	if (strncmp(key, SINCE_KEY, strlen(SINCE_KEY)) != 0)
		return false;
	id = strtoul(key + strlen(SINCE_KEY), NULL, 10);
	if (id <= JOURNAL_MAX_VOLUME && j->since[id])
		j->since[id] = strtoull(value, NULL, 10);
	return true;
}

static void since_key(uint16_t id, char *key, size_t len)
{
	snprintf(key, len, SINCE_KEY "%u", id);
}

/* Those in their table. Inside a transaction; SQLite result. */
static int delete_discards(struct journal *j, uint16_t volume)
{
	sqlite3_stmt *all = j->stmt[STMT_DISCARD_ALL], *del = j->stmt[STMT_DISCARD_DELETE];
	int rc, rc2 = SQLITE_OK;

	while (rc2 == SQLITE_OK && (rc = sqlite3_step(all)) == SQLITE_ROW) {
		uint64_t id = (uint64_t)sqlite3_column_int64(all, 0);
		const void *body = sqlite3_column_blob(all, 1);
		struct journal_discard d;

		if (discard_row_decode(id, body, (size_t)sqlite3_column_bytes(all, 1), &d) || d.volume != volume)
			continue; /* a damaged one is for the next load to find */
		/* SQLite allows it: a row that was stepped to may be deleted, and the walk goes on behind it. */
		sqlite3_bind_int64(del, 1, (int64_t)id);
		rc2 = jdb_step_reset(del);
	}
	sqlite3_reset(all);
	return rc2 != SQLITE_OK ? rc2 : rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Whatever names the id and is no epoch. Inside a transaction; SQLite result. */
static int delete_traces(struct journal *j, uint16_t id)
{
	sqlite3_stmt *mark = j->stmt[STMT_MARK_DELETE_VOLUME], *setting = j->stmt[STMT_SETTING_DELETE];
	char key[32];
	int rc;

	sqlite3_bind_int64(mark, 1, id);
	rc = jdb_step_reset(mark);
	if (rc == SQLITE_OK)
		rc = delete_discards(j, id);
	since_key(id, key, sizeof(key));
	sqlite3_bind_text(setting, 1, key, -1, SQLITE_STATIC);
	return rc == SQLITE_OK ? jdb_step_reset(setting) : rc;
}

/* The row is not there yet: from the next epoch on the id means this volume. Inside a transaction; SQLite result. */
static int begin_volume(struct journal *j, uint16_t id)
{
	char key[32], value[32];
	int rc = delete_traces(j, id);

	since_key(id, key, sizeof(key));
	snprintf(value, sizeof(value), "%" PRIu64, j->last_id + 1);
	return rc == SQLITE_OK && !MUTATE(VOLUME_SINCE) ? put_setting(j, key, value) : rc;
}

/* *is: the volume has a row. SQLite result. */
static int has_volume(struct journal *j, uint16_t id, bool *is)
{
	sqlite3_stmt *s = j->stmt[STMT_VOLUME_HAS];
	int rc;

	sqlite3_bind_int64(s, 1, id);
	rc = sqlite3_step(s);
	*is = rc == SQLITE_ROW;
	sqlite3_reset(s);
	return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* The row, and what is known of the device beside it. Encoded into one piece of memory: *mem, the caller's. */
static int encode_volume(const struct journal_volume *v, uint8_t **mem, size_t *row, size_t *identity)
{
	*row = volume_size_encoded(v);
	*identity = v->label ? identity_size_encoded(v) : 0;
	*mem = malloc(*row + *identity);
	if (!*mem)
		return -ENOMEM;
	volume_encode(v, *mem);
	if (v->label)
		identity_encode(v, volume_row_crc(*mem, *row), *mem + *row);
	return 0;
}

int journal_volume_put(struct journal *j, const struct journal_volume *v, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_VOLUME_PUT], *si = j->stmt[STMT_IDENTITY_PUT];
	size_t row, identity;
	uint8_t *mem;
	bool is = false;
	int code, rc;

	if (!v->id || v->id > JOURNAL_MAX_VOLUME)
		return bc_fail(err, -EINVAL, "%s: volume id %u out of range", j->path, v->id);
	if (v->nwitness > JOURNAL_MAX_WITNESSES || (v->label && strlen(v->label) >= BDEV_LABEL_MAX))
		return bc_fail(err, -EINVAL, "%s: volume %u: its identity is too long", j->path, v->id);
	if (encode_volume(v, &mem, &row, &identity))
		return bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code) {
		rc = has_volume(j, v->id, &is);
		if (rc == SQLITE_OK && !is)
			rc = begin_volume(j, v->id);
		sqlite3_bind_int64(s, 1, v->id);
		sqlite3_bind_blob64(s, 2, mem, row, SQLITE_STATIC);
		if (rc == SQLITE_OK)
			rc = jdb_step_reset(s);
		if (rc == SQLITE_OK && identity) {
			sqlite3_bind_int64(si, 1, v->id);
			sqlite3_bind_blob64(si, 2, mem + row, identity, SQLITE_STATIC);
			rc = jdb_step_reset(si);
		}
		code = jdb_end(j, rc, true, "cannot write a volume", err);
		if (!code && !is)
			j->since[v->id] = j->last_id + 1;
	}
	pthread_mutex_unlock(&j->lock);
	free(mem);
	return code;
}

int journal_volume_delete(struct journal *j, uint16_t id, struct bc_error *err)
{
	static const enum jdb_stmt stmts[] = { STMT_VOLUME_DELETE, STMT_IDENTITY_DELETE, STMT_SETTING_DELETE_VOLUME };
	int code, rc = SQLITE_OK;

	if (!id || id > JOURNAL_MAX_VOLUME)
		return bc_fail(err, -EINVAL, "%s: volume id %u out of range", j->path, id);
	pthread_mutex_lock(&j->maint);
	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code) {
		for (int i = 0; rc == SQLITE_OK && i < 3; i++) {
			sqlite3_bind_int64(j->stmt[stmts[i]], 1, id);
			rc = jdb_step_reset(j->stmt[stmts[i]]);
		}
		if (rc == SQLITE_OK)
			rc = delete_traces(j, id);
		code = jdb_end(j, rc, true, "cannot remove a volume", err);
	}
	if (!code) {
		j->since[id] = 0;
		if (j->fold)
			fold_forget_volume(j->fold, id);
	}
	pthread_mutex_unlock(&j->lock);
	pthread_mutex_unlock(&j->maint);
	return code;
}

/* ---- settings ---- */

int journal_setting_put(struct journal *j, const char *key, const char *value, struct bc_error *err)
{
	int code;

	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code)
		code = jdb_end(j, put_setting(j, key, value), true, "cannot write a setting", err);
	pthread_mutex_unlock(&j->lock);
	return code;
}

int journal_setting_get(struct journal *j, const char *key, char *value, size_t len, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_SETTING_GET];
	int code = 0, rc;

	pthread_mutex_lock(&j->lock);
	sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
	rc = sqlite3_step(s);
	if (rc == SQLITE_ROW) {
		const char *text = (const char *)sqlite3_column_text(s, 1);

		if (!text && sqlite3_errcode(j->db) == SQLITE_NOMEM)
			code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
		else if (!text || (uint32_t)sqlite3_column_int64(s, 2) != setting_crc(key, text))
			code = jdb_damaged(j, err, "setting %.50s: checksum mismatch", key);
		else
			snprintf(value, len, "%s", text);
		code = code ? code : 1;
	} else if (rc != SQLITE_DONE) {
		code = jdb_fail(j, rc, "cannot read its settings", err);
	}
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	pthread_mutex_unlock(&j->lock);
	return code;
}
