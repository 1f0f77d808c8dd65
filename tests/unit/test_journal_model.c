/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_journal_model.c - recovery against a model of a cache and its data file, over thousands of simulated power
 * losses.
 *
 * The model plays the engine by the rules of journal.h and no stricter: slots are given out again as soon as the epoch
 * that freed them is durable, rows tell a durable_upto that is late, data carried in rows overwrites slots in place.
 * The data file is a crc per slot, with writes that are pending until a flush. A power loss keeps the journal as of its
 * last commit (its files are copied while it is open) and any subset of the pending writes, some torn. Then recovery
 * has to find the exact state after some epoch (P2), not before the last one reported durable (P1), with every block in
 * it present (P3).
 */
#include "journal_util.h"

#include <time.h>

TestSuite(journal_model, .init = scratch_make, .fini = scratch_remove, .timeout = 120);

#define NLINES 400u
#define MAX_EPOCHS 1200
#define MAX_PENDING 8192

struct write {
	uint32_t slot, crc;
	bool dropped; /* given up by this power loss */
};

static struct {
	unsigned bpl;
	uint32_t nslots;
	struct journal_geometry geo;
	struct journal *j;
	uint8_t *state; /* NLINES strides: after the last commit */
	uint8_t *history[MAX_EPOCHS]; /* after each epoch; [0]: empty */
	bool carried[MAX_EPOCHS]; /* all its fresh blocks are in its row */
	uint64_t id, flushed, reported,
		told; /* last committed; durable in the data file; durable altogether; last durable_upto */
	uint32_t *disk, *crashed; /* crc per slot, durable; after the power loss */
	struct write pending[MAX_PENDING];
	unsigned npending;
	struct write in_place[MAX_PENDING]; /* from rows, waiting for their epoch to be durable */
	uint64_t in_place_epoch[MAX_PENDING];
	unsigned nin_place;
	uint32_t *free_slots;
	unsigned nfree;
	uint64_t *freed_at; /* slot: the epoch that freed it; 0: not waiting */
	uint64_t pending_discards; /* a bit per id (1..63), as of the last commit */
	uint64_t discard_history[MAX_EPOCHS];
	uint64_t discard_ids;
	struct {
		unsigned crashes, dropped, redone;
	} seen;
} m;

static uint32_t slot_take(void)
{
	/* Often the one freed last: the less time between two uses, the better the test. */
	unsigned i = rnd(2) ? m.nfree - 1 : rnd(m.nfree);
	uint32_t s = m.free_slots[i];

	m.free_slots[i] = m.free_slots[--m.nfree];
	return s;
}

static void slots_reusable(void)
{
	for (uint32_t s = 0; s < m.nslots; s++) {
		if (m.freed_at[s] && m.freed_at[s] <= m.reported) {
			m.freed_at[s] = 0;
			m.free_slots[m.nfree++] = s;
		}
	}
}

static void pend(uint32_t slot, uint32_t crc)
{
	cr_assert_lt(m.npending, MAX_PENDING);
	m.pending[m.npending++] = (struct write){ slot, crc, false };
}

/* What durability there is now: carried epochs count as soon as everything before them is durable. */
static void settle(void)
{
	unsigned n = 0;

	if (m.reported < m.flushed)
		m.reported = m.flushed;
	while (m.reported < m.id && m.carried[m.reported + 1])
		m.reported++;
	for (unsigned i = 0; i < m.nin_place; i++) {
		if (m.in_place_epoch[i] <= m.reported) {
			pend(m.in_place[i].slot, m.in_place[i].crc);
		} else {
			m.in_place[n] = m.in_place[i];
			m.in_place_epoch[n++] = m.in_place_epoch[i];
		}
	}
	m.nin_place = n;
	slots_reusable();
}

/* The data file is flushed. Rows whose data waits for an earlier epoch are not in it, but that epoch is durable then.
 */
static void flush(void)
{
	for (int pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < m.npending; i++)
			m.disk[m.pending[i].slot] = m.pending[i].crc;
		m.npending = 0;
		if (!pass) {
			uint64_t upto = m.id;

			m.reported = upto;
			settle(); /* moves what was waiting to pending; the second pass makes it durable */
		}
	}
	m.flushed = m.id;
	settle();
}

static void fill_data(uint8_t *data)
{
	uint64_t v = (uint64_t)rnd(1u << 30) << 30 | rnd(1u << 30);

	memset(data, (int)(v & 0xff), 4096);
	memcpy(data, &v, 8);
}

/* One epoch of a few records. carried: its fresh blocks travel in the row, half of them to the slot they have. */
static void commit_random(bool carried)
{
	size_t stride = journal_line_stride(m.bpl);
	unsigned n = 1 + rnd(!carried ? 12 : rnd(2) ? 3 : 1), nin = 0, nd = 0;
	unsigned room = rnd(3) ? 1 : 64; /* one goes to the ring */
	static uint8_t lines[12 * 200], data[64][4096];
	struct journal_inline in[64];
	struct journal_discard d[2];
	static bool touched[NLINES];
	uint64_t id = m.id + 1;

	memset(touched, 0, sizeof(touched));
	for (unsigned i = 0; i < n; i++) {
		uint32_t e;
		struct journal_line *l;

		do
			e = rnd(rnd(2) ? NLINES : 20);
		while (touched[e]);
		touched[e] = true;
		l = line_of(m.state, m.bpl, e);
		l->entry = e;
		if (l->volume && !rnd(5)) { /* drop the line */
			for (unsigned b = 0; b < m.bpl; b++) {
				if (l->valid >> b & 1)
					m.freed_at[l->blk[b].slot] = id;
			}
			memset(l, 0, stride);
			l->entry = e;
			memcpy(lines + i * stride, l, stride);
			continue;
		}
		if (!l->volume) {
			l->volume = 1;
			l->line = ((uint64_t)rnd(1u << 20) << 16) + e;
		}
		l->fresh = 0;
		for (unsigned b = 0; b < m.bpl; b++) {
			bool had = l->valid >> b & 1;
			uint16_t bit = (uint16_t)(1u << b);

			if (m.bpl > 1 && rnd(3))
				continue;
			if (had && !rnd(4)) {
				if (rnd(2)) { /* cleaned */
					l->dirty &= (uint16_t)~bit;
				} else { /* no longer valid */
					m.freed_at[l->blk[b].slot] = id;
					l->valid &= (uint16_t)~bit;
					l->dirty &= (uint16_t)~bit;
					l->blk[b] = (struct journal_block){ 0, 0 };
				}
				continue;
			}
			if (!m.nfree || (carried && nin == room))
				continue;
			if (!(carried && had && rnd(2))) { /* a new slot */
				if (had)
					m.freed_at[l->blk[b].slot] = id;
				l->blk[b].slot = slot_take();
			}
			l->valid |= bit;
			l->fresh |= bit;
			l->dirty = (uint16_t)(rnd(2) ? l->dirty | bit : l->dirty & ~bit);
			if (carried) {
				fill_data(data[nin]);
				l->blk[b].crc = crc32c(data[nin], 4096);
				in[nin] = (struct journal_inline){ l->blk[b].slot, l->blk[b].crc, data[nin] };
				m.in_place[m.nin_place] = (struct write){ l->blk[b].slot, l->blk[b].crc, false };
				m.in_place_epoch[m.nin_place++] = id;
				nin++;
			} else {
				l->blk[b].crc = rnd(1u << 30) << 1;
				pend(l->blk[b].slot, l->blk[b].crc);
			}
		}
		memcpy(lines + i * stride, l, stride);
		l->fresh = 0;
	}
	if (!rnd(4) && m.discard_ids < 60) {
		d[nd++] = (struct journal_discard){ ++m.discard_ids, rnd(1000) * 4096ull, 4096, 1, false };
		m.pending_discards |= 1ull << m.discard_ids;
	}
	if (!rnd(4) && m.pending_discards) {
		uint64_t which = (uint64_t)__builtin_ctzll(m.pending_discards);

		if (!nd || d[0].id != which) {
			d[nd++] = (struct journal_discard){ which, 0, 0, 1, true };
			m.pending_discards &= ~(1ull << which);
		}
	}
	if (!rnd(8))
		m.told = m.flushed;
	m.id = id;
	{
		struct journal_epoch e = { .id = id,
					   .durable_upto = m.told,
					   .lines = (void *)lines,
					   .nlines = n,
					   .inlines = in,
					   .ninlines = nin,
					   .discards = d,
					   .ndiscards = nd };
		ok(journal_commit(m.j, &e, err));
	}
	m.carried[id] = carried;
	m.history[id] = malloc(NLINES * stride);
	memcpy(m.history[id], m.state, NLINES * stride);
	m.discard_history[id] = m.pending_discards;
	settle();
}

/* ---- after the power loss ---- */

static int crash_verify(void *ctx, const struct journal_block *b, uint32_t n)
{
	(void)ctx;
	for (uint32_t i = 0; i < n; i++) {
		if (m.crashed[b[i].slot] != b[i].crc)
			return 0;
	}
	return 1;
}

static int crash_redo(void *ctx, uint32_t slot, const void *data)
{
	(void)ctx;
	m.crashed[slot] = crc32c(data, 4096);
	m.seen.redone++;
	return 0;
}

static void power_loss(void)
{
	struct journal_load_ops ops = collect_ops;
	struct collected c = { 0 };
	struct journal *j;
	uint64_t k, discards = 0;
	size_t stride = journal_line_stride(m.bpl);

	copy_journal(scratch, copy_dir);
	memcpy(m.crashed, m.disk, m.nslots * sizeof(m.disk[0]));
	for (unsigned i = 0; i < m.npending; i++) {
		if (rnd(10) < 6)
			m.crashed[m.pending[i].slot] = rnd(20) ? m.pending[i].crc : 1; /* torn: no block has crc 1 */
	}
	ops.verify = crash_verify;
	ops.redo = crash_redo;
	ok(journal_open(copy_dir, rnd(2), &j, err));
	c.bpl = m.bpl;
	c.lines = calloc(NLINES, stride);
	cr_assert_eq(journal_load(j, &ops, &c, &c.report, &c.err), 0, "%s", c.err.msg);
	journal_close(j);

	k = c.report.last_epoch;
	cr_assert_leq(m.reported, k, "P1: epoch %lu was durable, %lu kept: %s", m.reported, k, c.report.why_dropped);
	cr_assert_leq(k, m.id);
	cr_assert_gt(c.report.next_id, m.id);
	cr_assert_eq(c.report.why_dropped[0] != 0, c.report.epochs_dropped != 0);
	for (uint32_t e = 0; e < NLINES; e++) {
		struct journal_line *got = line_of(c.lines, m.bpl, e), *want = line_of(m.history[k], m.bpl, e);

		cr_assert_eq(got->volume, want->volume, "entry %u after epoch %lu", e, k);
		if (!want->volume)
			continue;
		cr_assert_eq(memcmp(got, want, stride), 0, "P2: entry %u is not as after epoch %lu", e, k);
		for (unsigned b = 0; b < m.bpl; b++) {
			if (got->valid >> b & 1)
				cr_assert_eq(m.crashed[got->blk[b].slot], got->blk[b].crc,
					     "P3: entry %u block %u (slot %u) is not in the data file", e, b,
					     got->blk[b].slot);
		}
	}
	for (unsigned i = 0; i < c.ndiscards; i++)
		discards |= 1ull << c.discards[i].id;
	cr_assert_eq(discards, m.discard_history[k], "discards after epoch %lu", k);
	m.seen.crashes++;
	m.seen.dropped += c.report.epochs_dropped != 0;
	free(c.lines);
}

static void run_model(unsigned bpl, unsigned epochs)
{
	uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)time(NULL);
	size_t stride = journal_line_stride(bpl);
	struct journal_stats stats;
	uint64_t folds = 0, merges = 0;
	bool few;
	int more;

	cr_log_info("SEED=%lu", seed);
	rnd_state = seed * 2654435761u + bpl;
	few = rnd(2); /* then folding begins before there is anything to merge, mostly */
	m.bpl = bpl;
	m.nslots = NLINES * bpl + 64 * bpl;
	m.geo = geometry(NLINES, m.nslots, bpl);
	m.state = calloc(NLINES, stride);
	m.history[0] = calloc(NLINES, stride);
	m.disk = calloc(m.nslots, sizeof(uint32_t));
	m.crashed = calloc(m.nslots, sizeof(uint32_t));
	m.free_slots = calloc(m.nslots, sizeof(uint32_t));
	m.freed_at = calloc(m.nslots, sizeof(uint64_t));
	for (uint32_t s = 0; s < m.nslots; s++)
		m.free_slots[m.nfree++] = s;
	/* Many small steps, so that power is lost between any two of them. */
	journal_fold_limits = (struct journal_fold_limits){ .rows = 1,
							    .read_epochs = 2,
							    .delete_epochs = few ? 2 : 8,
							    .start_meta = UINT64_MAX,
							    .start_body = 4 << 20,
							    .start_epochs = 16,
							    .merge_meta = rnd(2) ? 4000 : 1 << 20,
							    .memory = few ? 600 : 64 << 20 };
	journal_wal_reserve = 1 << 20;
	journal_ring_max = 5; /* soon full, soon used again */
	m.j = fresh_journal(&m.geo);
	while (m.id < epochs) {
		commit_random(rnd(2));
		if (!rnd(6))
			flush();
		if (!rnd(5))
			power_loss();
		for (unsigned steps = rnd(8); steps; steps--) {
			more = journal_maintain(m.j, m.flushed, err);
			cr_assert_geq(more, 0, "%s", err->msg);
		}
		if (!rnd(200)) { /* an ordinary restart in between */
			struct collected c = { 0 };

			flush();
			journal_get_stats(m.j, &stats);
			folds += stats.folds;
			merges += stats.merges;
			journal_close(m.j);
			ok(journal_open(scratch, false, &m.j, err));
			cr_assert_eq(load_into(m.j, &c), 0, "%s", c.err.msg);
			cr_assert_eq(c.report.last_epoch, m.id);
		}
	}
	journal_get_stats(m.j, &stats);
	folds += stats.folds;
	merges += stats.merges;
	journal_close(m.j);
	for (uint64_t id = 0; id <= m.id; id++)
		free(m.history[id]);
	free(m.state);
	free(m.disk);
	free(m.crashed);
	free(m.free_slots);
	free(m.freed_at);
	cr_log_info("bpl %u: %u power losses, %u dropped epochs, %u blocks redone, %lu folds, %lu merges", bpl,
		    m.seen.crashes, m.seen.dropped, m.seen.redone, folds, merges);
	cr_assert_gt(folds, 3);
	cr_assert(few || merges);
	cr_assert_gt(m.seen.dropped, 0, "the test has to reach dropped epochs");
	cr_assert_gt(m.seen.redone, 0, "and redo");
}

Test(journal_model, lines_of_one_block)
{
	run_model(1, 400);
}

Test(journal_model, lines_of_four_blocks)
{
	run_model(4, 300);
}

Test(journal_model, lines_of_sixteen_blocks)
{
	run_model(16, 200);
}
