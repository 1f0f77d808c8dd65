/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_journal_damage.c - what recovery drops, repeats and refuses: epochs without their data, rows with flipped bits,
 * records that make no sense, rows of the ring of which half is gone, rot in SQLite's log. Never a crash, never a
 * silent wrong state.
 */
#include <errno.h>
#include <time.h>

#include "journal_util.h"

static void setup(void)
{
	scratch_make();
	journal_wal_reserve = 0;
}

TestSuite(journal_damage, .init = setup, .fini = scratch_remove, .timeout = 300);

static char *path_of(const char *name)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	return path;
}

/* A stamp of a file's contents; 0 if it is missing. */
static uint64_t stamp(const char *name)
{
	FILE *f = fopen(path_of(name), "r");
	uint64_t h = 1;
	int ch;

	if (!f)
		return 0;
	while ((ch = getc_unlocked(f)) != EOF)
		h = (h ^ (uint64_t)ch) * 1099511628211u;
	fclose(f);
	return h;
}

/* As if the process had been killed. */
static void die(struct journal *j)
{
	j->failed = true;
	journal_close(j);
}

/* ---- dropping ---- */

/* P2: an epoch whose data is missing goes, and all after it; what went stays away, and its ids are not used again. */
Test(journal_damage, bad_epoch_and_all_later_are_dropped)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	const uint32_t bad[] = { 3 };
	uint64_t db, wal;

	for (uint32_t id = 1; id <= 5; id++)
		ok(commit_one(j, id, 1, id, id, id, id, NULL));
	copy_journal(scratch, copy_dir);
	journal_close(j);
	copy_journal(copy_dir, scratch);

	for (int round = 0; round < 3; round++) {
		/* first read-only: nothing may change on disk; then for real; then what is left */
		struct collected c = { .bad_slots = bad, .nbad = round < 2 };

		db = stamp(JOURNAL_FILE);
		wal = stamp(JOURNAL_FILE "-wal");
		cr_assert_eq(load_dir(scratch, round == 0, &c), 0, "%s", c.err.msg);
		cr_assert_eq(c.report.last_epoch, 2);
		cr_assert_eq(c.report.lines, 2);
		cr_assert_eq(c.report.next_id, 6, "ids of dropped epochs are not used again");
		cr_assert_eq(c.report.epochs_dropped, round < 2 ? 3 : 0);
		cr_assert_eq(c.report.epochs_replayed, 2);
		if (round < 2)
			cr_assert(strstr(c.report.why_dropped, "epoch 3"), "%s", c.report.why_dropped);
		if (round == 0) {
			cr_assert_neq(wal, 0);
			cr_assert_eq(stamp(JOURNAL_FILE), db);
			cr_assert_eq(stamp(JOURNAL_FILE "-wal"), wal);
		}
	}
}

/* A durable_upto told by a row that is dropped itself is true all the same: epochs up to it are kept unseen. */
Test(journal_damage, durable_upto_of_a_dropped_epoch_counts)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	const uint32_t bad[] = { 1, 2, 3, 4, 5 };

	for (int round = 0; round < 2; round++) {
		struct collected c = { .bad_slots = bad, .nbad = 5 };

		if (!round) {
			for (uint32_t id = 1; id <= 5; id++)
				ok(commit_one(j, id, id == 5 ? 3 : 0, id, id, id, id, NULL));
			journal_close(j);
		}
		cr_assert_eq(load_dir(scratch, false, &c), 0, "%s", c.err.msg);
		cr_assert_eq(c.report.last_epoch, 3, "%lu", c.report.last_epoch);
		cr_assert_eq(c.report.epochs_dropped, round ? 0 : 2);
	}
}

/* Only epochs newer than durable_upto are read back from the data file: a restart does not read the whole cache. */
Test(journal_damage, durable_epochs_are_not_verified)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	static uint8_t data[4096];
	struct collected c = { 0 };

	for (uint32_t id = 1; id <= 5; id++)
		ok(commit_one(j, id, id < 3 ? 0 : 3, id, id, id, id, id == 5 ? data : NULL));
	journal_close(j);
	cr_assert_eq(load_dir(scratch, true, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.verified, 1, "epoch 4; 1-3 are durable, 5 carries its data");
	cr_assert_eq(c.nredo, 1);
	cr_assert_eq(c.redo_slots[0], 5);
}

/* ---- redo ---- */

/* P3: carried data goes to its slot only while the final state has it there. */
Test(journal_damage, redo_spares_slots_with_newer_data)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	union line_buf lb = { .line = { .entry = 1 } };
	struct journal_epoch gone = { .id = 4, .lines = &lb.line, .nlines = 1 };
	static uint8_t a[4096], b[4096], c2[4096];
	struct collected c = { 0 };

	a[0] = 1, b[0] = 2, c2[0] = 3;
	ok(commit_one(j, 1, 0, 1, 1, 10, 0, a)); /* its slot is freed, and then used by entry 4 */
	ok(commit_one(j, 2, 0, 2, 2, 20, 0, b)); /* stays */
	ok(commit_one(j, 3, 0, 3, 3, 30, 0, a)); /* overwritten in place by epoch 6 */
	ok(journal_commit(j, &gone, err));
	ok(commit_one(j, 5, 0, 4, 4, 10, 77, NULL));
	ok(commit_one(j, 6, 0, 3, 3, 30, 0, c2));
	journal_close(j);
	cr_assert_eq(load_dir(scratch, true, &c), 0, "%s", c.err.msg);
	cr_assert_eq(c.report.redo_blocks, 2);
	cr_assert_eq(c.nredo, 2);
	cr_assert(c.redo_slots[0] == 20 && c.redo_first[0] == 2);
	cr_assert(c.redo_slots[1] == 30 && c.redo_first[1] == 3);
}

/* ---- discards ---- */

Test(journal_damage, pending_discards_survive_folding)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j;
	struct journal_discard d[] = { { 1, 4096, 8192, 1, false }, { 2, 0, 4096, 1, false }, { 3, 0, 1, 1, false } };
	struct journal_discard done[] = { { 2, 0, 4096, 1, true } }, late[] = { { 3, 0, 1, 1, true } };
	struct journal_epoch e[] = { { .id = 1, .discards = d, .ndiscards = 3 },
				     { .id = 2, .discards = done, .ndiscards = 1 },
				     { .id = 3, .discards = late, .ndiscards = 1 } };
	int more;

	journal_fold_limits.start_epochs = 0;
	j = fresh_journal(&geo);
	ok(journal_commit(j, &e[0], err));
	ok(journal_commit(j, &e[1], err));
	while ((more = journal_maintain(j, 2, err)) > 0)
		;
	cr_assert_eq(more, 0, "%s", err->msg);
	for (int round = 0; round < 2; round++) {
		struct journal_stats s;
		struct collected c = { 0 };

		journal_get_stats(j, &s);
		cr_assert_eq(s.epochs_held, round, "folded");
		copy_journal(scratch, copy_dir);
		cr_assert_eq(load_dir(copy_dir, false, &c), 0, "%s", c.err.msg);
		cr_assert_eq(c.ndiscards, 2 - round);
		cr_assert(c.discards[0].id == 1 && c.discards[0].offset == 4096 && c.discards[0].length == 8192 &&
			  !c.discards[0].done);
		if (!round)
			ok(journal_commit(j, &e[2], err));
	}
	journal_close(j);
}

/* ---- damaged rows ---- */

/* A journal with something in every table: epochs 1-3 folded, 4 durable, 5 newest and not durable, in the ring. */
static void make_full(void)
{
	struct journal_geometry geo = geometry(600, 600, 1);
	struct journal_discard d = { 9, 0, 4096, 1, false };
	struct journal_epoch e = { .id = 3, .discards = &d, .ndiscards = 1 };
	struct journal_mark m = { 1, 5 };
	static uint8_t data[4096];
	struct journal *j;

	journal_fold_limits.start_epochs = 0;
	j = fresh_journal(&geo);
	ok(journal_setting_put(j, "ram", "64M", err));
	ok(journal_marks_set(j, &m, 1, err));
	ok(commit_one(j, 1, 0, 1, 1, 1, 1, NULL));
	ok(commit_one(j, 2, 0, 300, 2, 2, 2, NULL));
	ok(journal_commit(j, &e, err));
	while (journal_maintain(j, 3, err) > 0)
		;
	ok(commit_one(j, 4, 3, 400, 4, 4, 4, NULL));
	ok(commit_one(j, 5, 4, 500, 5, 5, 0, data));
	journal_close(j);
	copy_journal(scratch, copy_dir); /* the template */
}

static void sql(const char *text)
{
	sqlite3 *db;
	char *msg = NULL;

	cr_assert_eq(sqlite3_open(path_of(JOURNAL_FILE), &db), SQLITE_OK);
	cr_assert_eq(sqlite3_exec(db, text, NULL, NULL, &msg), SQLITE_OK, "%s: %s", text, msg);
	cr_assert_neq(sqlite3_changes(db), 0, "%s", text);
	cr_assert_eq(sqlite3_close(db), SQLITE_OK);
}

/* Flips a bit of a blob. */
static void flip(const char *table, const char *where, int pos, int bit)
{
	sqlite3_stmt *s;
	sqlite3 *db;
	uint8_t *body;
	char text[200];
	int n;

	cr_assert_eq(sqlite3_open(path_of(JOURNAL_FILE), &db), SQLITE_OK);
	snprintf(text, sizeof(text), "SELECT body FROM %s WHERE %s", table, where);
	cr_assert_eq(sqlite3_prepare_v2(db, text, -1, &s, NULL), SQLITE_OK);
	cr_assert_eq(sqlite3_step(s), SQLITE_ROW, "%s", text);
	n = sqlite3_column_bytes(s, 0);
	body = malloc((size_t)n);
	memcpy(body, sqlite3_column_blob(s, 0), (size_t)n);
	sqlite3_finalize(s);
	pos = pos < 0 ? n + pos : pos;
	if (pos < n)
		body[pos] ^= (uint8_t)(1 << bit);
	snprintf(text, sizeof(text), "UPDATE %s SET body = ?1 WHERE %s", table, where);
	cr_assert_eq(sqlite3_prepare_v2(db, text, -1, &s, NULL), SQLITE_OK);
	sqlite3_bind_blob(s, 1, body, n, SQLITE_STATIC);
	cr_assert_eq(sqlite3_step(s), SQLITE_DONE);
	sqlite3_finalize(s);
	sqlite3_close(db);
	free(body);
}

/* Bytes of the ring's file. */
static void write_ring(off_t pos, const void *p, size_t n)
{
	int fd = open(path_of(JOURNAL_FILE RING_SUFFIX), O_RDWR);

	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, p, n, pos), (ssize_t)n);
	close(fd);
}

static void read_ring(off_t pos, void *p, size_t n)
{
	int fd = open(path_of(JOURNAL_FILE RING_SUFFIX), O_RDONLY);

	cr_assert_geq(fd, 0);
	cr_assert_eq(pread(fd, p, n, pos), (ssize_t)n);
	close(fd);
}

/* The damage must be refused with a message, by owner and check alike, and check must find it if the journal can be
 * opened at all. */
static void refused(const char *what)
{
	for (int ro = 0; ro < 2; ro++) {
		struct collected c = { 0 };
		struct journal *j;
		int code = load_dir(scratch, ro, &c);

		cr_assert_eq(code, -EUCLEAN, "%s: %d %s", what, code, code ? c.err.msg : "");
		cr_assert(strstr(c.err.msg, "damaged") && strstr(c.err.msg, JOURNAL_FILE), "%s", c.err.msg);
		if (ro && !journal_open(scratch, true, &j, err)) {
			cr_assert_gt(journal_check(j, NULL, NULL), 0, "%s: check finds nothing", what);
			journal_close(j);
		}
	}
	copy_journal(copy_dir, scratch);
}

/* Every row carries a checksum; a flipped bit is damage wherever it is, except in the newest epoch, which is dropped.
 */
Test(journal_damage, flipped_bits_are_found)
{
	static const int pos[] = { 0, 4, 5, 8, 12, 16, 24, 28, 32, 36, 40, 44, 47, -1, -4 };
	static const struct {
		const char *table, *where;
	} rows[] = { { "snapshot", "row = 0" }, { "snapshot", "row = 2" }, { "volume", "id = 1" },
		     { "discard", "id = 9" },   { "geometry", "one = 1" }, { "epoch", "id = 4" } };
	struct collected c = { 0 };
	uint8_t row[RING_ROW];

	make_full();
	cr_assert_eq(load_dir(scratch, true, &c), 0, "%s", c.err.msg);
	cr_assert(c.report.lines == 4 && c.nmarks == 1 && c.ndiscards == 1 && c.nsettings == 1 && c.nredo == 1);
	for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
		for (size_t p = 0; p < sizeof(pos) / sizeof(pos[0]); p++) {
			if (!strcmp(rows[r].table, "discard") && pos[p] >= 36)
				continue;
			flip(rows[r].table, rows[r].where, pos[p], (int)(p % 8));
			refused(rows[r].table);
		}
	}
	sql("UPDATE setting SET value = '64G' WHERE key = 'ram'");
	refused("setting");
	sql("UPDATE mark SET key = key + 1");
	refused("mark");
	sql("UPDATE state SET durable_upto = durable_upto + 1");
	refused("state");
	sql("DELETE FROM state");
	refused("state missing");
	sql("DELETE FROM snapshot WHERE row = 1");
	refused("snapshot row missing");
	sql("DELETE FROM snapshot WHERE row = 2");
	refused("last snapshot row missing");
	sql("UPDATE snapshot SET body = NULL WHERE row = 2");
	refused("snapshot row empty");
	sql("UPDATE epoch SET body = 'text' WHERE id = 4");
	refused("epoch is text");
	sql("UPDATE epoch SET body = NULL WHERE id = 4");
	refused("epoch is null");
	sql("UPDATE epoch SET id = 1 WHERE id = 4");
	refused("epoch with another's number");
	sql("UPDATE epoch SET id = 5 WHERE id = 4");
	refused("an epoch that is in the ring as well");
	cr_assert_eq(truncate(path_of(JOURNAL_FILE RING_SUFFIX), 63 * RING_ROW), 0);
	refused("last ring row missing");
	cr_assert_eq(truncate(path_of(JOURNAL_FILE RING_SUFFIX), 0), 0);
	refused("all ring rows missing");
	read_ring(1 * RING_ROW, row, RING_ROW);
	write_ring(2 * RING_ROW, row, RING_ROW);
	refused("ring row of another's number");
	unlink(path_of(JOURNAL_FILE RING_SUFFIX));
	cr_assert_eq(load_dir(scratch, false, &c), -ENOENT);
	cr_assert(strstr(c.err.msg, RING_SUFFIX) && strstr(c.err.msg, "restore"), "%s", c.err.msg);
}

Test(journal_damage, damaged_newest_epoch_is_dropped)
{
	/* of a row in the ring: the length of the epoch is 4096 + 40 + 20 + 8 + 4 */
	static const int pos[] = { 0, 4, 8, 16, 24, 28, 32, 36, 40, 44, 60, 72, 4167 };

	make_full();
	for (size_t p = 0; p < sizeof(pos) / sizeof(pos[0]) + 2; p++) {
		struct collected c = { 0 };
		uint8_t row[RING_ROW];

		read_ring(0, row, RING_ROW);
		if (p < sizeof(pos) / sizeof(pos[0]))
			row[RING_HEAD + pos[p]] ^= (uint8_t)(1 << (p % 8));
		else
			memset(row + RING_HEAD, 0, p & 1 ? RING_ROOM : 100);
		write_ring(0, row, RING_ROW);
		cr_assert_eq(load_dir(scratch, false, &c), 0, "p=%zu: %s", p, c.err.msg);
		cr_assert_eq(c.report.last_epoch, 4);
		cr_assert_eq(c.report.epochs_dropped, 1);
		cr_assert(strstr(c.report.why_dropped, "epoch 5"), "%s", c.report.why_dropped);
		cr_assert_eq(c.report.lines, 3);
		copy_journal(copy_dir, scratch);
	}
}

/* ---- ring ---- */

enum ring_damage { HEAD, FIRST_PAGE, COPY, LAST_PAGE, BOTH_HEADS, FIRST_OLDER, LAST_OLDER, RING_DAMAGES };

static void damage_ring(uint32_t k, enum ring_damage how)
{
	uint8_t row[RING_ROW], old[RING_ROW];

	read_ring((off_t)k * RING_ROW, row, RING_ROW);
	ring_encode(k, 0, 0, 0, old);
	if (how == HEAD || how == BOTH_HEADS)
		row[9] ^= 8;
	if (how == COPY || how == BOTH_HEADS)
		row[RING_ROW - RING_HEAD + 9] ^= 8;
	if (how == FIRST_PAGE)
		memset(row, 0x55, 4096);
	if (how == LAST_PAGE)
		memset(row + 4096, 0x55, 4096);
	if (how == FIRST_OLDER)
		memcpy(row, old, 4096);
	if (how == LAST_OLDER)
		memcpy(row + 4096, old + 4096, 4096);
	write_ring((off_t)k * RING_ROW, row, RING_ROW);
}

/* A row of the ring lies on two pages. Whichever is damaged, or older than the other, it is known which epoch it held:
 * harmless if that was folded, refused if it is durable and its records are gone, dropped if it is the newest. */
Test(journal_damage, ring_row_of_which_a_page_is_damaged)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	static uint8_t data[4096];
	struct journal *j;

	memset(data, 0x77, sizeof(data));
	journal_fold_limits.start_epochs = 0;
	j = fresh_journal(&geo);
	/* 1 and 2 folded, 3 durable, 4 newest and not durable: in rows 0-3 */
	for (uint32_t id = 1; id <= 2; id++)
		ok(commit_one(j, id, 0, id, id, id, 0, data));
	while (journal_maintain(j, 2, err) > 0)
		;
	ok(commit_one(j, 3, 2, 3, 3, 3, 0, data));
	ok(commit_one(j, 4, 3, 4, 4, 4, 0, data));
	journal_close(j);
	copy_journal(scratch, copy_dir);
	for (uint32_t id = 1; id <= 4; id++) {
		for (enum ring_damage how = 0; how < RING_DAMAGES; how++) {
			bool drop = id == 4 && (how == FIRST_PAGE || how == LAST_PAGE || how == LAST_OLDER);
			struct collected c = { 0 }, again = { 0 };

			damage_ring(id - 1, how);
			if (how == BOTH_HEADS || (id == 3 && (how == FIRST_PAGE || how == FIRST_OLDER))) {
				refused("ring row");
				continue;
			}
			ok(journal_open(scratch, true, &j, err));
			cr_assert_eq(journal_check(j, NULL, NULL) > 0, id > 2, "epoch %u, damage %d", id, how);
			journal_close(j);
			if (how != FIRST_OLDER) { /* only check finds that */
				cr_assert_eq(load_dir(scratch, false, &c), 0, "epoch %u, damage %d: %s", id, how,
					     c.err.msg);
				cr_assert_eq(c.report.last_epoch, drop ? 3 : 4, "epoch %u, damage %d", id, how);
				cr_assert_eq(c.report.epochs_dropped, drop, "epoch %u, damage %d", id, how);
				cr_assert_eq(c.report.lines, drop ? 3 : 4);
				/* without epoch 4's records nothing says that 3 is durable */
				cr_assert_eq(c.nredo, !drop || how == FIRST_PAGE);
				cr_assert_eq(load_dir(scratch, false, &again), 0, "%s", again.err.msg);
				cr_assert_eq(again.report.last_epoch, drop ? 3 : 4);
				cr_assert_eq(again.report.epochs_dropped, 0);
				cr_assert_eq(again.report.next_id, 5, "ids of dropped epochs are not used again");
			}
			copy_journal(copy_dir, scratch);
		}
	}
}

/* Epochs go round the ring as long as they are merged in time, else to the other table; a restart at any point finds
 * all of them, in order, whichever table they are in, merged, or folded. */
Test(journal_damage, ring_wraps_and_overflows)
{
	struct journal_geometry geo = geometry(1000, 1000, 1);
	static uint8_t data[4096];
	struct journal_stats st;
	struct journal *j;
	uint32_t id = 0, rows = ring_rows(&geo), in_table = 0, merged = 0;

	cr_assert_eq(rows, 64);
	journal_fold_limits.start_ring = 0;
	j = fresh_journal(&geo);
	for (unsigned round = 0; round < 12; round++) {
		struct collected c = { 0 };
		bool late = round % 3 == 2;
		uint32_t before = id;

		for (unsigned i = 0; i < (late ? rows + 30 : rows / 2 + 5); i++) {
			id++;
			memcpy(data, &id, sizeof(id));
			/* the same few entries over and over: an order that is not kept would show */
			ok(commit_one(j, id, id - 1, id % 7, id % 7, id % 7, 0, data));
		}
		cr_assert(journal_fold_wanted(j));
		for (size_t i = j->held_first; i < j->held_end; i++)
			in_table += j->held[i].row == RING_NONE && j->held[i].id > before;
		copy_journal(scratch, copy_dir);
		cr_assert_eq(load_dir(copy_dir, round & 1, &c), 0, "%s", c.err.msg);
		cr_assert_eq(c.report.last_epoch, id);
		for (uint32_t e = 0; e < 7; e++) {
			uint32_t last = id - (id % 7 + 7 - e) % 7;

			memcpy(data, &last, sizeof(last));
			cr_assert_eq(line_of(c.lines, 1, e)->blk[0].crc, crc32c(data, 4096), "entry %u", e);
		}
		while (journal_maintain(j, id, err) > 0)
			;
		journal_get_stats(j, &st);
		merged = journal_fold_limits.start_epochs ? merged + 1 : 0;
		cr_assert_eq(st.epochs_held, merged, "half of the ring is reason to merge");
		cr_assert(!merged || (j->held[j->held_end - 1].row == RING_NONE && j->held[j->held_end - 1].id == id));
		journal_fold_limits.start_epochs = round == 6 ? 0 : 1000; /* the next time all is folded */
		cr_assert(!journal_fold_wanted(j));
		if (round == 5) { /* and go on where it was */
			struct collected again = { 0 };

			journal_close(j);
			ok(journal_open(scratch, false, &j, err));
			cr_assert_eq(load_into(j, &again), 0, "%s", again.err.msg);
			cr_assert_eq(again.report.last_epoch, id);
		}
	}
	cr_assert_eq(in_table, 4 * 30, "%u", in_table);
	journal_close(j);
}

static int ring_breaks(bool sync)
{
	return sync ? 0 : -EIO;
}

/* P2: recovery drops epochs of both kinds, and stops before the ring's rows are emptied: what is left of them does not
 * pass for a history without gap. (Power loss alone never drops more than one epoch: the rig cannot come here.) */
Test(journal_damage, dropped_epochs_of_the_ring_are_void_first)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	const uint32_t bad[] = { 2 };
	static uint8_t data[4096];
	struct collected c = { .bad_slots = bad, .nbad = 1 };

	ok(commit_one(j, 1, 0, 1, 1, 1, 1, NULL));
	ok(commit_one(j, 2, 1, 2, 2, 2, 2, NULL));
	ok(commit_one(j, 3, 1, 3, 3, 3, 0, data));
	cr_assert_neq(j->held[j->held_end - 1].row, RING_NONE);
	journal_close(j);
	ok(journal_open(scratch, false, &j, err));
	journal_ring_step = ring_breaks;
	cr_assert_eq(load_into(j, &c), -EIO);
	journal_ring_step = NULL;
	die(j);
	for (int round = 0; round < 3; round++) {
		memset(&c, 0, sizeof(c));
		cr_assert_eq(load_dir(scratch, !round, &c), 0, "%s", c.err.msg);
		cr_assert_eq(c.report.last_epoch, 1, "%lu", c.report.last_epoch);
		cr_assert_eq(c.report.next_id, 4, "ids of dropped epochs are not used again");
	}
}

/* SQLite would open it for reading only, and the first write would fail. */
Test(journal_damage, write_version_in_the_header_is_looked_at)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	const uint8_t version = 9;
	int fd;

	journal_close(j);
	fd = open(path_of(JOURNAL_FILE), O_WRONLY | O_CLOEXEC);
	cr_assert_eq(pwrite(fd, &version, 1, 18), 1);
	close(fd);
	for (int read_only = 0; read_only < 2; read_only++) {
		cr_assert_eq(journal_open(scratch, read_only, &j, err), -EUCLEAN);
		cr_assert(strstr(err->msg, "damaged"), "%s", err->msg);
	}
}

/* Records that are in order on the outside but contradict each other or the geometry. */
Test(journal_damage, senseless_records_are_refused)
{
	struct journal_geometry geo = geometry(600, 600, 1);
	uint8_t row[JOURNAL_PAGE];
	union line_buf lb;
	struct journal *j;

	make_full();
	for (int k = 0; k < 5; k++) {
		sqlite3_stmt *s;
		sqlite3 *db;

		memset(&lb, 0, sizeof(lb));
		lb.line = (struct journal_line){ .entry = 520, .volume = 1, .valid = 1, .line = 9 };
		lb.line.blk[0].slot = 9;
		snapshot_init(1, 2, row); /* entries 504 .. 755; the table ends at 599 */
		if (k == 1)
			lb.line.blk[0].slot = 600;
		if (k == 2)
			lb.line.volume = 2;
		if (k == 3)
			lb.line.blk[0].slot = 4;
		if (k == 4)
			lb.line.valid = 0, lb.line.dirty = 1;
		snapshot_put(1, row, k == 0 ? 700 - 504 : 520 - 504, &lb.line);
		snapshot_seal(1, row);
		sqlite3_open(path_of(JOURNAL_FILE), &db);
		sqlite3_prepare_v2(db, "UPDATE snapshot SET body = ?1 WHERE row = 2", -1, &s, NULL);
		sqlite3_bind_blob(s, 1, row, (int)snapshot_size(1), SQLITE_STATIC);
		cr_assert_eq(sqlite3_step(s), SQLITE_DONE);
		sqlite3_finalize(s);
		sqlite3_close(db);
		for (int ro = 0; ro < 2; ro++) {
			struct collected c = { 0 };

			cr_assert_eq(load_dir(scratch, ro, &c), -EUCLEAN, "case %d", k);
			cr_assert(strstr(c.err.msg, "damaged"), "%s", c.err.msg);
		}
		copy_journal(copy_dir, scratch);
	}
	remove_journal();
	j = fresh_journal(&geo);
	ok(commit_one(j, 1, 0, 1, 1, 50, 1, NULL));
	ok(commit_one(j, 2, 0, 2, 2, 50, 1, NULL)); /* slot 50 twice */
	journal_close(j);
	{
		struct collected c = { 0 };

		cr_assert_eq(load_dir(scratch, true, &c), -EUCLEAN);
		cr_assert(strstr(c.err.msg, "used twice"), "%s", c.err.msg);
	}
}

/* Bytes flipped anywhere in the database file, SQLite's own structures included: an error or the right lines, never a
 * crash. */
Test(journal_damage, noise_in_the_file)
{
	uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)time(NULL);
	struct collected want = { 0 };
	unsigned refusals = 0;

	cr_log_info("SEED=%lu", seed);
	rnd_state = seed;
	make_full();
	cr_assert_eq(load_dir(scratch, true, &want), 0);
	for (unsigned i = 0; i < 400; i++) {
		struct collected c = { 0 };
		int fd, code;
		uint8_t b;
		off_t at;

		fd = open(path_of(JOURNAL_FILE), O_RDWR);
		for (unsigned k = 0; k < 1 + rnd(3); k++) {
			/* The first pages hold everything but the reserve; headers of pages are hit more often. */
			at = (off_t)rnd(24) * 4096 + (rnd(2) ? rnd(16) : rnd(4096));
			cr_assert_eq(pread(fd, &b, 1, at), 1);
			b = rnd(2) ? (uint8_t)(b ^ 1 << rnd(8)) : (uint8_t)rnd(256);
			cr_assert_eq(pwrite(fd, &b, 1, at), 1);
		}
		close(fd);
		code = load_dir(scratch, i & 1, &c);
		cr_assert_leq(code, 0);
		if (code)
			cr_assert_neq(c.err.msg[0], 0);
		else if (c.report.epochs_replayed == 2)
			cr_assert_eq(memcmp(c.lines, want.lines, 600 * journal_line_stride(1)), 0, "silent damage");
		if (i & 1) {
			struct journal *j;

			if (!journal_open(scratch, true, &j, err)) {
				journal_check(j, NULL, NULL);
				journal_close(j);
			}
		}
		refusals += code != 0;
		remove_journal();
		copy_journal(copy_dir, scratch);
	}
	cr_log_info("%u of 400 refused", refusals);
	cr_assert_gt(refusals, 20);
}

/* ---- the log (wal.c) ---- */

#define WAL_HEADER 32
#define WAL_FRAME (24 + 4096)
#define WAL_NAME JOURNAL_FILE "-wal"

static struct {
	uint8_t *bytes;
	size_t len;
} wal;

static void read_wal(void)
{
	struct stat st;
	int fd = open(path_of(WAL_NAME), O_RDONLY);

	cr_assert(fd >= 0 && !fstat(fd, &st));
	wal.len = (size_t)st.st_size;
	wal.bytes = realloc(wal.bytes, wal.len);
	cr_assert_eq(read(fd, wal.bytes, wal.len), (ssize_t)wal.len);
	close(fd);
}

static void write_wal(size_t at, const void *p, size_t n)
{
	int fd = open(path_of(WAL_NAME), O_WRONLY);

	cr_assert(fd >= 0 && pwrite(fd, p, n, (off_t)at) == (ssize_t)n);
	close(fd);
}

static size_t frame_at(unsigned i) /* counted from 1, as SQLite does */
{
	return WAL_HEADER + (size_t)(i - 1) * WAL_FRAME;
}

/* Frames with the header's salts. */
static unsigned frames_in_use(void)
{
	unsigned n = 0;

	while (frame_at(n + 2) <= wal.len && !memcmp(wal.bytes + frame_at(n + 1) + 8, wal.bytes + 16, 8))
		n++;
	return n;
}

static bool frame_ends(unsigned i)
{
	static const uint8_t none[4];

	return memcmp(wal.bytes + frame_at(i) + 4, none, 4) != 0;
}

/* Its head is on two sectors. */
static bool head_is_split(unsigned i)
{
	return frame_at(i) % 512 > 512 - 24;
}

/* An epoch whose row is on a page or many. */
static int commit_many(struct journal *j, uint64_t id, uint32_t n)
{
	size_t stride = journal_line_stride(1);
	uint8_t *lines = calloc(n, stride);
	struct journal_epoch e = { .id = id, .lines = (struct journal_line *)lines, .nlines = n };
	int code;

	for (uint32_t i = 0; i < n; i++) {
		struct journal_line *l = line_of(lines, 1, i);

		*l = (struct journal_line){ .entry = i, .volume = 1, .line = i, .valid = 1, .dirty = 1, .fresh = 1 };
		l->blk[0] = (struct journal_block){ .slot = i, .crc = (uint32_t)id };
	}
	code = journal_commit(j, &e, err);
	free(lines);
	return code;
}

/* A log with an earlier round behind its end, and in it transactions of all kinds, the last of which is an
 * epoch. Returns that epoch. */
static uint32_t make_log(void)
{
	struct journal_geometry geo = geometry(1000, 1000, 1);
	struct journal_mark m = { 1, 5 };
	uint32_t id = 0;
	struct journal *j;

	journal_fold_limits.start_epochs = 0;
	journal_fold_limits.delete_epochs = 2;
	j = fresh_journal(&geo);
	for (; id < 40; id++)
		ok(commit_many(j, id + 1, id % 3 ? 5 : 600));
	while (journal_maintain(j, id, err) > 0)
		;
	ok(jdb_checkpoint(j, err));
	ok(journal_setting_put(j, "ram", "64M", err));
	ok(commit_many(j, ++id, 300));
	ok(journal_marks_set(j, &m, 1, err));
	ok(commit_many(j, ++id, 5));
	while (journal_maintain(j, id - 1, err) > 0)
		;
	for (unsigned i = 0; i < 8; i++)
		ok(commit_many(j, ++id, i % 3 ? 3 : 400));
	ok(commit_many(j, ++id, 500));
	die(j);
	read_wal();
	copy_journal(scratch, copy_dir);
	return id;
}

/* Read-only and as the owner: both refuse with a reason and change nothing, or both see the same epochs. The last one,
 * 0 if refused. */
static uint64_t load_log(const char *what)
{
	uint64_t db = stamp(JOURNAL_FILE), log = stamp(WAL_NAME), last = 0;

	for (int round = 0; round < 2; round++) {
		struct collected c = { 0 };
		int code = load_dir(scratch, !round, &c);

		cr_assert(!code || code == -EUCLEAN, "%s: %d %s", what, code, c.err.msg);
		if (code)
			cr_assert(strstr(c.err.msg, "damaged") && strstr(c.err.msg, WAL_NAME) &&
					  strstr(c.err.msg, "restore"),
				  "%s: %s", what, c.err.msg);
		if (code || !round)
			cr_assert(stamp(JOURNAL_FILE) == db && stamp(WAL_NAME) == log, "%s: files were changed", what);
		if (round)
			cr_assert_eq(last, code ? 0 : c.report.last_epoch, "%s: owner and reader differ", what);
		last = code ? 0 : c.report.last_epoch;
	}
	return last;
}

/* P1: a byte that rots in the log does not hide flushed epochs without a word, unless it is in the last transaction,
 * which then looks as if power loss had torn it. */
Test(journal_damage, rot_in_the_log_is_found)
{
	static const unsigned pos[] = { 0, 4, 7, 8, 15, 16, 23, 24, 2000, 4119 };
	uint32_t last = make_log();
	unsigned n = frames_in_use(), end = n - 1, untold = 0;
	char what[80];

	cr_assert_eq(load_log("undamaged"), last);
	copy_journal(copy_dir, scratch);
	while (!frame_ends(end))
		end--;
	cr_assert(n > 30 && end < n - 3, "%u frames, the last transaction after %u", n, end);
	cr_assert_gt(wal.len, frame_at(n + 4), "an earlier round behind the end: %u frames of %zu", n,
		     wal.len / WAL_FRAME);
	for (unsigned i = 1; i <= n + 3; i++) {
		for (unsigned p = 0; p < sizeof(pos) / sizeof(pos[0]); p++) {
			uint8_t b = wal.bytes[frame_at(i) + pos[p]] ^ (uint8_t)(1 << (i + p) % 8);
			uint64_t got;

			if ((i + p) % 4 && i + 6 < end)
				continue; /* in turn, for speed */
			snprintf(what, sizeof(what), "frame %u of %u, byte %u", i, n, pos[p]);
			write_wal(frame_at(i) + pos[p], &b, 1);
			got = load_log(what);
			if (i > n) {
				cr_assert_eq(got, last, "%s: it does not count", what);
			} else if (i > end) {
				/* one in the middle that now says it ends a transaction is found all the same */
				cr_assert(got == last - 1 || (!got && i < n && !frame_ends(i)), "%s: %lu", what, got);
				untold++;
			} else if (got) {
				cr_assert(i == end && head_is_split(i), "%s: silent loss", what);
			}
			copy_journal(copy_dir, scratch);
		}
	}
	cr_assert_gt(untold, 0);
}

/* The header is never torn: it is in one sector. */
Test(journal_damage, rot_in_the_logs_header_is_refused)
{
	static const uint8_t none[WAL_HEADER];
	uint32_t last = make_log();
	char what[80];

	for (unsigned i = 0; i < WAL_HEADER; i++) {
		uint8_t b = wal.bytes[i] ^ (uint8_t)(1 << i % 8);

		snprintf(what, sizeof(what), "byte %u", i);
		write_wal(i, &b, 1);
		cr_assert_eq(load_log(what), 0, "%s", what);
		copy_journal(copy_dir, scratch);
	}
	write_wal(0, none, WAL_HEADER);
	cr_assert_eq(load_log("zeros"), 0);
	write_wal(0, wal.bytes, WAL_HEADER);
	cr_assert_eq(load_log("as it was"), last);
}

/* P1, P2: whatever subset of the last transaction's sectors a power loss leaves, and whatever earlier ones have left
 * behind the end, this is no damage. */
Test(journal_damage, torn_transactions_are_no_rot)
{
	uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)time(NULL);
	uint32_t id = make_log();
	unsigned torn = 0;
	char what[80];

	cr_log_info("SEED=%lu", seed);
	rnd_state = seed;
	for (unsigned round = 0; round < 80; round++) {
		uint8_t *before, *after;
		struct collected c = { 0 };
		struct journal *j;
		size_t old, len;
		unsigned lost = rnd(2) ? 2 : 1 + rnd(200); /* one sector in so many */

		ok(journal_open(scratch, false, &j, err));
		cr_assert_eq(load_into(j, &c), 0, "%s", c.err.msg);
		id = (uint32_t)c.report.next_id;
		for (unsigned i = rnd(4); i; i--)
			ok(commit_many(j, id++, rnd(2) ? 900 : 1 + rnd(30)));
		if (!rnd(4))
			ok(jdb_checkpoint(j, err));
		if (!rnd(3))
			ok(journal_setting_put(j, "ram", rnd(2) ? "1M" : "2M", err));
		read_wal();
		before = wal.bytes, old = wal.len;
		wal.bytes = NULL;
		/* the same epoch over and over now and then: pieces of one fit to those of another */
		ok(commit_many(j, id, rnd(2) ? 900 : 1 + rnd(900)));
		die(j);
		read_wal();
		after = wal.bytes, len = wal.len;
		for (size_t at = 0; at < len; at += 512) {
			size_t some = len - at < 512 ? len - at : 512;

			if (rnd(lost))
				continue;
			if (!at) { /* the header is synced before frames are written */
				memcpy(after + WAL_HEADER, before + WAL_HEADER, 512 - WAL_HEADER);
				continue;
			}
			if (at >= old)
				memset(after + at, 0, some);
			else
				memcpy(after + at, before + at, at + some <= old ? some : old - at);
		}
		write_wal(0, after, len);
		free(before);
		snprintf(what, sizeof(what), "round %u", round);
		/* as the reader sees it; the next round is the owner */
		memset(&c, 0, sizeof(c));
		cr_assert_eq(load_dir(scratch, true, &c), 0, "%s: %s", what, c.err.msg);
		cr_assert(c.report.last_epoch <= id && c.report.last_epoch + 1 >= id, "%s: %lu of %u", what,
			  c.report.last_epoch, id);
		torn += c.report.last_epoch < id;
	}
	cr_log_info("%u transactions torn", torn);
	cr_assert_gt(torn, 10);
}
