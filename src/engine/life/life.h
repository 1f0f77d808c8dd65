/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * life.h - a cache and its volumes from their making to their end: create, open, recover, check, take over, add,
 * remove, settings, statistics.
 */
#ifndef LIFE_LIFE_H
#define LIFE_LIFE_H

#include "engine/work/work.h"

/* ---- volume_add.c, volume_remove.c ---- */
int volume_attach(struct cache *c, const struct journal_volume *jv, bool open_backing, bool claim, struct volume **out,
		  struct bc_error *err);
void volume_detach(struct volume *v); /* frees; not in the table any more */
struct patience;
/* The same, on another thread if the caller has patience: a device that does not answer is closed when it does. */
void volume_let_go(struct volume *v, const struct patience *patience);

/* ---- tunables.c ---- */
void tunables_init(struct cache *c);
int tunables_load(struct cache *c, const char *key, const char *value); /* from the journal */
/* Is it a size that `ram` takes, wherever the cache is loaded? */
int tunables_check_ram(uint64_t bytes, struct bc_error *err);

/* ---- ram.c ---- */
/* The most that buffers may be given on this machine, beside `metadata` bytes; *what and *all: whose limit, and how
 * much. */
uint64_t ram_limit(uint64_t metadata, const char **what, uint64_t *all);
int ram_check(uint64_t ram, uint64_t metadata, struct bc_error *err); /* -EINVAL: a load could not have it */
uint64_t ram_to_take(struct cache *c); /* once the settings are known */
int ram_setup(struct cache *c, struct bc_error *err); /* makes the pool */

/* ---- access.c ---- */
void access_load(struct cache *c, const char *key, const char *value); /* a setting, once the volumes are known */

/* ---- open.c ---- */
/* Seam for tests: the spec of the data file's device instead of DIR/data; NULL. Set before any cache is opened. */
extern const char *cache_data_spec;
int cache_setup_buffers(struct cache *c, struct bc_error *err); /* once the settings are known */

/* ---- create.c ---- */
/* -ENAMETOOLONG with its message if SQLite cannot open a journal below the folder. */
int cache_check_path(const char *dir, struct bc_error *err);

/* ---- dir.c ---- */
/* brief: a moment's business with a stopped cache; others wait for it instead of giving up, and it does not mind a
 * read-only file system. */
int cache_lock_dir(const char *dir, bool brief, int inherited, int *dir_fd, int *lock_fd, struct bc_error *err);
bool cache_lock_is_read_only(int lock_fd); /* the folder can be read only */
/* Is there a data file at all? -ENOENT with what that means. */
int cache_check_data_file(const char *dir, struct bc_error *err);
int cache_check_writable(const struct cache *c, struct bc_error *err); /* -EROFS */

#endif
