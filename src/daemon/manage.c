/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * manage.c - commands that need a cache but no daemon: add, remove, set, get. On a loaded cache handlers.c runs them on
 * the thread of the control request; on a stopped one cmd/ opens the cache and runs them itself. No state here; the
 * engine serialises.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blkcache/journal.h"
#include "daemon/daemon.h"

struct name_list {
	char *buf;
	size_t len, size;
	unsigned n;
};

static int list_name(struct volume *v, void *ctx)
{
	struct name_list *l = ctx;

	if (l->n++ < 8 && l->len < l->size)
		l->len += (size_t)snprintf(l->buf + l->len, l->size - l->len, "%s%s", l->n > 1 ? ", " : "",
					   volume_name(v));
	return 0;
}

struct volume *manage_find_volume(struct cache *c, const char *name, struct bc_error *err)
{
	struct volume *v = cache_volume_get(c, name);
	char names[200] = "";
	struct name_list list = { .buf = names, .size = sizeof(names) };

	if (v)
		return v;
	cache_volume_foreach(c, list_name, &list);
	if (!list.n)
		bc_fail(err, -ENOENT, "there is no volume '%s', the cache has none at all; add one with 'blkcache add'",
			name);
	else
		bc_fail(err, -ENOENT, "there is no volume '%s'; the cache has %s%s", name, names,
			list.n > 8 ? ", ..." : "");
	return NULL;
}

static const char *arg_text(json_t *args, const char *key)
{
	return json_string_value(json_object_get(args, key));
}

static json_t *missing(const char *what, struct bc_error *err)
{
	bc_fail(err, -EINVAL, "the request lacks '%s'", what);
	return NULL;
}

static json_t *describe(struct volume *v, const char *mountpoint)
{
	char path[PATH_MAX + 200] = "";

	if (mountpoint)
		snprintf(path, sizeof(path), "%s/%s", mountpoint, volume_name(v));
	return json_pack("{s:o,s:o,s:I,s:s,s:o}", "name", json_text(volume_name(v)), "backing",
			 json_text(volume_backing(v)), "size_bytes", (json_int_t)volume_size(v), "mode",
			 cache_mode_name(volume_mode(v)), "path", mountpoint ? json_text(path) : json_null());
}

static json_t *add(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
		   struct bc_error *err)
{
	const char *name = arg_text(args, "name"), *backing = arg_text(args, "backing"), *text = arg_text(args, "mode");
	enum cache_mode mode = CACHE_MODE_COUNT;
	struct volume *v;
	json_t *result;

	if (!name || !backing)
		return missing(name ? "backing" : "name", err);
	if (text && cache_mode_parse(text, &mode)) {
		bc_fail(err, -EINVAL, "unknown mode '%.40s'; modes are wt, wb, wa, wi, wo and pt, or their long names",
			text);
		return NULL;
	}
	if (cache_volume_add_patiently(c, name, backing, mode, patience, err))
		return NULL;
	v = manage_find_volume(c, name, err);
	if (!v)
		return NULL;
	result = describe(v, mountpoint);
	volume_put(v);
	return result;
}

static json_t *remove_volume(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
			     struct bc_error *err)
{
	const char *name = arg_text(args, "name");
	bool discard = json_is_true(json_object_get(args, "discard_dirty"));
	struct volume_stats s;
	struct volume *v;

	(void)mountpoint;
	if (!name)
		return missing("name", err);
	v = manage_find_volume(c, name, err);
	if (!v)
		return NULL;
	memset(&s, 0, sizeof(s));
	volume_get_stats(v, &s);
	volume_put(v); /* our reference would make the engine refuse */
	if (cache_volume_remove_patiently(c, name, discard, patience, err))
		return NULL;
	return json_pack("{s:o,s:I,s:b}", "name", json_text(name), "dirty_bytes", (json_int_t)s.dirty_bytes,
			 "discarded", discard && s.dirty_bytes);
}

static int set_one(struct cache *c, struct volume *v, json_t *pair, json_t *notes, struct bc_error *err)
{
	const char *key, *value, *note = NULL;
	int ret;

	if (json_unpack(pair, "[ss]", &key, &value))
		return bc_fail(err, -EINVAL, "the request's values are not pairs of texts");
	ret = cache_set(c, v, key, value, &note, err);
	if (!ret && note)
		json_array_append_new(notes, json_string(note));
	return ret;
}

static json_t *set(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
		   struct bc_error *err)
{
	const char *name = arg_text(args, "volume");
	json_t *values = json_object_get(args, "values"), *notes = json_array(), *pair;
	struct volume *v = NULL;
	size_t i;
	int ret = 0;

	(void)mountpoint;
	(void)patience;
	if (!json_is_array(values)) {
		json_decref(notes);
		return missing("values", err);
	}
	if (name) {
		v = manage_find_volume(c, name, err);
		ret = v ? 0 : -ENOENT;
	}
	for (i = 0; !ret && i < json_array_size(values); i++) {
		pair = json_array_get(values, i);
		ret = set_one(c, v, pair, notes, err);
		if (ret && i > 0)
			bc_fail_prefix(err, "the %zu setting%s before this one took effect", i, i > 1 ? "s" : "");
	}
	if (v)
		volume_put(v);
	if (ret) {
		json_decref(notes);
		return NULL;
	}
	return json_pack("{s:o}", "notes", notes);
}

static void collect_tunable(const char *key, const char *value, const char *help, void *ctx)
{
	json_array_append_new(
		ctx, json_pack("{s:s,s:o,s:s}", "key", key, "value", json_text(value), "help", help ? help : ""));
}

static json_t *find_tunable(json_t *all, const char *key)
{
	json_t *t;
	size_t i;

	json_array_foreach(all, i, t)
		if (!strcmp(json_string_value(json_object_get(t, "key")), key))
			return t;
	return NULL;
}

static void unknown_key(struct cache *c, const char *key, bool of_volume, struct bc_error *err)
{
	char names[200] = "";
	struct name_list list = { .buf = names, .size = sizeof(names) };

	if (of_volume) {
		bc_fail(err, -EINVAL, "'%.60s' is no tunable of a volume; a volume has mode", key);
		return;
	}
	cache_volume_foreach(c, list_name, &list);
	bc_fail(err, -EINVAL, "'%.60s' is neither a tunable, which 'blkcache get DIR' lists, nor a volume%s%s%s", key,
		list.n ? "; the cache has " : ": it has none", names, list.n > 8 ? ", ..." : "");
}

/* Keeps those that `names` (from index `first`) lists; all if it lists none. */
static json_t *pick_tunables(struct cache *c, json_t *all, json_t *names, size_t first, struct bc_error *err)
{
	json_t *picked = json_array(), *t;

	if (first >= json_array_size(names))
		json_array_extend(picked, all);
	for (size_t i = first; i < json_array_size(names); i++) {
		const char *key = json_string_value(json_array_get(names, i));

		t = key ? find_tunable(all, key) : NULL;
		if (!t) {
			json_decref(picked);
			unknown_key(c, key ? key : "", first > 0, err);
			return NULL;
		}
		json_array_append(picked, t);
	}
	return picked;
}

/* The first of `names` may be a volume's: a volume goes before a tunable of the same name, since a tunable can also be
 * had by listing all. */
static json_t *get(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
		   struct bc_error *err)
{
	json_t *names = json_object_get(args, "names"), *all, *picked, *result = NULL;
	const char *first = json_string_value(json_array_get(names, 0));
	struct volume *v = first ? cache_volume_get(c, first) : NULL;

	(void)mountpoint;
	(void)patience;
	all = json_array();
	cache_get_tunables(c, v, collect_tunable, all);
	picked = pick_tunables(c, all, names, v ? 1 : 0, err);
	json_decref(all);
	if (picked)
		result = json_pack("{s:o,s:o}", "volume", v ? json_text(volume_name(v)) : json_null(), "tunables",
				   picked);
	if (v)
		volume_put(v);
	return result;
}

bool manage_is_usage(const json_t *args, const struct bc_error *err)
{
	const char *cmd = json_string_value(json_object_get(args, "cmd"));

	return err->code == -EINVAL && cmd && !strcmp(cmd, "set");
}

json_t *manage_run(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
		   struct bc_error *err)
{
	static const struct {
		const char *cmd;
		json_t *(*run)(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
			       struct bc_error *err);
	} commands[] = { { "add", add }, { "remove", remove_volume }, { "set", set }, { "get", get } };
	const char *cmd = arg_text(args, "cmd");
	struct bc_error mine = { 0 };
	json_t *result;

	for (size_t i = 0; cmd && i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(commands[i].cmd, cmd))
			continue;
		result = commands[i].run(c, mountpoint, args, patience, &mine);
		if (!result && !mine.code)
			bc_fail(&mine, -ENOMEM, "out of memory");
		if (!result && err)
			*err = mine;
		return result;
	}
	bc_fail(err, -ENOSYS, "unknown command '%.60s'; is the daemon of another version?", cmd ? cmd : "");
	return NULL;
}
