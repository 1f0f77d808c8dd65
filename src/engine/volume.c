/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volume.c - the table of volumes: adding, removing, looking up. The table is guarded by volumes_lock; a
 * volume lives as long as it is in the table, and is only taken out when nobody holds a reference.
 */
#include "survive.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * volume.refs holds two counts. Users' references (open files, management) are in the lower half and make removal refuse.
 * The engine's own short ones are in the upper half, and removal waits for them. Each half has room for more than there
 * can be threads and open files.
 */
#define INTERNAL_REF (UINT64_C(1) << 32)
#define VOLUME_REMOVING UINT64_MAX

static int check_name(const char *name, struct bc_error *err)
{
	size_t n = strlen(name);

	if (!n || n >= JOURNAL_NAME_MAX)
		return bc_fail(err, -EINVAL, "volume name \"%.40s%s\": it must have 1 to %d bytes", name,
			       n > 40 ? "..." : "", JOURNAL_NAME_MAX - 1);
	if (!strcmp(name, ".") || !strcmp(name, "..") || strchr(name, '/'))
		return bc_fail(err, -EINVAL,
			       "volume name \"%s\": it becomes a file name, so it cannot be . or .. or contain '/'",
			       name);
	for (const char *p = name; *p; p++)
		if ((unsigned char)*p < 32 || *p == 127)
			return bc_fail(err, -EINVAL, "volume name: control characters are not allowed");
	return 0;
}

/* A plain path becomes absolute, since the daemon runs in another folder. */
static char *absolute_spec(const char *spec)
{
	char *cwd, *out = NULL;

	if (spec[0] == '/' || strchr(spec, ':'))
		return strdup(spec);
	cwd = getcwd(NULL, 0);
	if (cwd && asprintf(&out, "%s/%s", cwd, spec) < 0)
		out = NULL;
	free(cwd);
	return out;
}

int volume_attach(struct cache *c, const struct journal_volume *jv, bool open_backing, bool claim, struct volume **out,
		  struct bc_error *err)
{
	struct volume *v = calloc(1, sizeof *v);
	enum cache_mode mode;
	int rc = -ENOMEM;

	if (!v)
		return bc_fail(err, -ENOMEM, "volume %s: out of memory", jv->name);
	v->cache = c;
	v->id = jv->id;
	snprintf(v->name, sizeof v->name, "%s", jv->name);
	v->backing = strdup(jv->backing);
	v->identity = jv->identity;
	identity_load(v, jv);
	v->size = jv->identity.size;
	v->row_says_in_use = jv->in_use;
	pthread_mutex_init(&v->row_lock, NULL);
	if (cache_mode_parse(jv->mode, &mode)) {
		rc = bc_fail(err, -EUCLEAN, "volume %s: the journal has the unknown mode \"%.3s\" for it", jv->name,
			     jv->mode);
		goto fail;
	}
	v->mode = (int)mode;
	if (!v->backing)
		goto fail;
	if (open_backing) {
		rc = bdev_open(v->backing, claim ? BDEV_OPEN_CLAIM : 0, &v->bdev, err);
		if (rc) {
			bc_fail_prefix(err, "volume %s", v->name);
			goto fail;
		}
		v->size = bdev_size(v->bdev);
	}
	v->nblocks = (v->size + CACHE_BLOCK - 1) / CACHE_BLOCK;
	if (v->nblocks >> c->lines.bpl_shift >> LINE_BITS) {
		rc = bc_fail(err, -EFBIG, "volume %s: the backing device is too large for lines of %u bytes", v->name,
			     c->geo.line_size);
		goto fail;
	}
	readahead_init(&v->readahead);
	rc = intent_init(v);
	if (rc)
		goto fail;
	*out = v;
	return 0;
fail:
	if (rc == -ENOMEM)
		bc_fail(err, rc, "volume %s: out of memory", jv->name);
	volume_detach(v);
	return rc;
}

void volume_detach(struct volume *v)
{
	if (v->intent.region) {
		intent_destroy(v);
		readahead_destroy(&v->readahead);
	}
	bdev_close(v->bdev);
	pthread_mutex_destroy(&v->row_lock);
	free(v->backing);
	free(v);
}

/* row_lock held */
static int __put_row(struct volume *v, struct bc_error *err)
{
	struct journal_volume jv = { .id = (uint16_t)v->id,
				     .backing = v->backing,
				     .in_use = v->row_says_in_use,
				     .identity = v->identity };

	identity_put(v, &jv);
	memcpy(jv.name, v->name, sizeof jv.name);
	snprintf(jv.mode, sizeof jv.mode, "%s", cache_mode_name((enum cache_mode)GET(v->mode)));
	return journal_volume_put(v->cache->journal, &jv, err);
}

int volume_record(struct volume *v, bool in_use, struct bc_error *err)
{
	struct bdev_identity now;
	char label[BDEV_LABEL_MAX];
	int rc;

	/* what the row says exactly must be so after a power loss too */
	if (!in_use && v->bdev && !MUTATE(IDENTITY_SYNC) && (rc = bdev_sync_identity(v->bdev)))
		return bc_fail(err, rc, "volume %s: backing %s cannot be synced: %s", v->name, v->backing,
			       strerror(-rc));
	/* before the lock: the device may take its time, and a mode switch takes that lock (P11) */
	if (v->bdev)
		bdev_get_identity(v->bdev, &now);
	identity_look(v, label);
	pthread_mutex_lock(&v->row_lock);
	if (v->bdev)
		v->identity = now;
	identity_note(v, label);
	v->row_says_in_use = in_use;
	rc = __put_row(v, err);
	pthread_mutex_unlock(&v->row_lock);
	return rc;
}

int volume_record_mode(struct volume *v, enum cache_mode mode, struct bc_error *err)
{
	int old, rc;

	pthread_mutex_lock(&v->row_lock);
	old = atomic_exchange(&v->mode, (int)mode);
	rc = __put_row(v, err);
	if (rc)
		atomic_store(&v->mode, old);
	pthread_mutex_unlock(&v->row_lock);
	return rc;
}

static struct volume *__find(struct cache *c, const char *name)
{
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		if (c->volume[i] && !strcmp(c->volume[i]->name, name))
			return c->volume[i];
	return NULL;
}

/* Takes a reference unless the volume is being removed. */
static struct volume *get(struct volume *v, uint64_t ref)
{
	uint64_t refs;

	if (!v)
		return NULL;
	refs = GET(v->refs);
	do {
		if (refs == VOLUME_REMOVING)
			return NULL;
	} while (!atomic_compare_exchange_weak(&v->refs, &refs, refs + ref));
	return v;
}

struct volume *cache_volume_get(struct cache *c, const char *name)
{
	struct volume *v;

	pthread_rwlock_rdlock(&c->volumes_lock);
	v = get(__find(c, name), 1);
	pthread_rwlock_unlock(&c->volumes_lock);
	return v;
}

static struct volume *get_id(struct cache *c, unsigned id, uint64_t ref)
{
	struct volume *v;

	if (!id || id > CACHE_MAX_VOLUMES)
		return NULL;
	pthread_rwlock_rdlock(&c->volumes_lock);
	v = get(c->volume[id], ref);
	pthread_rwlock_unlock(&c->volumes_lock);
	return v;
}

struct volume *cache_volume_get_id(struct cache *c, unsigned id)
{
	return get_id(c, id, 1);
}

struct volume *volume_use(struct cache *c, unsigned id)
{
	return get_id(c, id, INTERNAL_REF);
}

void volume_use_more(struct volume *v)
{
	ADD(v->refs, INTERNAL_REF);
}

void volume_unuse(struct volume *v)
{
	atomic_fetch_sub_explicit(&v->refs, INTERNAL_REF, memory_order_release);
}

struct volume *volume_ref(struct volume *v)
{
	ADD(v->refs, 1);
	return v;
}

void volume_put(struct volume *v)
{
	/* what was done under the reference is seen by who finds that there is none left */
	atomic_fetch_sub_explicit(&v->refs, 1, memory_order_release);
}

int cache_volume_foreach(struct cache *c, int (*fn)(struct volume *v, void *ctx), void *ctx)
{
	int rc = 0;

	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES && !rc; i++) {
		struct volume *v;

		if (!__atomic_load_n(&c->volume[i], __ATOMIC_RELAXED))
			continue;
		v = volume_use(c, i);
		if (v) {
			rc = fn(v, ctx);
			volume_unuse(v);
		}
	}
	return rc;
}

static int check_duplicates(struct cache *c, const char *name, const char *backing, struct bc_error *err)
{
	if (__find(c, name))
		return bc_fail(err, -EEXIST, "volume %s exists already in %s; choose another name or remove it first",
			       name, c->dir);
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		if (c->volume[i] && !strcmp(c->volume[i]->backing, backing))
			return bc_fail(err, -EEXIST, "backing %s is volume %s already", backing, c->volume[i]->name);
	return 0;
}

int cache_volume_add(struct cache *c, const char *name, const char *backing, enum cache_mode mode, struct bc_error *err)
{
	struct journal_volume jv = { 0 };
	struct volume *v = NULL;
	char *spec = absolute_spec(backing);
	unsigned id = 1;
	int rc;

	if (!spec)
		return bc_fail(err, -ENOMEM, "out of memory");
	rc = check_name(name, err);
	if (rc) {
		free(spec);
		return rc;
	}
	pthread_rwlock_wrlock(&c->volumes_lock);
	rc = check_duplicates(c, name, spec, err);
	while (!rc && id <= CACHE_MAX_VOLUMES && c->volume[id])
		id++;
	if (!rc && id > CACHE_MAX_VOLUMES)
		rc = bc_fail(err, -ENOSPC, "%s has %d volumes already, the most there can be", c->dir,
			     CACHE_MAX_VOLUMES);
	if (rc)
		goto out;
	jv.id = (uint16_t)id;
	jv.backing = spec;
	snprintf(jv.name, sizeof jv.name, "%s", name);
	snprintf(jv.mode, sizeof jv.mode, "%s",
		 cache_mode_name(mode == MODE_COUNT ? (enum cache_mode)GET(c->default_mode) : mode));
	rc = volume_attach(c, &jv, true, true, &v, err);
	if (rc)
		goto out;
	bdev_get_identity(v->bdev, &v->identity);
	witness_read(v);
	rc = volume_record(v, false, err);
	if (rc) {
		volume_detach(v);
		goto out;
	}
	if (c->open_flags & CACHE_OPEN_NO_VOLUMES) { /* registered; whoever loads the cache opens it */
		bdev_close(v->bdev);
		v->bdev = NULL;
	}
	__atomic_store_n(&c->volume[id], v, __ATOMIC_RELAXED); /* cache_volume_foreach looks without the lock */
	c->nvolumes++;
	survive_backing_failed(c, v, false); /* that was another volume with this id */
out:
	pthread_rwlock_unlock(&c->volumes_lock);
	free(spec);
	return rc;
}

/* Everything of the volume out of the map, durably, then its row. */
static int forget_lines(struct cache *c, struct volume *v, struct bc_error *err)
{
	int rc;

	if (MUTATE(REMOVE_LINES))
		journal_volume_delete(c->journal, (uint16_t)v->id, err);
	blocks_drop(c, v, 0, v->nblocks); /* nobody else has the volume any more */
	rc = epoch_commit(c, true);
	if (rc)
		return bc_fail(err, rc, "volume %s: its lines could not be removed from the journal: %s", v->name,
			       c->why);
	/* from now on no recovery drops the epochs that freed them, whatever becomes of their data: the lines would
	 * come back, and under the next volume with this id */
	rc = journal_note_durable(c->journal, GET(c->epoch.data_upto), err);
	return rc ? rc : journal_volume_delete(c->journal, (uint16_t)v->id, err);
}

#define USER_GRACE_MS 50 /* a user's reference is an open file, or short, and then worth a moment */

static void sleep_ms(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* The caller has a reference. Does a user have another one? */
static bool in_use(struct volume *v)
{
	for (int ms = 0; ms <= USER_GRACE_MS; ms++) {
		if (GET(v->refs) % INTERNAL_REF <= 1)
			return false;
		sleep_ms();
	}
	return true;
}

/* From here on nobody can get it any more; the caller has a reference. Waits for the engine's own users, which are
 * cleaning or looking. */
static int take_out(struct volume *v)
{
	for (int ms = 0;;) {
		uint64_t refs = 1;

		if (atomic_compare_exchange_strong(&v->refs, &refs, VOLUME_REMOVING))
			return 0;
		if (refs % INTERNAL_REF > 1 && ++ms > USER_GRACE_MS)
			return -EBUSY;
		sleep_ms();
	}
}

/* What was written through, and not flushed since, becomes durable: once the volume is gone, nobody can ask for it. */
static int flush_written(struct cache *c, struct volume *v, bool anyway, struct bc_error *err)
{
	struct io_thread *t = io_thread_get(c);
	int rc = !v->bdev ? 0 : t ? backing_flush(t, v) : -ENOMEM;

	if (!rc && !anyway && identity_check_name(v, NAME_PATIENCE_MS, err))
		return bc_fail_prefix(err, "nothing is removed (--discard-dirty removes it all the same)");
	if (rc && anyway) {
		log_warn("volume %s: flushing its backing device failed: %s", v->name, strerror(-rc));
		return 0;
	}
	return rc ? bc_fail(err, rc,
			    "volume %s: flushing its backing device failed: %s; --discard-dirty removes it all the "
			    "same",
			    v->name, strerror(-rc))
		  : 0;
}

int cache_volume_remove(struct cache *c, const char *name, bool discard_dirty, struct bc_error *err)
{
	struct volume *v = cache_volume_get(c, name);
	int rc = 0;

	if (!v)
		return bc_fail(err, -ENOENT, "there is no volume %s in %s; `blkcache status %s` lists them", name,
			       c->dir, c->dir);
	/* before the flush: nobody waits an hour to be told of an open file */
	if (in_use(v)) {
		volume_put(v);
		return bc_fail(err, -EBUSY, "volume %s is in use (its file is open); close it first", name);
	}
	if (GET(v->dirty_blocks) && !discard_dirty) {
		if (!v->bdev) {
			volume_put(v);
			return bc_fail(err, -EBUSY,
				       "volume %s holds %llu bytes of dirty data and its backing device is not open",
				       name, (unsigned long long)GET(v->dirty_blocks) * CACHE_BLOCK);
		}
		rc = cache_write_back(c, v, NULL, NULL, err);
		if (rc) {
			volume_put(v);
			return rc;
		}
	}
	readahead_forget(v);
	if (take_out(v)) {
		volume_put(v);
		return bc_fail(err, -EBUSY, "volume %s is in use (its file is open); close it first", name);
	}
	if (GET(v->dirty_blocks) && !discard_dirty)
		rc = bc_fail(err, -EBUSY,
			     "volume %s was written again while it was flushed; stop its users and try again", name);
	if (!rc)
		rc = flush_written(c, v, discard_dirty, err);
	if (!rc)
		rc = forget_lines(c, v, err);
	if (rc) {
		atomic_store(&v->refs, 0);
		return rc;
	}
	pthread_rwlock_wrlock(&c->volumes_lock);
	__atomic_store_n(&c->volume[v->id], NULL, __ATOMIC_RELAXED);
	c->nvolumes--;
	pthread_rwlock_unlock(&c->volumes_lock);
	io_forget_volume(c, v);
	cleaner_forget_volume(c, v);
	volume_detach(v);
	return 0;
}

unsigned volume_id(const struct volume *v)
{
	return v->id;
}

const char *volume_name(const struct volume *v)
{
	return v->name;
}

const char *volume_backing(const struct volume *v)
{
	return v->backing;
}

uint64_t volume_size(const struct volume *v)
{
	return v->size;
}

enum cache_mode volume_mode(const struct volume *v)
{
	return (enum cache_mode)GET(((struct volume *)(uintptr_t)v)->mode);
}
