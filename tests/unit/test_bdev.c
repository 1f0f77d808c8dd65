/* SPDX-License-Identifier: BSD-3-Clause */
/* test_bdev.c - the device layer: specs, the life of an I/O, and the modules that need no disk (null, malloc). */
#include <errno.h>

#include "bdev_random.h"

static void expect_bad(const char *spec, int code, const char *word)
{
	struct bc_error err = { 0 };
	struct bdev *b = (struct bdev *)&err;

	cr_expect_eq(bdev_open(spec, 0, &b, &err), code, "'%s': %d %s", spec, err.code, err.msg);
	cr_expect_null(b, "'%s'", spec);
	cr_expect_eq(err.code, code, "'%s'", spec);
	cr_expect_not_null(strstr(err.msg, word), "'%s': no '%s' in: %s", spec, word, err.msg);
	cr_expect_eq(bdev_open(spec, 0, &b, NULL), code, "without a place for the message");
}

Test(bdev, bad_specs_say_why)
{
	char nested[17 * 7 + 20] = "";

	expect_bad("", -EINVAL, "empty");
	expect_bad("null", -EINVAL, "size");
	expect_bad("null:", -EINVAL, "size");
	expect_bad("null:size=0", -EINVAL, "size");
	expect_bad("null:size=1X", -EINVAL, "1X");
	expect_bad("null:size=16777216T", -ERANGE, "16777216T");
	expect_bad("null:size=8000000T", -ERANGE, "large");
	expect_bad("null:size=1G,colour=red", -EINVAL, "colour");
	expect_bad("null:size=1G,", -EINVAL, "comma");
	expect_bad("null:size=1G,,size=2G", -EINVAL, "option without a name");
	expect_bad("null:=1G", -EINVAL, "option without a name");
	expect_bad("malloc:size=4000000T", -ENOMEM, "address space");
	expect_bad("file:", -EINVAL, "path");
	expect_bad("delay", -EINVAL, "no device below");
	expect_bad("delay:read=5ms", -EINVAL, "no device below");
	expect_bad("delay:read=5ms:", -EINVAL, "no device below");
	expect_bad("delay:read=5:null:size=1G", -EINVAL, "'5'");
	expect_bad("delay:read=5ms-1ms:null:size=1G", -EINVAL, "backwards");
	expect_bad("delay:read=5ms-:null:size=1G", -EINVAL, "''");
	expect_bad("delay:read=2h:null:size=1G", -EINVAL, "2h");
	expect_bad("delay:write=3601s:null:size=1G", -ERANGE, "3601s");
	expect_bad("delay:red=5ms:null:size=1G", -EINVAL, "red");
	expect_bad("delay:read=5ms:null:size=1Q", -EINVAL, "1Q");
	expect_bad("error:op=frobnicate:null:size=1G", -EINVAL, "frobnicate");
	expect_bad("error:errno=EWHAT:null:size=1G", -EINVAL, "EWHAT");
	expect_bad("error:nth=0:null:size=1G", -ERANGE, "nth");
	expect_bad("error:nth=1,every=2:null:size=1G", -EINVAL, "one of");
	expect_bad("error:percent=101:null:size=1G", -ERANGE, "percent");
	expect_bad("error:from=8K,to=4K:null:size=1G", -EINVAL, "empty");
	expect_bad("error:nth=1;;nth=2:null:size=1G", -EINVAL, "empty rule");
	for (int i = 0; i < 17; i++)
		strcat(nested, "delay::");
	strcat(nested, "null:size=1G");
	expect_bad(nested, -EINVAL, "nests");
	expect_bad("/nonexistent/disk.img", -ENOENT, "/nonexistent/disk.img");
	expect_bad("nul:size=1G", -ENOENT, "no device module 'nul'");
	expect_bad("delay:read=1ms:/nonexistent/a:b=c", -ENOENT, "/nonexistent/a:b=c: no such file");
}

Test(bdev, specs_nest_to_the_right)
{
	struct bdev *b = test_open("error:op=write,nth=3:delay:read=1ms-2ms,flush=1us,jitter=1us:null:size=1G", 0);
	char text[600] = "";
	FILE *f = fmemopen(text, sizeof(text), "w");

	cr_expect_eq(bdev_size(b), 1 << 30);
	cr_expect_str_eq(bdev_module_name(b), "error");
	bdev_write_config(b, f);
	cr_expect_eq(fflush(f), 0);
	cr_expect_str_eq(text, bdev_spec(b));
	bdev_dump_info(b, f);
	fclose(f);
	cr_expect_not_null(strstr(text, "module=delay"));
	cr_expect_not_null(strstr(text, "read_us=1000-2001"));
	cr_expect_not_null(strstr(text, "module=null"));
	bdev_close(b);
	bdev_close(NULL);
}

/* malloc keeps every promise of READ, WRITE, UNMAP and WRITE_ZEROES at any alignment; so do the wrappers over it. */
static void random_on(const char *spec, unsigned batches)
{
	uint64_t rng = test_seed();
	struct bdev *b = test_open(spec, BDEV_OPEN_CLAIM);
	struct bdev_channel *ch = test_channel(b);
	char *ref = calloc(1, bdev_size(b));

	verify_all(b, ch, ref);
	random_test(b, ch, ref, batches, &rng);
	verify_all(b, ch, ref);
	free(ref);
	bdev_channel_close(ch);
	bdev_close(b);
}

Test(bdev, malloc_random)
{
	random_on("malloc:size=1000001", 300);
}

Test(bdev, wrapped_random)
{
	random_on("error:op=read,nth=1000000;op=write,percent=0:delay:read=100us,write=0us-300us,flush=50us:malloc:"
		  "size=1000001",
		  150);
}

Test(bdev, null_reads_zeros)
{
	struct bdev *b = test_open("null:size=1T", 0);
	struct bdev_channel *ch = test_channel(b);
	char buf[100];

	memset(buf, 7, sizeof(buf));
	cr_expect_eq(bdev_pwrite(ch, buf, sizeof(buf), 12345), 0);
	cr_expect_eq(bdev_pread(ch, buf, sizeof(buf), 12345), 0);
	for (size_t i = 0; i < sizeof(buf); i++)
		cr_assert_eq(buf[i], 0);
	cr_expect_eq(bdev_flush(ch), 0);
	cr_expect_eq(bdev_check_size(b), 0);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* A range outside the device, or a list of pieces that is longer than the range that was checked, never reaches a
 * module. */
Test(bdev, ranges_are_checked)
{
	struct bdev *b = test_open("malloc:size=10000", 0);
	struct bdev_channel *ch = test_channel(b);
	char buf[200];
	struct iovec iov[2] = { { buf, 100 }, { buf, 100 } };
	struct bdev_io io[3] = {
		{ .type = BDEV_READ, .offset = 0, .length = 100, .iov = iov, .iovcnt = 2 },
		{ .type = BDEV_READ, .offset = 0, .length = 200, .iov = iov, .iovcnt = 2 },
		{ .type = BDEV_UNMAP, .offset = 9999, .length = 2 },
	};

	cr_expect_eq(bdev_pread(ch, buf, 100, 9901), -EINVAL);
	cr_expect_eq(bdev_pread(ch, buf, 100, 10000), -EINVAL);
	cr_expect_eq(bdev_pread(ch, buf, 100, UINT64_MAX - 50), -EINVAL);
	cr_expect_eq(bdev_pread(ch, buf, 100, UINT64_MAX), -EINVAL);
	cr_expect_eq(bdev_pread(ch, buf, 100, 9900), 0);
	cr_expect_eq(bdev_pread(ch, buf, 0, 10000), 0, "nothing, at the very end");
	cr_expect_eq(bdev_pread(ch, buf, 0, 10001), -EINVAL);
	cr_expect_eq(bdev_rw_wait(ch, io, 3), -EINVAL);
	cr_expect(io[0].result == -EINVAL && io[1].result == 0 && io[2].result == -EINVAL);
	io[1].iovcnt = BDEV_MAX_IOV + 1;
	cr_expect_eq(bdev_rw_wait(ch, &io[1], 1), -EINVAL);
	io[1].type = BDEV_IO_TYPES;
	cr_expect_eq(bdev_rw_wait(ch, &io[1], 1), -EINVAL);
	bdev_channel_close(ch);
	bdev_close(b);
}

Test(bdev, readonly)
{
	struct bdev *b = test_open("malloc:size=10000", BDEV_OPEN_RDONLY);
	struct bdev_channel *ch = test_channel(b);
	char buf[10] = "x";
	struct bdev_io io[3] = { { .type = BDEV_UNMAP, .length = 5 },
				 { .type = BDEV_WRITE_ZEROES, .length = 5 },
				 { .type = BDEV_FLUSH } };

	cr_expect_eq(bdev_pwrite(ch, buf, 10, 0), -EROFS);
	cr_expect_eq(bdev_pread(ch, buf, 10, 0), 0);
	cr_expect_eq(bdev_rw_wait(ch, io, 3), -EROFS);
	cr_expect(io[1].result == -EROFS && io[2].result == 0);
	bdev_channel_close(ch);
	bdev_close(b);
}

static unsigned done_calls;

static void count_done(struct bdev_io *io)
{
	cr_expect_leq(io->result, 0);
	done_calls++;
}

/* bdev_submit never calls done(); bdev_poll does, once for each, and returns how many. */
Test(bdev, poll_counts)
{
	struct bdev *b = test_open("malloc:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bdev_io io[10];

	cr_expect_eq(bdev_poll(ch, 5), 0, "nothing in flight: no wait");
	for (int i = 0; i < 10; i++) {
		io[i] = (struct bdev_io){ .type = i == 7 ? BDEV_READ : BDEV_UNMAP,
					  .length = 1 + (uint64_t)i,
					  .done = count_done }; /* 7: has no pieces, is refused */
		bdev_submit(ch, &io[i]);
	}
	cr_expect_eq(done_calls, 0);
	cr_expect_eq(bdev_in_flight(ch), 10);
	cr_expect_eq(bdev_poll(ch, 1000), 10, "lowered to what is in flight");
	cr_expect_eq(done_calls, 10);
	cr_expect_eq(io[7].result, -EINVAL);
	cr_expect_eq(bdev_in_flight(ch), 0);
	cr_expect_eq(bdev_rw_wait(ch, io, 1), 0);
	cr_expect_eq(done_calls, 11, "done() is also called when the queue was bypassed");
	bdev_channel_close(ch);
	bdev_close(b);
}

/* What a test leaves in flight on purpose: reachable, so that it is no leak. */
static struct bdev *volatile left_bdev;
static struct bdev_channel *volatile left_channel;

/* min_complete: waits for that many, not for all. */
Test(bdev, poll_waits_for_as_many_as_asked)
{
	struct bdev *b = test_open("delay:write=20s,flush=1ms:malloc:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bdev_io slow = { .type = BDEV_UNMAP, .length = 10 },
		       fast[2] = { { .type = BDEV_FLUSH }, { .type = BDEV_FLUSH } };
	double start = test_now();

	bdev_submit(ch, &slow);
	bdev_submit(ch, &fast[0]);
	bdev_submit(ch, &fast[1]);
	cr_expect_eq(bdev_poll(ch, 0), 0);
	cr_expect_eq(bdev_poll(ch, 2), 2);
	cr_expect_eq(bdev_in_flight(ch), 1);
	/* Another's I/O in flight does not hold up a bdev_rw_wait. */
	cr_expect_eq(bdev_rw_wait(ch, fast, 2), 0);
	cr_expect_lt(test_now() - start, 19);
	cr_expect_eq(bdev_in_flight(ch), 1);
	left_bdev = b;
	left_channel = ch;
}

struct chain {
	struct bdev_channel *ch;
	struct bdev_io io, next;
	unsigned left;
};

static void chain_done(struct bdev_io *io)
{
	struct chain *c = io->ctx;

	if (c->left--)
		bdev_submit(c->ch, &c->io);
	else
		bdev_submit(c->ch, &c->next);
}

/* done() may submit the same I/O, or another one; polling for one at a time gets through all. */
Test(bdev, done_may_submit)
{
	struct bdev *b = test_open("delay:write=10us:malloc:size=1M", 0);
	struct chain c = { .ch = test_channel(b), .left = 100 };
	unsigned n = 0;

	c.io = (struct bdev_io){ .type = BDEV_UNMAP, .length = 10, .done = chain_done, .ctx = &c };
	c.next = (struct bdev_io){ .type = BDEV_FLUSH };
	bdev_submit(c.ch, &c.io);
	while (bdev_in_flight(c.ch))
		n += bdev_poll(c.ch, 1);
	cr_expect_eq(n, 102);
	cr_expect_eq(c.next.result, 0);
	bdev_channel_close(c.ch);
	bdev_close(b);
}

/* An I/O that fails at once and resubmits itself must not keep bdev_poll from returning. */
Test(bdev, refused_io_that_resubmits)
{
	struct bdev *b = test_open("malloc:size=1M", 0);
	struct chain c = { .ch = test_channel(b), .left = 1000000 };

	c.io = (struct bdev_io){ .type = BDEV_UNMAP, .offset = 1 << 20, .length = 10, .done = chain_done, .ctx = &c };
	bdev_submit(c.ch, &c.io);
	cr_expect_eq(bdev_poll(c.ch, 1), 1);
	cr_expect_eq(bdev_in_flight(c.ch), 1);
	left_bdev = b;
	left_channel = c.ch;
}

static struct bdev_io *order[10];
static unsigned norder;

static void note_order(struct bdev_io *io)
{
	order[norder++] = io;
}

/* RESET completes after what was submitted before it on the channel. */
Test(bdev, reset_comes_last)
{
	struct bdev *b = test_open("delay:write=30ms,flush=1ms:malloc:size=1M", 0);
	struct bdev_channel *ch = test_channel(b);
	struct bdev_io io[4] = { { .type = BDEV_UNMAP, .length = 10 },
				 { .type = BDEV_FLUSH },
				 { .type = BDEV_RESET },
				 { .type = BDEV_FLUSH } };

	cr_expect(bdev_io_type_supported(b, BDEV_RESET));
	for (int i = 0; i < 4; i++)
		io[i].done = note_order;
	cr_expect_eq(bdev_rw_wait(ch, io, 4), 0);
	cr_assert_eq(norder, 4);
	cr_expect(order[0] == &io[1] && order[1] == &io[0] && order[2] == &io[2] && order[3] == &io[3]);
	cr_expect_eq(bdev_rw_wait(ch, &io[2], 1), 0);
	bdev_channel_close(ch);
	bdev_close(b);
}
