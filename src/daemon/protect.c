/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * protect.c - makes this process fit to serve pages of its own machine. Called once, while one thread exists:
 * IO_FLUSHER is inherited by threads that are made later, not given to those that exist.
 *
 * A loop device or a swap file on a volume makes the kernel write back dirty pages *through* this process to gain
 * memory. If the process then waits for memory itself (a page of its own text swapped out, an allocation that waits for
 * write-back), nobody goes on. So its memory is locked, its allocations do not wait for write-back, and the OOM killer
 * takes others.
 *
 * All of it is best effort: a container often forbids some. A daemon without it works, it is only less safe under
 * memory pressure.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/daemon.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

static bool locked_all; /* whatever is mapped is locked; set before there are threads */

#define STACK_BYTES (1u << 20) /* of threads that do not say how much; 8 MiB are usual */
#define WANTED_FILES 65536 /* a channel per device and worker, each a descriptor or two */

/*
 * Is there no limit to what this process may lock? Privilege counts, and what counts as privilege (a capability in
 * which user namespace) only the kernel knows: it is asked to lock a page more than the limit, none of which exists.
 */
static bool may_lock_all(void)
{
	struct rlimit r;
	size_t len;
	void *p;
	bool ok;

	if (getrlimit(RLIMIT_MEMLOCK, &r) < 0)
		return false;
	if (r.rlim_cur == RLIM_INFINITY)
		return true;
	if (r.rlim_cur > (rlim_t)1 << 46)
		return false;
	len = (size_t)(r.rlim_cur + (2u << 12)) & ~(size_t)4095;
	p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return false;
	ok = !mlock2(p, len, MLOCK_ONFAULT);
	munmap(p, len);
	return ok;
}

/*
 * MCL_FUTURE under a limit would be a trap: it succeeds, and what is mapped later (a thread's stack, a ring, the
 * buffers) fails once the limit is reached, under load. So it is used where there is no limit; elsewhere the cache
 * locks what it keeps its data and its map in, as far as that goes (cache_lock_memory()).
 */
static void lock_memory(void)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_MEMLOCK, &unlimited); /* matters where CAP_IPC_LOCK is missing and CAP_SYS_RESOURCE is not */
	/* ONFAULT: thread stacks and arenas are mostly untouched; locking them whole would cost hundreds of MiB. */
	locked_all = may_lock_all() && !mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);
}

bool protect_locked_all(void)
{
	return locked_all;
}

static void raise_open_files(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_cur >= WANTED_FILES)
		return;
	r.rlim_cur = WANTED_FILES;
	if (r.rlim_max != RLIM_INFINITY && r.rlim_max < WANTED_FILES) {
		struct rlimit more = { WANTED_FILES, WANTED_FILES };

		if (!setrlimit(RLIMIT_NOFILE, &more))
			return;
		r.rlim_cur = r.rlim_max;
	}
	if (setrlimit(RLIMIT_NOFILE, &r) < 0)
		log_debug("cannot raise the limit of open files: %s", strerror(errno));
}

/* The lowest score that is allowed: -1000 takes privilege, what we have is kept otherwise. */
static void avoid_oom_killer(void)
{
	static const char *const scores[] = { "-1000", "-999", "-500", "0" };
	int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC), old = 0;
	char now[16] = "";
	bool set = false;

	if (fd < 0)
		return;
	if (read(fd, now, sizeof(now) - 1) > 0)
		sscanf(now, "%d", &old);
	for (size_t i = 0; i < sizeof(scores) / sizeof(scores[0]) && !set; i++) {
		int score = 0;

		sscanf(scores[i], "%d", &score);
		set = score >= old || pwrite(fd, scores[i], strlen(scores[i]), 0) > 0;
	}
	if (!set)
		log_debug("cannot lower oom_score_adj: %s", strerror(errno));
	close(fd);
}

/*
 * Under a limit of address space or data, fewer arenas, each of which costs up to 128 MiB of it, and stacks that are as
 * large as they need to be.
 */
static void save_address_space(void)
{
	struct rlimit as, data;
	pthread_attr_t attr;

	if ((getrlimit(RLIMIT_AS, &as) || as.rlim_cur == RLIM_INFINITY) &&
	    (getrlimit(RLIMIT_DATA, &data) || data.rlim_cur == RLIM_INFINITY))
		return;
	mallopt(M_ARENA_MAX, 1);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_setattr_default_np(&attr);
	pthread_attr_destroy(&attr);
}

void protect_signals(void)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL }, ignore = { .sa_handler = SIG_IGN };
	sigset_t none;

	sigemptyset(&dfl.sa_mask);
	sigemptyset(&ignore.sa_mask);
	sigemptyset(&none);
	sigaction(SIGCHLD, &dfl, NULL);
	sigaction(SIGXFSZ, &ignore, NULL);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

void protect_process(void)
{
	save_address_space();
	raise_open_files();
	avoid_oom_killer();
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		log_debug("cannot become an I/O flusher: %s", strerror(errno));
	lock_memory();
}
