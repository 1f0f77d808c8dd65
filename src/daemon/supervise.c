/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * supervise.c - the daemon's death costs neither the mount nor anything answered (option `survive`).
 *
 * A small process with one thread stands between the one that called `load` and the daemon, which it forks. It does
 * nothing but hold what must not go with the daemon: /dev/fuse, so that the kernel keeps the connection and the clients
 * wait; the folder below the mount, for backing devices that the mount hides; three memfds, for the RAM buffers, the
 * engine's log of writes and the export's session; and the cache's lock. When the daemon is killed by a signal it forks
 * the next one, which takes over: cache_open_shared() finds what was answered, export_start() goes on with the mount.
 *
 * All is made before the first fork, and so the daemons inherit it: nothing has to be passed around, and what lies in
 * the memfds is only the daemons' business. A descriptor store (systemd's) would do the same for /dev/fuse and the
 * memfds, but only where systemd is, and restarting takes it seconds.
 *
 *     daemon ends by itself      in order, whatever its exit status: we end with the same one
 *     killed, never served       start-up failed: we end by the same signal
 *     killed while it is ending  (a signal to end was passed on): likewise
 *     killed                     the next one is started; after a life that was short, later, and after too many of
 *                                them in a row not any more: something kills each (a request, a lack of memory)
 *
 * When we end the connection ends, as with a daemon on its own. When we are killed, the daemon goes on, on its own.
 * Signals that ask for the end are passed on to the daemon.
 *
 * Costs: about 24 MiB of shared memory for log and session, a record of 32 bytes for each block that becomes dirty.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/daemon.h"

#define LONG_LIFE_MS 500 /* lived that long: what killed it was not what it met first */
#define MAX_SHORT_LIVES 16
#define BACKOFF_MS 50 /* after a short life; doubles ... */
#define BACKOFF_MAX_MS 5000 /* ... up to this */

struct supervisor {
	const char *dir;
	sigset_t set, old;
	pid_t pid;
	bool ending; /* somebody asked for the end */
	unsigned short_lives;
};

/* Above the standard streams: 0 means "none" to those who get them, and the streams are replaced. */
static int move_up(int fd)
{
	int up;

	if (fd < 0 || fd > STDERR_FILENO)
		return fd;
	up = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	close(fd);
	return up;
}

static int make_memory(const char *name, int *fd, struct bc_error *err)
{
	*fd = move_up(memfd_create(name, MFD_CLOEXEC));
	return *fd < 0 ? bc_fail(err, -errno, "no memory that outlives the daemon can be had: %s", strerror(errno)) : 0;
}

/* The file that a daemon locks: opened once, so that nobody gets in between two of them (P10). */
static void open_lock(const char *dir, int *fd)
{
	char path[PATH_MAX];

	*fd = 0;
	if (!cache_exists(dir) || snprintf(path, sizeof(path), "%s/" CACHE_LOCK_FILE, dir) >= (int)sizeof(path))
		return; /* the daemon will say what is wrong */
	*fd = move_up(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	if (*fd < 0)
		*fd = 0;
}

/*
 * The mount may hide backing devices: those below its own mount point. They were opened before it was made; a daemon
 * that follows finds them through this folder (bdev_set_own_mount). The cache it would have to find by name.
 */
static int open_below(const struct daemon_params *params, int *fd, struct bc_error *err)
{
	char dir[PATH_MAX], top[PATH_MAX];
	size_t n;

	*fd = -1;
	if (!realpath(params->dir, dir) || !realpath(params->mountpoint, top))
		return 0; /* the daemon will say what is wrong */
	n = strlen(top);
	if (!strncmp(dir, top, n) && (!dir[n] || dir[n] == '/' || n == 1))
		return bc_fail(err, -EINVAL,
			       "%s: this mount point hides the cache %s, which --survive has to find again; mount the "
			       "volumes on another folder",
			       params->mountpoint, params->dir);
	*fd = move_up(open(top, O_PATH | O_DIRECTORY | O_CLOEXEC));
	return 0;
}

static int make_all(const struct daemon_params *params, struct daemon_survive *s, struct bc_error *err)
{
	int ret = open_below(params, &s->below_fd, err);

	if (!ret)
		ret = export_open_device(&s->fuse_fd, err);
	if (ret)
		return ret;
	open_lock(params->dir, &s->lock_fd);
	s->fuse_fd = move_up(s->fuse_fd);
	ret = make_memory("blkcache-buffers", &s->frames_fd, err);
	if (!ret)
		ret = make_memory("blkcache-log", &s->log_fd, err);
	if (!ret)
		ret = make_memory("blkcache-session", &s->session_fd, err);
	if (ret)
		return ret;
	s->shared = mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s->shared == MAP_FAILED)
		return bc_fail(err, -ENOMEM, "out of memory");
	return 0;
}

/* A caller that reads our streams through a pipe waits for their end. */
static void leave_streams(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	log_to_syslog("blkcache");
	for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
		dup2(null, fd);
	if (null > STDERR_FILENO)
		close(null);
}

/* Until the daemon has ended; passes signals on. */
static int watch(struct supervisor *sv)
{
	int sig, status;

	for (;;) {
		pid_t pid = waitpid(sv->pid, &status, WNOHANG);

		if (pid == sv->pid || (pid < 0 && errno != EINTR))
			return pid < 0 ? 0 : status;
		if (sigwait(&sv->set, &sig) || sig == SIGCHLD)
			continue;
		sv->ending = true;
		kill(sv->pid, sig);
	}
}

/* Ends as the daemon did. */
static void __attribute__((noreturn)) follow(const struct supervisor *sv, int status)
{
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		sigprocmask(SIG_SETMASK, &sv->old, NULL);
		kill(getpid(), WTERMSIG(status));
		sleep(1); /* another thread or a mask we were started with: cannot be, but we must not go on */
	}
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* false: a signal asked for the end meanwhile. */
static bool pause_before_next(struct supervisor *sv)
{
	unsigned ms = BACKOFF_MS << (sv->short_lives < 8 ? sv->short_lives : 8);
	struct timespec t;
	sigset_t set = sv->set;

	if (ms > BACKOFF_MAX_MS)
		ms = BACKOFF_MAX_MS;
	t = (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
	sigdelset(&set, SIGCHLD);
	return sigtimedwait(&set, NULL, &t) < 0;
}

/* The daemon died; should there be another one? */
static bool go_on(struct supervisor *sv, const struct daemon_survive *s, int status, int64_t born)
{
	if (!WIFSIGNALED(status) || sv->ending || !atomic_load(&s->shared->served))
		return false;
	sv->short_lives = now_ms() - born >= LONG_LIFE_MS ? 0 : sv->short_lives + 1;
	log_error("%s: the daemon was killed by signal %d (%s)%s", sv->dir, WTERMSIG(status),
		  strsignal(WTERMSIG(status)),
		  sv->short_lives > MAX_SHORT_LIVES ? ", as those before it; the mount ends"
						    : "; another one takes over");
	if (sv->short_lives > MAX_SHORT_LIVES)
		return false;
	return !sv->short_lives || pause_before_next(sv);
}

static void init_supervisor(struct supervisor *sv, const struct daemon_params *params)
{
	memset(sv, 0, sizeof(*sv));
	sv->dir = params->dir;
	sigemptyset(&sv->set);
	sigaddset(&sv->set, SIGCHLD);
	sigaddset(&sv->set, SIGTERM);
	sigaddset(&sv->set, SIGINT);
	if (params->foreground)
		sigaddset(&sv->set, SIGHUP);
	else
		signal(SIGHUP, SIG_IGN);
	signal(SIGCHLD, SIG_DFL); /* ignored, the daemon's end could not be seen */
	sigprocmask(SIG_BLOCK, &sv->set, &sv->old);
	/* keeps the cache's file system mounted, and shows whose we are */
	move_up(open(params->dir, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static void become_daemon(const struct supervisor *sv, const struct daemon_params *params, bool first)
{
	/* Ctrl-C goes to the terminal's foreground group, which we leave: the supervisor passes it on, once. */
	if (params->foreground)
		setpgid(0, 0);
	else if (!first)
		log_to_syslog("blkcache");
	sigprocmask(SIG_SETMASK, &sv->old, NULL);
}

int daemon_supervise(struct daemon_params *params, struct daemon_survive *s, int report_fd, struct bc_error *err)
{
	struct supervisor sv;
	int ret, status;
	int64_t born;

	memset(s, 0, sizeof(*s));
	ret = make_all(params, s, err);
	if (ret)
		return ret; /* the process ends */
	params->survive = s;
	init_supervisor(&sv, params);
	log_set_level(params->config.log_level);
	protect_process();
	fflush(NULL); /* or each child would print it again */
	for (bool first = true;; first = false) {
		born = now_ms();
		sv.pid = fork();
		if (!sv.pid) {
			s->takeover = !first;
			become_daemon(&sv, params, first);
			return 0;
		}
		if (sv.pid < 0 && first)
			return bc_fail(err, -errno, "cannot fork: %s", strerror(errno));
		if (first) {
			prctl(PR_SET_NAME, "blkcache-keeper");
			if (report_fd >= 0) {
				leave_streams();
				close(report_fd);
			}
		}
		status = sv.pid < 0 ? SIGKILL : watch(&sv); /* no memory for a process: as if killed at once */
		if (!go_on(&sv, s, status, born))
			follow(&sv, status);
	}
}
