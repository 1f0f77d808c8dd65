/* SPDX-License-Identifier: BSD-3-Clause */
/* tunables.c - what can be changed with `set`: one table of keys, parsed, applied and kept in the journal. */
#include "engine/life/life.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blkcache/units.h"

enum kind { KIND_SIZE, KIND_TIME, KIND_PERCENT };

struct tunable {
	const char *key, *help;
	enum kind kind;
	size_t offset; /* of the counter in struct tunables */
	uint64_t initial, min, max;
	const char *note; /* said when it is set */
};

static const struct tunable table[] = {
	{ "ram", "memory for buffers", KIND_SIZE, offsetof(struct tunables, ram_bytes), 64ull << 20, CACHE_MIN_RAM,
	  1ull << 42, "ram: takes effect at the next load" },
	{ "clean-after",
	  "how often the background cleaner writes everything dirty to backing; 0: all the time; at most a day, 86400s",
	  KIND_TIME, offsetof(struct tunables, clean_after_us), 30000000, 0, 86400000000ull, NULL },
	{ "dirty-high", "percent of the cache that may be dirty before cleaning hurries", KIND_PERCENT,
	  offsetof(struct tunables, dirty_high_percent), 70, 1, 95, NULL },
	{ "read-ahead", "how far to read ahead of sequential readers from backing; 0: not at all", KIND_SIZE,
	  offsetof(struct tunables, read_ahead), 0, 0, 64ull << 20, NULL },
	{ "tidy",
	  "reads of this size or more rewrite scattered blocks next to each other; also defragments free space when "
	  "idle; 0: off",
	  KIND_SIZE, offsetof(struct tunables, tidy_bytes), 64ull << 10, 0, 1ull << 20, NULL },
	{ "epoch-interval", "how much time may pass until unflushed write-back data is durable in the cache", KIND_TIME,
	  offsetof(struct tunables, epoch_interval_us), 1000000, 10000, 60000000, NULL },
};
#define NTUNABLES (sizeof table / sizeof table[0])

static counter *value_of(struct cache *c, const struct tunable *t)
{
	return (counter *)((char *)&c->tunables + t->offset);
}

void tunables_init(struct cache *c)
{
	for (size_t i = 0; i < NTUNABLES; i++)
		*value_of(c, &table[i]) = table[i].initial;
	c->default_mode = CACHE_MODE_WT;
}

static const struct tunable *find(const char *key)
{
	for (size_t i = 0; i < NTUNABLES; i++)
		if (!strcmp(table[i].key, key))
			return &table[i];
	return NULL;
}

static void format(const struct tunable *t, uint64_t v, char *buf, size_t len)
{
	static const char units[] = "KMGT";
	int u = -1;

	switch (t->kind) {
	case KIND_SIZE:
		while (v && v % 1024 == 0 && u < 3) {
			v /= 1024;
			u++;
		}
		if (u < 0)
			snprintf(buf, len, "%" PRIu64, v);
		else
			snprintf(buf, len, "%" PRIu64 "%c", v, units[u]);
		break;
	case KIND_TIME:
		if (v % 1000000 == 0)
			snprintf(buf, len, "%" PRIu64 "s", v / 1000000);
		else if (v % 1000 == 0)
			snprintf(buf, len, "%" PRIu64 "ms", v / 1000);
		else
			snprintf(buf, len, "%" PRIu64 "us", v);
		break;
	case KIND_PERCENT:
		snprintf(buf, len, "%" PRIu64, v);
		break;
	}
}

static int parse(const struct tunable *t, const char *text, uint64_t *v, struct bc_error *err)
{
	static const char *const what[] = { "a whole number with K, M, G or T, such as 64M",
					    "a whole number with us, ms or s, such as 500ms or 30s",
					    "a whole number (percent)" };
	char lo[32], hi[32];
	int rc = t->kind == KIND_SIZE   ? units_parse_size(text, v)
		 : t->kind == KIND_TIME ? units_parse_time(text, v)
					: units_parse_u64(text, v);

	if (rc)
		return bc_fail(err, -EINVAL, "%s=%s: it takes %s", t->key, text, what[t->kind]);
	if (*v < t->min || *v > t->max) {
		format(t, t->min, lo, sizeof lo);
		format(t, t->max, hi, sizeof hi);
		return bc_fail(err, -EINVAL, "%s=%s: it must be from %s to %s", t->key, text, lo, hi);
	}
	return 0;
}

int tunables_check_ram(uint64_t bytes, struct bc_error *err)
{
	const struct tunable *t = find("ram");
	char text[32];

	snprintf(text, sizeof text, "%" PRIu64, bytes);
	return parse(t, text, &bytes, err);
}

int tunables_load(struct cache *c, const char *key, const char *value)
{
	const struct tunable *t = find(key);
	enum cache_mode mode;
	uint64_t v;

	if (!strcmp(key, "mode") && !cache_mode_parse(value, &mode))
		c->default_mode = (int)mode;
	/* a setting of a newer version is kept in the journal and not used */
	if (t && !parse(t, value, &v, NULL))
		*value_of(c, t) = v;
	return 0;
}

static int set_mode(struct cache *c, struct volume *v, const char *value, const char **note, struct bc_error *err)
{
	enum cache_mode mode;
	int rc;

	if (cache_mode_parse(value, &mode))
		return bc_fail(err, -EINVAL,
			       "mode=%s: it must be wt, wb, wa, wi, wo or pt, or a long name such as write-back",
			       value);
	if (v)
		return volume_set_mode(v, mode, err);
	rc = journal_setting_put(c->journal, "mode", cache_mode_name(mode), err);
	if (!rc)
		c->default_mode = (int)mode;
	*note = "mode: applies to volumes added from now on; give a volume's name to switch that volume";
	return rc;
}

int cache_set(struct cache *c, struct volume *v, const char *key, const char *value, const char **note,
	      struct bc_error *err)
{
	const struct tunable *t = find(key);
	const char *dummy;
	uint64_t x;
	int rc;

	if (!note)
		note = &dummy;
	*note = NULL;
	rc = cache_check_writable(c, err);
	if (rc)
		return rc;
	if (!strcmp(key, "mode"))
		return set_mode(c, v, value, note, err);
	if (!t)
		return bc_fail(err, -EINVAL, "%s: there is no such tunable; `blkcache get %s` lists them", key, c->dir);
	if (v)
		return bc_fail(err, -EINVAL, "%s is a tunable of the whole cache; leave the volume's name out", key);
	rc = parse(t, value, &x, err);
	if (!rc && value_of(c, t) == &c->tunables.ram_bytes)
		rc = ram_check(x, c->lines.bytes + c->slots.bytes, err);
	if (!rc && t->offset == offsetof(struct tunables, read_ahead) && x && c->background.started &&
	    (rc = readahead_start(c)))
		return bc_fail(err, rc, "%s: threads cannot be started: %s", key, strerror(-rc));
	if (!rc)
		rc = journal_setting_put(c->journal, key, value, err);
	if (rc)
		return rc;
	atomic_store(value_of(c, t), x);
	*note = t->note;
	for (int i = 0; i < JOBS && c->background.started; i++)
		job_kick(c, (enum background_job)i);
	return 0;
}

void cache_get_tunables(struct cache *c, struct volume *v,
			void (*fn)(const char *key, const char *value, const char *help, void *ctx), void *ctx)
{
	char buf[32];

	if (v) {
		fn("mode", cache_mode_name(volume_mode(v)), "wt, wb, wa, wi, wo or pt", ctx);
		return;
	}
	fn("mode", cache_mode_name((enum cache_mode)ctr_get(c->default_mode)), "mode of volumes added without one",
	   ctx);
	for (size_t i = 0; i < NTUNABLES; i++) {
		format(&table[i], ctr_get(*value_of(c, &table[i])), buf, sizeof buf);
		fn(table[i].key, buf, table[i].help, ctx);
	}
}
