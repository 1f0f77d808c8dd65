/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * syscalls.c - what the library does to files past SQLite and the block devices: making and removing them, renames,
 * folder syncs, the log's preparation. The linker sends these calls here (--wrap); those about the cache folder work
 * on the current world, all others (and the lock file) go through.
 *
 * A descriptor of a file in the world is a real one of /dev/null, remembered in a table.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "world.h"

#define MAX_FD 1024
#define IS_FOLDER (-2)

char crash_dir[256];
static struct {
	bool ours;
	int file; /* or IS_FOLDER: a real descriptor whose syncs are recorded */
	uint32_t errors; /* of writing the file back, that were told here */
} fds[MAX_FD];

int __real_open64(const char *path, int flags, ...);
int __real_openat64(int dir, const char *path, int flags, ...);
int __real_close(int fd);
int __real_fsync(int fd);
int __real_fdatasync(int fd);
int __real_stat64(const char *path, struct stat *st);
int __real_lstat64(const char *path, struct stat *st);
int __real_fstat64(int fd, struct stat *st);
int __real_fstatat64(int dir, const char *path, struct stat *st, int flags);
ssize_t __real_pread64(int fd, void *buf, size_t n, off_t off);
ssize_t __real_pwrite64(int fd, const void *buf, size_t n, off_t off);
int __real_ftruncate64(int fd, off_t size);
int __real_fallocate64(int fd, int mode, off_t off, off_t len);
int __real_unlink(const char *path);
int __real_unlinkat(int dir, const char *path, int flags);
int __real_renameat2(int dir, const char *from, int dir2, const char *to, unsigned flags);

int __wrap_open64(const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *path, int flags, ...);
int __wrap_close(int fd);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_stat64(const char *path, struct stat *st);
int __wrap_lstat64(const char *path, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st);
int __wrap_fstatat64(int dir, const char *path, struct stat *st, int flags);
ssize_t __wrap_pread64(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t n, off_t off);
int __wrap_ftruncate64(int fd, off_t size);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_unlink(const char *path);
int __wrap_unlinkat(int dir, const char *path, int flags);
int __wrap_renameat2(int dir, const char *from, int dir2, const char *to, unsigned flags);

/* The name in the world that a path means, or NULL. */
static const char *ours(const char *path)
{
	size_t n = strlen(crash_dir);

	if (!n || strncmp(path, crash_dir, n) || path[n] != '/' || !strcmp(path + n + 1, "lock"))
		return NULL;
	return path + n + 1;
}

/* Names relative to a descriptor: the library does that with the cache folder only. */
static const char *ours_at(const char *path)
{
	if (path[0] == '/')
		return ours(path);
	return strcmp(path, "lock") ? path : NULL;
}

static bool is_ours(int fd)
{
	return fd >= 0 && fd < MAX_FD && fds[fd].ours;
}

static int open_ours(const char *name, int flags)
{
	int file = file_find(name), fd;

	if (file < 0 && !(flags & O_CREAT)) {
		errno = ENOENT;
		return -1;
	}
	if (file >= 0 && flags & O_CREAT && flags & O_EXCL) {
		errno = EEXIST;
		return -1;
	}
	fd = __real_open64("/dev/null", O_RDWR | O_CLOEXEC);
	if (fd < 0 || fd >= MAX_FD)
		return fd;
	if (file < 0)
		file = file_create(name);
	fds[fd].ours = true;
	fds[fd].file = file;
	fds[fd].errors = file_errors(file);
	return fd;
}

static mode_t mode_arg(int flags, va_list ap)
{
	return flags & O_CREAT ? (mode_t)va_arg(ap, int) : 0;
}

int __wrap_open64(const char *path, int flags, ...)
{
	const char *name = ours(path);
	va_list ap;
	int fd, again;

	if (name)
		return open_ours(name, flags);
	va_start(ap, flags);
	fd = __real_open64(path, flags, mode_arg(flags, ap));
	va_end(ap);
	if (fd >= 0 && fd < MAX_FD && sscanf(path, "/proc/self/fd/%d", &again) == 1 && is_ours(again))
		fds[fd] = fds[again];
	if (fd >= 0 && fd < MAX_FD && flags & O_DIRECTORY && !strcmp(path, crash_dir)) {
		fds[fd].ours = true;
		fds[fd].file = IS_FOLDER;
	}
	return fd;
}

int __wrap_openat64(int dir, const char *path, int flags, ...)
{
	const char *name = dir == AT_FDCWD || is_ours(dir) ? ours_at(path) : NULL;
	va_list ap;
	int fd;

	if (name)
		return open_ours(name, flags);
	va_start(ap, flags);
	fd = __real_openat64(dir, path, flags, mode_arg(flags, ap));
	va_end(ap);
	return fd;
}

int __wrap_close(int fd)
{
	if (is_ours(fd))
		fds[fd].ours = false;
	return __real_close(fd);
}

/* The journal's own files are all but the cache's data and the backing devices, which are b0, b1, ... */
static bool journal_fails(int fd)
{
	const char *name = world_journal_fails && fds[fd].file >= 0 ? world_name(world, fds[fd].file) : NULL;

	return name && !strncmp(name, "journal", 7);
}

static int sync_fd(int fd, bool mtime)
{
	int file = fds[fd].file == IS_FOLDER ? FOLDER : fds[fd].file;
	uint32_t begin = sync_begin(file, mtime);

	if (journal_fails(fd)) {
		errno = EIO;
		return -1;
	}
	if (file != FOLDER && file_errors(file) != fds[fd].errors) { /* told once */
		fds[fd].errors = file_errors(file);
		world_may_pause("error"); /* the kernel has told it, and nobody knows yet */
		errno = EIO;
		return -1;
	}
	sync_end(file, begin);
	return 0;
}

int __wrap_fsync(int fd)
{
	return is_ours(fd) ? sync_fd(fd, true) : __real_fsync(fd);
}

int __wrap_fdatasync(int fd)
{
	return is_ours(fd) ? sync_fd(fd, false) : __real_fdatasync(fd);
}

static int stat_file(int file, struct stat *st)
{
	if (file < 0) {
		errno = ENOENT;
		return -1;
	}
	memset(st, 0, sizeof *st);
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_ino = (ino_t)file + 1;
	st->st_size = (off_t)file_size(file);
	return 0;
}

int __wrap_stat64(const char *path, struct stat *st)
{
	const char *name = ours(path);

	return name ? stat_file(file_find(name), st) : __real_stat64(path, st);
}

int __wrap_lstat64(const char *path, struct stat *st)
{
	const char *name = ours(path);

	return name ? stat_file(file_find(name), st) : __real_lstat64(path, st);
}

int __wrap_fstat64(int fd, struct stat *st)
{
	return is_ours(fd) && fds[fd].file >= 0 ? stat_file(fds[fd].file, st) : __real_fstat64(fd, st);
}

int __wrap_fstatat64(int dir, const char *path, struct stat *st, int flags)
{
	const char *name = is_ours(dir) ? ours_at(path) : NULL;

	return name ? stat_file(file_find(name), st) : __real_fstatat64(dir, path, st, flags);
}

ssize_t __wrap_pread64(int fd, void *buf, size_t n, off_t off)
{
	return is_ours(fd) ? (ssize_t)file_read(fds[fd].file, buf, n, (uint64_t)off) : __real_pread64(fd, buf, n, off);
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t n, off_t off)
{
	if (!is_ours(fd))
		return __real_pwrite64(fd, buf, n, off);
	if (journal_fails(fd)) {
		errno = EIO;
		return -1;
	}
	file_write(fds[fd].file, buf, n, (uint64_t)off, false);
	return (ssize_t)n;
}

int __wrap_ftruncate64(int fd, off_t size)
{
	if (!is_ours(fd))
		return __real_ftruncate64(fd, size);
	file_truncate(fds[fd].file, (uint64_t)size);
	return 0;
}

int __wrap_fallocate64(int fd, int mode, off_t off, off_t len)
{
	if (!is_ours(fd))
		return __real_fallocate64(fd, mode, off, len);
	if (mode) {
		errno = EOPNOTSUPP;
		return -1;
	}
	if ((uint64_t)(off + len) > file_size(fds[fd].file))
		file_truncate(fds[fd].file, (uint64_t)(off + len));
	return 0;
}

static int unlink_ours(const char *name)
{
	if (file_find(name) < 0) {
		errno = ENOENT;
		return -1;
	}
	name_unlink(name);
	return 0;
}

int __wrap_unlink(const char *path)
{
	const char *name = ours(path);

	return name ? unlink_ours(name) : __real_unlink(path);
}

int __wrap_unlinkat(int dir, const char *path, int flags)
{
	const char *name = is_ours(dir) ? ours_at(path) : NULL;

	return name ? unlink_ours(name) : __real_unlinkat(dir, path, flags);
}

int __wrap_renameat2(int dir, const char *from, int dir2, const char *to, unsigned flags)
{
	const char *a = ours(from), *b = ours(to);

	if (!a || !b)
		return __real_renameat2(dir, from, dir2, to, flags);
	if (file_find(a) < 0) {
		errno = ENOENT;
		return -1;
	}
	if (name_rename(a, b, flags & RENAME_NOREPLACE)) {
		errno = EEXIST;
		return -1;
	}
	return 0;
}
