/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_names.c - names of volumes: which ones may be given, and that a cache of an earlier release, with names that may
 * not be given any more, can still be managed by them.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "blkcache/control.h"
#include "blkcache/journal.h"
#include "daemon/daemon.h"
#include "engine_util.h"
#include "util/utf8.h"

#define OLD "stra\337e.img"

Test(names, which_may_be_given)
{
	static const char *const good[] = { "a",
					    "vm.img",
					    "stra\xc3\x9f"
					    "e",
					    "with blank",
					    "...",
					    "\xf0\x9f\x98\x80" },
				 *const bad[] = { "",
						  ".",
						  "..",
						  "a/b",
						  "/",
						  "a\nb",
						  "a\tb",
						  "\x7f",
						  OLD,
						  "\xc3",
						  "\xed\xa0\x80",
						  "\xc0\xaf",
						  "\xf4\x90\x80\x80" };
	char longest[JOURNAL_NAME_MAX + 1];
	struct bc_error err;

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		cr_expect_eq(cache_check_volume_name(good[i], &err), 0, "%s: %s", good[i], err.msg);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&err, 0, sizeof(err));
		cr_expect_eq(cache_check_volume_name(bad[i], &err), -EINVAL, "%s", bad[i]);
		cr_expect(err.msg[0]);
	}
	memset(longest, 'n', sizeof(longest));
	longest[JOURNAL_NAME_MAX - 1] = '\0';
	cr_expect_eq(cache_check_volume_name(longest, &err), 0);
	memset(longest, 'n', sizeof(longest));
	longest[JOURNAL_NAME_MAX] = '\0';
	cr_expect_eq(cache_check_volume_name(longest, &err), -EINVAL);
}

Test(names, utf8_is_told_from_other_bytes)
{
	cr_expect(utf8_valid("", 0));
	cr_expect(utf8_valid("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z", 10));
	cr_expect_not(utf8_valid("\xe2\x82", 2));
	cr_expect_not(utf8_valid("\xe0\x80\xaf", 3));
	cr_expect_not(utf8_valid("\xf0\x80\x80\xaf", 4));
	cr_expect_not(utf8_valid("\x80", 1));
}

static json_t *ask(struct cache *c, json_t *request)
{
	struct bc_error err = { 0 };
	json_t *result = manage_run(c, NULL, request, NULL, &err);

	cr_assert(result, "%s", err.msg);
	json_decref(request);
	return result;
}

static char backing[PATH_MAX];

static int keep_volume(void *ctx, const struct journal_volume *jv)
{
	struct journal_volume *kept = ctx;

	*kept = *jv;
	snprintf(backing, sizeof(backing), "%s", jv->backing);
	kept->backing = backing;
	kept->label = NULL; /* such a release knew nothing of identities; and they are the journal's, only lent */
	kept->witness = NULL;
	kept->nwitness = 0;
	return 0;
}

static int believe(void *ctx, const struct journal_block *blocks, uint32_t n)
{
	(void)ctx;
	(void)blocks;
	(void)n;
	return 1;
}

/* As a release that took any bytes would have left it. */
static void give_old_name(struct rig *r)
{
	struct journal_load_ops ops = { .volume = keep_volume, .verify = believe };
	struct journal_load_report report;
	struct journal_volume jv = { 0 };
	struct bc_error err = { 0 };
	struct journal *j;

	cr_assert_eq(journal_open(r->dir, false, &j, &err), 0, "%s", err.msg);
	cr_assert_eq(journal_load(j, &ops, &jv, &report, &err), 0, "%s", err.msg);
	memset(jv.name, 0, sizeof(jv.name));
	memcpy(jv.name, OLD, sizeof(OLD));
	cr_assert_eq(journal_volume_put(j, &jv, &err), 0, "%s", err.msg);
	journal_close(j);
}

Test(names, old_ones_still_work, .timeout = 60)
{
	struct json_daemon_view view = { 0 };
	struct bc_error err = { 0 };
	json_t *status, *shown;
	char *text;
	struct rig r;

	rig_create(&r, 4 << 20, 4096, 1 << 20, CACHE_MODE_WT);
	rig_open(&r);
	rig_add(&r, "", 1 << 20, CACHE_MODE_WT);
	rig_close(&r);
	give_old_name(&r);
	cr_assert_eq(cache_open(r.dir, CACHE_OPEN_NO_VOLUMES, &r.c, &r.report, &err), 0, "%s", err.msg);

	/* what programs read is valid all the same */
	status = json_status(r.c, &view);
	shown = control_printable(status);
	text = json_dumps(shown, 0);
	cr_assert(text && strstr(text, "stra\xef\xbf\xbd"
				       "e.img"));
	free(text);
	json_decref(shown);
	json_decref(status);

	json_decref(ask(r.c, json_pack("{s:s,s:o,s:[[s,s]]}", "cmd", "set", "volume", json_string_nocheck(OLD),
				       "values", "mode", "wb")));
	status = ask(r.c, json_pack("{s:s,s:[o,s]}", "cmd", "get", "names", json_string_nocheck(OLD), "mode"));
	cr_expect_str_eq(
		json_string_value(json_object_get(json_array_get(json_object_get(status, "tunables"), 0), "value")),
		"wb");
	json_decref(status);
	json_decref(ask(r.c, json_pack("{s:s,s:o}", "cmd", "remove", "name", json_string_nocheck(OLD))));
	cr_assert_eq(cache_close(r.c, &err), 0, "%s", err.msg);
	r.c = NULL;
	rig_destroy(&r);
}
