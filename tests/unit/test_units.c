/* SPDX-License-Identifier: BSD-3-Clause */
/* test_units.c - sizes and times as users write them, error messages, checksums, deadlines. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "blkcache/error.h"
#include "blkcache/units.h"
#include "util/crc.h"
#include "util/deadline.h"
#include "util/process.h"

static void expect_size(const char *text, uint64_t want)
{
	uint64_t v = 1;

	cr_expect_eq(units_parse_size(text, &v), 0, "%s was refused", text);
	cr_expect_eq(v, want, "%s was read as %llu", text, (unsigned long long)v);
}

Test(units, sizes_are_binary)
{
	expect_size("0", 0);
	expect_size("4096", 4096);
	expect_size("512B", 512);
	expect_size("4K", 4096);
	expect_size("4k", 4096);
	expect_size("64M", 64 << 20);
	expect_size("64MB", 64 << 20);
	expect_size("64MiB", 64 << 20);
	expect_size("3G", UINT64_C(3) << 30);
	expect_size("16777215T", UINT64_C(16777215) << 40);
	expect_size("18446744073709551615", UINT64_MAX);
}

/* A size that is not understood must be refused, never be taken for another one; the result stays untouched. */
Test(units, bad_sizes_are_refused)
{
	static const char *const bad[] = { "",    " ",   "K",   "-1",  "+1",  " 1",   "1 ", "1.5G", "1,5G", "0x10",
					   "1e3", "1KK", "1Ki", "1iB", "1BB", "1KBi", "1P", "1\n",  "1K M" };
	static const char *const large[] = { "18446744073709551616", "99999999999999999999999", "16777216T",
					     "17179869184G" };
	uint64_t v = 77;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		cr_expect_eq(units_parse_size(bad[i], &v), -EINVAL, "'%s'", bad[i]);
	for (size_t i = 0; i < sizeof(large) / sizeof(*large); i++)
		cr_expect_eq(units_parse_size(large[i], &v), -ERANGE, "'%s'", large[i]);
	cr_expect_eq(units_parse_size("16777216Tx", &v), -EINVAL);
	cr_expect_eq(v, 77);
}

Test(units, times)
{
	static const char *const bad[] = { "", "5", "ms", "5m", "5 ms", "5sec", "1.5ms", "-5ms", "5MS", "5mss" };
	uint64_t v = 77;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		cr_expect_eq(units_parse_time(bad[i], &v), -EINVAL, "'%s'", bad[i]);
	cr_expect_eq(units_parse_time("18446744073710s", &v), -ERANGE);
	cr_expect_eq(v, 77);
	cr_expect(!units_parse_time("7us", &v) && v == 7);
	cr_expect(!units_parse_time("5ms", &v) && v == 5000);
	cr_expect(!units_parse_time("2s", &v) && v == 2000000);
	cr_expect(!units_parse_time("0", &v) && v == 0);
	cr_expect(!units_parse_time("0s", &v) && v == 0);
}

Test(units, numbers)
{
	uint64_t v = 77;

	cr_expect_eq(units_parse_u64("12a", &v), -EINVAL);
	cr_expect_eq(units_parse_u64("", &v), -EINVAL);
	cr_expect_eq(units_parse_u64("-1", &v), -EINVAL);
	cr_expect_eq(units_parse_u64("18446744073709551616", &v), -ERANGE);
	cr_expect_eq(v, 77);
	cr_expect(!units_parse_u64("007", &v) && v == 7);
}

Test(units, format)
{
	char b[32];

	cr_expect_str_eq(units_format_size(b, sizeof(b), 0), "0 B");
	cr_expect_str_eq(units_format_size(b, sizeof(b), 1023), "1023 B");
	cr_expect_str_eq(units_format_size(b, sizeof(b), 1024), "1.0 KiB");
	cr_expect_str_eq(units_format_size(b, sizeof(b), 1536), "1.5 KiB");
	cr_expect_str_eq(units_format_size(b, sizeof(b), (1 << 20) - 1), "1.0 MiB");
	cr_expect_str_eq(units_format_size(b, sizeof(b), 64 << 20), "64.0 MiB");
	cr_expect_str_eq(units_format_size(b, sizeof(b), UINT64_MAX), "16.0 EiB");
}

Test(error, message_and_prefix)
{
	struct bc_error e = { 0 };
	char longer[2000];

	cr_expect_eq(bc_fail(NULL, -EIO, "nobody reads %s", "this"), -EIO);
	cr_expect_eq(bc_fail(&e, -ENOENT, "%s: no\nsuch file", "x"), -ENOENT);
	cr_expect_str_eq(e.msg, "x: no?such file", "a message is one line");
	cr_expect_eq(bc_fail_prefix(&e, "volume %s", "v"), -ENOENT);
	cr_expect_str_eq(e.msg, "volume v: x: no?such file");
	memset(longer, 'a', sizeof(longer));
	longer[sizeof(longer) - 1] = 0;
	bc_fail_prefix(&e, "%s", longer);
	cr_expect_eq(strlen(e.msg), sizeof(e.msg) - 1);
	bc_fail(&e, -EIO, "%s", longer);
	cr_expect_eq(strlen(e.msg), sizeof(e.msg) - 1);
}

/* The journal's format names crc32c: the check value every description of it gives. */
Test(crc, check_value)
{
	cr_expect_eq(crc32c("123456789", 9), 0xe3069283u);
}

static int64_t us_of(struct timespec t)
{
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

Test(deadline, is_so_far_from_now)
{
	static const int64_t wait[] = { 0, 1, 999, 500000, 999999, 1000000, 1999999, 86400000000 };

	for (size_t i = 0; i < sizeof(wait) / sizeof(*wait); i++) {
		int64_t before = us_of(deadline_us(0)), after;
		struct timespec t = deadline_us((uint64_t)wait[i]);

		after = us_of(deadline_us(0));
		cr_expect(t.tv_nsec >= 0 && t.tv_nsec < 1000000000, "%ld ns", t.tv_nsec);
		cr_expect(us_of(t) >= before + wait[i] && us_of(t) <= after + wait[i], "%ld us", (long)wait[i]);
	}
}

/* What a user needs of a message stands at its end; what is too long is a path. */
Test(units, error_too_long_keeps_its_end)
{
	char path[4000], other[300];
	struct bc_error e = { 0 };

	memset(path, 'd', sizeof(path) - 1);
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	memset(other, 'x', sizeof(other) - 1);
	other[sizeof(other) - 1] = '\0';
	bc_fail(&e, -EIO, "%s: cannot be read: %s; look at %s and try again", path, "the reason", other);
	cr_expect(strstr(e.msg, "d: cannot be read: the reason; look at x"), "%s", e.msg);
	cr_expect(strstr(e.msg, "x and try again"), "%s", e.msg);
	cr_expect(strstr(e.msg, "..."), "%s", e.msg);
	cr_expect_lt(strlen(e.msg), sizeof(e.msg));
	bc_fail(&e, -EIO, "disk full");
	bc_fail_prefix(&e, "%s", path);
	cr_expect(strstr(e.msg, ": disk full"), "%s", e.msg);
}

Test(units, process_state_whatever_it_is_called)
{
	unsigned flags = 0;
	char state = 0;

	cr_expect(process_parse_stat("12 (a) b) R (c)) S 1 12 12 0 -1 4194560 100", &state, &flags));
	cr_expect_eq(state, 'S');
	cr_expect_eq(flags, 4194560u);
	cr_expect_not(process_parse_stat("12 (a", &state, &flags));
	cr_expect(process_lives((int)getpid()));
	/* an odd name of our own */
	cr_assert_eq(prctl(PR_SET_NAME, "x) Z 1 (y"), 0);
	cr_expect(process_lives((int)getpid()));
}
