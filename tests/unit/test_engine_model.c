/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_engine_model.c - one thread, random requests of any size and offset on up to three volumes (one of odd size) in
 * all modes, with mode switches, tunables, cleaning, closing and opening, against arrays of bytes. The cache's own
 * threads work beside it. The seed is printed; ENGINE_SEED=n repeats a run, ENGINE_OPS=n makes it longer.
 */
#include "engine_util.h"

struct model {
	struct rig r;
	uint64_t rng;
	uint8_t *bytes[RIG_VOLUMES];
	uint64_t reads[RIG_VOLUMES], writes[RIG_VOLUMES], zeros[RIG_VOLUMES]; /* since opened */
	uint8_t *buf;
	unsigned step;
};

#define where m->step

static void pick_range(struct model *m, unsigned i, uint64_t max, uint64_t *off, uint64_t *len)
{
	uint64_t size = volume_size(m->r.v[i]);
	bool aligned = rnd(&m->rng, 2);

	switch (rnd(&m->rng, 8)) {
	case 0:
		*len = 1 + rnd(&m->rng, 700);
		break;
	case 1:
		*len = 1 + rnd(&m->rng, max);
		break;
	case 2:
	case 3:
		*len = CACHE_BLOCK;
		break;
	default:
		*len = 1 + rnd(&m->rng, 20 * CACHE_BLOCK);
	}
	if (*len > size)
		*len = size;
	/* now and then exactly up to the end */
	*off = rnd(&m->rng, 16) ? rnd(&m->rng, size - *len + 1) : size - *len;
	if (aligned) {
		*off &= ~(uint64_t)(CACHE_BLOCK - 1);
		if (*len > CACHE_BLOCK)
			*len &= ~(uint64_t)(CACHE_BLOCK - 1);
	}
}

static void do_write(struct model *m, unsigned i)
{
	uint64_t off, len, x = rnd64(&m->rng);

	pick_range(m, i, VOLUME_MAX_IO, &off, &len);
	for (uint64_t k = 0; k < len; k++) {
		if (!(k & 7))
			x = x * 6364136223846793005u + 1442695040888963407u;
		m->buf[k] = (uint8_t)(x >> 8 * (k & 7));
	}
	must(!volume_write(m->r.v[i], m->buf, (uint32_t)len, off, !rnd(&m->rng, 20)), "step %u: write", where);
	memcpy(m->bytes[i] + off, m->buf, len);
	m->writes[i]++;
}

static void compare(struct model *m, const char *what, unsigned i, const uint8_t *got, uint64_t off, uint64_t len)
{
	for (uint64_t k = 0; k < len; k++)
		must(got[k] == m->bytes[i][off + k],
		     "step %u: %s: volume %u (mode %s): byte %llu of [%llu, +%llu) is %02x, not %02x", where, what, i,
		     m->r.c ? cache_mode_name(volume_mode(m->r.v[i])) : "-", (unsigned long long)(off + k),
		     (unsigned long long)off, (unsigned long long)len, got[k], m->bytes[i][off + k]);
}

static void do_read(struct model *m, unsigned i)
{
	uint64_t off, len;

	pick_range(m, i, VOLUME_MAX_IO, &off, &len);
	memset(m->buf, 0xa5, len);
	must(!volume_pread(m->r.v[i], m->buf, (uint32_t)len, off), "step %u: read", where);
	if (memcmp(m->buf, m->bytes[i] + off, len))
		compare(m, "read", i, m->buf, off, len);
	m->reads[i]++;
}

static void do_zero(struct model *m, unsigned i)
{
	uint64_t off, len;

	pick_range(m, i, rnd(&m->rng, 4) ? 3 * VOLUME_MAX_IO : volume_size(m->r.v[i]), &off, &len);
	must(!volume_zero(m->r.v[i], off, len, rnd(&m->rng, 2)), "step %u: zero", where);
	memset(m->bytes[i] + off, 0, len);
	m->zeros[i]++;
}

static void do_tunable(struct model *m)
{
	static const char *const set[][2] = {
		{ "clean-after", "0s" },      { "clean-after", "20ms" }, { "clean-after", "30s" },
		{ "dirty-high", "1" },        { "dirty-high", "95" },    { "dirty-high", "50" },
		{ "read-ahead", "0" },        { "read-ahead", "256K" },  { "epoch-interval", "1s" },
		{ "epoch-interval", "10ms" },
	};
	unsigned k = (unsigned)rnd(&m->rng, sizeof set / sizeof set[0]);

	rig_set(&m->r, set[k][0], set[k][1]);
}

static void check_counters(struct model *m)
{
	struct volume_stats s, sum;
	struct cache_info info;
	uint64_t dirty = 0, occupied = 0;

	for (unsigned i = 0; i < m->r.n; i++) {
		uint64_t reads, writes;

		volume_get_stats(m->r.v[i], &s);
		reads = s.requests.read_hits + s.requests.read_partial_misses + s.requests.read_misses +
			s.requests.pass_through_reads;
		writes = s.requests.write_hits + s.requests.write_partial_misses + s.requests.write_misses +
			 s.requests.pass_through_writes;
		must(reads == m->reads[i], "step %u: %llu reads counted of %llu", where, (unsigned long long)reads,
		     (unsigned long long)m->reads[i]);
		/* the edges of zeroed ranges are writes too: two at most */
		must(writes >= m->writes[i] && writes <= m->writes[i] + 2 * m->zeros[i],
		     "step %u: %llu writes counted of %llu", where, (unsigned long long)writes,
		     (unsigned long long)m->writes[i]);
		must(s.requests.discards == m->zeros[i], "step %u: discards", where);
		must(!s.errors.checksum && !s.errors.cache_read && !s.errors.backing_read && !s.errors.backing_write,
		     "step %u: errors are counted", where);
		occupied += ctr_get(m->r.v[i]->lines);
		dirty += ctr_get(m->r.v[i]->dirty_blocks);
	}
	cache_get_totals(m->r.c, &sum);
	cache_get_info(m->r.c, &info);
	must(info.occupied_lines + info.free_lines == info.lines, "step %u: lines", where);
	must(info.clean_lines + info.dirty_lines == info.occupied_lines, "step %u: lines", where);
	(void)occupied;
	(void)dirty;
}

static void do_write_back(struct model *m, int i)
{
	struct volume_stats s;

	rig_write_back(&m->r, i < 0 ? NULL : m->r.v[i]);
	for (unsigned k = 0; k < m->r.n; k++) {
		uint64_t size;

		if (i >= 0 && (unsigned)i != k)
			continue;
		volume_get_stats(m->r.v[k], &s);
		must(!s.dirty_bytes && !s.usage.dirty_lines, "step %u: dirty after writing back", where);
		size = volume_size(m->r.v[k]);
		for (uint64_t off = 0; off < size; off += VOLUME_MAX_IO) {
			uint64_t len = size - off < VOLUME_MAX_IO ? size - off : VOLUME_MAX_IO;

			rig_backing(&m->r, k, m->buf, len, off);
			if (memcmp(m->buf, m->bytes[k] + off, len))
				compare(m, "backing", k, m->buf, off, len);
		}
	}
}

/* The counters say what the table holds. Nothing else may be running but what the cache does itself, hence stopped. */
static void do_reopen(struct model *m)
{
	struct cache_info before, after;
	uint64_t dirty;

	if (rnd(&m->rng, 2))
		do_write_back(m, -1);
	check_counters(m);
	cache_get_info(m->r.c, &before);
	rig_close(&m->r);
	rig_open(&m->r);
	must(m->r.report.clean_stop, "step %u: a clean stop was not seen as one: %s", where, m->r.report.notes);
	must(!m->r.report.epochs_dropped && !m->r.report.dropped_clean_lines, "step %u: lost after a clean stop: %s",
	     where, m->r.report.notes);
	dirty = m->r.report.dirty_bytes;
	cache_get_info(m->r.c, &after);
	must(dirty <= before.dirty_bytes, "step %u: dirty data grew over a stop", where);
	memset(m->reads, 0, sizeof m->reads);
	memset(m->writes, 0, sizeof m->writes);
	memset(m->zeros, 0, sizeof m->zeros);
	must(after.lines == before.lines, "step %u: lines", where);
}

static void one_step(struct model *m)
{
	unsigned i = (unsigned)rnd(&m->rng, m->r.n), what = (unsigned)rnd(&m->rng, 1000);

	if (what < 430)
		do_write(m, i);
	else if (what < 860)
		do_read(m, i);
	else if (what < 890)
		must(!volume_flush(m->r.v[i]), "step %u: flush", where);
	else if (what < 935)
		do_zero(m, i);
	else if (what < 970)
		rig_mode(m->r.v[i], (enum cache_mode)rnd(&m->rng, CACHE_MODE_COUNT));
	else if (what < 985)
		do_tunable(m);
	else if (what < 990)
		do_write_back(m, rnd(&m->rng, 2) ? -1 : (int)i);
	else if (what < 994)
		do_reopen(m);
	else
		check_counters(m);
}

static void run(uint64_t cache, uint32_t line, uint64_t ram, unsigned volumes, unsigned ops)
{
	static const uint64_t sizes[] = { 3 * MIB, 1 * MIB + 777, 9 * MIB - 4096 };
	struct model *m = calloc(1, sizeof *m);

	m->rng = engine_seed();
	m->buf = malloc(VOLUME_MAX_IO);
	rig_create(&m->r, cache, line, ram, CACHE_MODE_WB);
	rig_open(&m->r);
	for (unsigned i = 0; i < volumes; i++) {
		uint64_t size = sizes[(i + 1) % 3];

		rig_add(&m->r, "", size, i ? (enum cache_mode)rnd(&m->rng, CACHE_MODE_COUNT) : CACHE_MODE_WB);
		m->bytes[i] = calloc(1, size);
	}
	ops = (unsigned)env_number("ENGINE_OPS", ops);
	for (m->step = 0; m->step < ops; m->step++)
		one_step(m);
	do_write_back(m, -1);
	check_counters(m);
	rig_destroy(&m->r);
	for (unsigned i = 0; i < volumes; i++)
		free(m->bytes[i]);
	free(m->buf);
	free(m);
}

Test(engine_model, tiny_cache_of_small_lines, .timeout = 600)
{
	run(MIB, 4096, CACHE_MIN_RAM, 3, 1500);
}

Test(engine_model, tiny_cache_of_8k_lines, .timeout = 600)
{
	run(MIB, 8192, CACHE_MIN_RAM, 2, 1500);
}

Test(engine_model, tiny_cache_of_large_lines, .timeout = 600)
{
	run(MIB, 65536, CACHE_MIN_RAM, 3, 1500);
}

Test(engine_model, cache_larger_than_the_volumes, .timeout = 600)
{
	run(24 * MIB, 4096, 16 * MIB, 3, 1500);
}

Test(engine_model, large_lines_and_plenty_of_room, .timeout = 600)
{
	run(24 * MIB, 65536, 2 * MIB, 3, 1500);
}
