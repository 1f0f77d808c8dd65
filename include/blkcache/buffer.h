/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * buffer.h - RAM buffers over a block device: recently used blocks held in memory, and delayed writes. After Linux's
 * dm-bufio.
 *
 * A *pool* is a fixed amount of memory, cut into frames of one block each, allocated when it is created: nothing is
 * allocated later. Its *client* is one device, with a thread that writes. A *buffer* is a frame holding one block of
 * the device. A buffer returned by any function below is *pinned*: its memory stays valid and it is not reused until
 * buffer_release(). Buffers are
 *
 *   anonymous  allocated, has no block number yet; only its owner sees it (buffer_alloc)
 *   clean      same as on the device; may be reused for another block once unpinned
 *   dirty      newer than the device; never reused before it was written
 *   writing    being written by the client's writer thread
 *
 * An anonymous buffer's contents are its owner's. From buffer_publish() on nobody changes them: what is written to a
 * block is another buffer, which replaces this one. All functions may be called from any thread unless stated.
 *
 * Dirty buffers reach the device in batches: the writer thread sorts them by block, merges neighbours into vectored
 * writes and keeps several in flight. It starts when asked (write_dirty), or when more than the pool's dirty threshold
 * is dirty. A failed write leaves the buffer dirty, is counted, and is reported by the next buffer_write_dirty() of
 * that client.
 */
#ifndef BLKCACHE_BUFFER_H
#define BLKCACHE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blkcache/bdev.h"
#include "blkcache/error.h"

/* Merged writes a client keeps in flight, and the depth that channels for buffer_write_dirty_on() should have.
 * Scattered 4 KiB blocks need as many to keep an SSD busy; deeper queues would add latency to concurrent reads. */
#define BUFFER_WRITE_DEPTH 64

struct buffer_pool;
struct buffer_client;
struct buffer;

struct buffer_pool_params {
	uint64_t memory; /* bytes of block data; rounded down to whole blocks, at least 64 blocks */
	uint32_t block_size; /* power of two, 512 to 65536 */
	unsigned dirty_percent; /* the writer starts above this share of dirty frames; 0: 50, or all but 128 MiB
				 * if that is more */
	bool lock_memory; /* mlock the frames */
	int shared_fd; /* a memfd the frames lie in from its beginning, so that they outlive the process; 0: anonymous
			* memory. It is made larger if need be, its contents are left alone. */
};

/* -ENOMEM with a message that says how much would be needed. */
int buffer_pool_create(const struct buffer_pool_params *params, struct buffer_pool **out, struct bc_error *err);
void buffer_pool_destroy(struct buffer_pool *pool); /* its client destroyed before; NULL is allowed */
/* Frames that hold nothing: a new buffer costs no other its place. A look without a lock. */
uint32_t buffer_pool_unused(const struct buffer_pool *pool);
uint64_t buffer_pool_memory(const struct buffer_pool *pool); /* everything counted: frames and bookkeeping, bytes */

/* Starts the client's writer thread. The device must stay open until destroy. -EBUSY: the pool has a client. */
int buffer_client_create(struct buffer_pool *pool, struct bdev *bdev, struct buffer_client **out, struct bc_error *err);
/* No buffer of it may be pinned. Dirty buffers are DROPPED: write them first. Stops the writer thread. NULL is allowed.
 */
void buffer_client_destroy(struct buffer_client *c);

void *buffer_data(struct buffer *b); /* block_size bytes, aligned to 4096 or the block size if smaller */
uint32_t buffer_frame(const struct buffer *b); /* its data lies at this times block_size in the pool's memory */

/* The pinned buffer of `block` if it is in memory (clean, dirty or writing), else NULL. Never blocks; the hot path:
 * takes no lock if it is there, a short one otherwise. */
struct buffer *buffer_get(struct buffer_client *c, uint64_t block);
/* The block will be looked up, published or forgotten in a moment: starts loading what that needs into the processor's
 * caches. Changes nothing. */
void buffer_get_soon(const struct buffer_client *c, uint64_t block);

/*
 * Allocates n anonymous pinned buffers, all or none. With wait: blocks until there are enough (clean unpinned ones are
 * reused, the writer is pushed if all are dirty); waiters are served in order; n must not exceed a quarter of the pool
 * (-EINVAL). A caller that waits must hold no other buffer of
 * the pool, or two could wait for each other. Without wait: -EAGAIN
 * at once. Contents are undefined.
 */
int buffer_alloc(struct buffer_client *c, struct buffer **out, unsigned n, bool wait);

/*
 * Gives an anonymous buffer its block number, clean or dirty; it stays pinned. If the block is already in memory, that
 * other buffer wins when `dirty` is false (b stays anonymous; false is returned), and is replaced and dropped, even if
 * dirty, when `dirty` is true.
 */
bool buffer_publish(struct buffer *b, uint64_t block, bool dirty);

bool buffer_is_dirty(const struct buffer *b); /* dirty or writing */

/* Unpins. An anonymous buffer returns to the pool. */
void buffer_release(struct buffer *b);
void buffer_release_many(struct buffer **b, unsigned n);

/* The block's contents are no longer needed: drop n buffers from `block` on, even dirty ones. A pinned one is detached
 * from its block and freed at release; one that is being written is waited for. */
void buffer_forget(struct buffer_client *c, uint64_t block, unsigned n);
/* Gives the memory of n blocks back, those that are clean and that nobody has pinned: for streaming I/O
 * that should not evict what others use. */
void buffer_evict(struct buffer_client *c, const uint32_t *blocks, unsigned n);

/* Starts writing everything dirty now; returns at once. */
void buffer_write_dirty_async(struct buffer_client *c);
/* Writes everything that is dirty at the time of the call and waits for it; buffers dirtied later are not waited for. 0
 * or the first write error since the last call. Does not flush the device. */
int buffer_write_dirty(struct buffer_client *c);
/* The same, but if nobody is writing now, the calling thread does it itself on its channel: no wake-up and no waiting
 * for the writer thread. For fsync, where few buffers are dirty. Nothing may be in flight on ch that submits to ch when
 * done. */
int buffer_write_dirty_on(struct buffer_client *c, struct bdev_channel *ch);

struct buffer_stats {
	uint64_t frames, dirty, pinned; /* now */
	uint64_t hits, misses, evictions, writes, write_errors,
		blocks_written; /* since create; writes counts vectored I/Os */
};
void buffer_get_stats(const struct buffer_client *c, struct buffer_stats *s);

#endif
