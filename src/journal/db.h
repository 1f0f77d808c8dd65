/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db.h - inside of the journal: the connection, its statements and its locks. Only files of src/journal (and the crash
 * tests, for journal_vfs_name) include it.
 *
 * Locks, in this order: `maint` (one maintenance step at a time; guards `fold`), then `lock` (the connection and
 * everything else). Functions whose name starts with jdb_ expect `lock` to be held, or a journal that nobody else can
 * see yet.
 *
 * Tables (every blob carries its own magic and crc32c, see encode.c):
 *   geometry(one, body)   one row, never changed
 *   state(one, durable_upto, ..., crc)   one row, see struct jdb_state
 *   volume(id, body)  setting(key, value, crc)  mark(key, crc)   key of a mark: volume << 32 | region
 *     settings whose keys begin with SINCE_KEY are the journal's own, see volume_rows.c
 *   identity(id, body)    what else is known of a volume's backing device; not in journals of before, made when opened
 *   epoch(id, body)       newest changes, one row per epoch
 *   snapshot(row, body)   all entries as of some epoch, one page per row, all rows present since creation
 *   discard(id, body)     pending discards whose epoch has been folded
 *
 * Beside the database lies the ring, a file of rows for small epochs, see ring.c.
 */
#ifndef JOURNAL_DB_H
#define JOURNAL_DB_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "blkcache/journal.h"
#include "journal/encode.h"
#include "util/mutate.h"

#define JOURNAL_APPLICATION_ID 0x626c6b63 /* "blkc" */
#define JOURNAL_FORMAT 4

/* The WAL is restarted from its beginning after a checkpoint; these bound how far it runs before one. Soft: at the next
 * maintenance step. A checkpoint of so many frames takes a few milliseconds. Hard: inside a commit, when maintenance
 * does not keep up. */
#define WAL_SOFT_FRAMES 1000
#define WAL_HARD_FRAMES 4000
/* Written with zeros when a journal is opened, so that commits neither extend the file nor meet a full disk (space.c).
 */
#define WAL_RESERVE ((size_t)(WAL_SOFT_FRAMES + 1000) * (JOURNAL_PAGE + 24))

enum jdb_stmt {
	STMT_BEGIN,
	STMT_COMMIT,
	STMT_FREE_PAGES,
	STMT_PAGES,
	STMT_EPOCH_PUT,
	STMT_EPOCH_IDS,
	STMT_EPOCH_DELETE_RANGE,
	STMT_EPOCH_DELETE_SOME,
	STMT_EPOCH_DELETE_FROM,
	STMT_STATE_GET,
	STMT_STATE_PUT,
	STMT_SNAPSHOT_ALL,
	STMT_DISCARD_ALL,
	STMT_DISCARD_PUT,
	STMT_DISCARD_DELETE,
	STMT_VOLUME_ALL,
	STMT_VOLUME_HAS,
	STMT_VOLUME_PUT,
	STMT_VOLUME_DELETE,
	STMT_IDENTITY_PUT,
	STMT_IDENTITY_DELETE,
	STMT_SETTING_ALL,
	STMT_SETTING_GET,
	STMT_SETTING_PUT,
	STMT_SETTING_DELETE_VOLUME,
	STMT_SETTING_DELETE,
	STMT_MARK_ALL,
	STMT_MARK_PUT,
	STMT_MARK_DELETE,
	STMT_MARK_DELETE_VOLUME,
	STMT_COUNT
};

/* What outlives the epoch rows. */
struct jdb_state {
	uint64_t durable_upto; /* as in struct journal_epoch; never falls */
	uint64_t folded_upto; /* the snapshot holds every epoch up to here: rows of these count no more */
	uint64_t ring_upto; /* >= folded_upto: rows of the ring up to here count no more; those of the table do */
	uint64_t last_id; /* every id up to here may have been used */
	uint64_t void_from, void_upto; /* epochs that a recovery dropped: none of these counts; 1, 0: none */
};
_Static_assert(sizeof(struct jdb_state) == 8 * STATE_VALUES, "all of it is in the checksum");

struct held_epoch {
	uint64_t id;
	uint32_t row; /* in the ring, or RING_NONE */
	uint32_t meta, body; /* bytes, see encode.h */
	uint64_t prev; /* as a row of the ring says, at opening */
};

#define RING_NONE UINT32_MAX

/* A handle on the body of epochs in the table, reused from row to row. */
struct epoch_blobs {
	sqlite3_blob *epoch;
};

struct fold; /* fold.c */

struct journal {
	sqlite3 *db;
	pthread_mutex_t lock, maint;
	char *path;
	struct journal_geometry geo;
	bool read_only, loaded;
	bool failed; /* final (P6) */
	bool grows; /* space.c: the VFS can make the database longer */
	_Atomic bool low; /* it could not */
	uint64_t room; /* pages, at least */
	uint64_t log_reserved; /* bytes that SQLite's log had when it was opened: the reserve, or what there was space
				  for */
	int pages_fd; /* -1, or open until SQLite has closed the database */
	int wal_frames; /* since the WAL was last restarted; 0 once everything is checkpointed */
	struct jdb_state state;
	uint64_t last_id; /* last committed or seen */
	uint64_t since[JOURNAL_MAX_VOLUME + 1]; /* of each volume: the first epoch that can name it; 0: there is none
						 * with this id. Known from the load on */
	struct held_epoch *held; /* epochs in the database > folded_upto, ascending: held[held_first .. held_end). While
				  * a fold deletes, also those it has not come to */
	size_t held_first, held_end, held_size;
	size_t leftover; /* epoch rows <= folded_upto that a fold did not come to delete */
	int ring_fd; /* -1: not open */
	uint64_t *ring_id; /* of each ring row */
	uint8_t *ring_meta; /* RING_META bytes for each: the front of its epoch */
	uint8_t *ring_buf; /* one row, aligned */
	uint32_t nring, ring_next;
	_Atomic uint32_t ring_waiting; /* epochs in the ring that no fold was begun for */
	uint8_t *buf; /* scratch for one encoded row */
	size_t buf_size;
	sqlite3_stmt *stmt[STMT_COUNT];
	struct fold *fold;
	_Atomic uint64_t commits, epochs_held, bytes_committed, folds, merges, checkpoints, wal_bytes;
};

/* Seam for tests: the SQLite VFS that journals are opened with; NULL = SQLite's default. Set before any journal is
 * opened. */
extern const char *journal_vfs_name;

/* WAL_RESERVE, or less for tests that open many journals. */
extern size_t journal_wal_reserve;

/* Seam for tests: called before each write and sync of the ring; a negative errno is its failure. */
extern int (*journal_ring_step)(bool sync);

/* Seam for tests: a journal with at least so many epochs is low, as if the disk were full (space.c); 0: never. */
extern unsigned journal_low_at;

/* The ring's rows at most; like the reserve for tests, but also what creates a journal must know it. */
extern unsigned journal_ring_max;

/* When folding starts and how much a step does. Seam for tests: set before any journal is opened. */
extern struct journal_fold_limits {
	unsigned rows, read_epochs, delete_epochs; /* at most, per step */
	/* Folding starts when the fronts of foldable epoch rows exceed start_meta and an eighth of the snapshot (the
	 * more at once, the more records share a row); or their data exceeds start_body and an eighth of the data file,
	 * or 64 MiB; or there are so many that recovery would feel it. Merging starts when they fill half of the ring.
	 */
	uint64_t start_meta, start_body;
	unsigned start_epochs;
	unsigned start_ring; /* journal_fold_wanted() only then: a merge is a few syncs, too many for a small ring */
	uint64_t merge_meta; /* merged at most; more is folded */
	uint64_t memory; /* fronts read into memory for one fold; the rest is for the next one */
} journal_fold_limits;

/* Registers (once) and returns the name of a VFS over journal_vfs_name that cannot change anything on disk (rovfs.c).
 */
const char *journal_rovfs(void);

/* ---- db.c ---- */

extern const char jdb_schema[];
int jdb_errno(sqlite3 *db, int rc); /* SQLite result -> negative errno */
/* bc_fail() with the journal's path, `what` and SQLite's message. */
int jdb_fail(struct journal *j, int rc, const char *what, struct bc_error *err);
int jdb_damaged(struct journal *j, struct bc_error *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int jdb_step_reset(sqlite3_stmt *s); /* step, reset, clear bindings; SQLITE_OK for SQLITE_DONE */
int jdb_writable(struct journal *j, struct bc_error *err); /* -EIO if failed, -EROFS */
int jdb_begin(struct journal *j, struct bc_error *err); /* likewise */
/* Does the result mean that there is no space, and nothing else? A write was refused, so nothing was promised of it:
 * the disk or a quota is full, or a limit of file sizes is reached. */
bool jdb_no_space(struct journal *j, int rc);
/* Ends the transaction: rc SQLITE_OK commits, anything else rolls back. `fatal`: any failure makes the journal failed.
 * Otherwise only those after which a retry could lie do: all but a full disk. */
int jdb_end(struct journal *j, int rc, bool fatal, const char *what, struct bc_error *err);
int jdb_checkpoint(struct journal *j, struct bc_error *err);
int jdb_state_get(struct journal *j, struct jdb_state *st, struct bc_error *err);
int jdb_state_put(struct journal *j, const struct jdb_state *st); /* inside a transaction; SQLite result */
int jdb_reserve_buf(struct journal *j, size_t size); /* 0 or -ENOMEM */
int jdb_held_add(struct journal *j, uint64_t id, uint32_t row, size_t meta, size_t body);
void jdb_epoch_close(struct epoch_blobs *b);
/* Reads the first meta bytes of an epoch row (records, discards, inline table; not the inline data) and decodes them.
 * *mem is the caller's to free and ep points into it. -EBADMSG with *why if the row is damaged. */
int jdb_epoch_read(struct journal *j, struct epoch_blobs *b, const struct held_epoch *h, uint8_t **mem,
		   struct epoch_view *ep, size_t *body, const char **why);
/* Reads a page of in-line data, which begins at `off` of the epoch's row. 0 or -errno. */
int jdb_epoch_data(struct journal *j, struct epoch_blobs *b, const struct held_epoch *h, size_t off, uint8_t *data);

/* ---- wal.c ---- */

/* SQLite's log as the last owner left it: does what is in it prove that bytes of it were changed since? Changes
 * nothing. 0, -EUCLEAN (see wal.c), or -errno if it cannot be read. */
int jdb_wal_check(struct journal *j, struct bc_error *err);
/* Makes it durable as it is, and as long as the reserve. Before the first write through SQLite. */
int jdb_wal_prepare(struct journal *j, struct bc_error *err);

/* ---- space.c ---- */

void jdb_room_init(struct journal *j); /* SQLite has opened the database */
/* After free pages were taken or given back: sees to it that the largest epoch finds room, or sets `low`. */
void jdb_room_update(struct journal *j);
void jdb_room_used(struct journal *j, size_t bytes); /* by a new row: looks only if it may have become tight */
/* Before a transaction that may take so many frames of SQLite's log: they will be within its reserve. */
void jdb_log_room(struct journal *j, size_t frames);
/* Blocks of the disk for the holes that SQLite left in the database. With the exclusive lock on it. 0 or -errno. */
int jdb_allocate_pages(struct journal *j);

/* ---- ring.c ---- */

/* The ring's file of a journal that is being made; replaces one that is there. */
int ring_create(const char *journal, const struct journal_geometry *geo, struct bc_error *err);
/* Opens it and looks which epochs are there; those in use are added to held, in no order. */
int jdb_ring_open(struct journal *j, struct bc_error *err);
void jdb_ring_close(struct journal *j);
const char *jdb_ring_check(struct journal *j, uint32_t k); /* NULL or what is wrong with the heads of row k */
/* Is there a row for the epoch, whose encoded size is body, meta of it its front? */
bool jdb_ring_fits(const struct journal *j, const struct journal_epoch *e, size_t meta, size_t body);
/* Writes it to row ring_next; durable on return. 0 or -errno: then it is not known what is in the row (P6). */
int jdb_ring_put(struct journal *j, const struct journal_epoch *e, size_t meta, size_t body);
int jdb_ring_data(struct journal *j, uint32_t k, size_t off, uint8_t *data); /* a page of the epoch in row k */
int jdb_ring_clear(struct journal *j, const uint32_t *k, size_t n); /* empties these rows, durably */

/* ---- fold.c ---- */
void fold_free(struct fold *f);
/* The volume's discards count no more, also those that a fold has read already. `maint` and `lock` held. */
void fold_forget_volume(struct fold *f, uint16_t id);

/* ---- volume_rows.c ---- */
#define SINCE_KEY "volume-since-" /* and the id */
/* Takes up a setting of the journal's own. False: it is somebody else's. */
bool jdb_since_load(struct journal *j, const char *key, const char *value);
/* A discard that epoch `id` names: is it one of the volume that has the id now? */
static inline bool jdb_discard_counts(const struct journal *j, uint64_t id, const struct journal_discard *d)
{
	return !j->loaded || (d->volume <= JOURNAL_MAX_VOLUME && j->since[d->volume] && id >= j->since[d->volume]);
}

#endif
