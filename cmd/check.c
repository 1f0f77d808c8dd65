/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * check.c - blkcache check: verifies a stopped cache; changes nothing. Findings go to stdout, one a line.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"
#include "progress.h"

struct args {
	char *dir;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	return parse_dir_arg(key, arg, &a->dir, NULL, NULL);
}

static const struct argp argp = {
	NULL,
	parse,
	"DIR",
	"Verify the journal of a stopped cache, and every cached block against its checksum. Changes nothing."
	"\v"
	"Exit codes: 0 all is well; 3 damage that costs no data (clean blocks, which are read again from the backing "
	"device, or epochs that "
	"were never flushed); 1 dirty blocks are damaged, or the journal is, or the check could not be made.",
	NULL,
	NULL,
	NULL,
};

static void print_finding(void *ctx, const char *what)
{
	progress_clear(ctx);
	say("%s", what);
}

static int judge(const char *dir, const struct cache_check_report *r)
{
	char found[200] = "all is well";
	bool well = !r->bad_clean_blocks && !r->bad_dirty_blocks && !r->journal_errors && !r->epochs_dropped;

	if (!well)
		snprintf(found, sizeof(found),
			 "%llu bad clean blocks, %llu bad dirty blocks, %llu journal errors, %llu unfinished epochs",
			 (unsigned long long)r->bad_clean_blocks, (unsigned long long)r->bad_dirty_blocks,
			 (unsigned long long)r->journal_errors, (unsigned long long)r->epochs_dropped);
	say("%s: %llu lines, %llu blocks checked: %s", dir, (unsigned long long)r->lines, (unsigned long long)r->blocks,
	    found);
	if (well)
		return CMD_OK;
	fflush(stdout);
	if (r->bad_dirty_blocks)
		return fail(
			"%s: %llu dirty blocks are damaged, their data is lost; the other blocks can still be flushed",
			dir, (unsigned long long)r->bad_dirty_blocks);
	if (r->journal_errors)
		return fail("%s: the journal is damaged; flush what still loads, then make the cache anew", dir);
	return CMD_LEFT;
}

/* A daemon that is on its way out is waited for. */
static int refuse_loaded(const char *dir)
{
	int code = CMD_OK;
	json_t *status;

	if (!cache_exists(dir))
		return CMD_OK; /* cache_check() says what is wrong */
	status = loaded_status(dir, &code);
	if (status)
		code = fail("%s: is loaded; 'blkcache stop %s' ends that, then it can be checked", dir, dir);
	json_decref(status);
	return code;
}

int cmd_check(int argc, char **argv)
{
	struct args a = { 0 };
	struct cache_check_report report = { 0 };
	struct bc_error err = { 0 };
	struct progress p;
	int code, ret;

	parse_args(&argp, argc, argv, &a);
	interrupts_catch();
	code = refuse_loaded(a.dir);
	if (code) {
		free(a.dir);
		return code;
	}
	progress_init(&p, "checking");
	ret = cache_check(a.dir, &report, print_finding, &p, progress_from_engine, &err);
	progress_clear(&p);
	if (ret == -EINTR)
		code = (fail("%s: interrupted; not everything was checked", a.dir), CMD_INTERRUPTED);
	else
		code = ret ? fail_err(&err) : judge(a.dir, &report);
	free(a.dir);
	return code;
}
