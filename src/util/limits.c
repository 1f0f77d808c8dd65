/* SPDX-License-Identifier: BSD-3-Clause */
/* limits.c - see limits.h. */
#include "util/limits.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define SPARE_FILES 64u
#define GROUP_ROOT "/sys/fs/cgroup"

/* The number in a file of one number; UINT64_MAX if there is none ("max", or no such file). */
static uint64_t read_number(const char *path)
{
	uint64_t n = UINT64_MAX;
	FILE *f = fopen(path, "re");

	if (!f)
		return n;
	if (fscanf(f, "%" SCNu64, &n) != 1)
		n = UINT64_MAX;
	fclose(f);
	return n;
}

/* The least limit of a group and those above it. `group` is its path in the hierarchy, and is used up. */
static uint64_t group_limit(const char *root, char *group, const char *file)
{
	uint64_t least = UINT64_MAX;

	for (;;) {
		char path[PATH_MAX + 64], *slash;
		uint64_t n;

		snprintf(path, sizeof(path), "%s%s/%s", root, group, file);
		n = read_number(path);
		least = n < least ? n : least;
		slash = strrchr(group, '/');
		if (!slash)
			return least;
		*slash = '\0';
	}
}

/* Lines are "0::PATH" (version 2) and "N:CONTROLLER,...:PATH" (version 1). */
static uint64_t control_groups(void)
{
	uint64_t least = UINT64_MAX, n;
	char line[PATH_MAX + 64];
	FILE *f = fopen("/proc/self/cgroup", "re");

	while (f && fgets(line, sizeof(line), f)) {
		char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;

		if (!path)
			continue;
		*controllers++ = *path++ = '\0';
		path[strcspn(path, "\n")] = '\0';
		if (!*controllers)
			n = group_limit(GROUP_ROOT, path, "memory.max");
		else if (strstr(controllers, "memory"))
			n = group_limit(GROUP_ROOT "/memory", path, "memory.limit_in_bytes");
		else
			continue;
		least = n < least ? n : least;
	}
	if (f)
		fclose(f);
	return least;
}

static uint64_t resource_limit(int resource)
{
	struct rlimit r;

	return getrlimit(resource, &r) || r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)r.rlim_cur;
}

uint64_t limits_memory(const char **what)
{
	const struct {
		uint64_t bytes;
		const char *what;
	} limits[] = {
		{ (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), "this machine has" },
		{ control_groups(), "its control group may have" },
		{ resource_limit(RLIMIT_AS), "its limit of address space (ulimit -v) is" },
		{ resource_limit(RLIMIT_DATA), "its limit of data (ulimit -d) is" },
	};
	size_t least = 0;

	for (size_t i = 1; i < sizeof(limits) / sizeof(limits[0]); i++)
		if (limits[i].bytes < limits[least].bytes)
			least = i;
	if (what)
		*what = limits[least].what;
	return limits[least].bytes;
}

/* A line of /proc/meminfo, in bytes; `missing` if it cannot be read. */
static uint64_t meminfo(const char *key, uint64_t missing)
{
	uint64_t kib = 0;
	size_t len = strlen(key);
	bool found = false;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && !found && fgets(line, sizeof(line), f))
		found = !strncmp(line, key, len) && sscanf(line + len, ": %" SCNu64, &kib) == 1;
	if (f)
		fclose(f);
	return found ? kib * 1024 : missing;
}

uint64_t limits_memory_available(void)
{
	uint64_t all = limits_memory(NULL), available = meminfo("MemAvailable", UINT64_MAX);

	return available < all ? available : all;
}

/* Is there room for `bytes` above `used`? */
static bool fits(uint64_t used, uint64_t bytes, uint64_t limit)
{
	return limit == UINT64_MAX || (used <= limit && bytes <= limit - used);
}

bool limits_room_for(size_t bytes)
{
	uint64_t space = resource_limit(RLIMIT_AS), data = resource_limit(RLIMIT_DATA), pages[6];
	FILE *f;
	int n;

	if (read_number("/proc/sys/vm/overcommit_memory") == 2 &&
	    !fits(meminfo("Committed_AS", 0), bytes, meminfo("CommitLimit", UINT64_MAX)))
		return false;
	if (space == UINT64_MAX && data == UINT64_MAX)
		return true;
	f = fopen("/proc/self/statm", "re");
	if (!f)
		return false; /* as with the last descriptor */
	n = fscanf(f, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &pages[0], &pages[1],
		   &pages[2], &pages[3], &pages[4], &pages[5]);
	fclose(f);
	return n == 6 && fits(pages[0] * (uint64_t)sysconf(_SC_PAGESIZE), bytes, space) &&
	       fits(pages[5] * (uint64_t)sysconf(_SC_PAGESIZE), bytes, data);
}

unsigned limits_spare_files(void)
{
	uint64_t all = resource_limit(RLIMIT_NOFILE);

	return all / 4 < SPARE_FILES ? (unsigned)(all / 4) : SPARE_FILES;
}

bool limits_is_spare_file(int fd)
{
	uint64_t all = resource_limit(RLIMIT_NOFILE);

	return all != UINT64_MAX && (uint64_t)fd + limits_spare_files() >= all;
}
