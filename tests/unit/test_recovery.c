/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_recovery.c - loads under errors: each read, write, sync, open and allocation of a load fails, one after the
 * other, once or for good. Whatever the load then says, nothing that was flushed is lost: it succeeds with everything,
 * or it refuses, and the next one, without the error, has everything. The caches that are loaded:
 *
 *   crashed  as kill -9 leaves it: clean and dirty lines, epochs in the ring, in the log and in the data file alone, a
 *            mark over lines that are stale, a discard that was broken off
 *   void     the same, and the volumes went on without it (P7)
 *   changed  stopped, with nothing dirty, and its backing devices were written since
 *   sampled  the same, with their times set back: only their data tells. After a load that dropped some lines and
 *            failed, the next one has no time to look at data, and must know it all the same
 *
 * The drops are recorded in small pieces, so that errors end a load between any two of them.
 *
 * RECOVERY_SOAK=1: every allocation, instead of all of our own and a share of the libraries'.
 */
#include "../faults/failnth.c"

#include <sys/wait.h>

#include "engine/durable/bypass.h"
#include "engine/durable/identity.h"
#include "engine/life/recover.h"
#include "engine_util.h"
#include "journal/db.h"
#include "util/log.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ALLOCATIONS false /* the sanitizer's own functions cannot be replaced */
#else
#define ALLOCATIONS true
#endif

#define BLOCKS 256u
#define VOLUMES 2u
#define NO_HURRY 4000000000u

enum state { CRASHED, VOID, CHANGED, SAMPLED };
static const char *const state_names[] = { "crashed", "void", "changed", "sampled" };

static struct rig r;
static enum state state;
static int64_t expected[VOLUMES][BLOCKS];
static char where[600];
static char *saved; /* folder */
static char data[BLOCKS * CACHE_BLOCK] __attribute__((aligned(4096)));

/* ---- allocations that fail ---- */

static __thread bool alloc_armed;
static long alloc_nth, alloc_seen, alloc_failed;
static bool alloc_sticky, alloc_ours; /* this program's own only */

#if ALLOCATIONS
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

extern char __executable_start, etext;

static bool alloc_fails(const void *caller)
{
	const char *at = caller;

	if (!alloc_armed || (alloc_ours && (at < &__executable_start || at > &etext)))
		return false;
	alloc_seen++;
	if (alloc_sticky ? alloc_seen < alloc_nth : alloc_seen != alloc_nth)
		return false;
	alloc_failed++;
	errno = ENOMEM;
	return true;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

void *malloc(size_t n)
{
	return alloc_fails(__builtin_return_address(0)) ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	return alloc_fails(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	return alloc_fails(__builtin_return_address(0)) ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	return alloc_fails(__builtin_return_address(0)) ? NULL : __libc_memalign(align, n);
}

#pragma GCC diagnostic pop
#endif

/* ---- the cache that is loaded ---- */

static void put(unsigned vol, unsigned first, unsigned n, int64_t version)
{
	for (unsigned i = 0; i < n; i++) {
		stamp(data + (size_t)i * CACHE_BLOCK, first + i, (uint64_t)version);
		expected[vol][first + i] = version;
	}
	must(!volume_write(r.v[vol], data, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, false), "write");
	must(!volume_flush(r.v[vol]), "flush");
}

static void put_on_backing(unsigned vol, unsigned first, unsigned n, int64_t version)
{
	for (unsigned i = 0; i < n; i++) {
		stamp(data + (size_t)i * CACHE_BLOCK, first + i, (uint64_t)version);
		expected[vol][first + i] = version;
	}
	rig_backing_write(&r, vol, data, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK);
}

#define CACHED 180u /* lines, for the states that end in put_on_backing_later() */

/* While the cache is stopped; as a restored image, with the old time. */
static void put_on_backing_later(unsigned vol)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT } };
	struct stat st;

	must(!stat(r.path[vol], &st), "stat");
	put_on_backing(vol, 0, BLOCKS, 7);
	times[1] = st.st_mtim;
	must(state != SAMPLED || !utimensat(AT_FDCWD, r.path[vol], times, 0), "utimensat");
}

static void fill(unsigned vol, unsigned first, unsigned n)
{
	must(!volume_pread(r.v[vol], data, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK), "read");
}

/* A discard begins: it is recorded, and that is all. */
static void begin_discard(unsigned vol, unsigned first, unsigned n)
{
	struct journal_discard d = { .id = epoch_open_id(r.c) << 20 | 0xfffff,
				     .volume = (uint16_t)r.v[vol]->id,
				     .offset = (uint64_t)first * CACHE_BLOCK,
				     .length = (uint64_t)n * CACHE_BLOCK };

	must(!intent_begin(r.v[vol], d.offset, d.length), "mark");
	epoch_enter(r.c);
	must(!epoch_add_discard(r.c, &d), "discard");
	epoch_leave(r.c);
	must(!epoch_commit(r.c, false), "commit");
	for (unsigned b = first; b < first + n; b++)
		expected[vol][b] = STAMP_ZERO;
}

static void life_that_ends_in_a_crash(void)
{
	fill(0, 0, 16);
	fill(1, 0, 32);
	put(0, 200, 8, 2);
	for (unsigned b = 16; b < 40; b++) /* epochs of one block: in the ring */
		put(0, b, 1, 3);
	must(!intent_begin(r.v[1], 0, 4096), "mark");
	put_on_backing(1, 0, 24, 5);
	begin_discard(0, 200, 8);
	put(0, 64, 100, 4); /* too much for a row: in the data file alone */
}

static void make_void(void)
{
	char path[PATH_MAX + 80];
	int fd;

	snprintf(path, sizeof path, "%s/bypassed", r.dir);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	must(fd >= 0, "%s", path);
	close(fd);
	for (unsigned vol = 0; vol < VOLUMES; vol++)
		put_on_backing(vol, 0, BLOCKS, 6); /* also where the discard was */
}

/* Copies what is in `from` over what is in `to`. */
static void shell(const char *fmt, const char *from, const char *to)
{
	char cmd[3 * PATH_MAX];

	snprintf(cmd, sizeof cmd, fmt, from, to);
	must(!system(cmd), "%s", cmd);
}

static void copy_backing(unsigned vol, bool back)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s-backing%u", saved, vol);
	/* in place: another file would be another backing device; and so would be another time */
	shell("cat '%s' >'%s'", back ? path : r.path[vol], back ? r.path[vol] : path);
	shell("touch -r '%s' '%s'", back ? path : r.path[vol], back ? r.path[vol] : path);
}

static void save(void)
{
	must(asprintf(&saved, "%s/saved", r.top) > 0, "memory");
	shell("cp -r '%s' '%s'", r.dir, saved);
	for (unsigned vol = 0; vol < VOLUMES; vol++)
		copy_backing(vol, false);
}

static void restore(void)
{
	shell("rm -rf '%s'%s", r.dir, "");
	shell("cp -r '%s' '%s'", saved, r.dir);
	for (unsigned vol = 0; vol < VOLUMES; vol++)
		copy_backing(vol, true);
}

static void prepare(void)
{
	rig_create(&r, MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	bypass_state_dir = strdup(r.top);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	rig_set(&r, "epoch-interval", "60s");
	rig_set(&r, "tidy", "0");
	for (unsigned vol = 0; vol < VOLUMES; vol++) {
		rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
		put_on_backing(vol, 0, BLOCKS, 1);
	}
	rig_close(&r);
}

static void make(enum state s)
{
	state = s;
	failnth.no_ring = failnth.no_sync = true;
	log_set_level((enum log_level) - 1);
	if (!access("/dev/shm", W_OK))
		setenv("TMPDIR", "/dev/shm", 0);
	journal_wal_reserve = 0;
	recover_piece = 24;
	sample_ns = NO_HURRY;
	prepare();
	rig_open(&r);
	if (state == CHANGED || state == SAMPLED) {
		fill(0, 0, 120);
		fill(1, 0, CACHED - 120);
		rig_close(&r);
		put_on_backing_later(0);
		put_on_backing_later(1);
		save();
		return;
	}
	life_that_ends_in_a_crash();
	save(); /* what a process that is killed now leaves */
	rig_close(&r);
	restore();
	if (state == VOID)
		make_void();
	shell("rm -rf '%s'%s", saved, "");
	save();
}

static void drop(void)
{
	rig_destroy(&r);
	free(saved);
	free((char *)bypass_state_dir);
}

/* ---- what must be there ---- */

static void look(void)
{
	for (unsigned vol = 0; vol < VOLUMES; vol++) {
		struct volume *v = cache_volume_get(r.c, r.name[vol]);

		must(v, "%s: volume %u is gone", where, vol);
		must(!volume_pread(v, data, sizeof data, 0), "%s: volume %u cannot be read", where, vol);
		for (unsigned b = 0; b < BLOCKS; b++) {
			int64_t got = stamp_read(data + (size_t)b * CACHE_BLOCK, b);

			must(got == expected[vol][b], "%s: volume %u block %u reads as %lld instead of %lld", where,
			     vol, b, (long long)got, (long long)expected[vol][b]);
		}
		volume_put(v);
	}
}

static int load(struct bc_error *err)
{
	memset(err, 0, sizeof *err);
	r.c = NULL;
	return cache_open(r.dir, 0, &r.c, &r.report, err);
}

static void finding(void *ctx, const char *what)
{
	(void)ctx;
	must(0, "%s: check: %s", where, what);
}

static unsigned broken_off; /* loads that failed with a part of the lines dropped */

/* What a load that failed had found out is not to be found out again. */
static void look_away(struct bc_error *err)
{
	struct cache_check_report check;

	must(!cache_check(r.dir, &check, finding, NULL, NULL, err), "%s: check: %s", where, err->msg);
	if (check.lines == CACHED)
		return; /* the next one begins anew */
	broken_off += check.lines > 0;
	sample_ns = 0;
}

/* The load is over, and the errors too. */
static void afterwards(int rc, struct bc_error *err, bool injected)
{
	struct cache_check_report check;

	must(!rc || (injected && err->msg[0]), "%s: refused (%d): %s", where, rc, err->msg);
	if (!rc) {
		must(!r.report.epochs_dropped, "%s: epochs are dropped: %s", where, r.report.notes);
		look();
		cache_close(r.c, NULL);
	}
	if (rc && state == SAMPLED)
		look_away(err);
	must(!load(err), "%s: afterwards it does not load: %s", where, err->msg);
	sample_ns = NO_HURRY;
	must(!r.report.epochs_dropped, "%s: afterwards epochs are dropped: %s", where, r.report.notes);
	look();
	must(!cache_close(r.c, err), "%s: %s", where, err->msg);
	r.c = NULL;
	must(!cache_check(r.dir, &check, finding, NULL, NULL, err), "%s: check: %s", where, err->msg);
}

static unsigned fail_calls(unsigned kind, int error, bool sticky)
{
	struct bc_error err;
	char paths[PATH_MAX + 10];
	unsigned n = 0;
	bool hit = true;

	snprintf(paths, sizeof paths, "%s*", r.top);
	for (long nth = 1; hit; nth++, n++) {
		int rc;

		snprintf(where, sizeof where, "%s: calls of kind %u, nth=%ld, error %d%s", state_names[state], kind,
			 nth, error, sticky ? " and all later" : "");
		restore();
		failnth_arm(kind, paths, nth, error, sticky);
		rc = load(&err);
		failnth.armed = false;
		hit = failnth.injected > 0;
		snprintf(where + strlen(where), sizeof where - strlen(where), " (%.300s)", failnth.what);
		afterwards(rc, &err, hit);
	}
	return n;
}

static unsigned fail_allocations(bool sticky, bool ours)
{
	bool soak = env_number("RECOVERY_SOAK", 0), hit = ALLOCATIONS;
	uint64_t seed = env_number("ENGINE_SEED", (uint64_t)time(NULL));
	struct bc_error err;
	unsigned n = 0;

	for (long nth = 1; hit; n++) {
		int rc;

		snprintf(where, sizeof where, "%s: %s allocation %ld fails%s", state_names[state], ours ? "our" : "any",
			 nth, sticky ? ", and all later" : "");
		restore();
		alloc_nth = nth;
		alloc_seen = alloc_failed = 0;
		alloc_sticky = sticky;
		alloc_ours = ours;
		alloc_armed = true;
		rc = load(&err);
		alloc_armed = false;
		hit = alloc_failed > 0;
		afterwards(rc, &err, hit);
		nth += soak || ours ? 1 : 1 + (long)rnd(&seed, 40 + (uint64_t)nth / 10);
	}
	return n;
}

static void each_fails(enum state s)
{
	static const unsigned kinds[] = { FAIL_OPEN, FAIL_READ, FAIL_WRITE, FAIL_SYNC, FAIL_ALLOC, FAIL_UNLINK };
	struct bc_error err;
	unsigned n = 0, allocations;

	make(s);
	snprintf(where, sizeof where, "%s: without errors", state_names[s]);
	restore();
	afterwards(load(&err), &err, false);
	for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
		n += fail_calls(kinds[k], kinds[k] == FAIL_WRITE ? ENOSPC : EIO, false);
		n += fail_calls(kinds[k], EIO, true);
	}
	n += fail_calls(FAIL_READ, FAIL_SHORT, false);
	allocations = fail_allocations(false, true) + fail_allocations(false, false) + fail_allocations(true, false);
	fprintf(stderr, "%s: %u loads with failing calls, %u with failing allocations\n", state_names[s], n,
		allocations);
	drop();
}

TestSuite(recovery, .timeout = 600);

/* However many lines go, an epoch has no more than a piece of them, and the journal does not keep them all. */
Test(recovery, drops_are_recorded_in_pieces)
{
	struct journal_stats s;
	struct bc_error err;

	journal_fold_limits.start_epochs = 4;
	make(CHANGED);
	restore();
	must(!load(&err), "%s", err.msg);
	must(r.report.dropped_clean_lines == 180, "%llu", (unsigned long long)r.report.dropped_clean_lines);
	journal_get_stats(r.c->journal, &s);
	must(s.commits >= 180 / (2 * recover_piece), "%llu epochs", (unsigned long long)s.commits);
	must(s.folds, "folded meanwhile");
	must(s.epochs_held <= journal_fold_limits.start_epochs + 1, "%llu epochs", (unsigned long long)s.epochs_held);
	must(s.bytes_committed / s.commits < 2 * recover_piece * 20, "bytes an epoch");
	look();
	rig_close(&r);
	drop();
}

Test(recovery, of_a_crashed_cache_under_errors)
{
	each_fails(CRASHED);
}

Test(recovery, of_a_void_cache_under_errors)
{
	each_fails(VOID);
}

Test(recovery, of_a_cache_whose_backing_devices_changed_under_errors)
{
	each_fails(CHANGED);
}

Test(recovery, of_a_cache_whose_backing_devices_differ_in_data_under_errors)
{
	unsigned n;

	/* not reads: what cannot be read does not differ */
	make(SAMPLED);
	n = fail_calls(FAIL_WRITE, EIO, false) + fail_calls(FAIL_WRITE, ENOSPC, true) +
	    fail_calls(FAIL_SYNC, EIO, false) + fail_allocations(false, true);
	fprintf(stderr, "sampled: %u loads, %u broken off\n", n, broken_off);
	drop();
	must(broken_off >= 4, "%u loads were broken off between two pieces", broken_off);
}
