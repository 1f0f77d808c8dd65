/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * internal.h - what the files of src/export share.
 *
 *   session.c   life of an export: start, wait, stop; says when it is over
 *   mount.c     mount(2) with messages for people; knows no FUSE protocol
 *   mounts.c    the table of mounts: which one is ours, what is in its way, its end
 *   workers.c   the threads that receive requests; grows their number on demand
 *   data.c      READ and WRITE, the only requests whose speed matters, straight from the protocol
 *   ops.c       all other requests, through libfuse's low-level table
 *   nodes.c     volumes as files: numbers, attributes, open handles
 *   survive.c   a session that another process can go on with
 *
 * Lock order: export.lock and nodes.lock are leaves; none is held across a call into the engine or the kernel's FUSE
 * code.
 */
#ifndef EXPORT_INTERNAL_H
#define EXPORT_INTERNAL_H

#include <fuse3/fuse_lowlevel.h>
#include <limits.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

#include "blkcache/engine.h"
#include "blkcache/export.h"
#include "util/waits.h"

#define ROOT_INO FUSE_ROOT_ID

#define MAX_HANDLES (1u << 16)

/* An open file. Its index, and the generation above it, are the FUSE handle that the kernel gives back. */
struct handle {
	uint64_t unique; /* of the request that opened it */
	uint32_t generation;
	uint16_t volume;
	_Atomic uint16_t open;
};

/* Times somebody changed. Two copies, so that one of them is whole whenever the process dies. */
struct node_attr {
	_Atomic uint32_t current; /* 0: none; 1, 2: copy[current - 1] */
	struct attr_copy {
		struct timespec atime, mtime;
		char name[128]; /* ids may be given out again after a removal: it has to match */
	} copy[2];
};

/* Our mount, wherever it is by now (mounts.c). */
struct mount_identity {
	unsigned major, minor; /* of its file system: in use until /dev/fuse is closed */
	int id; /* of the mount; copies of it have others */
};

/* What a process that takes over needs to know. Private memory, or a memfd's (survive.c). */
struct session_memory {
	uint64_t magic;
	_Atomic bool resend; /* the kernel will send requests again */
	uint32_t init_len;
	char init[256] __attribute__((aligned(8))); /* the INIT request */
	char mountpoint[PATH_MAX];
	struct mount_identity mount;
	struct timespec born; /* time stamp of files whose times nobody set */
	_Atomic uint32_t nhandles; /* used ever */
	struct node_attr attr[CACHE_MAX_VOLUMES + 1]; /* by volume id */
	struct handle handle[MAX_HANDLES];
};

struct nodes {
	pthread_mutex_t lock; /* guards everything below */
	struct session_memory *memory;
	struct volume **volume; /* of each handle; NULL: not open. Read without the lock */
	uint32_t *free; /* stack of handles below memory->nhandles */
	uint32_t nfree;
	unsigned open_files;
	uint64_t changes[CACHE_MAX_VOLUMES + 1]; /* of each volume, when its modification time was set */
};

struct worker {
	struct export *export;
	struct worker *next;
	pthread_t thread;
	struct fuse_buf buf; /* libfuse's receive buffer, reused for each request */
	atomic_bool in_read; /* blocked in, or about to enter, the read of /dev/fuse: may be kicked */
	struct waits waits;
	bool waited; /* during this request; its own */
	bool parked; /* export.lock */
	struct worker *next_parked;
	pthread_cond_t unpark;
	struct volume_reply reply; /* too large for the stack of a small thread */
};

struct export
{
	struct cache *cache;
	struct fuse_session *session;
	int fd; /* /dev/fuse; libfuse's to close */
	char *mountpoint; /* absolute; where it was mounted */
	struct mount_identity mount;
	const struct export_survive *survive; /* NULL: none */
	_Atomic uint64_t init_unique; /* its reply has to be extended; 0: none, or over */
	bool swallow; /* replies go nowhere: a recorded request is played */
	bool by_fusermount; /* mounted without privileges, through fusermount3 */
	unsigned max_workers, max_background;
	struct nodes nodes;

	atomic_int receiving; /* workers in the read of /dev/fuse or on their way to it */
	int receivers; /* as many are enough for requests that do not wait */
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t ended_cond; /* also signalled for `answered` */
	struct worker *workers; /* all ever started; freed when joined */
	struct worker *parked; /* of them */
	unsigned nworkers; /* in the list */
	unsigned running; /* of them, not yet at their end */
	bool agreed; /* libfuse took the kernel's INIT: set by the worker that is at it, before `answered` */
	bool answered; /* and the answer has been given */
	bool ending; /* start no more */
	bool joined;
	bool abandoned; /* workers wait for devices that do not answer, and nobody waits for them any more */
	unsigned patience_ms; /* until then; 0: no limit */
};

/* mount.c */
int mount_resolve(const char *mountpoint, char **out, struct bc_error *err);
/* Opens /dev/fuse and mounts it; -EPERM without a message if only fusermount3 may. source: what `mount` shows. */
int mount_direct(const char *path, const char *source, bool allow_other, int *fd, struct bc_error *err);
int mount_open_device(int *fd, struct bc_error *err);
int mount_on(const char *path, const char *source, bool allow_other, int dev,
	     struct bc_error *err); /* likewise, with a device that is open */

/* mounts.c */
int mount_identify(const char *path, struct mount_identity *m, struct bc_error *err); /* right after it was made */
/* Unmounts ours and its copies in this mount namespace, and nothing else. Not lazy: -ENOTEMPTY with a message if
 * something foreign lies on one of them or hides it, -EBUSY if ours is in use; then nothing was unmounted. lazy: never
 * fails; leaves what it cannot detach without taking something foreign along. */
int mount_end(const struct mount_identity *m, bool lazy, bool by_fusermount, struct bc_error *err);

/* workers.c */
int workers_start(struct export *e, struct bc_error *err);
void workers_end(struct export *e); /* sends idle workers home, waits for busy ones as long as patience_ms says */
void workers_join(struct export *e); /* after the last has ended */
bool workers_ended(struct export *e);
/* Returns when the kernel's INIT has been answered: the mount works from then on. 0 or -errno. */
int workers_wait_for_init(struct export *e, unsigned timeout_ms);
bool workers_wait(struct export *e, unsigned timeout_ms); /* true when all have ended; 0 waits without limit */

/* survive.c */
extern _Thread_local uint64_t request_unique; /* of the request this thread carries out */
extern _Thread_local bool request_again; /* it was sent before, to a process that died */
int survive_mount(struct export *e, bool allow_other, struct bc_error *err);
int survive_check(struct export *e, struct bc_error *err); /* after INIT: can it be had? */
void *survive_receive_buffer(void); /* for a worker; to be freed */
int survive_take_over(struct export *e, struct bc_error *err);

/* data.c */
void data_read(struct worker *w, const struct fuse_in_header *in);
void data_write(struct worker *w, const struct fuse_in_header *in);
void data_reply_error(struct export *e, uint64_t unique, int error);

/* ops.c */
extern const struct fuse_lowlevel_ops export_ops;

/* nodes.c */
/* fd: of a memfd, or 0. takeover: it holds what a dead process left. */
int nodes_init(struct nodes *n, struct cache *c, int fd, bool takeover, struct bc_error *err);
void nodes_destroy(struct nodes *n); /* also puts the volumes of files the kernel never got to release */
/* Takes over the reference. `again`: the request may have been carried out by a process that died. -ENFILE */
int node_open(struct nodes *n, struct volume *v, uint64_t unique, bool again, uint64_t *fh);
void node_release(struct nodes *n, uint64_t fh);
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

/* The volume of an open file; NULL: there is no such handle. */
static inline struct volume *node_handle(const struct nodes *n, uint64_t fh)
{
	uint32_t i = (uint32_t)fh;

	return i < MAX_HANDLES ? __atomic_load_n(&n->volume[i], __ATOMIC_ACQUIRE) : NULL;
}

#endif
