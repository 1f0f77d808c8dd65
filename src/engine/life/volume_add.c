/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volumes.c - the table of volumes: adding and looking up; life/volume_remove.c is about removing. The table is guarded
 * by volumes_lock; a volume lives as long as it is in the table, and is only taken out when nobody holds a reference.
 */
#include "engine/life/life.h"

#include "engine/durable/takeover_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/patience.h"
#include "util/utf8.h"

int cache_check_volume_name(const char *name, struct bc_error *err)
{
	size_t n = strlen(name);

	if (!n || n >= JOURNAL_NAME_MAX)
		return bc_fail(
			err, -EINVAL,
			"volume name \"%.40s%s\": it must have 1 to %d bytes; choose another name for the volume", name,
			n > 40 ? "..." : "", JOURNAL_NAME_MAX - 1);
	if (!strcmp(name, ".") || !strcmp(name, "..") || strchr(name, '/'))
		return bc_fail(err, -EINVAL,
			       "volume name \"%s\": it becomes a file name, so it cannot be . or .. or contain '/'",
			       name);
	if (!utf8_valid(name, n))
		return bc_fail(
			err, -EINVAL,
			"volume name \"%s\": it is not UTF-8, so it could not be shown or typed everywhere; choose "
			"another name for the volume (its backing device may have any)",
			name);
	for (const char *p = name; *p; p++)
		if ((unsigned char)*p < 32 || *p == 127)
			return bc_fail(
				err, -EINVAL,
				"volume name \"%s\": control characters are not allowed; choose another name for "
				"the volume",
				name);
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

/* Takes the device, if any, whatever comes of it. */
static int attach(struct cache *c, const struct journal_volume *jv, struct bdev *bdev, struct volume **out,
		  struct bc_error *err)
{
	struct volume *v = calloc(1, sizeof *v);
	enum cache_mode mode;
	int rc = -ENOMEM;

	if (!v) {
		bdev_close(bdev);
		return bc_fail(err, -ENOMEM, "volume %s: out of memory", jv->name);
	}
	v->cache = c;
	v->id = jv->id;
	snprintf(v->name, sizeof v->name, "%s", jv->name);
	v->bdev = bdev;
	if (bdev) {
		char use[JOURNAL_NAME_MAX + 8];

		snprintf(use, sizeof use, "volume %s", jv->name);
		bdev_set_use(bdev, use);
	}
	v->backing = strdup(jv->backing);
	v->identity = jv->identity;
	identity_load(v, jv);
	v->size = bdev ? bdev_size(bdev) : jv->identity.size;
	pthread_mutex_init(&v->clean_lock, NULL);
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

int volume_attach(struct cache *c, const struct journal_volume *jv, bool open_backing, bool claim, struct volume **out,
		  struct bc_error *err)
{
	struct bdev *bdev = NULL;
	int rc = open_backing ? bdev_open(jv->backing, claim ? BDEV_OPEN_CLAIM : 0, &bdev, err) : 0;

	if (rc) {
		bc_fail_prefix(err, "volume %s", jv->name);
		return rc;
	}
	return attach(c, jv, bdev, out, err);
}

void volume_detach(struct volume *v)
{
	if (v->intent.region) {
		intent_destroy(v);
		readahead_destroy(&v->readahead);
	}
	bdev_close(v->bdev);
	pthread_mutex_destroy(&v->clean_lock);
	pthread_mutex_destroy(&v->row_lock);
	free(v->backing);
	free(v);
}

/* ---- adding ---- */

/*
 * A volume that is being added: its name, backing and id are taken, but it cannot be had yet. Opening its backing
 * device may take long, and nobody else may have to wait for that (P11), so volumes_lock is not held meanwhile.
 */
struct adding {
	struct adding *next; /* cache->adding; volumes_lock */
	unsigned id;
	const char *name, *spec;
};

static int check_duplicates_locked(struct cache *c, const char *name, const char *backing, struct bc_error *err)
{
	if (volume_find_locked(c, name))
		return bc_fail(err, -EEXIST, "volume %s exists already in %s; choose another name or remove it first",
			       name, c->dir);
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		if (c->volume[i] && !strcmp(c->volume[i]->backing, backing))
			return bc_fail(err, -EEXIST, "backing %s is volume %s of this cache already", backing,
				       c->volume[i]->name);
	for (const struct adding *a = c->adding; a; a = a->next)
		if (!strcmp(a->name, name) || !strcmp(a->spec, backing))
			return bc_fail(err, -EEXIST,
				       "volume %s with backing %s is just being added; wait until that has ended",
				       a->name, a->spec);
	return 0;
}

static bool id_is_free_locked(const struct cache *c, unsigned id)
{
	const struct adding *a = c->adding;

	while (a && a->id != id)
		a = a->next;
	return !c->volume[id] && !a;
}

static int reserve(struct cache *c, struct adding *a, struct bc_error *err)
{
	int rc;

	pthread_rwlock_wrlock(&c->volumes_lock);
	rc = check_duplicates_locked(c, a->name, a->spec, err);
	a->id = 1;
	while (!rc && a->id <= CACHE_MAX_VOLUMES && !id_is_free_locked(c, a->id))
		a->id++;
	if (!rc && a->id > CACHE_MAX_VOLUMES)
		rc = bc_fail(err, -ENOSPC, "%s has %d volumes already, the most there can be", c->dir,
			     CACHE_MAX_VOLUMES);
	if (!rc) {
		a->next = c->adding;
		c->adding = a;
	}
	pthread_rwlock_unlock(&c->volumes_lock);
	return rc;
}

/* v: the volume that it has become; NULL: none. */
static void end_reservation(struct cache *c, struct adding *a, struct volume *v)
{
	struct adding **p;

	pthread_rwlock_wrlock(&c->volumes_lock);
	for (p = &c->adding; *p != a; p = &(*p)->next)
		;
	*p = a->next;
	if (v) {
		__atomic_store_n(&c->volume[v->id], v,
				 __ATOMIC_RELAXED); /* cache_volume_foreach looks without the lock */
		c->nvolumes++;
		takeover_log_backing_failed(c, v, false); /* that was another volume with this id */
	}
	pthread_rwlock_unlock(&c->volumes_lock);
}

#define WITNESS_PATIENCE_MS 2000
#define TWIN_PATIENCE_MS 1000

struct identifying {
	struct volume *v;
	struct bdev_identity now;
	char label[BDEV_LABEL_MAX];
	int rc;
	struct bc_error err;
};

static void identify_it(void *arg)
{
	struct identifying *i = arg;

	i->rc = row_identify(i->v, true, &i->now, i->label, &i->err);
	if (!i->rc)
		i->v->identity = i->now;
}

static void identified_late(void *arg)
{
	struct identifying *i = arg;

	volume_detach(i->v);
	free(i);
}

/* Is the backing file or device of a new volume what another one has, by another spec or path? Of a loaded cache the
 * claim on the device says so, but not which volume; of a stopped one nothing is open. Paths are looked at as they lead
 * now, since numbers of inodes are used again. */
struct twin {
	char *mine, *other;
	bool same;
};

static void look_for_twin(void *arg)
{
	struct twin *t = arg;
	struct stat a, b;

	if (stat(t->mine, &a) || stat(t->other, &b))
		return;
	t->same = S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode) ? a.st_rdev == b.st_rdev
							   : a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static void free_twin(void *arg)
{
	struct twin *t = arg;

	free(t->mine);
	free(t->other);
	free(t);
}

/* One that does not answer is not ours, which did. */
static bool same_path(const char *mine, const char *other, const struct patience *patience)
{
	static const struct patience brief = { .ms = TWIN_PATIENCE_MS };
	struct twin *t = calloc(1, sizeof *t);
	bool same;
	int rc;

	if (!t)
		return false;
	*t = (struct twin){ .mine = strdup(mine), .other = strdup(other) };
	rc = t->mine && t->other ? run_patiently(look_for_twin, t, free_twin, patience ? &brief : NULL) : -EAGAIN;
	if (rc && rc != -EAGAIN)
		return false;
	same = t->same;
	free_twin(t);
	return same;
}

/* claimed: the device could not be had, so volumes that have theirs open count. */
static int check_twins(struct cache *c, const struct adding *a, bool claimed, const struct patience *patience,
		       struct bc_error *err)
{
	const char *mine = bdev_spec_path(a->spec), *other;

	for (unsigned i = 1; mine && i <= CACHE_MAX_VOLUMES; i++) {
		struct volume *v = volume_use(c, i);
		int rc = 0;

		other = v && (claimed || !v->bdev) ? bdev_spec_path(v->backing) : NULL;
		if (other && same_path(mine, other, patience))
			rc = bc_fail(err, -EEXIST, "%s is volume %s of this cache already", a->spec, v->name);
		if (v)
			volume_unuse(v);
		if (rc)
			return rc;
	}
	return 0;
}

/* It holds the device, so that it can go on when nobody waits for it any more. */
struct witnessing {
	struct bdev *bdev;
	struct known known;
};

static void read_witnesses(void *arg)
{
	struct witnessing *w = arg;

	witness_read(w->bdev, &w->known);
}

static void end_witnessing(void *arg)
{
	struct witnessing *w = arg;

	bdev_close(w->bdev);
	free(w);
}

/* A help to tell devices apart later, and it takes a flush of the device: a volume can do without if that is slow.
 * Devices of memory have nothing to tell. */
static void find_witnesses(struct volume *v, const struct patience *patience)
{
	static const struct patience brief = { .ms = WITNESS_PATIENCE_MS };
	struct witnessing *w = v->identity.id[0] ? calloc(1, sizeof *w) : NULL;
	int rc;

	if (!w)
		return;
	w->bdev = v->bdev;
	bdev_hold(w->bdev);
	rc = run_patiently(read_witnesses, w, end_witnessing, patience ? &brief : NULL);
	if (!rc) {
		memcpy(v->known.witness, w->known.witness, sizeof v->known.witness);
		atomic_store(&v->known.nwitness, ctr_get(w->known.nwitness));
	}
	if (!rc || rc == -EAGAIN)
		end_witnessing(w);
}

/* The first row of a volume. Takes the volume if it fails. */
static int record_new(struct volume *v, const char *name, const char *spec, const struct patience *patience,
		      struct bc_error *err)
{
	struct identifying *i = calloc(1, sizeof *i);
	int rc;

	if (!i) {
		volume_detach(v);
		return bc_fail(err, -ENOMEM, "out of memory");
	}
	i->v = v;
	rc = run_patiently(identify_it, i, identified_late, patience);
	if (rc && rc != -EAGAIN) /* v is the thread's now */
		return bc_fail(err, rc, "volume %s was not added: %s does not answer", name, spec);
	if (rc) {
		bc_fail(err, rc, "volume %s: no thread can be started to look at its backing device", v->name);
	} else {
		rc = i->rc;
		if (!rc)
			identity_note(v, i->label);
		else if (err)
			*err = i->err;
	}
	free(i);
	if (!rc) {
		find_witnesses(v, patience);
		pthread_mutex_lock(&v->row_lock);
		rc = row_put_locked(v, err);
		pthread_mutex_unlock(&v->row_lock);
	}
	if (rc)
		volume_let_go(v, patience);
	return rc;
}

/* Opens the backing device and writes the row of a volume that nobody else knows yet. */
static int open_new(struct cache *c, const struct adding *a, enum cache_mode mode, const struct patience *patience,
		    struct volume **out, struct bc_error *err)
{
	struct journal_volume jv = { .id = (uint16_t)a->id, .backing = a->spec };
	struct bdev *bdev;
	int rc;

	snprintf(jv.name, sizeof jv.name, "%s", a->name);
	snprintf(jv.mode, sizeof jv.mode, "%s",
		 cache_mode_name(mode == CACHE_MODE_COUNT ? (enum cache_mode)ctr_get(c->default_mode) : mode));
	rc = bdev_open_patiently(a->spec, BDEV_OPEN_CLAIM, patience, &bdev, err);
	if (rc) {
		if (rc == -EBUSY && check_twins(c, a, true, patience, err))
			return -EEXIST;
		bc_fail_prefix(err, "volume %s", a->name);
		return rc;
	}
	rc = check_twins(c, a, false, patience, err);
	if (rc) {
		bdev_close(bdev);
		return rc;
	}
	rc = attach(c, &jv, bdev, out, err);
	if (rc)
		return rc;
	rc = record_new(*out, a->name, a->spec, patience, err);
	if (rc)
		return rc;
	if (c->open_flags & CACHE_OPEN_NO_VOLUMES) { /* registered; whoever loads the cache opens it */
		bdev_close((*out)->bdev);
		(*out)->bdev = NULL;
	}
	return 0;
}

int cache_volume_add_patiently(struct cache *c, const char *name, const char *backing, enum cache_mode mode,
			       const struct patience *patience, struct bc_error *err)
{
	struct volume *v = NULL;
	char *spec = absolute_spec(backing);
	struct adding a = { .name = name, .spec = spec };
	int rc;

	if (!spec)
		return bc_fail(err, -ENOMEM, "out of memory");
	rc = cache_check_writable(c, err);
	if (!rc)
		rc = cache_check_volume_name(name, err);
	if (!rc)
		rc = reserve(c, &a, err);
	if (rc)
		goto out;
	rc = open_new(c, &a, mode, patience, &v, err);
	end_reservation(c, &a, rc ? NULL : v);
out:
	free(spec);
	return rc;
}

int cache_volume_add(struct cache *c, const char *name, const char *backing, enum cache_mode mode, struct bc_error *err)
{
	return cache_volume_add_patiently(c, name, backing, mode, NULL, err);
}
