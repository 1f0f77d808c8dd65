/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_faults.c - the Nth system call of a kind fails, for N = 1, 2, ... until a run has no failure: reads, writes,
 * syncs, opens, unlinks of the data file, the journal (below SQLite) and the backing devices, while a cache is loaded,
 * used in each mode, managed and closed. During it an error has a message and no read gives wrong data; afterwards the
 * cache loads, `check` finds nothing, and every block has a value that P1 and P3 allow.
 *
 * Also creation that fails, and a disk that is full when the journal is maintained.
 *
 * FAULTS_SOAK=1: every mode with every error, instead of a share of the pairs.
 */
#include "../faults/failnth.c"

#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>

#include "engine/durable/bypass.h"
#include "engine_util.h"
#include "journal/db.h"
#include "util/log.h"

#define BLOCKS 64u
#define VALUES 64u

/* A block's values in the order they were written. A reader sees the last answered one or a later one, whose write
 * failed; after a restart also those since the last flush. */
struct history {
	int64_t value[VALUES];
	unsigned n, answered, floor; /* index of the last answered, of the last flushed */
};

struct fixture {
	struct rig r;
	enum cache_mode mode;
	bool crashed; /* the template is what kill -9 leaves */
	bool voided; /* the journal is not to be trusted: the volumes went on without it (P7) */
	struct {
		char name[64];
		char *data;
		size_t len;
	} file[8]; /* the cache folder's */
	unsigned nfiles;
	char *backing[2];
	struct timespec mtime[2];
	struct history start[2][BLOCKS], x[2][BLOCKS];
};

static struct fixture fx;
static char where[600];
static char block_buf[BLOCKS * CACHE_BLOCK] __attribute__((aligned(4096)));

/* ---- values ---- */

static void add_value(struct history *h, int64_t value, bool answered)
{
	must(h->n < VALUES, "too many values");
	h->value[h->n] = value;
	if (answered)
		h->answered = h->n;
	h->n++;
}

static void flushed(unsigned vol)
{
	for (unsigned b = 0; b < BLOCKS; b++)
		fx.x[vol][b].floor = fx.x[vol][b].answered;
}

static bool allowed(const struct history *h, unsigned from, int64_t value)
{
	for (unsigned i = from; i < h->n; i++)
		if (h->value[i] == value)
			return true;
	return false;
}

static bool failing(void)
{
	return failnth.injected > 0;
}

/* Did it succeed? An error needs a reason. */
static bool fine(int rc, const char *what)
{
	must(rc == 0 || (rc < 0 && rc > -4096), "%s: %s gives %d", where, what, rc);
	must(!rc || failing(), "%s: %s gives %d without a failure", where, what, rc);
	return !rc;
}

static bool managed(int rc, const char *what, struct bc_error *err)
{
	must(!rc || (err->msg[0] && err->code), "%s: %s fails with %d and says nothing", where, what, rc);
	if (rc && !failing())
		must(0, "%s: %s fails without a failure: %s", where, what, err->msg);
	memset(err, 0, sizeof *err);
	return fine(rc, what);
}

static void put(unsigned vol, unsigned first, unsigned n, int64_t version, bool durable)
{
	struct volume *v = fx.r.v[vol];
	bool ok;

	if (!v)
		return;
	for (unsigned i = 0; i < n; i++)
		stamp(block_buf + (size_t)i * CACHE_BLOCK, first + i, (uint64_t)version);
	ok = fine(volume_write(v, block_buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, durable), "write");
	for (unsigned b = first; b < first + n; b++)
		add_value(&fx.x[vol][b], version, ok);
	if (ok && durable)
		flushed(vol);
}

static void put_zero(unsigned vol, unsigned first, unsigned n)
{
	bool ok =
		fine(volume_zero(fx.r.v[vol], (uint64_t)first * CACHE_BLOCK, (uint64_t)n * CACHE_BLOCK, true), "zero");

	for (unsigned b = first; b < first + n; b++)
		add_value(&fx.x[vol][b], STAMP_ZERO, ok);
}

static void look(unsigned vol, unsigned first, unsigned n)
{
	struct volume *v = fx.r.v[vol];

	if (!v || !fine(volume_pread(v, block_buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK), "read"))
		return;
	for (unsigned b = first; b < first + n; b++) {
		int64_t got = stamp_read(block_buf + (size_t)(b - first) * CACHE_BLOCK, b);

		must(allowed(&fx.x[vol][b], fx.x[vol][b].answered, got),
		     "%s: volume %u block %u reads as %lld instead of %lld", where, vol, b, (long long)got,
		     (long long)fx.x[vol][b].value[fx.x[vol][b].answered]);
	}
}

static bool flush_failed[2];

/* P6: after a flush failed in a cache that failed, no later one of the volume succeeds. (One of another volume, all of
 * whose data is durable, may.) */
static void flush(unsigned vol)
{
	struct volume *v = fx.r.v[vol];
	bool ok;

	if (!v)
		return;
	ok = fine(volume_flush(v), "flush");
	must(!ok || !flush_failed[vol] || cache_bypassed(fx.r.c), "%s: a flush succeeds after one that failed", where);
	flush_failed[vol] |= !ok && fx.r.c->failed;
	if (ok)
		flushed(vol);
}

static void write_back(unsigned vol)
{
	struct bc_error err = { 0 };

	if (managed(cache_write_back(fx.r.c, fx.r.v[vol], NULL, NULL, &err), "write back", &err))
		flushed(vol);
}

/* ---- the template ---- */

static void backing_io(unsigned vol, bool writing)
{
	int fd = open(fx.r.path[vol], O_RDWR | O_CLOEXEC);
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, fx.mtime[vol] };
	struct stat st;

	must(fd >= 0, "%s", fx.r.path[vol]);
	if (writing) {
		must(pwrite(fd, fx.backing[vol], BLOCKS * CACHE_BLOCK, 0) == BLOCKS * CACHE_BLOCK, "restore");
		must(!futimens(fd, times), "restore");
	} else {
		must(pread(fd, fx.backing[vol], BLOCKS * CACHE_BLOCK, 0) == BLOCKS * CACHE_BLOCK, "save");
		must(!fstat(fd, &st), "save");
		fx.mtime[vol] = st.st_mtim;
	}
	close(fd);
}

static void save_file(const char *name)
{
	char path[PATH_MAX + 80];
	struct stat st;
	int fd;

	snprintf(path, sizeof path, "%s/%s", fx.r.dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		return;
	}
	must(fx.nfiles < 8, "many files");
	snprintf(fx.file[fx.nfiles].name, sizeof fx.file[0].name, "%.60s", name);
	fx.file[fx.nfiles].len = (size_t)st.st_size;
	fx.file[fx.nfiles].data = malloc((size_t)st.st_size + 1);
	must(pread(fd, fx.file[fx.nfiles].data, (size_t)st.st_size, 0) == st.st_size, "read %s", path);
	fx.nfiles++;
	close(fd);
}

static void each_file(void (*fn)(const char *name))
{
	DIR *d = opendir(fx.r.dir);
	struct dirent *e;

	must(d, "%s", fx.r.dir);
	while ((e = readdir(d)))
		if (e->d_name[0] != '.')
			fn(e->d_name);
	closedir(d);
}

static void remove_file(const char *name)
{
	char path[PATH_MAX + 280];

	snprintf(path, sizeof path, "%s/%s", fx.r.dir, name);
	must(!remove(path), "%s", path);
}

/* The note that the journal is void, and what is left then: the backing devices. */
static void make_void(void)
{
	char path[PATH_MAX + 80];
	int fd;

	snprintf(path, sizeof path, "%s/bypassed", fx.r.dir);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	must(fd >= 0, "%s", path);
	close(fd);
	for (unsigned b = 0; b < BLOCKS; b++) {
		int64_t value = stamp_read(fx.backing[0] + (size_t)b * CACHE_BLOCK, b);

		fx.x[0][b] = (struct history){ .value = { value }, .n = 1 };
	}
}

static void restore(void)
{
	char path[PATH_MAX + 80];

	each_file(remove_file);
	for (unsigned i = 0; i < fx.nfiles; i++) {
		int fd;

		snprintf(path, sizeof path, "%s/%s", fx.r.dir, fx.file[i].name);
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		must(fd >= 0 && pwrite(fd, fx.file[i].data, fx.file[i].len, 0) == (ssize_t)fx.file[i].len, "%s", path);
		close(fd);
	}
	backing_io(0, true);
	backing_io(1, true);
	memcpy(fx.x, fx.start, sizeof fx.x);
	if (fx.voided)
		make_void();
}

static void initial_backing(unsigned vol)
{
	char path[PATH_MAX];
	int fd;

	fx.backing[vol] = malloc(BLOCKS * CACHE_BLOCK);
	for (unsigned b = 0; b < BLOCKS; b++) {
		stamp(fx.backing[vol] + (size_t)b * CACHE_BLOCK, b, 1);
		add_value(&fx.x[vol][b], 1, true);
	}
	snprintf(path, sizeof path, "%.4000s/backing%u", fx.r.top, vol);
	fx.r.path[vol] = strdup(path);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	must(fd >= 0 && pwrite(fd, fx.backing[vol], BLOCKS * CACHE_BLOCK, 0) == BLOCKS * CACHE_BLOCK, "%s", path);
	close(fd);
	snprintf(fx.r.name[vol], sizeof fx.r.name[vol], "v%u", vol);
}

/* Clean lines, dirty lines, and lines that are not there; the mode is set last. */
static void life_before(void)
{
	struct bc_error err = { 0 };

	rig_open(&fx.r);
	rig_set(&fx.r, "clean-after", "86400s");
	rig_set(&fx.r, "dirty-high", "95");
	rig_set(&fx.r, "epoch-interval", "50ms");
	must(!cache_volume_add(fx.r.c, "v0", fx.r.path[0], CACHE_MODE_WB, &err), "%s", err.msg);
	fx.r.n = 1;
	fx.r.v[0] = cache_volume_get(fx.r.c, "v0");
	look(0, 0, 16);
	put(0, 8, 8, 2, false);
	write_back(0);
	put(0, 12, 8, 3, true);
	put(0, 40, 2, 4, true);
	rig_mode(fx.r.v[0], fx.mode);
}

/* In a process of its own: files that are copied one after the other while the engine cleans in the background would be
 * of different moments, and such a cache rightly says that its backing device changed. */
static void life_that_ends_in_a_crash(void)
{
	void *shared = mmap(NULL, sizeof fx.x, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	must(shared != MAP_FAILED, "mmap");
	pid = fork();
	must(pid >= 0, "fork");
	if (!pid) {
		life_before();
		memcpy(shared, fx.x, sizeof fx.x);
		_exit(0); /* whatever the other threads are at */
	}
	must(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status), "the process to crash: %#x",
	     (unsigned)status);
	memcpy(fx.x, shared, sizeof fx.x);
	munmap(shared, sizeof fx.x);
	fx.r.n = 1;
}

static void make_template(enum cache_mode mode, uint32_t line, bool crashed)
{
	memset(&fx, 0, sizeof fx);
	fx.mode = mode;
	fx.crashed = crashed;
	journal_wal_reserve = 0;
	rig_create(&fx.r, MIB, line, CACHE_MIN_RAM, mode);
	bypass_state_dir = strdup(fx.r.top);
	initial_backing(0);
	initial_backing(1);
	snprintf(where, sizeof where, "template");
	if (crashed) {
		life_that_ends_in_a_crash();
	} else {
		life_before();
		rig_close(&fx.r);
	}
	each_file(save_file);
	backing_io(0, false);
	backing_io(1, false);
	memcpy(fx.start, fx.x, sizeof fx.x);
	must(fx.nfiles >= 2, "nothing saved");
}

static void drop_template(void)
{
	rig_destroy(&fx.r);
	for (unsigned i = 0; i < fx.nfiles; i++)
		free(fx.file[i].data);
	free(fx.backing[0]);
	free(fx.backing[1]);
	free(fx.r.path[1]);
	free((char *)bypass_state_dir);
}

/* ---- a run ---- */

static bool added, gone; /* volume v1: is in the cache; may be out of it */

static void second_volume(void)
{
	struct rig *r = &fx.r;
	struct bc_error err = { 0 };

	if (!managed(cache_volume_add(r->c, "v1", r->path[1], fx.mode, &err), "add", &err))
		return;
	added = true;
	gone = false;
	r->v[1] = cache_volume_get(r->c, "v1");
	must(r->v[1], "%s: added and not there", where);
	put(1, 0, 4, 5, false);
	look(1, 2, 6);
	put(1, 4, 2, 6, true);
	put(1, 1, 1, 7, false);
	flush(1);
}

static void second_volume_goes(void)
{
	struct rig *r = &fx.r;
	struct bc_error err = { 0 };

	if (!r->v[1])
		return;
	volume_put(r->v[1]);
	r->v[1] = NULL;
	gone = true;
	if (managed(cache_volume_remove(r->c, "v1", false, &err), "remove", &err)) {
		flushed(1);
		added = false;
	}
}

static void some_of_everything(void)
{
	static const char half[CACHE_BLOCK / 2];
	struct rig *r = &fx.r;
	struct bc_error err = { 0 };
	bool ok;

	look(0, 0, 24);
	put(0, 0, 6, 10, false);
	put(0, 14, 4, 11, false);
	put(0, 30, 1, 12, false);
	look(0, 4, 30);
	flush(0);
	managed(cache_set(r->c, NULL, "dirty-high", "90", NULL, &err), "set", &err);
	second_volume();
	put(0, 2, 3, 13, false);
	ok = fine(volume_write(r->v[0], half, sizeof half, 50 * CACHE_BLOCK + 1024, false), "partial write");
	add_value(&fx.x[0][50], STAMP_TORN, ok);
	put(0, 50, 1, 14, false); /* a stamp again */
	managed(volume_set_mode(r->v[0], fx.mode == CACHE_MODE_WB ? CACHE_MODE_WT : CACHE_MODE_WB, &err), "mode", &err);
	put(0, 20, 3, 15, true);
	put_zero(0, 3, 2);
	look(0, 0, 24);
	managed(volume_set_mode(r->v[0], fx.mode, &err), "mode", &err);
	write_back(0);
	put(0, 21, 3, 16, false);
	put(0, 40, 1, 17, false);
	second_volume_goes();
	flush(0);
	put(0, 41, 1, 18, false);
	look(0, 0, 64);
}

static void use_it(void)
{
	struct rig *r = &fx.r;
	struct cache_open_report report;
	struct bc_error err = { 0 };

	added = flush_failed[0] = flush_failed[1] = false;
	gone = true;
	r->c = NULL;
	r->n = 1;
	if (!managed(cache_open(r->dir, 0, &r->c, &report, &err), "open", &err))
		return;
	r->v[0] = cache_volume_get(r->c, "v0");
	must(r->v[0], "%s: v0 is gone", where);
	some_of_everything();
	if (r->v[1])
		volume_put(r->v[1]);
	volume_put(r->v[0]);
	r->v[0] = r->v[1] = NULL;
	if (managed(cache_close(r->c, &err), "close", &err)) {
		flushed(0);
		if (added)
			flushed(1);
	}
	r->c = NULL;
}

/* ---- afterwards ---- */

static void finding(void *ctx, const char *what)
{
	(void)ctx;
	must(0, "%s: check: %s", where, what);
}

static void values_after(unsigned vol, bool through_cache)
{
	for (unsigned b = 0; b < BLOCKS; b++) {
		struct history *h = &fx.x[vol][b];
		int64_t got;

		if (through_cache)
			must(!volume_pread(fx.r.v[vol], block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK),
			     "%s: afterwards: volume %u block %u cannot be read", where, vol, b);
		else
			rig_backing(&fx.r, vol, block_buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK);
		got = stamp_read(block_buf, b);
		must(allowed(h, h->floor, got),
		     "%s: afterwards: %s: volume %u block %u reads as %lld, not %lld or later", where,
		     through_cache ? "cache" : "backing", vol, b, (long long)got, (long long)h->value[h->floor]);
		if (through_cache)
			*h = (struct history){ .value = { got }, .n = 1 }; /* what backing must have in the end */
	}
}

static void verify(void)
{
	struct cache_check_report check;
	struct rig *r = &fx.r;
	struct bc_error err = { 0 };

	must(!rig_try_open(r, &err), "%s: afterwards it does not load: %s", where, err.msg);
	values_after(0, true);
	r->v[1] = cache_volume_get(r->c, "v1");
	must(r->v[1] ? added || gone : gone || !added, "%s: v1 is %s", where, r->v[1] ? "there" : "gone");
	if (r->v[1])
		values_after(1, true);
	must(!cache_write_back(r->c, NULL, NULL, NULL, &err), "%s: afterwards: write back: %s", where, err.msg);
	values_after(1, false);
	r->n = 2;
	rig_close(r);
	values_after(0, false);
	must(!cache_check(r->dir, &check, finding, NULL, NULL, &err), "%s: check: %s", where, err.msg);
	r->n = 1;
}

static unsigned count(const char *dir)
{
	DIR *d = opendir(dir);
	unsigned n = 0;

	must(d, "%s", dir);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* One that has looked a name up, or closed a device, has told so before it ends. */
static unsigned threads_left(unsigned expected)
{
	unsigned n = count("/proc/self/task");

	for (unsigned ms = 0; n != expected && ms < 1000; ms++) {
		usleep(1000);
		n = count("/proc/self/task");
	}
	return n;
}

static void hangs(int sig)
{
	(void)sig;
	(void)!write(2, where, strlen(where));
	(void)!write(2, ": hangs\n", 8);
	abort();
}

/* Thousands of errors that are meant to be are not logged; and in memory the runs take a tenth of the time. */
static void quiet(void)
{
	signal(SIGALRM, hangs);
	failnth.no_ring = failnth.no_sync = true;
	log_set_level(env_number("FAULTS_LOG", 0) ? LOG_LEVEL_ERROR : (enum log_level) - 1);
	if (!access("/dev/shm", W_OK))
		setenv("TMPDIR", "/dev/shm", 0);
}

struct target {
	const char *name, *paths; /* relative to the scratch folder */
	unsigned kinds;
};

static const struct target targets[] = {
	{ "data", "cache/data", FAIL_ALL },
	{ "journal", "cache/journal.db*", FAIL_ALL },
	{ "backing", "backing?", FAIL_ALL },
	{ "folder", "cache|cache/lock|cache/bypassed|.|*.bypassed", FAIL_ALL },
};

static char *target_paths(const struct target *t)
{
	char *list = strdup(t->paths), *p = list, *one, *out = NULL, *old;

	while ((one = strsep(&p, "|"))) {
		old = out;
		must(asprintf(&out, "%s%s%s%s%s", old ? old : "", old ? "|" : "", fx.r.top, strcmp(one, ".") ? "/" : "",
			      strcmp(one, ".") ? one : "") > 0,
		     "no memory");
		free(old);
	}
	free(list);
	return out;
}

/* Until a run meets no failure. Returns the number of runs. */
static unsigned fail_each(const struct target *t, unsigned kind, int error, bool sticky)
{
	char *paths = target_paths(t);
	unsigned fds = count("/proc/self/fd"), threads = count("/proc/self/task"), runs = 0;
	long step = 1;

	for (long nth = 1; nth < 3000; nth += step) {
		snprintf(where, sizeof where, "%s %s template: %s, kind %u, nth=%ld, error %d%s",
			 cache_mode_name(fx.mode),
			 fx.voided    ? "void"
			 : fx.crashed ? "crashed"
				      : "stopped",
			 t->name, kind, nth, error, sticky ? " and all later" : "");
		alarm(60);
		restore();
		failnth_arm(kind, paths, nth, error, sticky);
		use_it();
		failnth.armed = false;
		if (failing())
			snprintf(where + strlen(where), sizeof where - strlen(where), " (%.300s)", failnth.what);
		verify();
		alarm(0);
		must(threads_left(threads) == threads, "%s: threads are left", where);
		must(count("/proc/self/fd") == fds, "%s: descriptors leak", where);
		runs++;
		if (!failing())
			break;
		if (sticky) /* the place matters less */
			step = 1 + nth / 4;
	}
	must(!failing(), "%s: no end", where);
	free(paths);
	if (env_number("FAULTS_LOG", 0))
		fprintf(stderr, "%u runs: %s\n", runs, where);
	return runs;
}

static const int errors[] = { EIO, ENOSPC, FAIL_SHORT };

/* Each kind of call on each target with each error, spread over the modes. */
static void all_kinds(enum cache_mode mode, uint32_t line)
{
	bool soak = env_number("FAULTS_SOAK", 0);
	unsigned runs = 0;

	quiet();
	for (unsigned crashed = 0; crashed < 2; crashed++) {
		if (!soak && crashed != (mode & 1))
			continue;
		make_template(mode, line, crashed);
		for (unsigned t = 0; t < sizeof targets / sizeof *targets; t++) {
			for (unsigned k = 0; 1u << k <= targets[t].kinds; k++)
				for (unsigned e = 0; e < 3; e++)
					if (soak || e == (k + t + mode / 2) % 3)
						runs += fail_each(&targets[t], 1u << k, errors[e], false);
			runs += fail_each(&targets[t], FAIL_ALL, errors[(mode + t) % 2], true);
			runs += fail_each(&targets[t], FAIL_WRITE | FAIL_SYNC, errors[(mode + t + 1) % 2], true);
		}
		drop_template();
	}
	fprintf(stderr, "mode %s: %u runs\n", cache_mode_name(mode), runs);
}

TestSuite(faults, .timeout = 1200);

Test(faults, write_through)
{
	all_kinds(CACHE_MODE_WT, 16384);
}

Test(faults, write_back)
{
	all_kinds(CACHE_MODE_WB, 4096);
}

Test(faults, write_around)
{
	all_kinds(CACHE_MODE_WA, 4096);
}

Test(faults, write_invalidate)
{
	all_kinds(CACHE_MODE_WI, 16384);
}

Test(faults, write_only)
{
	all_kinds(CACHE_MODE_WO, 65536);
}

Test(faults, pass_through)
{
	all_kinds(CACHE_MODE_PT, 4096);
}

/* Clearing the note that a journal is void: if that fails, the cache must not go on as if it were done. */
Test(faults, void_journal)
{
	quiet();
	make_template(CACHE_MODE_WB, 4096, true);
	fx.voided = true;
	for (unsigned k = 0; 1u << k <= FAIL_ALL; k++)
		for (unsigned e = 0; e < 2; e++)
			fail_each(&targets[3], 1u << k, errors[e], e);
	for (unsigned t = 0; t < 2; t++)
		fail_each(&targets[t], FAIL_WRITE | FAIL_SYNC, EIO, false);
	drop_template();
}

/* ---- a full disk ---- */

static void put_durably(struct volume *v, unsigned first, unsigned n, uint64_t version)
{
	for (unsigned i = 0; i < n; i++)
		stamp(block_buf + (size_t)i * CACHE_BLOCK, first + i, version);
	must(!volume_write(v, block_buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, false), "write");
	must(!volume_flush(v), "flush");
}

static void expect_version(struct volume *v, unsigned first, unsigned n, int64_t version)
{
	must(!volume_pread(v, block_buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK), "read");
	for (unsigned i = 0; i < n; i++) {
		int64_t got = stamp_read(block_buf + (size_t)i * CACHE_BLOCK, first + i);

		must(got == version, "block %u reads as %lld, not %lld", first + i, (long long)got, (long long)version);
	}
}

static void wait_more(unsigned *waited, const char *for_what)
{
	must(++*waited < 4000, "%s", for_what);
	usleep(5000);
}

static void wait_for_failures(long n)
{
	for (unsigned waited = 0; failnth.injected < n;)
		wait_more(&waited, "maintenance is not tried");
}

static uint64_t checkpoints(struct cache *c)
{
	struct journal_stats s;

	journal_get_stats(c->journal, &s);
	return s.checkpoints;
}

/* The database cannot grow. Its log can be written, as it has its room reserved: commits go on, and so does the cache
 * (P6: nothing was promised of what failed). */
Test(faults, maintenance_meets_a_full_disk, .timeout = 60)
{
	const size_t large = (size_t)(WAL_SOFT_FRAMES + 50) * JOURNAL_PAGE; /* in the log, it makes a checkpoint due */
	char *value = malloc(large + 1);
	struct cache_check_report check;
	struct cache_info info = { 0 };
	struct bc_error err = { 0 };
	struct volume *v;
	struct rig r;
	unsigned waited = 0;
	uint64_t done;

	quiet();
	snprintf(where, sizeof where, "full disk");
	journal_wal_reserve = 0;
	rig_create(&r, MIB, 4096, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	rig_set(&r, "dirty-high", "95");
	rig_set(&r, "epoch-interval", "20ms");
	v = rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	put_durably(v, 0, BLOCKS, 1);
	memset(value, 'x', large);
	value[large] = 0;
	failnth_arm(FAIL_WRITE, "*/cache/" JOURNAL_FILE, 1, ENOSPC, true);
	must(!journal_setting_put(r.c->journal, "large", value, &err), "setting: %s", err.msg);
	free(value);
	wait_for_failures(1);
	while (!r.c->degraded && !r.c->failed)
		wait_more(&waited, "nobody is told");
	cache_get_info(r.c, &info);
	must(!r.c->failed && info.state == CACHE_STATE_DEGRADED, "it has failed: %s", info.why);
	must(strstr(info.why, "maintained") && strstr(info.why, "no space"), "why: %s", info.why);
	put_durably(v, 3, 1, 2); /* its data in the journal's row, and not */
	put_durably(v, 20, 30, 3);
	wait_for_failures(failnth.injected + 2); /* and again */
	put_durably(v, 20, 4, 4);
	must(!r.c->failed, "it has failed");

	failnth.armed = false;
	for (done = checkpoints(r.c), waited = 0; checkpoints(r.c) == done;)
		wait_more(&waited, "maintenance does not go on");
	put_durably(v, 5, 1, 5);
	for (unsigned opened = 0; opened < 2; opened++) {
		v = r.v[0];
		expect_version(v, 0, 3, 1);
		expect_version(v, 3, 1, 2);
		expect_version(v, 4, 1, 1);
		expect_version(v, 5, 1, 5);
		expect_version(v, 6, 14, 1);
		expect_version(v, 20, 4, 4);
		expect_version(v, 24, 26, 3);
		expect_version(v, 50, BLOCKS - 50, 1);
		if (!opened) {
			rig_close(&r);
			must(!cache_check(r.dir, &check, finding, NULL, NULL, &err), "check: %s", err.msg);
			rig_open(&r);
		}
	}
	cache_get_info(r.c, &info);
	must(info.state == CACHE_STATE_RUNNING && !info.why[0], "opened anew: %s", info.why);
	rig_write_back(&r, r.v[0]);
	rig_destroy(&r);
}

/* ---- creation ---- */

/* A create that fails leaves nothing behind, not in a folder that was there before either, and works the next time. */
static void create_fails(const char *folder, unsigned kind, int error, bool sticky)
{
	struct cache_create_params p = { .size_bytes = MIB, .mode = CACHE_MODE_WB };
	bool exists = strcmp(folder, "new");
	char dir[PATH_MAX], paths[3 * PATH_MAX];
	struct rig r = { 0 };

	snprintf(r.top, sizeof r.top, "%s/engine-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	must(mkdtemp(r.top), "mkdtemp");
	snprintf(dir, sizeof dir, "%.4000s/%s", r.top, folder);
	snprintf(paths, sizeof paths, "%s|%s/*", dir, dir);
	for (long nth = 1; nth < 5000; nth += 1 + nth / 3) {
		unsigned fds = count("/proc/self/fd");
		struct bc_error err = { 0 };
		int rc;

		snprintf(where, sizeof where, "create %s: kind %u, nth=%ld, error %d%s", folder, kind, nth, error,
			 sticky ? " and all later" : "");
		must(!exists || !mkdir(dir, 0700), "mkdir");
		alarm(60);
		failnth_arm(kind, paths, nth, error, sticky);
		rc = cache_create(dir, &p, &err);
		failnth.armed = false;
		managed(rc, "create", &err);
		must(count("/proc/self/fd") == fds, "%s: descriptors leak", where);
		if (rc) {
			must(exists ? count(dir) == 2 : access(dir, F_OK), "%s: something is left behind (%s)", where,
			     failnth.what);
			must(!cache_create(dir, &p, &err), "%s: the next one: %s", where, err.msg);
		}
		snprintf(r.dir, sizeof r.dir, "%s", dir);
		rig_open(&r);
		rig_close(&r);
		nftw(dir, rig_remove_one, 16, FTW_DEPTH | FTW_PHYS);
		alarm(0);
		if (!failing())
			break;
	}
	must(!failing(), "%s: no end", where);
	must(!rmdir(r.top), "rmdir");
}

Test(faults, creation)
{
	quiet();
	journal_wal_reserve = 0;
	for (unsigned k = 0; 1u << k <= FAIL_ALL; k++) {
		if (1u << k == FAIL_UNLINK)
			continue; /* nothing can be taken back then */
		for (unsigned e = 0; e < 3; e++)
			create_fails(e & 1 ? "new" : "there", 1u << k, errors[e], false);
	}
	create_fails("new", FAIL_WRITE | FAIL_SYNC | FAIL_ALLOC, ENOSPC, true);
	create_fails("there", FAIL_WRITE | FAIL_SYNC | FAIL_ALLOC, EIO, true);
}
