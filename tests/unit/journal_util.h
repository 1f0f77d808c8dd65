/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * journal_util.h - what the journal's tests share: scratch folders, copies of a journal as a power loss would leave it,
 * a loader that collects what recovery tells. For test programs, which fork per test: everything is static and
 * single-threaded.
 */
#ifndef TESTS_JOURNAL_UTIL_H
#define TESTS_JOURNAL_UTIL_H

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkcache/journal.h"
#include "journal/db.h"
#include "util/crc.h"

#define UNUSED __attribute__((unused))

/* For every call that wants one. */
static struct bc_error err_room;
static UNUSED struct bc_error *const err = &err_room;

#define ok(call)                                                                                                       \
	do {                                                                                                           \
		int ret_ = (call);                                                                                     \
		cr_assert_eq(ret_, 0, "%s: %d %s", #call, ret_, ret_ ? err->msg : "");                                 \
	} while (0)

static char scratch[200]; /* the test's folder */
static char copy_dir[240]; /* in it: what a power loss would have left */

static UNUSED void scratch_make(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(scratch, sizeof(scratch), "%s/blkcache-journal-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert(mkdtemp(scratch));
	snprintf(copy_dir, sizeof(copy_dir), "%s/copy", scratch);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

/* What load_into() allocated, freed at the end of the test. */
static void *all_lines[2048];
static unsigned nall_lines;

static UNUSED void scratch_remove(void)
{
	while (nall_lines)
		free(all_lines[--nall_lines]);
	nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static UNUSED void remove_journal(void)
{
	static const char *const tails[] = { "", "-wal", "-shm", "-journal", ".new", "-ring" };
	char path[300];

	for (unsigned i = 0; i < 6; i++) {
		snprintf(path, sizeof(path), "%s/" JOURNAL_FILE "%s", scratch, tails[i]);
		unlink(path);
	}
}

static UNUSED void copy_file(const char *from_dir, const char *to_dir, const char *name)
{
	char from[400], to[400];
	static uint8_t buf[1 << 16];
	int in, out;
	ssize_t n;

	snprintf(from, sizeof(from), "%s/%s", from_dir, name);
	snprintf(to, sizeof(to), "%s/%s", to_dir, name);
	unlink(to);
	in = open(from, O_RDONLY);
	if (in < 0)
		return;
	out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	cr_assert_geq(out, 0);
	while ((n = read(in, buf, sizeof(buf))) > 0) {
		/* Most of it is reserve: leave holes. */
		if (!buf[0] && !memcmp(buf, buf + 1, (size_t)n - 1))
			lseek(out, n, SEEK_CUR);
		else
			cr_assert_eq(write(out, buf, (size_t)n), n);
	}
	cr_assert_eq(ftruncate(out, lseek(out, 0, SEEK_CUR)), 0);
	close(in);
	close(out);
}

/* The files of an open journal at a quiet moment are what a power loss right after the last commit leaves. */
static UNUSED void copy_journal(const char *from, const char *to)
{
	mkdir(to, 0700);
	copy_file(from, to, JOURNAL_FILE);
	copy_file(from, to, JOURNAL_FILE "-wal");
	copy_file(from, to, JOURNAL_FILE "-ring");
}

static UNUSED struct journal_geometry geometry(uint32_t nlines, uint32_t nslots, uint32_t bpl)
{
	struct journal_geometry geo = { .uuid = { 1, 2, 3 },
					.size_bytes = nslots * 4096ull,
					.line_size = bpl * 4096,
					.blocks_per_line = bpl,
					.nlines = nlines,
					.nslots = nslots };

	return geo;
}

/* ---- collecting what a load tells ---- */

struct collected {
	unsigned bpl;
	uint8_t *lines; /* nlines strides; volume 0 = not told; lives until the test ends */
	struct journal_volume volumes[8];
	char backing[8][64];
	unsigned nvolumes;
	char settings[8][2][64];
	unsigned nsettings;
	struct journal_mark marks[128];
	unsigned nmarks;
	struct journal_discard discards[64];
	unsigned ndiscards;
	uint32_t redo_slots[4096];
	uint64_t redo_first[4096]; /* first 8 bytes of the data */
	unsigned nredo;
	uint32_t last_entry;
	bool any;
	/* What verify answers: false if one of these slots is asked about. */
	const uint32_t *bad_slots;
	unsigned nbad;
	int verify_fails; /* the error that it gives instead of "yes" */
	uint64_t verified; /* blocks asked about */
	struct journal_load_report report;
	struct bc_error err;
};

static UNUSED struct journal_line *line_of(void *lines, unsigned bpl, uint32_t i)
{
	return (struct journal_line *)((uint8_t *)lines + i * journal_line_stride(bpl));
}

static int on_volume(void *ctx, const struct journal_volume *v)
{
	struct collected *c = ctx;

	snprintf(c->backing[c->nvolumes], sizeof(c->backing[0]), "%s", v->backing);
	c->volumes[c->nvolumes++] = *v;
	return 0;
}

static int on_setting(void *ctx, const char *key, const char *value)
{
	struct collected *c = ctx;

	snprintf(c->settings[c->nsettings][0], 64, "%s", key);
	snprintf(c->settings[c->nsettings++][1], 64, "%s", value);
	return 0;
}

static int on_verify(void *ctx, const struct journal_block *blocks, uint32_t n)
{
	struct collected *c = ctx;

	c->verified += n;
	for (uint32_t i = 0; i < n; i++) {
		for (unsigned k = 0; k < c->nbad; k++) {
			if (blocks[i].slot == c->bad_slots[k])
				return 0;
		}
	}
	return c->verify_fails ? c->verify_fails : 1;
}

static int on_mark(void *ctx, const struct journal_mark *m)
{
	struct collected *c = ctx;

	c->marks[c->nmarks++] = *m;
	return 0;
}

static int on_line(void *ctx, const struct journal_line *l)
{
	struct collected *c = ctx;

	cr_assert(!c->any || l->entry > c->last_entry, "entries must ascend");
	cr_assert_eq(l->fresh, 0);
	c->any = true;
	c->last_entry = l->entry;
	if (c->lines)
		memcpy(line_of(c->lines, c->bpl, l->entry), l, journal_line_stride(c->bpl));
	return 0;
}

static int on_redo(void *ctx, uint32_t slot, const void *data)
{
	struct collected *c = ctx;

	cr_assert_lt(c->nredo, 4096);
	c->redo_slots[c->nredo] = slot;
	memcpy(&c->redo_first[c->nredo++], data, 8);
	return 0;
}

static int on_discard(void *ctx, const struct journal_discard *d)
{
	struct collected *c = ctx;

	c->discards[c->ndiscards++] = *d;
	return 0;
}

static const struct journal_load_ops collect_ops = {
	.volume = on_volume,
	.setting = on_setting,
	.verify = on_verify,
	.mark = on_mark,
	.line = on_line,
	.redo = on_redo,
	.discard = on_discard,
};

static UNUSED int load_into(struct journal *j, struct collected *c)
{
	struct journal_geometry geo;

	journal_get_geometry(j, &geo);
	c->bpl = geo.blocks_per_line;
	cr_assert_lt(nall_lines, 2048);
	c->lines = all_lines[nall_lines++] = calloc(geo.nlines, journal_line_stride(c->bpl));
	return journal_load(j, &collect_ops, c, &c->report, &c->err);
}

/* Opens, loads, closes. */
static UNUSED int load_dir(const char *dir, bool read_only, struct collected *c)
{
	struct journal *j;
	int code = journal_open(dir, read_only, &j, &c->err);

	if (code)
		return code;
	code = load_into(j, c);
	journal_close(j);
	return code;
}

/* A fresh journal with volume 1, loaded. */
static UNUSED struct journal *fresh_journal(const struct journal_geometry *geo)
{
	struct journal_volume v = { .id = 1, .name = "one", .backing = "/dev/one", .mode = "wb" };
	struct collected c = { 0 };
	struct journal *j;

	ok(journal_create(scratch, geo, err));
	ok(journal_open(scratch, false, &j, err));
	cr_assert_eq(load_into(j, &c), 0, "%s", c.err.msg);
	ok(journal_volume_put(j, &v, err));
	return j;
}

/* One block per line: commits an epoch with a single record. data: carried in the row (its crc is computed). */
static UNUSED int commit_one(struct journal *j, uint64_t id, uint64_t durable_upto, uint32_t entry, uint64_t line,
			     uint32_t slot, uint32_t crc, const void *data)
{
	union line_buf lb = { .line = {
				      .entry = entry, .volume = 1, .line = line, .valid = 1, .dirty = 1, .fresh = 1 } };
	struct journal_inline in = { .slot = slot, .crc = data ? crc32c(data, 4096) : 0, .data = data };
	struct journal_epoch e = { .id = id,
				   .durable_upto = durable_upto,
				   .lines = &lb.line,
				   .nlines = 1,
				   .inlines = &in,
				   .ninlines = data ? 1 : 0 };

	lb.line.blk[0] = (struct journal_block){ .slot = slot, .crc = data ? in.crc : crc };
	return journal_commit(j, &e, err);
}

static UNUSED uint64_t rnd_state = 1;

static UNUSED uint32_t rnd(uint32_t n) /* 0 .. n-1 */
{
	rnd_state = rnd_state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((rnd_state >> 33) % n);
}

#endif
