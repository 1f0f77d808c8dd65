/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * space.c - room for what the journal must be able to write when the disk is full. Under the journal's `lock`.
 *
 * A disk that somebody else fills must not stop flushes, however long it stays full. Three files grow or are
 * overwritten: the ring was written whole when the journal was made, and is only overwritten. The other two:
 *
 * SQLite's log. It is as long as the reserve (jdb_wal_prepare()), and a transaction that would reach beyond it makes
 * the log start again from its beginning first, by a checkpoint (jdb_log_room()). So the log never grows. The largest
 * transaction, one epoch at JOURNAL_EPOCH_BYTES, fits in the reserve as a whole. (A load that found no space for all of
 * the reserve makes do with what it got.)
 *
 * The database. All its pages have blocks of the disk (jdb_allocate_pages()): SQLite leaves holes where pages were
 * never written, and a checkpoint that meets one needs space. *Room* is its free pages and those that the file has
 * behind its last page. Before room falls below what the largest epoch takes, the file is made longer, a piece at a
 * time (SQLITE_FCNTL_CHUNK_SIZE and SIZE_HINT: SQLite's own way, which its truncation knows). If that fails the journal
 * is *low*:
 *
 *   - journal_is_low() tells the engine to commit full epochs only: they take 24 bytes a record instead of a page a
 *     block, and make everything before them durable in the data file;
 *   - journal_commit() folds, before it commits, whatever that allows: folding overwrites snapshot rows in place and
 *     frees the epochs' pages. Folding itself takes no page.
 *
 * So before each commit there is the room that the journal was made with (create.c), less the one epoch that came since
 * the last fold. It goes on like that, slower, until somebody makes space.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal/db.h"
#include "util/log.h"

#define CHUNK (1 << 20) /* the database grows by so much */
#define MARGIN                                                                                                         \
	320u /* pages: one epoch with in-line data, one merge of the ring, marks, rows of volumes and settings         \
	      */

unsigned journal_low_at;

uint64_t journal_epoch_bytes(const struct journal_geometry *geo)
{
	unsigned bpl = geo->blocks_per_line;
	uint64_t all = (uint64_t)geo->nlines * (12 + (bpl > 1 ? 6 : 0) + 8 * bpl);

	return all < JOURNAL_EPOCH_BYTES ? all : JOURNAL_EPOCH_BYTES;
}

static uint64_t low_mark(const struct journal *j)
{
	return journal_epoch_bytes(&j->geo) / JOURNAL_PAGE + MARGIN;
}

static int64_t query(struct journal *j, enum jdb_stmt stmt)
{
	sqlite3_stmt *s = j->stmt[stmt];
	int64_t v = sqlite3_step(s) == SQLITE_ROW ? sqlite3_column_int64(s, 0) : -1;

	sqlite3_reset(s);
	return v;
}

/* Pages behind the database's last one that the file has. */
static uint64_t pages_behind(struct journal *j, uint64_t pages)
{
	sqlite3_int64 size;
	sqlite3_file *f;

	if (sqlite3_file_control(j->db, "main", SQLITE_FCNTL_FILE_POINTER, &f) != SQLITE_OK ||
	    f->pMethods->xFileSize(f, &size) != SQLITE_OK || (uint64_t)size / JOURNAL_PAGE < pages)
		return 0;
	return (uint64_t)size / JOURNAL_PAGE - pages;
}

void jdb_room_update(struct journal *j)
{
	uint64_t mark = low_mark(j), room, pages;
	int64_t free, n;

	if (!j->grows)
		return;
	free = query(j, STMT_FREE_PAGES);
	n = query(j, STMT_PAGES);
	if (free < 0 || n < 0)
		return; /* the next commit will meet what is wrong */
	pages = (uint64_t)n;
	room = (uint64_t)free + pages_behind(j, pages);
	if (room < mark) {
		sqlite3_int64 size = (sqlite3_int64)((pages + mark - (uint64_t)free) * JOURNAL_PAGE);

		if (sqlite3_file_control(j->db, "main", SQLITE_FCNTL_SIZE_HINT, &size) == SQLITE_OK)
			room = (uint64_t)free + pages_behind(j, pages);
	}
	j->room = room;
	if (room < mark && !atomic_exchange(&j->low, true))
		log_warn("%s: the disk has no space for it to grow: flushes go on in the space that it has, slower; "
			 "free "
			 "some",
			 j->path);
	else if (room >= mark && atomic_exchange(&j->low, false))
		log_info("%s: has room again", j->path);
}

/* A row takes whole pages besides its own part of one, and may split pages of the table's tree. */
void jdb_room_used(struct journal *j, size_t bytes)
{
	uint64_t pages = bytes / JOURNAL_PAGE + 4;

	j->room = j->room > pages ? j->room - pages : 0;
	if (j->room < low_mark(j))
		jdb_room_update(j);
}

void jdb_room_init(struct journal *j)
{
	int chunk = CHUNK;

	if (j->read_only)
		return;
	/* a VFS that knows no such thing (in tests) is left to grow as it can */
	j->grows = sqlite3_file_control(j->db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk) == SQLITE_OK;
}

void jdb_log_room(struct journal *j, size_t frames)
{
	uint64_t reserve = j->log_reserved < WAL_RESERVE ? j->log_reserved : WAL_RESERVE;
	size_t limit = (size_t)(reserve / (JOURNAL_PAGE + 24));

	if (journal_wal_reserve < WAL_RESERVE)
		limit = WAL_HARD_FRAMES; /* tests that have none */
	/* a failure other than a full disk fails what comes next */
	if (j->wal_frames && (size_t)j->wal_frames + frames > limit)
		jdb_checkpoint(j, NULL);
}

int jdb_allocate_pages(struct journal *j)
{
	struct stat st;
	int fd = open(j->path, O_RDWR | O_CLOEXEC), code = 0;

	if (fd < 0 || fstat(fd, &st) < 0)
		code = -errno;
	else if ((uint64_t)st.st_blocks * 512 < (uint64_t)st.st_size && fallocate(fd, 0, 0, st.st_size) < 0)
		code = errno == EOPNOTSUPP ? 0 : -errno;
	j->pages_fd = fd; /* closing it would drop the locks that SQLite has on the file (fcntl(2)) */
	return code;
}

bool journal_is_low(struct journal *j)
{
	return atomic_load_explicit(&j->low, memory_order_relaxed) ||
	       (journal_low_at && atomic_load_explicit(&j->epochs_held, memory_order_relaxed) >= journal_low_at);
}
