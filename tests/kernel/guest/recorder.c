/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * recorder.c - writes blocks that say what they are, tells an outside record what has been made durable, and reads them
 *back.
 *
 *	recorder write RECORD BASE FS RAW PREFIX LOAD   until killed; BASE: sequence numbers start above it
 *	recorder check RECORD FS RAW PREFIX LOAD        prints what is there
 *
 * FS: a folder (ext4 on a loop device on a volume). RAW, PREFIX, LOAD: volumes, written directly.
 *
 * Lines of the record: "R key block seq" after the fdatasync that covers it; "N seq" a file that was written, fsynced,
 *renamed, and its folder fsynced; "P seq ms" the unsynced writer of PREFIX has had `seq` answered at `ms`; on check "C
 *key block seq" (0: zeros), "BAD ..." for a block that is neither zeros nor one of ours for that place.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BS 4096
#define NBLOCKS 512 /* per file writer: 2 MiB */
#define RAW_BLOCKS 2048 /* per raw writer: 8 MiB */
#define PREFIX_BLOCKS 8192
#define LOAD_BLOCKS 8192
#define FS_WRITERS 3
#define RAW_WRITERS 2

struct head {
	char magic[8];
	uint32_t key, block;
	uint64_t seq;
	uint64_t sum;
};

static int rec;
static uint64_t base;
static const char *fs_dir, *raw_vol, *prefix_vol, *load_vol;
static pthread_mutex_t rec_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void say(const char *fmt, ...)
{
	char line[128];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&rec_lock);
	for (int done = 0; done < n;) {
		ssize_t w = write(rec, line + done, n - done);
		if (w > 0)
			done += w;
		else if (errno != EINTR && errno != EAGAIN)
			_exit(3);
	}
	pthread_mutex_unlock(&rec_lock);
}

static void die(const char *what)
{
	say("ERROR %s: %s\n", what, strerror(errno));
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(2);
}

static void fill(void *buf, uint32_t key, uint32_t block, uint64_t seq)
{
	struct head *h = buf;
	uint64_t *w = buf, x = mix(mix(key * 1000003ull + block) ^ seq);
	for (unsigned i = sizeof *h / 8; i < BS / 8; i++)
		w[i] = x = mix(x);
	memcpy(h->magic, "BKRECORD", 8);
	h->key = key;
	h->block = block;
	h->seq = seq;
	h->sum = x;
}

static void verify(void *buf, uint32_t key, uint32_t block, const char *what)
{
	static char zero[BS];
	static __thread char want[BS] __attribute__((aligned(8)));
	struct head *h = buf;
	if (!memcmp(buf, zero, BS)) {
		if (key != 40)
			say("C %u %u 0\n", key, block);
		return;
	}
	if (memcmp(h->magic, "BKRECORD", 8) || h->key != key || h->block != block) {
		say("BAD %s %u %u foreign\n", what, key, block);
		return;
	}
	fill(want, key, block, h->seq);
	if (memcmp(want, buf, BS)) {
		unsigned at = 0;
		while (want[at] == ((char *)buf)[at])
			at++;
		say("BAD %s %u %u torn at %u seq %llu\n", what, key, block, at, (unsigned long long)h->seq);
		return;
	}
	if (key != 40) /* nothing of the load was made durable, it only must not be torn or foreign */
		say("C %u %u %llu\n", key, block, (unsigned long long)h->seq);
}

static void *aligned(size_t n)
{
	void *p;
	if (posix_memalign(&p, BS, n))
		abort();
	return p;
}

/* Some blocks anywhere in its part of the file, then fdatasync, then the record. */
static void durable_writer(int fd, uint32_t key, uint32_t nblocks, off_t start)
{
	void *buf = aligned(BS);
	uint64_t seq = base, r = mix(base + key);
	uint32_t done[16];
	for (;;) {
		r = mix(r);
		int n = 1 + (r >> 8) % (r % 5 == 0 ? 16 : 2);
		uint64_t first = seq + 1;
		for (int i = 0; i < n; i++) {
			done[i] = (r = mix(r)) % nblocks;
			fill(buf, key, done[i], ++seq);
			if (pwrite(fd, buf, BS, start + (off_t)done[i] * BS) != BS)
				die("pwrite");
		}
		if (fdatasync(fd))
			die("fdatasync");
		for (int i = 0; i < n; i++)
			say("R %u %u %llu\n", key, done[i], (unsigned long long)(first + i));
	}
}

static void *fs_writer(void *arg)
{
	uint32_t key = (uintptr_t)arg;
	char path[512];
	snprintf(path, sizeof path, "%s/f%u", fs_dir, key);
	int fd = open(path, O_RDWR | O_CREAT | (key == 1 ? O_DIRECT : 0), 0644);
	if (fd < 0 || fsync(fd))
		die(path);
	int d = open(fs_dir, O_RDONLY);
	fsync(d);
	durable_writer(fd, key, NBLOCKS, 0);
	return NULL;
}

static void *raw_writer(void *arg)
{
	uint32_t key = (uintptr_t)arg;
	int fd = open(raw_vol, O_RDWR | (key % 2 ? O_DIRECT : 0));
	if (fd < 0)
		die(raw_vol);
	durable_writer(fd, key, RAW_BLOCKS, (off_t)(key - 11) * RAW_BLOCKS * BS);
	return NULL;
}

static void *rename_writer(void *arg)
{
	(void)arg;
	char *buf = aligned(BS), tmp[512], name[512];
	int d = open(fs_dir, O_RDONLY);
	for (uint64_t seq = base + 1;; seq++) {
		snprintf(tmp, sizeof tmp, "%s/tmp", fs_dir);
		snprintf(name, sizeof name, "%s/n%llu", fs_dir, (unsigned long long)seq);
		int fd = open(tmp, O_RDWR | O_CREAT | O_TRUNC, 0644);
		fill(buf, 30, 0, seq);
		if (fd < 0 || write(fd, buf, BS) != BS || fsync(fd) || close(fd) || rename(tmp, name) || fsync(d))
			die("rename writer");
		say("N %llu\n", (unsigned long long)seq);
		if (seq > base + 64) {
			snprintf(name, sizeof name, "%s/n%llu", fs_dir, (unsigned long long)seq - 64);
			unlink(name);
		}
	}
	return NULL;
}

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

/* One thread, nothing flushed: what survives must be a prefix (P2). Which block a number goes to is known from the
 * number. */
static uint64_t prefix_start;
static void *prefix_writer(void *arg)
{
	(void)arg;
	void *buf = aligned(BS);
	int fd = open(prefix_vol, O_RDWR | O_DIRECT);
	uint64_t told = 0;
	if (fd < 0)
		die(prefix_vol);
	for (uint64_t seq = prefix_start + 1;; seq++) {
		uint32_t block = mix(seq) % PREFIX_BLOCKS;
		fill(buf, 20, block, seq);
		if (pwrite(fd, buf, BS, (off_t)block * BS) != BS)
			die("prefix pwrite");
		if (now_ms() - told >= 100) {
			told = now_ms();
			say("P %llu %llu\n", (unsigned long long)seq, (unsigned long long)told);
		}
		if (seq % 8 == 0)
			usleep(2000);
	}
	return NULL;
}

/* Makes dirty data, evictions and misses. */
static void *load_writer(void *arg)
{
	(void)arg;
	char *buf = aligned(16 * BS);
	int fd = open(load_vol, O_RDWR | O_DIRECT);
	if (fd < 0)
		die(load_vol);
	for (uint64_t seq = base + 1, r = mix(base + 40);; r = mix(r)) {
		uint32_t n = 1 + r % 16, at = (r >> 8) % (LOAD_BLOCKS - n);
		if (r >> 63) {
			if (pread(fd, buf, n * BS, (off_t)at * BS) < 0)
				die("load pread");
		} else {
			for (uint32_t i = 0; i < n; i++)
				fill(buf + i * BS, 40, at + i, seq++);
			if (pwrite(fd, buf, n * BS, (off_t)at * BS) != (ssize_t)n * BS)
				die("load pwrite");
		}
		usleep(3000);
	}
	return NULL;
}

static void check_file(const char *path, uint32_t key, uint32_t nblocks, off_t start)
{
	char *buf = aligned(BS);
	int fd = open(path, O_RDONLY);
	if (fd < 0) {
		say("GONE %u %s\n", key, path);
		return;
	}
	for (uint32_t b = 0; b < nblocks; b++) {
		ssize_t n = pread(fd, buf, BS, start + (off_t)b * BS);
		if (n == 0)
			break; /* the file is shorter */
		if (n != BS)
			say("BAD %s %u %u read %zd\n", path, key, b, n);
		else
			verify(buf, key, b, path);
	}
	close(fd);
}

/* The prefix: with the largest number found, every block must hold the last number at most that large that went to it.
 */
static void check_prefix(void)
{
	char *buf = aligned(BS), want[BS];
	static uint64_t found[PREFIX_BLOCKS], expect[PREFIX_BLOCKS];
	uint64_t max = 0;
	unsigned wrong = 0;
	int fd = open(prefix_vol, O_RDONLY);
	if (fd < 0)
		die(prefix_vol);
	for (uint32_t b = 0; b < PREFIX_BLOCKS; b++) {
		struct head *h = (void *)buf;
		if (pread(fd, buf, BS, (off_t)b * BS) != BS)
			die("prefix pread");
		found[b] = 0;
		if (!memcmp(h->magic, "BKRECORD", 8)) {
			found[b] = h->seq;
			fill(want, 20, b, h->seq);
			if (memcmp(want, buf, BS))
				say("BAD prefix %u torn or foreign\n", b);
		} else {
			for (int i = 0; i < BS; i++)
				if (buf[i]) {
					say("BAD prefix %u neither zeros nor ours\n", b);
					break;
				}
		}
		if (found[b] > max)
			max = found[b];
	}
	for (uint64_t s = 1; s <= max; s++)
		expect[mix(s) % PREFIX_BLOCKS] = s;
	for (uint32_t b = 0; b < PREFIX_BLOCKS; b++)
		if (found[b] != expect[b] && wrong++ < 5)
			say("BAD prefix block %u has %llu, with %llu there it should have %llu\n", b,
			    (unsigned long long)found[b], (unsigned long long)max, (unsigned long long)expect[b]);
	say("PREFIX %llu wrong %u\n", (unsigned long long)max, wrong);
	prefix_start = max;
}

int main(int argc, char **argv)
{
	if (argc < 7)
		return 64;
	rec = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY, 0644);
	fs_dir = argv[argc - 4], raw_vol = argv[argc - 3], prefix_vol = argv[argc - 2], load_vol = argv[argc - 1];
	if (!strcmp(argv[1], "check")) {
		char path[512];
		for (unsigned k = 1; k <= FS_WRITERS; k++) {
			snprintf(path, sizeof path, "%s/f%u", fs_dir, k);
			check_file(path, k, NBLOCKS, 0);
		}
		for (unsigned k = 11; k < 11 + RAW_WRITERS; k++)
			check_file(raw_vol, k, RAW_BLOCKS, (off_t)(k - 11) * RAW_BLOCKS * BS);
		check_file(load_vol, 40, LOAD_BLOCKS, 0);
		check_prefix();
		DIR *d = opendir(fs_dir);
		struct dirent *e;
		while (d && (e = readdir(d)))
			if (e->d_name[0] == 'n') {
				char buf[BS] = { 0 }, want[BS];
				uint64_t seq = strtoull(e->d_name + 1, NULL, 10);
				snprintf(path, sizeof path, "%s/%s", fs_dir, e->d_name);
				int fd = open(path, O_RDONLY);
				fill(want, 30, 0, seq);
				if (fd < 0 || read(fd, buf, BS) != BS || memcmp(buf, want, BS))
					say("BAD %s content\n", path);
				else
					say("F %llu\n", (unsigned long long)seq);
				close(fd);
			}
		say("CHECKED\n");
		return 0;
	}
	base = strtoull(argv[3], NULL, 10);
	prefix_start = strtoull(getenv("PREFIX_START") ?: "0", NULL, 10);
	pthread_t t;
	for (uintptr_t k = 1; k <= FS_WRITERS; k++)
		pthread_create(&t, NULL, fs_writer, (void *)k);
	for (uintptr_t k = 11; k < 11 + RAW_WRITERS; k++)
		pthread_create(&t, NULL, raw_writer, (void *)k);
	pthread_create(&t, NULL, rename_writer, NULL);
	pthread_create(&t, NULL, prefix_writer, NULL);
	pthread_create(&t, NULL, load_writer, NULL);
	say("GO\n");
	pause();
}
