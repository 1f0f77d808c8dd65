/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volume.c - volumes, settings and write-intent marks: one durable transaction per call. Any thread; each takes the
 * journal's lock.
 *
 * A mark must be durable before the first write that makes backing and cache differ (P4), so setting marks is a commit
 * like any other. Removing a volume expects that an epoch which frees its lines, and one which ends its discards, are
 * durable on both sides: the volume's id may be given to another one afterwards.
 */
#include <errno.h>
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

int journal_volume_put(struct journal *j, const struct journal_volume *v, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_VOLUME_PUT];
	size_t size = volume_size_encoded(v);
	uint8_t *body;
	int code;

	if (!v->id || v->id > JOURNAL_MAX_VOLUME)
		return bc_fail(err, -EINVAL, "%s: volume id %u out of range", j->path, v->id);
	body = malloc(size);
	if (!body)
		return bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	volume_encode(v, body);
	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code) {
		sqlite3_bind_int64(s, 1, v->id);
		sqlite3_bind_blob64(s, 2, body, size, SQLITE_STATIC);
		code = jdb_end(j, jdb_step_reset(s), true, "cannot write a volume", err);
	}
	pthread_mutex_unlock(&j->lock);
	free(body);
	return code;
}

int journal_volume_delete(struct journal *j, uint16_t id, struct bc_error *err)
{
	static const enum jdb_stmt stmts[] = { STMT_VOLUME_DELETE, STMT_MARK_DELETE_VOLUME,
					       STMT_SETTING_DELETE_VOLUME };
	int code, rc = SQLITE_OK;

	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code) {
		for (int i = 0; rc == SQLITE_OK && i < 3; i++) {
			sqlite3_bind_int64(j->stmt[stmts[i]], 1, id);
			rc = jdb_step_reset(j->stmt[stmts[i]]);
		}
		code = jdb_end(j, rc, true, "cannot remove a volume", err);
	}
	pthread_mutex_unlock(&j->lock);
	return code;
}

int journal_setting_put(struct journal *j, const char *key, const char *value, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_SETTING_PUT];
	int code;

	pthread_mutex_lock(&j->lock);
	code = jdb_begin(j, err);
	if (!code) {
		sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
		sqlite3_bind_text(s, 2, value, -1, SQLITE_STATIC);
		sqlite3_bind_int64(s, 3, setting_crc(key, value));
		code = jdb_end(j, jdb_step_reset(s), true, "cannot write a setting", err);
	}
	pthread_mutex_unlock(&j->lock);
	return code;
}
