/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * shrink.c - see shrink.h. First operations are dropped, as long as one of some schedules of the rest fails; then
 * turns, as long as what is left of the list fails. Each try is a child process: one that hangs or dies takes nothing
 * along.
 */
#include "shrink.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/mutate.h"

#define FRESH_SCHEDULES 60 /* of a smaller case, before it counts as passing */
#define TRY_SECONDS 20
#define TRY_LOSSES 6

struct attempt {
	struct scase c;
	struct outcome out;
	uint64_t seed;
};

/* False if it did not fail in a way that can be told. */
static bool in_child(struct attempt *a, const struct schedule *list, unsigned fresh)
{
	struct attempt *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bool failed;
	pid_t pid;

	if (shared == MAP_FAILED)
		return false;
	*shared = *a;
	shared->out.failed = false;
	fflush(stdout);
	pid = fork();
	if (!pid) {
		alarm(TRY_SECONDS);
		play(&shared->c, shared->seed, list, TRY_LOSSES, &shared->out);
		for (unsigned i = 0; i < fresh && !shared->out.failed; i++)
			play(&shared->c, ++shared->seed, NULL, TRY_LOSSES, &shared->out);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	failed = shared->out.failed;
	if (failed)
		*a = *shared;
	munmap(shared, sizeof *shared);
	return failed;
}

static void shrink_ops(struct attempt *best)
{
	static struct attempt a;
	bool smaller = true;

	while (smaller) {
		smaller = false;
		for (unsigned i = 0; i < best->c.nops; i++) {
			if (best->c.op[i].dropped)
				continue;
			a = *best;
			a.c.op[i].dropped = true;
			if (in_child(&a, &best->out.schedule, FRESH_SCHEDULES)) {
				*best = a;
				smaller = true;
			}
		}
	}
}

static void shrink_turns(struct attempt *best)
{
	static struct attempt a;
	static struct schedule list;
	uint32_t size = best->out.schedule.n / 2;

	while (size) {
		bool smaller = false;

		for (uint32_t at = 0; at + size <= best->out.schedule.n;) {
			struct schedule *was = &best->out.schedule;

			list = *was;
			memmove(list.turn + at, was->turn + at + size, (was->n - at - size) * sizeof was->turn[0]);
			list.n -= size;
			a = *best;
			if (in_child(&a, &list, 0) && a.out.schedule.n < was->n) {
				*best = a;
				smaller = true;
			} else {
				at += size;
			}
		}
		if (!smaller || size > 1)
			size /= 2;
	}
}

static void print_turns(const struct schedule *s, FILE *out)
{
	fprintf(out, "%llu%s", (unsigned long long)s->seed, s->atomics == 2 ? "A" : s->atomics ? "a" : "");
	for (uint32_t i = 0; i < s->n; i++)
		fprintf(out, ",%u%c%u", s->turn[i].step, s->turn[i].expire ? '!' : ':', s->turn[i].to);
}

static void parse_turns(struct schedule *s, const char *text)
{
	char *end;

	s->n = 0;
	s->seed = strtoull(text, &end, 10);
	s->atomics = *end == 'A' ? 2 : *end == 'a';
	end += s->atomics > 0;
	while (*end == ',' && s->n < MAX_TURNS) {
		struct turn *t = &s->turn[s->n++];

		t->step = (uint32_t)strtoul(end + 1, &end, 10);
		t->expire = *end == '!';
		t->to = (uint8_t)strtoul(end + 1, &end, 10);
	}
}

bool case_keep(struct scase *c, const char *list)
{
	for (unsigned i = 0; i < c->nops; i++)
		c->op[i].dropped = true;
	while (*list) {
		char *end;
		unsigned long i = strtoul(list, &end, 10);

		if (end == list || i < 1 || i > c->nops)
			return false;
		c->op[i - 1].dropped = false;
		list = *end ? end + 1 : end;
	}
	return true;
}

static void print_command(const struct scase *c, uint64_t case_seed, const struct schedule *s, unsigned losses,
			  FILE *out)
{
	bool first = true;

	fprintf(out, "# again: --kind %s --seed %llu --losses %u --one", c->kind->name, (unsigned long long)case_seed,
		losses);
#ifdef BLKCACHE_MUTATE
	if (mutation)
		fprintf(out, " --without %s", mutation_names[mutation]);
#endif
	fprintf(out, " --ops ");
	for (unsigned i = 0; i < c->nops; i++) {
		if (c->op[i].dropped)
			continue;
		fprintf(out, "%s%u", first ? "" : ",", i + 1);
		first = false;
	}
	fprintf(out, " --turns ");
	print_turns(s, out);
	fprintf(out, "\n");
}

static void print_outcome(const struct scase *c, const struct outcome *o)
{
	printf("# %u points, %u turns, log of %u events\n", o->steps, o->schedule.n, o->events);
	case_print(c, stdout);
	if (o->at)
		printf("# power lost after event %u\n", o->at);
	printf("# %s: %s\n", o->failed ? "FAILED" : "passed", o->why);
}

int tell_one(struct scase *c, uint64_t seed, const char *turns, unsigned losses, bool smaller)
{
	static struct schedule list;
	static struct outcome out;

	if (turns) {
		parse_turns(&list, turns);
		seed = list.seed;
	}
	sched_trace = smaller ? NULL : stdout;
	play(c, seed, turns ? &list : NULL, losses, &out);
	if (smaller && out.failed) {
		shrink_and_tell(c, seed, &out, losses);
		return 1;
	}
	print_outcome(c, &out);
	if (out.failed)
		print_command(c, c->seed, &out.schedule, losses, stdout);
	return out.failed;
}

void shrink_and_tell(const struct scase *c, uint64_t seed, const struct outcome *out, unsigned losses)
{
	static struct attempt best;
	pid_t pid;

	printf("# kind %s, seed %llu: %s\n", c->kind->name, (unsigned long long)seed, out->why);
	printf("# again: --kind %s --seed %llu --losses %u --one\n", c->kind->name, (unsigned long long)seed, losses);
	best.c = *c;
	best.out = *out;
	best.seed = seed;
	shrink_ops(&best);
	shrink_turns(&best);
	fflush(stdout);
	pid = fork(); /* it may not come back */
	if (!pid) {
		static struct outcome last;

		alarm(TRY_SECONDS);
		sched_trace = stdout;
		printf("# made smaller:\n");
		play(&best.c, best.seed, &best.out.schedule, TRY_LOSSES, &last);
		print_outcome(&best.c, &last);
		print_command(&best.c, c->seed, &last.schedule, TRY_LOSSES, stdout);
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}
