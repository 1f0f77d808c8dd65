/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine_util.h - what the tests of src/engine share: a scratch folder with a cache and its backing files (the rig),
 * random numbers, and stamped blocks, whose contents say which block and version they are. Works with Criterion and,
 * with ENGINE_PLAIN defined, in a program with a plain main() (for the thread sanitizer).
 */
#ifndef TESTS_ENGINE_UTIL_H
#define TESTS_ENGINE_UTIL_H

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/engine.h"
#include "engine/life/life.h"

#ifdef ENGINE_PLAIN
#define must(cond, ...)                                                                                                \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                                     \
			fprintf(stderr, __VA_ARGS__);                                                                  \
			fputc('\n', stderr);                                                                           \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)
#else
#include <criterion/criterion.h>
#define must(cond, ...) cr_assert((cond), __VA_ARGS__)
#endif

#define RIG_VOLUMES 4
#define KIB 1024u
#define MIB (1024u * 1024u)

/* ---- random numbers ---- */

static inline uint64_t rnd64(uint64_t *s)
{
	uint64_t z = *s += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static inline uint64_t rnd(uint64_t *s, uint64_t below)
{
	return rnd64(s) % below;
}

static inline uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

/* ENGINE_SEED=N repeats a run's choices (not its scheduling). */
static inline uint64_t engine_seed(void)
{
	uint64_t seed = env_number("ENGINE_SEED", (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid());

	fprintf(stderr, "ENGINE_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

/* ---- the rig ---- */

struct rig {
	char top[PATH_MAX - 64]; /* scratch folder */
	char dir[PATH_MAX]; /* the cache */
	struct cache *c;
	struct cache_open_report report;
	unsigned n; /* volumes */
	struct volume *v[RIG_VOLUMES];
	char *path[RIG_VOLUMES]; /* backing files */
	char name[RIG_VOLUMES][16];
};

static inline int rig_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static inline void rig_create(struct rig *r, uint64_t size, uint32_t line, uint64_t ram, enum cache_mode mode)
{
	struct cache_create_params p = { .size_bytes = size, .line_size = line, .mode = mode, .ram_bytes = ram };
	const char *tmp = getenv("TMPDIR");
	struct bc_error err = { 0 };

	memset(r, 0, sizeof *r);
	snprintf(r->top, sizeof r->top, "%s/engine-XXXXXX", tmp ? tmp : "/tmp");
	must(mkdtemp(r->top), "mkdtemp %s", r->top);
	snprintf(r->dir, sizeof r->dir, "%s/cache", r->top);
	must(!cache_create(r->dir, &p, &err), "%s", err.msg);
}

static inline int rig_try_open(struct rig *r, struct bc_error *err)
{
	int rc = cache_open(r->dir, 0, &r->c, &r->report, err);

	if (rc) {
		r->c = NULL;
		return rc;
	}
	for (unsigned i = 0; i < r->n; i++) {
		r->v[i] = cache_volume_get(r->c, r->name[i]);
		must(r->v[i], "volume %s is gone", r->name[i]);
	}
	return 0;
}

static inline void rig_open(struct rig *r)
{
	struct bc_error err = { 0 };

	must(!rig_try_open(r, &err), "open: %s", err.msg);
}

static inline int rig_try_close(struct rig *r, struct bc_error *err)
{
	int rc;

	for (unsigned i = 0; i < r->n; i++)
		if (r->v[i])
			volume_put(r->v[i]);
	memset(r->v, 0, sizeof r->v);
	rc = cache_close(r->c, err);
	r->c = NULL;
	return rc;
}

static inline void rig_close(struct rig *r)
{
	struct bc_error err = { 0 };

	must(!rig_try_close(r, &err), "close: %s", err.msg);
}

static inline void rig_destroy(struct rig *r)
{
	if (r->c) {
		struct bc_error err = { 0 };

		rig_try_close(r, &err);
	}
	nftw(r->top, rig_remove_one, 16, FTW_DEPTH | FTW_PHYS);
	for (unsigned i = 0; i < r->n; i++)
		free(r->path[i]);
}

/* A backing file of `size` zeros (made if it is missing) as the next volume; `prefix` is put before its path: "" or
 * "error::". The cache is open. */
static inline struct volume *rig_add(struct rig *r, const char *prefix, uint64_t size, enum cache_mode mode)
{
	unsigned i = r->n++;
	struct bc_error err = { 0 };
	char spec[PATH_MAX + 64];
	int fd;

	must(i < RIG_VOLUMES, "too many volumes");
	must(asprintf(&r->path[i], "%s/backing%u", r->top, i) > 0, "no memory");
	snprintf(r->name[i], sizeof r->name[i], "v%u", i);
	fd = open(r->path[i], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	must(fd >= 0 && !ftruncate(fd, (off_t)size), "%s", r->path[i]);
	close(fd);
	snprintf(spec, sizeof spec, "%s%s", prefix, r->path[i]);
	must(!cache_volume_add(r->c, r->name[i], spec, mode, &err), "add: %s", err.msg);
	r->v[i] = cache_volume_get(r->c, r->name[i]);
	must(r->v[i], "added volume is not there");
	return r->v[i];
}

static inline void rig_set(struct rig *r, const char *key, const char *value)
{
	struct bc_error err = { 0 };

	must(!cache_set(r->c, NULL, key, value, NULL, &err), "set %s=%s: %s", key, value, err.msg);
}

static inline void rig_mode(struct volume *v, enum cache_mode mode)
{
	struct bc_error err = { 0 };

	must(!volume_set_mode(v, mode, &err), "mode: %s", err.msg);
}

static inline void rig_write_back(struct rig *r, struct volume *v)
{
	struct bc_error err = { 0 };

	must(!cache_write_back(r->c, v, NULL, NULL, &err), "write back: %s", err.msg);
}

/* The backing file's bytes, read past the cache. */
static inline void rig_backing(struct rig *r, unsigned i, void *buf, size_t len, uint64_t off)
{
	int fd = open(r->path[i], O_RDONLY | O_CLOEXEC);

	must(fd >= 0 && pread(fd, buf, len, (off_t)off) == (ssize_t)len, "reading %s", r->path[i]);
	close(fd);
}

static inline void rig_backing_write(struct rig *r, unsigned i, const void *buf, size_t len, uint64_t off)
{
	int fd = open(r->path[i], O_WRONLY | O_CLOEXEC);

	must(fd >= 0 && pwrite(fd, buf, len, (off_t)off) == (ssize_t)len && !fsync(fd), "writing %s", r->path[i]);
	close(fd);
}

/* Where block `b` of the volume lies in the data file; what it is. False: not cached. */
static inline bool rig_slot(struct volume *v, uint64_t b, uint32_t *slot, bool *dirty)
{
	struct lines *l = &v->cache->lines;
	struct line_chain ch = lines_lock(l, line_key(v->id, b >> l->bpl_shift));
	uint32_t e = lines_find(&ch);
	unsigned i = b & (l->bpl - 1);
	bool there = e != LINE_NONE && line_valid(l, e) >> i & 1;

	if (there) {
		*slot = line_block(l, e, i)->slot;
		*dirty = line_dirty(l, e) >> i & 1;
	}
	lines_unlock(&ch);
	return there;
}

/* ---- stamped blocks ---- */

#define STAMP_WORDS (CACHE_BLOCK / sizeof(uint64_t))

static inline uint64_t stamp_mix(uint64_t block, uint64_t version, uint64_t i)
{
	uint64_t s = block * UINT64_C(0x9e3779b97f4a7c15) ^ version * UINT64_C(0xc2b2ae3d27d4eb4f) ^ i;

	return s ^ s >> 29;
}

static inline void stamp(void *data, uint64_t block, uint64_t version)
{
	uint64_t *w = data;

	w[0] = block;
	w[1] = version;
	for (uint64_t i = 2; i < STAMP_WORDS; i++)
		w[i] = stamp_mix(block, version, i);
}

enum { STAMP_ZERO = -1, STAMP_TORN = -2, STAMP_FOREIGN = -3 };

/* The block's version, STAMP_ZERO if it is all zeros, or what is wrong with it. */
static inline int64_t stamp_read(const void *data, uint64_t block)
{
	const uint64_t *w = data;
	uint64_t any = 0;

	for (uint64_t i = 0; i < STAMP_WORDS; i++)
		any |= w[i];
	if (!any)
		return STAMP_ZERO;
	if (w[0] != block)
		return STAMP_FOREIGN;
	for (uint64_t i = 2; i < STAMP_WORDS; i++)
		if (w[i] != stamp_mix(block, w[1], i))
			return STAMP_TORN;
	return (int64_t)w[1];
}

#endif
