/* SPDX-License-Identifier: BSD-3-Clause */
/* test_label.c - who a device is (P10): labels compared, names looked up, and what the journal keeps beside a row. */
#include <errno.h>
#include <sqlite3.h>

#include "blkcache/bdev.h"
#include "journal_util.h"

static void expect(const char *then, const char *now, enum bdev_sameness want)
{
	cr_expect_eq(bdev_label_compare(then, now), want, "%s / %s", then, now);
}

Test(label, strong_keys_decide_and_unknown_ones_do_not)
{
	expect("", "", BDEV_UNKNOWN);
	expect("serial=A\n", "", BDEV_UNKNOWN);
	expect("serial=A\n", "serial=A\n", BDEV_SAME);
	expect("serial=A\n", "serial=B\n", BDEV_OTHER);
	/* udev's word counts only against udev's */
	expect("serial=A\n", "udev-serial=B\n", BDEV_UNKNOWN);
	expect("wwid=W\nudev-serial=A\n", "wwid=W\nudev-serial=A_1\n", BDEV_SAME); /* as udev's next release has it */
	expect("wwid=W\nserial=A\n", "wwid=V\nserial=A\n", BDEV_OTHER);
	expect("wwid=W\nserial=A\n", "serial=A\n", BDEV_SAME);
	/* a partition and its disk have to be the same */
	expect("serial=A\npartuuid=1\n", "serial=A\npartuuid=2\n", BDEV_OTHER);
	expect("serial=A\npartuuid=1\n", "serial=B\npartuuid=1\n", BDEV_OTHER);
	expect("partuuid=1\npart=1 from sector 2048\n", "partuuid=1\npart=2 from sector 2048\n", BDEV_SAME);
	expect("serial=A\npart=1 from sector 2048\n", "serial=A\npart=1 from sector 4096\n", BDEV_OTHER);
	/* hints are for people: a file system may be made by our own writes */
	expect("serial=A\nptuuid=1\nfsuuid=1\npath=/dev/disk/by-id/x\n",
	       "serial=A\nptuuid=2\nfsuuid=2\npath=/dev/disk/by-id/y\n", BDEV_SAME);
	/* no key of another's value, no prefix of a key */
	expect("path=serial=A\n", "serial=B\n", BDEV_UNKNOWN);
	expect("serial=A\n", "serialx=B\n", BDEV_UNKNOWN);
}

Test(label, writes_are_counted_within_one_boot_and_one_attachment)
{
	const char *then = "written=boot:7:100:0\n";

	cr_expect_eq(bdev_label_unwritten(then, then), 1);
	cr_expect_eq(bdev_label_unwritten(then, "written=boot:7:101:0\n"), -1);
	cr_expect_eq(bdev_label_unwritten(then, "written=boot:7:100:8\n"), -1);
	cr_expect_eq(bdev_label_unwritten(then, "written=boot:8:100:0\n"), 0);
	cr_expect_eq(bdev_label_unwritten(then, "written=bood:7:100:0\n"), 0);
	cr_expect_eq(bdev_label_unwritten(then, ""), 0);
	cr_expect_eq(bdev_label_unwritten("", then), 0);
	/* a driver that counts nothing proves nothing */
	cr_expect_eq(bdev_label_unwritten("written=boot:7:0:0\n", "written=boot:7:0:0\n"), 0);
	cr_expect_eq(bdev_label_unwritten("written=nonsense\n", "written=nonsense\n"), 0);
}

Test(label, says_who_it_is_in_whole_pieces)
{
	char text[40];

	bdev_label_describe("serial=S1\npartuuid=P1\nwritten=a:b:c:d\n", text, sizeof(text));
	cr_expect_str_eq(text, "serial number S1, partition UUID P1");
	bdev_label_describe("serial=S1\npartuuid=0123456789012345678901234567890123456789\n", text, sizeof(text));
	cr_expect_str_eq(text, "serial number S1");
	bdev_label_describe("", text, sizeof(text));
	cr_expect(strstr(text, "without"));
}

/* ---- names ---- */

static struct bdev *open_file(const char *path, const char *mode)
{
	struct bdev *b;
	FILE *f = fopen(path, mode);

	cr_assert(f && !ftruncate(fileno(f), 8192));
	fclose(f);
	ok(bdev_open(path, BDEV_OPEN_CLAIM, &b, err));
	return b;
}

static void expect_name(struct bdev *b, int want, const char *say)
{
	char why[160] = "";

	cr_expect_eq(bdev_check_name(b, 5000, why, sizeof(why)), want);
	cr_expect(!say || strstr(why, say), "says '%s', not '%s'", why, say);
}

Test(label, a_file_that_loses_its_name_is_noticed, .init = scratch_make, .fini = scratch_remove)
{
	char path[240], away[240], nested[300];
	struct bdev *b;
	FILE *f;

	snprintf(path, sizeof(path), "%s/a.img", scratch);
	snprintf(away, sizeof(away), "%s/away", scratch);
	b = open_file(path, "w");
	expect_name(b, 0, NULL);
	cr_assert_eq(rename(path, away), 0);
	expect_name(b, -ESTALE, "moved away or deleted");
	f = fopen(path, "w");
	fclose(f);
	expect_name(b, -ESTALE, "another file has its name");
	cr_assert_eq(rename(away, path), 0); /* moved back */
	expect_name(b, 0, NULL);
	/* written in place, linked elsewhere: still the same file */
	cr_assert_eq(link(path, away), 0);
	expect_name(b, 0, NULL);
	unlink(away);
	unlink(path);
	expect_name(b, -ESTALE, "was deleted (its data is there as /proc/");
	bdev_close(b);

	/* below another device */
	snprintf(nested, sizeof(nested), "delay:read=1ms:%s", away);
	f = fopen(away, "w");
	cr_assert(f && !ftruncate(fileno(f), 8192));
	fclose(f);
	ok(bdev_open(nested, 0, &b, err));
	expect_name(b, 0, NULL);
	unlink(away);
	expect_name(b, -ESTALE, "was deleted");
	bdev_close(b);
	ok(bdev_open("null:size=1M", 0, &b, err));
	expect_name(b, 0, NULL);
	bdev_close(b);
}

/* ---- the journal's part ---- */

static struct known_row {
	unsigned n;
	bool there;
	char label[BDEV_LABEL_MAX];
	struct journal_witness witness[JOURNAL_MAX_WITNESSES];
	uint32_t nwitness;
	int64_t noted_ns;
} seen;

static int on_row(void *ctx, const struct journal_volume *v)
{
	(void)ctx;
	if (v->id != 1)
		return 0;
	seen.n++;
	seen.there = v->label;
	if (v->label) {
		snprintf(seen.label, sizeof(seen.label), "%s", v->label);
		seen.noted_ns = v->noted_ns;
		seen.nwitness = v->nwitness;
		memcpy(seen.witness, v->witness, v->nwitness * sizeof(seen.witness[0]));
	}
	return 0;
}

static void reload(bool read_only)
{
	struct journal_load_ops ops = { .volume = on_row };
	struct journal *j;

	memset(&seen, 0, sizeof(seen));
	ok(journal_open(scratch, read_only, &j, err));
	ok(journal_load(j, &ops, NULL, NULL, err));
	journal_close(j);
	cr_assert_eq(seen.n, 1);
}

static void sql(const char *text)
{
	char path[260];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/%s", scratch, JOURNAL_FILE);
	cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
	cr_assert_eq(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK, "%s: %s", text, sqlite3_errmsg(db));
	sqlite3_close(db);
}

static int rows_left(void)
{
	char path[260];
	sqlite3_stmt *s;
	sqlite3 *db;
	int n;

	snprintf(path, sizeof(path), "%s/%s", scratch, JOURNAL_FILE);
	cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
	cr_assert_eq(sqlite3_prepare_v2(db, "SELECT count(*) FROM identity", -1, &s, NULL), SQLITE_OK);
	cr_assert_eq(sqlite3_step(s), SQLITE_ROW);
	n = sqlite3_column_int(s, 0);
	sqlite3_finalize(s);
	sqlite3_close(db);
	return n;
}

static struct journal_witness witness[JOURNAL_MAX_WITNESSES];
static char label[BDEV_LABEL_MAX];

static struct journal_volume full_row(void)
{
	struct journal_volume v = { .id = 1, .name = "one", .backing = "/dev/one", .mode = "wb", .noted_ns = -7 };

	for (uint32_t i = 0; i < JOURNAL_MAX_WITNESSES; i++)
		witness[i] = (struct journal_witness){ i * (1ull << 40) + 1, ~i };
	memset(label, 'x', sizeof(label) - 1);
	v.label = label;
	v.witness = witness;
	v.nwitness = JOURNAL_MAX_WITNESSES;
	return v;
}

Test(label, the_journal_keeps_it_with_the_row, .init = scratch_make, .fini = scratch_remove)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	struct journal_volume v = full_row(), bare = { .id = 1, .name = "one", .backing = "/dev/two", .mode = "wb" };

	ok(journal_volume_put(j, &v, err));
	v.nwitness++;
	cr_expect_eq(journal_volume_put(j, &v, err), -EINVAL);
	journal_close(j);
	for (int read_only = 0; read_only < 2; read_only++) {
		reload(read_only);
		cr_expect(seen.there);
		cr_expect_str_eq(seen.label, label);
		cr_expect_eq(seen.noted_ns, -7);
		cr_expect_eq(seen.nwitness, JOURNAL_MAX_WITNESSES);
		for (uint32_t i = 0; i < seen.nwitness; i++)
			cr_expect(seen.witness[i].block == witness[i].block && seen.witness[i].crc == witness[i].crc);
	}
	/* a release that does not know of it writes another row: it may have written to the device as well */
	ok(journal_open(scratch, false, &j, err));
	ok(journal_volume_put(j, &bare, err));
	journal_close(j);
	reload(false);
	cr_expect(!seen.there);
	/* and it goes with the volume */
	v.nwitness--;
	ok(journal_open(scratch, false, &j, err));
	ok(journal_volume_put(j, &v, err));
	ok(journal_volume_delete(j, 1, err));
	journal_close(j);
	cr_expect_eq(rows_left(), 0);
}

Test(label, a_journal_of_before_gets_its_table, .init = scratch_make, .fini = scratch_remove)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	struct journal_volume v = full_row();

	journal_close(j);
	sql("DROP TABLE identity");
	reload(true); /* looked at, and not changed */
	cr_expect(!seen.there);
	reload(false);
	cr_expect(!seen.there);
	ok(journal_open(scratch, false, &j, err));
	ok(journal_volume_put(j, &v, err));
	journal_close(j);
	reload(false);
	cr_expect(seen.there);
}

Test(label, damage_of_it_is_damage, .init = scratch_make, .fini = scratch_remove)
{
	struct journal_geometry geo = geometry(100, 100, 1);
	struct journal *j = fresh_journal(&geo);
	struct journal_volume v = full_row();
	struct journal_load_ops ops = { .volume = NULL };

	ok(journal_volume_put(j, &v, err));
	journal_close(j);
	sql("UPDATE identity SET body = substr(body, 1, 99) || x'00' || substr(body, 101)");
	ok(journal_open(scratch, false, &j, err));
	cr_expect_eq(journal_load(j, &ops, NULL, NULL, err), -EUCLEAN);
	cr_expect(strstr(err->msg, "identity"), "%s", err->msg);
	cr_expect_gt(journal_check(j, NULL, NULL), 0);
	journal_close(j);
}
