/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_flushes.c - what a flush of a file may tell while others are under way (src/bdev/flush.c): every order in which
 * two or three of them begin and come back, with an error for any of them. The system call is left out: the kernel's
 * answer is the test's.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "bdev/file.h"

#define FLUSHES 3

struct state {
	struct file_flush f;
	int begun, returned; /* in which step; 0: not yet */
	int answer; /* FLUSH_UNSETTLED until it is known */
};

/* Overlap: x began before y came back, and x came back (or not yet) after y began. */
static bool may_have_taken(const struct state *x, const struct state *y)
{
	return x->begun && x->begun < y->returned && (!x->returned || x->returned > y->begun);
}

static void look(struct file_bdev *fb, struct state *s, int failing, const char *order)
{
	for (int i = 0; i < FLUSHES; i++) {
		bool open = false, failed = false;

		if (!s[i].returned || s[i].answer != FLUSH_UNSETTLED)
			continue;
		s[i].answer = file_flush_settle(fb, &s[i].f, 0);
		for (int k = 0; k < FLUSHES; k++) {
			if (k == i || !may_have_taken(&s[k], &s[i]))
				continue;
			open |= !s[k].returned;
			failed |= s[k].returned && k == failing;
		}
		if (failed)
			cr_assert(s[i].answer == -EIO, "%s: flush %d says %d beside one that failed", order, i,
				  s[i].answer);
		else if (open)
			cr_assert(s[i].answer, "%s: flush %d speaks before another came back", order, i);
		else
			cr_assert(s[i].answer != FLUSH_UNSETTLED, "%s: flush %d waits for nobody", order, i);
	}
}

/* order: six digits; the first time a digit comes its flush begins, the second time it comes back. */
static void run(const char *order, int failing)
{
	struct file_bdev fb = { 0 };
	struct state s[FLUSHES] = { 0 };
	int step = 0;

	file_flushes_init(&fb.flushes);
	for (const char *p = order; *p; p++) {
		struct state *x = &s[*p - '0'];
		bool fails = *p - '0' == failing;

		step++;
		if (!x->begun) {
			bool after = failing >= 0 && s[failing].returned;
			int rc = file_flush_begin(&fb, &x->f);

			cr_assert(rc == (after ? -EIO : 0), "%s: flush %c begins with %d", order, *p, rc);
			x->begun = step;
			x->answer = FLUSH_UNSETTLED;
			if (after) { /* nothing to come back */
				x->answer = rc;
				x->returned = step;
			}
			continue;
		}
		if (x->returned)
			continue;
		x->returned = step;
		x->answer = file_flush_end(&fb, &x->f, fails ? -EIO : 0);
		cr_assert(!fails || x->answer == -EIO, "%s: the one that failed says %d", order, x->answer);
		for (int k = 0; k < FLUSHES; k++)
			if (!fails && &s[k] != x && may_have_taken(&s[k], x) && !s[k].returned)
				cr_assert(x->answer != 0, "%s: flush %c speaks before %d came back", order, *p, k);
		look(&fb, s, failing, order);
	}
	for (int i = 0; i < FLUSHES; i++)
		cr_assert(s[i].answer != FLUSH_UNSETTLED, "%s: flush %d has no answer in the end", order, i);
	cr_assert(!fb.flushes.first, "%s: something is left on the list", order);
	file_flushes_destroy(&fb.flushes);
}

static void all_orders(char *order, int n, const int *left)
{
	int rest[FLUSHES];

	if (n == 2 * FLUSHES) {
		for (int failing = -1; failing < FLUSHES; failing++)
			run(order, failing);
		return;
	}
	for (int i = 0; i < FLUSHES; i++) {
		if (!left[i])
			continue;
		for (int k = 0; k < FLUSHES; k++)
			rest[k] = left[k] - (k == i);
		order[n] = (char)('0' + i);
		all_orders(order, n + 1, rest);
	}
}

Test(flushes, every_order_and_error) /* P6 */
{
	char order[2 * FLUSHES + 1] = "";

	all_orders(order, 0, (int[FLUSHES]){ 2, 2, 2 });
}

static void *end_with_error(void *arg)
{
	struct file_bdev *fb = ((void **)arg)[0];

	usleep(200000);
	return (void *)(intptr_t)file_flush_end(fb, ((void **)arg)[1], -ENOSPC);
}

Test(flushes, one_that_waits_is_woken)
{
	struct file_bdev fb = { 0 };
	struct file_flush first, second;
	pthread_t t;

	file_flushes_init(&fb.flushes);
	cr_assert(!file_flush_begin(&fb, &first) && !file_flush_begin(&fb, &second));
	cr_assert(file_flush_end(&fb, &second, 0) == FLUSH_UNSETTLED);
	cr_assert(!pthread_create(&t, NULL, end_with_error, (void *[]){ &fb, &first }));
	cr_assert(file_flush_wait(&fb, &second) == -ENOSPC);
	pthread_join(t, NULL);
	cr_assert(file_flush_begin(&fb, &second) == -ENOSPC, "a later flush begins");
	file_flushes_destroy(&fb.flushes);
}

/* Through a channel: the flush in the ring came back, its answer waits for one that is still under way elsewhere. */
Test(flushes, in_a_channel)
{
	char path[] = "/tmp/flushes-XXXXXX";
	struct bdev_io io = { .type = BDEV_FLUSH };
	struct bc_error err = { 0 };
	struct bdev_channel *ch;
	struct file_flush other;
	struct bdev *b;
	int fd = mkstemp(path);

	cr_assert(fd >= 0 && !ftruncate(fd, 1 << 20));
	close(fd);
	cr_assert(!bdev_open(path, 0, &b, &err), "%s", err.msg);
	unlink(path);
	ch = bdev_channel_open(b, 4);
	cr_assert(!file_flush_begin((struct file_bdev *)b, &other));
	bdev_submit(ch, &io);
	for (int i = 0; i < 50; i++) {
		bdev_poll(ch, 0);
		usleep(2000);
	}
	cr_assert(bdev_in_flight(ch) == 1, "it spoke although another flush may have its error");
	cr_assert(file_flush_end((struct file_bdev *)b, &other, -EIO) == -EIO);
	bdev_poll(ch, 1);
	cr_assert(io.result == -EIO, "it says %d", io.result);
	cr_assert(bdev_flush(ch) == -EIO && bdev_sync_identity(b) == -EIO, "a flush after a failed one succeeds");
	bdev_channel_close(ch);
	bdev_close(b);
}
