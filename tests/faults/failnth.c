/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * failnth.c - fails the Nth system call of a kind on chosen files: tests include it and set `failnth`, or it is
 * preloaded (failnth.so) and set by the environment:
 *
 *   FAILNTH=KINDS:N:ERROR[:sticky]  KINDS: letters, see failnth_kinds; ERROR: an errno as a number, 0 = short transfer
 *   FAILNTH_PATHS=PATTERN|PATTERN...  of fnmatch(3), for the whole path
 *   FAILNTH_LOG=FILE                each injected failure is added to it as a line
 *
 * It stands before libc by symbol interposition, so that SQLite's calls are hit like ours. io_uring bypasses libc:
 * io_uring_queue_init is refused, and the file module then uses plain system calls.
 *
 * A failing sync has synced nothing, a failing write has written nothing (a short one: half). Any thread; `failnth` is
 * changed only while no I/O is under way.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum failnth_kind {
	FAIL_OPEN = 1,
	FAIL_READ = 2,
	FAIL_WRITE = 4,
	FAIL_SYNC = 8,
	FAIL_ALLOC = 16, /* fallocate, posix_fallocate */
	FAIL_TRUNCATE = 32,
	FAIL_UNLINK = 64, /* and rename */
	FAIL_ALL = 127,
};

static const char failnth_kinds[] = "orwsatu"; /* in the order of the bits */

#define FAIL_SHORT 0 /* as `error`: half of it is transferred; for calls that cannot be short: EIO */

static struct {
	atomic_bool armed;
	unsigned kinds; /* of enum failnth_kind */
	const char *paths; /* patterns, separated by '|' */
	long nth; /* from 1 */
	int error; /* errno or FAIL_SHORT */
	bool sticky; /* the Nth and all after it */
	bool no_ring; /* refuse io_uring, armed or not */
	bool no_sync; /* syncs do nothing: no power is lost in these tests, and they take most of the time */
	const char *log;
	atomic_long seen, injected;
	char what[400]; /* the first one that failed */
} failnth;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static bool failnth_matches(const char *path)
{
	char pattern[PATH_MAX];

	for (const char *p = failnth.paths; p && *p; p += strcspn(p, "|"), p += *p == '|') {
		size_t len = strcspn(p, "|");

		if (len >= sizeof pattern)
			continue;
		memcpy(pattern, p, len);
		pattern[len] = 0;
		if (!fnmatch(pattern, path, 0))
			return true;
	}
	return false;
}

static void failnth_path(int fd, char *path, size_t len)
{
	char link[40];
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, len - 1);
	path[n > 0 ? n : 0] = 0;
}

static void failnth_say(const char *call, const char *path, long n)
{
	int (*real_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
	char line[400];
	int len, fd;

	len = snprintf(line, sizeof line, "%s %s: call %ld fails with %d\n", call, path, n, failnth.error);
	if (atomic_fetch_add(&failnth.injected, 1) == 0)
		snprintf(failnth.what, sizeof failnth.what, "%.*s", len - 1, line);
	if (!failnth.log || len >= (int)sizeof line)
		return;
	fd = real_open(failnth.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	(void)!REAL(write)(fd, line, (size_t)len);
	close(fd);
}

/* Is it this call's turn? *is_short, if given, tells a short transfer from an error; errno is set. */
static bool failnth_hits(enum failnth_kind kind, const char *call, int fd, const char *name, bool *is_short)
{
	char path[PATH_MAX + 256];
	long n;

	if (!atomic_load(&failnth.armed) || !(failnth.kinds & (unsigned)kind))
		return false;
	path[0] = 0;
	if (fd >= 0)
		failnth_path(fd, path, PATH_MAX);
	if (name && name[0] == '/')
		snprintf(path, sizeof path, "%s", name);
	else if (name)
		snprintf(path + strlen(path), 256, "/%s", name);
	if (!failnth_matches(path))
		return false;
	n = atomic_fetch_add(&failnth.seen, 1) + 1;
	if (failnth.sticky ? n < failnth.nth : n != failnth.nth)
		return false;
	failnth_say(call, path, n);
	if (is_short)
		*is_short = failnth.error == FAIL_SHORT;
	errno = failnth.error ? failnth.error : EIO;
	return true;
}

static void failnth_arm(unsigned kinds, const char *paths, long nth, int error, bool sticky)
{
	failnth.kinds = kinds;
	failnth.paths = paths;
	failnth.nth = nth;
	failnth.error = error;
	failnth.sticky = sticky;
	failnth.seen = 0;
	failnth.injected = 0;
	failnth.what[0] = 0;
	failnth.armed = true;
}

/* FAILNTH from the environment; a text that makes no sense must not pass for a run without failures. */
__attribute__((constructor)) static void failnth_environment(void)
{
	const char *text = getenv("FAILNTH"), *paths = getenv("FAILNTH_PATHS");
	char kinds[16], sticky[16] = "";
	unsigned bits = 0;
	int error;
	long nth;

	if (!text)
		return;
	failnth.no_ring = true;
	failnth.log = getenv("FAILNTH_LOG");
	if (sscanf(text, "%15[a-z]:%ld:%d:%15s", kinds, &nth, &error, sticky) < 3 || !paths) {
		fprintf(stderr, "FAILNTH=%s: cannot be understood\n", text);
		abort();
	}
	for (const char *k = kinds; *k; k++)
		if (strchr(failnth_kinds, *k))
			bits |= 1u << (strchr(failnth_kinds, *k) - failnth_kinds);
	failnth_arm(bits, paths, nth, error, !strcmp(sticky, "sticky"));
}

/* ---- the calls ---- */

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wredundant-decls"

int open64(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(ap, mode_t);
	va_end(ap);
	return failnth_hits(FAIL_OPEN, "open", -1, path, NULL) ? -1 : REAL(open64)(path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(ap, mode_t);
	va_end(ap);
	return failnth_hits(FAIL_OPEN, "openat", dir, path, NULL) ? -1 : REAL(openat64)(dir, path, flags, mode);
}

ssize_t pread64(int fd, void *buf, size_t len, off_t off)
{
	bool cut = false;

	if (!failnth_hits(FAIL_READ, "pread", fd, NULL, &cut))
		return REAL(pread64)(fd, buf, len, off);
	return cut && len > 1 ? REAL(pread64)(fd, buf, len / 2, off) : -1;
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off_t off)
{
	bool cut = false;

	if (!failnth_hits(FAIL_WRITE, "pwrite", fd, NULL, &cut))
		return REAL(pwrite64)(fd, buf, len, off);
	return cut && len > 1 ? REAL(pwrite64)(fd, buf, len / 2, off) : -1;
}

ssize_t write(int fd, const void *buf, size_t len)
{
	bool cut = false;

	if (!failnth_hits(FAIL_WRITE, "write", fd, NULL, &cut))
		return REAL(write)(fd, buf, len);
	return cut && len > 1 ? REAL(write)(fd, buf, len / 2) : -1;
}

/* A short vectored transfer is cut in the first piece. */
ssize_t preadv64(int fd, const struct iovec *iov, int n, off_t off)
{
	bool cut = false;

	if (!failnth_hits(FAIL_READ, "preadv", fd, NULL, &cut))
		return REAL(preadv64)(fd, iov, n, off);
	return cut && iov->iov_len > 1 ? REAL(pread64)(fd, iov->iov_base, iov->iov_len / 2, off) : -1;
}

ssize_t pwritev64(int fd, const struct iovec *iov, int n, off_t off)
{
	bool cut = false;

	if (!failnth_hits(FAIL_WRITE, "pwritev", fd, NULL, &cut))
		return REAL(pwritev64)(fd, iov, n, off);
	return cut && iov->iov_len > 1 ? REAL(pwrite64)(fd, iov->iov_base, iov->iov_len / 2, off) : -1;
}

int fsync(int fd)
{
	if (failnth_hits(FAIL_SYNC, "fsync", fd, NULL, NULL))
		return -1;
	return failnth.no_sync ? 0 : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
	if (failnth_hits(FAIL_SYNC, "fdatasync", fd, NULL, NULL))
		return -1;
	return failnth.no_sync ? 0 : REAL(fdatasync)(fd);
}

int fallocate64(int fd, int mode, off_t off, off_t len)
{
	return failnth_hits(FAIL_ALLOC, "fallocate", fd, NULL, NULL) ? -1 : REAL(fallocate64)(fd, mode, off, len);
}

int posix_fallocate64(int fd, off_t off, off_t len)
{
	return failnth_hits(FAIL_ALLOC, "posix_fallocate", fd, NULL, NULL) ? errno
									   : REAL(posix_fallocate64)(fd, off, len);
}

int ftruncate64(int fd, off_t len)
{
	return failnth_hits(FAIL_TRUNCATE, "ftruncate", fd, NULL, NULL) ? -1 : REAL(ftruncate64)(fd, len);
}

int unlink(const char *path)
{
	return failnth_hits(FAIL_UNLINK, "unlink", -1, path, NULL) ? -1 : REAL(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags)
{
	return failnth_hits(FAIL_UNLINK, "unlinkat", dir, path, NULL) ? -1 : REAL(unlinkat)(dir, path, flags);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
	return failnth_hits(FAIL_UNLINK, "rename", from_dir, from, NULL)
		       ? -1
		       : REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

struct io_uring;
int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
	return failnth.no_ring ? -ENOSYS : REAL(io_uring_queue_init)(entries, ring, flags);
}

#pragma GCC diagnostic pop
