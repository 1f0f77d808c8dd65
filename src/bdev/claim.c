/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * claim.c - P10: a backing device, or a cache's data file, has one owner.
 *
 * Two layers, as neither is enough: a table of what this process has claimed, and the kernel. For files that is
 * flock(LOCK_EX): it belongs to the open file description, so closing some other descriptor of the same file does not
 * drop it (as it would with F_SETLK), and it ends with the process however that dies: once the last asynchronous I/O
 * through that description has ended, so that nothing of a killed owner can land on the next owner's data. For kernel
 * block devices it is O_EXCL, which also keeps mounts, RAID and the like away, and the flock for that last property;
 * udev takes it for moments and is waited for. The table also covers file systems where locks of one
 * process do not exclude each other, and gives the better message.
 *
 * Any thread; the table has a lock of its own, under which nothing blocks.
 */
#include "bdev/claim.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "util/process.h"

#define UDEV_PATIENCE_MS 2000
#define DEAD_PATIENCE_MS 10000 /* for the last I/O of a process that was killed */

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct claim *table;

static bool table_has(dev_t dev, ino_t ino)
{
	struct claim *c;

	pthread_mutex_lock(&table_lock);
	for (c = table; c; c = c->next)
		if (c->dev == dev && c->ino == ino)
			break;
	pthread_mutex_unlock(&table_lock);
	return c != NULL;
}

static int table_add(struct claim *c)
{
	struct claim *o;

	pthread_mutex_lock(&table_lock);
	for (o = table; o; o = o->next)
		if (o->dev == c->dev && o->ino == c->ino)
			break;
	if (!o) {
		c->next = table;
		table = c;
		c->held = true;
	}
	pthread_mutex_unlock(&table_lock);
	return o ? -EBUSY : 0;
}

void claim_drop(struct claim *c)
{
	if (!c->held)
		return;
	pthread_mutex_lock(&table_lock);
	for (struct claim **p = &table; *p; p = &(*p)->next) {
		if (*p == c) {
			*p = c->next;
			break;
		}
	}
	pthread_mutex_unlock(&table_lock);
	c->held = false;
}

/* The process that holds the flock, or 0. */
static int lock_holder(const struct stat *st)
{
	FILE *f = fopen("/proc/locks", "re");
	unsigned major_nr, minor_nr;
	unsigned long long ino;
	char line[256];
	int pid, found = 0;

	if (!f)
		return 0;
	while (!found && fgets(line, sizeof(line), f))
		found = sscanf(line, "%*d: FLOCK %*s %*s %d %x:%x:%llu", &pid, &major_nr, &minor_nr, &ino) == 4 &&
			pid > 0 && ino == st->st_ino && makedev(major_nr, minor_nr) == st->st_dev;
	fclose(f);
	return found ? pid : 0;
}

/* Is it more than a dead process whose I/O has not ended? Without /proc there is no telling: yes. */
static bool holder_lives(const struct stat *st)
{
	int pid = lock_holder(st);

	if (!pid)
		return access("/proc/locks", R_OK) != 0;
	return process_lives(pid);
}

/* " by process 123 (comm)", or "" where the kernel does not tell (other pid namespace, network file system, file
 * systems whose st_dev is not the one in /proc/locks). */
static void find_lock_holder(const struct stat *st, char *buf, size_t len)
{
	char path[64], comm[32];
	int pid = lock_holder(st);
	FILE *f;

	buf[0] = 0;
	if (!pid)
		return;
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	f = fopen(path, "re");
	if (f && fgets(comm, sizeof(comm), f)) {
		comm[strcspn(comm, "\n")] = 0;
		snprintf(buf, len, " by process %d (%s)", pid, comm);
	} else {
		snprintf(buf, len, " by process %d", pid);
	}
	if (f)
		fclose(f);
}

static int fail_busy(const char *path, const char *holder, struct bc_error *err)
{
	return bc_fail(err, -EBUSY, "%s is in use%s; a device can have one owner only: stop the other user first", path,
		       holder);
}

/* Waits for what passes by itself: udev's look at a block device, and the last I/O of a killed owner. */
static int lock(int fd, const struct stat *st)
{
	bool block = S_ISBLK(st->st_mode);

	for (int tries = 0; flock(fd, LOCK_EX | LOCK_NB); tries++) {
		if (errno != EWOULDBLOCK)
			return -errno;
		if (tries >= (block ? UDEV_PATIENCE_MS : DEAD_PATIENCE_MS) / 10 || (!block && holder_lives(st)))
			return -EWOULDBLOCK;
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
	return 0;
}

int claim_take(struct claim *c, int fd, const struct stat *st, const char *path, struct bc_error *err)
{
	char holder[120];
	int r;

	c->dev = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev;
	c->ino = S_ISBLK(st->st_mode) ? 0 : st->st_ino;
	if (table_add(c))
		return fail_busy(path, " by this very process (it is already open as another device)", err);
	r = lock(fd, st);
	if (!r)
		return 0;
	claim_drop(c);
	if (r == -EWOULDBLOCK) {
		find_lock_holder(st, holder, sizeof(holder));
		return fail_busy(path, holder, err);
	}
	return bc_fail(err, r,
		       "%s: cannot lock it: %s; its file system must support flock, or two daemons could write to it",
		       path, strerror(-r));
}

/* " as it is mounted on X", " by dm-0" or "". */
static void find_block_holder(dev_t rdev, char *buf, size_t len)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[1024], where[257], path[64];
	unsigned major_nr, minor_nr;
	struct dirent *d;
	DIR *dir;

	buf[0] = 0;
	while (f && !buf[0] && fgets(line, sizeof(line), f))
		if (sscanf(line, "%*d %*d %u:%u %*s %256s", &major_nr, &minor_nr, where) == 3 &&
		    makedev(major_nr, minor_nr) == rdev)
			snprintf(buf, len, ": it is mounted on %s", where);
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", major(rdev), minor(rdev));
	dir = buf[0] ? NULL : opendir(path);
	while (dir && !buf[0] && (d = readdir(dir)))
		if (d->d_name[0] != '.')
			snprintf(buf, len, " by %.100s", d->d_name);
	if (dir)
		closedir(dir);
}

int claim_fail_block(const struct stat *st, const char *path, struct bc_error *err)
{
	char holder[320];

	if (table_has(st->st_rdev, 0))
		return fail_busy(path, " by this very process (it is already open as another device)", err);
	find_block_holder(st->st_rdev, holder, sizeof(holder));
	return fail_busy(path, holder, err);
}
