/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volatile.c - nbdkit plugin: a disk with a volatile write cache of any size. What was written is in memory until the
 * guest flushes. When the plugin is unloaded (the machine's power went: qemu was killed), each 512-byte sector that was
 * not flushed reaches the file or does not, by chance; how likely it is that it does changes from one run of 64 KiB to
 * the next, so that whole neighbourhoods go, stay, or tear. Arguments: file=, seed=, lie=1 (answers flushes and does
 * nothing: what is built on it must then be seen to lose data).
 */
#define NBDKIT_API_VERSION 2
#include <errno.h>
#include <fcntl.h>
#include <nbdkit-plugin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
#define SECTOR 512

static const char *path;
static unsigned seed = 1, lie;
static int fd = -1;
static uint64_t size, flushes, writes;
static uint8_t **cached; /* one pointer per sector, NULL: as in the file */
static uint64_t *list, listed, room;

static int config(const char *key, const char *value)
{
	if (!strcmp(key, "file"))
		path = value;
	else if (!strcmp(key, "seed"))
		seed = atoi(value);
	else if (!strcmp(key, "lie"))
		lie = atoi(value);
	else
		return -1;
	return 0;
}

static int get_ready(void)
{
	struct stat st;
	fd = open(path, O_RDWR);
	if (fd < 0 || fstat(fd, &st))
		return -1;
	size = st.st_size;
	cached = calloc(size / SECTOR, sizeof *cached);
	return cached ? 0 : -1;
}

static void *open_(int readonly)
{
	(void)readonly;
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t get_size(void *h)
{
	(void)h;
	return size;
}

static int yes(void *h)
{
	(void)h;
	return 1;
}

static int can_fua(void *h)
{
	(void)h;
	return NBDKIT_FUA_NATIVE;
}

static int pread_(void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	(void)h, (void)flags;
	if (pread(fd, buf, count, offset) != (ssize_t)count)
		return -1;
	for (uint32_t i = 0; i < count / SECTOR; i++)
		if (cached[offset / SECTOR + i])
			memcpy((char *)buf + i * SECTOR, cached[offset / SECTOR + i], SECTOR);
	return 0;
}

static int flush(void *h, uint32_t flags)
{
	(void)h, (void)flags;
	flushes++;
	if (lie)
		return 0;
	nanosleep(&(struct timespec){ .tv_nsec = random() % 25000000 },
		  NULL); /* a flush takes its time: the power goes before many end */
	for (uint64_t i = 0; i < listed; i++) {
		uint64_t s = list[i];
		if (pwrite(fd, cached[s], SECTOR, s * SECTOR) != SECTOR)
			return -1;
		free(cached[s]);
		cached[s] = NULL;
	}
	listed = 0;
	return 0;
}

static int pwrite_(void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	if (offset % SECTOR || count % SECTOR) {
		nbdkit_error("not in sectors");
		nbdkit_set_error(EINVAL);
		return -1;
	}
	writes++;
	for (uint32_t i = 0; i < count / SECTOR; i++) {
		uint64_t s = offset / SECTOR + i;
		if ((flags & NBDKIT_FLAG_FUA) && !lie) { /* durable at once, and no older one may come after it */
			if (pwrite(fd, (const char *)buf + i * SECTOR, SECTOR, s * SECTOR) != SECTOR)
				return -1;
			if (cached[s])
				memcpy(cached[s], (const char *)buf + i * SECTOR, SECTOR);
			continue;
		}
		if (!cached[s]) {
			if (listed == room) {
				room = room ? room * 2 : 4096;
				list = realloc(list, room * sizeof *list);
				if (!list)
					abort();
			}
			list[listed++] = s;
			cached[s] = malloc(SECTOR);
			if (!cached[s])
				abort();
		}
		memcpy(cached[s], (const char *)buf + i * SECTOR, SECTOR);
	}
	(void)h;
	return 0;
}

/* The power is gone. */
static void unload(void)
{
	uint64_t kept = 0;
	if (fd < 0 || !cached)
		return;
	srandom(seed);
	unsigned salt = random();
	for (uint64_t i = 0; i < listed; i++) {
		uint64_t s = list[i];
		unsigned r = (s / 128 + salt) * 2654435761u >> 16;
		int keep = r % 4 == 0 ? 0 : r % 4 == 1 ? 1 : random() % 2;
		if (keep && pwrite(fd, cached[s], SECTOR, s * SECTOR) == SECTOR)
			kept++;
	}
	fprintf(stderr, "%s: %llu writes, %llu flushes; of %llu sectors not flushed %llu reached the disk\n", path,
		(unsigned long long)writes, (unsigned long long)flushes, (unsigned long long)listed,
		(unsigned long long)kept);
	fsync(fd);
}

static struct nbdkit_plugin plugin = {
	.name = "volatile",
	.config = config,
	.get_ready = get_ready,
	.open = open_,
	.get_size = get_size,
	.can_write = yes,
	.can_flush = yes,
	.can_multi_conn = yes,
	.can_fua = can_fua,
	.pread = pread_,
	.pwrite = pwrite_,
	.flush = flush,
	.unload = unload,
};
NBDKIT_REGISTER_PLUGIN(plugin)
