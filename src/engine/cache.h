/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cache.h - the structures that the engine's rooms share, and what the files beside this one offer to all of them. Only
 * files in src/engine include this. A room's own header is its contract: durable/durable.h, request/request.h,
 * work/work.h, life/life.h; the tables are map/lines.h, slots.h and range.h.
 *
 * Lock order (outer first):
 *   volumes_lock (rwlock: the table of volumes; exclusive for moments only, nothing is waited for with it then. Reclaim
 *                and compaction hold it shared while they take lines from the map, so that no volume goes under them)
 *   volume.clean_lock (one cleaning run of a volume at a time; who holds it never waits for room in the cache)
 *   range locks  (range.h)
 *   epoch.committing (a flag under epoch.lock: only the thread that set it may commit or take the locks below)
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
#ifndef ENGINE_CACHE_H
#define ENGINE_CACHE_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "blkcache/buffer.h"
#include "blkcache/engine.h"
#include "blkcache/journal.h"
#include "engine/map/lines.h"
#include "engine/map/range.h"
#include "engine/map/slots.h"
#include "engine/policy/evict.h"
#include "engine/policy/space.h"
#include "engine/readahead.h"
#include "util/crc.h"
#include "util/hist.h"
#include "util/log.h"
#include "util/mutate.h"
#include "util/waits.h"

#ifndef CACHE_MIN_RAM /* tests make smaller ones */
#define CACHE_MIN_RAM (1u << 20)
#endif
#define MAX_BLOCKS RANGE_MAX_BLOCKS /* blocks an unaligned request of VOLUME_MAX_IO touches */
#define ctr_add(counter, n) atomic_fetch_add_explicit(&(counter), (n), memory_order_relaxed)
#define ctr_sub(counter, n) atomic_fetch_sub_explicit(&(counter), (n), memory_order_relaxed)
#define ctr_get(counter) atomic_load_explicit(&(counter), memory_order_relaxed)

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
	_Atomic uint32_t lines; /* cached ones that begin in it (durable/mapping.c) */
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

/* ---- what is known of a backing device (durable/identity.c) ---- */
struct known {
	bool there; /* false: the journal had nothing; it is learned at the end of the load */
	_Atomic bool local_clock; /* the device's modification time is by this machine's clock */
	char label[BDEV_LABEL_MAX];
	_Atomic int64_t noted_ns; /* CLOCK_REALTIME when the journal got it */
	/* Blocks of the backing device that were not written by us since, ascending. They are durably forgotten before
	 * one is (witness.c). */
	struct journal_witness witness[JOURNAL_MAX_WITNESSES];
	_Atomic uint32_t nwitness;
	struct journal_witness row[JOURNAL_MAX_WITNESSES]; /* those of them that the row is to have; row_lock */
	_Atomic bool name_lost; /* when last looked at: its name leads elsewhere */
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
	_Atomic uint64_t refs; /* volumes.c */
	counter lines, dirty_lines, dirty_blocks; /* cached now */
	counter write_seq; /* completed writes to the backing device */
	counter flushed_seq; /* of them, durable there */
	uint64_t settle_seq; /* write_seq at the last look; the volume's helper's */
	pthread_mutex_t clean_lock; /* held over I/O by the thread that cleans this volume */
	uint32_t clean_hand; /* entry where the next batch begins; clean_lock */
	counter lost_blocks; /* met by the cleaner: dirty, and not readable any more */
	counter last_epoch; /* that holds an answered write of this volume, or makes a dirty block clean (P1) */
	_Atomic bool row_in_use; /* its row says that backing may be written; changes with intent.row_busy */
	pthread_mutex_t
		row_lock; /* its row is being written: one commit of the journal, no I/O of the backing device */
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

/* ---- per-thread context (thread_ctx.c) ---- */
enum block_source { FROM_RAM, FROM_SLOT, FROM_BACKING, FROM_BACKING_DONE /* within plan_read only */, NOT_WANTED };

struct block_plan {
	uint8_t source;
	bool cached; /* valid in the cache when looked up */
	bool dirty;
	uint16_t io; /* in thread_ctx.ios: the read it is part of */
	uint32_t slot, crc;
	struct buffer *buf; /* pinned: its data (RAM), or the place where it is read to; NULL: bounce memory */
	char *data;
};

struct thread_ctx {
	struct cache *cache;
	struct thread_ctx *next, *prev; /* cache->threads */
	struct bdev_channel *data_ch;
	struct bdev_channel **backing_ch; /* by volume id */
	unsigned nbacking;
	char *bounce_small, *bounce_large; /* thread_ctx_bounce() */
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
	_Atomic uint32_t npending; /* slots of `freed` and `sealed_freed`: given up, but not free yet */
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
	void (*work)(struct cache *c, unsigned id, unsigned what);
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
	void (*after_read)(struct thread_ctx *t, struct volume *v); /* a reply is out, t->tidy is set: work/defrag.c */
	struct tunables tunables;
	uint64_t ram_bytes; /* that the pool has */
	_Atomic int default_mode;
	unsigned open_flags;
	bool read_only; /* its file system is: opened without volumes, to be looked at */
	const struct cache_shared *shared; /* while it is opened */
	struct writelog *log; /* durable/takeover_log.h; NULL: a dead process is not survived */
	const char *const *accepted; /* cache_open_accepting()'s, until it returns; NULL-terminated, or NULL */

	pthread_rwlock_t volumes_lock;
	struct volume *volume[CACHE_MAX_VOLUMES + 1]; /* by id */
	unsigned nvolumes;
	struct adding *adding; /* volumes.c */
	_Atomic unsigned holds; /* cache_hold()s */

	counter dirty_lines, dirty_blocks;
	counter err_cache_write; /* those that were for no volume */
	counter discard_seq;
	counter slots_given; /* by epochs, since load: shows that room is being made */
	counter given_in_vain; /* slots_given when somebody gave up waiting for room (reclaim.c) */
	counter last_log, unlogged; /* of cache_degrade */
	struct space_limits space; /* policy/space.h: all decisions about room */
	counter unsent; /* since the writer was last sent, in this epoch: slots taken; << 32: blocks that had one */
	_Atomic bool failed; /* P6: nothing is promised durable any more */
	void (*on_failed)(struct cache *c); /* called once, by the thread that found out; durable/takeover_log.h */
	_Atomic bool bypass_noted; /* bypass.h */
	uint64_t loads; /* of this cache so far, this one included once it is under way; bypass.h */
	_Atomic bool deleted; /* its data file, by somebody, while it is loaded */
	_Atomic bool degraded, stopping;
	_Atomic bool compact_wanted; /* somebody found no slots side by side */
	_Atomic int writing_back;
	pthread_mutex_t note_lock; /* held while the note of a bypass is written, perhaps to a dying disk (bypass.h) */
	pthread_mutex_t why_lock; /* guards why. A leaf: status takes it, so nothing is waited for with it */
	char why[300];

	pthread_key_t io_key;
	pthread_mutex_t threads_lock;
	struct thread_ctx *threads;
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

/* Is so little free that reclaim should run? */
static inline bool cache_room_is_low(const struct cache *c)
{
	return space_is_low(&c->space, ctr_get(c->slots.nfree), ctr_get(c->lines.nfree), c->lines.bpl_shift);
}

/* ---- what a mode does (M1-M6); the table is in mode.c ---- */
struct mode_traits {
	const char *name, *long_name;
	bool reads_cache; /* else only what is dirty is read from it */
	bool fills; /* what a read misses goes into the cache */
	bool writes_back;
	enum { MODE_NO_COPY, MODE_COPY_IF_CACHED /* all of it */, MODE_COPY } copies; /* of what goes to backing */
};
extern const struct mode_traits mode_traits[CACHE_MODE_COUNT];

/* ---- health.c ---- */
/* Final (P6): nothing is promised durable any more; the first reason is kept. Any thread, with any lock. */
void cache_fail(struct cache *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Something does not work, and volumes go on (P7). */
void cache_degrade(struct cache *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- volumes.c: the table of volumes ---- */
/*
 * volume.refs holds two counts. Users' references (open files, management) are in the lower half and make removal
 * refuse. The engine's own short ones are in the upper half, and removal waits for them. Each half has room for more
 * than there can be threads and open files.
 */
#define INTERNAL_REF (UINT64_C(1) << 32)
#define VOLUME_REMOVING UINT64_MAX
struct volume *volume_find_locked(struct cache *c, const char *name); /* volumes_lock held; no reference */
/* A reference for the engine's own short use, see volume_use_more(). NULL: there is none, or it is being removed. */
struct volume *volume_use(struct cache *c, unsigned id);

/* ---- jobs.c: threads with a period each ---- */
int jobs_start(struct cache *c, void *(*const mains[JOBS])(void *)); /* work/threads.c has the mains */
void jobs_stop(struct cache *c);
bool job_wait(struct cache *c, enum background_job job, uint64_t us); /* sleeps until kicked or for `us`. False: stop */
void job_kick(struct cache *c, enum background_job job);
/* As long as there are no background threads: what the journal has to do is done now, so that neither it nor the next
 * load's memory grows with how much is changed. Outside the gate. Never fails: what was not done is done later. */
void jobs_fold_journal(struct cache *c);
bool jobs_stopping(struct cache *c);
void job_pause(struct cache *c, uint64_t us); /* until it is over, or everything stops */

/* ---- helpers.c ---- */
#define HELP_CLEAN_ALL 1u /* what is dirty now */
#define HELP_CLEAN_ROOM 2u /* as long as too much is dirty */
#define HELP_SETTLE 4u /* flush, clear marks, and the row if nothing was written for a period */
/* work: what is done for a volume; work/threads.c. */
int helpers_start(struct cache *c, void (*work)(struct cache *c, unsigned id, unsigned what));
void helpers_stop(struct cache *c); /* waits for what is under way */
/* Does this for the volume, soon, in a thread that may wait for its backing device. Never waits; any thread. */
void helper_ask(struct cache *c, unsigned id, unsigned what);
/* Every half second or so: more threads, if those there are wait. */
void helpers_look(struct cache *c);

/* ---- mode.c ---- */
/* The volume has left write-back: what is dirty has no reason to stay so. Never waits. */
void volume_clean_soon(struct volume *v);

/* ---- room.c: waiting for room ---- */
/* Waits until n slots and entries might be free. -EIO when the cache has failed or stops, or when there was no room for
 * a minute. ROOM_ELSEWHERE: there is none because of the other volumes' dirty data, which cannot be cleaned. */
#define ROOM_ELSEWHERE 1
struct room_wait {
	uint64_t given, since; /* slots_given when last looked at, and when it changed; zero at the start */
};
int room_wait_for(struct volume *v, uint32_t n, struct room_wait *w);

/* ---- thread_ctx.c ---- */
int thread_ctx_init(struct cache *c);
void thread_ctx_destroy(struct cache *c);
struct thread_ctx *thread_ctx_get(struct cache *c); /* NULL: out of memory */
#define BOUNCE_SMALL 16u
/* The thread's memory for n blocks, aligned to pages. It is the same each time for up to BOUNCE_SMALL blocks, and for
 * more. */
static inline char *thread_ctx_bounce(const struct thread_ctx *t, unsigned n)
{
	return n <= BOUNCE_SMALL ? t->bounce_small : t->bounce_large;
}
struct bdev_channel *thread_ctx_backing(struct thread_ctx *t, struct volume *v); /* likewise */
void thread_ctx_forget_volume(struct cache *c,
			      struct volume *v); /* closes all threads' channels to it; nothing may be using them */

/* ---- bounce.c ---- */
void bounce_init(struct bounce *p);
void bounce_destroy(struct bounce *p);
char *bounce_take(struct bounce *p); /* MAX_BLOCKS blocks; NULL: out of memory */
void bounce_give(struct bounce *p, char *slice);

#endif
