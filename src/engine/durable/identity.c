/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * identity.c - who a backing device is, and whether it was left alone, as far as that can be told without reading it
 * (P10). sample.c and witness.c look at its data.
 *
 * While a volume's row is not `in use` nobody of us writes to backing, so its modification time, and what the kernel
 * counts of writes to a block device, stay as the row says. While it is in use our own writes move both; after a crash
 * there is no telling whose the last one was. But the row also has the time when it was written, and is written again
 * before a write to backing when that is more than NOTE_AGE_S ago. So backing is never younger than that time by more
 * than the age and what a write may be under way (LATE_S); what is younger was written by others. That holds where the
 * file's time is by the same clock, and if the clock is not set forward just between the two.
 */
#include "engine/durable/identity.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/durable/durable.h"

#define SECOND INT64_C(1000000000)
#define NOTE_AGE_S 10
#define LATE_S 110

static int64_t realtime(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME_COARSE, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

void identity_load(struct volume *v, const struct journal_volume *jv)
{
	struct known *k = &v->known;
	char clock[16];

	if (!jv->label)
		return;
	k->there = true;
	snprintf(k->label, sizeof k->label, "%s", jv->label);
	bdev_label_get(k->label, "clock", clock, sizeof clock);
	k->local_clock = !strcmp(clock, "local");
	k->noted_ns = jv->noted_ns;
	memcpy(k->witness, jv->witness, jv->nwitness * sizeof k->witness[0]);
	k->nwitness = jv->nwitness;
}

void identity_look(struct volume *v, char *label)
{
	if (v->bdev)
		bdev_get_label(v->bdev, label);
}

void identity_note(struct volume *v, const char *label)
{
	struct known *k = &v->known;
	char clock[16];

	if (!v->bdev)
		return;
	memcpy(k->label, label, sizeof k->label);
	bdev_label_get(k->label, "clock", clock, sizeof clock);
	k->local_clock = !strcmp(clock, "local");
	atomic_store(&k->noted_ns, realtime());
	k->there = true;
}

void identity_put(struct volume *v, struct journal_volume *jv)
{
	struct known *k = &v->known;

	if (!k->there)
		return;
	jv->label = k->label;
	jv->noted_ns = ctr_get(k->noted_ns);
	jv->witness = k->row;
	jv->nwitness = witness_copy(k, k->row);
}

bool identity_is_old(const struct volume *v)
{
	int64_t age;

	if (!ctr_get(v->known.local_clock))
		return false;
	age = realtime() - atomic_load_explicit((_Atomic int64_t *)(uintptr_t)&v->known.noted_ns, memory_order_relaxed);
	return age > NOTE_AGE_S * SECOND || age < 0;
}

static char *text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *text(const char *fmt, ...)
{
	char *s;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	return n < 0 ? strdup("it has changed") : s;
}

static char *other_device(const char *then, const char *now, uint64_t size)
{
	char a[60], b[60], path[300];
	bool found = bdev_label_find(then, size, path, sizeof path);

	bdev_label_describe(then, a, sizeof a);
	bdev_label_describe(now, b, sizeof b);
	return text("it is another device: %s, not %s%s%s", b, a, found ? ", which is there as " : "",
		    found ? path : "");
}

char *identity_difference(struct volume *v, bool was_in_use, bool *proven)
{
	const struct known *k = &v->known;
	struct bdev_identity now;
	char label[BDEV_LABEL_MAX];
	bool timed;
	int unwritten;

	*proven = false;
	bdev_get_identity(v->bdev, &now);
	bdev_get_label(v->bdev, label);
	if (now.size != v->identity.size)
		return text("its size has changed");
	if (k->there && bdev_label_compare(k->label, label) == BDEV_OTHER)
		return other_device(k->label, label, now.size);
	/* the numbers of file systems may change at a reboot, those of files not where there are any */
	if (now.id[1] && v->identity.id[1] && now.id[1] != v->identity.id[1])
		return text("it is another file");
	timed = now.id[1] || (now.mtime_ns && v->identity.mtime_ns);
	unwritten = k->there ? bdev_label_unwritten(k->label, label) : 0;
	if (!was_in_use && timed && now.mtime_ns != v->identity.mtime_ns)
		return text("it was modified while the cache was not loaded");
	if (!was_in_use && unwritten < 0)
		return text("it was written to while the cache was not loaded");
	if (was_in_use && k->there && k->local_clock && now.mtime_ns &&
	    now.mtime_ns > k->noted_ns + (NOTE_AGE_S + LATE_S) * SECOND)
		return text("it was modified %lld s after the cache had last noted that it would write to it",
			    (long long)((now.mtime_ns - k->noted_ns) / SECOND));
	*proven = !was_in_use && ((timed && k->local_clock) || unwritten > 0);
	return NULL;
}

char *identity_find(const struct journal_volume *jv, char *said, size_t len)
{
	const char *path = jv->backing;
	char label[BDEV_LABEL_MAX], found[300], who[200];

	if (!jv->label || strncmp(path, "/dev/", 5))
		return NULL;
	bdev_label_of_path(path, label);
	if (label[0] ? bdev_label_compare(jv->label, label) != BDEV_OTHER : !access(path, F_OK))
		return NULL;
	if (!bdev_label_find(jv->label, jv->identity.size, found, sizeof found))
		return NULL;
	bdev_label_describe(jv->label, who, sizeof who);
	snprintf(said, len, "volume %s: backing %s is %s now (%s), which is used", jv->name, path, found, who);
	return strdup(found);
}

/* What to do about it: the data is still to be had through the daemon's descriptor. */
int identity_check_name(struct volume *v, unsigned ms, struct bc_error *err)
{
	char why[160];
	int rc = v->bdev ? bdev_check_name(v->bdev, ms, why, sizeof why) : 0;

	if (rc == -ETIMEDOUT)
		return 0;
	if (!rc) {
		atomic_store(&v->known.name_lost, false);
		return 0;
	}
	if (!atomic_exchange(&v->known.name_lost, true))
		log_error("volume %s: its backing file %s %s while it is loaded; nothing dirty is written to it",
			  v->name, v->backing, why);
	return bc_fail(err, rc,
		       "volume %s: while it was loaded its backing file %s %s; it would go with the daemon, so dirty "
		       "data stays in the cache: move it back, or copy that to its place, then 'stop --no-flush' and "
		       "'load --accept-changed %s'",
		       v->name, v->backing, why, v->name);
}

struct look {
	uint64_t until;
};

static int look_at_name(struct volume *v, void *ctx)
{
	const struct look *l = ctx;
	uint64_t now = now_ns();

	identity_check_name(v, now < l->until ? (unsigned)((l->until - now) / 1000000) : 0, NULL);
	return 0;
}

void cache_look_at_names(struct cache *c, unsigned ms)
{
	struct look l = { .until = now_ns() + (uint64_t)ms * 1000000 };

	cache_volume_foreach(c, look_at_name, &l);
	cache_is_deleted(c, ms, NULL);
}

bool cache_is_deleted(struct cache *c, unsigned ms, struct bc_error *err)
{
	char why[160];
	bool deleted = bdev_check_name(c->data, ms, why, sizeof why) == -ESTALE && !strncmp(why, "was deleted", 11);

	if (deleted && !atomic_exchange(&c->deleted, true))
		log_error("%s/%s %s while the cache is loaded; what is dirty goes with the daemon unless it is flushed",
			  c->dir, CACHE_DATA_FILE, why);
	if (deleted)
		bc_fail(err, -ESTALE,
			"cache %s: its data file %s while it is loaded; what is dirty would go with the daemon: flush "
			"it ('blkcache stop' without --no-flush)",
			c->dir, why);
	return deleted;
}
