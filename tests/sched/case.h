/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * case.h - what is done to a cache under a schedule: a few client threads with a few operations each, all from a seed.
 *
 * Every client owns a part of each volume's blocks (lines may belong to two) and is the only one that writes there, so
 * that each sector has its versions in one order, whatever the schedule; everybody reads, flushes and manages
 * everything. A sector says whose it is: volume, number, and the operation that wrote it.
 */
#ifndef SCHED_CASE_H
#define SCHED_CASE_H

#include "blkcache/engine.h"
#include "fibers.h"
#include "replay.h"

#define MAX_KINDS 24
#define CASE_VOLUMES 2
#define CASE_CLIENTS 4
#define CLIENT_OPS 8
#define MAX_OPS (CASE_CLIENTS * CLIENT_OPS)
#define VOLUME_BLOCKS 24
#define SPB (CACHE_BLOCK / SECTOR) /* sectors per block */
#define VOLUME_SECTORS (VOLUME_BLOCKS * SPB)

enum do_type {
	DO_WRITE,
	DO_WRITE_DURABLE,
	DO_FLUSH,
	DO_READ,
	DO_ZERO,
	DO_PUNCH,
	DO_MODE,
	DO_WRITE_BACK,
	DO_REMOVE,
	DO_ADD,
	DO_SET,
	DO_FAIL_CACHE, /* from now on flushes (or writes) of the data file fail */
	DO_FAIL_JOURNAL, /* from now on writes and syncs of the journal fail */
	DO_LOSE, /* the kernel could not write back what was written to the backing file and not synced */
	DO_SETTLE, /* what a helper does now and then: marks go, and the row says that backing is not in use */
	DO_TYPES
};

struct operation {
	uint8_t type, client, volume, mode;
	bool dropped; /* by shrinking */
	uint16_t first, n; /* sectors */
	/* filled in when it runs */
	bool ran, ok, back; /* back: a write to a volume that was written back from beginning to end */
	int rc;
	uint32_t changes; /* of the volume's mode, when it began */
	uint32_t begin, end; /* log positions; end UINT32_MAX: it did not return, or failed */
	uint32_t t0, t1; /* order of beginnings and ends */
};

/* Source files in which most turns are taken. */
enum near { NEAR_NOTHING, NEAR_INTENT, NEAR_EPOCH, NEAR_FLUSH, NEAR_BACKING, NEAR_PLAN, NEAR_CLEAN };

struct kind {
	const char *name;
	uint8_t volumes;
	uint8_t mode[CASE_VOLUMES];
	bool as_file[CASE_VOLUMES]; /* the backing device is a file of the file module */
	bool fails; /* operations may fail */
	uint32_t slots; /* of the cache */
	uint32_t line_size;
	uint8_t modes; /* bits: what DO_MODE and DO_ADD choose from; 0: all */
	uint8_t hot; /* of a client's blocks, most writes go to the first so many */
	uint8_t max_clients; /* 0: CASE_CLIENTS */
	uint8_t min_ops, max_ops; /* per client */
	uint8_t weight[DO_TYPES];
	enum near near[MAX_NEAR];
	bool anonymous; /* backing devices that cannot be told apart: no block of theirs is a witness, or looked at */
	const char *clean_after;
	uint8_t share;
};

extern const struct kind kinds[];
extern const unsigned nkinds;

struct scase {
	const struct kind *kind;
	uint64_t seed;
	unsigned clients, nops;
	struct operation op[MAX_OPS]; /* id: index + 1; a client's are in a row */
};

const struct kind *kind_find(const char *name);
void case_make(struct scase *c, const struct kind *k, uint64_t seed);
void case_print(const struct scase *c, FILE *out);

/* ---- contents ---- */
void stamp_sector(uint8_t *p, unsigned volume, unsigned sector, unsigned op); /* op 0: the beginning */
bool stamp_fits(const uint8_t *p, unsigned volume, unsigned sector, const struct scase *c, unsigned op);
uint32_t volume_sectors(unsigned volume);

#endif
