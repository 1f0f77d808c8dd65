/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ring.c - rows that small epochs overwrite in place. Under the journal's `lock` (jdb_ring_*), or pure.
 *
 * Why: an INSERT of a row with 4 KiB of data takes a page from the free list, so that the commit of a single written
 * block changes four pages: the free list's count, its trunk, the leaf and the overflow page. SQLite overwrites a row
 * where it lies if the new content has the same size. So there is a table of rows made with the journal, all of the
 * same size, that changes two pages per commit: the leaf with the row's front, and one overflow page. RING_BODY is the
 * largest for which that is so.
 *
 *   ring(k, head, body)   k = 0 .. ring_rows()-1; head: RING_HEAD bytes, body: RING_BODY bytes
 *
 *   head:  0  u32 magic "BCR1"   4  u32 k
 *          8  u64 id of the epoch, 0: none
 *         16  u32 len            20  u32 crc32c of all before
 *   body:  the epoch as in encode.c (len bytes); zeros; a copy of the head
 *
 * A row is in use while its id is > folded_upto (of the state row): whatever it says is in the snapshot otherwise.
 * Nothing is written to free it. An epoch that does not fit, or whose turn comes at a row in use, is an INSERT into
 * table `epoch`; recovery merges both by id.
 *
 * Damage. A commit changes both pages of a row or none (WAL), so a row that is not whole was damaged by the medium. Of
 * such a row it must be known whether it was in use, and if so, by which epoch: an old row is harmless, an epoch <= D
 * is damage that leaves no safe reading, a later one ends the prefix (recover.c). Gaps in the ids prove nothing, for an
 * epoch without changes has no row. Hence the second copy of the head, at the other end of the row and so on the other
 * page: one bad page does not hide the id. If the copies differ, one page is older than the other, and the higher id is
 * the row's; the checksums in the epoch then fail where the older page is. Neither copy readable: it may have been any
 * epoch, the journal cannot be used. The same goes for a table that SQLite cannot read, as always.
 *
 * A row whose head says "not in use" is believed without a look at the copy: the load then reads the leaf pages only.
 * The other page cannot be newer unless the disk lost a write of the leaf without an error; an INSERT lost that way
 * would be as invisible.
 */
#include <errno.h>
#include <stdlib.h>

#include "journal/db.h"
#include "util/crc.h"

#define RING_MAGIC 0x31524342u
#define RING_ROWS_MIN 64u
#define RING_ROWS_MAX 4096u /* 18 MiB */

unsigned journal_ring_max = RING_ROWS_MAX;

unsigned ring_rows(const struct journal_geometry *geo)
{
	unsigned n = geo->nslots / 16;

	n = n < RING_ROWS_MIN ? RING_ROWS_MIN : n;
	return n < journal_ring_max ? n : journal_ring_max;
}

static void head_encode(uint32_t k, uint64_t id, uint32_t len, uint8_t *p)
{
	put32(p, RING_MAGIC);
	put32(p + 4, k);
	put64(p + 8, id);
	put32(p + 16, len);
	put32(p + 20, crc32c(p, 20));
}

static bool head_decode(const uint8_t *p, uint32_t k, uint64_t *id, uint32_t *len)
{
	*id = get64(p + 8);
	*len = get32(p + 16);
	return get32(p) == RING_MAGIC && get32(p + 4) == k && crc32c(p, 20) == get32(p + 20) && *len <= RING_ROOM &&
	       *id <= INT64_MAX;
}

void ring_encode(uint32_t k, uint64_t id, size_t len, uint8_t *head, uint8_t *body)
{
	head_encode(k, id, (uint32_t)len, head);
	memset(body + len, 0, RING_ROOM - len);
	memcpy(body + RING_ROOM, head, RING_HEAD);
}

/* The copy at the end of the body. False: it cannot be read or makes no sense. */
static bool read_copy(struct journal *j, sqlite3_blob **blob, uint32_t k, uint64_t *id, uint32_t *len)
{
	uint8_t p[RING_HEAD];
	int rc = *blob ? sqlite3_blob_reopen(*blob, k) : sqlite3_blob_open(j->db, "main", "ring", "body", k, 0, blob);

	if (rc == SQLITE_OK && sqlite3_blob_bytes(*blob) == RING_BODY)
		rc = sqlite3_blob_read(*blob, p, RING_HEAD, RING_ROOM);
	else
		rc = SQLITE_CORRUPT;
	if (rc != SQLITE_OK) {
		sqlite3_blob_close(*blob); /* may be unusable */
		*blob = NULL;
		return false;
	}
	return head_decode(p, k, id, len);
}

/* Which epoch is in row k? -EUCLEAN if that cannot be told. */
static int read_row(struct journal *j, sqlite3_stmt *s, sqlite3_blob **blob, uint32_t k, struct bc_error *err)
{
	const uint8_t *p = sqlite3_column_blob(s, 1);
	uint64_t id = 0, copy_id;
	uint32_t len = 0, copy_len;
	bool good = p && sqlite3_column_bytes(s, 1) == RING_HEAD && head_decode(p, k, &id, &len);

	if (!good || id > j->state.folded_upto) {
		bool copy = read_copy(j, blob, k, &copy_id, &copy_len);

		if (!good && !copy)
			return jdb_damaged(j, err, "ring row %u: neither copy of its head can be read", k);
		if (copy && (!good || copy_id > id)) {
			id = copy_id;
			len = copy_len;
		}
	}
	j->ring_id[k] = id;
	if (id <= j->state.folded_upto)
		return 0;
	if (jdb_held_add(j, id, k, 0, len))
		return bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	return 0;
}

int jdb_ring_read(struct journal *j, struct bc_error *err)
{
	sqlite3_stmt *s = j->stmt[STMT_RING_HEADS];
	sqlite3_blob *blob = NULL;
	uint64_t newest = 0;
	uint32_t k = 0;
	int rc = SQLITE_OK, code = 0;

	j->nring = ring_rows(&j->geo);
	j->ring_id = calloc(j->nring + 1, sizeof(j->ring_id[0]));
	if (!j->ring_id)
		return bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	for (; !code && (rc = sqlite3_step(s)) == SQLITE_ROW; k++) {
		if (k >= j->nring || sqlite3_column_int64(s, 0) != k)
			code = jdb_damaged(j, err, "ring row %u: %s", k,
					   k < j->nring ? "row is missing" : "row beyond the ring");
		else
			code = read_row(j, s, &blob, k, err);
		if (!code && j->ring_id[k] > newest) {
			newest = j->ring_id[k];
			j->ring_next = (k + 1) % j->nring;
		}
	}
	if (!code && rc != SQLITE_DONE)
		code = jdb_fail(j, rc, "cannot read its ring", err);
	else if (!code && k != j->nring)
		code = jdb_damaged(j, err, "ring rows are missing (%u of %u found)", k, j->nring);
	sqlite3_blob_close(blob);
	sqlite3_reset(s);
	return code;
}

const char *jdb_ring_check(struct journal *j, sqlite3_stmt *row, sqlite3_blob **blob, uint32_t k)
{
	const uint8_t *p = sqlite3_column_blob(row, 1);
	uint64_t id = 0, copy_id = 0;
	uint32_t len = 0, copy_len = 0;
	bool good = p && sqlite3_column_bytes(row, 1) == RING_HEAD && head_decode(p, k, &id, &len);
	bool copy = read_copy(j, blob, k, &copy_id, &copy_len);

	if (!good && !copy)
		return "neither copy of its head can be read";
	if ((!good || id <= j->state.folded_upto) && (!copy || copy_id <= j->state.folded_upto))
		return NULL; /* not in use: harmless */
	if (!good || !copy)
		return "a copy of its head is damaged";
	return id != copy_id || len != copy_len ? "the copies of its head differ" : NULL;
}

static int put(struct journal *j, uint32_t k, const uint8_t *head, const uint8_t *body)
{
	sqlite3_stmt *s = j->stmt[STMT_RING_PUT];
	int rc;

	sqlite3_bind_int64(s, 1, k);
	sqlite3_bind_blob(s, 2, head, RING_HEAD, SQLITE_STATIC);
	sqlite3_bind_blob(s, 3, body, RING_BODY, SQLITE_STATIC);
	rc = jdb_step_reset(s);
	/* An UPDATE of a row that is not there is a success to SQLite. */
	return rc == SQLITE_OK && sqlite3_changes(j->db) != 1 ? SQLITE_CORRUPT : rc;
}

bool jdb_ring_fits(const struct journal *j, const struct journal_epoch *e, size_t body)
{
	/* Without data an INSERT changes a leaf and rarely more. */
	return e->ninlines && body <= RING_ROOM && j->nring && j->ring_id[j->ring_next] <= j->state.folded_upto;
}

int jdb_ring_put(struct journal *j, uint64_t id, size_t len, uint8_t *body)
{
	uint32_t k = j->ring_next;
	uint8_t head[RING_HEAD];
	int rc;

	ring_encode(k, id, len, head, body);
	rc = put(j, k, head, body);
	if (rc == SQLITE_OK) {
		j->ring_id[k] = id;
		j->ring_next = k + 1 < j->nring ? k + 1 : 0;
		atomic_fetch_add_explicit(&j->ring_waiting, 1, memory_order_relaxed);
	}
	return rc;
}

int jdb_ring_clear(struct journal *j, uint32_t k)
{
	uint8_t head[RING_HEAD], body[RING_BODY];

	ring_encode(k, 0, 0, head, body);
	return put(j, k, head, body);
}

/* Asked for well before the ring is full: what is committed until the fold is done needs rows, too. */
bool journal_fold_wanted(struct journal *j)
{
	uint32_t n = atomic_load_explicit(&j->ring_waiting, memory_order_relaxed);

	return n > j->nring / 2 && n >= journal_fold_limits.start_ring;
}
