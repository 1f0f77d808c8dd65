/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nodes.c - volumes as files: inode numbers, attributes and open handles.
 *
 * The root is inode 1, a volume is 1 + its id. A handle holds a reference to its volume from OPEN to RELEASE, so that a
 * volume with an open file cannot be removed. The kernel sends RELEASE late (after close has returned) and not at all
 * for files that were closed just before the mount ended; nodes_destroy() puts what is left.
 *
 * Owner, mode and times can be changed (a virtual machine's user needs access) but live only as long as the mount.
 * Any worker thread may call these functions; nodes.lock guards all.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

void nodes_init(struct nodes *n)
{
	pthread_mutex_init(&n->lock, NULL);
	n->handles.prev = n->handles.next = &n->handles;
	n->open_files = 0;
	n->attrs = NULL;
	clock_gettime(CLOCK_REALTIME, &n->born);
}

void nodes_destroy(struct nodes *n)
{
	while (n->handles.next != &n->handles)
		node_release(n, n->handles.next);
	while (n->attrs) {
		struct node_attr *a = n->attrs;

		n->attrs = a->next;
		free(a);
	}
	pthread_mutex_destroy(&n->lock);
}

struct handle *node_open(struct nodes *n, struct volume *v)
{
	struct handle *h = malloc(sizeof(*h));

	if (!h)
		return NULL;
	h->volume = v;
	pthread_mutex_lock(&n->lock);
	h->prev = &n->handles;
	h->next = n->handles.next;
	h->next->prev = h;
	n->handles.next = h;
	n->open_files++;
	pthread_mutex_unlock(&n->lock);
	return h;
}

void node_release(struct nodes *n, struct handle *h)
{
	pthread_mutex_lock(&n->lock);
	h->prev->next = h->next;
	h->next->prev = h->prev;
	n->open_files--;
	pthread_mutex_unlock(&n->lock);
	volume_put(h->volume);
	free(h);
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
		.st_blksize = CACHE_BLOCK,
		.st_atim = n->born,
		.st_mtim = n->born,
		.st_ctim = n->born,
	};
}

static struct node_attr *find_attr(struct nodes *n, const struct volume *v)
{
	for (struct node_attr *a = n->attrs; a; a = a->next)
		if (a->id == volume_id(v) && strcmp(a->name, volume_name(v)) == 0)
			return a;
	return NULL;
}

void node_stat(struct nodes *n, struct volume *v, struct stat *st)
{
	const struct node_attr *a;

	node_stat_root(n, st);
	st->st_ino = node_ino(v);
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_size = (off_t)volume_size(v);
	st->st_blocks = (blkcnt_t)((volume_size(v) + 511) / 512);
	pthread_mutex_lock(&n->lock);
	a = find_attr(n, v);
	if (a) {
		st->st_mode = S_IFREG | a->mode;
		st->st_uid = a->uid;
		st->st_gid = a->gid;
		st->st_atim = a->atime;
		st->st_mtim = a->mtime;
	}
	pthread_mutex_unlock(&n->lock);
}

static void apply_times(struct node_attr *a, const struct stat *attr, int to_set)
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

int node_set_attr(struct nodes *n, struct volume *v, const struct stat *attr, int to_set)
{
	size_t name_len = strlen(volume_name(v)) + 1;
	struct node_attr *a, *fresh = malloc(sizeof(*fresh) + name_len);

	if (!fresh)
		return -ENOMEM;
	*fresh = (struct node_attr){ .id = volume_id(v), .mode = 0600, .uid = geteuid(), .gid = getegid() };
	fresh->atime = fresh->mtime = n->born;
	memcpy(fresh->name, volume_name(v), name_len);
	pthread_mutex_lock(&n->lock);
	a = find_attr(n, v);
	if (!a) {
		a = fresh;
		a->next = n->attrs;
		n->attrs = a;
		fresh = NULL;
	}
	if (to_set & FUSE_SET_ATTR_MODE)
		a->mode = attr->st_mode & 07777;
	if (to_set & FUSE_SET_ATTR_UID)
		a->uid = attr->st_uid;
	if (to_set & FUSE_SET_ATTR_GID)
		a->gid = attr->st_gid;
	apply_times(a, attr, to_set);
	pthread_mutex_unlock(&n->lock);
	free(fresh);
	return 0;
}
