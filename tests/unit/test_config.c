/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_config.c - blkcache.conf: what is taken, and that a mistake is refused with its place and what would be
 * accepted.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/daemon.h"

static char path[128];
static struct daemon_config cfg;
static struct bc_error err;

static void setup(void)
{
	const char *tmp = getenv("TMPDIR");
	int fd;

	snprintf(path, sizeof(path), "%s/test_config.XXXXXX", tmp ? tmp : "/tmp");
	fd = mkstemp(path);
	cr_assert_geq(fd, 0);
	close(fd);
}

static void teardown(void)
{
	unlink(path);
}

TestSuite(config, .init = setup, .fini = teardown, .timeout = 10);

static int load(const char *text)
{
	FILE *f = fopen(path, "w");

	cr_assert(f);
	fputs(text, f);
	fclose(f);
	err = (struct bc_error){ 0 };
	return config_load_file(path, &cfg, &err);
}

/* Loading fails and the message has all of these. */
static void assert_refused(const char *text, const char *place, const char *says)
{
	char where[200];

	cr_assert_eq(load(text), -EINVAL, "accepted: %s", text);
	snprintf(where, sizeof(where), "%s:%s: ", path, place);
	cr_assert(strstr(err.msg, where) == err.msg, "no place in: %s", err.msg);
	cr_assert(strstr(err.msg, says), "'%s' is missing in: %s", says, err.msg);
}

Test(config, every_key_is_taken)
{
	cr_assert_eq(load("# comment\n"
			  "[cache]\n"
			  "size = 10G\n"
			  "line-size=16K ; comment\n"
			  "mode = write-back\n"
			  "\n"
			  "ram = 256M\n"
			  "[daemon]\n"
			  "threads = 64\n"
			  "max-background = 200\n"
			  "allow-other = Yes\n"
			  "log-level = debug"),
		     0, "%s", err.msg);
	cr_assert_eq(cfg.size, 10ull << 30);
	cr_assert_eq(cfg.line_size, 16384);
	cr_assert_eq(cfg.mode, CACHE_MODE_WB);
	cr_assert_eq(cfg.ram, 256u << 20);
	cr_assert_eq(cfg.threads, 64);
	cr_assert_eq(cfg.max_background, 200);
	cr_assert(cfg.allow_other);
	cr_assert_eq(cfg.log_level, LOG_LEVEL_DEBUG);
}

Test(config, empty_file_gives_the_defaults)
{
	memset(&cfg, 0xff, sizeof(cfg));
	cr_assert_eq(load(""), 0);
	cr_assert_eq(cfg.size, 0);
	cr_assert_eq(cfg.line_size, 0);
	cr_assert_eq(cfg.mode, CACHE_MODE_WT);
	cr_assert_eq(cfg.ram, 0);
	cr_assert_eq(cfg.threads, 0);
	cr_assert_eq(cfg.max_background, 0);
	cr_assert_not(cfg.allow_other);
	cr_assert_eq(cfg.log_level, LOG_LEVEL_INFO);
}

Test(config, mistakes_name_file_line_and_remedy)
{
	assert_refused("[cache]\nsizes = 1G\n", "2", "known are size, line-size, mode, ram");
	assert_refused("[daemon]\n\n\nthread = 1\n", "4",
		       "known are threads, max-background, allow-other, survive, patience, log-level");
	assert_refused("[caches]\nsize = 1G\n", "2", "[cache] and [daemon]");
	assert_refused("size = 1G\n", "1", "outside of a section");
	assert_refused("[cache]\nsize = 1.5G\n", "2", "a size such as");
	assert_refused("[cache]\nline-size = 5K\n", "2", "4K, 8K");
	assert_refused("[cache]\nline-size = 128K\n", "2", "4K, 8K");
	assert_refused("[cache]\nmode = fast\n", "2", "wt, wb");
	assert_refused("[daemon]\nthreads = 0\n", "2", "from 1 to");
	assert_refused("[daemon]\nthreads = -3\n", "2", "from 1 to");
	assert_refused("[daemon]\nallow-other = maybe\n", "2", "yes or no");
	assert_refused("[daemon]\nlog-level = loud\n", "2", "error, warn");
	assert_refused("[cache]\nram = 1M\nram = 2M\n", "3", "twice");
	assert_refused("[cache]\njust words\n", "2", "KEY = VALUE");
	assert_refused("[cache\nram = 1M\n", "1", "KEY = VALUE");
}

Test(config, first_mistake_is_the_one_that_is_told)
{
	assert_refused("[cache]\nram = x\nsize = y\n[other]\nz = 1\n", "2", "ram = x");
}

Test(config, overlong_line_is_refused_and_lines_still_count_right)
{
	char text[2000];

	memset(text, 'x', sizeof(text));
	memcpy(text, "[cache]\n# ", 10);
	strcpy(text + 1000, "\nram = y\n");
	cr_assert_eq(load(text), -EINVAL);
	cr_assert(strstr(err.msg, ":2: "), "%s", err.msg);
	cr_assert(strstr(err.msg, "longer than"), "%s", err.msg);
}

Test(config, missing_file_is_fine_and_the_variable_names_it)
{
	setenv(CONFIG_ENV, "/nonexistent/blkcache.conf", 1);
	cr_assert_eq(config_load(&cfg, &err), 0);
	cr_assert_eq(cfg.mode, CACHE_MODE_WT);
	cr_assert_eq(config_load_file("/nonexistent/blkcache.conf", &cfg, &err), -ENOENT);

	setenv(CONFIG_ENV, path, 1);
	cr_assert_eq(load("[cache]\nmode = wo\n"), 0);
	cr_assert_eq(config_load(&cfg, &err), 0);
	cr_assert_eq(cfg.mode, CACHE_MODE_WO);
	cr_assert_eq(load("[cache]\nmode = ow\n"), -EINVAL);
	cr_assert_eq(config_load(&cfg, &err), -EINVAL);
}

/* ---- damage ---- */

static const char whole[] =
	"[cache]\nsize = 10G\nline-size = 16K\nmode = wb\nram = 256M ; much\n\n[daemon]\nthreads = 64\n"
	"max-background = 200\nallow-other = no\nsurvive = no\nlog-level = info\n# the end\n";

static void load_bytes(const char *text, size_t len, int *code)
{
	FILE *f = fopen(path, "w");

	cr_assert(f);
	cr_assert_eq(fwrite(text, 1, len, f), len);
	fclose(f);
	memset(&cfg, 0xff, sizeof(cfg));
	err = (struct bc_error){ 0 };
	*code = config_load_file(path, &cfg, &err);
}

static uint64_t rnd_state;

static size_t rnd(size_t n)
{
	rnd_state = rnd_state * 6364136223846793005u + 1442695040888963407u;
	return (size_t)(rnd_state >> 33) % n;
}

/* A zeroed line would otherwise be one that is not there: its key silently at its default. */
Test(config, zero_bytes_are_refused)
{
	char text[sizeof(whole)];
	int code;

	for (size_t i = 0; i + 1 < sizeof(whole); i++) {
		memcpy(text, whole, sizeof(whole));
		text[i] = '\0';
		load_bytes(text, sizeof(whole) - 1, &code);
		cr_assert_eq(code, -EINVAL, "byte %zu", i);
		cr_assert(strstr(err.msg, path) == err.msg && err.msg[strlen(path)] == ':', "%s", err.msg);
	}
}

/* Whatever happens to the file, it is refused with a message that names it, or what comes of it is in range. (A value
 * that has become another valid one cannot be told.) */
Test(config, damage_is_refused_or_harmless, .timeout = 60)
{
	unsigned refused = 0, taken = 0;

	rnd_state = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)getpid();
	fprintf(stderr, "SEED=%llu\n", (unsigned long long)rnd_state);
	for (unsigned round = 0; round < 5000; round++) {
		char text[2 * sizeof(whole)];
		size_t len = sizeof(whole) - 1, at = rnd(len), n = 1 + rnd(len - at), to;
		int code;

		memcpy(text, whole, len);
		switch (rnd(5)) {
		case 0: /* a bit */
			text[at] ^= (char)(1 << rnd(8));
			break;
		case 1: /* cut off */
			len = at;
			break;
		case 2: /* noise */
			for (size_t i = 0; i < n; i++)
				text[at + i] = (char)rnd(256);
			break;
		case 3: /* a piece is somewhere else, too */
			to = rnd(len - n + 1);
			memmove(text + to, whole + at, n);
			break;
		default: /* the same piece twice */
			memmove(text + at + n, whole + at, len - at);
			len += n;
			break;
		}
		load_bytes(text, len, &code);
		if (code) {
			refused++;
			cr_assert_eq(code, -EINVAL);
			cr_assert(strstr(err.msg, path) == err.msg, "%s", err.msg);
			continue;
		}
		taken++;
		cr_assert(!cfg.line_size || (cfg.line_size >= 4096 && cfg.line_size <= 65536));
		cr_assert(cfg.mode >= CACHE_MODE_WT && cfg.mode <= CACHE_MODE_PT);
		cr_assert(cfg.threads <= 4096 && cfg.max_background <= 4096);
		cr_assert((unsigned)cfg.log_level <= LOG_LEVEL_DEBUG);
	}
	cr_assert(refused > 100 && taken > 100, "%u refused, %u taken", refused, taken);
}
