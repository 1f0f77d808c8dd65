/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mounts.c - the kernel's table of mounts: where ours is, what is in its way, and its end.
 *
 * umount2(2) takes a path and unmounts whatever lies on top there. By the time a daemon ends that need not be its own
 * mount any more: somebody may have mounted over it, moved it, renamed a folder above it, or made copies of it
 * (bind mounts). So the export remembers its mount by what does not change: the device number of its file system, which
 * belongs to us as long as /dev/fuse is open, and the number of the mount. Before anything is unmounted the table says
 * where it is now, and it is left alone unless it is what the path leads to.
 *
 * A mount that something foreign lies on, or hides, cannot be unmounted at all: the kernel would take what lies on it
 * along. An end that must not fail (`lazy`) leaves such a mount where it is; the connection ends all the same, and what
 * is left answers "Transport endpoint is not connected" once it can be seen again.
 *
 * Between the look and the call somebody may still mount over it. No call of the kernel closes that gap of
 * microseconds.
 *
 * /proc/self/mountinfo and O_PATH send no request to a FUSE file system, so nobody here waits for himself. A descriptor
 * of the mount is never kept: it would make it busy for those who unmount it by hand.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"
#include "util/log.h"

#define MOUNT_TYPE "fuse.blkcache"
#define MAX_ROUNDS 100 /* of unmounting: copies of the mount may be many, but not without end */

extern char **environ;

struct entry {
	int id, parent;
	unsigned major, minor;
	char *point, *type, *source;
};

struct table {
	struct entry *entry;
	size_t n;
};

static void table_free(struct table *t)
{
	for (size_t i = 0; i < t->n; i++) {
		free(t->entry[i].point);
		free(t->entry[i].type);
		free(t->entry[i].source);
	}
	free(t->entry);
	*t = (struct table){ 0 };
}

/* Blanks and the like are written as \ooo. In place. */
static char *unescape(char *s)
{
	char *to = s;

	for (const char *p = s; *p; to++) {
		if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' && p[3] >= '0' &&
		    p[3] <= '7') {
			*to = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
			p += 4;
		} else {
			*to = *p++;
		}
	}
	*to = '\0';
	return s;
}

/* "36 35 98:0 /root /point options [optional...] - type source options". False: not such a line. */
static bool parse_line(char *line, struct entry *e)
{
	char *fields = strstr(line, " - "), *point, *type, *source, *save = NULL;

	memset(e, 0, sizeof(*e));
	if (!fields || sscanf(line, "%d %d %u:%u", &e->id, &e->parent, &e->major, &e->minor) != 4)
		return false;
	*fields = '\0';
	type = strtok_r(fields + 3, " ", &save);
	source = strtok_r(NULL, " ", &save);
	point = strtok_r(line, " ", &save);
	for (int i = 0; point && i < 4; i++)
		point = strtok_r(NULL, " ", &save);
	if (!type || !point)
		return false;
	e->point = strdup(unescape(point));
	e->type = strdup(unescape(type));
	e->source = strdup(source ? unescape(source) : "");
	return true;
}

static int table_add(struct table *t, char *line)
{
	struct entry *more, e;

	if (!parse_line(line, &e))
		return 0;
	more = reallocarray(t->entry, t->n + 1, sizeof(e));
	if (more)
		t->entry = more;
	if (!more || !e.point || !e.type || !e.source) {
		free(e.point);
		free(e.type);
		free(e.source);
		return -ENOMEM;
	}
	t->entry[t->n++] = e;
	return 0;
}

static int table_read(struct table *t, struct bc_error *err)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t size = 0;
	int rc = 0;

	*t = (struct table){ 0 };
	if (!f)
		return bc_fail(err, -errno, "/proc/self/mountinfo: %s: is /proc mounted?", strerror(errno));
	while (rc == 0 && getline(&line, &size, f) >= 0) {
		line[strcspn(line, "\n")] = '\0';
		rc = table_add(t, line);
	}
	free(line);
	fclose(f);
	if (rc != 0) {
		table_free(t);
		bc_fail(err, rc, "out of memory");
	}
	return rc;
}

static bool is_ours(const struct entry *e, const struct mount_identity *m)
{
	return e->major == m->major && e->minor == m->minor;
}

int mount_identify(const char *path, struct mount_identity *m, struct bc_error *err)
{
	struct table t;
	int rc = table_read(&t, err);

	if (rc != 0)
		return rc;
	rc = -ENOENT;
	for (size_t i = 0; i < t.n; i++) {
		if (strcmp(t.entry[i].point, path) != 0 || strcmp(t.entry[i].type, MOUNT_TYPE) != 0)
			continue;
		*m = (struct mount_identity){ t.entry[i].major, t.entry[i].minor, t.entry[i].id };
		rc = 0; /* the last one lies on top of others */
	}
	table_free(&t);
	return rc == 0 ? 0
		       : bc_fail(err, rc,
				 "%s: was mounted, and is not in the table of mounts: somebody else unmounted it",
				 path);
}

/* ---- what is in the way ---- */

/* Number of the mount that a path leads to. 0, or -errno if it leads nowhere. */
static int mount_at(const char *path, int *id)
{
	char name[64], line[128];
	int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC), rc = -ENOSYS;
	FILE *f;

	if (fd < 0)
		return -errno;
	snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", fd);
	f = fopen(name, "re");
	while (f && rc != 0 && fgets(line, sizeof(line), f))
		if (sscanf(line, "mnt_id: %d", id) == 1)
			rc = 0;
	if (f)
		fclose(f);
	close(fd);
	return rc;
}

/* The mount that a path leads to, or as much of the path as there is. */
static const struct entry *entry_at(const struct table *t, const char *path)
{
	char *p = strdup(path), *slash;
	const struct entry *found = NULL;
	int id, rc = -ENOMEM;

	while (p && (rc = mount_at(p, &id)) != 0 && (slash = strrchr(p, '/')) && p[1])
		slash[slash == p] = '\0';
	for (size_t i = 0; rc == 0 && i < t->n; i++)
		if (t->entry[i].id == id)
			found = &t->entry[i];
	free(p);
	return found;
}

/* What keeps a mount of ours from being unmounted by its path; NULL: nothing. `copies`: count our own. */
static const struct entry *in_the_way(const struct table *t, const struct entry *e, const struct mount_identity *m,
				      bool copies)
{
	const struct entry *top;

	for (size_t i = 0; i < t->n; i++)
		if (t->entry[i].parent == e->id && t->entry[i].id != e->id && (copies || !is_ours(&t->entry[i], m)))
			return &t->entry[i];
	top = entry_at(t, e->point);
	return !top || top->id == e->id || (!copies && is_ours(top, m)) ? NULL : top;
}

static int say_in_the_way(const struct entry *e, const struct entry *above, struct bc_error *err)
{
	const char *how = above->parent != e->id                ? "hides it, mounted at"
			  : strcmp(above->point, e->point) != 0 ? "is mounted inside it, at"
								: "is mounted over it, at";

	return bc_fail(err, -ENOTEMPTY, "%s: another file system (%s, type %s) %s %s: unmount that first ('umount %s')",
		       e->point, above->source, above->type, how, above->point, above->point);
}

/*
 * MNT_EXPIRE asks the kernel for what umount would ask: it fails with EBUSY if anybody uses the mount, and otherwise
 * only marks it (EAGAIN). A mark that is there already would make it unmount: using the mount for a moment clears it,
 * before and after. O_PATH makes no request to ourselves. EPERM: we are not allowed to know.
 */
static int ask_busy(const struct entry *e, struct bc_error *err)
{
	int id, busy;

	if (mount_at(e->point, &id) != 0 || id != e->id)
		return 0;
	busy = umount2(e->point, MNT_EXPIRE | UMOUNT_NOFOLLOW) < 0 && errno == EBUSY;
	mount_at(e->point, &id);
	if (!busy)
		return 0;
	return bc_fail(err, -EBUSY,
		       "%s: in use: unmount file systems, detach loop devices and close files on it first ('losetup "
		       "-l' and 'fuser -vm %s' show them)",
		       e->point, e->point);
}

static int look_for_users(const struct table *t, const struct mount_identity *m, struct bc_error *err)
{
	const struct entry *e, *above;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < t->n; i++) {
		e = &t->entry[i];
		if (!is_ours(e, m))
			continue;
		above = in_the_way(t, e, m, false);
		rc = above ? say_in_the_way(e, above, err) : in_the_way(t, e, m, true) ? 0 : ask_busy(e, err);
	}
	return rc;
}

int export_busy(struct export *e, struct bc_error *err)
{
	struct table t;
	int rc = table_read(&t, err);

	if (rc != 0)
		return rc;
	rc = look_for_users(&t, &e->mount, err);
	table_free(&t);
	return rc;
}

/* ---- the end ---- */

/* fusermount3 prints its reason on its own; it is not passed on, since "busy" is the one that matters. */
static int run_fusermount(const char *path, bool lazy)
{
	char *argv[] = {
		"fusermount3", "-u", "-q", lazy ? "-z" : "--", lazy ? "--" : (char *)path, lazy ? (char *)path : NULL,
		NULL
	};
	pid_t pid;
	int status, rc;

	rc = posix_spawnp(&pid, "fusermount3", NULL, NULL, argv, environ);
	if (rc != 0)
		return -rc;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

static int unmount(const char *path, bool lazy, bool by_fusermount, struct bc_error *err)
{
	int rc;

	if (by_fusermount)
		rc = run_fusermount(path, lazy);
	else
		rc = umount2(path, lazy ? MNT_DETACH | UMOUNT_NOFOLLOW : UMOUNT_NOFOLLOW) == 0 ? 0 : -errno;
	switch (rc) {
	case 0:
	case -EINVAL: /* somebody else was faster */
	case -ENOENT:
		return 0;
	case -EBUSY:
		return bc_fail(err, rc,
			       "%s: in use, perhaps as somebody's working folder: leave it ('fuser -vm %s' shows who)",
			       path, path);
	default:
		return bc_fail(err, rc, "%s: cannot unmount: %s: unmount it with 'umount %s'", path, strerror(-rc),
			       path);
	}
}

/* One that can be unmounted now, the one that we made before its copies: the kernel takes some of those along. */
static const struct entry *next_to_go(const struct table *t, const struct mount_identity *m)
{
	const struct entry *found = NULL;

	for (size_t i = 0; i < t->n; i++)
		if (is_ours(&t->entry[i], m) && !in_the_way(t, &t->entry[i], m, true) &&
		    (!found || t->entry[i].id == m->id))
			found = &t->entry[i];
	return found;
}

/* What could not be unmounted, when the connection ends all the same. */
static void warn_left(const struct table *t, const struct mount_identity *m)
{
	const struct entry *e, *above;
	struct bc_error why;

	for (size_t i = 0; i < t->n; i++) {
		e = &t->entry[i];
		if (!is_ours(e, m))
			continue;
		above = in_the_way(t, e, m, true);
		memset(&why, 0, sizeof(why));
		if (above)
			say_in_the_way(e, above, &why);
		log_warn("%s: the mount stays behind without its daemon; 'umount' removes it%s%s", e->point,
			 above ? ". " : "", why.msg);
	}
}

/* One round of it. -EAGAIN: there may be more to do. */
static int end_next(const struct mount_identity *m, bool first, bool lazy, bool by_fusermount, int *last_id,
		    struct bc_error *err)
{
	const struct entry *e;
	struct table t;
	int rc = table_read(&t, err);

	if (rc != 0)
		return rc;
	if (first && !lazy)
		rc = look_for_users(&t, m, err);
	if (rc != 0)
		goto out;
	e = next_to_go(&t, m);
	if (!e || e->id == *last_id) { /* one that does not go comes again */
		warn_left(&t, m);
		goto out;
	}
	*last_id = e->id;
	/* The connection is about to end, so copies go even if they are in use. */
	rc = unmount(e->point, lazy || !first, by_fusermount, err);
	if (rc == 0 || lazy || !first)
		rc = -EAGAIN;
out:
	table_free(&t);
	return rc;
}

int mount_end(const struct mount_identity *m, bool lazy, bool by_fusermount, struct bc_error *err)
{
	struct bc_error own = { 0 };
	int last_id = -1, rc = -EAGAIN;

	for (int round = 0; rc == -EAGAIN && round < MAX_ROUNDS; round++)
		rc = end_next(m, round == 0, lazy, by_fusermount, &last_id, &own);
	if (rc == 0 || rc == -EAGAIN || lazy) {
		if (rc != 0 && rc != -EAGAIN)
			log_warn("%s; the mount stays behind without its daemon", own.msg);
		return 0;
	}
	return bc_fail(err, rc, "%s", own.msg);
}
