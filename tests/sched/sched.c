/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sched.c - the command line. Schedules are dealt out to worker processes; which ones there are depends on the numbers
 * given, not on the machine. A failing one is tried again in children, made smaller, and told.
 *
 *	sched [--schedules N] [--seed S] [--jobs J] [--kind NAME] [--losses L] [--tap]
 *	sched --kind NAME --seed S --one [--ops LIST] [--turns LIST] [--shrink] [--without MUTATION]    one again, told
 *	sched --mutation NAME | --races | --quick-races | --mutations                   a step left out: how many
 *schedules until it shows?
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "play.h"
#include "shrink.h"
#include "util/mutate.h"

#define MAX_JOBS 64
#define MAX_SHOWN 3 /* failures of a worker that are told */
#define STUCK_SECONDS 60

struct options {
	uint64_t schedules, seed;
	unsigned jobs, losses;
	const struct kind *only;
	bool first_only, shrink;
};

/* Shared with the workers. */
struct worker {
	struct play_stats stats;
	uint64_t runs[MAX_KINDS], failed[MAX_KINDS];
	const struct kind *kind; /* at work on */
	uint64_t seed, until_first; /* schedules of this worker until one failed */
	char first[800];
};

static struct worker *workers;
static char scratch[200];

static uint64_t total_failed(unsigned jobs)
{
	uint64_t n = 0;

	for (unsigned j = 0; j < jobs; j++)
		for (unsigned i = 0; i < nkinds; i++)
			n += workers[j].failed[i];
	return n;
}

static void enter_process(unsigned index)
{
	char path[300];

	snprintf(path, sizeof path, "%s/%u", scratch, index);
	if (mkdir(path, 0700) && errno != EEXIST) {
		perror(path);
		_exit(2);
	}
	play_setup(path);
}

/* Kinds in turn, by their share. */
static const struct kind *kind_of(uint64_t n, const struct kind *only)
{
	unsigned sum = 0, x;

	if (only)
		return only;
	for (unsigned i = 0; i < nkinds; i++)
		sum += kinds[i].share;
	x = (unsigned)(n % sum);
	for (unsigned i = 0;; i++) {
		if (x < kinds[i].share)
			return &kinds[i];
		x -= kinds[i].share;
	}
}

static void one_schedule(struct worker *w, const struct options *o, const struct kind *k, uint64_t seed)
{
	static struct outcome out;
	static struct scase c;

	w->kind = k;
	w->seed = seed;
	alarm(STUCK_SECONDS);
	case_make(&c, k, seed);
	play(&c, seed, NULL, o->losses, &out);
	w->runs[k - kinds]++;
	w->stats = play_stats;
	if (!out.failed)
		return;
	w->failed[k - kinds]++;
	if (!w->first[0]) {
		w->until_first = w->stats.schedules;
		snprintf(w->first, sizeof w->first, "%s seed %llu: %s", k->name, (unsigned long long)seed, out.why);
	}
	if (!o->first_only && w->failed[k - kinds] <= MAX_SHOWN) {
		alarm(600);
		shrink_and_tell(&c, seed, &out, o->losses);
	}
	if (out.stuck) {
		fflush(stdout);
		_exit(3); /* the parent goes on with another one */
	}
}

static void work(unsigned index, const struct options *o, uint64_t from)
{
	enter_process(index);
	play_stats = workers[index].stats;
	for (uint64_t n = from; n < o->schedules; n += o->jobs) {
		if (o->first_only && total_failed(o->jobs))
			return;
		one_schedule(&workers[index], o, kind_of(n, o->only), o->seed * 1000000000ull + n);
	}
}

static pid_t start_worker(unsigned j, const struct options *o, uint64_t from)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(2);
	}
	if (!pid) {
		work(j, o, from);
		fflush(stdout);
		_exit(0);
	}
	return pid;
}

static void died(struct worker *w, int status)
{
	w->failed[w->kind ? w->kind - kinds : 0]++;
	if (!w->first[0]) {
		w->until_first = w->stats.schedules;
		snprintf(w->first, sizeof w->first, "%s seed %llu: %s %d", w->kind ? w->kind->name : "?",
			 (unsigned long long)w->seed,
			 WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "it hung; signal"
			 : WIFSIGNALED(status)                              ? "it died of signal"
									    : "it ended with status",
			 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	}
	printf("# %s\n", w->first);
}

/* A worker that ended because its process was of no more use is followed by another, at the next schedule. */
static void run_workers(const struct options *o)
{
	pid_t pid[MAX_JOBS];
	unsigned left = o->jobs;

	memset(workers, 0, o->jobs * sizeof *workers);
	for (unsigned j = 0; j < o->jobs; j++)
		pid[j] = start_worker(j, o, j);
	while (left) {
		int status;
		pid_t p = wait(&status);
		unsigned j = 0;

		if (p < 0)
			break;
		while (j < o->jobs && pid[j] != p)
			j++;
		if (j == o->jobs)
			continue;
		if (WIFEXITED(status) && !WEXITSTATUS(status)) {
			left--;
			continue;
		}
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 3)
			died(&workers[j], status);
		pid[j] = start_worker(j, o, workers[j].seed - o->seed * 1000000000ull + o->jobs);
	}
}

static double seconds_now(void)
{
	return (double)time(NULL);
}

static int report(const struct options *o, double seconds)
{
	struct play_stats s = { 0 };
	unsigned test = 0;

	for (unsigned i = 0; i < nkinds; i++) {
		uint64_t runs = 0, failed = 0;

		for (unsigned j = 0; j < o->jobs; j++) {
			runs += workers[j].runs[i];
			failed += workers[j].failed[i];
		}
		if (o->only && o->only != &kinds[i])
			continue;
		printf("%sok %u - %s: %llu schedules, %llu failed\n", failed ? "not " : "", ++test, kinds[i].name,
		       (unsigned long long)runs, (unsigned long long)failed);
	}
	for (unsigned j = 0; j < o->jobs; j++) {
		s.schedules += workers[j].stats.schedules;
		s.losses += workers[j].stats.losses;
		s.steps += workers[j].stats.steps;
		s.turns += workers[j].stats.turns;
		s.warm += workers[j].stats.warm;
		s.dirty += workers[j].stats.dirty;
	}
	printf("# recoveries kept %llu clean and %llu dirty blocks\n", (unsigned long long)s.warm,
	       (unsigned long long)s.dirty);
	printf("# %llu schedules (on average %llu points, %llu changes of thread) and %llu power losses in %.0f s, "
	       "seed "
	       "%llu\n1..%u\n",
	       (unsigned long long)s.schedules, (unsigned long long)(s.schedules ? s.steps / s.schedules : 0),
	       (unsigned long long)(s.schedules ? s.turns / s.schedules : 0), (unsigned long long)s.losses, seconds,
	       (unsigned long long)o->seed, test);
	return total_failed(o->jobs) != 0;
}

/* ---- mutations ---- */

static int mutations(struct options *o, const char *name);

#ifdef BLKCACHE_MUTATE
static bool try_mutation(const struct options *o, int m)
{
	double start = seconds_now();
	const char *first = NULL;
	uint64_t n = 0;

	mutation = m;
	run_workers(o);
	for (unsigned j = 0; j < o->jobs; j++) {
		if (workers[j].first[0] && !first)
			first = workers[j].first;
		n += workers[j].stats.schedules;
	}
	printf("%-22s %-6s %8llu schedules %4.0f s  %s\n", mutation_names[m], first ? "caught" : "MISSED",
	       (unsigned long long)n, seconds_now() - start, first ? first : mutation_what[m]);
	fflush(stdout);
	return first;
}

/* Those that need two threads: the others are the crash rig's. Where each shows soonest. */
static const struct race {
	const char *mutation, *kind;
	bool quick; /* a thousand schedules or so */
} races[] = {
	/* clang-format off */
	{ "intent-lower", "marks", true },
	{ "intent-recheck", "marks", true },
	{ "intent-clearing", "marks", false },
	{ "durable-sealing", "marks", true },
	{ "begin-failed", "failing", true },
	{ "settle-held", "held", true },
	{ "settle-recheck", "rows", false },
	{ "clean-changed", "cleaning", true },
	{ "discard-cleaned", "discards", false },
	{ "flush-seq", "flushes", true },
	{ "flush-overlap", "lost", false },
	{ "hit-recheck", "evict", false },
	/* clang-format on */
};

static int find_races(struct options *o, bool quick)
{
	bool all = true;

	for (unsigned i = 0; i < sizeof races / sizeof races[0]; i++) {
		if (quick && !races[i].quick)
			continue;
		o->only = kind_find(races[i].kind);
		all &= !mutations(o, races[i].mutation);
	}
	return all ? 0 : 1;
}

static int mutations(struct options *o, const char *name)
{
	bool all = true, any = false;

	o->first_only = true;
	for (int m = 1; m < MUT_COUNT; m++) {
		if (name && strcmp(name, mutation_names[m]))
			continue;
		any = true;
		all &= try_mutation(o, m);
	}
	if (!any)
		fprintf(stderr, "sched: there is no mutation %s\n", name);
	return all && any ? 0 : 1;
}

static bool leave_out(const char *name)
{
	for (int m = 1; m < MUT_COUNT; m++)
		if (!strcmp(name, mutation_names[m]))
			mutation = m;
	return mutation;
}
#else
static int find_races(struct options *o, bool quick)
{
	(void)quick;
	return mutations(o, NULL);
}

static int mutations(struct options *o, const char *name)
{
	(void)o, (void)name;
	fprintf(stderr, "sched: built without -DBLKCACHE_MUTATE\n");
	return 2;
}

static bool leave_out(const char *name)
{
	(void)name;
	return false;
}
#endif

/* ---- main ---- */

static void usage(void)
{
	fprintf(stderr, "usage: see the head of tests/sched/sched.c; kinds:");
	for (unsigned i = 0; i < nkinds; i++)
		fprintf(stderr, " %s", kinds[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

static int again(const struct options *o, const char *ops, const char *turns)
{
	static struct scase c;

	enter_process(0);
	alarm(STUCK_SECONDS * 10);
	case_make(&c, o->only, o->seed);
	if (ops && !case_keep(&c, ops))
		usage();
	return tell_one(&c, o->seed, turns, o->losses, o->shrink);
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
		{ "schedules", 1, NULL, 'n' }, { "seed", 1, NULL, 's' },
		{ "jobs", 1, NULL, 'j' },      { "kind", 1, NULL, 'k' },
		{ "losses", 1, NULL, 'l' },    { "one", 0, NULL, '1' },
		{ "ops", 1, NULL, 'o' },       { "turns", 1, NULL, 't' },
		{ "mutation", 1, NULL, 'm' },  { "mutations", 0, NULL, 'M' },
		{ "races", 0, NULL, 'R' },     { "quick-races", 0, NULL, 'Q' },
		{ "first", 0, NULL, 'f' },     { "without", 1, NULL, 'w' },
		{ "shrink", 0, NULL, 'S' },    { 0 },
	};
	struct options o = {
		.schedules = 10000, .seed = 1, .losses = 2, .jobs = (unsigned)sysconf(_SC_NPROCESSORS_ONLN)
	};
	const char *ops = NULL, *turns = NULL, *mutant = NULL;
	bool one = false, mutants = false, races_only = false, quick = false;
	double start = seconds_now();
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (opt) {
		case 'n':
			o.schedules = strtoull(optarg, NULL, 0);
			break;
		case 's':
			o.seed = strtoull(optarg, NULL, 0);
			break;
		case 'j':
			o.jobs = (unsigned)atoi(optarg);
			break;
		case 'k':
			o.only = kind_find(optarg);
			if (!o.only)
				usage();
			break;
		case 'l':
			o.losses = (unsigned)atoi(optarg);
			break;
		case '1':
			one = true;
			break;
		case 'o':
			ops = optarg;
			break;
		case 't':
			turns = optarg;
			break;
		case 'm':
			mutant = optarg;
			mutants = true;
			break;
		case 'M':
			mutants = true;
			break;
		case 'R':
			mutants = races_only = true;
			break;
		case 'Q':
			mutants = races_only = quick = true;
			break;
		case 'S':
			o.shrink = true;
			break;
		case 'f':
			o.first_only = true;
			break;
		case 'w': /* with --one: leave this step out */
			if (!leave_out(optarg))
				usage();
			break;
		default:
			usage();
		}
	}
	if (!o.jobs || o.jobs > MAX_JOBS)
		o.jobs = 2;
	snprintf(scratch, sizeof scratch, "%s/blkcache-sched-XXXXXX",
		 getenv("TMPDIR")           ? getenv("TMPDIR")
		 : access("/dev/shm", W_OK) ? "/tmp"
					    : "/dev/shm");
	workers = mmap(NULL, MAX_JOBS * sizeof *workers, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (workers == MAP_FAILED || !mkdtemp(scratch)) {
		perror("sched");
		return 2;
	}
	if (mutants) {
		rc = races_only ? find_races(&o, quick) : mutations(&o, mutant);
	} else if (one && o.only) {
		rc = again(&o, ops, turns);
	} else {
		run_workers(&o);
		for (unsigned j = 0; o.first_only && j < o.jobs; j++)
			if (workers[j].first[0])
				printf("# after %llu schedules of this worker: %s\n",
				       (unsigned long long)workers[j].until_first, workers[j].first);
		rc = report(&o, seconds_now() - start);
	}
	remove_scratch(o.jobs);
	return rc;
}
