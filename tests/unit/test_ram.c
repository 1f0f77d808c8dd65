/* SPDX-License-Identifier: BSD-3-Clause */
/* test_ram.c - a setting of `ram` that cannot be had: who takes less, who refuses, and that it can be taken back. */
#include "engine_util.h"

#include <errno.h>
#include <sys/resource.h>

#include "util/limits.h"

/* What a cache has whose machine has become smaller: `set` would refuse it. */
static void set_in_journal(struct rig *r, const char *value)
{
	struct bc_error err = { 0 };

	must(!journal_setting_put(r->c->journal, "ram", value, &err), "%s", err.msg);
}

static struct cache *open_brief(struct rig *r, unsigned flags)
{
	struct bc_error err = { 0 };
	struct cache *c = NULL;

	must(!cache_open(r->dir, flags, &c, NULL, &err), "%s", err.msg);
	return c;
}

Test(ram, more_than_a_machine_has_is_not_accepted, .timeout = 60)
{
	struct cache_create_params p = { .size_bytes = 4 * MIB, .ram_bytes = 1ull << 40 };
	struct bc_error err = { 0 };
	char dir[PATH_MAX];
	struct rig r;

	rig_create(&r, 4 * MIB, 4096, MIB, CACHE_MODE_WB);
	rig_open(&r);
	must(cache_set(r.c, NULL, "ram", "1T", NULL, &err) == -EINVAL, "accepted");
	must(strstr(err.msg, "less"), "no remedy in: %s", err.msg);
	snprintf(dir, sizeof dir, "%s/other", r.top);
	must(cache_create(dir, &p, &err) == -EINVAL, "create accepted it");
	p.ram_bytes = 1ull << 43; /* beyond what the setting can say at all */
	must(cache_create(dir, &p, &err) == -EINVAL, "create accepted it");
	must(access(dir, F_OK), "the refused cache was made");
	rig_set(&r, "ram", "2M");
	rig_destroy(&r);
}

Test(ram, a_setting_that_cannot_be_had_locks_nobody_out, .timeout = 60)
{
	struct bc_error err = { 0 };
	struct cache_open_report report;
	struct cache_info info;
	char data[4096];
	struct cache *c;
	struct rig r;

	rig_create(&r, 4 * MIB, 4096, MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_add(&r, "", MIB, CACHE_MODE_WB);
	memset(data, 'x', sizeof data);
	must(!volume_write(r.v[0], data, sizeof data, 0, false), "write");
	set_in_journal(&r, "2T");
	rig_close(&r);

	c = open_brief(&r, CACHE_OPEN_NO_VOLUMES);
	cache_get_info(c, &info);
	must(info.dirty_bytes == 4096 && info.ram_set_bytes == 2ull << 40, "not seen");
	must(c->ram_bytes <= 64 * MIB, "a moment's business took %llu bytes", (unsigned long long)c->ram_bytes);
	must(!cache_close(c, &err), "%s", err.msg);

	c = open_brief(&r, CACHE_OPEN_BRIEF);
	must(!cache_write_back(c, NULL, NULL, NULL, &err), "%s", err.msg);
	must(c->ram_bytes <= 64 * MIB, "a flush took %llu bytes", (unsigned long long)c->ram_bytes);
	must(!cache_set(c, NULL, "ram", "1M", NULL, &err), "%s", err.msg);
	set_in_journal(&(struct rig){ .c = c }, "2T");
	must(!cache_close(c, &err), "%s", err.msg);

	/* a load takes what there is; here not even all of that, to keep the test small */
	must(!setrlimit(RLIMIT_AS, &(struct rlimit){ 1u << 30, RLIM_INFINITY }), "setrlimit");
	must(!cache_open(r.dir, 0, &c, &report, &err), "%s", err.msg);
	must(c->ram_bytes >= MIB && c->ram_bytes < 1u << 30, "it has %llu bytes", (unsigned long long)c->ram_bytes);
	must(strstr(report.notes, "ram is set to 2.0 TiB"), "notes: %s", report.notes);
	must(!cache_close(c, &err), "%s", err.msg);
	rig_destroy(&r);
}

Test(ram, who_takes_over_takes_what_there_was, .timeout = 60)
{
	struct cache_shared shared = { .frames_fd = memfd_create("frames", MFD_CLOEXEC),
				       .log_fd = memfd_create("log", MFD_CLOEXEC) };
	struct bc_error err = { 0 };
	struct cache *c;
	struct rig r;

	rig_create(&r, 4 * MIB, 4096, 2 * MIB, CACHE_MODE_WB);
	must(!cache_open_shared(r.dir, 0, NULL, &shared, &c, NULL, &err), "%s", err.msg);
	set_in_journal(&(struct rig){ .c = c }, "2T");
	must(!cache_close(c, &err), "%s", err.msg);
	shared.takeover = true;
	must(!cache_open_shared(r.dir, 0, NULL, &shared, &c, NULL, &err), "%s", err.msg);
	must(c->ram_bytes == 2 * MIB, "it has %llu bytes", (unsigned long long)c->ram_bytes);
	must(!cache_close(c, &err), "%s", err.msg);
	rig_destroy(&r);
}

Test(limits, memory_is_what_the_least_limit_leaves)
{
	uint64_t all = limits_memory(NULL);
	const char *what;

	must(all >= 64 * MIB && limits_memory_available() <= all, "%llu", (unsigned long long)all);
	must(!setrlimit(RLIMIT_DATA, &(struct rlimit){ 48 * MIB, RLIM_INFINITY }), "setrlimit");
	must(limits_memory(&what) == 48 * MIB && strstr(what, "ulimit -d"), "%s", what);
	must(limits_room_for(MIB) && !limits_room_for(64 * MIB), "room");
}

Test(limits, the_last_descriptors_are_spare)
{
	must(!setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 40, 40 }), "setrlimit");
	must(limits_spare_files() == 10, "%u", limits_spare_files());
	must(limits_is_spare_file(30) && limits_is_spare_file(39) && !limits_is_spare_file(29), "which");
}
