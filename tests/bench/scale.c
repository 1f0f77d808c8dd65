/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scale.c - how create, load, memory, the scan for dirty lines and stop grow with the size of the cache.
 *
 *   scale [--dir /var/tmp] [--fill 95] [--json] SIZE...        e.g. scale 1G 16G 256G 1T
 *
 * No disk of that size is needed: the data file is sparse, and the lines are told to the journal directly, as epochs of
 * synthetic records that are then folded, as the engine's own would have been. Every block holds zeros, on the null
 * backing device and in the holes of the data file alike, with the right checksum: what is loaded is a valid cache,
 * which then serves reads and writes. Lines lie at scattered places of the volume (the worst case for the journal's
 * size). Not measured: allocating the data file.
 *
 * Each phase runs in a process of its own, so that memory is counted from nothing and a kill is a kill. Results come
 * back in shared memory. Disk: about 30 bytes a line for the journal (8 GiB for 1T), twice that for a while. Memory:
 * about 24 bytes a line.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/engine.h"
#include "blkcache/journal.h"
#include "blkcache/units.h"
#include "util/crc.h"

#define EPOCH_LINES 65536 /* records of one synthetic epoch */
#define DIRTY_LINES 1000 /* evenly spread: what the scan has to find */
#define KILL_WRITES 20000 /* blocks written and flushed before the "kill" */
#define READS 100000

static struct results {
	double create, fill, load_clean, load_killed, scan, stop, read_ns; /* seconds, ns */
	uint64_t rss, peak, metadata, journal; /* bytes; rss after loading, peak while loading */
	uint64_t lines, epochs_replayed;
} * res;

static const char *base = "/var/tmp";
static unsigned fill_percent = 95;
static char dir[4096];
static pid_t owner; /* of dir */

static void die(const char *what, const char *why)
{
	fprintf(stderr, "scale: %s: %s\n", what, why);
	exit(1);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static void remove_dir(void)
{
	if (dir[0] && owner == getpid())
		nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The parent, which is the one that removes, does nothing but wait for its children while there is something to remove.
 */
static void on_signal(int sig)
{
	remove_dir();
	_exit(128 + sig);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t rss_bytes(void)
{
	unsigned long pages = 0, total;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%lu %lu", &total, &pages) != 2)
		die("/proc/self/statm", "cannot be read");
	fclose(f);
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* The line of entry e: scattered over a volume of 2^k lines, at least twice as many as there are entries; no two the
 * same. */
static uint64_t line_of(uint64_t e, uint64_t volume_lines)
{
	return e * 0x9e3779b97f4a7c15u & (volume_lines - 1);
}

static uint64_t volume_lines_for(uint64_t nlines)
{
	uint64_t n = 2;

	while (n < nlines * 2)
		n *= 2;
	return n;
}

/* ---- phases ---- */

static void make_files(uint64_t size)
{
	struct journal_geometry geo = { .line_size = CACHE_BLOCK, .blocks_per_line = 1 };
	char path[4200], backing[64], ram[32];
	struct journal_volume v = { .id = 1, .name = "v", .mode = "wb" };
	struct bc_error err;
	struct journal *j;
	double start = now();
	int fd;

	geo.nlines = geo.nslots = (uint32_t)(size / CACHE_BLOCK);
	geo.size_bytes = (uint64_t)geo.nslots * CACHE_BLOCK;
	memset(geo.uuid, 0x5c, sizeof geo.uuid);
	snprintf(path, sizeof path, "%s/%s", dir, CACHE_DATA_FILE);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)geo.size_bytes) || close(fd))
		die(path, strerror(errno));
	snprintf(ram, sizeof ram, "%u", 64u << 20);
	v.identity.size = volume_lines_for(geo.nlines) * CACHE_BLOCK;
	snprintf(backing, sizeof backing, "null:size=%" PRIu64, v.identity.size);
	v.backing = backing;
	if (journal_create(dir, &geo, &err) || journal_open(dir, false, &j, &err) ||
	    journal_setting_put(j, "ram", ram, &err) || journal_volume_put(j, &v, &err))
		die("create", err.msg);
	journal_close(j);
	res->create = now() - start;
	res->lines = geo.nlines;
}

/* Commits epochs of records for fill_percent of the entries and has them folded. */
static void fill_journal(uint64_t unused)
{
	size_t stride = journal_line_stride(1);
	uint64_t n = res->lines / 100 * fill_percent, dirty_each = n / DIRTY_LINES,
		 volume_lines = volume_lines_for(res->lines);
	char *records = calloc(EPOCH_LINES, stride), *zeros = calloc(1, CACHE_BLOCK);
	struct journal_load_ops ops = { 0 };
	struct journal_load_report report;
	struct bc_error err = { 0 };
	uint64_t id = 0;
	struct journal *j;
	double start = now();
	uint32_t crc = crc32c(zeros, CACHE_BLOCK);
	int rc;

	(void)unused;
	if (journal_open(dir, false, &j, &err) || journal_load(j, &ops, NULL, &report, &err))
		die("fill", err.msg);
	id = report.next_id;
	for (uint64_t e = 0; e < n; id++) {
		struct journal_epoch ep = { .id = id, .durable_upto = id - 1, .lines = (struct journal_line *)records };

		for (; ep.nlines < EPOCH_LINES && e < n; ep.nlines++, e++) {
			struct journal_line *l = (struct journal_line *)(records + ep.nlines * stride);

			l->line = line_of(e, volume_lines);
			l->entry = (uint32_t)e;
			l->volume = 1;
			l->valid = 1;
			l->dirty = dirty_each && e % dirty_each == 0;
			l->blk[0] = (struct journal_block){ .slot = (uint32_t)e, .crc = crc };
		}
		if (journal_commit(j, &ep, &err))
			die("fill", err.msg);
		/* as the engine's maintenance thread does, or the WAL would grow without bound */
		while (id % 16 == 0 && (rc = journal_maintain(j, id - 1, &err)) != 0)
			if (rc < 0)
				die("fill", err.msg);
	}
	while ((rc = journal_maintain(j, id - 1, &err)) != 0)
		if (rc < 0)
			die("fill", err.msg);
	journal_close(j);
	free(records);
	free(zeros);
	res->fill = now() - start;
}

static struct cache *load(double *took, struct cache_open_report *report)
{
	struct bc_error err;
	struct cache *c;
	double start = now();

	if (cache_open(dir, 0, &c, report, &err))
		die("load", err.msg);
	*took = now() - start;
	return c;
}

/* Random lines that are cached: what a large line map costs a hit (its memory does not fit the processor's caches). */
static double read_hits(struct volume *v)
{
	uint64_t n = res->lines / 100 * fill_percent, volume_lines = volume_lines_for(res->lines),
		 s = 88172645463325252u;
	char *buf = aligned_alloc(CACHE_BLOCK, CACHE_BLOCK);
	double start = now();

	for (int i = 0; i < READS; i++) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		if (volume_pread(v, buf, CACHE_BLOCK, line_of(s % n, volume_lines) * CACHE_BLOCK) || buf[0])
			die("read", "failed, or what was read is not zeros");
	}
	free(buf);
	return (now() - start) * 1e9 / READS;
}

static void run_clean(uint64_t unused)
{
	struct cache_open_report report;
	struct cache_info info;
	struct bc_error err;
	struct cache *c = load(&res->load_clean, &report);
	struct volume *v = cache_volume_get(c, "v");
	struct rusage usage;
	double start;

	(void)unused;
	cache_get_info(c, &info);
	/* buffers are touched when they are used, and all the same for every size */
	res->rss = rss_bytes();
	getrusage(RUSAGE_SELF, &usage);
	res->peak = (uint64_t)usage.ru_maxrss * 1024;
	res->metadata = info.metadata_bytes;
	if (report.lines < res->lines / 100 * fill_percent - DIRTY_LINES)
		die("load", "lines are missing");
	res->read_ns = read_hits(v);
	start = now();
	if (cache_write_back(c, NULL, NULL, NULL, &err))
		die("write back", err.msg);
	res->scan = now() - start;
	cache_get_info(c, &info);
	if (info.dirty_bytes)
		die("write back", "dirty data is left");
	volume_put(v);
	start = now();
	if (cache_close(c, &err))
		die("stop", err.msg);
	res->stop = now() - start;
}

/* Writes, flushes, and is gone. */
static void run_and_die(uint64_t unused)
{
	struct cache_open_report report;
	double took;
	struct cache *c = load(&took, &report);
	struct volume *v = cache_volume_get(c, "v");
	char *buf = calloc(1, CACHE_BLOCK);
	uint64_t volume_lines = volume_lines_for(res->lines);

	(void)unused;
	for (uint64_t i = 0; i < KILL_WRITES; i++) {
		if (volume_write(v, buf, CACHE_BLOCK, line_of(i * 7, volume_lines) * CACHE_BLOCK, false))
			die("write", "failed");
		if (i % 1000 == 999 && volume_flush(v))
			die("flush", "failed");
	}
	_exit(0);
}

static void load_killed(uint64_t unused)
{
	struct cache_open_report report;
	struct bc_error err;
	struct cache *c = load(&res->load_killed, &report);

	(void)unused;
	if (report.clean_stop || report.dirty_lines < KILL_WRITES)
		die("load after a kill", "the state is not the one that was left");
	res->epochs_replayed = report.epochs_replayed;
	if (cache_close(c, &err))
		die("stop", err.msg);
}

static void phase(void (*fn)(uint64_t), uint64_t arg)
{
	int status;
	pid_t pid;

	fflush(stdout); /* or the child prints it again */
	pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* an interrupted bench ends as a whole */
		fn(arg);
		exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		exit(1); /* it has said why */
}

static uint64_t journal_bytes(void)
{
	char path[4200];
	struct stat st;

	snprintf(path, sizeof path, "%s/%s", dir, JOURNAL_FILE);
	return stat(path, &st) ? 0 : (uint64_t)st.st_size;
}

static void one_size(uint64_t size, bool json)
{
	char text[32];

	memset(res, 0, sizeof *res);
	snprintf(dir, sizeof dir, "%s/blkcache-scale.XXXXXX", base);
	if (!mkdtemp(dir))
		die(dir, strerror(errno));
	phase(make_files, size);
	phase(fill_journal, 0);
	res->journal = journal_bytes();
	phase(run_clean, 0);
	phase(run_and_die, 0);
	phase(load_killed, 0);
	remove_dir();
	dir[0] = 0;
	if (json)
		printf("{\"size\":%" PRIu64 ",\"lines\":%" PRIu64 ",\"create_s\":%.3f,\"fill_s\":%.3f,\"load_s\":%.3f,"
		       "\"load_killed_s\":%.3f,\"scan_s\":%.3f,\"stop_s\":%.3f,\"rss\":%" PRIu64 ",\"peak\":%" PRIu64
		       ",\"metadata\":%" PRIu64 ",\"journal\":%" PRIu64 ",\"read_ns\":%.0f}\n",
		       size, res->lines, res->create, res->fill, res->load_clean, res->load_killed, res->scan,
		       res->stop, res->rss, res->peak, res->metadata, res->journal, res->read_ns);
	else
		printf("%-10s %8.3f %8.1f %8.3f %8.3f %8.3f %8.3f %9.1f %9.1f %8.1f %8.1f %8.0f\n",
		       units_format_size(text, sizeof text, size), res->create, res->fill, res->load_clean,
		       res->load_killed, res->scan, res->stop, (double)res->rss / (1 << 20),
		       (double)res->peak / (1 << 20), (double)res->metadata / (double)res->lines,
		       (double)res->journal / (double)res->lines, res->read_ns);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "dir", 1, 0, 'd' }, { "fill", 1, 0, 'f' }, { "json", 0, 0, 'j' }, { 0 }
	};
	bool json = false;
	uint64_t size;
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 'd')
			base = optarg;
		else if (o == 'f' && atoi(optarg) > 0 && atoi(optarg) <= 95)
			fill_percent = (unsigned)atoi(optarg);
		else if (o == 'j')
			json = true;
		else
			optind = argc; /* usage */
	}
	if (optind == argc) {
		fprintf(stderr, "usage: scale [--dir /var/tmp] [--fill PERCENT] [--json] SIZE...\n");
		return 64;
	}
	owner = getpid();
	atexit(remove_dir);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	res = mmap(NULL, sizeof *res, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!json)
		printf("%-10s %8s %8s %8s %8s %8s %8s %9s %9s %8s %8s %8s\n", "size", "create s", "fill s", "load s",
		       "killed s", "scan s", "stop s", "RSS MiB", "peak MiB", "RAM B/ln", "jrnl B/l", "read ns");
	for (; optind < argc; optind++) {
		if (units_parse_size(argv[optind], &size) || size < 64u << 20)
			die(argv[optind], "a size such as 1G is wanted, at least 64M");
		one_size(size, json);
	}
	return 0;
}
