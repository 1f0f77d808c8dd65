/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * error.c - error:RULE[;RULE]...:DEVICE fails chosen I/Os instead of passing them on. A rule is a list of
 *
 *   op=read|write|flush|unmap|zero|all   kinds it looks at; several joined by '|' (all)
 *   from=OFFSET, to=OFFSET    only I/O that touches bytes from .. to-1; a flush touches none
 *   nth=N                     of those, the Nth only, from 1
 *   every=N                   every Nth
 *   percent=P, seed=S         a share of them, at random; the same ones in every run with the same seed (0)
 *   count=N                   no more than N in all
 *   errno=NAME                with this error (EIO)
 *   delay=TIME                after this time (0)
 *
 * A rule without nth, every or percent fails all it looks at. The first rule that says "fail" decides; each counts what
 * it looked at.
 *
 * Threads: counters belong to the device and are atomic. `lock` guards the pointer to the rules against bdev_error_set.
 */
#include "bdev/error.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bdev/args.h"
#include "bdev/wrap.h"
#include "blkcache/units.h"

#define MAX_RULES 16

struct rule {
	unsigned ops; /* a bit per enum bdev_io_type */
	bool ranged;
	uint64_t from, to;
	uint64_t nth, every, percent, seed, count; /* 0: not given, but for percent see has_percent */
	bool has_percent, has_count;
	int error; /* negative errno */
	uint64_t delay_ns;
	_Atomic uint64_t seen, failed;
};

struct rules {
	unsigned n;
	struct rule rule[MAX_RULES];
};

struct error_bdev {
	struct bdev b;
	pthread_rwlock_t lock;
	struct rules *rules;
	_Atomic uint64_t injected;
};

static struct bdev_module error_module;

/* ---- parsing ---- */

static int parse_ops(char *text, unsigned *ops, struct bc_error *err)
{
	static const struct {
		const char *name;
		unsigned mask;
	} names[] = {
		{ "read", 1u << BDEV_READ },   { "write", 1u << BDEV_WRITE },       { "flush", 1u << BDEV_FLUSH },
		{ "unmap", 1u << BDEV_UNMAP }, { "zero", 1u << BDEV_WRITE_ZEROES }, { "all", ~0u },
	};
	char *name;

	*ops = 0;
	while ((name = strsep(&text, "|"))) {
		size_t i = 0;

		while (i < sizeof(names) / sizeof(*names) && strcmp(names[i].name, name))
			i++;
		if (i == sizeof(names) / sizeof(*names))
			return bc_fail(err, -EINVAL,
				       "error: unknown op '%s'; there are read, write, flush, unmap, zero and all",
				       name);
		*ops |= names[i].mask;
	}
	return 0;
}

static int parse_errno(const char *text, int *error, struct bc_error *err)
{
	for (int e = 1; e < 134; e++) {
		const char *name = strerrorname_np(e);

		if (name && !strcmp(name, text)) {
			*error = -e;
			return 0;
		}
	}
	return bc_fail(err, -EINVAL, "error: unknown errno '%s'; write a name such as EIO or ENOSPC", text);
}

static int parse_count(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
	int r = units_parse_u64(text, value);

	return !r && (*value < min || *value > max) ? -ERANGE : r;
}

static int parse_one(struct rule *rule, struct args *a, struct bc_error *err)
{
	const char *key = a->key;
	uint64_t us = 0;
	int r;

	if (!strcmp(key, "op"))
		return parse_ops(a->value, &rule->ops, err);
	if (!strcmp(key, "errno"))
		return parse_errno(a->value, &rule->error, err);
	if (!strcmp(key, "nth")) {
		r = parse_count(a->value, 1, UINT64_MAX, &rule->nth);
	} else if (!strcmp(key, "every")) {
		r = parse_count(a->value, 1, UINT64_MAX, &rule->every);
	} else if (!strcmp(key, "percent")) {
		r = parse_count(a->value, 0, 100, &rule->percent);
		rule->has_percent = true;
	} else if (!strcmp(key, "seed")) {
		r = parse_count(a->value, 0, UINT64_MAX, &rule->seed);
	} else if (!strcmp(key, "count")) {
		r = parse_count(a->value, 0, UINT64_MAX, &rule->count);
		rule->has_count = true;
	} else if (!strcmp(key, "from")) {
		r = units_parse_size(a->value, &rule->from);
		rule->ranged = true;
	} else if (!strcmp(key, "to")) {
		r = units_parse_size(a->value, &rule->to);
		rule->ranged = true;
	} else if (!strcmp(key, "delay")) {
		r = units_parse_time(a->value, &us);
		if (!r && us > UINT64_C(3600) * 1000000)
			r = -ERANGE;
		rule->delay_ns = us * 1000;
	} else {
		return bc_fail(err, -EINVAL,
			       "error: unknown option '%s'; there are op, from, to, nth, every, percent, seed, count, "
			       "errno and delay",
			       key);
	}
	return r ? bc_fail(err, r, "error: bad value '%s' for %s", a->value, key) : 0;
}

static int parse_rule(struct rule *rule, char *text, struct bc_error *err)
{
	struct args a = { .rest = text };
	int r;

	*rule = (struct rule){ .ops = ~0u, .to = UINT64_MAX, .error = -EIO };
	if (!*text)
		return bc_fail(err, -EINVAL, "error: an empty rule; rules are separated by one ';'");
	while ((r = args_next(&a, "error", err)) > 0) {
		r = parse_one(rule, &a, err);
		if (r)
			return r;
	}
	if (!r && !!rule->nth + !!rule->every + rule->has_percent > 1)
		return bc_fail(err, -EINVAL, "error: a rule takes one of nth, every and percent");
	if (!r && rule->from >= rule->to)
		return bc_fail(err, -EINVAL, "error: the range from .. to of a rule is empty");
	return r;
}

static int parse_rules(const char *text, struct rules **out, struct bc_error *err)
{
	struct rules *rules = calloc(1, sizeof(*rules));
	char *copy = strdup(text), *rest = copy, *one;
	int r = 0;

	if (!rules || !copy)
		r = bc_fail(err, -ENOMEM, "error: out of memory");
	while (!r && *text && (one = strsep(&rest, ";"))) {
		if (rules->n == MAX_RULES)
			r = bc_fail(err, -EINVAL, "error: more than %d rules", MAX_RULES);
		else
			r = parse_rule(&rules->rule[rules->n++], one, err);
	}
	free(copy);
	if (r)
		free(rules);
	else
		*out = rules;
	return r;
}

/* ---- deciding ---- */

static uint64_t hash(uint64_t z)
{
	z += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static bool rule_hits(struct rule *rule, const struct bdev_io *io)
{
	uint64_t n;

	if (!(rule->ops & (1u << io->type)))
		return false;
	if (rule->ranged && (io->type == BDEV_FLUSH || io->offset >= rule->to || io->offset + io->length <= rule->from))
		return false;
	n = atomic_fetch_add(&rule->seen, 1) + 1;
	if (rule->nth && n != rule->nth)
		return false;
	if (rule->every && n % rule->every)
		return false;
	if (rule->has_percent && hash(hash(rule->seed) + n) % 100 >= rule->percent)
		return false;
	return !rule->has_count || atomic_fetch_add(&rule->failed, 1) < rule->count;
}

/* The error to fail io with, or 0. */
static int decide(struct error_bdev *eb, const struct bdev_io *io, uint64_t *delay_ns)
{
	int error = 0;

	pthread_rwlock_rdlock(&eb->lock);
	for (unsigned i = 0; i < eb->rules->n; i++) {
		struct rule *rule = &eb->rules->rule[i];

		if (rule_hits(rule, io) && !error) {
			error = rule->error;
			*delay_ns = rule->delay_ns;
		}
	}
	pthread_rwlock_unlock(&eb->lock);
	if (error)
		atomic_fetch_add(&eb->injected, 1);
	return error;
}

static void error_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	uint64_t delay_ns = 0;
	int r = decide((struct error_bdev *)ch->bdev, io, &delay_ns);

	if (!r)
		wrap_forward(ch, io, 0);
	else
		wrap_complete_at(ch, io, r, delay_ns ? wrap_now() + delay_ns : 0);
}

static int error_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	uint64_t delay_ns = 0;
	int r = decide((struct error_bdev *)ch->bdev, io, &delay_ns);

	if (!r)
		return wrap_sync(ch, io);
	if (delay_ns)
		wrap_sleep_until(wrap_now() + delay_ns);
	return r;
}

/* ---- device ---- */

static int error_construct(struct bdev *b, const char *args, struct bc_error *err)
{
	struct error_bdev *eb = (struct error_bdev *)b;

	pthread_rwlock_init(&eb->lock, NULL);
	return parse_rules(args, &eb->rules, err);
}

static void error_destruct(struct bdev *b)
{
	struct error_bdev *eb = (struct error_bdev *)b;

	free(eb->rules);
	pthread_rwlock_destroy(&eb->lock);
}

static void error_dump_info(struct bdev *b, FILE *out)
{
	fprintf(out, " injected=%llu", (unsigned long long)bdev_error_injected(b));
}

static struct error_bdev *find(struct bdev *b)
{
	while (b && b->module != &error_module)
		b = b->base;
	return (struct error_bdev *)b;
}

int bdev_error_set(struct bdev *bdev, const char *text, struct bc_error *err)
{
	struct error_bdev *eb = find(bdev);
	struct rules *rules, *old;
	int r;

	if (!eb)
		return bc_fail(err, -ENODEV, "%s has no error device; open it as error::DEVICE", bdev->spec);
	r = parse_rules(text, &rules, err);
	if (r)
		return r;
	pthread_rwlock_wrlock(&eb->lock);
	old = eb->rules;
	eb->rules = rules;
	pthread_rwlock_unlock(&eb->lock);
	free(old);
	return 0;
}

uint64_t bdev_error_injected(struct bdev *bdev)
{
	struct error_bdev *eb = find(bdev);

	return eb ? atomic_load(&eb->injected) : 0;
}

static struct bdev_module error_module = {
	.name = "error",
	.usage = "op=write,nth=N",
	.bdev_size = sizeof(struct error_bdev),
	.channel_size = sizeof(struct wrap_channel),
	.wraps = true,
	.construct = error_construct,
	.destruct = error_destruct,
	.put_channel = wrap_put_channel,
	.submit = error_submit,
	.poll = wrap_poll,
	.rw_sync = error_rw_sync,
	.dump_info = error_dump_info,
};
BDEV_MODULE_REGISTER(error_module)
