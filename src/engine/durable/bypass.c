/* SPDX-License-Identifier: BSD-3-Clause */
/* bypass.c - see bypass.h. The note is a file; its name in the system's folder holds the cache's uuid. */
#include "engine/durable/durable.h"

#include "engine/durable/bypass.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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

#define LOAD_TEXT "\nload "

static int leave_note(struct cache *c, int dir_fd, const char *name)
{
	char text[120];
	int n = snprintf(text, sizeof text,
			 "The journal of this cache is void: its volumes went on without it." LOAD_TEXT "%" PRIu64 "\n",
			 c->loads);
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), rc = 0;

	if (fd < 0)
		return -errno;
	if (pwrite(fd, text, (size_t)n, 0) != n || fsync(fd) || fsync(dir_fd))
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
	rc = leave_note(c, c->dir_fd, NOTE);
	note_name(c, name, sizeof name);
	fd = open_state_dir(true);
	if (fd >= 0) {
		rc2 = leave_note(c, fd, name);
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

/* The load that a note speaks of; UINT64_MAX: it does not say (an earlier release left it, or it was not written to its
 * end). 1: *load is set; 0: there is no note; -errno. */
static int read_note(int dir_fd, const char *name, uint64_t *load)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC), rc = 1;
	char text[200];
	const char *p;
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	n = pread(fd, text, sizeof text - 1, 0);
	if (n < 0)
		rc = -errno;
	close(fd);
	text[n < 0 ? 0 : n] = 0;
	p = strstr(text, LOAD_TEXT);
	*load = p && strchr(p + 1, '\n') ? strtoull(p + strlen(LOAD_TEXT), NULL, 10) : UINT64_MAX;
	return rc;
}

/* The one beside the journal was left by whoever used the journal last, unless it says otherwise itself. */
static enum bypass_note judge(struct cache *c, bool clean, uint64_t load, bool beside)
{
	if (load == UINT64_MAX)
		return clean && !beside ? BYPASS_OUT_OF_DATE : BYPASS_VOID;
	return c->loads > load || (c->loads == load && clean) ? BYPASS_OUT_OF_DATE : BYPASS_VOID;
}

/* Taking an unreadable note for none would bring back what the journal wrongly says. */
int bypass_noted(struct cache *c, bool clean)
{
	enum bypass_note found = BYPASS_NONE;
	uint64_t load;
	char name[64];
	int fd, rc = read_note(c->dir_fd, NOTE, &load);

	if (rc < 0)
		return rc;
	if (rc)
		found = judge(c, clean, load, true);
	if (found == BYPASS_VOID)
		return found;
	fd = open_state_dir(false);
	if (fd < 0) /* no permission to read it implies that no note was written by us */
		return errno == ENOENT || errno == EACCES || errno == ENOTDIR ? (int)found : -errno;
	note_name(c, name, sizeof name);
	rc = read_note(fd, name, &load);
	close(fd);
	if (rc == 1)
		return judge(c, clean, load, false);
	return !rc || rc == -EACCES ? (int)found : rc;
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
