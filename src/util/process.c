/* SPDX-License-Identifier: BSD-3-Clause */
/* process.c - see process.h. Any thread. */
#include "util/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PF_EXITING 0x4u /* include/linux/sched.h; the `flags` of /proc/PID/stat */

struct stat_line {
	char comm[64], state;
	unsigned flags;
};

/* Reads a small file of /proc whole; false if it is not there. */
static bool read_file(const char *path, char *buf, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, len - 1);

	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	return n > 0;
}

bool process_parse_stat(const char *text, char *state, unsigned *flags)
{
	const char *end = strrchr(text, ')'); /* the name may have any of these, what follows has none */

	return end && sscanf(end + 1, " %c %*d %*d %*d %*d %*d %u", state, flags) == 2;
}

/* pid (comm) state ppid pgrp session tty tpgid flags */
static bool read_stat(const char *path, struct stat_line *s)
{
	char text[1024];
	const char *open_, *close_;

	memset(s, 0, sizeof(*s));
	if (!read_file(path, text, sizeof(text)) || !process_parse_stat(text, &s->state, &s->flags))
		return false;
	open_ = strchr(text, '(');
	close_ = strrchr(text, ')');
	if (open_ && open_ < close_)
		snprintf(s->comm, sizeof(s->comm), "%.*s", (int)(close_ - open_ - 1), open_ + 1);
	return true;
}

bool process_lives(int pid)
{
	struct stat_line s;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (access(path, F_OK))
		return access("/proc/self/stat", R_OK) != 0;
	return read_stat(path, &s) && s.state != 'Z' && s.state != 'X' && !(s.flags & PF_EXITING);
}

/* A thread that waits in the kernel where no signal reaches it; how many there are, and where one of them waits. */
static unsigned count_stuck(int pid, unsigned *threads, char *where, size_t len)
{
	char path[96];
	struct stat_line s;
	struct dirent *e;
	unsigned stuck = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	where[0] = 0;
	*threads = 0;
	while (dir && (e = readdir(dir))) {
		int tid = atoi(e->d_name);

		snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
		if (tid <= 0 || !read_stat(path, &s))
			continue;
		++*threads;
		if (s.state != 'D' || stuck++)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d/wchan", pid, tid);
		if (!read_file(path, where, len) || !strcmp(where, "0"))
			where[0] = 0;
	}
	if (dir)
		closedir(dir);
	return stuck;
}

/* The cgroup it is in was frozen, as `docker pause` does. */
static bool is_frozen(int pid)
{
	char path[64], where[64];

	snprintf(path, sizeof(path), "/proc/%d/wchan", pid);
	return read_file(path, where, sizeof(where)) && (strstr(where, "freezer") || strstr(where, "refrigerator"));
}

void process_explain(int pid, char *buf, size_t len)
{
	char path[64], where[64];
	struct stat_line s;
	unsigned threads, stuck;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (pid <= 0 || !read_stat(path, &s)) {
		snprintf(buf, len, "its process cannot be seen from here, or has just ended");
		return;
	}
	if (s.state == 'T') {
		snprintf(buf, len, "process %d (%s) was stopped by a signal; 'kill -CONT %d' lets it go on", pid,
			 s.comm, pid);
		return;
	}
	if (s.state == 't') {
		snprintf(buf, len, "process %d (%s) is held by a debugger", pid, s.comm);
		return;
	}
	if (s.state == 'Z' || s.state == 'X' || s.flags & PF_EXITING) {
		snprintf(buf, len, "process %d (%s) has died and its last I/O has not ended; see 'dmesg'", pid, s.comm);
		return;
	}
	if (is_frozen(pid)) {
		snprintf(buf, len, "process %d (%s) is frozen, with its container or cgroup; thaw that", pid, s.comm);
		return;
	}
	stuck = count_stuck(pid, &threads, where, sizeof(where));
	if (stuck)
		snprintf(buf, len,
			 "process %d (%s, state D): %u of its %u threads wait for a device in the kernel%s%s%s; they "
			 "go on "
			 "when it answers, see 'dmesg'",
			 pid, s.comm, stuck, threads, *where ? " (" : "", where, *where ? ")" : "");
	else
		snprintf(buf, len, "process %d (%s) is alive (state %c); try again later", pid, s.comm, s.state);
}
