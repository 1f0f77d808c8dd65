/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine.h - the cache: volumes, modes, the line map, flushing and cleaning. Knows devices, buffers and the journal;
 * does not know FUSE.
 *
 * One `struct cache` is one cache folder: DIR/data (slots), DIR/journal.db, DIR/lock. It serves any number of volumes.
 *
 * Threads: everything may be called from any thread. The I/O calls (volume_read, ...) block until they are done and are
 * meant to run on many worker threads at once; each thread that makes them gets its own channels, freed when the thread
 * ends. Management calls never wait for I/O of a volume unless they say so (P11).
 */
#ifndef BLKCACHE_ENGINE_H
#define BLKCACHE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "blkcache/bdev.h"
#include "blkcache/counters.h"
#include "blkcache/error.h"

#define CACHE_BLOCK 4096u /* bytes: unit of valid, dirty, checksum and slot */
#define CACHE_DATA_FILE "data"
#define CACHE_LOCK_FILE "lock"
#ifndef CACHE_MIN_SIZE /* tests make smaller ones */
#define CACHE_MIN_SIZE (1u << 20) /* bytes */
#endif
#define CACHE_MAX_VOLUMES 1024

struct cache;
struct volume;

enum cache_mode {
	CACHE_MODE_WT,
	CACHE_MODE_WB,
	CACHE_MODE_WA,
	CACHE_MODE_WI,
	CACHE_MODE_WO,
	CACHE_MODE_PT,
	CACHE_MODE_COUNT
};

/* "wt" <-> CACHE_MODE_WT. Parsing takes the short and the long name ("write-through"); -EINVAL. */
int cache_mode_parse(const char *text, enum cache_mode *mode);
const char *cache_mode_name(enum cache_mode mode); /* "wt" */
const char *cache_mode_long_name(enum cache_mode mode); /* "write-through" */

enum cache_state {
	CACHE_STATE_RUNNING,
	CACHE_STATE_DEGRADED,
	CACHE_STATE_FAILED,
	CACHE_STATE_FLUSHING,
	CACHE_STATE_STOPPING,
	CACHE_STATE_STOPPED
};
const char *cache_state_name(enum cache_state state);

/* ---- create, open, close ---- */

struct cache_create_params {
	uint64_t size_bytes; /* of the data file, rounded down to whole lines */
	uint32_t line_size; /* 4096 .. 65536, power of two; 0 = 4096 */
	enum cache_mode mode; /* default for volumes added without one */
	uint64_t ram_bytes; /* 0 = 64 MiB, or what this machine can give if that is less */
	bool force; /* replace an existing cache; refused (-EBUSY) if it is loaded, (-ENOTEMPTY) if it holds dirty data
		       or cannot be read well enough to know */
};

/* Makes DIR (if missing; its parent must exist), the preallocated data file and the journal. Undone on failure. Any old
 * cache is replaced only after everything else was checked. -EEXIST if there is a cache already; -ENOTEMPTY if the
 * folder holds something else. */
int cache_create(const char *dir, const struct cache_create_params *params, struct bc_error *err);

/* Can a volume get this name? 0, or -EINVAL with a message. */
int cache_check_volume_name(const char *name, struct bc_error *err);

/* True if DIR holds a cache (a journal file). */
bool cache_exists(const char *dir);

struct cache_open_report {
	bool clean_stop; /* the last owner ended it in order */
	uint64_t lines, dirty_lines, dirty_bytes; /* found */
	uint64_t epochs_replayed, epochs_dropped, redo_blocks;
	unsigned changed_volumes; /* whose backing device was not as it had been left */
	uint64_t dropped_clean_lines; /* of regions that were being written, or of volumes whose backing changed */
	char notes[1000]; /* sentences separated by newlines, for the user; may be empty */
};

#define CACHE_OPEN_NO_VOLUMES 0x1 /* do not open the backing devices (management of a stopped cache) */
#define CACHE_OPEN_BRIEF 0x2 /* nobody reads and writes volumes: little memory for buffers is enough */

/*
 * Takes the lock (-EBUSY with the owner's pid in the message), recovers, opens the backing devices, starts the
 * background threads. A volume whose backing is missing or changed while it has dirty lines makes the open fail with a
 * message that names it (P10).
 */
int cache_open(const char *dir, unsigned flags, struct cache **out, struct cache_open_report *report,
	       struct bc_error *err);

/*
 * The same, with a list (ended by NULL) of volumes whose backing device, changed or not, the user vouches for: where it
 * has its old size, clean lines are dropped and dirty ones kept, to be written over it (P8: nothing is lost that was
 * written to the volume). -ENOENT for an unknown name.
 */
int cache_open_accepting(const char *dir, unsigned flags, const char *const *accepted, struct cache **out,
			 struct cache_open_report *report, struct bc_error *err);

/*
 * Memory (memfds, empty at first) that outlives the process, for another one to go on in its place: the RAM buffers,
 * and a log of what changed since the last commit. Their descriptors are borrowed until cache_close().
 */
struct cache_shared {
	int frames_fd, log_fd;
	int lock_fd; /* DIR/lock, opened before the processes were forked: it stays locked between one and the next
			(P10). 0: none */
	bool takeover; /* a process that had this memory died, and all it had answered must be found again */
};

/* The same (accepted may be NULL), with such memory. A takeover that would lose something fails (-EUCLEAN, -EIO), as
 * does one that comes too early
 * (-EBUSY: the dead process's I/O has not ended; try again). */
int cache_open_shared(const char *dir, unsigned flags, const char *const *accepted, const struct cache_shared *shared,
		      struct cache **out, struct cache_open_report *report, struct bc_error *err);

/*
 * Locks in memory what I/O goes through: the RAM buffers, the line map and the slots, as far as the limit of locked
 * memory allows. For a process that has not locked all it maps (mlockall). *locked, *all: bytes.
 */
void cache_lock_memory(struct cache *c, uint64_t *locked, uint64_t *all);

/*
 * Ends it: no I/O may be under way. Everything answered is made durable in the cache first (dirty lines stay dirty:
 * clean with cache_write_back before, if wanted). 0, or the error that kept something from becoming durable; it is
 * closed in any case.
 */
int cache_close(struct cache *c, struct bc_error *err);
/* The same; *durable becomes true when what was answered is durable. What comes after may wait for backing devices. */
int cache_close_telling(struct cache *c, _Atomic bool *durable, struct bc_error *err);

/* Somebody uses the cache who may not be done when everybody is to end: cache_close() waits for the release, after it
 * has made durable what was answered. */
void cache_hold(struct cache *c);
void cache_release(struct cache *c);

/* ---- volumes ---- */

/* Registers a volume; live. name: 1..127 bytes, no '/', no control characters, not "." or "..". backing: spec; relative
 * paths are made absolute. mode CACHE_MODE_COUNT = the cache's default. -EEXIST name or backing already there; -EBUSY
 * backing claimed elsewhere. */
int cache_volume_add(struct cache *c, const char *name, const char *backing, enum cache_mode mode,
		     struct bc_error *err);

/* Writes its dirty data to the backing device (waits for it), drops its lines and forgets it. discard_dirty: drops
 * dirty data instead. -EBUSY while volume_get references are held (an open file). */
int cache_volume_remove(struct cache *c, const char *name, bool discard_dirty, struct bc_error *err);

struct patience; /* util/patience.h */
/*
 * The same for callers who may have enough of waiting: for a backing device to open or to close, for dirty data to be
 * written out. -ETIMEDOUT or -EINTR: nothing was added; the volume stays and goes on working.
 */
int cache_volume_add_patiently(struct cache *c, const char *name, const char *backing, enum cache_mode mode,
			       const struct patience *patience, struct bc_error *err);
int cache_volume_remove_patiently(struct cache *c, const char *name, bool discard_dirty,
				  const struct patience *patience, struct bc_error *err);

/* Counted reference, or NULL. volume_put when done; volume_remove refuses meanwhile. */
struct volume *cache_volume_get(struct cache *c, const char *name);
struct volume *cache_volume_get_id(struct cache *c, unsigned id);
struct volume *volume_ref(struct volume *v);
/* Another reference, by who has one, for work on the volume: it does not make cache_volume_remove refuse, which waits
 * for its end. */
void volume_use_more(struct volume *v);
void volume_unuse(struct volume *v);
void volume_put(struct volume *v);

/* Calls fn for every volume, in id order, with a reference held; stops at nonzero and returns it. fn may not add or
 * remove volumes. */
int cache_volume_foreach(struct cache *c, int (*fn)(struct volume *v, void *ctx), void *ctx);

unsigned volume_id(const struct volume *v); /* 1.., stable over loads */
const char *volume_name(const struct volume *v);
const char *volume_backing(const struct volume *v); /* spec */
uint64_t volume_size(const struct volume *v); /* bytes */
uint64_t volume_changes(struct volume *v); /* grows with every write and discard since load; never waits */
enum cache_mode volume_mode(const struct volume *v);
/* Live switch, kept in the journal. To wi, wa, wt or pt from wb/wo nothing is lost: dirty lines stay until cleaned.
 * Requests under way go on in the mode they began with; waits neither for them nor for cleaning. */
int volume_set_mode(struct volume *v, enum cache_mode mode, struct bc_error *err);

/* Owner, group and mode of the volume's file. Set ones are durable on return, and gone with the volume. Not for any
 * decision here: whoever shows volumes as files asks. */
struct volume_access {
	bool set; /* else nobody has, and the rest means nothing */
	uint32_t mode, uid, gid; /* mode: permission bits */
};
void volume_get_access(struct volume *v, struct volume_access *a); /* never waits */
int volume_set_access(struct volume *v, const struct volume_access *a,
		      struct bc_error *err); /* nothing changed if not 0 */

/* ---- I/O. off + len beyond the volume: -EINVAL. Any alignment. ---- */

/* The answer to a read: up to VOLUME_MAX_IOV pieces that point into pinned RAM buffers or the calling thread's own
 * memory. */
#define VOLUME_MAX_IO (1u << 20) /* bytes per call at most */
#define VOLUME_MAX_IOV (VOLUME_MAX_IO / CACHE_BLOCK + 2)

struct volume_reply {
	struct iovec iov[VOLUME_MAX_IOV + 1]; /* iov[0] is left free for the caller's header; data starts at iov[1] */
	int iovcnt; /* data pieces, not counting iov[0] */
	void *priv; /* the engine's */
};

/*
 * What a thread that makes I/O calls needs of memory, made before it exists: a pool of threads then knows before it
 * takes work whether another thread can be had. NULL: out of memory. The new thread begins with cache_worker_begin(),
 * and what it began with is freed when it ends; what never came to that is freed by cache_worker_drop(). A thread
 * without it gets its own at its first call, which may fail with -ENOMEM.
 */
struct cache_worker;
struct cache_worker *cache_worker_make(struct cache *c);
int cache_worker_begin(struct cache_worker *w); /* -ENOMEM: dropped */
void cache_worker_drop(struct cache_worker *w);

/* Reads. On 0 the reply's pieces hold len bytes, valid until volume_read_done(), which must be called exactly once
 * after a 0 return, on the same thread and before its next I/O call. On error nothing needs to be done. */
int volume_read(struct volume *v, uint64_t off, uint32_t len, struct volume_reply *reply);
void volume_read_done(struct volume *v, struct volume_reply *reply);

/* volume_read into the caller's memory, for callers without a use for pieces. */
int volume_pread(struct volume *v, void *buf, uint32_t len, uint64_t off);

/* Writes; buf is the caller's and may be reused on return. durable: an O_DSYNC write, on return it and everything
 * answered before survives power loss (P1). */
int volume_write(struct volume *v, const void *buf, uint32_t len, uint64_t off, bool durable);

/* P1: everything answered before is durable on return. */
int volume_flush(struct volume *v);

/* The range reads as zeros on return. punch: the backing device may give the space back. len may exceed VOLUME_MAX_IO.
 */
int volume_zero(struct volume *v, uint64_t off, uint64_t len, bool punch);

/* ---- cleaning ---- */

struct cache_progress {
	uint64_t done_bytes, total_bytes; /* of this run */
	bool active;
};

/*
 * Writes all data that is dirty now to the backing device(s) and flushes them; v NULL: all volumes. Waits. progress (if
 * any) is called about five times a second and at the end; nonzero from it stops early with -EINTR (nothing is lost; a
 * later call goes on where this one was). Volumes keep working. Concurrent runs are serialised volume by volume.
 */
int cache_write_back(struct cache *c, struct volume *v, int (*progress)(const struct cache_progress *p, void *ctx),
		     void *ctx, struct bc_error *err);

/*
 * Do the names of the backing files still lead to those that are open? Looks, for `ms` at most, and what it finds shows
 * in cache_get_info() and volume_state() as degraded. cache_write_back() does not write to one that has lost its name,
 * and fails, with the remedy in the message; its dirty data stays in the cache.
 */
void cache_look_at_names(struct cache *c, unsigned ms);
/* The cache's own data file was deleted: with the end of this process all is gone that is dirty. */
bool cache_is_deleted(struct cache *c, unsigned ms, struct bc_error *err);

/* ---- tunables ---- */

/* Keys (cache-wide unless said): ram, clean-after (period after which the background cleaner writes everything dirty to
 * backing), read-ahead, tidy, dirty-high (percent of lines that may be dirty), epoch-interval, and "mode" (default
 * mode; or a volume's mode when v is given). Kept in the journal; those that take effect at the next load say so in
 * *note (static text or NULL). -EINVAL names the key or the accepted values. */
int cache_set(struct cache *c, struct volume *v, const char *key, const char *value, const char **note,
	      struct bc_error *err);
/* Calls fn(key, value, help) for each tunable. */
void cache_get_tunables(struct cache *c, struct volume *v,
			void (*fn)(const char *key, const char *value, const char *help, void *ctx), void *ctx);

/* ---- statistics ---- */

/* Buckets of a latency histogram as they are shown: bucket i counts what took less than 2^(i + LATENCY_FIRST_SHIFT)
 * nanoseconds (1 us to 69 s), those of the buckets before it included. */
#define LATENCY_BUCKETS 27u
#define LATENCY_FIRST_SHIFT 10u

struct latency_summary {
	uint64_t count;
	double p50, p99, max, sum; /* microseconds; sum is within 3 % */
	uint64_t bucket[LATENCY_BUCKETS];
};
#define COUNTER_LATENCY(name, help) struct latency_summary name;

/* What was counted since load; counters.h has the lists. */
struct volume_stats {
	struct {
		uint64_t occupied_lines, clean_lines, dirty_lines;
	} usage;
	struct {
		REQUEST_COUNTERS(COUNTER_VALUE)
	} requests;
	struct {
		BYTE_COUNTERS(COUNTER_VALUE)
	} bytes;
	struct {
		ERROR_COUNTERS(COUNTER_VALUE)
	} errors;
	struct {
		LATENCY_HISTOGRAMS(COUNTER_LATENCY)
	} latency;
	uint64_t dirty_bytes;
};

struct cache_info {
	const char *dir; /* absolute; lives as long as the cache */
	char uuid[37];
	enum cache_state state;
	char why[300]; /* what is wrong if degraded or failed, else empty */
	enum cache_mode default_mode;
	uint64_t size_bytes;
	uint32_t line_size;
	uint64_t lines, ram_bytes, metadata_bytes;
	uint64_t ram_set_bytes; /* the setting; a load takes less if so much cannot be had */
	uint64_t occupied_lines, free_lines, clean_lines, dirty_lines, dirty_bytes;
	unsigned volumes;
};

void cache_get_info(struct cache *c, struct cache_info *info);
void volume_get_stats(struct volume *v, struct volume_stats *s);
enum cache_state volume_state(struct volume *v);
/* Sums of all volumes; latencies are merged histograms. */
void cache_get_totals(struct cache *c, struct volume_stats *s);

/* ---- check ---- */

struct cache_check_report {
	uint64_t lines, blocks, bad_clean_blocks, bad_dirty_blocks, journal_errors, epochs_dropped;
};

/* Stopped cache: verifies the journal and every valid block against its checksum; changes nothing. report() is called
 * for each finding. 0 if it could be checked (see the report for what was found). progress as in cache_write_back. */
int cache_check(const char *dir, struct cache_check_report *result, void (*report)(void *ctx, const char *what),
		void *ctx, int (*progress)(const struct cache_progress *p, void *ctx), struct bc_error *err);

#endif
