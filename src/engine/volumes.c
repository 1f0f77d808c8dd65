/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volumes.c - the table of volumes, and references to them. The table is guarded by volumes_lock; a volume lives as
 * long as it is in the table, and is only taken out when nobody holds a reference. Adding and removing:
 * life/volume_add.c, life/volume_remove.c.
 */
#include "engine/cache.h"

#include <string.h>

struct volume *volume_find_locked(struct cache *c, const char *name)
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
	refs = ctr_get(v->refs);
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
	v = get(volume_find_locked(c, name), 1);
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
	ctr_add(v->refs, INTERNAL_REF);
}

void volume_unuse(struct volume *v)
{
	atomic_fetch_sub_explicit(&v->refs, INTERNAL_REF, memory_order_release);
}

struct volume *volume_ref(struct volume *v)
{
	ctr_add(v->refs, 1);
	return v;
}

void volume_put(struct volume *v)
{
	/* a thread that finds no reference left sees what was done under this one */
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
	return (enum cache_mode)ctr_get(((struct volume *)(uintptr_t)v)->mode);
}
