/* SPDX-License-Identifier: BSD-3-Clause */
/* writelog.c - see writelog.h. Appending: any thread, as said there; all else: one thread. */
#include "engine/durable/durable.h"

#include "engine/durable/writelog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x31676f6c74697277ull
#define HEADER_BYTES 4096
#define SEGMENT_BYTES (WRITELOG_RECORDS * sizeof(struct writelog_record))
#define INDEX_BITS 20
_Static_assert(sizeof(struct writelog_header) <= HEADER_BYTES, "one page");
_Static_assert(WRITELOG_RECORDS <= 1u << INDEX_BITS, "stamps are unique");

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static uint64_t stamp_of(uint64_t epoch, uint32_t index)
{
	return ((epoch << INDEX_BITS) | index) + 1;
}

int writelog_open(struct writelog *w, int fd)
{
	struct stat st;

	memset(w, 0, sizeof *w);
	w->len = HEADER_BYTES + 2 * SEGMENT_BYTES;
	if (fstat(fd, &st) || ((uint64_t)st.st_size < w->len && ftruncate(fd, (off_t)w->len)))
		return -errno;
	w->map = mmap(NULL, w->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (w->map == MAP_FAILED) {
		w->map = NULL;
		return -errno;
	}
	/* taken now: who appends cannot wait for memory (nor could it be told that there is none) */
	if (madvise(w->map, w->len, MADV_POPULATE_WRITE) && errno != EINVAL) {
		writelog_close(w);
		return -ENOMEM;
	}
	w->h = w->map;
	w->record[0] = (void *)((char *)w->map + HEADER_BYTES);
	w->record[1] = w->record[0] + WRITELOG_RECORDS;
	return 0;
}

void writelog_close(struct writelog *w)
{
	if (w->map)
		munmap(w->map, w->len);
	w->map = NULL;
}

void writelog_start(struct writelog *w, uint64_t epoch)
{
	for (int i = 0; i < 2; i++)
		atomic_store(&w->h->segment[i].count, 0);
	memset(w->record[0], 0, 2 * SEGMENT_BYTES);
	atomic_store(&w->h->failed, false);
	writelog_next(w, epoch);
	w->h->magic = MAGIC;
}

void writelog_append(struct writelog *w, uint64_t epoch, const struct writelog_record *r)
{
	struct writelog_segment *s = &w->h->segment[epoch & 1];
	uint32_t i = atomic_fetch_add_explicit(&s->count, 1, memory_order_relaxed);
	struct writelog_record *to;

	if (i >= WRITELOG_RECORDS)
		return; /* the count says it */
	to = &w->record[epoch & 1][i];
	to->block = r->block;
	to->slot = r->slot;
	to->crc = r->crc;
	to->frame = r->frame;
	to->volume = r->volume;
	to->dirty = r->dirty;
	atomic_store_explicit(&to->stamp, stamp_of(epoch, i), memory_order_release);
}

void writelog_next(struct writelog *w, uint64_t epoch)
{
	atomic_store(&w->h->segment[epoch & 1].epoch, epoch);
}

void writelog_durable(struct writelog *w, uint64_t epoch)
{
	struct writelog_segment *s = &w->h->segment[epoch & 1];

	if (atomic_load(&s->epoch) == epoch)
		atomic_store(&s->count, 0);
}

/* Equal blocks stay in order: the sort is told by the index, which the stamp holds and which is of no more use. */
static int by_block(const void *a, const void *b)
{
	const struct writelog_record *x = a, *y = b;

	if (x->volume != y->volume)
		return x->volume < y->volume ? -1 : 1;
	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return x->stamp < y->stamp ? -1 : x->stamp > y->stamp;
}

/* Appends a segment's records to `to`; their stamps tell their order. */
static uint32_t collect_segment(const struct writelog *w, unsigned which, struct writelog_record *to)
{
	const struct writelog_segment *s = &w->h->segment[which];
	uint64_t epoch = atomic_load(&s->epoch);
	uint32_t count = atomic_load(&s->count), n = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct writelog_record *r = &w->record[which][i];

		if (atomic_load_explicit(&r->stamp, memory_order_acquire) == stamp_of(epoch, i))
			memcpy(&to[n++], r, sizeof *r);
	}
	return n;
}

int writelog_collect(const struct writelog *w, struct writelog_record **out, uint32_t *n)
{
	struct writelog_segment *s = w->h->segment;
	struct writelog_record *all;
	uint32_t have, kept = 0;

	*out = NULL;
	*n = 0;
	if (w->h->magic != MAGIC)
		return -EUCLEAN;
	if (s[0].count > WRITELOG_RECORDS || s[1].count > WRITELOG_RECORDS)
		return -ENOSPC;
	all = malloc((s[0].count + s[1].count + 1) * sizeof *all);
	if (!all)
		return -ENOMEM;
	have = collect_segment(w, 0, all);
	have += collect_segment(w, 1, all + have);
	qsort(all, have, sizeof *all, by_block);
	for (uint32_t i = 0; i < have; i++)
		if (i + 1 == have || all[i].volume != all[i + 1].volume || all[i].block != all[i + 1].block)
			memmove(&all[kept++], &all[i], sizeof *all);
	*out = all;
	*n = kept;
	return 0;
}
