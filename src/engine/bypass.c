/* SPDX-License-Identifier: BSD-3-Clause */
/* bypass.c - see bypass.h. The note is a file; its name in the system's folder holds the cache's uuid. */
#include "bypass.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTE "bypassed"

const char *bypass_state_dir = "/var/lib/blkcache";

static void note_name(struct cache *c, char *buf, size_t len)
{
	const uint8_t *u = c->geo.uuid;
	int n = 0;

	for (int i = 0; i < 16; i++)
		n += snprintf(buf + n, len - (size_t)n, "%02x", u[i]);
	snprintf(buf + n, len - (size_t)n, "." NOTE);
}

static int leave_note(int dir_fd, const char *name)
{
	static const char text[] = "The journal of this cache is void: its volumes went on without it.\n";
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), rc = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, sizeof text - 1) != sizeof text - 1 || fsync(fd) || fsync(dir_fd))
		rc = -EIO;
	close(fd);
	return rc;
}

static int open_state_dir(bool make)
{
	if (make)
		mkdir(bypass_state_dir, 0700);
	return open(bypass_state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int bypass_prepare(struct cache *c)
{
	char name[64];
	int fd, rc, rc2 = -EIO;

	if (atomic_load(&c->bypass_noted))
		return 0;
	pthread_mutex_lock(&c->note_lock);
	if (atomic_load(&c->bypass_noted)) {
		pthread_mutex_unlock(&c->note_lock);
		return 0;
	}
	rc = leave_note(c->dir_fd, NOTE);
	note_name(c, name, sizeof name);
	fd = open_state_dir(true);
	if (fd >= 0) {
		rc2 = leave_note(fd, name);
		close(fd);
	}
	if (!rc || !rc2)
		atomic_store(&c->bypass_noted, true);
	pthread_mutex_unlock(&c->note_lock);
	if (rc && rc2) {
		log_error("%s: the cache has failed and the note that its journal is void can be left neither there "
			  "nor in %s; writes are "
			  "refused",
			  c->dir, bypass_state_dir);
		return -EIO;
	}
	return 0;
}

/* 1, 0, or -errno: taking an unreadable note for none would bring back what the journal wrongly says. */
int bypass_noted(struct cache *c)
{
	char name[64];
	struct stat st;
	int fd, rc;

	if (!fstatat(c->dir_fd, NOTE, &st, 0))
		return 1;
	if (errno != ENOENT)
		return -errno;
	fd = open_state_dir(false);
	if (fd < 0) /* whoever may not look there could not leave a note there either */
		return errno == ENOENT || errno == EACCES || errno == ENOTDIR ? 0 : -errno;
	note_name(c, name, sizeof name);
	rc = !fstatat(fd, name, &st, 0) ? 1 : errno == ENOENT || errno == EACCES ? 0 : -errno;
	close(fd);
	return rc;
}

static int remove_note(int dir_fd, const char *name)
{
	struct stat st;

	if (fstatat(dir_fd, name, &st, 0)) /* asked first: a folder that cannot be written has none */
		return errno == ENOENT || errno == EACCES ? 0 : -errno;
	if (unlinkat(dir_fd, name, 0))
		return -errno;
	return fsync(dir_fd) ? -errno : 0;
}

int bypass_clear_note(struct cache *c)
{
	char name[64];
	int fd = open_state_dir(false), rc = remove_note(c->dir_fd, NOTE);

	if (fd < 0)
		return rc;
	note_name(c, name, sizeof name);
	if (!rc)
		rc = remove_note(fd, name);
	close(fd);
	return rc;
}
