/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * malloc.c - malloc:size=SIZE: a device in memory, zeros at first, gone when closed. Memory is taken page by page as it
 * is written. Any number of channels on any threads; as on a disk, ranges written at the same time by two of them hold
 * a mixture.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bdev/args.h"
#include "bdev/module.h"
#include "blkcache/units.h"

struct malloc_bdev {
	struct bdev b;
	char *mem;
};

static int malloc_construct(struct bdev *b, const char *args, struct bc_error *err)
{
	struct malloc_bdev *mb = (struct malloc_bdev *)b;
	char text[32];
	int r = args_only_size(args, "malloc", &b->size, err);

	if (r)
		return r;
	mb->mem = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mb->mem == MAP_FAILED)
		return bc_fail(err, -errno, "malloc: no address space for %s: %s; use a smaller size",
			       units_format_size(text, sizeof(text), b->size), strerror(errno));
	return 0;
}

static void malloc_destruct(struct bdev *b)
{
	munmap(((struct malloc_bdev *)b)->mem, b->size);
}

/* Gives whole pages back, which read as zeros then, and clears the edges. */
static void unmap(char *from, uint64_t len)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	char *inner = (char *)(((uintptr_t)from + page - 1) & ~(page - 1));
	char *inner_end = (char *)(((uintptr_t)from + len) & ~(page - 1));

	if (inner >= inner_end || madvise(inner, (size_t)(inner_end - inner), MADV_DONTNEED)) {
		memset(from, 0, len); /* MADV_DONTNEED is refused for locked memory */
		return;
	}
	memset(from, 0, (size_t)(inner - from));
	memset(inner_end, 0, (size_t)(from + len - inner_end));
}

static int malloc_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	char *p = ((struct malloc_bdev *)ch->bdev)->mem + io->offset;

	switch (io->type) {
	case BDEV_READ:
		for (int i = 0; i < io->iovcnt; p += io->iov[i++].iov_len)
			memcpy(io->iov[i].iov_base, p, io->iov[i].iov_len);
		return 0;
	case BDEV_WRITE:
		for (int i = 0; i < io->iovcnt; p += io->iov[i++].iov_len)
			memcpy(p, io->iov[i].iov_base, io->iov[i].iov_len);
		return 0;
	case BDEV_UNMAP:
		unmap(p, io->length);
		return 0;
	case BDEV_WRITE_ZEROES:
		memset(p, 0, io->length);
		return 0;
	default:
		return 0; /* FLUSH: memory has no cache before it */
	}
}

static void malloc_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	bdev_io_complete(ch, io, malloc_rw_sync(ch, io));
}

static struct bdev_module malloc_module = {
	.name = "malloc",
	.usage = "size=SIZE",
	.bdev_size = sizeof(struct malloc_bdev),
	.channel_size = sizeof(struct bdev_channel),
	.construct = malloc_construct,
	.destruct = malloc_destruct,
	.submit = malloc_submit,
	.rw_sync = malloc_rw_sync,
};
BDEV_MODULE_REGISTER(malloc_module)
