/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * access.c - owner, group and mode of a volume's file, as somebody set them: kept in the journal, since the user that a
 * virtual machine or a database runs as needs them after the next load, too.
 *
 * They are a setting of the volume ("volume.ID.access"), one durable transaction each, answered when it is durable. The
 * transaction that removes the volume removes them, so a volume that gets the id later does not inherit them. What
 * cannot be kept is refused and changes nothing.
 */
#include "engine/life/life.h"

#include <inttypes.h>

#define ACCESS_KEY JOURNAL_VOLUME_KEY "access"

/* Of all caches of the process. `order` is held over the commit, so that memory and journal agree on the last of two
 * changes; `lock` is a leaf: who only looks never waits for a disk. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;

void access_load(struct cache *c, const char *key, const char *value)
{
	struct volume_access a = { .set = true };
	unsigned id;
	int end = 0;

	if (sscanf(key, ACCESS_KEY "%n", &id, &end) != 1 || !end || key[end] || !id || id > CACHE_MAX_VOLUMES ||
	    !c->volume[id])
		return;
	if (sscanf(value, "%" SCNo32 " %" SCNu32 " %" SCNu32, &a.mode, &a.uid, &a.gid) == 3)
		c->volume[id]->access = a;
}

void volume_get_access(struct volume *v, struct volume_access *a)
{
	pthread_mutex_lock(&lock);
	*a = v->access;
	pthread_mutex_unlock(&lock);
}

int volume_set_access(struct volume *v, const struct volume_access *a, struct bc_error *err)
{
	char key[sizeof(ACCESS_KEY) + 16], value[64];
	int rc;

	snprintf(key, sizeof key, ACCESS_KEY, v->id);
	snprintf(value, sizeof value, "%04" PRIo32 " %" PRIu32 " %" PRIu32, a->mode, a->uid, a->gid);
	pthread_mutex_lock(&order);
	rc = journal_setting_put(v->cache->journal, key, value, err);
	if (!rc) {
		pthread_mutex_lock(&lock);
		v->access = *a;
		v->access.set = true;
		pthread_mutex_unlock(&lock);
	}
	pthread_mutex_unlock(&order);
	return rc ? bc_fail_prefix(err, "volume %s: owner and mode cannot be kept", v->name) : 0;
}
