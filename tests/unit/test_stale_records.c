/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_stale_records.c - records that do not count any more: of a volume that was removed, whose id another one has
 * now; of a journal that is void, since the volumes went on without the cache (P7); and notes that it is void which are
 * out of date. Each is tried at a load, and by a command on a stopped cache.
 */
#include <sys/wait.h>

#include "engine/durable/bypass.h"
#include "engine_util.h"
#include "journal/db.h"

#define BLOCKS 64u

static struct rig r;
static char data[BLOCKS * CACHE_BLOCK] __attribute__((aligned(4096)));

static void start(void)
{
	journal_wal_reserve = 0;
	rig_create(&r, MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	bypass_state_dir = strdup(r.top);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	rig_set(&r, "epoch-interval", "60s");
}

static void end(void)
{
	rig_destroy(&r);
	free((char *)bypass_state_dir);
}

TestSuite(stale_records, .init = start, .fini = end, .timeout = 60);

static void stamp_all(int64_t version)
{
	for (unsigned b = 0; b < BLOCKS; b++)
		stamp(data + (size_t)b * CACHE_BLOCK, b, (uint64_t)version);
}

static void put_on_backing(unsigned i, int64_t version)
{
	stamp_all(version);
	rig_backing_write(&r, i, data, sizeof data, 0);
}

static void put(unsigned i, unsigned n, int64_t version)
{
	stamp_all(version);
	must(!volume_write(r.v[i], data, (size_t)n * CACHE_BLOCK, 0, false) && !volume_flush(r.v[i]), "write");
}

static void backing_is(unsigned i, int64_t version)
{
	rig_backing(&r, i, data, sizeof data, 0);
	for (unsigned b = 0; b < BLOCKS; b++)
		must(stamp_read(data + (size_t)b * CACHE_BLOCK, b) == version, "backing %u, block %u is %lld", i, b,
		     (long long)stamp_read(data + (size_t)b * CACHE_BLOCK, b));
}

static void volume_is(unsigned i, unsigned n, int64_t version)
{
	must(!volume_pread(r.v[i], data, (size_t)n * CACHE_BLOCK, 0), "read");
	for (unsigned b = 0; b < n; b++)
		must(stamp_read(data + (size_t)b * CACHE_BLOCK, b) == version, "volume %u, block %u reads as %lld", i,
		     b, (long long)stamp_read(data + (size_t)b * CACHE_BLOCK, b));
}

/* A discard of the whole volume is recorded, and is as far as it gets. */
static void begin_discard(unsigned i)
{
	struct journal_discard d = { .id = epoch_open_id(r.c) << 20 | 0xfffff,
				     .volume = (uint16_t)r.v[i]->id,
				     .length = BLOCKS * CACHE_BLOCK };

	must(!intent_begin(r.v[i], 0, d.length), "mark");
	epoch_enter(r.c);
	must(!epoch_add_discard(r.c, &d), "discard");
	epoch_leave(r.c);
	must(!epoch_commit(r.c, false), "commit");
}

/* Runs it in a process that then dies, with the cache loaded. */
static void in_a_crash(void (*fn)(void))
{
	int status;
	pid_t pid = fork();

	must(pid >= 0, "fork");
	if (!pid) {
		rig_open(&r);
		fn();
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status), "status %d", status);
}

/* A command on the stopped cache. */
static void offline(void (*fn)(struct cache *c))
{
	struct cache_open_report report;
	struct bc_error err = { 0 };
	struct cache *c;

	must(!cache_open(r.dir, CACHE_OPEN_NO_VOLUMES, &c, &report, &err), "%s", err.msg);
	if (fn)
		fn(c);
	must(!cache_close(c, &err), "%s", err.msg);
}

static bool exists(const char *path)
{
	return !access(path, F_OK);
}

/* ---- ids ---- */

static void discard_and_die(void)
{
	put(0, 4, 2);
	begin_discard(0);
}

static void replace_volume(struct cache *c)
{
	struct bc_error err = { 0 };
	char spec[PATH_MAX];

	snprintf(spec, sizeof spec, "%.4000s/backing1", r.top);
	must(!cache_volume_remove(c, "v0", true, &err), "%s", err.msg);
	must(!cache_volume_add(c, "v1", spec, CACHE_MODE_WB, &err), "%s", err.msg);
}

/* A discard that was broken off, and its volume removed from the stopped cache: the next one with the id stays as it
 * is. */
Test(stale_records, discard_of_a_removed_volume)
{
	unsigned id;

	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	id = r.v[0]->id;
	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	must(!volume_set_mode(r.v[1], CACHE_MODE_PT, NULL), "mode");
	put_on_backing(1, 3);
	volume_put(r.v[1]);
	r.v[1] = NULL;
	must(!cache_volume_remove(r.c, "v1", false, NULL), "remove");
	r.n = 1;
	put_on_backing(0, 1);
	rig_close(&r);
	in_a_crash(discard_and_die);
	offline(replace_volume);
	r.n = 0;
	rig_open(&r);
	r.n = 2;
	r.v[1] = cache_volume_get(r.c, "v1");
	must(r.v[1] && r.v[1]->id == id, "the id is used again");
	volume_is(1, BLOCKS, 3);
	backing_is(1, 3);
	volume_put(r.v[1]);
	r.v[1] = NULL;
	r.n = 0;
	rig_close(&r);
	r.n = 2;
	backing_is(1, 3);
}

static void flush_remove_and_die(void)
{
	struct bc_error err = { 0 };

	put(0, 1, 2); /* in the ring */
	volume_put(r.v[0]);
	r.v[0] = NULL;
	must(!cache_volume_remove(r.c, "v0", true, &err), "%s", err.msg);
}

/* The volume is removed, durably. Whatever rots of the epochs before, its lines do not come back: not as damage that
 * keeps the cache from being loaded, nor under the next volume. */
Test(stale_records, lines_of_a_removed_volume_stay_away)
{
	char path[PATH_MAX + 80];
	struct bc_error err = { 0 };
	uint8_t byte;
	int fd;

	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	put_on_backing(0, 1);
	rig_close(&r);
	in_a_crash(flush_remove_and_die);
	snprintf(path, sizeof path, "%s/" JOURNAL_FILE RING_SUFFIX, r.dir);
	fd = open(path, O_RDWR);
	for (uint32_t k = 0; k < 64; k++) { /* the data in all its rows */
		must(fd >= 0 && pread(fd, &byte, 1, k * RING_ROW + 3000) == 1, "%s", path);
		byte ^= 1;
		must(pwrite(fd, &byte, 1, k * RING_ROW + 3000) == 1, "%s", path);
	}
	close(fd);
	r.n = 0;
	must(!rig_try_open(&r, &err), "%s", err.msg);
	must(!cache_volume_add(r.c, "v0", r.path[0], CACHE_MODE_WB, &err), "%s", err.msg);
	r.v[0] = cache_volume_get(r.c, "v0");
	volume_is(0, BLOCKS, 1);
	volume_put(r.v[0]);
	r.v[0] = NULL;
	rig_close(&r);
	r.n = 1;
}

/* ---- void ---- */

static char folder_note[PATH_MAX + 80], system_note[PATH_MAX + 80];

static void note_paths(void)
{
	const uint8_t *u = r.c->geo.uuid;
	int n = snprintf(system_note, sizeof system_note, "%s/", bypass_state_dir);

	snprintf(folder_note, sizeof folder_note, "%s/bypassed", r.dir);
	for (int i = 0; i < 16; i++)
		n += snprintf(system_note + n, sizeof system_note - (size_t)n, "%02x", u[i]);
	snprintf(system_note + n, sizeof system_note - (size_t)n, ".bypassed");
}

static void leave(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s", path);
	close(fd);
}

/* A discard has begun, the cache fails with nothing dirty, and the volume is written without it. */
static void discard_fail_and_go_on(void)
{
	stamp_all(5);
	must(!volume_pread(r.v[0], data, sizeof data, 0), "read");
	begin_discard(0);
	cache_fail(r.c, "this is a test");
	stamp_all(5);
	must(!volume_write(r.v[0], data, sizeof data, 0, true), "write without the cache");
}

static void void_one(void)
{
	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	put_on_backing(0, 1);
	note_paths();
	rig_close(&r);
	in_a_crash(discard_fail_and_go_on);
	must(exists(folder_note) && exists(system_note), "two notes are left");
	backing_is(0, 5);
}

static void cached_lines_are(unsigned n)
{
	struct cache_info info;

	cache_get_info(r.c, &info);
	must(info.occupied_lines == n, "%llu lines", (unsigned long long)info.occupied_lines);
}

/* What was written after the discard stays: the discard of a void journal is not repeated. */
Test(stale_records, discard_of_a_void_journal)
{
	void_one();
	rig_open(&r);
	must(strstr(r.report.notes, "starts empty"), "%s", r.report.notes);
	cached_lines_are(0);
	volume_is(0, BLOCKS, 5);
	rig_close(&r);
	must(!exists(folder_note) && !exists(system_note), "the notes are gone");
	rig_open(&r);
	volume_is(0, BLOCKS, 5);
	rig_close(&r);
	backing_is(0, 5);
}

/* The note is cleared by a command on the stopped cache: nothing of the journal may be left for the next load. */
Test(stale_records, void_journal_and_a_command_on_the_stopped_cache)
{
	void_one();
	offline(NULL);
	must(!exists(folder_note) && !exists(system_note), "the notes are gone");
	put_on_backing(0, 6); /* and somebody goes on with the device alone */
	rig_open(&r);
	must(!strstr(r.report.notes, "starts empty"), "%s", r.report.notes);
	cached_lines_are(0);
	volume_is(0, BLOCKS, 6);
	rig_close(&r);
	backing_is(0, 6);
}

/* The note lies on the system's disk of one machine; the cache was used on another one meanwhile, dirty data and all.
 */
Test(stale_records, note_of_an_earlier_time)
{
	char text[200] = "";
	FILE *f;

	void_one();
	f = fopen(system_note, "r");
	must(f && fread(text, 1, sizeof text - 1, f) > 0, "%s", system_note);
	fclose(f);
	rig_open(&r);
	volume_is(0, 8, 5);
	put(0, 4, 7);
	rig_close(&r);
	leave(system_note, text); /* nobody saw it */
	rig_open(&r);
	must(!strstr(r.report.notes, "starts empty"), "%s", r.report.notes);
	cached_lines_are(8);
	volume_is(0, 4, 7);
	must(!exists(system_note), "and it is gone");
	rig_close(&r);
}

/* After a crash, too: the cache was loaded since, if not stopped. */
static void use(void)
{
	put(0, 4, 8);
}

Test(stale_records, note_of_an_earlier_time_and_a_crash)
{
	void_one();
	rig_open(&r);
	rig_close(&r);
	in_a_crash(use);
	leave(system_note, "The journal is void.\nload 2\n"); /* the third since was the last */
	offline(NULL);
	must(!exists(system_note), "it is gone");
	rig_open(&r);
	must(r.c->loads > 2, "%llu loads", (unsigned long long)r.c->loads);
	volume_is(0, 4, 8);
	rig_close(&r);
}

/* An earlier release's note does not say when. On the system's disk, beside a cache that was shut down cleanly since,
 * it is out of date. In the folder, or after a crash, it is believed. */
Test(stale_records, notes_of_an_earlier_release)
{
	static const char text[] = "The journal of this cache is void: its volumes went on without it.\n";

	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	put_on_backing(0, 1);
	rig_close(&r); /* it is known as it is now */
	rig_open(&r);
	put(0, 4, 2);
	note_paths();
	rig_close(&r);
	leave(system_note, text);
	rig_open(&r);
	volume_is(0, 4, 2);
	rig_close(&r);
	must(!exists(system_note), "it is gone");
	in_a_crash(use);
	leave(system_note, text);
	rig_open(&r);
	must(strstr(r.report.notes, "starts empty"), "%s", r.report.notes);
	volume_is(0, 4, 1);
	put(0, 4, 2);
	rig_close(&r);
	leave(folder_note, text);
	rig_open(&r);
	must(strstr(r.report.notes, "starts empty"), "%s", r.report.notes);
	volume_is(0, 4, 1);
	rig_close(&r);
}

/* The folder was restored from a copy that is older than the failure: what was written without the cache is not in it.
 */
Test(stale_records, journal_from_before_the_note)
{
	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	put_on_backing(0, 1);
	volume_is(0, 8, 1);
	note_paths();
	rig_close(&r);
	leave(system_note, "The journal is void.\nload 1000\n");
	rig_open(&r);
	must(strstr(r.report.notes, "starts empty"), "%s", r.report.notes);
	cached_lines_are(0);
	rig_close(&r);
	must(!exists(system_note), "it is gone");
}

/* ---- what went to backing, and the journal still calls dirty ---- */

/* Version 2 is on the backing device; that version 1 is not dirty any more is in no durable epoch when the cache fails.
 */
static void write_through_and_fail(void)
{
	rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	put(0, 8, 1);
	rig_mode(r.v[0], CACHE_MODE_WI);
	stamp_all(2);
	must(!volume_write(r.v[0], data, 8 * CACHE_BLOCK, 0, false), "write");
	for (unsigned ms = 0; ctr_get(r.c->dirty_blocks); ms++) {
		must(ms < 10000, "something stays dirty");
		usleep(1000);
	}
	cache_fail(r.c, "the test says so");
}

static void version_2_is_loaded(void)
{
	rig_open(&r);
	volume_is(0, 8, 2);
	rig_close(&r);
}

Test(stale_records, dirty_blocks_of_a_cache_that_fails_and_is_closed)
{
	write_through_and_fail();
	rig_close(&r);
	version_2_is_loaded();
}

static void write_back_and_die(void)
{
	struct bc_error err = { 0 };

	write_through_and_fail();
	must(!cache_write_back(r.c, NULL, NULL, NULL, &err), "%s", err.msg);
}

Test(stale_records, dirty_blocks_of_a_cache_that_fails_and_is_written_back)
{
	rig_close(&r);
	in_a_crash(write_back_and_die);
	r.n = 1;
	snprintf(r.name[0], sizeof r.name[0], "v0");
	version_2_is_loaded();
}
