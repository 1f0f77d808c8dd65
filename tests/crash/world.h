/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * world.h - what survives a power loss: files in memory, and the log of everything that happened to them.
 *
 * A *world* is the disks of the machine: a folder of names, and files made of 4 KiB pages. Pages are shared between
 * worlds and copied when written, so a world is cloned in microseconds. Exactly one world is current; the recorders
 * (recbdev.c: devices of the engine; recvfs.c: files of SQLite; syscalls.c: what journal and engine do to files
 * themselves) work on it, and if it has a log, every change goes there in one sequence.
 *
 * Threads: all functions on the current world take one lock; cloning, folding and freeing belong to the main thread
 * while no cache is open.
 */
#ifndef CRASH_WORLD_H
#define CRASH_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define SECTOR 512u /* what a device writes whole or not at all */
#define MAX_FILES 128
#define MAX_NAMES 16
#define NAME_LEN 24

struct page;

struct file {
	uint64_t size;
	int64_t mtime; /* a count of writes */
	uint32_t errors; /* of writing it back: see file_lose */
	uint32_t npages; /* room in pages[] */
	struct page **pages; /* NULL: zeros */
};

struct name {
	char name[NAME_LEN]; /* empty: free */
	int file;
};

enum event_type {
	EV_WRITE, /* data NULL: zeros */
	EV_TRUNCATE, /* to `len` */
	EV_LINK, /* name -> file, replacing */
	EV_UNLINK,
	EV_RENAME, /* name -> name2, in one */
	EV_SYNC, /* of a file, begun; file FOLDER: of the names. len 1: with the modification time (fsync, not
		    fdatasync) */
	EV_SYNCED, /* the sync that began at `begin` is done */
};

#define FOLDER (-1)

struct event {
	enum event_type type;
	int file;
	uint64_t off, len;
	int64_t mtime; /* of a write */
	uint8_t *data;
	uint32_t end; /* EV_WRITE...: the length of the log when it was done: a sync begun later covers it. EV_SYNCED:
			 begin */
	char name[NAME_LEN], name2[NAME_LEN];
};

struct log {
	struct event *ev;
	uint32_t n, cap;
};

struct world {
	struct file file[MAX_FILES];
	struct name name[MAX_NAMES];
	int nfiles;
	int64_t clock;
	struct log *log; /* NULL: not recorded */
};

extern struct world *world; /* the current one */
/* Called, if not NULL, where an operation of a device or a log has begun and not ended (tests/sched). */
extern void (*world_pause)(const char *place);

extern bool world_journal_fails; /* writing and syncing the journal's files (tests/sched) */

static inline void world_may_pause(const char *place)
{
	if (world_pause)
		world_pause(place);
}

struct world *world_new(void);
struct world *world_clone(const struct world *w);
void world_free(struct world *w);
const char *world_name(const struct world *w, int file); /* NULL: it has none */
void world_settle(struct world *w); /* after a power loss: forgets files without a name */
void log_free(struct log *log);
uint32_t log_length(void); /* of the current world; 0 without a log */

/* Applies a recorded change to a world that is not current. mask: NULL, or which sectors of a write get there. */
void world_apply(struct world *w, const struct event *e, const uint8_t *mask);

/* ---- on the current world ---- */
int file_find(const char *name); /* -1 */
int file_create(const char *name); /* new and empty; replaces the name */
void name_unlink(const char *name);
int name_rename(const char *from, const char *to, bool noreplace);
uint64_t file_size(int file);
size_t file_read(int file, void *buf, size_t len, uint64_t off); /* short at the end */
/* Returns the event, for write_done; UINT32_MAX without a log. */
uint32_t file_write(int file, const void *buf, size_t len, uint64_t off, bool in_flight); /* buf NULL: zeros */
void write_done(uint32_t event);
void file_truncate(int file, uint64_t size);
int64_t file_mtime(int file);
uint32_t sync_begin(int file, bool mtime);
void sync_end(int file, uint32_t begin);
/* The kernel could not write the file back and forgets what was not synced: no later sync makes it durable, though it
 * is still read. Whoever has the file open is told once, by the next sync. */
void file_lose(int file);
uint32_t file_errors(int file); /* how often that has happened */

/* recbdev.c: called before a device zeroes a range, if it is set */
extern void (*recbdev_on_zero)(void);
extern bool recbdev_anonymous; /* devices have no identity */

/* recvfs.c */
void recvfs_register(void); /* as "recorder" */

/* syscalls.c: paths below this folder are names of the current world, but for the lock file. */
extern char crash_dir[256];

#endif
