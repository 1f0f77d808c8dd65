/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * oracle.h - what a volume may read as after a power loss: every value each block ever had, and what was promised when.
 *
 * A *step* is the change of one block (or of the whole-block range of a zeroing), numbered in the order in which the
 * workload makes them. A *version* of a block holds from its step to the next version's. An operation has the log
 * positions before its call and after its return: for a crash point p, what began before p may be there, and what a
 * flush that returned by p promised must be.
 *
 *   P1, P3  each block reads as one of its versions from the last promise on, whole
 *   P2      volumes that are only written back: there is one step k such that every block of all of them reads as it
 *           was after step k
 *   writes that go to the backing device: each sector by itself, for the device may tear a block and nothing above it
 *           can tell; and there is no order among blocks before a flush
 */
#ifndef CRASH_ORACLE_H
#define CRASH_ORACLE_H

#include "blkcache/engine.h"
#include "replay.h"

#define VOLUMES 3
#define SECTORS (CACHE_BLOCK / SECTOR)

enum op_type {
	OP_CREATE,
	OP_OPEN,
	OP_CLOSE,
	OP_ADD,
	OP_REMOVE,
	OP_MODE,
	OP_WRITE,
	OP_WRITE_DURABLE,
	OP_FLUSH,
	OP_READ,
	OP_ZERO,
	OP_PUNCH,
	OP_WRITE_BACK, /* one volume */
	OP_WRITE_BACK_ALL,
	OP_MAINTAIN, /* what the maintenance thread does each second */
	OP_CLEAN, /* a step of the background cleaner */
	OP_EPOCH, /* an epoch that nobody waits for */
	OP_CHECKPOINT,
	OP_CLEAR_MARKS, /* as the maintenance thread may at any moment between other threads' writes */
	OP_SET,
	OP_SLEEP,
	OP_FAIL_ZERO, /* zeroing, during which the cache fails, with nothing dirty in it */
	OP_MEDDLE, /* somebody else writes to a backing device, while the cache is stopped and nothing is dirty, and
		      sets its time back */
	OP_TYPES
};

struct op {
	enum op_type type;
	uint8_t volume, mode;
	uint32_t len;
	uint64_t off;
	uint64_t seed; /* of the data */
	/* filled in when it runs */
	bool ran, through; /* through: went to the backing device, if it wrote */
	uint32_t begin, end; /* log positions; end UINT32_MAX: did not return */
	uint32_t first_step, last_step; /* last_step 0: no steps */
};

struct version {
	uint32_t step;
	uint64_t hash[SECTORS];
};

struct block_history {
	struct version *v;
	uint32_t n, cap;
};

struct volume_history {
	uint64_t bytes, nblocks;
	uint8_t *now; /* nblocks * CACHE_BLOCK, the end padded with zeros */
	struct block_history *block;
	bool present; /* at the start */
	int mode; /* likewise */
};

struct oracle {
	struct volume_history vol[VOLUMES];
	bool cache_exists; /* at the start */
	uint32_t nsteps;
	bool by_volume; /* several threads: steps are in order within a volume only */
};

/* What is known about a volume at a crash point. */
struct expectation {
	bool must_exist, may_exist;
	uint32_t modes; /* a bit per mode that may be recorded */
	uint32_t floor, ceil; /* steps */
	uint32_t back_floor; /* the last promised step that was written back: then all written back before it is
				promised */
	bool ordered; /* nothing after the floor went to backing directly */
	bool exact_if_gone; /* removed with everything written back */
};

void oracle_init(struct oracle *o);
void oracle_free(struct oracle *o);
void oracle_volume(struct oracle *o, unsigned v, uint64_t bytes, const uint8_t *content);
/* Records the versions an operation makes, before it runs. */
void oracle_record(struct oracle *o, struct op *op, const uint8_t *data);
void oracle_expect(const struct oracle *o, const struct op *ops, unsigned nops, unsigned v, uint32_t p,
		   struct expectation *x);
bool oracle_cache_must_exist(const struct oracle *o, const struct op *ops, unsigned nops, uint32_t p);

/* Comparing a recovered state: begin, then each volume's contents (padded to blocks), then end. False: *why. */
struct verdict {
	const struct oracle *o;
	int32_t *fits; /* per step: how many blocks fit a cut there, as differences */
	uint32_t nsteps, blocks; /* of ordered volumes */
	uint32_t floor, ceil;
	uint64_t group_blocks;
};

void verdict_begin(struct verdict *d, const struct oracle *o);
bool verdict_volume(struct verdict *d, unsigned v, const struct expectation *x, const uint8_t *content, char *why,
		    size_t len);
bool verdict_end(struct verdict *d, char *why, size_t len);

#endif
