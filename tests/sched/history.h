/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * history.h - the oracle: what reads may return while threads run, and what may be there after a power loss.
 *
 * Operations have a beginning and an end on one clock (t0, t1), and in the recorders' log (begin, end). Of two that
 * overlap nothing is known; if one ended before the other began, it came first.
 *
 *   reads   a sector shows its owner's last write that had ended when the read began, or a later one that had begun
 *           when the read ended
 *   P1      after a power loss a sector shows at least the last write that had ended when a flush began that returned
 *           0 before the power loss (and at least a durable write that did), and nothing that had not begun
 *   P2      if a write to a volume that is written back is there, so is, or was overwritten, every such write that had
 *           ended when it began; and a block of it is there whole
 */
#ifndef SCHED_HISTORY_H
#define SCHED_HISTORY_H

#include "case.h"

struct history {
	struct scase *c;
	uint32_t clock;
	uint8_t ended[CASE_VOLUMES][VOLUME_SECTORS]; /* the last write that has returned 0; 0: none */
	uint8_t begun[CASE_VOLUMES][VOLUME_SECTORS];
	uint32_t mode_changes[CASE_VOLUMES]; /* beginnings and ends */
	uint32_t changing[CASE_VOLUMES]; /* under way */
	uint8_t mode[CASE_VOLUMES]; /* since the last one; CACHE_MODE_PT, which promises least, if it is not known */
	bool removed[CASE_VOLUMES]; /* at some time, or it was tried */
};

void history_begin(struct history *h, struct scase *c);
void history_start(struct history *h, struct operation *op);
void history_finish(struct history *h, struct operation *op, int rc);

/* What operation `op` (a read, not finished yet) has returned; floor: `ended` when it began. */
bool history_read(const struct history *h, const struct operation *op, const uint8_t *floor, const uint8_t *data,
		  char *why, size_t len);
/* Contents of the volumes after a power loss at log position p. */
bool history_crash(const struct history *h, uint32_t p, uint8_t *const *content, char *why, size_t len);

#endif
