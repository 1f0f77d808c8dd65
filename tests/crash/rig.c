/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * rig.c - the power-loss rig's command line. Workloads are dealt out to worker processes (the recorders are global to a
 * process); which states are looked at depends on the seed and the numbers given, not on the machine's speed.
 *
 *	rig [--states N] [--seed S] [--jobs J] [--workload NAME] [--exhaustive] [--per-workload N] [--shrink] [--tap]
 *[-v] rig --workload NAME --seed S [--ops LIST] [--at P --choice HEX]    one case again rig --mutation NAME |
 *--mutations    (builds with -DBLKCACHE_MUTATE) a protocol step left out: is it noticed?
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/durable/bypass.h"
#include "engine/life/life.h"
#include "hunt.h"
#include "journal/db.h"
#include "util/mutate.h"

#define MAX_JOBS 64
#define MAX_CONFIGS 32
#define ENOUGH 20000 /* states in which everything must have happened */

/* Shared with the workers. */
struct worker {
	struct check_stats stats;
	uint64_t states[MAX_CONFIGS], failed[MAX_CONFIGS], runs[MAX_CONFIGS];
	unsigned config; /* at work on */
	uint64_t seed;
	char first[1000]; /* first failure, one line */
};

struct options {
	uint64_t states, seed;
	unsigned jobs;
	const struct config *only;
	struct limits lim;
	bool tap, verbose, first_only;
};

static struct worker *shared; /* one per job */
static char scratch[200];

static uint64_t total_failed(unsigned jobs)
{
	uint64_t n = 0;

	for (unsigned j = 0; j < jobs; j++)
		for (unsigned i = 0; i < nconfigs; i++)
			n += shared[j].failed[i];
	return n;
}

static void enter_process(unsigned index)
{
	log_set_level((enum log_level) - 1);
	snprintf(crash_dir, sizeof crash_dir, "%s/%u", scratch, index);
	if (mkdir(crash_dir, 0700) && errno != EEXIST) {
		perror(crash_dir);
		_exit(2);
	}
	recvfs_register();
	bypass_state_dir = "/proc/none"; /* no notes there */
	journal_vfs_name = "recorder";
	journal_wal_reserve = 64 << 10;
	cache_data_spec = "rec:" CACHE_DATA_FILE;
	compact_in_background = false; /* the workload does it */
}

static void one_run(struct worker *w, const struct options *o, const struct config *cfg, uint64_t seed)
{
	unsigned i = (unsigned)(cfg - configs);
	uint64_t before = check_stats.states;
	struct failure f;

	w->config = i;
	w->seed = seed;
	hunt(cfg, seed, NULL, 0, &o->lim, &f);
	w->states[i] += check_stats.states - before;
	w->stats = check_stats;
	w->runs[i]++;
	if (f.found) {
		w->failed[i]++;
		if (!w->first[0])
			snprintf(w->first, sizeof w->first, "%s seed %llu: %s", cfg->name, (unsigned long long)seed,
				 f.why);
		if (!o->first_only)
			fputs(f.text, stdout);
		fflush(stdout);
	} else if (o->verbose) {
		printf("# %s seed %llu: %llu states\n", cfg->name, (unsigned long long)seed,
		       (unsigned long long)(check_stats.states - before));
		fflush(stdout);
	}
	failure_free(&f);
}

/* Deals out the runs: configurations by their share, seeds ascending; worker `index` takes every jobs-th. */
static void work(unsigned index, const struct options *o)
{
	struct worker *w = &shared[index];
	uint64_t k = 0;

	enter_process(index);
	memset(&check_stats, 0, sizeof check_stats);
	for (uint64_t round = 0;; round++) {
		for (unsigned share = 0; share < 8; share++) {
			for (unsigned i = 0; i < nconfigs; i++) {
				if (configs[i].share <= share || (o->only && o->only != &configs[i]))
					continue;
				if (k++ % o->jobs != index)
					continue;
				if (check_stats.states >= o->states / o->jobs)
					return;
				if (o->first_only && total_failed(o->jobs))
					return;
				one_run(w, o, &configs[i], o->seed + round * 8 + share);
			}
		}
	}
}

static void wait_for(unsigned index, pid_t pid)
{
	struct worker *w = &shared[index];
	int status;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return;
	w->failed[w->config]++;
	if (!w->first[0])
		snprintf(w->first, sizeof w->first, "%s seed %llu: %s %d", configs[w->config].name,
			 (unsigned long long)w->seed,
			 WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "it hung; signal"
			 : WIFSIGNALED(status)                              ? "it died of signal"
									    : "it ended with status",
			 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	printf("# %s\n", w->first);
}

static void run_workers(const struct options *o)
{
	pid_t pid[MAX_JOBS];

	memset(shared, 0, o->jobs * sizeof *shared);
	fflush(stdout);
	for (unsigned j = 0; j < o->jobs; j++) {
		pid[j] = fork();
		if (pid[j] < 0) {
			perror("fork");
			exit(2);
		}
		if (!pid[j]) {
			work(j, o);
			fflush(stdout);
			_exit(0);
		}
	}
	for (unsigned j = 0; j < o->jobs; j++)
		wait_for(j, pid[j]);
}

static void report(const struct options *o, double seconds)
{
	struct check_stats s = { 0 };
	unsigned test = 0;

	for (unsigned i = 0; i < nconfigs; i++) {
		uint64_t states = 0, failed = 0, runs = 0;

		for (unsigned j = 0; j < o->jobs; j++) {
			states += shared[j].states[i];
			failed += shared[j].failed[i];
			runs += shared[j].runs[i];
		}
		if (o->only && o->only != &configs[i])
			continue;
		printf("%sok %u - %s: %llu power losses in %llu runs%s\n", failed ? "not " : "", ++test,
		       configs[i].name, (unsigned long long)states, (unsigned long long)runs, failed ? ", failed" : "");
	}
	for (unsigned j = 0; j < o->jobs; j++) {
		const struct check_stats *w = &shared[j].stats;

		s.states += w->states;
		s.nested += w->nested;
		s.kills += w->kills;
		s.dropped_epochs += w->dropped_epochs;
		s.redone += w->redone;
		s.dropped_clean += w->dropped_clean;
		s.warm += w->warm;
		s.dirty += w->dirty;
		s.absent += w->absent;
	}
	/* P4: a recovery that keeps no clean block would pass every other check */
	if (!o->only)
		printf("%sok %u - clean blocks stay cached, epochs are dropped, blocks redone (the checks had work)\n",
		       s.warm && s.dirty && (s.states < ENOUGH || (s.dropped_epochs && s.redone && s.dropped_clean))
			       ? ""
			       : "not ",
		       ++test);
	printf("# %llu states (%llu after a second power loss, or one after one of %llu kills; %llu before there was a "
	       "cache) in %.0f s, seed %llu\n",
	       (unsigned long long)s.states, (unsigned long long)s.nested, (unsigned long long)s.kills,
	       (unsigned long long)s.absent, seconds, (unsigned long long)o->seed);
	printf("# recoveries kept %llu clean and %llu dirty blocks, dropped %llu epochs and %llu clean lines, redid "
	       "%llu "
	       "blocks\n",
	       (unsigned long long)s.warm, (unsigned long long)s.dirty, (unsigned long long)s.dropped_epochs,
	       (unsigned long long)s.dropped_clean, (unsigned long long)s.redone);
	printf("1..%u\n", test);
}

static double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- one case again ---- */

static unsigned parse_list(const char *text, uint32_t *out, unsigned max)
{
	unsigned n = 0;
	char *end;

	while (*text && n < max) {
		out[n++] = (uint32_t)strtoul(text, &end, 10);
		text = *end ? end + 1 : end;
	}
	return n;
}

static int again(const struct options *o, const char *ops, uint32_t at, const char *hex)
{
	uint32_t keep[1000], n = 0;
	unsigned nkeep = ops ? parse_list(ops, keep, 1000) : 0;
	uint8_t choice[4096];
	struct failure f;

	enter_process(0);
	for (; hex && hex[2 * n] && hex[2 * n + 1] && n < sizeof choice; n++) {
		char byte[3] = { hex[2 * n], hex[2 * n + 1], 0 };

		choice[n] = (uint8_t)strtoul(byte, NULL, 16);
	}
	if (at)
		hunt_one(o->only, o->seed, ops ? keep : NULL, nkeep, at, choice, n, &f);
	else
		hunt(o->only, o->seed, ops ? keep : NULL, nkeep, &o->lim, &f);
	printf("%s%s\n", f.text, f.found ? "failed" : "passed");
	return f.found;
}

/* ---- mutations ---- */

#ifdef BLKCACHE_MUTATE
static uint64_t total_states(unsigned jobs)
{
	uint64_t n = 0;

	for (unsigned j = 0; j < jobs; j++)
		n += shared[j].stats.states;
	return n;
}

/* Where to look first: the workload that is most about the step. Without one, or if that does not notice, all of them
 * do. */
static const struct {
	int mutation;
	const char *workload;
} directed[] = {
	{ MUT_INTENT_EPOCH, "through" }, { MUT_DISCARD_EMPTY, "through" }, { MUT_THROUGH_FLUSH, "replace" },
	{ MUT_DISCARD_RECORD, "zero" },  { MUT_DISCARD_DONE, "zero" },     { MUT_DISCARD_REDO, "zero" },
	{ MUT_DISCARD_DROP, "zero" },    { MUT_FOLD_PATCH, "zero" },       { MUT_MERGE_PUT, "merge" },
	{ MUT_MERGE_TABLE, "merge" },    { MUT_LOW_FOLD, "full" },         { MUT_REMOVE_LINES, "stale" },
	{ MUT_VOLUME_SINCE, "reuse" },   { MUT_VOID_EARLY, "stale" },      { MUT_VOID_DISCARD, "stale" },
	{ MUT_CHANGED_NOTE, "meddle" },  { MUT_CREATE_NOTE, "create" },    { MUT_CREATE_SYNC, "create" },
	{ MUT_REMOVE_SYNC, "manage" },   { MUT_FOUND_FLUSH, "threads" },   { MUT_RECOVER_COMMIT, "modes" },
	{ MUT_DROPPED_ROWS, "mixed" },
};

static const struct config *directed_at(int m)
{
	for (unsigned i = 0; i < sizeof directed / sizeof *directed; i++)
		if (directed[i].mutation == m)
			return config_find(directed[i].workload);
	return NULL;
}

static const char *first_failure(unsigned jobs)
{
	for (unsigned j = 0; j < jobs; j++)
		if (shared[j].first[0])
			return shared[j].first;
	return NULL;
}

/* *states: added to. */
static const char *hunt_mutation(struct options *o, const struct config *only, uint64_t *states)
{
	struct options part = *o;

	if (only && !o->only) {
		part.only = only;
		part.states = o->states / 2;
	}
	run_workers(&part);
	*states += total_states(o->jobs);
	return first_failure(o->jobs);
}

static bool try_mutation(struct options *o, int m)
{
	const struct config *only = o->only ? NULL : directed_at(m);
	const char *first = NULL;
	double start = seconds_now();
	uint64_t states = 0;

	mutation = m;
	if (only)
		first = hunt_mutation(o, only, &states);
	if (!first)
		first = hunt_mutation(o, NULL, &states);
	printf("%-22s %-6s %8llu states %5.1f s  %s\n", mutation_names[m], first ? "caught" : "MISSED",
	       (unsigned long long)states, seconds_now() - start, first ? first : mutation_what[m]);
	fflush(stdout);
	return first;
}

static int mutations(struct options *o, const char *name)
{
	bool all = true, any = false;

	o->first_only = true;
	stuck_seconds = 30; /* without a step of the protocol it may well hang */
	for (int m = 1; m < MUT_COUNT; m++) {
		if (name ? strcmp(name, mutation_names[m]) != 0 : m >= MUT_FIRST_RACE)
			continue;
		any = true;
		all &= try_mutation(o, m);
	}
	if (!any)
		fprintf(stderr, "rig: there is no mutation %s\n", name);
	return all && any ? 0 : 1;
}
#else
static int mutations(struct options *o, const char *name)
{
	(void)o, (void)name;
	fprintf(stderr, "rig: built without -DBLKCACHE_MUTATE\n");
	return 2;
}
#endif

/* ---- main ---- */

static void usage(void)
{
	fprintf(stderr, "usage: see the head of tests/crash/rig.c; workloads:");
	for (unsigned i = 0; i < nconfigs; i++)
		fprintf(stderr, " %s", configs[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

static void remove_scratch(unsigned jobs)
{
	char path[300];

	for (unsigned j = 0; j < jobs; j++) {
		snprintf(path, sizeof path, "%s/%u/lock", scratch, j);
		unlink(path);
		snprintf(path, sizeof path, "%s/%u", scratch, j);
		rmdir(path);
	}
	rmdir(scratch);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "states", 1, NULL, 'n' },       { "seed", 1, NULL, 's' },
		{ "jobs", 1, NULL, 'j' },         { "workload", 1, NULL, 'w' },
		{ "exhaustive", 0, NULL, 'x' },   { "per-workload", 1, NULL, 'p' },
		{ "shrink", 0, NULL, 'S' },       { "tap", 0, NULL, 't' },
		{ "verbose", 0, NULL, 'v' },      { "ops", 1, NULL, 'o' },
		{ "at", 1, NULL, 'a' },           { "choice", 1, NULL, 'c' },
		{ "mutation", 1, NULL, 'm' },     { "mutations", 0, NULL, 'M' },
		{ "nested-every", 1, NULL, 'e' }, { 0 },
	};
	struct options o = { .states = 20000,
			     .seed = 1,
			     .jobs = (unsigned)sysconf(_SC_NPROCESSORS_ONLN),
			     .lim = { .nested_every = 60 } };
	const char *ops = NULL, *choice = NULL, *mutant = NULL;
	bool mutants = false, single = false;
	uint32_t at = 0;
	double start = seconds_now();
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "v", longs, NULL)) != -1) {
		switch (opt) {
		case 'n':
			o.states = strtoull(optarg, NULL, 0);
			break;
		case 's':
			o.seed = strtoull(optarg, NULL, 0);
			break;
		case 'j':
			o.jobs = (unsigned)atoi(optarg);
			break;
		case 'w':
			o.only = config_find(optarg);
			if (!o.only)
				usage();
			break;
		case 'x':
			o.lim.exhaustive = true;
			break;
		case 'p':
			o.lim.states = (uint32_t)atoi(optarg);
			break;
		case 'e':
			o.lim.nested_every = (uint32_t)atoi(optarg);
			break;
		case 'S':
			o.lim.shrink = true;
			break;
		case 't':
			o.tap = true;
			break;
		case 'v':
			o.verbose = true;
			break;
		case 'o':
			ops = optarg;
			single = true;
			break;
		case 'a':
			at = (uint32_t)atoi(optarg);
			single = true;
			break;
		case 'c':
			choice = optarg;
			break;
		case 'm':
			mutant = optarg;
			mutants = true;
			break;
		case 'M':
			mutants = true;
			break;
		default:
			usage();
		}
	}
	if (!o.lim.states) { /* several rounds of all workloads */
		o.lim.states = (uint32_t)(o.states / nconfigs / 4);
		o.lim.states = o.lim.states < 50 ? 50 : o.lim.states > 600 ? 600 : o.lim.states;
	}
	if (!o.jobs || o.jobs > MAX_JOBS)
		o.jobs = 2;
	snprintf(scratch, sizeof scratch, "%s/blkcache-crash-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	shared = mmap(NULL, MAX_JOBS * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || !mkdtemp(scratch)) {
		perror("rig");
		return 2;
	}
	if (mutants) {
		rc = mutations(&o, mutant);
	} else if (single && o.only) {
		rc = again(&o, ops, at, choice);
	} else {
		run_workers(&o);
		report(&o, seconds_now() - start);
		rc = total_failed(o.jobs) != 0;
	}
	remove_scratch(o.jobs);
	return rc;
}
