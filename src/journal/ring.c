/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ring.c - small epochs with data, in a file of their own beside the database. Under the journal's `lock`, or pure.
 *
 * Why: a flush of one written block is the commit that is waited for most, and in SQLite it costs two log frames that
 * start and end within pages, through the page cache, and later two pages of checkpoint. Here it is one aligned write
 * past the page cache and one sync, about what a file system would need for the block alone.
 *
 *   JOURNAL_FILE "-ring": ring_rows() rows of RING_ROW bytes, all written when the journal is made
 *
 *   row:   head; the epoch as in encode.c (len bytes); zeros; a copy of the head in the last RING_HEAD bytes
 *   head:  0  u32 magic "BCR1"   4  u32 k, the row's number
 *          8  u64 id of the epoch, 0: none
 *         16  u64 id of the epoch before it, in the ring or in the table; 0: all before were in the snapshot
 *         24  u32 len            28  u32 crc32c of all before
 *
 * Rows are used in turn. A row is in use while its id is > ring_upto (of the state row) and not in the state row's
 * range of void ids: whatever it says is in the database otherwise, in the snapshot or merged into a row of the table
 * (fold.c). Nothing is written to free it. An epoch that does not fit, or whose turn comes at a row in use, becomes a
 * row of table `epoch`; recovery merges both by id.
 *
 * Power loss. A row is overwritten only after ring_upto has passed its old epoch in a commit of its own, so the old
 * one is not needed. One row is being written at a time, and its epoch counts for nobody before the sync. What may be
 * left of it, sector by sector: the old head, then the row is not in use; or the new head, then this is the newest
 * epoch, nobody was told that it is durable, and its checksums decide whether it is there. For heads are within a
 * sector each, and both are older or newer as a whole.
 *
 * The void range is how recovery drops epochs: some lie here and some in the table, and if only some of them went, the
 * rest could look like a whole history when the next recovery comes. So one transaction deletes those in the table and
 * makes the ids of all of them void; rows here are emptied after it, at the latest by the next opening, before there
 * can be another range.
 *
 * Damage. Of a row that is not whole it must be known whether it was in use, and if so, by which epoch: an old row is
 * harmless, an epoch <= durable_upto is damage that leaves no safe reading, a later one ends the prefix (load.c).
 * Gaps in the ids prove nothing, for an epoch without changes has no row. Hence the second copy of the head, at the
 * other end of the row and so on another page: one bad page does not hide the id. If the copies differ, the higher id
 * is the row's; the checksums in the epoch then fail if a part of it is older. Neither copy readable: it may have been
 * any epoch, the journal cannot be used.
 *
 * Each row names the epoch before it. If that is not there, something was lost that had been durable: say, the end of
 * SQLite's log, which may look like a torn commit (wal.c).
 *
 * A row whose head says "not in use" is believed without a look at the copy.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal/db.h"
#include "util/cow.h"
#include "util/crc.h"

#define RING_MAGIC 0x31524342u
#define RING_ROWS_MIN 64u
#define RING_ROWS_MAX 4096u /* 32 MiB */
#define CHUNK_ROWS 128u /* 1 MiB: what is read and written at once when all rows are */

unsigned journal_ring_max = RING_ROWS_MAX;
int (*journal_ring_step)(bool sync);

unsigned ring_rows(const struct journal_geometry *geo)
{
	unsigned n = geo->nslots / 16;

	n = n < RING_ROWS_MIN ? RING_ROWS_MIN : n;
	return n < journal_ring_max ? n : journal_ring_max;
}

struct head {
	uint64_t id, prev;
	uint32_t len;
};

static bool head_decode(const uint8_t *p, uint32_t k, struct head *h)
{
	h->id = get64(p + 8);
	h->prev = get64(p + 16);
	h->len = get32(p + 24);
	return get32(p) == RING_MAGIC && get32(p + 4) == k && crc32c(p, 28) == get32(p + 28) && h->len <= RING_ROOM &&
	       h->id <= INT64_MAX;
}

void ring_encode(uint32_t k, uint64_t id, uint64_t prev, size_t len, uint8_t *row)
{
	put32(row, RING_MAGIC);
	put32(row + 4, k);
	put64(row + 8, id);
	put64(row + 16, prev);
	put32(row + 24, (uint32_t)len);
	put32(row + 28, crc32c(row, 28));
	memset(row + RING_HEAD + len, 0, RING_ROOM - len);
	memcpy(row + RING_ROW - RING_HEAD, row, RING_HEAD);
}

/* ---- the file ---- */

/* Past the page cache where the file system can: aligned whole rows only. */
static int ring_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC | O_DIRECT, 0600);

	if (fd < 0 && errno == EINVAL)
		fd = open(path, flags | O_CLOEXEC, 0600);
	return fd;
}

static uint8_t *rows_alloc(unsigned n)
{
	return aligned_alloc(JOURNAL_PAGE, (size_t)n * RING_ROW);
}

static int rows_write(int fd, uint32_t k, unsigned n, const uint8_t *rows)
{
	int code = journal_ring_step ? journal_ring_step(false) : 0;
	ssize_t done;

	if (code)
		return code;
	done = pwrite(fd, rows, (size_t)n * RING_ROW, (off_t)k * RING_ROW);
	return done == (ssize_t)n * (ssize_t)RING_ROW ? 0 : done < 0 ? -errno : -ENOSPC;
}

static int rows_sync(int fd)
{
	int code = journal_ring_step ? journal_ring_step(true) : 0;

	return code ? code : fdatasync(fd) < 0 ? -errno : 0;
}

static int rows_read(int fd, uint32_t k, unsigned n, uint8_t *rows)
{
	ssize_t done = pread(fd, rows, (size_t)n * RING_ROW, (off_t)k * RING_ROW);

	return done == (ssize_t)n * (ssize_t)RING_ROW ? 0 : done < 0 ? -errno : -EUCLEAN;
}

static int ring_path(struct journal *j, char **path)
{
	return asprintf(path, "%s" RING_SUFFIX, j->path) < 0 ? -ENOMEM : 0;
}

int ring_create(const char *journal, const struct journal_geometry *geo, struct bc_error *err)
{
	uint32_t n = ring_rows(geo);
	uint8_t *rows = rows_alloc(CHUNK_ROWS);
	char *path = NULL;
	int fd, code = 0;

	if (!rows || asprintf(&path, "%s" RING_SUFFIX, journal) < 0) {
		free(rows);
		return bc_fail(err, -ENOMEM, "%s: out of memory", journal);
	}
	fd = ring_open(path, O_RDWR | O_CREAT | O_TRUNC);
	if (fd < 0)
		code = -errno;
	else
		cow_switch_off(fd);
	for (uint32_t k = 0, some; !code && k < n; k += some) {
		some = n - k < CHUNK_ROWS ? n - k : CHUNK_ROWS;
		for (uint32_t i = 0; i < some; i++)
			ring_encode(k + i, 0, 0, 0, rows + (size_t)i * RING_ROW);
		code = rows_write(fd, k, some, rows);
	}
	if (!code && !MUTATE(CREATE_SYNC))
		code = fsync(fd) < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	if (code)
		bc_fail(err, code, "%s: cannot be made: %s%s", path, strerror(-code),
			code == -ENOSPC ? "; free some space or make a smaller cache" : "");
	free(path);
	free(rows);
	return code;
}

/* ---- opening ---- */

static bool in_use(const struct journal *j, uint64_t id)
{
	const struct jdb_state *st = &j->state;

	return id > st->ring_upto && !(id >= st->void_from && id <= st->void_upto);
}

/* Which epoch is in row k? -EUCLEAN if that cannot be told. *keep: it is in use. *empty: it is void and still there. */
static int look_at_row(struct journal *j, uint32_t k, const uint8_t *row, bool *keep, bool *empty, struct bc_error *err)
{
	struct head h = { 0 }, copy_h;
	bool good = head_decode(row, k, &h);

	if (!good || h.id > j->state.ring_upto) {
		bool copy = head_decode(row + RING_ROW - RING_HEAD, k, &copy_h);

		if (!good && !copy)
			return jdb_damaged(j, err, "ring row %u: neither copy of its head can be read", k);
		if (copy && (!good || copy_h.id > h.id))
			h = copy_h;
	}
	j->ring_id[k] = h.id;
	if (!in_use(j, h.id)) {
		*empty |= h.id > j->state.ring_upto;
		if (h.id > j->state.ring_upto)
			j->ring_id[k] = 0;
		return 0;
	}
	*keep = true;
	memcpy(j->ring_meta + (size_t)k * RING_META, row + RING_HEAD, RING_META);
	if (jdb_held_add(j, h.id, k, 0, h.len))
		return bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
	j->held[j->held_end - 1].prev = h.prev;
	return 0;
}

/*
 * Looks at some rows. Those in use are written again with their own bytes, for the same reason as the log (wal.c): if
 * the last owner died of a failed sync, what is read may never have reached the disk (P6).
 */
static int look_at_chunk(struct journal *j, uint32_t k, unsigned n, uint8_t *rows, bool *wrote, struct bc_error *err)
{
	bool keep = false, empty = false;
	int code = rows_read(j->ring_fd, k, n, rows);

	if (code == -EUCLEAN)
		return jdb_damaged(j, err, "ring rows from %u on are missing", k);
	if (code)
		return bc_fail(err, code, "%s" RING_SUFFIX ": cannot read it: %s", j->path, strerror(-code));
	for (unsigned i = 0; !code && i < n; i++) {
		bool void_row = false;

		code = look_at_row(j, k + i, rows + (size_t)i * RING_ROW, &keep, &void_row, err);
		if (void_row)
			ring_encode(k + i, 0, 0, 0, rows + (size_t)i * RING_ROW);
		empty |= void_row;
	}
	if (code || j->read_only || !(keep || empty))
		return code;
	*wrote = true;
	code = rows_write(j->ring_fd, k, n, rows);
	return code ? bc_fail(err, code, "%s" RING_SUFFIX ": cannot be made durable: %s", j->path, strerror(-code)) : 0;
}

int jdb_ring_open(struct journal *j, struct bc_error *err)
{
	uint8_t *rows = rows_alloc(CHUNK_ROWS);
	char *path = NULL;
	uint64_t newest = 0;
	bool wrote = false;
	struct stat st;
	int code = 0;

	j->nring = ring_rows(&j->geo);
	j->ring_id = calloc(j->nring, sizeof(j->ring_id[0]));
	j->ring_meta = calloc(j->nring, RING_META);
	j->ring_buf = rows_alloc(1);
	if (!rows || !j->ring_id || !j->ring_meta || !j->ring_buf || ring_path(j, &path)) {
		code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
		goto out;
	}
	j->ring_fd = ring_open(path, j->read_only ? O_RDONLY : O_RDWR);
	if (j->ring_fd < 0 || fstat(j->ring_fd, &st) < 0)
		code = bc_fail(err, -errno, "%s: %s; it belongs to the journal: restore it", path, strerror(errno));
	else if (!S_ISREG(st.st_mode))
		code = bc_fail(err, -EINVAL, "%s: not a regular file", path);
	for (uint32_t k = 0; !code && k < j->nring; k += CHUNK_ROWS)
		code = look_at_chunk(j, k, j->nring - k < CHUNK_ROWS ? j->nring - k : CHUNK_ROWS, rows, &wrote, err);
	if (!code && wrote) {
		code = rows_sync(j->ring_fd);
		if (code)
			bc_fail(err, code, "%s: cannot be made durable: %s", path, strerror(-code));
	}
	for (uint32_t k = 0; !code && k < j->nring; k++) {
		if (j->ring_id[k] > newest) {
			newest = j->ring_id[k];
			j->ring_next = (k + 1) % j->nring;
		}
	}
out:
	free(path);
	free(rows);
	return code;
}

void jdb_ring_close(struct journal *j)
{
	if (j->ring_fd >= 0)
		close(j->ring_fd);
	free(j->ring_id);
	free(j->ring_meta);
	free(j->ring_buf);
}

const char *jdb_ring_check(struct journal *j, uint32_t k)
{
	struct head h = { 0 }, copy_h = { 0 };
	bool good, copy;

	if (rows_read(j->ring_fd, k, 1, j->ring_buf))
		return "cannot be read";
	good = head_decode(j->ring_buf, k, &h);
	copy = head_decode(j->ring_buf + RING_ROW - RING_HEAD, k, &copy_h);
	if (!good && !copy)
		return "neither copy of its head can be read";
	if ((!good || !in_use(j, h.id)) && (!copy || !in_use(j, copy_h.id)))
		return NULL; /* not in use: harmless */
	if (!good || !copy)
		return "a copy of its head is damaged";
	return h.id != copy_h.id || h.prev != copy_h.prev || h.len != copy_h.len ? "the copies of its head differ"
										 : NULL;
}

/* ---- use ---- */

bool jdb_ring_fits(const struct journal *j, const struct journal_epoch *e, size_t meta, size_t body)
{
	/* Without data, waiting is for no single block, and a row of the table takes as much room as it needs. */
	return e->ninlines && meta <= RING_META && body <= RING_ROOM && j->nring &&
	       j->ring_id[j->ring_next] <= j->state.ring_upto;
}

int jdb_ring_put(struct journal *j, const struct journal_epoch *e, size_t meta, size_t body)
{
	uint32_t k = j->ring_next;
	int code;

	epoch_encode(&j->geo, e, meta, j->ring_buf + RING_HEAD);
	/* its own entry in `held` is there already */
	ring_encode(k, e->id, j->held_end - j->held_first > 1 ? j->held[j->held_end - 2].id : 0, body, j->ring_buf);
	code = rows_write(j->ring_fd, k, 1, j->ring_buf);
	if (!code && !MUTATE(RING_SYNC))
		code = rows_sync(j->ring_fd);
	if (code)
		return code;
	memcpy(j->ring_meta + (size_t)k * RING_META, j->ring_buf + RING_HEAD, meta);
	j->ring_id[k] = e->id;
	j->ring_next = k + 1 < j->nring ? k + 1 : 0;
	atomic_fetch_add_explicit(&j->ring_waiting, 1, memory_order_relaxed);
	return 0;
}

int jdb_ring_data(struct journal *j, uint32_t k, size_t off, uint8_t *data)
{
	int code = rows_read(j->ring_fd, k, 1, j->ring_buf);

	if (!code && off > RING_ROOM - JOURNAL_PAGE)
		code = -EUCLEAN;
	if (!code)
		memcpy(data, j->ring_buf + RING_HEAD + off, JOURNAL_PAGE);
	return code;
}

int jdb_ring_clear(struct journal *j, const uint32_t *k, size_t n)
{
	int code = 0;

	for (size_t i = 0; !code && i < n; i++) {
		ring_encode(k[i], 0, 0, 0, j->ring_buf);
		code = rows_write(j->ring_fd, k[i], 1, j->ring_buf);
		j->ring_id[k[i]] = 0;
	}
	return code || !n ? code : rows_sync(j->ring_fd);
}

/* Asked for well before the ring is full: what is committed until its epochs are in the database needs rows, too. */
bool journal_fold_wanted(struct journal *j)
{
	uint32_t n = atomic_load_explicit(&j->ring_waiting, memory_order_relaxed);

	return n > j->nring / 2 && n >= journal_fold_limits.start_ring;
}
