/* SPDX-License-Identifier: BSD-3-Clause */
/* test_bdev_wrap.c - the test devices themselves: delay and error do what their options say. */
#include <errno.h>
#include <pthread.h>

#include "bdev/error.h"
#include "bdev_random.h"

#define N 64

static void fill(struct bdev_io *ios, struct iovec *iov, char *buf, enum bdev_io_type type)
{
	for (int i = 0; i < N; i++) {
		iov[i] = (struct iovec){ buf, 4096 };
		ios[i] = (struct bdev_io){
			.type = type, .offset = (uint64_t)i * 4096, .length = 4096, .iov = &iov[i], .iovcnt = 1
		};
	}
}

/* Each I/O takes at least its delay, alone or among others; those in flight together are slow side by side. */
Test(delay, at_least_and_overlapping)
{
	struct bdev *b = test_open("delay:read=50ms,write=20ms-30ms,flush=10ms:null:size=1G", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bdev_io ios[N];
	struct iovec iov[N];
	char buf[4096];
	double t = test_now();

	cr_expect_eq(bdev_pread(ch, buf, 4096, 0), 0);
	cr_expect_geq(test_now() - t, 0.050);
	t = test_now();
	cr_expect_eq(bdev_pwrite(ch, buf, 4096, 0), 0);
	cr_expect_geq(test_now() - t, 0.020);
	t = test_now();
	cr_expect_eq(bdev_flush(ch), 0);
	cr_expect_geq(test_now() - t, 0.010);
	t = test_now();
	fill(ios, iov, buf, BDEV_READ);
	cr_expect_eq(bdev_rw_wait(ch, ios, N), 0);
	t = test_now() - t;
	cr_expect_geq(t, 0.050);
	cr_expect_lt(t, N * 0.050 / 2, "one after the other they would take %f s", N * 0.050);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* What a test leaves in flight on purpose: reachable, so that it is no leak. */
static struct bdev *volatile left_bdev;
static struct bdev_channel *volatile left_channel;

/* The base does not wait: data is there before the delayed write is answered. */
Test(delay, base_goes_first)
{
	struct bdev *b = test_open("delay:write=20s:malloc:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	char buf[8] = "data", got[8] = "";
	struct iovec iov = { buf, 8 };
	struct bdev_io io = { .type = BDEV_WRITE, .length = 8, .iov = &iov, .iovcnt = 1 };

	bdev_submit(ch, &io);
	cr_expect_eq(bdev_poll(ch, 0), 0);
	cr_expect_eq(bdev_pread(ch, got, 8, 0), 0);
	cr_expect_str_eq(got, "data");
	cr_expect_eq(bdev_in_flight(ch), 1);
	left_bdev = b;
	left_channel = ch;
}

/* Writes on `ch` one after the other: which fail, as a string of '.' and 'X'. */
static const char *pattern(struct bdev_channel *ch, int n)
{
	static char text[100];
	char buf[10] = "";

	for (int i = 0; i < n; i++) {
		int r = bdev_pwrite(ch, buf, 10, (uint64_t)i * 10);

		text[i] = r == 0 ? '.' : r == -EIO ? 'X' : '?';
	}
	text[n] = 0;
	return text;
}

static void expect_pattern(const char *rules, const char *want)
{
	char spec[300];
	struct bdev *b;
	struct bdev_channel *ch;

	snprintf(spec, sizeof(spec), "error:%s:malloc:size=1M", rules);
	b = test_open(spec, 0);
	ch = test_channel(b);
	cr_expect_str_eq(pattern(ch, (int)strlen(want)), want, "%s", rules);
	bdev_channel_close(ch);
	bdev_close(b);
}

Test(error_bdev, rules)
{
	expect_pattern("", "......");
	expect_pattern("op=all", "XXXXXX");
	expect_pattern("op=read", "......");
	expect_pattern("op=read|write,count=2", "XX....");
	expect_pattern("op=write,nth=3", "..X...");
	expect_pattern("op=write,every=2", ".X.X.X");
	expect_pattern("every=2,count=1", ".X....");
	expect_pattern("count=0", "......");
	expect_pattern("from=20,to=40", "..XX..");
	expect_pattern("from=25,to=26", "..X...");
	expect_pattern("from=20,to=50,nth=2", "...X..");
	expect_pattern("percent=0", "......");
	expect_pattern("percent=100", "XXXXXX");
	expect_pattern("nth=1;nth=4", "X..X..");
	expect_pattern("errno=ENOSPC,nth=2", ".?....");
}

/* A share at random: about as many as asked, the same ones in every run of the same seed. */
Test(error_bdev, percent_repeats)
{
	char first[100] = "";
	int failed = 0;

	for (int run = 0; run < 2; run++) {
		struct bdev *b = test_open("error:percent=30,seed=5:malloc:size=1M", 0);
		struct bdev_channel *ch = test_channel(b);

		if (!run)
			strcpy(first, pattern(ch, 99));
		else
			cr_expect_str_eq(pattern(ch, 99), first);
		bdev_channel_close(ch);
		bdev_close(b);
	}
	for (const char *p = first; *p; p++)
		failed += *p == 'X';
	cr_expect(failed > 10 && failed < 50, "%d of 99", failed);
}

/* In a batch, each I/O has its own result; the first in array order is returned; what failed never reached the base. */
Test(error_bdev, batch_and_base_untouched)
{
	struct bdev *b = test_open("error:from=8K,to=12K,errno=ENOSPC;from=4K,to=8K,delay=5ms:malloc:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bdev_io ios[N];
	struct iovec iov[N];
	char buf[4096];

	memset(buf, 1, sizeof(buf));
	fill(ios, iov, buf, BDEV_WRITE);
	cr_expect_eq(bdev_rw_wait(ch, ios, N), -EIO);
	for (int i = 0; i < N; i++)
		cr_expect_eq(ios[i].result, i == 1 ? -EIO : i == 2 ? -ENOSPC : 0);
	cr_expect_eq(bdev_error_injected(b), 2);
	cr_expect_eq(bdev_error_set(b, "", NULL), 0);
	cr_expect_eq(bdev_pread(ch, buf, 4096, 4096), 0);
	cr_expect_eq(buf[0], 0);
	cr_expect_eq(bdev_pread(ch, buf, 4096, 0), 0);
	cr_expect_eq(buf[0], 1);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* "Not supported" from a flush means that there is no volatile cache; other errors of a flush are errors. */
Test(error_bdev, flush)
{
	struct bdev *b = test_open("error:op=flush,errno=EOPNOTSUPP:malloc:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bdev_io io[2] = { { .type = BDEV_FLUSH }, { .type = BDEV_FLUSH } };

	cr_expect_eq(bdev_flush(ch), 0);
	cr_expect_eq(bdev_rw_wait(ch, io, 2), 0);
	cr_expect_eq(bdev_error_injected(b), 3);
	cr_expect_eq(bdev_error_set(b, "op=flush,nth=2", NULL), 0);
	cr_expect_eq(bdev_rw_wait(ch, io, 2), -EIO);
	cr_expect_eq(io[0].result, 0);
	cr_expect_eq(bdev_flush(ch), 0);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* Rules are changed live, through other wrappers too; bad ones leave the old in force. */
Test(error_bdev, live_rules)
{
	struct bdev *b = test_open("delay:read=1us:error:nth=1:malloc:size=1M", 0),
		    *plain = test_open("null:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bc_error err = { 0 };

	cr_expect_str_eq(pattern(ch, 3), "X..");
	cr_expect_eq(bdev_error_set(b, "nth=2", &err), 0);
	cr_expect_eq(bdev_error_set(b, "nth=x", &err), -EINVAL);
	cr_expect_not_null(strstr(err.msg, "nth"));
	cr_expect_str_eq(pattern(ch, 3), ".X.");
	cr_expect_eq(bdev_error_set(plain, "nth=1", &err), -ENODEV);
	bdev_channel_close(ch);
	bdev_close(b);
	bdev_close(plain);
}

static void *writer(void *arg)
{
	struct bdev_channel *ch = test_channel(arg);
	intptr_t failed = 0;
	char buf[10] = "";

	for (int i = 0; i < 1000; i++)
		failed += bdev_pwrite(ch, buf, 10, 0) == -EIO;
	bdev_channel_close(ch);
	return (void *)failed;
}

/* Counters belong to the device: over several channels and threads, exactly `count` fail. */
Test(error_bdev, count_over_threads)
{
	struct bdev *b = test_open("error:every=3,count=100:null:size=1M", 0);
	pthread_t t[3];
	intptr_t failed = 0;

	for (int i = 0; i < 3; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, writer, b), 0);
	for (int i = 0; i < 3; i++) {
		void *n;

		pthread_join(t[i], &n);
		failed += (intptr_t)n;
	}
	cr_expect_eq(failed, 100);
	cr_expect_eq(bdev_error_injected(b), 100);
	bdev_close(b);
}
