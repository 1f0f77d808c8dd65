/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * flush.c - what a flush of a file may tell (P6).
 *
 * The kernel reports a failed write-back once for each open file description, to whichever fdatasync comes first (on
 * some file systems once for all of them), and forgets the pages. A flush that gets 0 after that speaks of data that is
 * lost. So two rules:
 *
 * 1. An error is final: whoever begins a flush after it is told the same, without a system call.
 *
 * 2. A flush whose system call returned success does not tell it before every flush that was begun until then has come
 *    back. One of those may have taken the only error that the kernel had for both, and its thread not have said so
 *    yet. A flush that is begun later cannot have taken anything that ours would have seen.
 *
 * The list holds, in order, the flushes whose system call is under way, and those that returned with success and wait
 * for rule 2. A flush that returns goes to the end of the list: it is settled when nobody before it is under way.
 * Flushes are not made one after the other: a slow one would hold up the next, which may have nothing to wait for but
 * this answer.
 *
 * Waiting ends after FLUSH_PATIENCE_US. Then a flush that began earlier is still in the kernel although a later one is
 * through; whether it has our error cannot be told, so success is not claimed. Whoever submits a flush on one channel
 * and waits for another on a second channel before he polls the first would wait that long, too.
 */
#include <errno.h>
#include <unistd.h>

#include "bdev/file.h"
#include "util/deadline.h"
#include "util/mutate.h"

#define FLUSH_PATIENCE_US 60000000u

void file_flushes_init(struct file_flushes *fs)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&fs->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&fs->changed, &attr);
	pthread_condattr_destroy(&attr);
	fs->first = NULL;
	fs->last = &fs->first;
	fs->error = 0;
}

void file_flushes_destroy(struct file_flushes *fs)
{
	pthread_cond_destroy(&fs->changed);
	pthread_mutex_destroy(&fs->lock);
}

static void append_locked(struct file_flushes *fs, struct file_flush *f)
{
	f->next = NULL;
	f->prev = fs->last;
	*fs->last = f;
	fs->last = &f->next;
}

static void unlink_locked(struct file_flushes *fs, struct file_flush *f)
{
	*f->prev = f->next;
	if (f->next)
		f->next->prev = f->prev;
	else
		fs->last = f->prev;
	pthread_cond_broadcast(&fs->changed);
}

/* Rule 2: nobody who began before this one returned is still under way. */
static bool settled_locked(const struct file_flushes *fs, const struct file_flush *f)
{
	const struct file_flush *g = fs->first;

	while (g != f && g->returned)
		g = g->next;
	return g == f || MUTATE(FLUSH_OVERLAP);
}

int file_flush_begin(struct file_bdev *fb, struct file_flush *f)
{
	struct file_flushes *fs = &fb->flushes;
	int error;

	pthread_mutex_lock(&fs->lock);
	error = fs->error;
	f->returned = false;
	if (!error)
		append_locked(fs, f);
	pthread_mutex_unlock(&fs->lock);
	return error;
}

int file_flush_end(struct file_bdev *fb, struct file_flush *f, int res)
{
	struct file_flushes *fs = &fb->flushes;

	/* "a special file which does not support synchronization": no volatile cache, and no news of anything */
	if (res == -EINVAL || res == -ENOSYS)
		res = -EOPNOTSUPP;
	pthread_mutex_lock(&fs->lock);
	if (res && res != -EOPNOTSUPP && !fs->error)
		fs->error = res;
	unlink_locked(fs, f);
	if (fs->error) {
		res = fs->error;
	} else if (!res) {
		f->returned = true;
		append_locked(fs, f);
		if (settled_locked(fs, f))
			unlink_locked(fs, f);
		else
			res = FLUSH_UNSETTLED;
	}
	pthread_mutex_unlock(&fs->lock);
	return res;
}

int file_flush_settle(struct file_bdev *fb, struct file_flush *f, uint64_t wait_us)
{
	struct file_flushes *fs = &fb->flushes;
	struct timespec until = deadline_us(wait_us);
	int res;

	pthread_mutex_lock(&fs->lock);
	while (!fs->error && !settled_locked(fs, f) && wait_us)
		if (pthread_cond_timedwait(&fs->changed, &fs->lock, &until))
			break;
	res = fs->error ? fs->error : settled_locked(fs, f) ? 0 : FLUSH_UNSETTLED;
	if (res != FLUSH_UNSETTLED)
		unlink_locked(fs, f);
	pthread_mutex_unlock(&fs->lock);
	return res;
}

/* The answer when patience is at an end: the error is final, as any. */
static int give_up(struct file_bdev *fb, struct file_flush *f)
{
	return file_flush_end(fb, f, -ETIMEDOUT);
}

int file_flush_wait(struct file_bdev *fb, struct file_flush *f)
{
	int res = file_flush_settle(fb, f, FLUSH_PATIENCE_US);

	return res == FLUSH_UNSETTLED ? give_up(fb, f) : res;
}

int file_flush_sync(struct file_bdev *fb, bool identity)
{
	struct file_flush f;
	int res = file_flush_begin(fb, &f);

	if (res)
		return res;
	do /* one descriptor is enough: both are the same inode */
		res = (identity ? fsync(fb->buf_fd) : fdatasync(fb->fd)) ? -errno : 0;
	while (res == -EINTR);
	res = file_flush_end(fb, &f, res);
	return res == FLUSH_UNSETTLED ? file_flush_wait(fb, &f) : res;
}
