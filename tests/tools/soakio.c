/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * soakio.c - very many operations of one kind on a file, at random places: soakio KIND FILE COUNT [THREADS]
 *
 * KIND: read, write, flush (a write and fdatasync), sync (an O_DSYNC write), discard (a hole of 4 to 64 KiB), zero,
 * open (and close), stat. Requests are of 4 KiB. Threads share the count. Exit status 0 if all succeeded.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 4096u

static const char *kind, *path;
static uint64_t blocks;
static atomic_long left;

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static int one(int fd, uint64_t *rng)
{
	char buf[BLOCK];
	off_t at = (off_t)(next(rng) % blocks * BLOCK);
	off_t len = (off_t)(BLOCK * (1 + next(rng) % 16));
	struct stat st;
	int other;

	if (len > (off_t)(blocks * BLOCK) - at)
		len = BLOCK;
	if (strcmp(kind, "read") == 0)
		return pread(fd, buf, BLOCK, at) == BLOCK ? 0 : -1;
	if (strcmp(kind, "discard") == 0)
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len);
	if (strcmp(kind, "zero") == 0)
		return fallocate(fd, FALLOC_FL_ZERO_RANGE, at, len);
	if (strcmp(kind, "stat") == 0)
		return fstat(fd, &st);
	if (strcmp(kind, "open") == 0) {
		other = open(path, O_RDONLY | O_CLOEXEC);
		return other < 0 ? -1 : close(other);
	}
	memset(buf, (int)(*rng & 0xff), BLOCK);
	if (pwrite(fd, buf, BLOCK, at) != BLOCK)
		return -1;
	return strcmp(kind, "flush") == 0 ? fdatasync(fd) : 0;
}

static void *run(void *arg)
{
	uint64_t rng = (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15ull + 1;
	int fd = open(path, O_RDWR | O_CLOEXEC | (strcmp(kind, "sync") == 0 ? O_DSYNC : 0));
	const char *why = fd < 0 ? "open" : NULL;

	while (!why && atomic_fetch_sub(&left, 1) > 0)
		if (one(fd, &rng) != 0)
			why = kind;
	if (why)
		fprintf(stderr, "soakio: %s: %s\n", why, strerror(errno));
	if (fd >= 0)
		close(fd);
	return (void *)(uintptr_t)(why != NULL);
}

int main(int argc, char **argv)
{
	long threads = argc > 4 ? atol(argv[4]) : 1;
	pthread_t thread[64];
	struct stat st;
	void *failed;
	int status = 0;

	if (argc < 4 || threads < 1 || threads > 64 || stat(argv[2], &st) != 0 || st.st_size < BLOCK) {
		fprintf(stderr, "usage: soakio KIND FILE COUNT [THREADS]\n");
		return 64;
	}
	kind = argv[1];
	path = argv[2];
	blocks = (uint64_t)st.st_size / BLOCK;
	left = atol(argv[3]);
	for (long i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, run, (void *)(uintptr_t)(i + 1)) != 0)
			return 1;
	for (long i = 0; i < threads; i++) {
		pthread_join(thread[i], &failed);
		status |= failed != NULL;
	}
	return status;
}
