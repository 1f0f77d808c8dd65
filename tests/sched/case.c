/* SPDX-License-Identifier: BSD-3-Clause */
/* case.c - see case.h. */
#include "case.h"

#include <string.h>

#define BIT(m) (1u << (m))
#define WRITES [DO_WRITE] = 12, [DO_WRITE_DURABLE] = 4, [DO_FLUSH] = 4, [DO_READ] = 3

const struct kind kinds[] = {
	{ .name = "through",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WT },
	  .line_size = 4096,
	  .hot = 2,
	  .min_ops = 1,
	  .max_ops = 4,
	  .weight = { WRITES },
	  .clean_after = "1000s",
	  .share = 3 },
	/* little, so that few turns decide: marks and what clears them */
	{ .name = "marks",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WT },
	  .line_size = 4096,
	  .hot = 1,
	  .min_ops = 1,
	  .max_ops = 3,
	  .weight = { [DO_WRITE] = 5, [DO_WRITE_DURABLE] = 2, [DO_FLUSH] = 2, [DO_SETTLE] = 4 },
	  .near = { NEAR_INTENT, NEAR_EPOCH },
	  .anonymous = true,
	  .clean_after = "1000s",
	  .share = 2 },
	/* who goes to backing without a mark, and the row that says whether anybody does */
	{ .name = "held",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WB },
	  .line_size = 4096,
	  .hot = 1,
	  .min_ops = 1,
	  .max_ops = 3,
	  .weight = { [DO_WRITE] = 4, [DO_WRITE_BACK] = 4, [DO_ZERO] = 2, [DO_SETTLE] = 4 },
	  .near = { NEAR_INTENT, NEAR_CLEAN },
	  .clean_after = "1000s",
	  .share = 1 },
	/* the row, and those who go with marks */
	{ .name = "rows",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WT },
	  .line_size = 4096,
	  .hot = 1,
	  .max_clients = 2,
	  .min_ops = 1,
	  .max_ops = 2,
	  .weight = { [DO_WRITE] = 4, [DO_WRITE_DURABLE] = 3, [DO_SETTLE] = 4 },
	  .near = { NEAR_INTENT },
	  .clean_after = "1000s",
	  .share = 1 },
	/* flushes that meet: which epoch is theirs */
	{ .name = "epochs",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WB },
	  .line_size = 4096,
	  .hot = 1,
	  .min_ops = 1,
	  .max_ops = 3,
	  .weight = { [DO_WRITE] = 4, [DO_WRITE_DURABLE] = 2, [DO_FLUSH] = 4 },
	  .near = { NEAR_EPOCH },
	  .clean_after = "1000s",
	  .share = 1 },
	/* the same of the backing device */
	{ .name = "flushes",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WT },
	  .line_size = 4096,
	  .hot = 1,
	  .min_ops = 1,
	  .max_ops = 3,
	  .weight = { [DO_WRITE] = 4, [DO_WRITE_DURABLE] = 2, [DO_FLUSH] = 4 },
	  .near = { NEAR_BACKING },
	  .clean_after = "1000s",
	  .share = 1 },
	{ .name = "cleaning",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WB },
	  .line_size = 8192,
	  .hot = 1,
	  .min_ops = 1,
	  .max_ops = 4,
	  .weight = { [DO_WRITE] = 4, [DO_READ] = 1, [DO_WRITE_BACK] = 4, [DO_ZERO] = 1 },
	  .near = { NEAR_CLEAN },
	  .clean_after = "1000s",
	  .share = 1 },
	/* blocks that become clean while they are discarded */
	{ .name = "discards",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WB },
	  .line_size = 4096,
	  .hot = 1,
	  .max_clients = 2,
	  .min_ops = 1,
	  .max_ops = 3,
	  .weight = { [DO_WRITE] = 4, [DO_WRITE_BACK] = 4, [DO_ZERO] = 2, [DO_PUNCH] = 2 },
	  .near = { NEAR_CLEAN, NEAR_BACKING },
	  .clean_after = "1000s",
	  .share = 1 },
	{ .name = "back",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WB, CACHE_MODE_WO },
	  .line_size = 16384,
	  .hot = 2,
	  .min_ops = 2,
	  .max_ops = 6,
	  .weight = { WRITES, [DO_WRITE_BACK] = 1 },
	  .clean_after = "0s",
	  .share = 2 },
	{ .name = "both",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WT, CACHE_MODE_WB },
	  .as_file = { true, false },
	  .line_size = 4096,
	  .hot = 2,
	  .min_ops = 2,
	  .max_ops = 6,
	  .weight = { WRITES, [DO_WRITE_BACK] = 1, [DO_SET] = 1 },
	  .clean_after = "0s",
	  .share = 1 },
	{ .name = "modes",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WB },
	  .line_size = 8192,
	  .hot = 2,
	  .min_ops = 2,
	  .max_ops = 6,
	  .weight = { WRITES, [DO_MODE] = 8, [DO_WRITE_BACK] = 1 },
	  .clean_after = "0s",
	  .share = 2 },
	{ .name = "zero",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WB, CACHE_MODE_WT },
	  .line_size = 8192,
	  .hot = 3,
	  .min_ops = 2,
	  .max_ops = 5,
	  .weight = { WRITES, [DO_ZERO] = 4, [DO_PUNCH] = 4, [DO_MODE] = 1 },
	  .modes = BIT(CACHE_MODE_WB) | BIT(CACHE_MODE_WT),
	  .clean_after = "0s",
	  .share = 2 },
	{ .name = "manage",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WB, CACHE_MODE_WT },
	  .line_size = 4096,
	  .hot = 2,
	  .min_ops = 2,
	  .max_ops = 6,
	  .weight = { WRITES, [DO_REMOVE] = 4, [DO_ADD] = 6, [DO_SET] = 1, [DO_MODE] = 1 },
	  .modes = BIT(CACHE_MODE_WB) | BIT(CACHE_MODE_WT),
	  .clean_after = "0s",
	  .share = 2 },
	{ .name = "failing",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WT, CACHE_MODE_WB },
	  .fails = true,
	  .line_size = 4096,
	  .hot = 1,
	  .min_ops = 1,
	  .max_ops = 4,
	  .weight = { WRITES, [DO_FAIL_CACHE] = 4 },
	  .clean_after = "1000s",
	  .share = 3 },
	{ .name = "journal",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WB, CACHE_MODE_WT },
	  .fails = true,
	  .line_size = 8192,
	  .hot = 2,
	  .min_ops = 1,
	  .max_ops = 4,
	  .weight = { WRITES, [DO_FAIL_JOURNAL] = 3, [DO_MODE] = 2, [DO_WRITE_BACK] = 1 },
	  .clean_after = "0s",
	  .share = 2 },
	/* more than fits: blocks are evicted, and slots used again at once */
	{ .name = "evict",
	  .volumes = 2,
	  .mode = { CACHE_MODE_WB, CACHE_MODE_WT },
	  .slots = 24,
	  .line_size = 4096,
	  .hot = 6,
	  .min_ops = 3,
	  .max_ops = 8,
	  .weight = { [DO_WRITE] = 12, [DO_WRITE_DURABLE] = 4, [DO_FLUSH] = 4, [DO_READ] = 10 },
	  .near = { NEAR_PLAN },
	  .clean_after = "0s",
	  .share = 2 },
	{ .name = "lost",
	  .volumes = 1,
	  .mode = { CACHE_MODE_WT },
	  .as_file = { true },
	  .fails = true,
	  .line_size = 4096,
	  .hot = 2,
	  .min_ops = 1,
	  .max_ops = 4,
	  .weight = { WRITES, [DO_LOSE] = 6 },
	  .near = { NEAR_FLUSH },
	  .clean_after = "0s",
	  .share = 2 },
};
const unsigned nkinds = sizeof kinds / sizeof kinds[0];
_Static_assert(sizeof kinds / sizeof kinds[0] <= MAX_KINDS, "fits");

static const char *const names[DO_TYPES] = { "write", "write-durable", "flush",        "read",   "zero",
					     "punch", "mode",          "write-back",   "remove", "add",
					     "set",   "fail-cache",    "fail-journal", "lose",   "settle" };

const struct kind *kind_find(const char *name)
{
	for (unsigned i = 0; i < nkinds; i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	return NULL;
}

uint32_t volume_sectors(unsigned volume)
{
	return volume == 1 ? VOLUME_SECTORS - 5 : VOLUME_SECTORS; /* one that ends within a block */
}

/* ---- making one ---- */

static uint8_t pick_type(const struct kind *k, struct rng *r)
{
	unsigned sum = 0, x;

	for (unsigned i = 0; i < DO_TYPES; i++)
		sum += k->weight[i];
	x = rng_below(r, sum);
	for (uint8_t i = 0;; i++) {
		if (x < k->weight[i])
			return i;
		x -= k->weight[i];
	}
}

static uint8_t pick_mode(const struct kind *k, struct rng *r)
{
	uint8_t m;

	do
		m = (uint8_t)rng_below(r, CACHE_MODE_COUNT);
	while (k->modes && !(k->modes >> m & 1));
	return m;
}

/* A write: mostly one block, else some sectors or several blocks. A read: anywhere. */
static void pick_range(const struct scase *c, struct rng *r, struct operation *op)
{
	unsigned share = VOLUME_BLOCKS / c->clients, start = op->client * share, hot = c->kind->hot, at, n = 1;

	if (op->type == DO_READ) {
		op->first = (uint16_t)(rng_below(r, VOLUME_BLOCKS - 8) * SPB);
		op->n = (uint16_t)((1 + rng_below(r, 8)) * SPB);
		return;
	}
	at = rng_below(r, rng_below(r, 4) ? hot : share);
	switch (rng_below(r, 5)) {
	case 0:
		op->first = (uint16_t)((start + at) * SPB + rng_below(r, SPB));
		op->n = (uint16_t)(1 + rng_below(r, SPB));
		break;
	case 1:
		n = 1 + rng_below(r, share - at);
		/* fall through */
	default:
		op->first = (uint16_t)((start + at) * SPB);
		op->n = (uint16_t)(n * SPB);
	}
	if (op->first + op->n > (start + share) * SPB)
		op->n = (uint16_t)((start + share) * SPB - op->first);
}

static void make_operation(const struct scase *c, struct rng *r, struct operation *op, unsigned client)
{
	memset(op, 0, sizeof *op);
	op->client = (uint8_t)client;
	op->type = pick_type(c->kind, r);
	op->volume = (uint8_t)rng_below(r, c->kind->volumes);
	op->mode = pick_mode(c->kind, r);
	pick_range(c, r, op);
	if (op->first >= volume_sectors(op->volume))
		op->first = (uint16_t)(volume_sectors(op->volume) - 1);
	if (op->first + op->n > volume_sectors(op->volume))
		op->n = (uint16_t)(volume_sectors(op->volume) - op->first);
}

void case_make(struct scase *c, const struct kind *k, uint64_t seed)
{
	struct rng r = { .s = seed * 0x9e3779b97f4a7c15ull + 99 };

	memset(c, 0, sizeof *c);
	c->kind = k;
	c->seed = seed;
	c->clients = 2 + rng_below(&r, (k->max_clients ? k->max_clients : CASE_CLIENTS) - 1u);
	for (unsigned i = 0; i < c->clients; i++) {
		unsigned n = k->min_ops + rng_below(&r, k->max_ops - k->min_ops + 1u);

		for (unsigned j = 0; j < n; j++)
			make_operation(c, &r, &c->op[c->nops++], i);
	}
}

void case_print(const struct scase *c, FILE *out)
{
	for (unsigned i = 0; i < c->nops; i++) {
		const struct operation *op = &c->op[i];

		if (op->dropped)
			continue;
		fprintf(out, "#   %2u client %u %-13s v%u", i + 1, op->client, names[op->type], op->volume);
		if (op->type == DO_MODE || op->type == DO_ADD)
			fprintf(out, " %s", cache_mode_name((enum cache_mode)op->mode));
		else if (op->type <= DO_PUNCH && op->type != DO_FLUSH)
			fprintf(out, " block %u", op->first / (unsigned)SPB);
		if (op->type <= DO_PUNCH && op->type != DO_FLUSH && (op->first % SPB || op->n != SPB))
			fprintf(out, " (sectors %u to %u)", op->first, op->first + op->n - 1u);
		if (!op->ran)
			fprintf(out, "  did not come to it\n");
		else
			fprintf(out, "  began %u ended %u, log %u..%d: %d\n", op->t0, op->t1, op->begin, (int)op->end,
				op->rc);
	}
}

/* ---- contents ---- */

void stamp_sector(uint8_t *p, unsigned volume, unsigned sector, unsigned op)
{
	uint64_t w = 0x5ec7000000000000ull | (uint64_t)volume << 40 | (uint64_t)sector << 20 | op, mixed = w;

	for (unsigned i = 0; i < SECTOR; i += 8) {
		memcpy(p + i, i ? &mixed : &w, 8);
		mixed = mixed * 0xbf58476d1ce4e5b9ull + i;
	}
}

bool stamp_fits(const uint8_t *p, unsigned volume, unsigned sector, const struct scase *c, unsigned op)
{
	uint8_t want[SECTOR];

	if (op && (c->op[op - 1].type == DO_ZERO || c->op[op - 1].type == DO_PUNCH))
		return !p[0] && !memcmp(p, p + 1, SECTOR - 1);
	stamp_sector(want, volume, sector, op);
	return !memcmp(p, want, SECTOR);
}
