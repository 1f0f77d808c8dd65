/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * workload.h - what is done to a cache while the recorders log it. A workload is a name, a configuration and a list of
 * operations, all from one seed. Operations that make no sense where they come (a write to a volume that is not there)
 * are skipped, so that any sub-list is a workload too: that is what shrinking tries.
 */
#ifndef CRASH_WORKLOAD_H
#define CRASH_WORKLOAD_H

#include "oracle.h"

struct config {
	const char *name;
	uint32_t line_size, cache_size;
	unsigned volumes; /* present at the start; the others may be added */
	uint8_t mode[VOLUMES];
	uint64_t bytes[VOLUMES];
	unsigned min_ops, max_ops;
	uint8_t weight[OP_TYPES];
	uint32_t max_write;
	uint8_t modes; /* bits: what OP_MODE and OP_ADD choose from */
	uint32_t hot_blocks; /* 0, or most writes go to so many blocks */
	bool replace; /* at each switch of the mode a block that is dirty, and promised, is written through at once: the
			 cleaner would soon come */
	bool from_nothing; /* the cache is created by the workload */
	bool busy; /* background threads at their fastest */
	bool fold; /* the journal folds at every occasion */
	bool tidy; /* idle work at every maintenance */
	bool low; /* the disk is full: the journal folds before it commits */
	bool merge; /* the ring is small: its epochs are merged all the time */
	bool offline; /* volumes are added to and removed from the stopped cache, also before it is loaded after a crash
		       */
	uint32_t nested_every; /* one in so many power losses has a second one; 0: as asked for */
	unsigned threads; /* each with its own volume */
	unsigned share; /* of all runs, relative */
};

#define UNHURRIED 4000000000u /* sample_ns: data is compared however slow this machine is */

extern const uint8_t basic_weights[OP_TYPES]; /* added to `weight`, but for workloads from nothing */
extern const struct config configs[];
extern const unsigned nconfigs;
const struct config *config_find(const char *name);

/* One execution, recorded. */
struct run {
	struct config cfg;
	uint64_t seed;
	struct op *ops;
	unsigned nops;
	struct oracle oracle;
	struct world *start; /* where the log begins */
	struct log *log;
	bool rerun; /* it began with a power loss; then the oracle holds what was read after the recovery */
	uint32_t opened; /* log position when the first open had returned */
	uint32_t noted; /* log position, + 1, where a load had written down that somebody meddled; 0: none did */
	uint32_t changed; /* log position, + 1, where a command on the stopped cache began before; 0: there was none */
	char why[600]; /* what went wrong while it ran; empty if nothing */
	struct cache_open_report report;
};

void workload_generate(struct run *r); /* ops from cfg and seed */
/* Runs r->ops from a fresh world, recorded; fills start, log, oracle. */
void workload_run(struct run *r);
/* The same on top of a world after a power loss (stolen): a recovery, then the ops. */
void workload_rerun(struct run *r, struct world *crashed);
void run_free(struct run *r);

void print_op(const struct op *op, unsigned index);
void fill_data(uint8_t *buf, uint64_t len, uint64_t seed);

/* The lock file is a real one, outside of the world: in a folder that is no cache it would look like somebody's file.
 */
void workload_forget_lock(void);

#endif
