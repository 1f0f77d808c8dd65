/* SPDX-License-Identifier: BSD-3-Clause */
/* world.c - see world.h. One lock over the current world and its log; everything else is the main thread's. */
#include "world.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct page {
	_Atomic int refs;
	uint8_t data[PAGE];
};

struct world *world;
void (*world_pause)(const char *place);
bool world_journal_fails;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *must(void *p)
{
	if (p)
		return p;
	fprintf(stderr, "crash rig: out of memory\n");
	abort();
}

static bool all_zero(const uint8_t *p, size_t n)
{
	return !n || (!p[0] && !memcmp(p, p + 1, n - 1));
}

/* ---- pages ---- */

static void page_put(struct page *p)
{
	if (p && atomic_fetch_sub(&p->refs, 1) == 1)
		free(p);
}

static struct page *page_own(struct page **at)
{
	struct page *p = *at;

	if (p && p->refs == 1)
		return p;
	*at = must(malloc(sizeof *p));
	if (p)
		memcpy((*at)->data, p->data, PAGE);
	else
		memset((*at)->data, 0, PAGE);
	(*at)->refs = 1;
	page_put(p);
	return *at;
}

static void grow(struct file *f, uint64_t size)
{
	uint32_t need = (uint32_t)((size + PAGE - 1) / PAGE);

	if (need > f->npages) {
		uint32_t n = need + need / 2 + 16;

		f->pages = must(realloc(f->pages, n * sizeof f->pages[0]));
		memset(f->pages + f->npages, 0, (n - f->npages) * sizeof f->pages[0]);
		f->npages = n;
	}
	if (size > f->size)
		f->size = size;
}

static void put_bytes(struct file *f, const uint8_t *data, size_t len, uint64_t off)
{
	grow(f, off + len);
	while (len) {
		uint32_t at = off % PAGE, n = PAGE - at < len ? PAGE - at : (uint32_t)len;
		struct page **pp = &f->pages[off / PAGE];

		if (n == PAGE && (!data || all_zero(data, n))) {
			page_put(*pp);
			*pp = NULL;
		} else if (*pp || (data && !all_zero(data, n))) {
			if (data)
				memcpy(page_own(pp)->data + at, data, n);
			else
				memset(page_own(pp)->data + at, 0, n);
		}
		off += n;
		len -= n;
		if (data)
			data += n;
	}
}

static void cut(struct file *f, uint64_t size)
{
	if (size < f->size) {
		uint32_t keep = (uint32_t)((size + PAGE - 1) / PAGE);

		for (uint32_t i = keep; i < f->npages; i++) {
			page_put(f->pages[i]);
			f->pages[i] = NULL;
		}
		if (size % PAGE && f->pages[size / PAGE])
			memset(page_own(&f->pages[size / PAGE])->data + size % PAGE, 0, PAGE - size % PAGE);
	}
	grow(f, size);
	f->size = size;
}

/* ---- names ---- */

static struct name *find_name(struct world *w, const char *name)
{
	for (int i = 0; i < MAX_NAMES; i++)
		if (!strcmp(w->name[i].name, name))
			return &w->name[i];
	return NULL;
}

static void set_name(struct world *w, const char *name, int file)
{
	struct name *n = find_name(w, name);

	if (!n)
		n = must(find_name(w, ""));
	snprintf(n->name, sizeof n->name, "%s", name);
	n->file = file;
}

static void clear_name(struct world *w, const char *name)
{
	struct name *n = find_name(w, name);

	if (n)
		n->name[0] = 0;
}

/* ---- worlds ---- */

struct world *world_new(void)
{
	return must(calloc(1, sizeof(struct world)));
}

struct world *world_clone(const struct world *w)
{
	struct world *c = must(malloc(sizeof *c));

	*c = *w;
	c->log = NULL;
	for (int i = 0; i < w->nfiles; i++) {
		struct file *f = &c->file[i];
		uint32_t n = (uint32_t)((f->size + PAGE - 1) / PAGE);

		f->npages = n;
		f->pages = NULL;
		if (!n)
			continue;
		f->pages = must(malloc(n * sizeof f->pages[0]));
		memcpy(f->pages, w->file[i].pages, n * sizeof f->pages[0]);
		for (uint32_t k = 0; k < n; k++)
			if (f->pages[k])
				atomic_fetch_add_explicit(&f->pages[k]->refs, 1, memory_order_relaxed);
	}
	return c;
}

void log_free(struct log *log)
{
	if (!log)
		return;
	for (uint32_t i = 0; i < log->n; i++)
		free(log->ev[i].data);
	free(log->ev);
	free(log);
}

void world_free(struct world *w)
{
	if (!w)
		return;
	for (int i = 0; i < w->nfiles; i++) {
		for (uint32_t k = 0; k < w->file[i].npages; k++)
			page_put(w->file[i].pages[k]);
		free(w->file[i].pages);
	}
	log_free(w->log);
	free(w);
}

const char *world_name(const struct world *w, int file)
{
	for (int i = 0; i < MAX_NAMES; i++)
		if (w->name[i].name[0] && w->name[i].file == file)
			return w->name[i].name;
	return NULL;
}

void world_settle(struct world *w)
{
	bool named[MAX_FILES] = { false };
	int last = 0;

	for (int i = 0; i < MAX_NAMES; i++)
		if (w->name[i].name[0])
			named[w->name[i].file] = true;
	for (int i = 0; i < w->nfiles; i++) {
		struct file *f = &w->file[i];

		if (named[i]) {
			last = i + 1;
			continue;
		}
		for (uint32_t k = 0; k < f->npages; k++)
			page_put(f->pages[k]);
		free(f->pages);
		memset(f, 0, sizeof *f);
	}
	w->nfiles = last;
}

void world_apply(struct world *w, const struct event *e, const uint8_t *mask)
{
	if (e->file >= w->nfiles) /* FOLDER is below all */
		w->nfiles = e->file + 1;
	switch (e->type) {
	case EV_WRITE:
		for (uint64_t at = 0; mask && at < e->len;) {
			uint64_t sector = (e->off + at) / SECTOR, n = (sector + 1) * SECTOR - (e->off + at);
			uint64_t k = sector - e->off / SECTOR;

			if (n > e->len - at)
				n = e->len - at;
			if (mask[k / 8] >> (k % 8) & 1)
				put_bytes(&w->file[e->file], e->data ? e->data + at : NULL, n, e->off + at);
			at += n;
		}
		if (!mask)
			put_bytes(&w->file[e->file], e->data, e->len, e->off);
		break;
	case EV_TRUNCATE:
		cut(&w->file[e->file], e->len);
		break;
	case EV_LINK:
		set_name(w, e->name, e->file);
		break;
	case EV_UNLINK:
		clear_name(w, e->name);
		break;
	case EV_RENAME: {
		struct name *n = find_name(w, e->name);
		/* what the name meant when it was renamed, even if giving it that name did not survive */
		int file = e->file;

		if (n)
			n->name[0] = 0;
		set_name(w, e->name2, file);
		break;
	}
	case EV_SYNC:
	case EV_SYNCED:
		break;
	}
}

/* ---- the log ---- */

uint32_t log_length(void)
{
	uint32_t n;

	pthread_mutex_lock(&lock);
	n = world->log ? world->log->n : 0;
	pthread_mutex_unlock(&lock);
	return n;
}

/* lock held */
static uint32_t record(struct event e, const void *data)
{
	struct log *l = world->log;

	if (!l)
		return UINT32_MAX;
	if (l->n == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 256;
		l->ev = must(realloc(l->ev, l->cap * sizeof l->ev[0]));
	}
	if (data && !all_zero(data, e.len)) {
		e.data = must(malloc(e.len));
		memcpy(e.data, data, e.len);
	}
	l->ev[l->n] = e;
	return l->n++;
}

int file_find(const char *name)
{
	struct name *n;
	int file;

	pthread_mutex_lock(&lock);
	n = *name ? find_name(world, name) : NULL;
	file = n ? n->file : -1;
	pthread_mutex_unlock(&lock);
	return file;
}

/* lock held */
static uint32_t log_end(void)
{
	return world->log ? world->log->n + 1 : 0;
}

int file_create(const char *name)
{
	struct event e = { .type = EV_LINK };

	pthread_mutex_lock(&lock);
	if (world->nfiles == MAX_FILES) {
		fprintf(stderr, "crash rig: too many files\n");
		abort();
	}
	e.file = world->nfiles;
	e.end = log_end();
	snprintf(e.name, sizeof e.name, "%s", name);
	world_apply(world, &e, NULL);
	record(e, NULL);
	pthread_mutex_unlock(&lock);
	return e.file;
}

void name_unlink(const char *name)
{
	struct event e = { .type = EV_UNLINK, .file = FOLDER };

	pthread_mutex_lock(&lock);
	if (find_name(world, name)) {
		e.end = log_end();
		snprintf(e.name, sizeof e.name, "%s", name);
		world_apply(world, &e, NULL);
		record(e, NULL);
	}
	pthread_mutex_unlock(&lock);
}

int name_rename(const char *from, const char *to, bool noreplace)
{
	struct event e = { .type = EV_RENAME };
	struct name *n;
	int rc = -1;

	pthread_mutex_lock(&lock);
	n = find_name(world, from);
	if (n && !(noreplace && find_name(world, to))) {
		e.file = n->file;
		e.end = log_end();
		snprintf(e.name, sizeof e.name, "%s", from);
		snprintf(e.name2, sizeof e.name2, "%s", to);
		world_apply(world, &e, NULL);
		record(e, NULL);
		rc = 0;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

uint64_t file_size(int file)
{
	uint64_t n;

	pthread_mutex_lock(&lock);
	n = world->file[file].size;
	pthread_mutex_unlock(&lock);
	return n;
}

size_t file_read(int file, void *buf, size_t len, uint64_t off)
{
	struct file *f = &world->file[file];
	uint8_t *to = buf;
	size_t left;

	pthread_mutex_lock(&lock);
	if (off >= f->size)
		len = 0;
	else if (len > f->size - off)
		len = (size_t)(f->size - off);
	for (left = len; left;) {
		uint32_t at = off % PAGE, n = PAGE - at < left ? PAGE - at : (uint32_t)left;
		const struct page *p = f->pages[off / PAGE];

		if (p)
			memcpy(to, p->data + at, n);
		else
			memset(to, 0, n);
		to += n;
		off += n;
		left -= n;
	}
	pthread_mutex_unlock(&lock);
	return len;
}

uint32_t file_write(int file, const void *buf, size_t len, uint64_t off, bool in_flight)
{
	struct event e = { .type = EV_WRITE, .file = file, .off = off, .len = len };
	uint32_t at;

	if (!len)
		return UINT32_MAX;
	pthread_mutex_lock(&lock);
	put_bytes(&world->file[file], buf, len, off);
	e.mtime = world->file[file].mtime = ++world->clock;
	e.end = in_flight ? UINT32_MAX : log_end();
	at = record(e, buf);
	pthread_mutex_unlock(&lock);
	return at;
}

void write_done(uint32_t event)
{
	if (event == UINT32_MAX)
		return;
	pthread_mutex_lock(&lock);
	if (world->log && event < world->log->n)
		world->log->ev[event].end = world->log->n;
	pthread_mutex_unlock(&lock);
}

void file_truncate(int file, uint64_t size)
{
	struct event e = { .type = EV_TRUNCATE, .file = file, .len = size };

	pthread_mutex_lock(&lock);
	if (world->file[file].size != size) {
		cut(&world->file[file], size);
		e.end = log_end();
		record(e, NULL);
	}
	pthread_mutex_unlock(&lock);
}

int64_t file_mtime(int file)
{
	int64_t t;

	pthread_mutex_lock(&lock);
	t = world->file[file].mtime;
	pthread_mutex_unlock(&lock);
	return t;
}

uint32_t sync_begin(int file, bool mtime)
{
	struct event e = { .type = EV_SYNC, .file = file, .len = mtime };
	uint32_t at;

	pthread_mutex_lock(&lock);
	if (file != FOLDER)
		e.mtime = world->file[file].mtime;
	at = record(e, NULL);
	pthread_mutex_unlock(&lock);
	world_may_pause("sync");
	return at;
}

void sync_end(int file, uint32_t begin)
{
	struct event e = { .type = EV_SYNCED, .file = file, .end = begin };

	pthread_mutex_lock(&lock);
	record(e, NULL);
	pthread_mutex_unlock(&lock);
}

void file_lose(int file)
{
	struct log *l = world->log;
	uint32_t synced = 0;

	pthread_mutex_lock(&lock);
	world->file[file].errors++;
	for (uint32_t i = 0; l && i < l->n; i++)
		if (l->ev[i].type == EV_SYNCED && l->ev[i].file == file && l->ev[i].end >= synced)
			synced = l->ev[i].end + 1; /* covers what was done before it began */
	for (uint32_t i = 0; l && i < l->n; i++) {
		struct event *e = &l->ev[i];

		if (e->type == EV_WRITE && e->file == file && (!synced || e->end > synced - 1))
			e->end = UINT32_MAX;
	}
	pthread_mutex_unlock(&lock);
}

uint32_t file_errors(int file)
{
	uint32_t n;

	pthread_mutex_lock(&lock);
	n = world->file[file].errors;
	pthread_mutex_unlock(&lock);
	return n;
}
