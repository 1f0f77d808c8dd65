/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine.c - what the engine costs without FUSE: operations per second and per core, and the time besides a bare copy.
 *
 *   engine [--size 1G] [--ops N] [--threads N] [--dir /dev/shm] [--json] [CASE]...
 *
 * A cache in a scratch folder (on tmpfs, so that no disk is in the way), a malloc or null device behind it, 4 KiB
 * operations at random places, each thread its own sequence. A case prepares its state, measures, and then proves from
 * the engine's own counters that it measured what its name says: `share` is the part of the operations that were
 * that kind; below the case's least share it fails. Blocks read from a malloc backing carry their number, which is
 * checked.
 *
 * Built with valgrind's headers it tells callgrind when the measured part starts and ends (instructions.sh). Threads:
 * the main thread prepares; the measured ones run run_ops() only.
 */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/engine.h"
#include "blkcache/units.h"

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_START_INSTRUMENTATION
#define CALLGRIND_STOP_INSTRUMENTATION
#endif

#define BLOCK CACHE_BLOCK
#define NULL_SIZE "1T" /* of the null device behind the miss cases: a block hardly comes twice */

enum op { OP_READ, OP_WRITE };
enum fill { FILL_NONE, FILL_READ, FILL_WRITE };

struct bench_case {
	const char *name;
	enum op op;
	enum cache_mode mode;
	enum fill fill; /* how the cache is filled before */
	bool null; /* backing: null of NULL_SIZE, else malloc of 3/4 of the cache */
	bool small_ram; /* 1/64 of the cache, else more than the cache */
	double min_share; /* percent */
	double max_ops; /* of the cache's blocks, at most, if not 0 */
	const char *what;
};

static const struct bench_case cases[] = {
	{ "read-hit-ram", OP_READ, CACHE_MODE_WT, FILL_READ, false, false, 99, 0, "read, all blocks in RAM" },
	{ "read-hit-ssd", OP_READ, CACHE_MODE_WT, FILL_READ, false, true, 90, 0,
	  "read, blocks in the data file (tmpfs)" },
	{ "write-hit", OP_WRITE, CACHE_MODE_WB, FILL_READ, false, false, 95, 0, "write-back write of cached blocks" },
	{ "read-miss-insert", OP_READ, CACHE_MODE_WT, FILL_NONE, true, false, 95, 0.8,
	  "read of new blocks, free slots" },
	/* the engine leaves fills out rather than wait: the share says how many it took */
	{ "read-miss-evict", OP_READ, CACHE_MODE_WT, FILL_READ, true, false, 0, 0,
	  "read of new blocks, cache full of clean lines" },
	/* dirty lines go at the pace of the cleaner, which starts and ends a little behind */
	{ "write-miss-evict-dirty", OP_WRITE, CACHE_MODE_WB, FILL_WRITE, true, false, 85, 0,
	  "write of new blocks, cache full of dirty lines" },
};
#define NCASES (sizeof cases / sizeof cases[0])

static uint64_t size = 1ull << 30, nops = 1000000;
static unsigned nthreads = 1;
static const char *base = "/dev/shm";
static const char *settings[16];
static unsigned nsettings;
static bool json;
static char dir[4096];

static void die(const char *what, const char *why)
{
	fprintf(stderr, "engine: %s: %s\n", what, why);
	exit(1);
}

/* ---- clean up, also when interrupted: everything lies in one scratch folder ---- */

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static void remove_dir(void)
{
	if (dir[0])
		nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	dir[0] = 0;
}

/* Signals are taken by a thread of their own, since removing allocates memory, which a handler must not. */
static void *signal_main(void *set)
{
	int sig = SIGTERM;

	sigwait(set, &sig);
	remove_dir();
	_exit(128 + sig);
}

static void watch_signals(void)
{
	static sigset_t set;
	pthread_t thread;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (pthread_create(&thread, NULL, signal_main, &set))
		die("threads", "cannot be started");
	pthread_detach(thread);
}

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- the load ---- */

struct worker {
	pthread_t thread;
	const struct bench_case *bc;
	struct volume *v; /* NULL: the bare copy of the same pattern */
	char *mem; /* of the bare copy */
	uint64_t blocks, ops, seed, wrong;
	char *buf;
	int rc;
};

static inline uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static inline uint64_t pick(uint64_t *s, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)next_random(s) * n) >> 64);
}

/* Its own instructions are told apart by its name. */
static __attribute__((noinline)) int run_ops(struct worker *w)
{
	bool check = !w->bc->null;
	uint64_t s = w->seed;
	int rc = 0;

	for (uint64_t i = 0; i < w->ops && !rc; i++) {
		uint64_t block = pick(&s, w->blocks);

		if (w->bc->op == OP_READ) {
			rc = volume_pread(w->v, w->buf, BLOCK, block * BLOCK);
			w->wrong += check && *(uint64_t *)w->buf != block;
		} else {
			*(uint64_t *)w->buf = block;
			rc = volume_write(w->v, w->buf, BLOCK, block * BLOCK, false);
		}
	}
	return rc;
}

static __attribute__((noinline)) void run_copies(struct worker *w)
{
	uint64_t s = w->seed;

	for (uint64_t i = 0; i < w->ops; i++) {
		char *at = w->mem + pick(&s, w->blocks) * BLOCK;

		if (w->bc->op == OP_READ)
			memcpy(w->buf, at, BLOCK);
		else
			memcpy(at, w->buf, BLOCK);
		__asm__ volatile("" ::: "memory"); /* the copy is wanted, not its result */
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	if (w->v)
		w->rc = run_ops(w);
	else
		run_copies(w);
	return NULL;
}

struct timing {
	double wall, cpu; /* seconds; cpu: of all threads, background ones too */
};

/* Runs ops operations on all threads together. */
static struct timing run_threads(const struct bench_case *bc, struct volume *v, char *mem, uint64_t blocks,
				 uint64_t ops)
{
	static struct worker w[1024];
	struct timing t = { seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID) };

	for (unsigned i = 0; i < nthreads; i++) {
		w[i] = (struct worker){ .bc = bc, .v = v, .mem = mem, .blocks = blocks, .ops = ops / nthreads };
		w[i].seed = 0x9e3779b97f4a7c15u * (i + 1);
		w[i].buf = aligned_alloc(BLOCK, BLOCK);
		memset(w[i].buf, (int)i + 1, BLOCK);
	}
	/* one thread runs on this one, as in Open CAS's figures: no thread start in the way */
	for (unsigned i = 1; i < nthreads; i++)
		if (pthread_create(&w[i].thread, NULL, worker_main, &w[i]))
			die("threads", "cannot be started");
	worker_main(&w[0]);
	for (unsigned i = 1; i < nthreads; i++)
		pthread_join(w[i].thread, NULL);
	t.wall = seconds(CLOCK_MONOTONIC) - t.wall;
	t.cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - t.cpu;
	for (unsigned i = 0; i < nthreads; i++) {
		if (w[i].rc)
			die(bc->name, strerror(-w[i].rc));
		if (w[i].wrong)
			die(bc->name, "a block holds another block's data");
		free(w[i].buf);
	}
	return t;
}

static double copy_ns(const struct bench_case *bc, uint64_t blocks, uint64_t ops)
{
	size_t len = blocks * BLOCK;
	char *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct timing t;

	if (mem == MAP_FAILED)
		die("bare copy", strerror(errno));
	memset(mem, 1, len);
	t = run_threads(bc, NULL, mem, blocks, ops);
	munmap(mem, len);
	return t.wall * 1e9 / (double)ops * nthreads;
}

/* ---- preparing ---- */

static struct cache *make_cache(const struct bench_case *bc, struct volume **v)
{
	struct cache_create_params p = { .size_bytes = size, .mode = bc->mode };
	struct cache_open_report report;
	struct bc_error err = { 0 };
	struct cache *c;
	char backing[64];

	p.ram_bytes = bc->small_ram ? (size / 64 > 1u << 20 ? size / 64 : 1u << 20) : size + size / 4;
	snprintf(dir, sizeof dir, "%s/blkcache-engine.XXXXXX", base);
	if (!mkdtemp(dir))
		die(dir, strerror(errno));
	if (bc->null)
		snprintf(backing, sizeof backing, "null:size=" NULL_SIZE);
	else
		snprintf(backing, sizeof backing, "malloc:size=%" PRIu64, size / 4 * 3);
	if (cache_create(dir, &p, &err) || cache_open(dir, 0, &c, &report, &err) ||
	    cache_volume_add(c, "v", backing, CACHE_MODE_COUNT, &err))
		die("set-up", err.msg);
	for (unsigned i = 0; i < nsettings; i++) {
		char key[64];
		const char *eq = strchr(settings[i], '=');

		snprintf(key, sizeof key, "%.*s", (int)(eq - settings[i]), settings[i]);
		if (cache_set(c, NULL, key, eq + 1, NULL, &err))
			die("--set", err.msg);
	}
	*v = cache_volume_get(c, "v");
	return c;
}

/* Gives every block of the backing device its number, past the cache. */
static void number_blocks(struct volume *v)
{
	uint64_t n = volume_size(v) / BLOCK, per = VOLUME_MAX_IO / BLOCK;
	char *buf = aligned_alloc(BLOCK, VOLUME_MAX_IO);
	enum cache_mode mode = volume_mode(v);
	struct bc_error err;

	memset(buf, 7, VOLUME_MAX_IO);
	if (volume_set_mode(v, CACHE_MODE_PT, &err))
		die("set-up", err.msg);
	for (uint64_t b = 0; b < n; b += per) {
		uint64_t k = n - b < per ? n - b : per;

		for (uint64_t i = 0; i < k; i++)
			*(uint64_t *)(buf + i * BLOCK) = b + i;
		if (volume_write(v, buf, (uint32_t)(k * BLOCK), b * BLOCK, false))
			die("set-up", "writing the backing device");
	}
	if (volume_set_mode(v, mode, &err))
		die("set-up", err.msg);
	free(buf);
}

/* Brings the cache into its state. For a null device: twice as many blocks as the cache holds, the volume's last ones:
 * the second half evicts the first, so that the steady state is reached. In pieces of 128 KiB, scattered, so that no
 * piece looks like a stream. */
static void fill(const struct bench_case *bc, struct cache *c, struct volume *v)
{
	uint64_t blocks = volume_size(v) / BLOCK, n = bc->null ? size / BLOCK * 2 : blocks, per = 32;
	uint64_t pieces = (n + per - 1) / per, step = pieces % 7919 ? 7919 : 7907; /* primes */
	char *buf = aligned_alloc(BLOCK, per * BLOCK);
	struct cache_info info;

	memset(buf, 3, per * BLOCK);
	for (int round = 0; round < 3; round++) {
		for (uint64_t i = 0; i < pieces; i++) {
			uint64_t b = blocks - n + i * step % pieces * per;
			uint32_t len = (uint32_t)((blocks - b < per ? blocks - b : per) * BLOCK);
			int rc = bc->fill == FILL_READ ? volume_pread(v, buf, len, b * BLOCK)
						       : volume_write(v, buf, len, b * BLOCK, false);
			if (rc)
				die("filling the cache", strerror(-rc));
		}
		if (volume_flush(v))
			die("filling the cache", "flush failed");
		cache_get_info(c, &info);
		/* fills may be left out under pressure: again, until all is there */
		if (bc->null || info.occupied_lines >= blocks)
			break;
	}
	free(buf);
}

/* ---- a case ---- */

/* The part of the operations that did what the case is about. */
static double share(const struct bench_case *bc, const struct volume_stats *a, const struct volume_stats *b,
		    uint64_t ops)
{
	double n = (double)ops, bytes = n * BLOCK, kind, where = 1;

	if (bc->op == OP_READ) {
		kind = (double)(bc->null ? b->requests.read_misses - a->requests.read_misses
					 : b->requests.read_hits - a->requests.read_hits);
		if (bc->null) /* inserted, not only read */
			where = (double)(b->bytes.cache_written - a->bytes.cache_written) / bytes;
		else if (bc->small_ram)
			where = (double)(b->bytes.cache_read - a->bytes.cache_read) / bytes;
		else
			where = (double)(b->bytes.ram_read - a->bytes.ram_read) / bytes;
	} else {
		kind = (double)(bc->null ? b->requests.write_misses - a->requests.write_misses
					 : b->requests.write_hits - a->requests.write_hits);
		if (bc->null) /* what comes in dirty, something dirty had to go to backing for */
			where = (double)(b->bytes.backing_written - a->bytes.backing_written) / bytes;
	}
	return (kind / n < where ? kind / n : where) * 100;
}

static bool run_case(const struct bench_case *bc)
{
	struct volume_stats before, after;
	uint64_t ops = nops / nthreads * nthreads, blocks;
	struct cache_info info;
	struct timing t;
	struct volume *v;
	struct cache *c;
	double copy, ns, part;

	if (bc->max_ops > 0 && (double)ops > bc->max_ops * (double)(size / BLOCK))
		ops = (uint64_t)(bc->max_ops * (double)(size / BLOCK)) / nthreads * nthreads;
	/* the copy's pattern covers as much memory as the cache does */
	copy = copy_ns(bc, bc->null ? size / BLOCK : size / 4 * 3 / BLOCK, ops);
	c = make_cache(bc, &v);
	blocks = volume_size(v) / BLOCK;
	if (!bc->null)
		number_blocks(v);
	else if (bc->fill)
		blocks -= size / BLOCK * 2;
	if (bc->fill)
		fill(bc, c, v);
	volume_get_stats(v, &before);
	CALLGRIND_START_INSTRUMENTATION;
	t = run_threads(bc, v, NULL, blocks, ops);
	CALLGRIND_STOP_INSTRUMENTATION;
	volume_get_stats(v, &after);
	cache_get_info(c, &info);
	part = share(bc, &before, &after, ops);
	ns = t.wall * 1e9 / (double)ops * nthreads;
	if (json)
		printf("{\"case\":\"%s\",\"threads\":%u,\"ops\":%" PRIu64
		       ",\"ops_per_s\":%.0f,\"ops_per_s_per_core\":%.0f,\"ns\":%.0f,\"copy_ns\":%.0f,\"besides_ns\":%."
		       "0f,"
		       "\"share_percent\":%.1f,\"metadata_bytes_per_line\":%.1f}\n",
		       bc->name, nthreads, ops, (double)ops / t.wall, (double)ops / t.cpu, ns, copy, ns - copy, part,
		       (double)info.metadata_bytes / (double)info.lines);
	else
		printf("%-22s %7u %10.0f %10.0f %8.0f %8.0f %8.0f %6.1f%% %6.1f\n", bc->name, nthreads,
		       (double)ops / t.wall, (double)ops / t.cpu, ns, copy, ns - copy, part,
		       (double)info.metadata_bytes / (double)info.lines);
	fflush(stdout);
	volume_put(v);
	if (cache_close(c, NULL))
		die(bc->name, "closing the cache failed");
	remove_dir();
	if (part < bc->min_share) {
		fprintf(stderr, "engine: %s: only %.1f %% of the operations were what it is about (%s)\n", bc->name,
			part, bc->what);
		return false;
	}
	return true;
}

static void usage(FILE *f)
{
	fprintf(f, "usage: engine [--size 1G] [--ops N] [--threads N] [--dir /dev/shm] [--set KEY=VALUE]... [--json] "
		   "[CASE]...\n");
	for (size_t i = 0; i < NCASES; i++)
		fprintf(f, "  %-24s %s\n", cases[i].name, cases[i].what);
}

static void parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "size", 1, 0, 's' }, { "ops", 1, 0, 'n' },  { "threads", 1, 0, 't' }, { "dir", 1, 0, 'd' },
		{ "set", 1, 0, 'S' },  { "json", 0, 0, 'j' }, { "help", 0, 0, 'h' },    { 0 },
	};
	uint64_t x;
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 's' && !units_parse_size(optarg, &x) && x >= 16u << 20) {
			size = x;
		} else if (o == 'n' && !units_parse_u64(optarg, &x) && x) {
			nops = x;
		} else if (o == 't' && !units_parse_u64(optarg, &x) && x && x <= 1024) {
			nthreads = (unsigned)x;
		} else if (o == 'd') {
			base = optarg;
		} else if (o == 'S' && strchr(optarg, '=') && nsettings < 16) {
			settings[nsettings++] = optarg;
		} else if (o == 'j') {
			json = true;
		} else {
			usage(o == 'h' ? stdout : stderr);
			exit(o == 'h' ? 0 : 64);
		}
	}
}

int main(int argc, char **argv)
{
	bool good = true, known;

	parse_options(argc, argv);
	for (int i = optind; i < argc; i++) {
		known = false;
		for (size_t k = 0; k < NCASES; k++)
			known |= !strcmp(argv[i], cases[k].name);
		if (!known) {
			usage(stderr);
			return 64;
		}
	}
	atexit(remove_dir);
	watch_signals();
	if (!json)
		printf("%-22s %7s %10s %10s %8s %8s %8s %7s %6s\n", "case", "threads", "ops/s", "per core", "ns",
		       "copy ns", "besides", "share", "B/line");
	for (size_t k = 0; k < NCASES; k++) {
		bool wanted = optind == argc;

		for (int i = optind; i < argc; i++)
			wanted |= !strcmp(argv[i], cases[k].name);
		if (wanted)
			good &= run_case(&cases[k]);
	}
	return good ? 0 : 1;
}
