/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * disk.c - what the crash rig's recorders do not need and this does (linked with --wrap): the calls of the file module
 * on a backing file in the world, so that its own code is under the scheduler too, and the note of a bypassed cache.
 * There is no io_uring: the module then makes plain system calls.
 */
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fibers.h"
#include "sync.h"
#include "world.h"

ssize_t __wrap_pread64(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t n, off_t off);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int n, off_t off);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t off);
int __wrap_flock(int fd, int how);

int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
	(void)entries, (void)ring, (void)flags;
	return -ENOSYS;
}

ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int n, off_t off)
{
	ssize_t sum = 0;

	for (int i = 0; i < n; i++) {
		ssize_t r = __wrap_pread64(fd, iov[i].iov_base, iov[i].iov_len, off + sum);

		if (r < 0)
			return sum ? sum : r;
		sum += r;
	}
	return sum;
}

ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t off)
{
	ssize_t sum = 0;

	for (int i = 0; i < n; i++) {
		ssize_t r = __wrap_pwrite64(fd, iov[i].iov_base, iov[i].iov_len, off + sum);

		if (r < 0)
			return sum ? sum : r;
		sum += r;
	}
	return sum;
}

/* One process, and files that are all /dev/null to the kernel. */
int __wrap_flock(int fd, int how)
{
	(void)fd, (void)how;
	return 0;
}

/* ---- memory ---- */

/*
 * The library maps memory at every opening and unmaps it at closing, and most of the time would go into that. So maps
 * are kept. What is small is zeroed; what is large are buffers, whose contents nobody looks at before writing them.
 */
#define MAX_MAPS 64
#define SMALL_MAP (1u << 20)

static struct {
	void *at;
	size_t len;
	bool used;
} maps[MAX_MAPS];

void *__real_mmap64(void *at, size_t len, int prot, int flags, int fd, off_t off);
int __real_munmap(void *at, size_t len);
int __real_madvise(void *at, size_t len, int advice);
void *__wrap_mmap64(void *at, size_t len, int prot, int flags, int fd, off_t off);
int __wrap_munmap(void *at, size_t len);
int __wrap_madvise(void *at, size_t len, int advice);

void *__wrap_mmap64(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	bool ours = !at && fd == -1 && flags & MAP_PRIVATE && prot == (PROT_READ | PROT_WRITE) && fiber_self();
	void *p;

	for (unsigned i = 0; ours && i < MAX_MAPS; i++) {
		if (!maps[i].at || maps[i].used || maps[i].len != len)
			continue;
		maps[i].used = true;
		if (len <= SMALL_MAP)
			memset(maps[i].at, 0, len);
		return maps[i].at;
	}
	p = __real_mmap64(at, len, prot, flags, fd, off);
	for (unsigned i = 0; ours && p != MAP_FAILED && i < MAX_MAPS; i++) {
		if (maps[i].at)
			continue;
		maps[i].at = p;
		maps[i].len = len;
		maps[i].used = true;
		break;
	}
	return p;
}

int __wrap_munmap(void *at, size_t len)
{
	for (unsigned i = 0; i < MAX_MAPS; i++) {
		if (maps[i].at == at && maps[i].used) {
			maps[i].used = false;
			return 0;
		}
	}
	return __real_munmap(at, len);
}

int __wrap_madvise(void *at, size_t len, int advice)
{
	return fiber_self() ? 0 : __real_madvise(at, len, advice);
}
