/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * internal.h - what the files of src/export share.
 *
 *   session.c   life of an export: start, wait, stop; says when it is over
 *   mount.c     mount(2) and umount(2) with messages for people; knows no FUSE protocol
 *   workers.c   the threads that receive requests; grows their number on demand
 *   data.c      READ and WRITE, the only requests whose speed matters, straight from the protocol
 *   ops.c       all other requests, through libfuse's low-level table
 *   nodes.c     volumes as files: numbers, attributes, open handles
 *
 * Lock order: export.lock and nodes.lock are leaves; none is held across a call into the engine or the kernel's FUSE
 * code.
 */
#ifndef EXPORT_INTERNAL_H
#define EXPORT_INTERNAL_H

#include <fuse3/fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

#include "blkcache/engine.h"
#include "blkcache/export.h"

#define ROOT_INO FUSE_ROOT_ID

/* An open file. Its address is the FUSE handle; the kernel gives it back with every request on that file. */
struct handle {
	struct volume *volume;
	struct handle *prev, *next;
};

/* Attributes somebody changed; kept in memory only, by volume. */
struct node_attr {
	struct node_attr *next;
	unsigned id;
	mode_t mode;
	uid_t uid;
	gid_t gid;
	struct timespec atime, mtime;
	char name[]; /* ids may be given out again after a removal: both have to match */
};

struct nodes {
	pthread_mutex_t lock; /* guards everything below */
	struct handle handles; /* ring */
	unsigned open_files;
	struct node_attr *attrs;
	struct timespec born; /* time stamp of files whose times nobody set */
};

struct worker {
	struct export *export;
	struct worker *next;
	pthread_t thread;
	struct fuse_buf buf; /* libfuse's receive buffer, reused for each request */
	atomic_bool receiving; /* blocked in, or about to enter, the read of /dev/fuse: may be kicked */
	struct volume_reply reply; /* too large for the stack of a small thread */
};

struct export
{
	struct cache *cache;
	struct fuse_session *session;
	int fd; /* /dev/fuse; libfuse's to close */
	char *mountpoint; /* absolute */
	bool by_fusermount; /* mounted without privileges, through fusermount3 */
	unsigned max_workers, max_background;
	struct nodes nodes;

	atomic_int idle; /* workers that are free to receive */
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t ended_cond;
	struct worker *workers; /* all ever started; freed when joined */
	unsigned nworkers; /* in the list */
	unsigned running; /* of them, not yet at their end */
	bool ending; /* start no more */
	bool joined;
};

/* mount.c */
int mount_resolve(const char *mountpoint, char **out, struct bc_error *err);
/* Opens /dev/fuse and mounts it; -EPERM without a message if only fusermount3 may. */
int mount_direct(const char *path, bool allow_other, int *fd, struct bc_error *err);
int mount_end(const char *path, bool lazy, bool by_fusermount, struct bc_error *err);

/* workers.c */
int workers_start(struct export *e, struct bc_error *err);
void workers_end(struct export *e); /* sends idle workers home, waits for busy ones */
void workers_join(struct export *e); /* after the last has ended */
bool workers_ended(struct export *e);
bool workers_wait(struct export *e, unsigned timeout_ms); /* true when all have ended; 0 waits without limit */

/* data.c */
void data_read(struct worker *w, const struct fuse_in_header *in);
void data_write(struct worker *w, const struct fuse_in_header *in);
void data_reply_error(struct export *e, uint64_t unique, int error);

/* ops.c */
extern const struct fuse_lowlevel_ops export_ops;

/* nodes.c */
void nodes_init(struct nodes *n);
void nodes_destroy(struct nodes *n); /* also puts the volumes of files the kernel never got to release */
struct handle *node_open(struct nodes *n, struct volume *v); /* takes over the reference; NULL: no memory */
void node_release(struct nodes *n, struct handle *h);
unsigned nodes_open_files(struct nodes *n);
void node_stat_root(struct nodes *n, struct stat *st);
void node_stat(struct nodes *n, struct volume *v, struct stat *st);
int node_set_attr(struct nodes *n, struct volume *v, const struct stat *attr, int to_set);

static inline fuse_ino_t node_ino(const struct volume *v)
{
	return ROOT_INO + volume_id(v);
}

static inline struct volume *node_volume(struct cache *c, fuse_ino_t ino)
{
	return ino > ROOT_INO ? cache_volume_get_id(c, (unsigned)(ino - ROOT_INO)) : NULL;
}

static inline struct handle *node_handle(uint64_t fh)
{
	return (struct handle *)(uintptr_t)fh;
}

#endif
