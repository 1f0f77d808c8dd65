/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * flushrecord - writes stamped blocks to a volume while somebody kills the daemon, and checks what is left (P1, P3).
 *
 * - flushrecord init STATE BLOCKS SEED: a new state file for a volume that reads as zeros
 * - flushrecord write VOLUME STATE SECONDS: writes, flushes and discards at random until the time is over or I/O fails
 * - flushrecord verify VOLUME STATE: reads every block; exit status 1 if a promise was broken
 *
 * Every 4 KiB block written is a function of (seed, block, version), versions count up over everything ever written.
 * The state file, which must not lie on the volume, knows for each block the newest version that was flushed for
 * certain, the newest that may have been written (an unanswered write counts), and the newest discard. After a crash a
 * block must read as
 *   - a stamped block with its own number, whole, of a version from flushed to written, or
 *   - zeros, if a discard at least as new as `flushed` was begun or nothing was ever flushed.
 * What verify saw is durable and becomes `flushed`: what comes back older, or newer, after a later crash is an error
 * too.
 *
 * Threads own disjoint sets of 16-block groups, so a thread's records need no lock; `version` is shared. Writer and
 * state survive the kill, for only the daemon dies; the state is saved when the writer ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define GROUP 16u /* blocks; also the largest write */
#define THREADS 4u
#define MAGIC 0x626c6b6366727631ull

struct record {
	uint32_t flushed, written, zeroed; /* versions; 0 = never */
};

struct state {
	uint64_t magic, seed;
	uint32_t nblocks, version;
	struct record rec[];
};

static struct state *state;
static size_t state_size;
static int volume;
static atomic_uint version;
static atomic_bool dead;
static struct timespec deadline;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void stamp(void *buf, uint32_t block, uint32_t v)
{
	uint64_t *word = buf, x = mix(state->seed ^ ((uint64_t)block << 32 | v));

	word[0] = MAGIC;
	word[1] = state->seed;
	word[2] = (uint64_t)block << 32 | v;
	for (unsigned i = 3; i < BLOCK / 8; i++)
		word[i] = x = x * 6364136223846793005ull + 1442695040888963407ull;
}

static void die(const char *what)
{
	fprintf(stderr, "flushrecord: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void load_state(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st) != 0)
		die(path);
	state_size = (size_t)st.st_size;
	state = malloc(state_size);
	if (!state || read(fd, state, state_size) != (ssize_t)state_size || state->magic != MAGIC)
		die(path);
	close(fd);
}

static void save_state(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, state, state_size) != (ssize_t)state_size || close(fd) != 0)
		die(path);
}

struct writer {
	pthread_t thread;
	unsigned index;
	uint64_t random;
	uint64_t writes, flushes, discards;
};

static uint64_t next_random(struct writer *w)
{
	return w->random = mix(w->random);
}

/* Everything of this thread's blocks that was answered is now durable. */
static void note_flushed(const struct writer *w)
{
	for (uint32_t b = w->index * GROUP; b < state->nblocks; b += THREADS * GROUP)
		for (uint32_t i = b; i < b + GROUP && i < state->nblocks; i++)
			state->rec[i].flushed = state->rec[i].written;
}

static int do_write(struct writer *w, uint32_t first, uint32_t n, bool durable)
{
	static __thread char buf[GROUP * BLOCK] __attribute__((aligned(BLOCK)));
	struct iovec iov = { .iov_base = buf, .iov_len = (size_t)n * BLOCK };
	uint32_t v = atomic_fetch_add(&version, 1) + 1;

	for (uint32_t i = 0; i < n; i++) {
		stamp(buf + (size_t)i * BLOCK, first + i, v);
		state->rec[first + i].written = v;
	}
	if (pwritev2(volume, &iov, 1, (off_t)first * BLOCK, durable ? RWF_DSYNC : 0) != (ssize_t)iov.iov_len)
		return -1;
	for (uint32_t i = 0; durable && i < n; i++)
		state->rec[first + i].flushed = v;
	w->writes++;
	return 0;
}

static int do_discard(struct writer *w, uint32_t first, uint32_t n)
{
	uint32_t v = atomic_fetch_add(&version, 1) + 1;

	for (uint32_t i = 0; i < n; i++)
		state->rec[first + i].written = state->rec[first + i].zeroed = v;
	w->discards++;
	return fallocate(volume, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first * BLOCK, (off_t)n * BLOCK);
}

static bool time_over(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > deadline.tv_sec || (now.tv_sec == deadline.tv_sec && now.tv_nsec > deadline.tv_nsec);
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	uint32_t groups = state->nblocks / GROUP / THREADS;

	while (!atomic_load(&dead) && !time_over()) {
		uint64_t r = next_random(w), what = next_random(w) % 100;
		uint32_t group = (uint32_t)(r % groups) * THREADS + w->index;
		uint32_t from = (uint32_t)(r >> 32) % GROUP, n = 1;
		int rc;

		if (what >= 60)
			n += (uint32_t)(r >> 40) % (GROUP - from);
		if (what < 88) {
			rc = do_write(w, group * GROUP + from, n, what < 5);
		} else if (what < 90) {
			rc = do_discard(w, group * GROUP + from, n);
		} else {
			rc = fdatasync(volume);
			if (rc == 0) {
				note_flushed(w);
				w->flushes++;
			}
		}
		if (rc != 0)
			atomic_store(&dead, true);
	}
	return NULL;
}

static int cmd_write(const char *path, const char *state_path, double seconds)
{
	struct writer writers[THREADS] = { 0 };
	uint64_t writes = 0, flushes = 0, discards = 0;

	load_state(state_path);
	volume = open(path, O_RDWR);
	if (volume < 0 && (errno == ENOTCONN || errno == ECONNABORTED || errno == ENOENT)) {
		puts("nothing: the daemon was dead already");
		return 0;
	}
	if (volume < 0)
		die(path);
	atomic_store(&version, state->version);
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += (time_t)seconds;
	for (unsigned i = 0; i < THREADS; i++) {
		writers[i].index = i;
		writers[i].random = mix(state->seed + state->version) ^ i;
		if (pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]) != 0)
			die("pthread_create");
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(writers[i].thread, NULL);
		writes += writers[i].writes;
		flushes += writers[i].flushes;
		discards += writers[i].discards;
	}
	state->version = atomic_load(&version);
	save_state(state_path);
	printf("writes %" PRIu64 " flushes %" PRIu64 " discards %" PRIu64 " %s\n", writes, flushes, discards,
	       atomic_load(&dead) ? "until an I/O failed" : "until the time was over");
	return 0;
}

/* The version that `buf` holds, 0 for zeros, or -1 with the reason printed. */
static int64_t version_of(const uint64_t *buf, uint32_t block)
{
	static uint64_t want[BLOCK / 8];
	bool zeros = true;
	uint32_t v;

	for (unsigned i = 0; i < BLOCK / 8 && zeros; i++)
		zeros = buf[i] == 0;
	if (zeros)
		return 0;
	if (buf[0] != MAGIC || buf[1] != state->seed) {
		fprintf(stderr, "block %u: foreign data (starts %016" PRIx64 " %016" PRIx64 ")\n", block, buf[0],
			buf[1]);
		return -1;
	}
	if (buf[2] >> 32 != block) {
		fprintf(stderr, "block %u: holds block %u, version %u\n", block, (uint32_t)(buf[2] >> 32),
			(uint32_t)buf[2]);
		return -1;
	}
	v = (uint32_t)buf[2];
	stamp(want, block, v);
	for (unsigned i = 0; i < BLOCK / 8; i++) {
		if (buf[i] != want[i]) {
			fprintf(stderr, "block %u: torn: starts as version %u, differs at byte %u\n", block, v, i * 8);
			return -1;
		}
	}
	return v;
}

static bool block_is_good(uint32_t block, const uint64_t *buf)
{
	struct record *r = &state->rec[block];
	int64_t v = version_of(buf, block);

	if (v < 0)
		return false;
	if (v == 0 && r->flushed > r->zeroed) {
		fprintf(stderr, "block %u: zeros, but version %u was flushed\n", block, r->flushed);
		return false;
	}
	if (v > 0 && (v < r->flushed || v > r->written)) {
		fprintf(stderr, "block %u: version %u, but %u was flushed and %u the last written\n", block,
			(uint32_t)v, r->flushed, r->written);
		return false;
	}
	if (v > 0) {
		r->flushed = r->written = (uint32_t)v;
	} else {
		/* Zeros seen are the newest from now on, older stamps must not come back. */
		r->flushed = r->written = r->zeroed;
	}
	return true;
}

static int cmd_verify(const char *path, const char *state_path)
{
	static uint64_t buf[GROUP * BLOCK / 8] __attribute__((aligned(BLOCK)));
	unsigned bad = 0;

	load_state(state_path);
	volume = open(path, O_RDONLY);
	if (volume < 0)
		die(path);
	for (uint32_t first = 0; first < state->nblocks; first += GROUP) {
		if (pread(volume, buf, sizeof(buf), (off_t)first * BLOCK) != (ssize_t)sizeof(buf))
			die("reading the volume");
		for (uint32_t i = 0; i < GROUP; i++)
			if (!block_is_good(first + i, buf + (size_t)i * BLOCK / 8) && ++bad == 10)
				exit(1);
	}
	save_state(state_path);
	return bad ? 1 : 0;
}

static int cmd_init(const char *state_path, const char *blocks, const char *seed)
{
	uint32_t n = (uint32_t)(strtoul(blocks, NULL, 10) / (GROUP * THREADS) * (GROUP * THREADS));

	state_size = sizeof(*state) + n * sizeof(struct record);
	state = calloc(1, state_size);
	if (!state || n == 0)
		die("init");
	state->magic = MAGIC;
	state->seed = strtoull(seed, NULL, 10);
	state->nblocks = n;
	save_state(state_path);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "init") == 0)
		return cmd_init(argv[2], argv[3], argv[4]);
	if (argc == 5 && strcmp(argv[1], "write") == 0)
		return cmd_write(argv[2], argv[3], atof(argv[4]));
	if (argc == 4 && strcmp(argv[1], "verify") == 0)
		return cmd_verify(argv[2], argv[3]);
	fprintf(stderr,
		"usage: flushrecord init STATE BLOCKS SEED | write VOLUME STATE SECONDS | verify VOLUME STATE\n");
	return 64;
}
