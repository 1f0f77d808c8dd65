/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * internal.h - the structures the engine's files share. Only files in src/engine include this.
 *
 * Lock order (outer first):
 *   volumes_lock (rwlock: the table of volumes; exclusive for moments only, nothing is waited for with it then. Reclaim
 *                and compaction hold it shared while they take lines from the map, so that no volume goes under them)
 *   volume.clean_lock (one cleaning run of a volume at a time; who holds it never waits for room in the cache)
 *   range locks  (range.h)
 *   epoch.committing (a flag under epoch.lock: who has set it commits, alone, and takes what follows)
 *   epoch.gate   (shared: changing line metadata; exclusive: sealing)
 *   stripe locks (lines.h), one at a time
 *   volume.row_lock (its row in the journal is being written)
 *   leaf locks: lines.free_lock, slots.lock, epoch.lock, idle.lock, why_lock, intent.lock, cleaner.lock, helpers.lock,
 *                buffer and journal internals
 * Taken with none of the above held: note_lock, background.lock, bounce.lock.
 * A volume's readahead.lock is taken before the pool's; with neither is another one taken.
 * threads_lock is held over opening, closing and freeing of channels only.
 * Nobody does I/O or waits for slots, buffers or a range while in epoch.gate; nobody waits for slots with a range
 * locked.
 */
#ifndef ENGINE_INTERNAL_H
#define ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "blkcache/buffer.h"
#include "blkcache/engine.h"
#include "blkcache/journal.h"
#include "identity.h"
#include "lines.h"
#include "policy.h"
#include "range.h"
#include "readahead.h"
#include "slots.h"
#include "util/crc.h"
#include "util/hist.h"
#include "util/log.h"
#include "util/mutate.h"
#include "util/waits.h"

#ifndef CACHE_MIN_RAM /* tests make smaller ones */
#define CACHE_MIN_RAM (1u << 20)
#endif
#define MAX_BLOCKS RANGE_MAX_BLOCKS /* blocks an unaligned request of VOLUME_MAX_IO touches */
#define ADD(counter, n) atomic_fetch_add_explicit(&(counter), (n), memory_order_relaxed)
#define SUB(counter, n) atomic_fetch_sub_explicit(&(counter), (n), memory_order_relaxed)
#define GET(counter) atomic_load_explicit(&(counter), memory_order_relaxed)

typedef _Atomic uint64_t counter;

/* ---- statistics of a volume (counters.h) ---- */
#define COUNTER_ATOMIC(name, help) counter name;
#define COUNTER_ERROR(name, help) counter err_##name;
#define COUNTER_HIST(name, help) struct hist name;
struct volume_counters {
	REQUEST_COUNTERS(COUNTER_ATOMIC)
	BYTE_COUNTERS(COUNTER_ATOMIC)
	ERROR_COUNTERS(COUNTER_ERROR)
	LATENCY_HISTOGRAMS(COUNTER_HIST)
};

/* ---- write-intent regions (intent.c) ---- */
#define REGION_SHIFT 26 /* 64 MiB */
#define CACHE_BLOCK_SHIFT 12
_Static_assert(1u << CACHE_BLOCK_SHIFT == CACHE_BLOCK, "the size of a block");

enum region_mark {
	REGION_UNMARKED,
	REGION_MARKED, /* durably */
	REGION_MARKING, /* somebody is making the mark durable */
	REGION_CLEARING /* somebody is taking it away, or looks whether he may */
};

struct region {
	_Atomic uint32_t lines; /* cached ones that begin in it (state.c) */
	counter last_epoch; /* that holds the cache's side of the last write */
	counter last_seq; /* backing write sequence of the last write */
	_Atomic uint32_t in_flight; /* writes that have begun, and keep a mark from being taken away */
	_Atomic uint8_t marked; /* enum region_mark; changes with intent.lock held */
};

struct intent {
	pthread_mutex_t lock; /* for moments; never held over I/O */
	pthread_cond_t changed; /* MARKING, CLEARING or row_busy is over */
	struct region *region; /* one more than nregions, for lines beyond the end of a device that shrank */
	uint32_t nregions;
	_Atomic uint32_t nmarked; /* regions that are not UNMARKED */
	_Atomic uint32_t holders; /* intent_hold(): writes to backing that go without a mark */
	_Atomic bool row_busy; /* somebody is writing the volume's row; changes with the lock held */
};

/* ---- what is read from the SSD goes to RAM as long as that pays (read.c) ---- */
struct promotion {
	counter reads; /* requests that read from slots */
	counter blocks; /* promoted */
	counter seen_blocks, seen_hits; /* at the last look */
	_Atomic bool sampled; /* only one in PROMOTE_SAMPLE is promoted */
};

struct volume {
	struct cache *cache;
	unsigned id;
	char name[JOURNAL_NAME_MAX];
	char *backing;
	struct bdev *bdev; /* NULL if opened without volumes */
	struct bdev_identity identity; /* as in the journal; row_lock, once the volume is in the table */
	uint64_t size;
	uint64_t nblocks; /* size rounded up to blocks */
	_Atomic int mode; /* a request takes it once and keeps to it (mode.c) */
	_Atomic uint64_t refs; /* volume.c */
	counter lines, dirty_lines, dirty_blocks; /* cached now */
	counter write_seq; /* completed writes to the backing device */
	counter flushed_seq; /* of them, durable there */
	uint64_t settle_seq; /* write_seq at the last look; the volume's helper's */
	pthread_mutex_t clean_lock; /* held over I/O, by who cleans this volume */
	uint32_t clean_hand; /* entry where the next batch begins; clean_lock */
	counter lost_blocks; /* met by the cleaner: dirty, and not readable any more */
	counter last_epoch; /* that holds an answered write of this volume, or makes a dirty block clean (P1) */
	_Atomic bool row_in_use; /* its row says that backing may be written; changes with intent.row_busy */
	pthread_mutex_t row_lock; /* its row is being written: one commit of the journal, no I/O of the backing device */
	bool row_says_in_use; /* what the row says, or is about to; row_lock */
	_Atomic bool backing_failed; /* a flush of it failed: none succeeds any more (P6) */
	struct volume_access access; /* access.c has its lock */
	struct intent intent;
	struct known known; /* of the backing device */
	struct readahead readahead;
	struct promotion promotion;
	struct volume_counters n;
};

/* ---- memory for I/O besides the buffers (bounce.c) ---- */
struct bounce {
	pthread_mutex_t lock;
	struct bounce_chunk *chunks;
};

/* ---- per-thread context (io.c) ---- */
enum block_source { FROM_RAM, FROM_SLOT, FROM_BACKING, FROM_BACKING_DONE /* within plan_read only */, NOT_WANTED };

struct block_plan {
	uint8_t source;
	bool cached; /* valid in the cache when looked up */
	bool dirty;
	uint16_t io; /* in io_thread.ios: the read it is part of */
	uint32_t slot, crc;
	struct buffer *buf; /* pinned: its data (RAM), or the place where it is read to; NULL: bounce memory */
	char *data;
};

struct io_thread {
	struct cache *cache;
	struct io_thread *next, *prev; /* cache->threads */
	struct bdev_channel *data_ch;
	struct bdev_channel **backing_ch; /* by volume id */
	unsigned nbacking;
	char *bounce_small, *bounce_large; /* io_bounce() */
	struct block_plan plan[MAX_BLOCKS];
	struct iovec iov[MAX_BLOCKS];
	struct bdev_io ios[MAX_BLOCKS];
	struct buffer *bufs[MAX_BLOCKS];
	uint32_t slots[MAX_BLOCKS];
	unsigned nplan; /* of the read whose reply is out */
	unsigned pieces; /* reads from slots that the last plan_read took */
	bool tidy; /* the blocks of the plan, tidy_first and on, lay scattered */
	uint64_t tidy_first, tidy_epoch; /* the open epoch when they were looked up */
	bool no_promotion; /* blocks read from slots go to bounce memory, not to RAM buffers */
};

/* ---- epochs (epoch.c) ---- */
struct u32vec {
	uint32_t *v;
	uint32_t n, cap;
};

struct epoch {
	pthread_rwlock_t gate;
	pthread_mutex_t lock; /* the vectors, ids, waiters */
	pthread_cond_t durable_cond;
	struct u32vec changed; /* entries owed to the open epoch */
	struct u32vec freed; /* slots it stops using */
	_Atomic uint32_t nchanged, nfreed; /* lengths of the two, for looks without the lock */
	_Atomic uint32_t nheld; /* slots of `freed` and `sealed_freed`: given up, but not free yet */
	struct journal_discard *discards;
	uint32_t ndiscards, discards_cap;
	counter opened_ns; /* when the open epoch was opened */
	counter open_id, durable_id; /* durable_id: highest epoch that survives power loss */
	counter data_upto; /* highest epoch durable in the data file too; written by the leader */
	uint32_t max_changes; /* entries: more are not collected in one epoch */
	uint32_t inline_blocks; /* carried by rows after data_upto; the leader's */
	bool committing; /* a leader is at work */
	/* the sealed epoch being committed; the leader's */
	char *records;
	size_t records_cap;
	struct u32vec sealed_changed, sealed_freed;
	char *inline_data;
	struct bdev_channel *flush_ch;
};

struct clean_batch;

struct cleaner {
	pthread_mutex_t lock; /* a leaf */
	pthread_cond_t freed;
	struct clean_batch *free; /* at most one is kept */
};

enum background_job { JOB_RECLAIM, JOB_MAINTAIN, JOB_CLEAN, JOB_COMPACT, JOBS };

struct background {
	pthread_t thread[JOBS];
	unsigned started;
	pthread_mutex_t lock;
	pthread_cond_t wake[JOBS];
	bool wanted[JOBS];
	bool stop;
};

/* ---- threads that wait for backing devices (helpers.c) ---- */
struct helper;

struct helpers {
	pthread_mutex_t lock; /* a leaf */
	pthread_cond_t wake, over;
	uint8_t asked[CACHE_MAX_VOLUMES + 1]; /* HELP_*, by volume id */
	bool busy[CACHE_MAX_VOLUMES + 1]; /* somebody is at it */
	uint16_t queue[CACHE_MAX_VOLUMES]; /* ids that are asked for and not busy */
	unsigned head, n;
	unsigned threads, idle;
	uint64_t taken_ns; /* when one last left the queue */
	struct helper *ended; /* to be joined */
	bool inited, stop;
};

/* ---- what is left for when nobody asks for anything (idle.c) ---- */
#define IDLE_RANGES 1024 /* a reader that finds room for some and not for others leaves many */

struct idle_range {
	unsigned volume;
	uint64_t first, end; /* blocks */
};

struct activity {
	uint64_t requests, written, read; /* bytes */
};

struct idle {
	_Atomic bool wanted; /* idle_run is */
	_Atomic bool quiet; /* it was, at the last look */
	counter requests, bytes; /* of clients, by then */
	counter compacted; /* bytes written when free space was last put together as far as it goes */
	unsigned looks; /* quiet ones in a row */
	_Atomic unsigned patience; /* how many there have to be: grows when runs are interrupted */
	pthread_mutex_t lock; /* the ranges */
	struct idle_range range[IDLE_RANGES]; /* to be tidied */
	_Atomic unsigned nranges;
};

struct tunables {
	counter clean_after_us, epoch_interval_us;
	counter dirty_high_percent;
	counter ram_bytes; /* at the next load */
	counter read_ahead; /* bytes */
	counter tidy_bytes; /* reads of at least so many; 0: none */
};

struct writelog;

struct cache {
	char *dir;
	int dir_fd, lock_fd;
	struct journal_geometry geo;
	struct journal *journal;
	struct bdev *data;
	struct buffer_pool *pool;
	struct buffer_client *buffers;
	struct lines lines;
	struct slots slots;
	struct range_table ranges;
	struct epoch epoch;
	struct policy policy;
	struct cleaner cleaner;
	struct background background;
	struct helpers help;
	struct idle idle;
	struct readahead_pool readahead;
	struct tunables tunables;
	uint64_t ram_bytes; /* that the pool has */
	_Atomic int default_mode;
	unsigned open_flags;
	bool read_only; /* its file system is: opened without volumes, to be looked at */
	const struct cache_shared *shared; /* while it is opened */
	struct writelog *log; /* survive.h; NULL: a dead process is not survived */
	const char *const *accepted; /* cache_open_accepting()'s, until it returns; NULL-terminated, or NULL */

	pthread_rwlock_t volumes_lock;
	struct volume *volume[CACHE_MAX_VOLUMES + 1]; /* by id */
	unsigned nvolumes;
	struct adding *adding; /* volume.c */
	_Atomic unsigned holds; /* cache_hold()s */

	counter dirty_lines, dirty_blocks;
	counter err_cache_write; /* those that were for no volume */
	counter discard_seq;
	counter slots_given; /* by epochs, since load: shows that room is being made */
	counter given_in_vain; /* slots_given when somebody gave up waiting for room (reclaim.c) */
	uint32_t alloc_max; /* buffers to ask for at once */
	counter last_log, unlogged; /* of cache_degrade */
	uint32_t slots_low, slots_high; /* reclaim below low, up to high */
	uint32_t write_piece; /* blocks a write may take at once */
	counter unsent; /* since the writer was last sent, in this epoch: slots taken; << 32: blocks that had one */
	_Atomic bool failed; /* P6: nothing is promised durable any more */
	_Atomic bool bypass_noted; /* bypass.h */
	uint64_t loads; /* of this cache so far, this one included once it is under way; bypass.h */
	_Atomic bool deleted; /* its data file, by somebody, while it is loaded */
	_Atomic bool degraded, stopping;
	_Atomic bool compact_wanted; /* somebody found no slots side by side */
	_Atomic int flushing;
	pthread_mutex_t note_lock; /* held while the note of a bypass is written, perhaps to a dying disk (bypass.h) */
	pthread_mutex_t why_lock; /* guards why. A leaf: status takes it, so nothing is waited for with it */
	char why[300];

	pthread_key_t io_key;
	pthread_mutex_t threads_lock;
	struct io_thread *threads;
	struct bounce bounce;
};

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* How many bytes of block `b` of the volume exist on the backing device (less than a block only for an odd-sized
 * volume's last). */
static inline uint32_t block_bytes(const struct volume *v, uint64_t b)
{
	uint64_t off = b * CACHE_BLOCK;

	return v->size - off < CACHE_BLOCK ? (uint32_t)(v->size - off) : CACHE_BLOCK;
}

/* The region that a line begins in. */
static inline struct region *region_of_line(const struct volume *v, uint64_t line)
{
	uint64_t r = line >> (REGION_SHIFT - CACHE_BLOCK_SHIFT - v->cache->lines.bpl_shift);

	return &v->intent.region[r < v->intent.nregions ? r : v->intent.nregions];
}

static inline bool mode_writes_back(int mode)
{
	return mode == MODE_WB || mode == MODE_WO;
}
static inline bool mode_fills(int mode)
{
	return mode == MODE_WT || mode == MODE_WB || mode == MODE_WA || mode == MODE_WI;
}

/* ---- state.c: changing a line's state; chain locked, in epoch.gate (shared). Keeps the counters and owes the record.
 * ---- */

/* Sets the masks of an entry of volume v and does everything that follows from it. */
void line_update(struct cache *c, struct volume *v, uint32_t e, uint16_t valid, uint16_t dirty, uint16_t fresh);
/* Drops the blocks of `mask` (slots go to the epoch); removes the entry if nothing is left. */
void line_drop(struct cache *c, struct volume *v, struct line_chain *ch, uint32_t e, uint16_t mask);
/* Points block b to a new slot (its old one, if valid, goes to the epoch). The masks are the caller's to set. */
void line_move_block(struct cache *c, uint32_t e, unsigned b, uint32_t slot, uint32_t crc);
/* Drops n blocks from `first` on, whatever their state. Takes gate and locks itself; the range is locked by the caller.
 */
void blocks_drop(struct cache *c, struct volume *v, uint64_t first, uint64_t n);
void blocks_drop_clean(struct cache *c, struct volume *v, uint64_t first, uint64_t n); /* those that are not dirty */

/* ---- epoch.c ---- */
int epoch_init(struct epoch *ep, struct cache *c);
void epoch_destroy(struct epoch *ep);
void epoch_enter(struct cache *c); /* before changing metadata; waits if the open epoch is full */
void epoch_leave(struct cache *c);
void epoch_owe(struct cache *c, uint32_t e); /* in the gate, chain locked, CHANGED just set */
void epoch_free_slot(struct cache *c, uint32_t slot); /* in the gate */
int epoch_add_discard(struct cache *c, const struct journal_discard *d); /* in the gate */
/* The epoch that changes made now belong to; stable while in the gate. */
static inline uint64_t epoch_open_id(struct cache *c)
{
	return atomic_load_explicit(&c->epoch.open_id, memory_order_acquire);
}
/* A third of the slots there are for writing is held by epochs that are not durable: they should be back before the
 * next third is used up (epoch_enter). */
static inline bool epoch_holds_much(struct cache *c)
{
	return GET(c->epoch.nheld) > GET(c->slots.nfree) / 2;
}
/* At the rate of the open epoch so far, that will be before its interval is over. */
bool epoch_ends_early(struct cache *c);
/* Changes made up to this epoch are durable: the open one's id if there are none in it. */
uint64_t epoch_durable_upto(struct cache *c);
/* Returns when epoch `id` and all before are durable; the caller may do the work for others. 0 or -EIO. */
int epoch_commit_to(struct cache *c, uint64_t id);
/* Makes every change whose caller has left the gate durable. full: also the data that rows carry reaches the data file.
 * 0 or -EIO. */
int epoch_commit(struct cache *c, bool full);
/* Writes what is dirty in RAM to the data file, and neither flushes nor commits. 0 or -EIO. */
int epoch_write_data(struct cache *c);

/* ---- io.c ---- */
int io_init(struct cache *c);
void io_destroy(struct cache *c);
struct io_thread *io_thread_get(struct cache *c); /* NULL: out of memory */
#define BOUNCE_SMALL 16u
/* The thread's memory for n blocks, aligned to pages. It is the same each time for up to BOUNCE_SMALL blocks, and for
 * more. */
static inline char *io_bounce(const struct io_thread *t, unsigned n)
{
	return n <= BOUNCE_SMALL ? t->bounce_small : t->bounce_large;
}
struct bdev_channel *io_backing(struct io_thread *t, struct volume *v); /* likewise */
void io_forget_volume(struct cache *c,
		      struct volume *v); /* closes all threads' channels to it; nothing may be using them */

/* ---- bounce.c ---- */
void bounce_init(struct bounce *p);
void bounce_destroy(struct bounce *p);
char *bounce_take(struct bounce *p); /* MAX_BLOCKS blocks; NULL: out of memory */
void bounce_give(struct bounce *p, char *slice);

/* ---- lookup.c ---- */
/* If all n blocks are in RAM: pins them in t->plan, without a lock unless something is changing there (lines_peek).
 * Needs no range lock: the map and the buffers change together under the chain's lock, and a buffer in memory is never
 * changed in place. */
bool plan_from_ram(struct io_thread *t, struct volume *v, uint64_t first, unsigned n);
/* Looks up n blocks from `first` on into t->plan: source RAM (pinned), SLOT or BACKING. Range locked. Returns how many
 * are cached. */
unsigned plan_lookup(struct io_thread *t, struct volume *v, uint64_t first, unsigned n);
/* Reads what is not in RAM to plan[].data, checks crcs; a clean block that is bad is dropped and read from backing
 * (P9). */
int plan_read(struct io_thread *t, struct volume *v, uint64_t first, unsigned n);
/* After the range was unlocked: drops the clean blocks that plan_read found bad. */
void plan_repair(struct io_thread *t, struct volume *v, uint64_t first, unsigned n);
void plan_release(struct io_thread *t, unsigned n); /* unpins all buffers of the plan */

/* ---- intent.c ---- */
int intent_init(struct volume *v);
void intent_destroy(struct volume *v);
/* Before writing to backing: the regions are marked, and the row says `in use`, durably on return. No lock that is held
 * over I/O if they are already. 0, or -errno and nothing to end. */
int intent_begin(struct volume *v, uint64_t off, uint64_t len);
/* `epoch` holds the cache's side of it, or a later one does. */
void intent_end(struct volume *v, uint64_t off, uint64_t len, uint64_t epoch);
/* The same without marks, for who has another way to tell recovery (clean.c, zero.c): the row says `in use` until
 * intent_release() and a flush. 0, or -errno and nothing to release. */
int intent_hold(struct volume *v);
/* By a holder with these blocks' ranges locked, right before it writes them: no witness is left among them, and the row
 * is young (identity.c). 0 or -EIO. */
int intent_forget(struct volume *v, uint64_t first, uint64_t n);
void intent_release(struct volume *v);
/* With a hold: the blocks are nothing to know the backing device by any more (witness.c), durably. 0 or -errno. */
int intent_forget(struct volume *v, uint64_t first, uint64_t n);
/* Takes marks away where that may be done. Flushes backing first if anything was written since the last flush; `all`:
 * a flush that failed earlier is an error also if nothing was. 0 or -errno. */
int intent_clear_idle(struct volume *v, bool all);
/* Nothing was written for a while: the row gets the backing device's present identity, exact until the next write
 * (P10). */
int intent_settle(struct volume *v);
bool intent_is_marked(const struct volume *v, uint64_t block);

/* ---- write.c / through.c ---- */
/* Puts the n whole blocks that a write of [off, off + len) results in into block_data[]: src, and at the edges what is
 * there now. Range locked; uses t->plan. */
int write_gather(struct io_thread *t, struct volume *v, const char *src, uint64_t off, uint32_t len, char **block_data);
/* *hits: blocks that were cached before, added to. */
int write_through_blocks(struct io_thread *t, struct volume *v, const char *src, uint64_t off, uint32_t len, int mode,
			 unsigned *hits);
int backing_flush(struct io_thread *t, struct volume *v); /* if anything was written there since the last */
int backing_flush_on(struct bdev_channel *ch, struct volume *v); /* likewise, on a channel to its backing device */

/* ---- zero.c ---- */
extern uint64_t zero_marked_max; /* bytes that are zeroed under a mark; seam for tests */

/* ---- read.c ---- */
/* Brings a range (at most VOLUME_MAX_IO) into the cache. 1 if something had to be read, 0 if all was there, -errno. */
int volume_fill(struct volume *v, uint64_t off, uint32_t len);

/* ---- tidy.c ---- */
/* After a read of n blocks that took `pieces` reads from slots: sets t->tidy if they should be moved together. */
void tidy_note(struct io_thread *t, unsigned n, unsigned pieces);
/* In the gate: the block's data, which is in buf, gets this slot; it stays dirty or clean as it was. False: it is not
 * in the plan's slot any more, or was written in the open epoch. */
bool block_move(struct cache *c, struct volume *v, uint64_t block, const struct block_plan *p, struct buffer *buf,
		uint32_t slot);
/* After the reply: does it, if nobody else wants the blocks at the moment. The plan still holds them. */
void tidy_after_read(struct io_thread *t, struct volume *v);
enum tidied {
	TIDIED, /* or there was nothing to do */
	TIDY_FULL, /* too few slots are free */
	TIDY_NO_RUN, /* they do not lie side by side */
	TIDY_NO_BUFFERS,
	TIDY_IN_USE
};
struct cold_slots;
/* Reads n blocks, as many as one may ask buffers for, and moves them together if they lie scattered. Blocks on the
 * backing device are left there. */
enum tidied tidy_range(struct io_thread *t, struct volume *v, uint64_t first, unsigned n, struct cold_slots *cold);

/* ---- compact.c ---- */
void compact_ask(struct cache *c); /* by who found no slots side by side */
/* Until there is enough room in large pieces, or no more to be had. idle: more of it, and only as long as idle_over()
 * says no. False: stopped before. */
bool compact_run(struct cache *c, bool idle);
extern bool compact_in_background; /* Seam for tests: false, compact_run and idle_run are called by hand */

/* ---- cold.c ---- */
/* Slots that background work has moved blocks to which were not in RAM: they are not to drive out what is. */
#define COLD_SLOTS 2048u
struct cold_slots {
	uint32_t slot[COLD_SLOTS + MAX_BLOCKS];
	unsigned n;
	unsigned moved; /* with those that were in RAM */
};
void cold_add(struct cold_slots *cold, uint32_t slot, bool was_in_ram);
/* If there are many, or `all`: what was moved is committed, and leaves RAM. 0 or -EIO. */
int cold_settle(struct cache *c, struct cold_slots *cold, bool all);

/* ---- idle.c ---- */
int idle_init(struct cache *c);
void idle_destroy(struct cache *c);
/* By maintenance, `ns` after the last look: if hardly anything was asked for since then, sends JOB_COMPACT to work. */
void idle_look(struct cache *c, uint64_t ns);
/* It is not quiet any more, or was not at the last look; or somebody flushes, or switched this off. */
bool idle_over(struct cache *c);
/* Puts free space together, then tidies what was remembered, until all is done or idle_over(). */
void idle_run(struct cache *c);
/* A sequential reader's blocks lie scattered and could not be moved now. Any thread, never waits; a hint. */
void idle_tidy_later(struct volume *v, uint64_t first, unsigned n);

/* ---- reclaim.c ---- */
/* Waits until n slots and entries might be free. -EIO when the cache has failed or stops, or when there was no room for
 * a minute. ROOM_ELSEWHERE: there is none because of the other volumes' dirty data, which cannot be cleaned. */
#define ROOM_ELSEWHERE 1
struct room_wait {
	uint64_t given, since; /* slots_given when last looked at, and when it changed; zero at the start */
};
int reclaim_wait(struct volume *v, uint32_t n, struct room_wait *w);
void reclaim_run(struct cache *c);

/* ---- clean.c ---- */
int cleaner_init(struct cache *c);
void cleaner_destroy(struct cache *c);
/* Cleans up to `budget` dirty lines of the volume in the background manner; returns how many, or -errno. *blocks: how
 * many blocks became clean. Waits for the volume's backing device, and for whoever else cleans this volume. */
long clean_volume(struct cache *c, struct volume *v, uint32_t budget, uint64_t *blocks);
/* The same for all volumes, one after the other. */
long cleaner_step(struct cache *c, uint32_t budget, uint64_t *blocks);

/* ---- background.c ---- */
int background_start(struct cache *c);
void background_stop(struct cache *c);
void background_kick(struct cache *c, enum background_job job);
/* As long as there are no background threads: what the journal has to do is done now, so that neither it nor the next
 * load's memory grows with how much is changed. Outside the gate. Never fails: what was not done is done later. */
void background_fold(struct cache *c);
bool background_stopping(struct cache *c);
void background_pause(struct cache *c, uint64_t us); /* until it is over, or everything stops */
/* So much is dirty, or so little free, that cleaning does not wait for its period. */
bool background_too_dirty(struct cache *c);

/* ---- helpers.c ---- */
#define HELP_CLEAN_ALL 1u /* what is dirty now */
#define HELP_CLEAN_ROOM 2u /* as long as background_too_dirty() */
#define HELP_SETTLE 4u /* flush, clear marks, and the row if nothing was written for a period */
int helpers_start(struct cache *c);
void helpers_stop(struct cache *c); /* waits for what is under way */
/* Does this for the volume, soon, in a thread that may wait for its backing device. Never waits; any thread. */
void helper_ask(struct cache *c, unsigned id, unsigned what);
/* Every half second or so: more threads, if those there are wait. */
void helpers_look(struct cache *c);
void clean_all_soon(struct cache *c); /* HELP_CLEAN_ALL for every volume that holds dirty data */

/* ---- volume.c ---- */
/*
 * volume.refs holds two counts. Users' references (open files, management) are in the lower half and make removal
 * refuse. The engine's own short ones are in the upper half, and removal waits for them. Each half has room for more
 * than there can be threads and open files.
 */
#define INTERNAL_REF (UINT64_C(1) << 32)
#define VOLUME_REMOVING UINT64_MAX
int volume_attach(struct cache *c, const struct journal_volume *jv, bool open_backing, bool claim, struct volume **out,
		  struct bc_error *err);
/* A reference for the engine's own short use: it does not make cache_volume_remove refuse, which waits for it. NULL:
 * there is none, or it is being removed. */
struct volume *volume_use(struct cache *c, unsigned id);
void volume_use_more(struct volume *v); /* another one, by who has one of any kind */
void volume_unuse(struct volume *v);
void volume_detach(struct volume *v); /* frees; not in the table any more */
struct patience;
/* The same, on another thread if the caller has patience: a device that does not answer is closed when it does. */
void volume_let_go(struct volume *v, const struct patience *patience);
/* Writes its row with the backing device's present identity: waits for that device. */
int volume_record(struct volume *v, bool in_use, struct bc_error *err);
/* Switches the mode and writes the row with it; what the row says of the backing device stays. */
int volume_record_mode(struct volume *v, enum cache_mode mode, struct bc_error *err);

/* ---- mode.c ---- */
/* The volume has left write-back: what is dirty has no reason to stay so. Never waits. */
void volume_clean_soon(struct volume *v);

/* ---- tunables.c ---- */
void tunables_init(struct cache *c);
int tunables_load(struct cache *c, const char *key, const char *value); /* from the journal */
/* Is it a size that `ram` takes, wherever the cache is loaded? */
int tunables_check_ram(uint64_t bytes, struct bc_error *err);

/* ---- ram.c ---- */
/* The most that buffers may be given on this machine, beside `metadata` bytes; *what and *all: whose limit, and how
 * much. */
uint64_t ram_limit(uint64_t metadata, const char **what, uint64_t *all);
int ram_check(uint64_t ram, uint64_t metadata, struct bc_error *err); /* -EINVAL: a load could not have it */
uint64_t ram_to_take(struct cache *c); /* once the settings are known */
int ram_setup(struct cache *c, struct bc_error *err); /* makes the pool */

/* ---- engine.c ---- */
/* Seam for tests: the spec of the data file's device instead of DIR/data; NULL. Set before any cache is opened. */
extern const char *cache_data_spec;
void access_load(struct cache *c, const char *key, const char *value); /* a setting, once the volumes are known */
int cache_setup_buffers(struct cache *c, struct bc_error *err); /* once the settings are known */
void cache_fail(struct cache *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void cache_degrade(struct cache *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- create.c ---- */
/* -ENAMETOOLONG with its message if SQLite cannot open a journal below the folder. */
int cache_check_path(const char *dir, struct bc_error *err);

/* ---- lock.c ---- */
/* brief: a moment's business with a stopped cache; others wait for it instead of giving up, and it does not mind a
 * read-only file system. */
int cache_lock_dir(const char *dir, bool brief, int inherited, int *dir_fd, int *lock_fd, struct bc_error *err);
bool cache_lock_is_read_only(int lock_fd); /* the folder can be read only */
/* Is there a data file at all? -ENOENT with what that means. */
int cache_check_data_file(const char *dir, struct bc_error *err);
int cache_check_writable(const struct cache *c, struct bc_error *err); /* -EROFS */

#endif
