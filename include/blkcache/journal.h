/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * journal.h - the durable metadata of a cache: which block of which volume lies in which slot of the data file.
 *
 * The journal is a SQLite database (DIR/journal.db) that one process opens with one connection. It is the authority
 * (the data file is only trusted where the journal points, and then only if the crc fits). The engine tells it
 * *epochs*: sets of lines whose state changed together. An epoch is applied as a whole or not at all, and epochs apply
 * in order (P2).
 *
 * Terms: a *slot* is a 4 KiB place in the data file. A *line* of a volume is line_size bytes = blocks_per_line blocks.
 * An *entry* is a row of the engine's line table (0 .. nlines-1); a record gives the whole state of one entry.
 *
 * All functions may be called from any thread; they take the journal's own mutex and block for the disk. -errno from
 * SQLite failures: EIO, ENOSPC, ... After a failed commit the journal is *failed*: every later commit returns -EIO
 * (P6).
 */
#ifndef BLKCACHE_JOURNAL_H
#define BLKCACHE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blkcache/bdev.h"
#include "blkcache/error.h"

#define JOURNAL_FILE "journal.db"
#define JOURNAL_MAX_BLOCKS 16 /* blocks per line at most */
#define JOURNAL_NAME_MAX 128 /* volume name, bytes with the NUL */

struct journal;

struct journal_geometry {
	uint8_t uuid[16];
	uint64_t size_bytes; /* of the data file: nslots * 4096 */
	uint32_t line_size; /* bytes */
	uint32_t blocks_per_line; /* line_size / 4096 */
	uint32_t nlines; /* entries */
	uint32_t nslots;
};

struct journal_block {
	uint32_t slot;
	uint32_t crc; /* crc32c of the 4 KiB */
};

/* The state of one entry. Arrays of these have a stride of journal_line_stride(blocks_per_line). */
struct journal_line {
	uint64_t line; /* line number in the volume (offset / line_size), < 2^48 */
	uint32_t entry;
	uint16_t volume; /* volume id, 1.. ; 0: the entry is free (all else but `entry` is ignored) */
	uint16_t valid, dirty; /* a bit per block; dirty implies valid */
	uint16_t fresh; /* blocks whose data this epoch makes durable (only those are checked at recovery); 0 in
			   snapshots */
	uint32_t reserved;
	struct journal_block blk[]; /* blocks_per_line of them; those without their valid bit are ignored */
};

static inline size_t journal_line_stride(uint32_t blocks_per_line)
{
	return sizeof(struct journal_line) + blocks_per_line * sizeof(struct journal_block);
}

/* Data carried in the journal row instead of the data file (one sync for a small flush). */
struct journal_inline {
	uint32_t slot;
	uint32_t crc;
	const void *data; /* 4096 bytes */
};

/* A zeroed range. `done` false: the range is about to be zeroed on the backing device; recovery must do it again unless
 * a record with the same id and done = true follows. */
struct journal_discard {
	uint64_t id;
	uint64_t offset, length; /* bytes in the volume */
	uint16_t volume;
	bool done;
};

struct journal_epoch {
	uint64_t id; /* strictly ascending */
	/* Every epoch <= durable_upto is durable in the data file too; recovery checks the crcs only of later ones. */
	uint64_t durable_upto;
	const struct journal_line *lines; /* nlines records of the stride above */
	uint32_t nlines;
	const struct journal_inline *inlines; /* if any: every fresh block of the epoch is among them */
	uint32_t ninlines;
	const struct journal_discard *discards;
	uint32_t ndiscards;
};

/* Write-intent: clean lines in a marked region are not to be trusted after a crash (P4). */
struct journal_mark {
	uint16_t volume;
	uint32_t region;
};

/* What a block of the backing device holds that we have not written since. */
struct journal_witness {
	uint64_t block; /* of 4 KiB; the last one may be shorter, and counts as filled up with zeros */
	uint32_t crc; /* crc32c */
};

#define JOURNAL_MAX_WITNESSES 32

struct journal_volume {
	uint16_t id; /* 1 .. 4095 */
	char name[JOURNAL_NAME_MAX];
	const char *backing; /* spec; owned by the caller (put) or the journal (load) */
	char mode[4]; /* "wt" ... */
	struct bdev_identity identity; /* as last seen */
	bool in_use; /* set while loaded, cleared at a clean stop: the identity's mtime is only exact when false */
	/* What is known of the backing device beside its identity; written and read together with the above. NULL: is
	 * not known, as in journals of before. */
	const char *label; /* bdev_get_label(); owned like `backing` */
	int64_t noted_ns; /* CLOCK_REALTIME when this was written; backing was not written by us long after */
	const struct journal_witness *witness; /* owned like `backing` */
	uint32_t nwitness; /* at most JOURNAL_MAX_WITNESSES */
};

/* Creates DIR/journal.db. Refuses an existing one (-EEXIST). Durable on return (folder included). */
int journal_create(const char *dir, const struct journal_geometry *geo, struct bc_error *err);

/* read_only: for `check`: nothing is changed on disk (the WAL of a crashed owner is read where it lies). The message
 * tells a file that is no journal, a damaged one, or one of another format version apart. */
int journal_open(const char *dir, bool read_only, struct journal **out, struct bc_error *err);
void journal_close(struct journal *j); /* checkpoints; NULL is allowed */
void journal_get_geometry(const struct journal *j, struct journal_geometry *geo);

/* What recovery tells its caller, in this order: volumes and settings, verify, then (after the last epoch to keep is
 * known) marks, lines, redo, discards. A callback that returns nonzero ends the load with that error. Any may be NULL
 * but verify. None may call journal functions on this journal. That no (volume, line) comes twice is for `line` to
 * notice. */
struct journal_load_ops {
	int (*volume)(void *ctx, const struct journal_volume *v);
	int (*setting)(void *ctx, const char *key, const char *value);
	/* Is the data of these n slots in the data file as the crcs say? 1: yes. 0: no, for certain: this drops the
	 * epoch and all after it, unless later epochs superseded whatever is missing; then it is asked again about
	 * parts. -errno: it cannot be told, say because of a failed read; the load ends with that error and nothing is
	 * dropped. Blocks carried in the row are not asked about. */
	int (*verify)(void *ctx, const struct journal_block *blocks, uint32_t n);
	int (*mark)(void *ctx, const struct journal_mark *m);
	int (*line)(void *ctx, const struct journal_line *l); /* final state, entries ascending, free ones left out */
	int (*redo)(void *ctx, uint32_t slot,
		    const void *data); /* write these 4096 bytes to the slot, before the data file's next flush */
	int (*discard)(void *ctx, const struct journal_discard *d); /* not known to be done */
};

struct journal_load_report {
	uint64_t last_epoch; /* highest id kept, 0 if none: the next epoch's id must be higher than this */
	uint64_t next_id; /* a safe id for the next epoch (above every id ever used, dropped ones included) */
	uint64_t epochs_replayed, epochs_dropped;
	uint64_t lines, redo_blocks;
	char why_dropped[200]; /* empty if nothing was dropped */
};

/* Reads everything, once, before the first commit. Dropped epochs are deleted durably (not when read_only), as the last
 * thing: a load that returns an error has changed nothing durable. -EUCLEAN with a message for damage that leaves no
 * safe reading: records out of range, an undecodable row... Only the newest row of the ring may be undecodable: power
 * was lost while it was written, and nobody had been told that it is durable. */
int journal_load(struct journal *j, const struct journal_load_ops *ops, void *ctx, struct journal_load_report *report,
		 struct bc_error *err);

/*
 * Each is one durable transaction. An epoch whose numbers are out of range is refused with -EINVAL and nothing else
 * happens. What recovery relies on:
 *  - a slot that an epoch frees is not given out before that epoch and all before it are durable on both sides (for one
 * with in-line data its row is enough), whether or not a row says so in durable_upto yet;
 *  - a slot is overwritten in place only with data carried by an epoch that cannot be dropped any more: it and all
 * before it are durable;
 *  - a volume is deleted only after the epochs that free its lines are durable on both sides, and noted as such
 * (journal_note_durable), so that no recovery can drop them and bring its lines back.
 *
 * The id of a deleted volume may be used again, as often as one likes: what an earlier volume left behind under it
 * (discards that were not ended) does not count, as each volume is known with the first epoch that can name it.
 */
int journal_commit(struct journal *j, const struct journal_epoch *e, struct bc_error *err);
/* At a stop in order: epochs <= durable_upto need no check of the data file at the next load. One durable transaction.
 */
int journal_note_durable(struct journal *j, uint64_t durable_upto, struct bc_error *err);
int journal_marks_set(struct journal *j, const struct journal_mark *marks, size_t n, struct bc_error *err);
int journal_marks_clear(struct journal *j, const struct journal_mark *marks, size_t n, struct bc_error *err);
int journal_volume_put(struct journal *j, const struct journal_volume *v,
		       struct bc_error *err); /* insert or replace by id */
/* And its marks, discards and settings (those whose key begins with JOURNAL_VOLUME_KEY), in the same transaction. */
#define JOURNAL_VOLUME_KEY "volume.%u."
int journal_volume_delete(struct journal *j, uint16_t id, struct bc_error *err);
int journal_setting_put(struct journal *j, const char *key, const char *value, struct bc_error *err);
/* 1: value[] has it, cut off at len bytes with the NUL; 0: there is none; -errno. Also before the load. */
int journal_setting_get(struct journal *j, const char *key, char *value, size_t len, struct bc_error *err);

/* Background work, in steps of a few milliseconds, so that commits get their turn: folds epochs <= durable_upto into
 * snapshot rows, or merges them to free the ring, checkpoints the WAL. Returns 1 if there is more to do now, 0 if not,
 * -errno. Call it from a maintenance thread, about once a second. */
int journal_maintain(struct journal *j, uint64_t durable_upto, struct bc_error *err);

/* The records of one epoch take at most so many bytes: what was reserved for the largest one (space.c). Whoever
 * collects changes commits before there are more. */
#define JOURNAL_EPOCH_BYTES (300000u * 24u)
/* The same for this cache: all its lines, if they take less. */
uint64_t journal_epoch_bytes(const struct journal_geometry *geo);

/* The disk is full and the journal has little room left: epochs should be committed full, without in-line data. Never
 * blocks. */
bool journal_is_low(struct journal *j);

/* So much has been committed since that journal_maintain() should be called before its time, after making what was
 * committed durable in the data file. Never blocks. */
bool journal_fold_wanted(struct journal *j);

/* Damage that can be told from the database alone (PRAGMA integrity_check, row checksums): calls report() for each;
 * returns the count or -errno. */
int journal_check(struct journal *j, void (*report)(void *ctx, const char *what), void *ctx);

struct journal_stats {
	uint64_t commits, epochs_held, bytes_committed, folds, merges, checkpoints, wal_bytes;
};
void journal_get_stats(struct journal *j, struct journal_stats *s); /* never blocks */

#endif
