/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db.c - the journal's SQLite connection: opening, closing, transactions, errors.
 *
 * One connection, SQLITE_OPEN_NOMUTEX, under the journal's own `lock`. locking_mode=EXCLUSIVE is set before anything is
 * read: the wal-index then lives in this process's memory, no -shm file exists, and a second opener, in this process or
 * another, gets -EBUSY. Nobody else may ever open the file: two connections on one WAL are what SQLite 3.40 can
 * corrupt.
 *
 * Durability: synchronous=FULL syncs the WAL at every commit. The WAL keeps its size (journal_size_limit=-1) and is
 * restarted from its beginning by the first commit after a complete checkpoint: overwriting allocated blocks is the
 * fastest commit there is. It is removed at a clean close, so that a stopped cache is one file with nothing beside it
 * that could be lost or mixed up; opening writes WAL_RESERVE zeros again.
 *
 * Failure (P6): after a failed commit it is unknown what of it reached the disk, and the kernel may have forgotten
 * dirty pages that a second fsync would then wrongly call durable. So the journal is failed for good: nothing is
 * written any more, not even the checkpoint at close. What is on the disk is what recovery will read.
 */
#include "journal/db.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/log.h"

const char *journal_vfs_name;
size_t journal_wal_reserve = WAL_RESERVE;

static const char *const stmt_sql[STMT_COUNT] = {
	[STMT_BEGIN] = "BEGIN IMMEDIATE",
	[STMT_COMMIT] = "COMMIT",
	[STMT_EPOCH_PUT] = "INSERT INTO epoch(id, body) VALUES(?1, ?2)",
	[STMT_EPOCH_IDS] = "SELECT id FROM epoch ORDER BY id",
	[STMT_EPOCH_DELETE_RANGE] = "DELETE FROM epoch WHERE id BETWEEN ?1 AND ?2",
	[STMT_EPOCH_DELETE_SOME] =
		"DELETE FROM epoch WHERE id IN (SELECT id FROM epoch WHERE id <= ?1 ORDER BY id LIMIT ?2)",
	[STMT_EPOCH_DELETE_FROM] = "DELETE FROM epoch WHERE id >= ?1",
	[STMT_STATE_GET] = "SELECT durable_upto, folded_upto, ring_upto, last_id, void_from, void_upto, crc FROM state "
			   "WHERE one = 1",
	[STMT_STATE_PUT] = "UPDATE state SET durable_upto = ?1, folded_upto = ?2, ring_upto = ?3, last_id = ?4, "
			   "void_from = ?5, void_upto = ?6, crc = ?7 WHERE one = 1",
	[STMT_SNAPSHOT_ALL] = "SELECT row, body FROM snapshot ORDER BY row",
	[STMT_DISCARD_ALL] = "SELECT id, body FROM discard ORDER BY id",
	[STMT_DISCARD_PUT] = "INSERT OR REPLACE INTO discard(id, body) VALUES(?1, ?2)",
	[STMT_DISCARD_DELETE] = "DELETE FROM discard WHERE id = ?1",
	[STMT_VOLUME_HAS] = "SELECT 1 FROM volume WHERE id = ?1",
	[STMT_VOLUME_ALL] = "SELECT v.id, v.body, i.body FROM volume v LEFT JOIN identity i ON i.id = v.id "
			    "ORDER BY v.id",
	[STMT_VOLUME_PUT] = "INSERT OR REPLACE INTO volume(id, body) VALUES(?1, ?2)",
	[STMT_VOLUME_DELETE] = "DELETE FROM volume WHERE id = ?1",
	[STMT_IDENTITY_PUT] = "INSERT OR REPLACE INTO identity(id, body) VALUES(?1, ?2)",
	[STMT_IDENTITY_DELETE] = "DELETE FROM identity WHERE id = ?1",
	[STMT_SETTING_ALL] = "SELECT key, value, crc FROM setting ORDER BY key",
	[STMT_SETTING_GET] = "SELECT key, value, crc FROM setting WHERE key = ?1",
	[STMT_SETTING_DELETE] = "DELETE FROM setting WHERE key = ?1",
	[STMT_SETTING_PUT] = "INSERT OR REPLACE INTO setting(key, value, crc) VALUES(?1, ?2, ?3)",
	/* JOURNAL_VOLUME_KEY; '/' comes after '.' */
	[STMT_SETTING_DELETE_VOLUME] = "DELETE FROM setting WHERE key >= 'volume.' || ?1 || '.' "
				       "AND key < 'volume.' || ?1 || '/'",
	[STMT_MARK_ALL] = "SELECT key, crc FROM mark ORDER BY key",
	[STMT_MARK_PUT] = "INSERT OR IGNORE INTO mark(key, crc) VALUES(?1, ?2)",
	[STMT_MARK_DELETE] = "DELETE FROM mark WHERE key = ?1",
	[STMT_MARK_DELETE_VOLUME] = "DELETE FROM mark WHERE key >= ?1 << 32 AND key < (?1 + 1) << 32",
};

const char jdb_schema[] = "CREATE TABLE geometry(one INTEGER PRIMARY KEY, body BLOB);"
			  "CREATE TABLE state(one INTEGER PRIMARY KEY, durable_upto, folded_upto, ring_upto, "
			  "last_id, void_from, void_upto, crc);"
			  "CREATE TABLE volume(id INTEGER PRIMARY KEY, body BLOB);"
			  "CREATE TABLE identity(id INTEGER PRIMARY KEY, body BLOB);"
			  "CREATE TABLE setting(key TEXT PRIMARY KEY, value TEXT, crc INTEGER) WITHOUT ROWID;"
			  "CREATE TABLE mark(key INTEGER PRIMARY KEY, crc INTEGER);"
			  "CREATE TABLE epoch(id INTEGER PRIMARY KEY, body BLOB);"
			  "CREATE TABLE snapshot(row INTEGER PRIMARY KEY, body BLOB);"
			  "CREATE TABLE discard(id INTEGER PRIMARY KEY, body BLOB);";

/* ---- errors ---- */

int jdb_errno(sqlite3 *db, int rc)
{
	int os = db ? sqlite3_system_errno(db) : 0;

	switch (rc & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE:
		return 0;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_NOTADB:
	case SQLITE_CORRUPT:
	case SQLITE_ERROR: /* a table or column that is not there */
	case SQLITE_FORMAT:
		return -EUCLEAN;
	case SQLITE_READONLY:
		return -EROFS;
	case SQLITE_PERM:
	case SQLITE_AUTH:
		return -EACCES;
	case SQLITE_CANTOPEN:
		return os ? -os : -EACCES;
	case SQLITE_TOOBIG:
		return -E2BIG;
	case SQLITE_IOERR:
		return os == ENOSPC || os == EDQUOT ? -ENOSPC : -EIO;
	default:
		return -EIO;
	}
}

int jdb_fail(struct journal *j, int rc, const char *what, struct bc_error *err)
{
	int code = jdb_errno(j->db, rc);
	const char *why = j->db ? sqlite3_errmsg(j->db) : sqlite3_errstr(rc);

	switch (code) {
	case -EBUSY:
		return bc_fail(err, code, "%s: in use by another process; stop it first", j->path);
	case -ENOSPC:
		return bc_fail(err, code, "%s: %s: no space left on the disk; free some", j->path, what);
	case -EUCLEAN:
		return bc_fail(err, code, "%s: %s: the journal is damaged (%s)", j->path, what, why);
	default:
		return bc_fail(err, code, "%s: %s: %s", j->path, what, why);
	}
}

int jdb_damaged(struct journal *j, struct bc_error *err, const char *fmt, ...)
{
	char what[300];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return bc_fail(err, -EUCLEAN, "%s: the journal is damaged: %s", j->path, what);
}

/* ---- transactions ---- */

int jdb_step_reset(sqlite3_stmt *s)
{
	int rc = sqlite3_step(s);

	sqlite3_reset(s); /* repeats rc */
	sqlite3_clear_bindings(s);
	return rc == SQLITE_DONE || rc == SQLITE_ROW ? SQLITE_OK : rc;
}

int jdb_writable(struct journal *j, struct bc_error *err)
{
	if (j->read_only)
		return bc_fail(err, -EROFS, "%s: opened for reading only", j->path);
	if (j->failed)
		return bc_fail(err, -EIO,
			       "%s: an earlier write to the journal failed; nothing is accepted until the cache is "
			       "stopped and started again",
			       j->path);
	return 0;
}

int jdb_begin(struct journal *j, struct bc_error *err)
{
	int code = jdb_writable(j, err), rc;

	if (code)
		return code;
	rc = jdb_step_reset(j->stmt[STMT_BEGIN]);
	if (rc != SQLITE_OK) {
		j->failed = true;
		return jdb_fail(j, rc, "cannot begin a transaction", err);
	}
	return 0;
}

int jdb_end(struct journal *j, int rc, bool fatal, const char *what, struct bc_error *err)
{
	int code;

	if (rc == SQLITE_OK)
		rc = jdb_step_reset(j->stmt[STMT_COMMIT]);
	if (rc == SQLITE_OK)
		return 0;
	code = jdb_fail(j, rc, what, err);
	if (fatal || (rc & 0xff) != SQLITE_FULL)
		j->failed = true;
	/* SQLite may have rolled back on its own. */
	if (!sqlite3_get_autocommit(j->db) && sqlite3_exec(j->db, "ROLLBACK", NULL, NULL, NULL) != SQLITE_OK)
		j->failed = true;
	return code;
}

/* Called by SQLite after each commit with the frames since the WAL's last restart. */
static int wal_hook(void *ctx, sqlite3 *db, const char *name, int frames)
{
	struct journal *j = ctx;
	uint64_t bytes = 32 + (uint64_t)frames * (JOURNAL_PAGE + 24);

	(void)db;
	(void)name;
	j->wal_frames = frames;
	if (bytes > atomic_load_explicit(&j->wal_bytes, memory_order_relaxed))
		atomic_store_explicit(&j->wal_bytes, bytes, memory_order_relaxed);
	return SQLITE_OK;
}

int jdb_checkpoint(struct journal *j, struct bc_error *err)
{
	int in_wal = 0, done = 0, code, rc;

	if (MUTATE(WAL_CHECKPOINT))
		sqlite3_exec(j->db, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
	rc = sqlite3_wal_checkpoint_v2(j->db, "main", SQLITE_CHECKPOINT_PASSIVE, &in_wal, &done);
	if (MUTATE(WAL_CHECKPOINT))
		sqlite3_exec(j->db, "PRAGMA synchronous=FULL", NULL, NULL, NULL);

	if (rc != SQLITE_OK) {
		code = jdb_fail(j, rc, "cannot write the journal's log back", err);
		/* A write without space: nothing was promised, nothing forgotten. Any other failure may have been the
		 * sync, also one that says "no space". */
		if ((rc & 0xff) != SQLITE_FULL)
			j->failed = true;
		return code;
	}
	if (in_wal == done)
		j->wal_frames = 0; /* the next commit starts at the WAL's beginning */
	atomic_fetch_add_explicit(&j->checkpoints, 1, memory_order_relaxed);
	return 0;
}

/* ---- small helpers ---- */

int jdb_state_get(struct journal *j, struct jdb_state *st, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_STATE_GET];
	int rc = sqlite3_step(s), code = 0;
	uint64_t v[STATE_VALUES];
	uint32_t crc = 0;

	if (rc == SQLITE_ROW) {
		for (unsigned i = 0; i < STATE_VALUES; i++)
			v[i] = (uint64_t)sqlite3_column_int64(s, (int)i);
		crc = (uint32_t)sqlite3_column_int64(s, STATE_VALUES);
	}
	if (rc != SQLITE_ROW && rc != SQLITE_DONE)
		code = jdb_fail(j, rc, "cannot read its state", err);
	else if (rc == SQLITE_DONE || crc != state_crc(v, STATE_VALUES))
		code = jdb_damaged(j, err, "state row: checksum mismatch");
	else
		memcpy(st, v, sizeof(*st));
	sqlite3_reset(s);
	return code;
}

int jdb_state_put(struct journal *j, const struct jdb_state *st)
{
	sqlite3_stmt *s = j->stmt[STMT_STATE_PUT];
	uint64_t v[STATE_VALUES];

	memcpy(v, st, sizeof(v));
	for (unsigned i = 0; i < STATE_VALUES; i++)
		sqlite3_bind_int64(s, (int)i + 1, (int64_t)v[i]);
	sqlite3_bind_int64(s, STATE_VALUES + 1, state_crc(v, STATE_VALUES));
	return jdb_step_reset(s);
}

int jdb_reserve_buf(struct journal *j, size_t size)
{
	void *mem;

	if (size <= j->buf_size)
		return 0;
	mem = realloc(j->buf, size);
	if (!mem)
		return -ENOMEM;
	j->buf = mem;
	j->buf_size = size;
	return 0;
}

int jdb_held_add(struct journal *j, uint64_t id, uint32_t row, size_t meta, size_t body)
{
	if (j->held_end == j->held_size) {
		size_t n = j->held_end - j->held_first;

		if (j->held_first > n) {
			/* More than half of it has been folded: move to the front instead of growing. */
			memmove(j->held, j->held + j->held_first, n * sizeof(j->held[0]));
		} else {
			size_t size = j->held_size ? j->held_size * 2 : 1024;
			struct held_epoch *mem = malloc(size * sizeof(mem[0]));

			if (!mem)
				return -ENOMEM;
			if (n)
				memcpy(mem, j->held + j->held_first, n * sizeof(mem[0]));
			free(j->held);
			j->held = mem;
			j->held_size = size;
		}
		j->held_first = 0;
		j->held_end = n;
	}
	j->held[j->held_end++] =
		(struct held_epoch){ .id = id, .row = row, .meta = (uint32_t)meta, .body = (uint32_t)body };
	atomic_store_explicit(&j->epochs_held, j->held_end - j->held_first, memory_order_relaxed);
	return 0;
}

/* Of an epoch in the table. SQLite result. */
static int epoch_open(struct journal *j, struct epoch_blobs *b, uint64_t id)
{
	int rc = b->epoch ? sqlite3_blob_reopen(b->epoch, (int64_t)id)
			  : sqlite3_blob_open(j->db, "main", "epoch", "body", (int64_t)id, 0, &b->epoch);

	if (rc != SQLITE_OK) {
		/* A failed reopen leaves the handle unusable. */
		sqlite3_blob_close(b->epoch);
		b->epoch = NULL;
	}
	return rc;
}

void jdb_epoch_close(struct epoch_blobs *b)
{
	sqlite3_blob_close(b->epoch);
	b->epoch = NULL;
}

/* `len` bytes from the beginning of its row, of the front at most. */
static int read_front(struct journal *j, const struct epoch_blobs *b, const struct held_epoch *h, uint8_t *p,
		      size_t len)
{
	int rc;

	if (h->row != RING_NONE) {
		memcpy(p, j->ring_meta + (size_t)h->row * RING_META, len);
		return 0;
	}
	rc = sqlite3_blob_read(b->epoch, p, (int)len, 0);
	return rc == SQLITE_OK ? 0 : jdb_errno(j->db, rc);
}

int jdb_epoch_read(struct journal *j, struct epoch_blobs *b, const struct held_epoch *h, uint8_t **mem,
		   struct epoch_view *ep, size_t *body, const char **why)
{
	uint8_t head[EPOCH_HEADER];
	size_t len = h->body, meta;
	int code;

	*mem = NULL;
	*why = NULL;
	if (h->row == RING_NONE) {
		int rc = epoch_open(j, b, h->id);

		if (rc == SQLITE_ERROR) {
			/* No such row, or not a blob. */
			*why = "not an epoch";
			return -EBADMSG;
		}
		if (rc != SQLITE_OK)
			return jdb_errno(j->db, rc);
		len = (size_t)sqlite3_blob_bytes(b->epoch);
	}
	*body = len;
	if (len < sizeof(head)) {
		*why = "too short";
		return -EBADMSG;
	}
	code = read_front(j, b, h, head, sizeof(head));
	if (code)
		return code;
	meta = epoch_meta_len(head, len);
	if (!meta || (h->row != RING_NONE && meta > RING_META)) {
		*why = "header out of range";
		return -EBADMSG;
	}
	*mem = malloc(meta);
	if (!*mem)
		return -ENOMEM;
	code = read_front(j, b, h, *mem, meta);
	if (code)
		return code;
	*why = epoch_decode(&j->geo, h->id, *mem, meta, ep);
	return *why ? -EBADMSG : 0;
}

int jdb_epoch_data(struct journal *j, struct epoch_blobs *b, const struct held_epoch *h, size_t off, uint8_t *data)
{
	int rc;

	if (h->row != RING_NONE)
		return jdb_ring_data(j, h->row, off, data);
	rc = epoch_open(j, b, h->id);
	if (rc == SQLITE_OK)
		rc = sqlite3_blob_read(b->epoch, data, JOURNAL_PAGE, (int)off);
	return rc == SQLITE_OK ? 0 : jdb_errno(j->db, rc);
}

/* ---- open and close ---- */

/* A single integer, for pragmas; -1 if there is none. */
static int64_t query_int(sqlite3 *db, const char *sql, int *rc)
{
	sqlite3_stmt *s = NULL;
	int64_t v = -1;

	*rc = sqlite3_prepare_v2(db, sql, -1, &s, NULL);
	if (*rc == SQLITE_OK) {
		*rc = sqlite3_step(s);
		if (*rc == SQLITE_ROW) {
			v = sqlite3_column_int64(s, 0);
			*rc = SQLITE_OK;
		} else if (*rc == SQLITE_DONE) {
			*rc = SQLITE_OK;
		}
	}
	sqlite3_finalize(s);
	return v;
}

/* Is it ours? Must not write: it may be anybody's database. */
static int check_identity(struct journal *j, struct bc_error *err)
{
	int rc;
	int64_t app, version;
	uint8_t versions[2]; /* of the format, to write and to read */
	sqlite3_file *f;

	app = query_int(j->db, "PRAGMA application_id", &rc);
	if (rc == SQLITE_NOTADB)
		return bc_fail(
			err, -EINVAL,
			"%s: is not a blkcache journal (not a database); give a cache folder, or restore the file",
			j->path);
	if (rc != SQLITE_OK)
		return jdb_fail(j, rc, "cannot read it", err);
	if (app != JOURNAL_APPLICATION_ID)
		return bc_fail(err, -EINVAL,
			       "%s: is not a blkcache journal (application id %#llx); give a cache folder, or restore "
			       "the file",
			       j->path, (unsigned long long)app);
	version = query_int(j->db, "PRAGMA user_version", &rc);
	if (rc != SQLITE_OK)
		return jdb_fail(j, rc, "cannot read it", err);
	if (version != JOURNAL_FORMAT)
		return bc_fail(err, -EPROTONOSUPPORT,
			       "%s: has format version %lld, this program knows version %d; use the blkcache release "
			       "that made it",
			       j->path, (long long)version, JOURNAL_FORMAT);
	/* A write version that SQLite does not know makes it read only, which would show at the first write. */
	if (sqlite3_file_control(j->db, "main", SQLITE_FCNTL_FILE_POINTER, &f) != SQLITE_OK ||
	    f->pMethods->xRead(f, versions, 2, 18) != SQLITE_OK || versions[0] != 2 || versions[1] != 2)
		return jdb_damaged(j, err, "its header is not that of a database with a log");
	return 0;
}

static int read_geometry(struct journal *j, struct bc_error *err)
{
	sqlite3_stmt *s = NULL;
	const char *why = "row is missing";
	int rc = sqlite3_prepare_v2(j->db, "SELECT body FROM geometry WHERE one = 1", -1, &s, NULL);
	int code = 0;

	if (rc == SQLITE_OK)
		rc = sqlite3_step(s);
	if (rc == SQLITE_ROW) {
		const void *p = sqlite3_column_blob(s, 0);

		why = geometry_decode(p, (size_t)sqlite3_column_bytes(s, 0), &j->geo);
	} else if (rc != SQLITE_DONE) {
		code = jdb_fail(j, rc, "cannot read its geometry", err);
	}
	if (!code && why)
		code = jdb_damaged(j, err, "geometry: %s", why);
	sqlite3_finalize(s);
	return code;
}

/* A journal of a release that did not know the table gets it here, in a transaction of its own; the format stays the
 * same, as that release does not look at it. One that is only read stays as it is. *there: false then. */
static int make_identity(struct journal *j, bool *there, struct bc_error *err)
{
	int rc;

	*there = query_int(j->db, "SELECT count(*) FROM sqlite_master WHERE name = 'identity'", &rc) > 0;
	if (rc == SQLITE_OK && !*there && !j->read_only) {
		rc = sqlite3_exec(j->db, "CREATE TABLE identity(id INTEGER PRIMARY KEY, body BLOB)", NULL, NULL, NULL);
		*there = true;
	}
	return rc == SQLITE_OK ? 0 : jdb_fail(j, rc, "cannot make the table of identities", err);
}

static int prepare_all(struct journal *j, struct bc_error *err)
{
	bool there;
	int code = make_identity(j, &there, err);

	for (int i = 0; i < STMT_COUNT && !code; i++) {
		const char *sql = stmt_sql[i];
		int rc;

		if (!there && (i == STMT_IDENTITY_PUT || i == STMT_IDENTITY_DELETE))
			continue;
		if (!there && i == STMT_VOLUME_ALL)
			sql = "SELECT id, body, NULL FROM volume ORDER BY id";
		rc = sqlite3_prepare_v3(j->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &j->stmt[i], NULL);
		if (rc != SQLITE_OK)
			return jdb_fail(j, rc, "cannot use its tables", err);
	}
	return code;
}

static int held_cmp(const void *pa, const void *pb)
{
	const struct held_epoch *a = pa, *b = pb;

	return a->id < b->id ? -1 : a->id > b->id;
}

/* A fold did not come to delete this row. It counts no more, if it is what its number says: otherwise it may be an
 * epoch that does. */
static int read_leftover(struct journal *j, uint64_t id, struct epoch_blobs *blobs, struct bc_error *err)
{
	struct held_epoch h = { .id = id, .row = RING_NONE };
	uint8_t *mem = NULL;
	struct epoch_view v;
	const char *why = NULL;
	size_t body;
	int code = jdb_epoch_read(j, blobs, &h, &mem, &v, &body, &why);

	free(mem);
	if (why || code == -EUCLEAN)
		return jdb_damaged(j, err, "epoch %llu: %s", (unsigned long long)id, why ? why : "cannot be read");
	if (code)
		return bc_fail(err, code, "%s: cannot read epoch %llu: %s", j->path, (unsigned long long)id,
			       strerror(-code));
	j->leftover++;
	return 0;
}

/* Which epochs there are, in the table and in the ring; whether they can be decoded is the load's business. */
static int read_held(struct journal *j, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_EPOCH_IDS];
	struct epoch_blobs blobs = { 0 };
	int rc, code = 0;

	while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
		uint64_t id = (uint64_t)sqlite3_column_int64(s, 0);

		if (id > INT64_MAX)
			code = jdb_damaged(j, err, "epoch with a negative number");
		else if (id <= j->state.folded_upto)
			code = read_leftover(j, id, &blobs, err);
		else if (jdb_held_add(j, id, RING_NONE, 0, 0))
			code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
		if (code)
			break;
	}
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(j, rc, "cannot read its epochs", err);
	jdb_epoch_close(&blobs);
	sqlite3_reset(s);
	if (!code)
		code = jdb_ring_open(j, err);
	if (code || j->held_end == j->held_first)
		return code;
	qsort(j->held + j->held_first, j->held_end - j->held_first, sizeof(j->held[0]), held_cmp);
	for (size_t i = j->held_first; i < j->held_end; i++) {
		if (i > j->held_first && j->held[i].id == j->held[i - 1].id)
			return jdb_damaged(j, err, "epoch %llu is there twice", (unsigned long long)j->held[i].id);
		if (j->held[i].row == RING_NONE)
			continue;
		j->ring_waiting++;
		if (j->held[i].prev > j->state.folded_upto &&
		    (i == j->held_first || j->held[i - 1].id != j->held[i].prev))
			return jdb_damaged(j, err, "epoch %llu, before epoch %llu: not there",
					   (unsigned long long)j->held[i].prev, (unsigned long long)j->held[i].id);
	}
	if (j->held[j->held_end - 1].id > j->last_id)
		j->last_id = j->held[j->held_end - 1].id;
	return 0;
}

static int open_db(struct journal *j, struct bc_error *err)
{
	static const char setup[] = "PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF;"
				    "PRAGMA cell_size_check=ON; PRAGMA cache_size=-8192; "
				    "PRAGMA secure_delete=OFF;"; /* on in some builds: each page freed is written */
	static const char setup_rw[] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; "
				       "PRAGMA journal_size_limit=-1;";
	struct stat st;
	int rc, code;

	if (stat(j->path, &st) < 0)
		return bc_fail(err, -errno, "%s: %s; there is no cache in this folder", j->path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return bc_fail(err, -EINVAL, "%s: is not a blkcache journal (not a regular file)", j->path);
	rc = sqlite3_open_v2(j->path, &j->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
			     j->read_only ? journal_rovfs() : journal_vfs_name);
	if (rc != SQLITE_OK)
		return jdb_fail(j, rc, "cannot open it", err);
	sqlite3_extended_result_codes(j->db, 1);
	sqlite3_db_config(j->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(j->db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
	/* Until it is known that this is a journal and that it can be read, closing must not change it. */
	sqlite3_db_config(j->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	rc = sqlite3_exec(j->db, "PRAGMA locking_mode=EXCLUSIVE", NULL, NULL, NULL);
	if (rc != SQLITE_OK)
		return jdb_fail(j, rc, "cannot open it", err);
	code = check_identity(j, err);
	if (code)
		return code;
	/* The lock is held since check_identity() read the header of a WAL database: nobody changes the log. SQLite has
	 * its index of the log since then, but no statement has been run that would make a difference. */
	code = jdb_wal_check(j, err);
	if (code)
		return code;
	rc = sqlite3_exec(j->db, setup, NULL, NULL, NULL);
	if (rc != SQLITE_OK)
		return jdb_fail(j, rc, "cannot open it", err);
	if (!j->read_only) {
		code = jdb_wal_prepare(j, err);
		if (code)
			return code;
		rc = sqlite3_exec(j->db, setup_rw, NULL, NULL, NULL);
		if (MUTATE(JOURNAL_SYNC))
			sqlite3_exec(j->db, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
		if (rc != SQLITE_OK)
			return jdb_fail(j, rc, "cannot open it for writing", err);
		sqlite3_wal_hook(j->db, wal_hook, j);
	}
	return 0;
}

int journal_open(const char *dir, bool read_only, struct journal **out, struct bc_error *err)
{
	struct journal *j = calloc(1, sizeof(*j));
	int code;

	*out = NULL;
	if (!j || asprintf(&j->path, "%s/%s", dir, JOURNAL_FILE) < 0) {
		free(j);
		return bc_fail(err, -ENOMEM, "%s: out of memory", dir);
	}
	pthread_mutex_init(&j->lock, NULL);
	pthread_mutex_init(&j->maint, NULL);
	j->read_only = read_only;
	j->ring_fd = -1;
	code = open_db(j, err);
	if (!code)
		code = read_geometry(j, err);
	if (!code)
		code = prepare_all(j, err);
	if (!code)
		code = jdb_state_get(j, &j->state, err);
	if (!code) {
		j->last_id = j->state.last_id > j->state.folded_upto ? j->state.last_id : j->state.folded_upto;
		code = read_held(j, err);
	}
	if (code) {
		j->failed = true; /* close without touching it */
		journal_close(j);
		return code;
	}
	*out = j;
	return 0;
}

void journal_close(struct journal *j)
{
	struct bc_error err;

	if (!j)
		return;
	if (!j->read_only && !j->failed) {
		if (jdb_checkpoint(j, &err))
			log_warn("%s", err.msg);
		else
			sqlite3_db_config(j->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
	}
	for (int i = 0; i < STMT_COUNT; i++)
		sqlite3_finalize(j->stmt[i]);
	sqlite3_close(j->db);
	fold_free(j->fold);
	pthread_mutex_destroy(&j->lock);
	pthread_mutex_destroy(&j->maint);
	free(j->held);
	jdb_ring_close(j);
	free(j->buf);
	free(j->path);
	free(j);
}

void journal_get_geometry(const struct journal *j, struct journal_geometry *geo)
{
	*geo = j->geo;
}

void journal_get_stats(struct journal *j, struct journal_stats *s)
{
	s->commits = atomic_load_explicit(&j->commits, memory_order_relaxed);
	s->epochs_held = atomic_load_explicit(&j->epochs_held, memory_order_relaxed);
	s->bytes_committed = atomic_load_explicit(&j->bytes_committed, memory_order_relaxed);
	s->merges = atomic_load_explicit(&j->merges, memory_order_relaxed);
	s->folds = atomic_load_explicit(&j->folds, memory_order_relaxed);
	s->checkpoints = atomic_load_explicit(&j->checkpoints, memory_order_relaxed);
	s->wal_bytes = atomic_load_explicit(&j->wal_bytes, memory_order_relaxed);
}
