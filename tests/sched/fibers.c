/* SPDX-License-Identifier: BSD-3-Clause */
/* fibers.c - see fibers.h. One real thread; nothing here is called by another. */
#include "fibers.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STACK (512u << 10)
#define GUARD 4096u
#define MAX_FALLS 8
#define SITES 128 /* what the places in the source are divided into */
#define NEVER_ENDS 400000 /* points: nothing that a case does takes so many */
#define POINT_NS 200 /* how long it takes from one point to the next */
#define PATIENT_NS 5000000000ull /* longer waits are for what never comes: they end only when nothing else goes on */
#define START_NS 1000000000000ull

enum state { UNUSED, READY, WAITING, ENDED };

struct fiber {
	enum state state;
	void *sp; /* while another one runs */
	char *stack;
	int saved_errno;
	void *(*main)(void *);
	void *arg, *result;
	void *keys[MAX_KEYS];
	const void *on; /* WAITING */
	uint64_t deadline; /* of the wait; 0: none */
	uint32_t expires; /* the step at which the scheduler ends the wait although there are others; 0: not */
	bool timed_out, detached;
	int64_t priority;
	const char *place, *name;
	const void *caller;
};

extern const char __executable_start; /* the linker's: addresses differ from run to run */

enum mode { SETTLED, EXPLORE, FOLLOW };

static struct fiber fibers[MAX_FIBERS];
static unsigned current; /* 0: none */
static void *host_sp;
static enum sched_result result;
static char report_text[6000];
static uint64_t now_ns_;

static struct {
	enum mode mode;
	uint64_t seed, random;
	uint8_t atomics;
	bool walk;
	uint32_t walk_odds; /* of a turn at a point, 1 in so many */
	uint32_t step, turns, nfalls, fall[MAX_FALLS];
	uint32_t nsites, site[MAX_FALLS], visits[MAX_FALLS];
	struct code_range near[MAX_NEAR];
	uint32_t nnear, near_visits[MAX_NEAR], nnear_falls;
	struct {
		uint32_t near, visit;
	} near_fall[MAX_FALLS];
	int64_t lowest;
	struct schedule record;
	const struct schedule *follow;
	uint32_t next; /* turn to follow */
} s;

const void *sched_caller;
FILE *sched_trace;

/* ---- random numbers ---- */

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint32_t draw(uint32_t n)
{
	return (uint32_t)(mix(s.random += 0x9e3779b97f4a7c15ull) >> 16) % n;
}

/* A number that depends on the run's seed and the step alone: the same when a list of turns is followed. */
uint32_t sched_chance(uint32_t n)
{
	return s.mode == SETTLED ? n - 1 : (uint32_t)(mix(s.seed + s.step * 0x9e3779b97f4a7c15ull) >> 20) % n;
}

/* ---- changing from one fiber to another ---- */

#ifdef __x86_64__
void fiber_switch(void **from, void *const *to);
__asm__(".text\n.globl fiber_switch\n.type fiber_switch,@function\nfiber_switch:\n"
	"pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
	"movq %rsp,(%rdi)\nmovq (%rsi),%rsp\n"
	"popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
	".size fiber_switch,.-fiber_switch\n");

static void prepare_stack(struct fiber *f, void (*entry)(void))
{
	void **top = (void **)(f->stack + GUARD + STACK) - 2;

	*--top = NULL; /* the entry's return address: aligned as after a call */
	*--top = (void *)entry;
	for (int i = 0; i < 6; i++)
		*--top = NULL;
	f->sp = top;
}
#elif defined(__aarch64__)
void fiber_switch(void **from, void *const *to);
__asm__(".text\n.globl fiber_switch\n.type fiber_switch,%function\nfiber_switch:\n"
	"sub sp,sp,#176\n"
	"stp x19,x20,[sp]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\n"
	"stp x27,x28,[sp,#64]\nstp x29,x30,[sp,#80]\nstp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\n"
	"stp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
	"mov x9,sp\nstr x9,[x0]\nldr x9,[x1]\nmov sp,x9\n"
	"ldp x19,x20,[sp]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\n"
	"ldp x27,x28,[sp,#64]\nldp x29,x30,[sp,#80]\nldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\n"
	"ldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
	"add sp,sp,#176\nret\n.size fiber_switch,.-fiber_switch\n");

static void prepare_stack(struct fiber *f, void (*entry)(void))
{
	uint64_t *frame = (uint64_t *)(f->stack + GUARD + STACK - 176);

	memset(frame, 0, 176);
	frame[11] = (uint64_t)entry; /* x30 */
	f->sp = frame;
}
#else
#error "fibers.c: say how to change stacks on this processor"
#endif

static void switch_to(unsigned next)
{
	struct fiber *from = &fibers[current];

	if (next == current)
		return;
	from->saved_errno = errno;
	current = next;
	fiber_switch(&from->sp, &fibers[next].sp);
	errno = fibers[current].saved_errno;
}

static _Noreturn void leave(enum sched_result why)
{
	void *dummy;

	result = why;
	fiber_switch(&dummy, &host_sp);
	abort();
}

/* ---- what is told when nothing goes on ---- */

static void say(const char *fmt, ...)
{
	size_t n = strlen(report_text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(report_text + n, sizeof report_text - n, fmt, ap);
	va_end(ap);
}

/* Where in the sources; through addr2line, if there is one. */
void sched_locate(const void *address, char *buf, size_t len)
{
	char command[120];
	FILE *f;

	snprintf(command, sizeof command, "addr2line -e /proc/%d/exe -fs %#lx 2>/dev/null | tr '\\n' ' '",
		 (int)getpid(), (unsigned long)((const char *)address - &__executable_start - 1));
	f = address ? popen(command, "r") : NULL;
	if (!f || !fgets(buf, (int)len, f))
		snprintf(buf, len, "?");
	if (f)
		pclose(f);
}

static void tell_fibers(void)
{
	char where[200];

	for (unsigned i = 1; i < MAX_FIBERS; i++) {
		const struct fiber *f = &fibers[i];

		if (f->state != READY && f->state != WAITING)
			continue;
		sched_locate(f->caller, where, sizeof where);
		say("#   thread %u (%s) %s in %s, called at %s\n", i, f->name,
		    i == current        ? "is"
		    : f->state == READY ? "can go on"
					: "waits",
		    f->place ? f->place : "its beginning", where);
	}
}

void fiber_misuse(const char *what)
{
	char where[200];

	sched_locate(sched_caller, where, sizeof where);
	say("%s by thread %u (%s) at %s\n", what, current, fibers[current].name, where);
	tell_fibers();
	leave(SCHED_MISUSE);
}

const char *sched_report(void)
{
	return report_text;
}

/* ---- choosing ---- */

static void tell_turn(unsigned to, bool expire)
{
	const struct fiber *f = &fibers[current];
	char where[200];

	sched_locate(f->caller, where, sizeof where);
	if (expire)
		fprintf(sched_trace, "#   %5u: the wait of thread %u (%s) is over\n", s.step, to, fibers[to].name);
	else
		fprintf(sched_trace, "#   %5u: thread %u (%s) %s in %s at %s; thread %u (%s) goes on\n", s.step,
			current, f->name, f->state == READY ? "stops" : "waits", f->place, where, to, fibers[to].name);
}

static void remember(unsigned to, bool expire)
{
	struct schedule *r = &s.record;

	if (sched_trace)
		tell_turn(to, expire);

	if (r->n < MAX_TURNS)
		r->turn[r->n] = (struct turn){ .step = s.step, .to = (uint8_t)to, .expire = expire };
	r->n++;
}

static void end_wait(struct fiber *f)
{
	f->state = READY;
	f->on = NULL;
	f->deadline = 0;
	f->expires = 0;
}

static void expire(unsigned i)
{
	struct fiber *f = &fibers[i];

	if (f->deadline > now_ns_)
		now_ns_ = f->deadline;
	f->timed_out = true;
	end_wait(f);
	f->priority = draw(1 << 20) + 1;
}

/* Nobody can go on: time passes until somebody's wait is over. */
static bool pass_time(void)
{
	unsigned first = 0;

	for (unsigned i = 1; i < MAX_FIBERS; i++)
		if (fibers[i].state == WAITING && fibers[i].deadline &&
		    (!first || fibers[i].deadline < fibers[first].deadline))
			first = i;
	if (first)
		expire(first);
	return first;
}

/* Who goes on if nothing is decided otherwise. 0: nobody can. */
static unsigned plain_course(bool stay)
{
	if (stay && fibers[current].state == READY)
		return current;
	for (unsigned k = 1; k <= MAX_FIBERS; k++) {
		unsigned i = (current + k) % MAX_FIBERS;

		if (i && fibers[i].state == READY)
			return i;
	}
	return 0;
}

static unsigned random_ready(void)
{
	unsigned n = 0, chosen = 0;

	for (unsigned i = 1; i < MAX_FIBERS; i++)
		if (fibers[i].state == READY && !draw(++n))
			chosen = i;
	return chosen;
}

static unsigned highest_ready(void)
{
	unsigned best = 0;

	for (unsigned i = 1; i < MAX_FIBERS; i++)
		if (fibers[i].state == READY && (!best || fibers[i].priority > fibers[best].priority))
			best = i;
	return best;
}

/* Somebody's time is over, and he goes on before all others. */
static void expire_any(void)
{
	unsigned n = 0, chosen = 0;

	for (unsigned i = 1; i < MAX_FIBERS; i++)
		if (fibers[i].state == WAITING && fibers[i].deadline && fibers[i].deadline < now_ns_ + PATIENT_NS &&
		    !draw(++n))
			chosen = i;
	if (!chosen)
		return;
	expire(chosen);
	remember(chosen, true);
	fibers[chosen].priority = 1 << 21;
}

static void fall_at_place(struct fiber *f)
{
	f->priority = --s.lowest;
	if (draw(2))
		expire_any();
}

/* The one that runs falls below all others: at a step, or at the n-th visit to a place in the source, or to any of the
 * code that is looked at. */
static void fall(void)
{
	struct fiber *f = &fibers[current];
	uint64_t place = (uint64_t)((const char *)f->caller - &__executable_start);
	uint32_t site = (uint32_t)(mix(place) % SITES);

	for (unsigned i = 0; i < s.nfalls; i++)
		if (s.fall[i] == s.step)
			f->priority = --s.lowest;
	for (unsigned i = 0; i < s.nsites; i++) {
		if (s.site[i] != site || !s.visits[i] || --s.visits[i])
			continue;
		fall_at_place(f);
	}
	for (unsigned k = 0; k < s.nnear; k++) {
		if ((const char *)f->caller < s.near[k].from || (const char *)f->caller >= s.near[k].to)
			continue;
		s.near_visits[k]++;
		for (unsigned i = 0; i < s.nnear_falls; i++)
			if (s.near_fall[i].near == k && s.near_fall[i].visit == s.near_visits[k])
				fall_at_place(f);
	}
}

static unsigned explore(unsigned plain)
{
	unsigned to;

	for (unsigned i = 1; i < MAX_FIBERS; i++) {
		if (fibers[i].state == WAITING && fibers[i].expires && fibers[i].expires <= s.step) {
			expire(i);
			remember(i, true);
		}
	}
	if (fibers[current].state == READY)
		fall();
	if (s.walk)
		to = plain != current || !draw(s.walk_odds) ? random_ready() : plain;
	else
		to = highest_ready();
	if (to && to != plain)
		remember(to, false);
	return to ? to : plain;
}

static unsigned follow(unsigned plain)
{
	const struct schedule *f = s.follow;
	unsigned to = plain;

	for (; s.next < f->n && s.next < MAX_TURNS && f->turn[s.next].step <= s.step; s.next++) {
		const struct turn *t = &f->turn[s.next];

		if (t->step < s.step || !t->to || t->to >= MAX_FIBERS)
			continue;
		if (t->expire && fibers[t->to].state == WAITING && fibers[t->to].deadline) {
			expire(t->to);
			remember(t->to, true);
		} else if (!t->expire && fibers[t->to].state == READY) {
			to = t->to;
		}
	}
	if (to != plain)
		remember(to, false);
	return to;
}

/* The turn goes to whoever is to go on. */
static void decide(bool stay)
{
	unsigned plain, to;

	now_ns_ += POINT_NS;
	if (++s.step > NEVER_ENDS) {
		say("it does not end\n");
		tell_fibers();
		leave(SCHED_LIVELOCK);
	}
	plain = plain_course(stay);
	to = plain;
	if (s.mode == EXPLORE)
		to = explore(plain);
	else if (s.mode == FOLLOW)
		to = follow(plain);
	while (!to) {
		if (!pass_time()) {
			say("nobody can go on\n");
			tell_fibers();
			leave(SCHED_DEADLOCK);
		}
		to = plain_course(stay);
	}
	s.turns += to != current;
	switch_to(to);
}

void sched_point(const char *place)
{
	if (!current)
		return;
	fibers[current].place = place;
	fibers[current].caller = sched_caller;
	if (s.mode != SETTLED)
		decide(true);
}

void sched_atomic_point(bool strong)
{
	if (s.atomics > !strong && current && s.mode != SETTLED) {
		fibers[current].place = "atomic";
		fibers[current].caller = sched_caller;
		decide(true);
	}
}

static void begin(enum mode mode, uint64_t seed, unsigned atomics)
{
	s.mode = mode;
	s.seed = seed;
	s.random = mix(seed ^ 0x5c4ed);
	s.step = s.turns = s.nfalls = s.nsites = s.nnear = s.nnear_falls = s.next = 0;
	s.lowest = 0;
	s.atomics = (uint8_t)atomics;
	s.record.n = 0;
	s.record.seed = seed;
	s.record.atomics = s.atomics;
}

static void draw_near(const struct code_range *near, unsigned n)
{
	uint32_t reach = 1u << (4 + draw(4)), most = 1 + draw(3);

	s.nnear = n;
	memcpy(s.near, near, n * sizeof *near);
	memset(s.near_visits, 0, sizeof s.near_visits);
	for (s.nnear_falls = 0; s.nnear_falls < most; s.nnear_falls++) {
		s.near_fall[s.nnear_falls].near = draw(n);
		s.near_fall[s.nnear_falls].visit = 1 + draw(reach);
	}
}

void sched_explore(uint64_t seed, const struct code_range *near, unsigned n)
{
	uint32_t reach, most;

	begin(EXPLORE, seed, mix(seed ^ 77) % 3);
	s.walk = draw(4) == 0;
	s.walk_odds = 1u << draw(7);
	/* falls lie among the first `reach` points: how long a run is, is not known yet */
	reach = 1u << (5 + draw(6 + 2u * s.atomics));
	most = draw(MAX_FALLS / 2 + 1);
	for (s.nfalls = 0; s.nfalls < most; s.nfalls++)
		s.fall[s.nfalls] = 1 + draw(reach);
	/* how often a place is passed differs by orders of magnitude: the rare ones are where things are decided */
	most = draw(MAX_FALLS / 2 + 1);
	for (s.nsites = 0; s.nsites < most; s.nsites++) {
		s.site[s.nsites] = draw(SITES);
		s.visits[s.nsites] = 1 + draw(1u << draw(4));
	}
	for (unsigned i = 1; i < MAX_FIBERS; i++)
		fibers[i].priority = draw(1 << 20) + 1;
	if (n && draw(4)) {
		s.atomics += s.atomics < 2;
		s.nfalls = s.nfalls > 1 ? 1 : s.nfalls;
		s.nsites = s.nsites > 1 ? 1 : s.nsites;
		s.walk = false;
		s.record.atomics = s.atomics;
		draw_near(near, n);
	}
}

void sched_follow(const struct schedule *list)
{
	begin(FOLLOW, list->seed, list->atomics);
	s.follow = list;
}

const struct schedule *sched_settle(void)
{
	s.mode = SETTLED;
	s.atomics = 0;
	return &s.record;
}

uint32_t sched_steps(void)
{
	return s.step;
}

uint32_t sched_turns_total(void)
{
	return s.turns;
}

/* ---- fibers ---- */

static void (*on_exit_fn)(void);

void sched_on_exit(void (*fn)(void))
{
	on_exit_fn = fn;
}

static void end_fiber(void)
{
	struct fiber *f = &fibers[current];

	if (on_exit_fn)
		on_exit_fn();
	f->state = f->detached ? UNUSED : ENDED;
	fiber_wake_all(f);
	for (unsigned i = 1; i < MAX_FIBERS; i++) {
		if (fibers[i].state == READY || fibers[i].state == WAITING) {
			decide(false);
			abort();
		}
	}
	leave(SCHED_FINE);
}

static void enter(void)
{
	struct fiber *f = &fibers[current];

	f->result = f->main(f->arg);
	end_fiber();
}

unsigned fiber_create(void *(*fiber_main)(void *), void *arg)
{
	unsigned i = 1;
	struct fiber *f;
	char *stack;

	while (i < MAX_FIBERS && fibers[i].state != UNUSED)
		i++;
	if (i == MAX_FIBERS)
		return 0;
	f = &fibers[i];
	stack = f->stack;
	if (!stack) {
		stack = mmap(NULL, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			     -1, 0);
		if (stack == MAP_FAILED || mprotect(stack, GUARD, PROT_NONE))
			abort();
	}
	memset(f, 0, sizeof *f);
	f->stack = stack;
	f->main = fiber_main;
	f->arg = arg;
	f->name = "thread";
	f->state = READY;
	f->priority = s.mode == EXPLORE ? draw(1 << 20) + 1 : 1;
	prepare_stack(f, enter);
	return i;
}

unsigned fiber_self(void)
{
	return current;
}

bool fiber_ended(unsigned number, void **res)
{
	if (fibers[number].state != ENDED)
		return false;
	if (res)
		*res = fibers[number].result;
	return true;
}

const void *fiber_handle(unsigned number)
{
	return &fibers[number];
}

void fiber_forget(unsigned number)
{
	fibers[number].state = UNUSED;
}

void fiber_detach(unsigned number)
{
	fibers[number].detached = true;
	if (fibers[number].state == ENDED)
		fibers[number].state = UNUSED;
}

void fiber_name(unsigned number, const char *name)
{
	fibers[number].name = name;
}

const char *fiber_name_of(unsigned number)
{
	return fibers[number].name ? fibers[number].name : "?";
}

void **fiber_keys(void)
{
	return fibers[current].keys;
}

void fiber_drop_key(unsigned key)
{
	for (unsigned i = 0; i < MAX_FIBERS; i++)
		fibers[i].keys[key] = NULL;
}

bool fiber_wait(const void *on, const char *place, uint64_t deadline_ns)
{
	struct fiber *f = &fibers[current];

	f->state = WAITING;
	f->on = on;
	f->place = place;
	f->caller = sched_caller;
	f->deadline = deadline_ns;
	f->timed_out = false;
	/* half of the waits with a limit are over soon, the others when nothing else goes on */
	if (deadline_ns && deadline_ns < now_ns_ + PATIENT_NS && s.mode == EXPLORE)
		f->expires = draw(2) ? s.step + 1 + draw(1u << (3 + draw(8))) : 0;
	decide(false);
	return !f->timed_out;
}

void fiber_wake_all(const void *on)
{
	for (unsigned i = 1; i < MAX_FIBERS; i++)
		if (fibers[i].state == WAITING && fibers[i].on == on)
			end_wait(&fibers[i]);
}

void fiber_wake_one(const void *on)
{
	unsigned n = 0, k;

	for (unsigned i = 1; i < MAX_FIBERS; i++)
		n += fibers[i].state == WAITING && fibers[i].on == on;
	if (!n)
		return;
	k = sched_chance(n);
	for (unsigned i = 1; i < MAX_FIBERS; i++) {
		if (fibers[i].state == WAITING && fibers[i].on == on && !k--) {
			end_wait(&fibers[i]);
			return;
		}
	}
}

bool fiber_waits_on(const void *on)
{
	for (unsigned i = 1; i < MAX_FIBERS; i++)
		if (fibers[i].state == WAITING && fibers[i].on == on)
			return true;
	return false;
}

void fiber_yield(void)
{
	if (!current)
		return;
	fibers[current].place = "sched_yield";
	fibers[current].caller = sched_caller;
	fibers[current].priority = --s.lowest;
	decide(false);
}

uint64_t fiber_now(void)
{
	return now_ns_;
}

/* ---- a run ---- */

static void (*run_main)(void *);

static void *call_main(void *arg)
{
	run_main(arg);
	return NULL;
}

enum sched_result sched_run(void (*fn)(void *), void *arg)
{
	unsigned first;

	for (unsigned i = 1; i < MAX_FIBERS; i++)
		fibers[i].state = UNUSED;
	s.mode = SETTLED;
	s.step = 0;
	s.atomics = 0;
	now_ns_ = START_NS;
	report_text[0] = 0;
	run_main = fn;
	first = fiber_create(call_main, arg);
	fibers[first].name = "main";
	current = first;
	fiber_switch(&host_sp, &fibers[first].sp);
	current = 0;
	return result;
}
