/* SPDX-License-Identifier: BSD-3-Clause */
/* limits.c - see limits.h. */
#include "util/limits.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
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

uint64_t limits_memory_available(void)
{
	uint64_t all = limits_memory(NULL), kib = UINT64_MAX;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib < all / 1024 ? kib * 1024 : all;
}

bool limits_room_for(size_t bytes)
{
	/* private and writable, so that it counts towards the limit of data too */
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	munmap(p, bytes);
	return true;
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
