/* SPDX-License-Identifier: BSD-3-Clause */
/* dir.c - one owner per cache folder (P10): an flock on DIR/lock, held for as long as the cache is open; the file
 * holds the owner's pid. A lock belongs to the open file, so processes that follow one another may share it:
 * `inherited` is that file, and stays locked until somebody unlocks it or all have closed it. */
#include "engine/life/life.h"
#include "util/process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define BRIEF " brief" /* follows the pid */

/* Is it worth waiting for the holder: one that is dying, or that has only a moment's business with a stopped cache? */
static bool passes(const char *holder)
{
	return !*holder || strstr(holder, BRIEF) || !process_lives(atoi(holder));
}

/* A daemon stays until it is stopped; another command ends by itself, unless something keeps it from that. */
static int fail_busy(const char *dir, int lock_fd, struct bc_error *err)
{
	char pid[32] = "", why[300];
	ssize_t n = pread(lock_fd, pid, sizeof pid - 1, 0);

	pid[n > 0 ? n : 0] = 0;
	if (strstr(pid, BRIEF)) {
		process_explain(atoi(pid), why, sizeof why);
		return bc_fail(err, -EBUSY, "cache %s is in use by another command: %s", dir, why);
	}
	pid[strcspn(pid, " \n")] = 0;
	return bc_fail(err, -EBUSY, "cache %s is in use by process %s; `blkcache stop %s` ends it", dir,
		       *pid ? pid : "(unknown)", dir);
}

bool cache_lock_is_read_only(int lock_fd)
{
	return (fcntl(lock_fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
}

int cache_lock_dir(const char *dir, bool brief, int inherited, int *dir_fd, int *lock_fd, struct bc_error *err)
{
	char pid[32] = "";
	ssize_t n;
	int rc;

	*lock_fd = -1;
	*dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (*dir_fd < 0) {
		rc = -errno;
		if (rc == -ENOTDIR)
			return bc_fail(err, rc, "cache %s: not a folder; give the folder that `blkcache create` made",
				       dir);
		return bc_fail(err, rc, "cache %s: %s", dir, strerror(-rc));
	}
	*lock_fd = inherited ? fcntl(inherited, F_DUPFD_CLOEXEC, 0)
			     : openat(*dir_fd, CACHE_LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	/* A command that only looks needs no pid in it. If the file is not there, nobody can hold it: the folder stands
	 * in. */
	if (*lock_fd < 0 && errno == EROFS && brief) {
		*lock_fd = openat(*dir_fd, CACHE_LOCK_FILE, O_RDONLY | O_CLOEXEC);
		if (*lock_fd < 0 && errno == ENOENT)
			*lock_fd = openat(*dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	} else if (*lock_fd < 0 && errno == EROFS) {
		rc = bc_fail(
			err, -EROFS,
			"cache %s lies on a read-only file system; make it writable first (after an error of the disk "
			"see the kernel's log); 'blkcache status' and 'blkcache check' work as it is",
			dir);
		goto fail;
	}
	if (*lock_fd < 0) {
		rc = bc_fail(err, -errno, "cache %s: its lock file cannot be opened: %s", dir, strerror(errno));
		goto fail;
	}
	for (int i = 0; i < PATIENCE_MS / 10 && flock(*lock_fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK; i++) {
		n = pread(*lock_fd, pid, sizeof pid - 1, 0);
		pid[n > 0 ? n : 0] = 0;
		if (!passes(pid))
			break;
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
	if (flock(*lock_fd, LOCK_EX | LOCK_NB)) {
		rc = errno == EWOULDBLOCK ? fail_busy(dir, *lock_fd, err)
					  : bc_fail(err, -errno, "cache %s cannot be locked: %s", dir, strerror(errno));
		goto fail;
	}
	n = snprintf(pid, sizeof pid, "%d%s\n", (int)getpid(), brief ? BRIEF : "");
	if (cache_lock_is_read_only(*lock_fd))
		return 0;
	if (ftruncate(*lock_fd, 0) || pwrite(*lock_fd, pid, (size_t)n, 0) != n)
		log_debug("%s: the pid could not be written to the lock file", dir); /* only for messages */
	return 0;
fail:
	if (*lock_fd >= 0)
		close(*lock_fd);
	close(*dir_fd);
	*dir_fd = *lock_fd = -1;
	return rc;
}
