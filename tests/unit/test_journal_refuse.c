/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_journal_refuse.c - what a load must not take for "never flushed": rows that rotted, reads that failed. It
 * refuses, changes nothing, and once the error is gone everything is there.
 */
#include <errno.h>

#include "journal_util.h"

static void setup(void)
{
	scratch_make();
	journal_wal_reserve = 0;
}

TestSuite(journal_refuse, .init = setup, .fini = scratch_remove, .timeout = 120);

static uint8_t data[4096];

/* Epochs 1 .. n of one block each. carried: in the ring, those for which it has a bit. None says that another one is
 * durable. The journal is left as a crash would. */
static void make(unsigned n, unsigned carried)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);

	for (uint32_t id = 1; id <= n; id++)
		ok(commit_one(j, id, 0, id, id, id, 77, carried >> id & 1 ? data : NULL));
	j->failed = true; /* as if the process had been killed */
	journal_close(j);
	copy_journal(scratch, copy_dir);
}

static void restore(void)
{
	copy_journal(copy_dir, scratch);
}

/* Everything of a journal of n epochs is there. */
static void whole(unsigned n, const char *what)
{
	struct collected c = { 0 };

	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s: %s", what, c.err.msg);
	cr_assert_eq(c.report.epochs_dropped, 0, "%s: %s", what, c.report.why_dropped);
	cr_assert_eq(c.report.lines, n, "%s", what);
}

/* The owner's load and the one of `check` refuse it and say why; the former leaves the rows as they are. */
static void refused(const char *what)
{
	for (int read_only = 0; read_only < 2; read_only++) {
		struct collected c = { 0 };

		cr_assert_eq(load_dir(scratch, read_only, &c), -EUCLEAN, "%s: %s", what, c.err.msg);
		cr_assert(strstr(c.err.msg, "damaged"), "%s: %s", what, c.err.msg);
	}
}

static void change_row(uint64_t id, int pos, int bit, bool cut)
{
	sqlite3_stmt *s;
	sqlite3 *db;
	uint8_t *body;
	char path[300];
	int n;

	snprintf(path, sizeof(path), "%s/" JOURNAL_FILE, scratch);
	cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
	cr_assert_eq(sqlite3_prepare_v2(db, "SELECT body FROM epoch WHERE id = ?1", -1, &s, NULL), SQLITE_OK);
	sqlite3_bind_int64(s, 1, (int64_t)id);
	cr_assert_eq(sqlite3_step(s), SQLITE_ROW, "epoch %lu", id);
	n = sqlite3_column_bytes(s, 0);
	body = malloc((size_t)n);
	memcpy(body, sqlite3_column_blob(s, 0), (size_t)n);
	sqlite3_finalize(s);
	pos = pos < 0 ? n + pos : pos;
	cr_assert_lt(pos, n);
	body[pos] ^= (uint8_t)(1 << bit);
	cr_assert_eq(sqlite3_prepare_v2(db, "UPDATE epoch SET body = ?1 WHERE id = ?2", -1, &s, NULL), SQLITE_OK);
	sqlite3_bind_blob(s, 1, body, cut ? pos : n, SQLITE_STATIC);
	sqlite3_bind_int64(s, 2, (int64_t)id);
	cr_assert_eq(sqlite3_step(s), SQLITE_DONE);
	sqlite3_finalize(s);
	cr_assert_eq(sqlite3_close(db), SQLITE_OK);
	free(body);
}

/* A row of the table is whole or not there: whichever bit is another, whichever epoch it is, also the last one. */
Test(journal_refuse, any_bit_of_any_row_of_the_table)
{
	unsigned bytes = EPOCH_HEADER + 20 + 4;

	make(3, 0);
	for (uint64_t id = 1; id <= 3; id++)
		for (unsigned pos = 0; pos < bytes; pos++) {
			restore();
			change_row(id, (int)pos, (int)(pos + id) % 8, false);
			refused("a bit of a row");
		}
	for (unsigned pos = 0; pos < bytes; pos += 7) {
		restore();
		change_row(3, (int)pos, 0, true);
		refused("a row cut off");
	}
	restore();
	whole(3, "undamaged");
}

/* So is data that a row of the table carries. (Too many blocks for the ring.) */
Test(journal_refuse, data_in_a_row_of_the_table)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal_inline in[3];
	union line_buf lb[3];
	uint8_t lines[3 * sizeof(lb[0])];
	size_t stride = journal_line_stride(1);
	struct journal_epoch e = { .id = 1, .lines = (void *)lines, .nlines = 3, .inlines = in, .ninlines = 3 };
	struct journal *j = fresh_journal(&geo);

	for (uint32_t i = 0; i < 3; i++) {
		struct journal_line l = { .entry = i, .volume = 1, .line = i, .valid = 1, .fresh = 1, .dirty = 1 };

		in[i] = (struct journal_inline){ .slot = i, .crc = crc32c(data, 4096), .data = data };
		memset(&lb[i], 0, sizeof(lb[i]));
		lb[i].line = l;
		lb[i].line.blk[0] = (struct journal_block){ i, in[i].crc };
		memcpy(lines + i * stride, &lb[i], stride);
	}
	ok(journal_commit(j, &e, err));
	journal_close(j);
	copy_journal(scratch, copy_dir);
	change_row(1, -5000, 3, false);
	refused("carried data");
	restore();
	whole(3, "undamaged");
}

static void spoil_ring(uint32_t k, off_t at)
{
	char path[300];
	uint8_t byte;
	int fd;

	snprintf(path, sizeof(path), "%s/" JOURNAL_FILE RING_SUFFIX, scratch);
	fd = open(path, O_RDWR);
	cr_assert_geq(fd, 0);
	cr_assert_eq(pread(fd, &byte, 1, (off_t)k * RING_ROW + at), 1);
	byte ^= 16;
	cr_assert_eq(pwrite(fd, &byte, 1, (off_t)k * RING_ROW + at), 1);
	close(fd);
}

/* In the ring, power loss can tear the row of the newest epoch and no other: each was synced before the next commit. */
Test(journal_refuse, rows_of_the_ring_before_the_newest_epoch)
{
	static const off_t at[] = { RING_HEAD + 4, RING_HEAD + 50, RING_HEAD + 100, 4096, 4100 };
	/* epochs 1-4: all in the ring; the last in the table, so that the ring's newest is not the newest */
	static const unsigned carried[] = { 0x1e, 0x0e };

	for (unsigned which = 0; which < 2; which++) {
		remove_journal();
		make(4, carried[which]);
		for (uint32_t k = 0; k < (which ? 3 : 4); k++)
			for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
				struct collected c = { 0 };

				restore();
				spoil_ring(k, at[i]);
				if (which || k < 3) {
					refused("a row of the ring");
					continue;
				}
				cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
				cr_assert_eq(c.report.epochs_dropped, 1);
				cr_assert_eq(c.report.last_epoch, 3);
			}
		restore();
		whole(4, "undamaged");
	}
}

/* Whether the data is there cannot be told now: an error, and nothing is dropped for it. */
Test(journal_refuse, what_cannot_be_read_is_not_dropped)
{
	static const int errors[] = { -EIO, -ENOMEM, -ETIMEDOUT };

	make(5, 1u << 2); /* also with an epoch that is not asked about */
	for (unsigned i = 0; i < 3; i++) {
		struct collected c = { .verify_fails = errors[i] };

		cr_assert_eq(load_dir(scratch, i == 2, &c), errors[i], "%s", c.err.msg);
		cr_assert(c.err.msg[0]);
		whole(5, "afterwards");
		restore();
	}
}

static int no(void *ctx, const struct journal_mark *m)
{
	(void)ctx, (void)m;
	return -ENOMEM;
}

static int no_line(void *ctx, const struct journal_line *l)
{
	(void)ctx, (void)l;
	return -ESTALE;
}

static int no_redo(void *ctx, uint32_t slot, const void *block)
{
	(void)ctx, (void)slot, (void)block;
	return -EIO;
}

static int no_discard(void *ctx, const struct journal_discard *d)
{
	(void)ctx, (void)d;
	return -ENOMEM;
}

/* An epoch really is not there; but the caller gives up later. What was dropped then is still there for the next load,
 * to which its data may be. */
Test(journal_refuse, nothing_is_dropped_by_a_load_that_fails)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal_discard d = { 9, 0, 4096, 1, false };
	struct journal_epoch e = { .id = 1, .discards = &d, .ndiscards = 1 };
	struct journal *j = fresh_journal(&geo);
	struct journal_mark m = { 1, 5 };
	const uint32_t bad[] = { 3 };

	ok(journal_marks_set(j, &m, 1, err));
	ok(journal_commit(j, &e, err));
	ok(commit_one(j, 2, 0, 2, 2, 2, 0, data));
	ok(commit_one(j, 3, 0, 3, 3, 3, 77, NULL));
	j->failed = true;
	journal_close(j);
	for (int i = 0; i < 4; i++) {
		struct collected c = { .bad_slots = bad, .nbad = 1, .bpl = 1 };
		struct journal_load_ops ops = collect_ops;

		c.lines = calloc(100, journal_line_stride(1));
		*(i == 0   ? (void **)&ops.mark
		  : i == 1 ? (void **)&ops.line
		  : i == 2 ? (void **)&ops.redo
			   : (void **)&ops.discard) = i == 0   ? (void *)no
						      : i == 1 ? (void *)no_line
						      : i == 2 ? (void *)no_redo
							       : (void *)no_discard;
		ok(journal_open(scratch, false, &j, err));
		cr_assert_neq(journal_load(j, &ops, &c, &c.report, &c.err), 0);
		cr_assert(c.err.msg[0]);
		journal_close(j);
		free(c.lines);
	}
	whole(2, "afterwards");
}

/* ---- ids that are used again ---- */

static void add(struct journal *j, uint16_t id, const char *name)
{
	struct journal_volume v = { .id = id, .backing = "/dev/x", .mode = "wb" };

	snprintf(v.name, sizeof(v.name), "%s", name);
	ok(journal_volume_put(j, &v, err));
}

static void begin_discard(struct journal *j, uint64_t epoch, uint64_t id, uint16_t volume)
{
	struct journal_discard d = { id, 0, 4096, volume, false };
	struct journal_epoch e = { .id = epoch, .durable_upto = epoch - 1, .discards = &d, .ndiscards = 1 };

	ok(journal_commit(j, &e, err));
}

static void maintain(struct journal *j, uint64_t upto)
{
	int more;

	while ((more = journal_maintain(j, upto, err)) > 0)
		;
	cr_assert_eq(more, 0, "%s", err->msg);
}

/* The discards that a load would repeat. */
static unsigned told(uint16_t volume)
{
	struct collected c = { 0 };
	unsigned n = 0;

	copy_journal(scratch, copy_dir);
	cr_assert_eq(load_dir(copy_dir, false, &c), 0, "%s", c.err.msg);
	for (unsigned i = 0; i < c.ndiscards; i++)
		n += c.discards[i].volume == volume;
	for (unsigned i = 0; i < c.nsettings; i++)
		cr_assert(!strstr(c.settings[i][0], SINCE_KEY), "the journal's own settings are not told");
	return n;
}

enum when { IN_ROWS, FOLDED, BETWEEN_STEPS, MERGED, WHENS };

/* A discard that was not ended, its volume removed, another one added under the id. The discard is not the other one's,
 * wherever its record lies by then: in its row, in the table that folding puts it into, or under way between the two.
 */
static void discard_of_an_earlier_volume(enum when when, unsigned steps)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j;

	remove_journal();
	journal_fold_limits.start_epochs = when == MERGED ? 1000 : 0;
	j = fresh_journal(&geo);
	add(j, 2, "two");
	if (when == MERGED)
		for (uint64_t id = 1; id <= 50; id++)
			ok(commit_one(j, id, 0, 1, 1, 1, 0, data));
	begin_discard(j, 51, 1, 1);
	begin_discard(j, 52, 2, 2);
	if (when == FOLDED)
		maintain(j, 52);
	for (unsigned i = 0; i < steps; i++)
		cr_assert_geq(journal_maintain(j, 52, err), 0, "%s", err->msg);
	ok(journal_note_durable(j, 52, err));
	if (when == MERGED) /* its lines go first */ {
		union line_buf lb = { .line = { .entry = 1 } };
		struct journal_epoch e = { .id = 53, .durable_upto = 52, .lines = &lb.line, .nlines = 1 };

		ok(journal_commit(j, &e, err));
	}
	ok(journal_volume_delete(j, 1, err));
	cr_assert_eq(told(1), 0, "there is no volume");
	add(j, 1, "new");
	cr_assert_eq(told(1), 0, "when=%d steps=%u", when, steps);
	maintain(j, 53);
	cr_assert_eq(told(1), 0, "when=%d steps=%u, folded later", when, steps);
	cr_assert_eq(told(2), 1, "another volume's is kept");
	begin_discard(j, 60, 3, 1);
	cr_assert_eq(told(1), 1, "its own counts");
	maintain(j, 60);
	cr_assert_eq(told(1), 1, "its own counts when it is folded");
	journal_close(j);
	{
		struct collected c = { 0 };

		cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
		cr_assert_eq(c.ndiscards, 2);
	}
}

Test(journal_refuse, discards_of_an_earlier_volume)
{
	discard_of_an_earlier_volume(IN_ROWS, 0);
	discard_of_an_earlier_volume(FOLDED, 0);
	for (unsigned steps = 1; steps < 6; steps++)
		discard_of_an_earlier_volume(BETWEEN_STEPS, steps);
	for (unsigned steps = 0; steps < 4; steps++)
		discard_of_an_earlier_volume(MERGED, steps);
}

/* What is left of a release that kept no such notes: of a volume that is gone, folded or not. */
Test(journal_refuse, discards_that_an_earlier_release_left)
{
	for (int folded = 0; folded < 2; folded++) {
		struct journal_geometry geo = geometry(100, 100, 1);
		struct journal *j;
		sqlite3 *db;
		char path[300];

		remove_journal();
		journal_fold_limits.start_epochs = 0;
		j = fresh_journal(&geo);
		begin_discard(j, 1, 1, 1);
		if (folded)
			maintain(j, 1);
		journal_close(j);
		snprintf(path, sizeof(path), "%s/" JOURNAL_FILE, scratch);
		cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
		cr_assert_eq(sqlite3_exec(db, "DELETE FROM setting; DELETE FROM volume", NULL, NULL, NULL), SQLITE_OK);
		sqlite3_close(db);
		ok(journal_open(scratch, false, &j, err));
		{
			struct collected c = { 0 };

			cr_assert_eq(load_into(j, &c), 0, "%s", c.err.msg);
			cr_assert_eq(c.ndiscards, 0);
		}
		add(j, 1, "new");
		cr_assert_eq(told(1), 0, "folded: %d", folded);
		journal_close(j);
	}
}

/* Without its note a volume is one that has always been there. */
Test(journal_refuse, volumes_of_an_earlier_release_keep_what_is_theirs)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct collected c = { 0 };
	sqlite3 *db;
	char path[300];
	struct journal *j = fresh_journal(&geo);

	begin_discard(j, 1, 1, 1);
	ok(commit_one(j, 2, 1, 2, 2, 2, 0, data));
	journal_close(j);
	snprintf(path, sizeof(path), "%s/" JOURNAL_FILE, scratch);
	cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
	cr_assert_eq(sqlite3_exec(db, "DELETE FROM setting", NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	ok(journal_open(scratch, false, &j, err));
	cr_assert_eq(load_into(j, &c), 0, "%s", c.err.msg);
	cr_assert(c.ndiscards == 1 && c.report.lines == 1);
	add(j, 1, "one"); /* as a mode switch does: the row is there */
	cr_assert_eq(told(1), 1);
	journal_close(j);
}

/* Far more often than there are ids. Nothing is left behind. */
Test(journal_refuse, ids_never_run_out)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	struct collected c = { 0 };
	struct journal_mark m = { 7, 1 };

	sqlite3_exec(j->db, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
	for (unsigned i = 0; i < 70000; i++) {
		add(j, 7, "seven");
		if (i % 1000 == 0)
			ok(journal_marks_set(j, &m, 1, err));
		ok(journal_volume_delete(j, 7, err));
		if (i % 100 == 0)
			maintain(j, 0);
	}
	journal_close(j);
	cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
	cr_assert(c.nvolumes == 1 && !c.nmarks && !c.nsettings);
}

/* Lines that were recorded before their volume was added cannot be its own. */
Test(journal_refuse, lines_of_an_earlier_volume)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);

	ok(commit_one(j, 1, 0, 1, 1, 1, 0, data));
	ok(journal_volume_delete(j, 1, err)); /* its lines had to go first */
	add(j, 1, "new");
	journal_close(j);
	refused("an old line");
}
