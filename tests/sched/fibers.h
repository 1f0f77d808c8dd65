/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fibers.h - the library's threads, run one at a time by a scheduler of our own.
 *
 * Every thread that the library makes becomes a fiber (a stack and a saved context) of one real thread; locks,
 * conditions, sleeps and clocks are the scheduler's (sync.c). A fiber goes on until it waits, or until the scheduler
 * takes the turn away from it at a *point*: before a lock is taken, after it is given back, at every atomic operation
 * (atomics.c), and where a device or a log starts and ends an operation. Time is a number that the scheduler moves.
 *
 * So what happens follows from the program and the scheduler's decisions alone. A decision that differs from the plain
 * course (go on; if that one waits, the next in order of number) is a *turn*: at point number `step`, fiber `to` goes
 * on. A list of turns is a schedule; the same list gives the same run again.
 *
 * How turns are chosen (sched_explore) - by PCT (Burckhardt et al., "A Randomized Scheduler with Probabilistic
 * Guarantees of Finding Bugs", ASPLOS 2010): every fiber gets a random priority, the highest that can run does, and at
 * a few random points the one that runs falls below all others. A bug that needs d such falls in a run of k points with
 * n fibers is found with a probability of at least 1/(n * k^(d-1)) in one run. The other way is a random walk.
 */
#ifndef SCHED_FIBERS_H
#define SCHED_FIBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define MAX_FIBERS 48
#define MAX_KEYS 16
#define MAX_TURNS 4096

struct turn {
	uint32_t step;
	uint8_t to; /* fiber */
	bool expire; /* its wait ends, for its time is over */
};

struct schedule {
	uint64_t seed; /* also decides who of several is woken, and of wake-ups without a reason */
	uint8_t atomics; /* which atomic operations are points: 0 none, 1 strong ones, 2 all */
	struct turn turn[MAX_TURNS];
	uint32_t n;
};

/* Where the scheduler may take the turn away; `place` is for people. Outside of fibers, and while not exploring or
 * following, it does nothing. */
void sched_point(const char *place);
/* The same for atomic operations, of which there are many: only some runs have points there, or at strong ones only
 * (changes that order something). */
void sched_atomic_point(bool strong);

/* Code between two addresses. */
struct code_range {
	const char *from, *to;
};

#define MAX_NEAR 2

/* From now on turns are chosen from `seed`, or taken from a list. near, n: many are at points in one of these. */
void sched_explore(uint64_t seed, const struct code_range *near, unsigned n);
void sched_follow(const struct schedule *s);
/* From now on there are no turns. Returns those that there were. */
const struct schedule *sched_settle(void);

enum sched_result { SCHED_FINE, SCHED_DEADLOCK, SCHED_LIVELOCK, SCHED_MISUSE };

/* Runs main(arg) as fiber 1 with all fibers it makes, until it returns and all have ended. Anything but SCHED_FINE: the
 * fibers are where they were, what they hold is lost (the process is good for no other run), and sched_report() says
 * where. */
enum sched_result sched_run(void (*main)(void *), void *arg);
const char *sched_report(void);
extern FILE *sched_trace; /* not NULL: turns are told there */
uint32_t sched_steps(void); /* points since explore or follow */
uint32_t sched_turns_total(void); /* changes of fiber, likewise */
void sched_locate(const void *address, char *buf, size_t len); /* source line of an address, for people */

/* ---- for sync.c ---- */

extern const void *sched_caller; /* who called the function that is about to be a point, for people */

uint32_t sched_chance(uint32_t n); /* below n; the same in a run that follows this one's turns */
unsigned fiber_self(void); /* number; 0: none */
const void *fiber_handle(unsigned number); /* what fiber_wait waits on for a fiber's end */
unsigned fiber_create(void *(*main)(void *), void *arg);
bool fiber_ended(unsigned number, void **result);
void fiber_forget(unsigned number); /* joined: its number may be given again */
void fiber_detach(unsigned number); /* nobody will join it */
void fiber_name(unsigned number, const char *name);
const char *fiber_name_of(unsigned number);
void **fiber_keys(void); /* of the one that runs */
void fiber_drop_key(unsigned key); /* of all */
void sched_on_exit(void (*fn)(void)); /* called by each fiber that ends */

/* Waits until somebody calls fiber_wake_all(on) or fiber_wake_one(on), or virtual time reaches deadline_ns (0: never).
 * False: the time was over. */
bool fiber_wait(const void *on, const char *place, uint64_t deadline_ns);
void fiber_wake_all(const void *on);
void fiber_wake_one(const void *on); /* any */
bool fiber_waits_on(const void *on); /* does anybody */
void fiber_yield(void); /* lets all others that can run go first */
uint64_t fiber_now(void); /* ns */
_Noreturn void fiber_misuse(const char *what); /* ends sched_run with SCHED_MISUSE */

#endif
