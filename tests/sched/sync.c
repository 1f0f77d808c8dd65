/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sync.c - threads, locks, conditions, sleeps and clocks of the library, as the scheduler's (linked with --wrap).
 * SQLite is a library of its own and keeps the real ones, which nobody contends for: one connection, under the
 * journal's lock.
 *
 * A lock's state lies in its own memory, which starts as zeros, as PTHREAD_MUTEX_INITIALIZER and pthread_mutex_init
 * leave it. What POSIX leaves undefined ends the run: unlocking what one has not locked, destroying what is in use.
 *
 * A condition wakes any of its waiters, and now and then one that nobody woke.
 */
#include "sync.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "fibers.h"

#define CALLER (sched_caller = __builtin_return_address(0))
#define SPURIOUS 200 /* one wait in so many ends without a reason */

/* Locks of the recorders: nobody is taken off while he has one, so they are no points. */
static const void *exempt[4];
static unsigned nexempt;
static bool learning;

void sync_exempt(bool learn)
{
	learning = learn;
}

static bool is_exempt(const void *m)
{
	for (unsigned i = 0; i < nexempt; i++)
		if (exempt[i] == m)
			return true;
	if (learning && nexempt < 4)
		exempt[nexempt++] = m;
	return learning;
}

/* ---- mutexes ---- */

static uint64_t to_ns(const struct timespec *t)
{
	return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec;
}

struct mutex {
	unsigned owner;
};
_Static_assert(sizeof(struct mutex) <= sizeof(pthread_mutex_t), "fits");

static void acquire(struct mutex *m, const char *place)
{
	while (m->owner) {
		if (m->owner == fiber_self())
			fiber_misuse("a mutex is locked twice");
		fiber_wait(m, place, 0);
	}
	m->owner = fiber_self();
}

static void release(struct mutex *m)
{
	if (m->owner != fiber_self())
		fiber_misuse("a mutex is unlocked that is not locked");
	m->owner = 0;
	fiber_wake_all(m);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
	struct mutex *m = (struct mutex *)mutex;

	if (is_exempt(m) || !fiber_self())
		return 0;
	CALLER;
	sched_point("pthread_mutex_lock");
	acquire(m, "pthread_mutex_lock");
	return 0;
}

int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
	struct mutex *m = (struct mutex *)mutex;

	(void)clock;
	CALLER;
	sched_point("pthread_mutex_clocklock");
	while (m->owner)
		if (!fiber_wait(m, "pthread_mutex_clocklock", to_ns(until)))
			return ETIMEDOUT;
	m->owner = fiber_self();
	return 0;
}

int __wrap_pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until)
{
	return __wrap_pthread_mutex_clocklock(mutex, CLOCK_REALTIME, until);
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
	struct mutex *m = (struct mutex *)mutex;

	if (is_exempt(m) || !fiber_self())
		return 0;
	CALLER;
	sched_point("pthread_mutex_trylock");
	if (m->owner)
		return EBUSY;
	m->owner = fiber_self();
	return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
	struct mutex *m = (struct mutex *)mutex;

	if (is_exempt(m) || !fiber_self())
		return 0;
	CALLER;
	release(m);
	sched_point("pthread_mutex_unlock");
	return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex)
{
	struct mutex *m = (struct mutex *)mutex;

	CALLER;
	if (fiber_self() && (m->owner || fiber_waits_on(m)))
		fiber_misuse("a mutex is destroyed while it is locked");
	return 0;
}

/* ---- conditions ---- */

static int wait(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t deadline)
{
	struct mutex *m = (struct mutex *)mutex;
	bool woken = true;

	if (sched_chance(SPURIOUS)) {
		release(m);
		woken = fiber_wait(cond, "pthread_cond_wait", deadline);
	} else {
		release(m);
		sched_point("pthread_cond_wait (woken by nobody)");
	}
	acquire(m, "pthread_cond_wait (locking again)");
	return woken ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	CALLER;
	return wait(cond, mutex, 0);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
	CALLER;
	return wait(cond, mutex, to_ns(until));
}

int __wrap_pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock,
				  const struct timespec *until)
{
	(void)clock;
	CALLER;
	return wait(cond, mutex, to_ns(until));
}

int __wrap_pthread_cond_signal(pthread_cond_t *cond)
{
	CALLER;
	fiber_wake_one(cond);
	sched_point("pthread_cond_signal");
	return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
	CALLER;
	fiber_wake_all(cond);
	sched_point("pthread_cond_broadcast");
	return 0;
}

int __wrap_pthread_cond_destroy(pthread_cond_t *cond)
{
	CALLER;
	if (fiber_self() && fiber_waits_on(cond))
		fiber_misuse("a condition is destroyed while somebody waits for it");
	return 0;
}

/* ---- read-write locks ---- */

struct rwlock {
	unsigned writer, readers, waiting; /* waiting: writers */
	bool writers_first;
};
_Static_assert(sizeof(struct rwlock) <= sizeof(pthread_rwlock_t), "fits");

int __wrap_pthread_rwlock_init(pthread_rwlock_t *lock, const pthread_rwlockattr_t *attr)
{
	struct rwlock *l = (struct rwlock *)lock;
	int kind = PTHREAD_RWLOCK_PREFER_READER_NP;

	if (attr)
		pthread_rwlockattr_getkind_np(attr, &kind);
	memset(lock, 0, sizeof *lock);
	l->writers_first = kind == PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP;
	return 0;
}

int __wrap_pthread_rwlock_destroy(pthread_rwlock_t *lock)
{
	struct rwlock *l = (struct rwlock *)lock;

	CALLER;
	if (fiber_self() && (l->writer || l->readers || fiber_waits_on(l)))
		fiber_misuse("a read-write lock is destroyed while it is locked");
	return 0;
}

static bool may_read(const struct rwlock *l)
{
	return !l->writer && !(l->writers_first && l->waiting);
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *lock)
{
	struct rwlock *l = (struct rwlock *)lock;

	CALLER;
	sched_point("pthread_rwlock_rdlock");
	while (!may_read(l))
		fiber_wait(l, "pthread_rwlock_rdlock", 0);
	l->readers++;
	return 0;
}

int __wrap_pthread_rwlock_tryrdlock(pthread_rwlock_t *lock)
{
	struct rwlock *l = (struct rwlock *)lock;

	CALLER;
	sched_point("pthread_rwlock_tryrdlock");
	if (!may_read(l))
		return EBUSY;
	l->readers++;
	return 0;
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock)
{
	struct rwlock *l = (struct rwlock *)lock;

	CALLER;
	sched_point("pthread_rwlock_wrlock");
	if (l->writer && l->writer == fiber_self())
		fiber_misuse("a read-write lock is locked twice");
	l->waiting++;
	while (l->writer || l->readers)
		fiber_wait(l, "pthread_rwlock_wrlock", 0);
	l->waiting--;
	l->writer = fiber_self();
	return 0;
}

int __wrap_pthread_rwlock_trywrlock(pthread_rwlock_t *lock)
{
	struct rwlock *l = (struct rwlock *)lock;

	CALLER;
	sched_point("pthread_rwlock_trywrlock");
	if (l->writer || l->readers)
		return EBUSY;
	l->writer = fiber_self();
	return 0;
}

int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *lock)
{
	struct rwlock *l = (struct rwlock *)lock;

	CALLER;
	if (l->writer && l->writer == fiber_self())
		l->writer = 0;
	else if (l->readers)
		l->readers--;
	else
		fiber_misuse("a read-write lock is unlocked that is not locked");
	fiber_wake_all(l);
	sched_point("pthread_rwlock_unlock");
	return 0;
}

/* ---- threads ---- */

static struct {
	bool used;
	void (*destructor)(void *);
} keys[MAX_KEYS];

static void run_destructors(void)
{
	void **values = fiber_keys();

	for (unsigned i = 0; i < MAX_KEYS; i++) {
		void *v = values[i];

		values[i] = NULL;
		if (keys[i].used && keys[i].destructor && v)
			keys[i].destructor(v);
	}
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*main)(void *), void *arg)
{
	int detached = PTHREAD_CREATE_JOINABLE;
	unsigned n;

	if (attr)
		pthread_attr_getdetachstate(attr, &detached);
	CALLER;
	sched_on_exit(run_destructors);
	n = fiber_create(main, arg);
	if (!n)
		return EAGAIN;
	*t = n;
	if (detached == PTHREAD_CREATE_DETACHED)
		fiber_detach(n);
	sched_point("pthread_create");
	return 0;
}

int __wrap_pthread_join(pthread_t t, void **result)
{
	unsigned n = (unsigned)t;

	CALLER;
	sched_point("pthread_join");
	while (!fiber_ended(n, result))
		fiber_wait(fiber_handle(n), "pthread_join", 0);
	fiber_forget(n);
	return 0;
}

int __wrap_pthread_detach(pthread_t t)
{
	fiber_detach((unsigned)t);
	return 0;
}

pthread_t __wrap_pthread_self(void)
{
	return fiber_self();
}

int __wrap_pthread_setname_np(pthread_t t, const char *name)
{
	fiber_name((unsigned)t, name); /* all are literals */
	return 0;
}

int __wrap_pthread_key_create(pthread_key_t *key, void (*destructor)(void *))
{
	for (unsigned i = 0; i < MAX_KEYS; i++) {
		if (!keys[i].used) {
			keys[i].used = true;
			keys[i].destructor = destructor;
			*key = i;
			return 0;
		}
	}
	return EAGAIN;
}

int __wrap_pthread_key_delete(pthread_key_t key)
{
	keys[key].used = false;
	fiber_drop_key(key);
	return 0;
}

void *__wrap_pthread_getspecific(pthread_key_t key)
{
	return fiber_keys()[key];
}

int __wrap_pthread_setspecific(pthread_key_t key, const void *value)
{
	fiber_keys()[key] = (void *)(uintptr_t)value;
	return 0;
}

/* ---- time ---- */

static int sleep_ns(uint64_t ns)
{
	if (fiber_self())
		fiber_wait(fiber_handle(0), "sleep", fiber_now() + ns + 1); /* nobody wakes that */
	return 0;
}

int __wrap_nanosleep(const struct timespec *t, struct timespec *left)
{
	(void)left;
	CALLER;
	return sleep_ns(to_ns(t));
}

int __wrap_clock_nanosleep(clockid_t clock, int flags, const struct timespec *t, struct timespec *left)
{
	uint64_t ns = to_ns(t);

	(void)clock, (void)left;
	CALLER;
	return sleep_ns(!(flags & TIMER_ABSTIME) ? ns : ns > fiber_now() ? ns - fiber_now() : 0);
}

int __wrap_usleep(useconds_t us)
{
	CALLER;
	return sleep_ns(us * 1000ull);
}

int __wrap_sched_yield(void)
{
	CALLER;
	fiber_yield();
	return 0;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
	uint64_t ns = fiber_now();

	(void)clock;
	t->tv_sec = (time_t)(ns / 1000000000u);
	t->tv_nsec = (long)(ns % 1000000000u);
	return 0;
}

/* The same ids each time. */
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags)
{
	(void)flags;
	memset(buf, 0x42, len);
	return (ssize_t)len;
}
