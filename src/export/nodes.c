/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nodes.c - volumes as files: inode numbers, attributes and open handles.
 *
 * The root is inode 1, a volume is 1 + its id. A handle holds a reference to its volume from OPEN to RELEASE, so that a
 * volume with an open file cannot be removed. The kernel sends RELEASE late (after close has returned) and not at all
 * for files that were closed just before the mount ended; nodes_destroy() puts what is left.
 *
 * Owner, group and mode can be changed (a virtual machine's user needs access): the engine keeps them with the volume.
 * By default a file belongs to the daemon's user, who alone may use it, whatever the backing file's mode is: that one
 * may lie in a folder which keeps others out.
 *
 * Times live only as long as the mount. A write costs no look at the clock: the modification time is set when somebody
 * asks for it, if there were writes since. So it is never older than the last write, which those who look for changed
 * files (rsync, backups) rely on; after a load it is the time of the load.
 *
 * Handles and times lie in `memory`, which may outlive the process. Whoever takes over finds the open files there, by
 * the index that the kernel has as their handle. OPEN and RELEASE that were carried out and not answered come again: an
 * OPEN finds the handle it was given by the number of its request, a RELEASE finds its handle closed, or of another
 * generation.
 *
 * Any worker thread may call these functions; nodes.lock guards all.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "util/log.h"

#define MEMORY_MAGIC 0x326d656d74637865ull
#define NODE_BLKSIZE VOLUME_MAX_IO /* what cp and cmp take for the size of their reads */

/* Mostly untouched, and then it costs nothing. */
static void *map(size_t len, int fd)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, fd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       fd ? fd : -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void unmap(void *p, size_t len)
{
	if (p)
		munmap(p, len);
}

static int find_open_files(struct nodes *n, struct cache *c, struct bc_error *err)
{
	struct session_memory *m = n->memory;

	if (m->magic != MEMORY_MAGIC || m->nhandles > MAX_HANDLES)
		return bc_fail(err, -EUCLEAN, "what the dead daemon left of its mount cannot be read");
	for (uint32_t i = m->nhandles; i-- > 0;) {
		if (!m->handle[i].open) {
			n->free[n->nfree++] = i;
			continue;
		}
		n->volume[i] = cache_volume_get_id(c, m->handle[i].volume);
		if (!n->volume[i])
			return bc_fail(err, -EUCLEAN, "a file is open of a volume that does not exist any more");
		n->open_files++;
	}
	return 0;
}

int nodes_init(struct nodes *n, struct cache *c, int fd, bool takeover, struct bc_error *err)
{
	struct stat st;

	memset(n, 0, sizeof(*n));
	pthread_mutex_init(&n->lock, NULL);
	if (fd && (fstat(fd, &st) != 0 ||
		   ((size_t)st.st_size < sizeof(*n->memory) && ftruncate(fd, sizeof(*n->memory)) != 0)))
		return bc_fail(err, -errno, "no memory for open files: %s", strerror(errno));
	n->memory = map(sizeof(*n->memory), fd);
	n->volume = map(MAX_HANDLES * sizeof(n->volume[0]), 0);
	n->free = map(MAX_HANDLES * sizeof(n->free[0]), 0);
	if (!n->memory || !n->volume || !n->free)
		return bc_fail(err, -ENOMEM, "no memory for open files");
	if (takeover) {
		memset(n->changes, 0xff, sizeof(n->changes)); /* there may have been writes */
		return find_open_files(n, c, err);
	}
	clock_gettime(CLOCK_REALTIME, &n->memory->born);
	n->memory->magic = MEMORY_MAGIC;
	return 0;
}

void nodes_destroy(struct nodes *n)
{
	for (uint32_t i = 0; n->volume && i < MAX_HANDLES && n->open_files; i++) {
		if (!n->volume[i])
			continue;
		volume_put(n->volume[i]);
		n->open_files--;
	}
	unmap(n->memory, sizeof(*n->memory));
	unmap(n->volume, MAX_HANDLES * sizeof(n->volume[0]));
	unmap(n->free, MAX_HANDLES * sizeof(n->free[0]));
	pthread_mutex_destroy(&n->lock);
}

/* nodes.lock is held. The handle that this request was given before, or MAX_HANDLES. */
static uint32_t find_opened(const struct nodes *n, uint64_t unique)
{
	for (uint32_t i = 0; i < n->memory->nhandles; i++)
		if (n->memory->handle[i].open && n->memory->handle[i].unique == unique)
			return i;
	return MAX_HANDLES;
}

int node_open(struct nodes *n, struct volume *v, uint64_t unique, bool again, uint64_t *fh)
{
	struct session_memory *m = n->memory;
	uint32_t i = MAX_HANDLES;
	struct handle *h;
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	if (again)
		i = find_opened(n, unique);
	if (i < MAX_HANDLES) {
		volume_put(v); /* it has one already */
	} else if (!n->nfree && m->nhandles == MAX_HANDLES) {
		rc = -ENFILE;
	} else {
		i = n->nfree ? n->free[--n->nfree] : m->nhandles;
		h = &m->handle[i];
		h->unique = unique;
		h->generation++;
		h->volume = (uint16_t)volume_id(v);
		atomic_store(&h->open, 1);
		if (i == m->nhandles)
			m->nhandles++;
		__atomic_store_n(&n->volume[i], v, __ATOMIC_RELEASE);
		n->open_files++;
	}
	if (rc == 0)
		*fh = (uint64_t)m->handle[i].generation << 32 | i;
	pthread_mutex_unlock(&n->lock);
	return rc;
}

void node_release(struct nodes *n, uint64_t fh)
{
	struct session_memory *m = n->memory;
	uint32_t i = (uint32_t)fh;
	struct volume *v = NULL;

	pthread_mutex_lock(&n->lock);
	if (i < m->nhandles && m->handle[i].open && m->handle[i].generation == fh >> 32) {
		atomic_store(&m->handle[i].open, 0);
		v = n->volume[i];
		__atomic_store_n(&n->volume[i], NULL, __ATOMIC_RELEASE);
		n->free[n->nfree++] = i;
		n->open_files--;
	}
	pthread_mutex_unlock(&n->lock);
	if (v)
		volume_put(v);
}

unsigned nodes_open_files(struct nodes *n)
{
	unsigned count;

	pthread_mutex_lock(&n->lock);
	count = n->open_files;
	pthread_mutex_unlock(&n->lock);
	return count;
}

void node_stat_root(struct nodes *n, struct stat *st)
{
	*st = (struct stat){
		.st_ino = ROOT_INO,
		.st_mode = S_IFDIR | 0755,
		.st_nlink = 2,
		.st_uid = geteuid(),
		.st_gid = getegid(),
		.st_blksize = NODE_BLKSIZE,
		.st_atim = n->memory->born,
		.st_mtim = n->memory->born,
		.st_ctim = n->memory->born,
	};
}

/* nodes.lock is held. NULL: nobody changed them. */
static const struct attr_copy *find_attr(struct nodes *n, const struct volume *v)
{
	struct node_attr *a = &n->memory->attr[volume_id(v)];
	uint32_t current = a->current;

	if (current < 1 || current > 2 || strcmp(a->copy[current - 1].name, volume_name(v)) != 0)
		return NULL;
	return &a->copy[current - 1];
}

static void apply_times(struct attr_copy *a, const struct stat *attr, int to_set)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (to_set & FUSE_SET_ATTR_ATIME_NOW)
		a->atime = now;
	else if (to_set & FUSE_SET_ATTR_ATIME)
		a->atime = attr->st_atim;
	if (to_set & FUSE_SET_ATTR_MTIME_NOW)
		a->mtime = now;
	else if (to_set & FUSE_SET_ATTR_MTIME)
		a->mtime = attr->st_mtim;
}

static void set_times(struct nodes *n, struct volume *v, const struct stat *attr, int to_set)
{
	struct node_attr *node = &n->memory->attr[volume_id(v)];
	const struct attr_copy *old;
	struct attr_copy *a;

	if (to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW))
		__atomic_store_n(&n->changes[volume_id(v)], volume_changes(v), __ATOMIC_RELAXED);
	pthread_mutex_lock(&n->lock);
	old = find_attr(n, v);
	a = &node->copy[node->current == 1];
	if (old) {
		*a = *old;
	} else {
		*a = (struct attr_copy){ 0 };
		a->atime = a->mtime = n->memory->born;
		snprintf(a->name, sizeof(a->name), "%s", volume_name(v));
	}
	apply_times(a, attr, to_set);
	node->current = node->current == 1 ? 2 : 1;
	pthread_mutex_unlock(&n->lock);
}

void node_stat(struct nodes *n, struct volume *v, struct stat *st)
{
	const struct attr_copy *a;
	struct volume_access access;

	node_stat_root(n, st);
	st->st_ino = node_ino(v);
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_size = (off_t)volume_size(v);
	st->st_blocks = (blkcnt_t)((volume_size(v) + 511) / 512);
	if (__atomic_load_n(&n->changes[volume_id(v)], __ATOMIC_RELAXED) != volume_changes(v))
		set_times(n, v, NULL, FUSE_SET_ATTR_MTIME_NOW);
	volume_get_access(v, &access);
	if (access.set) {
		st->st_mode = S_IFREG | access.mode;
		st->st_uid = access.uid;
		st->st_gid = access.gid;
	}
	pthread_mutex_lock(&n->lock);
	a = find_attr(n, v);
	if (a) {
		st->st_atim = a->atime;
		st->st_mtim = a->mtime;
	}
	pthread_mutex_unlock(&n->lock);
}

/* The kernel sends what somebody asked for even if it is so already; that takes no commit. */
static int set_access(struct volume *v, const struct stat *attr, int to_set)
{
	struct volume_access old, a;
	struct bc_error err;
	int rc;

	volume_get_access(v, &old);
	a = old.set ? old : (struct volume_access){ .mode = 0600, .uid = geteuid(), .gid = getegid() };
	if (to_set & FUSE_SET_ATTR_MODE)
		a.mode = attr->st_mode & 07777;
	if (to_set & FUSE_SET_ATTR_UID)
		a.uid = attr->st_uid;
	if (to_set & FUSE_SET_ATTR_GID)
		a.gid = attr->st_gid;
	if (old.set && a.mode == old.mode && a.uid == old.uid && a.gid == old.gid)
		return 0;
	rc = volume_set_access(v, &a, &err);
	if (rc != 0)
		log_warn("%s", err.msg);
	return rc;
}

int node_set_attr(struct nodes *n, struct volume *v, const struct stat *attr, int to_set)
{
	int rc = 0;

	if (to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
		rc = set_access(v, attr, to_set);
	if (rc == 0 &&
	    (to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)))
		set_times(n, v, attr, to_set);
	return rc;
}
