/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * row.c - the volume's row in the journal: its name, mode and backing device, whether that may be written to, and what
 * it is known by (identity.c). Rows are written under row_lock, so that the last one written is the one that holds.
 */
#include "engine/durable/durable.h"

#include <string.h>

#include "engine/durable/identity.h"

/* row_lock held */
int row_put_locked(struct volume *v, struct bc_error *err)
{
	struct journal_volume jv = {
		.id = (uint16_t)v->id, .backing = v->backing, .in_use = v->row_says_in_use, .identity = v->identity
	};

	identity_put(v, &jv);
	memcpy(jv.name, v->name, sizeof jv.name);
	snprintf(jv.mode, sizeof jv.mode, "%s", cache_mode_name((enum cache_mode)ctr_get(v->mode)));
	return journal_volume_put(v->cache->journal, &jv, err);
}

/* What the device is now; with sync, in a way that survives a power loss. Waits for the device. */
int row_identify(struct volume *v, bool sync, struct bdev_identity *id, char *label, struct bc_error *err)
{
	int rc;

	if (sync && !MUTATE(IDENTITY_SYNC) && (rc = bdev_sync_identity(v->bdev)))
		return bc_fail(err, rc, "volume %s: backing %s cannot be synced: %s", v->name, v->backing,
			       strerror(-rc));
	bdev_get_identity(v->bdev, id);
	identity_look(v, label);
	return 0;
}

int volume_record(struct volume *v, bool in_use, struct bc_error *err)
{
	struct bdev_identity now;
	char label[BDEV_LABEL_MAX];
	int rc;

	/* before the lock: the device may take its time, and a mode switch takes that lock (P11). What the row says
	 * exactly must be so after a power loss too. */
	if (v->bdev && (rc = row_identify(v, !in_use, &now, label, err)))
		return rc;
	pthread_mutex_lock(&v->row_lock);
	if (v->bdev) {
		/* One that has shrunk, or is gone and has no size, must not become what the next load compares with,
		 * nor put cached lines beyond the volume's end. */
		if (now.size < v->size)
			now.size = v->size;
		v->identity = now;
	}
	identity_note(v, label);
	v->row_says_in_use = in_use;
	rc = row_put_locked(v, err);
	pthread_mutex_unlock(&v->row_lock);
	return rc;
}

int volume_record_mode(struct volume *v, enum cache_mode mode, struct bc_error *err)
{
	int old, rc;

	pthread_mutex_lock(&v->row_lock);
	old = atomic_exchange(&v->mode, (int)mode);
	rc = row_put_locked(v, err);
	if (rc)
		atomic_store(&v->mode, old);
	pthread_mutex_unlock(&v->row_lock);
	return rc;
}
