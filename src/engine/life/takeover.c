/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * takeover.c - a new process goes on where a killed one was, without losing anything that was answered.
 *
 * The state of the cache is the journal's, as recovery finds it, plus what was changed since. recover() has built the
 * first; the rest is taken from the write log (writelog.h), the frames of the dead process's RAM buffers, and the data
 * file. Processes die here, not machines: what was written to a file is there, synced or not. And bdev's claims are
 * free only when the last I/O of the dead process has landed, so nothing of it changes under our hands.
 *
 * Let D be the last durable epoch. Changes of at most two epochs are not durable: D + 1, if it was sealed, and the open
 * one. Recovery yields the state K after epoch D or after D + 1 (its row may have made it, and the data too). The log
 * has all records of epochs > D; those of D + 1 or even of D may still be in it when their epoch is durable.
 *
 *   - Clean blocks need no records. They may be missing after a takeover, but never stale: writes to backing were
 * preceded by a durable mark, and recovery drops the clean lines of marked regions (intent.c).
 *   - The last record of a block wins. "Not dirty": the backing device had the block's data, or zeros, before the
 * record was written (a discard that was not finished has been repeated by recovery), so the block is dropped, whatever
 * K says of it. That matters: K may have an old dirty block, and backing a newer one that was written through.
 *   - "Dirty in slot S with crc C": a slot is given out only while nothing durable refers to it, and comes back only
 * when the epoch that gives it up is durable and the log empty of that epoch (commit_one resets it first). So S has
 * belonged to this block alone since it was given out in an epoch > D, and in K it is free, or this very block's with
 * this crc (records of D + 1, when K is the state after it; then nothing is to be done).
 *   - The data: a record is written when the frame has the data, before it is published. The frame keeps it until it is
 * written to S, or a later record replaces this one. So the crc fits the frame, or the slot, or something is wrong that
 * must not be hidden: the takeover fails, and the mount ends with errors instead of with old data.
 *   - A record whose request was not answered (the process died in between) does no harm: the client is still waiting
 * and its request comes again; meanwhile the block has the new value or the old.
 *   - Unfinished discards were repeated by recovery, which dropped K's blocks in their range. Records from before may
 * bring dirty blocks back. That is right as well: the discard was not answered, and its request comes again.
 *   - A cache that had failed (P6) keeps its promise: what was not durable then is not made so by a new process.
 *
 * Order, so that this process may die in its turn, at any moment: nothing is allocated before the log is replayed (the
 * frames stay as they are); data goes to the free slots it is meant for; one epoch takes all changes; the log is
 * emptied when that is durable, and only then do others run. Until then the same log is replayed again, on a K that
 * has none, or all, of it.
 */
#include "engine/life/life.h"

#include "engine/durable/takeover_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* ---- replay ---- */

struct replay {
	struct cache *c;
	const struct writelog *log; /* not c->log: changes made here are not logged */
	struct bc_error *err;
	struct writelog_record *rec; /* the last of each block */
	uint32_t n, ndirty; /* the dirty ones come first once they are sorted */
	const char *frames;
	uint64_t nframes;
	size_t frames_len;
	struct bdev_channel *ch;
	char *buf; /* MAX_BLOCKS */
	uint32_t hand; /* looking for clean lines */
	uint64_t written;
};

static int map_frames(struct replay *r, int fd)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st))
		return bc_fail(r->err, -errno, "the dead daemon's buffers cannot be seen: %s", strerror(errno));
	r->frames_len = (size_t)st.st_size;
	r->nframes = r->frames_len / CACHE_BLOCK;
	if (!r->nframes)
		return 0;
	p = mmap(NULL, r->frames_len, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return bc_fail(r->err, -errno, "the dead daemon's buffers cannot be mapped: %s", strerror(errno));
	r->frames = p;
	return 0;
}

static int dirty_by_slot(const void *a, const void *b)
{
	const struct writelog_record *x = a, *y = b;

	if (x->dirty != y->dirty)
		return x->dirty ? -1 : 1;
	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static int impossible(struct replay *r, const struct writelog_record *rec, const char *what)
{
	const struct volume *v = r->c->volume[rec->volume];

	return bc_fail(r->err, -EUCLEAN,
		       "the volumes cannot be taken over: volume %s, byte %llu: %s; 'blkcache load' goes on from the "
		       "last flush",
		       v ? v->name : "(removed)", (unsigned long long)rec->block * CACHE_BLOCK, what);
}

/* Is it in the map already, as the record says? */
static bool known(struct cache *c, struct volume *v, const struct writelog_record *rec)
{
	struct lines *l = &c->lines;
	unsigned b = rec->block & (l->bpl - 1);
	struct line_chain ch = lines_lock(l, line_key(v->id, rec->block >> l->bpl_shift));
	uint32_t e = lines_find(&ch);
	bool yes = e != LINE_NONE && line_valid(l, e) & line_dirty(l, e) & 1u << b &&
		   line_block(l, e, b)->slot == rec->slot && line_block(l, e, b)->crc == rec->crc;

	lines_unlock(&ch);
	return yes;
}

/* Takes the slots, which must be free, and leaves the records that say something new. */
static int claim_slots(struct replay *r)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < r->ndirty; i++) {
		struct writelog_record *rec = &r->rec[i];
		struct volume *v = rec->volume <= CACHE_MAX_VOLUMES ? r->c->volume[rec->volume] : NULL;

		if (!v || rec->block >= v->nblocks)
			return impossible(r, rec, "there is no such block any more");
		if (known(r->c, v, rec))
			continue;
		if (!slots_claim(&r->c->slots, rec->slot))
			return impossible(r, rec, "its place in the cache is not free");
		memmove(&r->rec[kept++], rec, sizeof *rec);
	}
	r->ndirty = kept;
	return 0;
}

/* Writes the n blocks in r->buf, for adjacent slots. */
static int write_run(struct replay *r, uint32_t slot, uint32_t n)
{
	int rc = bdev_pwrite(r->ch, r->buf, (size_t)n * CACHE_BLOCK, (uint64_t)slot * CACHE_BLOCK);

	r->written += n;
	return rc ? bc_fail(r->err, rc, "%s/%s cannot be written: %s", r->c->dir, CACHE_DATA_FILE, strerror(-rc)) : 0;
}

/* Every block gets to its slot, or is there. */
static int place_data(struct replay *r)
{
	uint32_t run = 0, first = 0;
	int rc = 0;

	for (uint32_t i = 0; i < r->ndirty && !rc; i++) {
		const struct writelog_record *rec = &r->rec[i];
		const char *data = r->frames + (uint64_t)rec->frame * CACHE_BLOCK;
		char *at;

		if (run && (run == MAX_BLOCKS || rec->slot != first + run)) {
			rc = write_run(r, first, run);
			run = 0;
		}
		if (!run)
			first = rec->slot;
		at = r->buf + (size_t)run * CACHE_BLOCK;
		if (!rc && rec->frame < r->nframes && crc32c(data, CACHE_BLOCK) == rec->crc) {
			memcpy(at, data, CACHE_BLOCK);
			run++;
		} else if (!rc) {
			/* written before: what is in the run so far must not take its place */
			if (run)
				rc = write_run(r, first, run);
			run = 0;
			if (!rc && (bdev_pread(r->ch, r->buf, CACHE_BLOCK, (uint64_t)rec->slot * CACHE_BLOCK) ||
				    crc32c(r->buf, CACHE_BLOCK) != rec->crc))
				rc = impossible(r, rec, "what was written there is neither in memory nor in the cache");
		}
	}
	return rc || !run ? rc : write_run(r, first, run);
}

/* In the gate. */
static void drop_block(struct cache *c, struct volume *v, uint64_t block)
{
	struct lines *l = &c->lines;
	struct line_chain ch = lines_lock(l, line_key(v->id, block >> l->bpl_shift));
	uint32_t e = lines_find(&ch);

	if (e != LINE_NONE)
		line_drop(c, v, &ch, e, (uint16_t)(1u << (block & (l->bpl - 1))));
	lines_unlock(&ch);
}

/* The dead process had room for all dirty lines; K may have clean ones that it had evicted. */
static bool drop_a_clean_line(struct replay *r)
{
	struct cache *c = r->c;
	struct lines *l = &c->lines;
	bool done = false;

	while (!done && r->hand < l->n) {
		uint32_t e = r->hand++;
		uint64_t key = lines_word(l, e) & LINE_KEY_MASK;
		struct line_chain ch;

		if (!line_key_volume(key) || line_dirty(l, e))
			continue;
		ch = lines_lock(l, key);
		line_drop(c, c->volume[line_key_volume(key)], &ch, e, 0xffff);
		lines_unlock(&ch);
		done = true;
	}
	return done;
}

/* In the gate: the map says what the record says. The data is in the slot. */
static int adopt(struct replay *r, const struct writelog_record *rec)
{
	struct mapping m = { rec->block, rec->slot, rec->crc, NULL, MAPPING_DIRTY };

	while (mapping_place(r->c, r->c->volume[rec->volume], &m) < 0)
		if (!drop_a_clean_line(r))
			return impossible(r, rec, "there is no room for it");
	return 0;
}

static int replay_records(struct replay *r)
{
	struct cache *c = r->c;
	int rc;

	qsort(r->rec, r->n, sizeof *r->rec, dirty_by_slot);
	while (r->ndirty < r->n && r->rec[r->ndirty].dirty)
		r->ndirty++;
	pthread_rwlock_rdlock(&c->epoch.gate); /* epoch_enter() might commit half of it */
	for (uint32_t i = r->ndirty; i < r->n; i++)
		if (r->rec[i].volume <= CACHE_MAX_VOLUMES && c->volume[r->rec[i].volume])
			drop_block(c, c->volume[r->rec[i].volume], r->rec[i].block);
	pthread_rwlock_unlock(&c->epoch.gate);
	rc = claim_slots(r);
	if (!rc && r->ndirty && atomic_load(&r->log->h->failed))
		return bc_fail(r->err, -EIO,
			       "the volumes cannot be taken over: the cache had failed, with dirty data that could not "
			       "be made durable; 'blkcache load' goes on from the last flush");
	if (!rc)
		rc = place_data(r);
	if (rc)
		return rc;
	pthread_rwlock_rdlock(&c->epoch.gate);
	for (uint32_t i = 0; i < r->ndirty && !rc; i++)
		rc = adopt(r, &r->rec[i]);
	pthread_rwlock_unlock(&c->epoch.gate);
	if (!rc && epoch_commit(c, true))
		rc = bc_fail(r->err, -EIO, "the volumes cannot be taken over: %s", c->why);
	return rc;
}

static int take_over(struct cache *c, const struct writelog *log, int frames_fd, struct bc_error *err)
{
	struct replay r = { .c = c, .log = log, .err = err };
	int rc = writelog_collect(log, &r.rec, &r.n);

	if (rc)
		return bc_fail(err, rc, "the volumes cannot be taken over: the log of what was answered is %s",
			       rc == -ENOSPC ? "not complete" : "not readable");
	r.ch = bdev_channel_open(c->data, 0);
	r.buf = aligned_alloc(CACHE_BLOCK, MAX_BLOCKS * CACHE_BLOCK);
	rc = r.ch && r.buf ? 0 : bc_fail(err, -ENOMEM, "out of memory");
	if (!rc)
		rc = map_frames(&r, frames_fd);
	if (!rc)
		rc = replay_records(&r);
	if (!rc)
		log_info("%s: took over: %u blocks had changed since the last commit, %u of them dirty, %llu from "
			 "memory",
			 c->dir, r.n, r.ndirty, (unsigned long long)r.written);
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES && !rc; i++) {
		if (!c->volume[i] || !atomic_load(&log->h->backing_failed[i]))
			continue;
		atomic_store(&c->volume[i]->backing_failed, true);
		cache_degrade(c, "volume %s: flushing the backing device has failed before", c->volume[i]->name);
	}
	if (r.frames)
		munmap((void *)(uintptr_t)r.frames, r.frames_len);
	bdev_channel_close(r.ch);
	free(r.buf);
	free(r.rec);
	return rc;
}

int takeover_begin(struct cache *c, const struct cache_shared *shared, struct bc_error *err)
{
	struct writelog *log = calloc(1, sizeof *log);
	int rc = log ? writelog_open(log, shared->log_fd) : -ENOMEM;

	if (rc) {
		free(log);
		return bc_fail(err, rc, "no memory for the log of writes");
	}
	if (shared->takeover)
		rc = take_over(c, log, shared->frames_fd, err);
	if (rc) {
		writelog_close(log);
		free(log);
		return rc;
	}
	writelog_start(log, epoch_open_id(c));
	c->log = log;
	return 0;
}

void takeover_end(struct cache *c)
{
	if (!c->log)
		return;
	writelog_close(c->log);
	free(c->log);
	c->log = NULL;
}
