/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * writelog.h - which blocks became dirty, or ceased to be, in epochs that are not durable yet: kept in shared memory (a
 * memfd), so that it outlives the process.
 *
 * What is durable is in the journal. What was answered and is not durable yet is in the map and in the RAM buffers of a
 * process that may be killed. The buffers' frames lie in a memfd of their own; this log says which frame, or which slot
 * of the data file, held which block. life/takeover.c writes and replays it; this file is the format.
 *
 * Two *segments*: epoch e appends to segment e & 1, and a segment is emptied when its epoch is durable. There are never
 * more than two epochs that are not: the open one, and a sealed one that is being committed.
 *
 * A record is appended in the epoch's gate, under the lock of the block's chain, so the order of a block's records is
 * the order of its changes. An append takes the next index, stores the record, and then its *stamp*, which is made of
 * epoch and index. Death in between leaves a record without its stamp: it never was, and neither was its request
 * answered. The memory holds no valid stamp before use: it is cleared when the log is opened, and a segment's next
 * epoch has another id.
 *
 * Memory that is shared and only loaded from and stored to holds, after a kill, everything that was stored: what is not
 * covered is power loss, and for that there is the journal.
 */
#ifndef ENGINE_WRITELOG_H
#define ENGINE_WRITELOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WRITELOG_RECORDS (1u << 18) /* of a segment; 32 bytes each */
/* From here on writers commit before they go on. What is left has to do for those that are in the gate already. */
#define WRITELOG_SOFT_LIMIT (1u << 17)
#define WRITELOG_MAX_VOLUMES 1024

struct writelog_record {
	_Atomic uint64_t stamp; /* 0, or another epoch's: not written */
	uint64_t block; /* of the volume */
	uint32_t slot, crc;
	uint32_t frame; /* of the RAM buffers; its data is there until it is in the slot */
	uint16_t volume;
	uint16_t dirty; /* 0: the block is not dirty any more, the other fields do not matter */
};
_Static_assert(sizeof(struct writelog_record) == 32, "two in a cache line");

struct writelog_segment {
	_Atomic uint64_t epoch;
	_Atomic uint32_t count; /* indexes given out; may be more than there are */
	uint32_t pad[13];
};

struct writelog_header {
	uint64_t magic;
	_Atomic bool failed; /* the cache was failed (P6) */
	_Atomic bool backing_failed[WRITELOG_MAX_VOLUMES + 1]; /* by volume id: no flush of it may succeed (P6) */
	struct writelog_segment segment[2] __attribute__((aligned(64)));
};

struct writelog {
	struct writelog_header *h;
	struct writelog_record *record[2];
	void *map;
	unsigned long len;
};

/* Maps the memfd, makes it large enough, takes its memory. What it holds is left alone. 0 or -errno. */
int writelog_open(struct writelog *w, int fd);
void writelog_close(struct writelog *w);
/* Empties it, for epochs from `epoch` on. What it says of backing devices stays. */
void writelog_start(struct writelog *w, uint64_t epoch);

/* `epoch` is the open one; the caller is in its gate. */
void writelog_append(struct writelog *w, uint64_t epoch, const struct writelog_record *r);
/* The gate is held exclusively: `epoch` is the next to be open. The one before the last is durable. */
void writelog_next(struct writelog *w, uint64_t epoch);
/* It is durable. */
void writelog_durable(struct writelog *w, uint64_t epoch);

static inline bool writelog_full(const struct writelog *w, uint64_t epoch)
{
	return atomic_load_explicit(&w->h->segment[epoch & 1].count, memory_order_relaxed) > WRITELOG_SOFT_LIMIT;
}

/*
 * The last record of each block, in the order of volumes and blocks; *out is to be freed. For who takes over: nobody
 * appends. -EUCLEAN: this is no log; -ENOSPC: it overflowed; -ENOMEM.
 */
int writelog_collect(const struct writelog *w, struct writelog_record **out, uint32_t *n);

#endif
