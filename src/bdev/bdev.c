/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bdev.c - the device layer: module registry, specs, devices, channels, and the life of an I/O.
 *
 * Threads: the registry is filled by constructors before main() and only read afterwards. bdev_open, bdev_close and the
 * getters may be called from any thread; the list of open devices has a lock of its own, a leaf. A channel and the I/Os
 * on it belong to one thread at a time; no I/O takes a lock here.
 *
 * The life of an I/O on a channel (io->next links it in exactly one list, or belongs to the module):
 *
 *   bdev_submit          bdev_poll                module                  bdev_poll
 *   ---------> queued  ------------> started   ------------> finished  -----------> done() called, the caller's again
 *        \                (the module holds it)  bdev_io_complete  /
 *         `-- refused: bad range, read-only -----------------------
 *
 * in_flight = queued + started + finished. io->result is IO_PENDING from bdev_submit until just before done().
 * done() is only called from bdev_poll, so a module never runs inside its caller's completion handler, nor the other
 * way round. The one way around all this is rw_one(): a single I/O that its caller waits for anyway goes to the
 * module's rw_sync and is on no list; its done() is called when rw_sync has returned.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bdev/module.h"
#include "util/waits.h"

#define IO_PENDING 1 /* results are 0 or negative */
#define MAX_NESTING 16 /* devices stacked in one spec: more is a mistake, and bounds the recursion */
#define DEFAULT_DEPTH 64

static struct bdev_module *modules;

void bdev_module_register(struct bdev_module *module)
{
	struct bdev_module **p = &modules;

	/* Sorted by name: the order of constructors is the linker's, messages should not depend on it. */
	while (*p && strcmp((*p)->name, module->name) < 0)
		p = &(*p)->next;
	module->next = *p;
	*p = module;
}

/* ---- specs, devices ---- */

static struct bdev_module *find_module(const char *name, size_t len)
{
	for (struct bdev_module *m = modules; m; m = m->next)
		if (strlen(m->name) == len && !memcmp(m->name, name, len))
			return m;
	return NULL;
}

/* Finds the module of a spec, and its arguments: a path is short for "file:PATH". */
static struct bdev_module *parse_module(const char *spec, const char **args)
{
	size_t len = strcspn(spec, ":");
	struct bdev_module *m = find_module(spec, len);

	if (m) {
		*args = spec[len] ? spec + len + 1 : "";
		return m;
	}
	*args = spec;
	return find_module("file", 4);
}

/* ---- which devices answer ---- */

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct bdev *open_devices; /* open_lock */

static void enlist(struct bdev *b)
{
	pthread_mutex_lock(&open_lock);
	b->next_open = open_devices;
	open_devices = b;
	pthread_mutex_unlock(&open_lock);
}

/* Nothing for a device that somebody else wraps. */
static void delist(struct bdev *b)
{
	pthread_mutex_lock(&open_lock);
	for (struct bdev **p = &open_devices; *p; p = &(*p)->next_open) {
		if (*p == b) {
			*p = b->next_open;
			break;
		}
	}
	pthread_mutex_unlock(&open_lock);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* On the stack of a thread that waits for a device. */
struct bdev_wait {
	struct bdev_wait *newer, *older;
	uint64_t since; /* ns */
};

static void wait_begins(struct bdev *b, struct bdev_wait *w)
{
	*w = (struct bdev_wait){ .since = now_ns() };
	pthread_mutex_lock(&b->waits_lock);
	w->older = b->newest_wait;
	*(w->older ? &w->older->newer : &b->oldest_wait) = w;
	b->newest_wait = w;
	pthread_mutex_unlock(&b->waits_lock);
}

static void wait_ends(struct bdev *b, struct bdev_wait *w)
{
	pthread_mutex_lock(&b->waits_lock);
	*(w->older ? &w->older->newer : &b->oldest_wait) = w->newer;
	*(w->newer ? &w->newer->older : &b->newest_wait) = w->older;
	pthread_mutex_unlock(&b->waits_lock);
}

/* ns; 0: nobody waits */
static uint64_t longest_wait(struct bdev *b)
{
	uint64_t now = now_ns(), ns = 0;

	pthread_mutex_lock(&b->waits_lock);
	if (b->oldest_wait && now > b->oldest_wait->since)
		ns = now - b->oldest_wait->since;
	pthread_mutex_unlock(&b->waits_lock);
	return ns;
}

void bdev_set_use(struct bdev *bdev, const char *use)
{
	char *copy = strdup(use);

	pthread_mutex_lock(&open_lock);
	free(bdev->use);
	bdev->use = copy;
	pthread_mutex_unlock(&open_lock);
}

bool bdev_find_hung(unsigned ms, char *buf, size_t len)
{
	bool found = false;

	pthread_mutex_lock(&open_lock);
	for (struct bdev *b = open_devices; b && !found; b = b->next_open) {
		uint64_t ns = longest_wait(b);

		found = ns && ns >= ms * UINT64_C(1000000);
		if (found)
			snprintf(buf, len, "%s%s%s%s", b->use ? b->use : "", b->use ? " (" : "", b->spec,
				 b->use ? ")" : "");
	}
	pthread_mutex_unlock(&open_lock);
	return found;
}

static void free_bdev(struct bdev *b)
{
	bdev_close(b->base);
	pthread_mutex_destroy(&b->waits_lock);
	free(b->use);
	free(b->spec);
	free(b);
}

static int open_nested(const char *spec, unsigned flags, unsigned level, struct bdev **out, struct bc_error *err);

/* Cuts "ARGS:SPEC" at the first colon and opens the device below. */
static int open_base(struct bdev *b, char *args, unsigned level, struct bc_error *err)
{
	const struct bdev_module *m = b->module;
	char *colon = strchr(args, ':');
	int r;

	if (!colon || !colon[1])
		return bc_fail(err, -EINVAL, "%s: no device below it; write %s:%s:DEVICE", b->spec, m->name, m->usage);
	*colon = 0;
	r = open_nested(colon + 1, b->flags, level + 1, &b->base, err);
	if (r)
		return r;
	b->size = b->base->size;
	b->alignment = b->base->alignment;
	return 0;
}

static int open_nested(const char *spec, unsigned flags, unsigned level, struct bdev **out, struct bc_error *err)
{
	const char *text;
	char *args = NULL;
	struct bdev_module *m;
	struct bdev *b = NULL;
	int r = -ENOMEM;

	if (level >= MAX_NESTING)
		return bc_fail(err, -EINVAL, "device spec nests more than %d devices", MAX_NESTING);
	if (!*spec)
		return bc_fail(err, -EINVAL, "empty device name; give a path or a device spec such as null:size=1G");
	m = parse_module(spec, &text);
	if (!m)
		return bc_fail(err, -EINVAL, "%s: this program was built without file devices", spec);
	args = strdup(text);
	b = calloc(1, m->bdev_size);
	if (!args || !b)
		goto out_memory;
	pthread_mutex_init(&b->waits_lock, NULL);
	b->module = m;
	b->flags = flags;
	b->alignment = 1;
	b->spec = strdup(spec);
	if (!b->spec)
		goto out_memory;
	r = m->wraps ? open_base(b, args, level, err) : 0;
	if (r)
		goto out;
	r = m->construct(b, args, err);
	if (r)
		goto out;
	*out = b;
	b = NULL;
	goto out;
out_memory:
	bc_fail(err, -ENOMEM, "%s: out of memory", spec);
out:
	if (b)
		free_bdev(b);
	free(args);
	return r;
}

int bdev_open(const char *spec, unsigned flags, struct bdev **out, struct bc_error *err)
{
	int r;

	*out = NULL;
	r = open_nested(spec, flags, 0, out, err);
	if (!r)
		enlist(*out);
	return r;
}

const char *bdev_spec_path(const char *spec)
{
	for (int level = 0; level < MAX_NESTING; level++) {
		const char *args;
		const struct bdev_module *m = parse_module(spec, &args);

		if (!m || !m->wraps)
			return m && !strcmp(m->name, "file") ? args : NULL;
		spec = strchr(args, ':');
		if (!spec++)
			return NULL;
	}
	return NULL;
}

void bdev_close(struct bdev *bdev)
{
	struct bdev_wait w;

	if (!bdev || atomic_fetch_add(&bdev->holds, -1u)) /* from 0: the last one */
		return;
	wait_begins(bdev, &w);
	if (bdev->module->destruct)
		bdev->module->destruct(bdev);
	delist(bdev);
	free_bdev(bdev);
}

void bdev_hold(struct bdev *bdev)
{
	atomic_fetch_add(&bdev->holds, 1);
}

uint64_t bdev_size(const struct bdev *bdev)
{
	return bdev->size;
}

uint32_t bdev_alignment(const struct bdev *bdev)
{
	return bdev->alignment;
}

const char *bdev_spec(const struct bdev *bdev)
{
	return bdev->spec;
}

const char *bdev_module_name(const struct bdev *bdev)
{
	return bdev->module->name;
}

bool bdev_io_type_supported(struct bdev *bdev, enum bdev_io_type type)
{
	if (type == BDEV_RESET) /* done by this layer */
		return true;
	for (; bdev; bdev = bdev->base)
		if (bdev->module->io_type_supported)
			return bdev->module->io_type_supported(bdev, type);
	return true;
}

void bdev_get_identity(struct bdev *bdev, struct bdev_identity *id)
{
	struct bdev *b = bdev;
	struct bdev_wait w;

	*id = (struct bdev_identity){ .size = bdev->size };
	while (b && !b->module->get_identity)
		b = b->base;
	if (!b)
		return;
	wait_begins(bdev, &w);
	b->module->get_identity(b, id);
	wait_ends(bdev, &w);
}

int bdev_sync_identity(struct bdev *bdev)
{
	struct bdev *b = bdev;
	struct bdev_wait w;
	int r;

	while (b && !b->module->get_identity)
		b = b->base;
	if (!b || !b->module->sync_identity)
		return 0;
	wait_begins(bdev, &w);
	r = b->module->sync_identity(b);
	wait_ends(bdev, &w);
	return r;
}

void bdev_get_label(struct bdev *bdev, char label[BDEV_LABEL_MAX])
{
	label[0] = 0;
	for (; bdev; bdev = bdev->base) {
		if (bdev->module->get_label) {
			bdev->module->get_label(bdev, label, BDEV_LABEL_MAX);
			return;
		}
	}
}

int bdev_check_name(struct bdev *bdev, unsigned ms, char *why, size_t len)
{
	for (; bdev; bdev = bdev->base)
		if (bdev->module->check_name)
			return bdev->module->check_name(bdev, ms, why, len);
	return 0;
}

bool bdev_is_deleted(struct bdev *bdev)
{
	for (; bdev; bdev = bdev->base)
		if (bdev->module->is_deleted)
			return bdev->module->is_deleted(bdev);
	return false;
}

int bdev_check_size(struct bdev *bdev)
{
	struct bdev_identity id;

	bdev_get_identity(bdev, &id);
	return id.size == bdev->size ? 0 : -ESTALE;
}

void bdev_dump_info(struct bdev *bdev, FILE *out)
{
	fprintf(out, "module=%s size=%llu alignment=%u", bdev->module->name, (unsigned long long)bdev->size,
		bdev->alignment);
	if (bdev->flags & BDEV_OPEN_RDONLY)
		fputs(" readonly=yes", out);
	if (bdev->flags & BDEV_OPEN_CLAIM)
		fputs(" claimed=yes", out);
	if (bdev->module->dump_info)
		bdev->module->dump_info(bdev, out);
	if (bdev->base) {
		fputs(" base: ", out);
		bdev_dump_info(bdev->base, out);
	}
}

void bdev_write_config(struct bdev *bdev, FILE *out)
{
	fputs(bdev->spec, out);
}

/* ---- channels ---- */

struct bdev_channel *bdev_channel_open(struct bdev *bdev, unsigned depth)
{
	const struct bdev_module *m = bdev->module;
	struct bdev_channel *ch = calloc(1, m->channel_size);
	int r = 0;

	if (!ch) {
		errno = ENOMEM;
		return NULL;
	}
	if (!depth)
		depth = DEFAULT_DEPTH;
	ch->bdev = bdev;
	ch->queued_tail = &ch->queued;
	ch->finished_tail = &ch->finished;
	if (bdev->base) {
		ch->base = bdev_channel_open(bdev->base, depth);
		if (!ch->base) {
			r = -errno;
			goto out;
		}
	}
	if (m->get_channel)
		r = m->get_channel(ch, depth);
out:
	if (r) {
		bdev_channel_close(ch->base);
		free(ch);
		errno = -r;
		return NULL;
	}
	return ch;
}

void bdev_channel_close(struct bdev_channel *ch)
{
	if (!ch)
		return;
	if (ch->bdev->module->put_channel)
		ch->bdev->module->put_channel(ch);
	bdev_channel_close(ch->base);
	free(ch);
}

struct bdev *bdev_channel_bdev(struct bdev_channel *ch)
{
	return ch->bdev;
}

unsigned bdev_in_flight(const struct bdev_channel *ch)
{
	return ch->in_flight;
}

/* ---- I/O ---- */

/* 0 if the I/O may be started. */
static int check_io(const struct bdev *b, const struct bdev_io *io)
{
	uint64_t sum = 0;

	if (io->type == BDEV_FLUSH || io->type == BDEV_RESET)
		return 0;
	if ((unsigned)io->type >= BDEV_IO_TYPES || io->offset > b->size || io->length > b->size - io->offset)
		return -EINVAL;
	if (io->type != BDEV_READ && (b->flags & BDEV_OPEN_RDONLY))
		return -EROFS;
	if (io->type != BDEV_READ && io->type != BDEV_WRITE)
		return 0;
	if (io->iovcnt < 0 || io->iovcnt > BDEV_MAX_IOV)
		return -EINVAL;
	for (int i = 0; i < io->iovcnt; i++)
		if (__builtin_add_overflow(sum, io->iov[i].iov_len, &sum))
			return -EINVAL;
	/* A list longer than `length` would reach beyond the range that was checked. */
	return sum == io->length ? 0 : -EINVAL;
}

static void finish(struct bdev_channel *ch, struct bdev_io *io, int result)
{
	/* Devices without a volatile cache have nothing to flush. */
	if (io->type == BDEV_FLUSH && result == -EOPNOTSUPP)
		result = 0;
	/* Not in io->result yet: bdev_rw_wait takes a result that is not IO_PENDING for an I/O that is off all lists.
	 */
	io->priv[0] = (uint64_t)(int64_t)result;
	io->next = NULL;
	*ch->finished_tail = io;
	ch->finished_tail = &io->next;
	ch->nfinished++;
}

void bdev_io_complete(struct bdev_channel *ch, struct bdev_io *io, int result)
{
	ch->started--;
	finish(ch, io, result);
}

void bdev_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	int r = check_io(ch->bdev, io);

	io->result = IO_PENDING;
	ch->in_flight++;
	if (r || (!io->length && io->type != BDEV_FLUSH && io->type != BDEV_RESET)) {
		finish(ch, io, r);
		return;
	}
	io->next = NULL;
	*ch->queued_tail = io;
	ch->queued_tail = &io->next;
}

/* Hands the queue to the module. A RESET waits at its head until the module holds nothing, and what follows it waits
 * behind it. */
static void start_queued(struct bdev_channel *ch)
{
	struct bdev_io *io;

	while ((io = ch->queued)) {
		if (io->type == BDEV_RESET && ch->started)
			return;
		ch->queued = io->next;
		if (!ch->queued)
			ch->queued_tail = &ch->queued;
		if (io->type == BDEV_RESET) {
			finish(ch, io, 0);
			continue;
		}
		ch->started++;
		ch->bdev->module->submit(ch, io);
	}
}

/* Calls done() for what is finished now; not for what those calls finish, or an I/O that resubmits itself would keep us
 * here. */
static unsigned deliver(struct bdev_channel *ch)
{
	unsigned n = 0;

	for (unsigned left = ch->nfinished; left && ch->finished; left--) {
		struct bdev_io *io = ch->finished;

		ch->finished = io->next;
		if (!ch->finished)
			ch->finished_tail = &ch->finished;
		ch->nfinished--;
		ch->in_flight--;
		n++;
		io->result = (int)(int64_t)io->priv[0];
		if (io->done)
			io->done(io);
	}
	return n;
}

static void poll_module(struct bdev_channel *ch, unsigned want)
{
	start_queued(ch);
	if (ch->started && ch->bdev->module->poll)
		ch->bdev->module->poll(ch, want);
}

unsigned bdev_poll(struct bdev_channel *ch, unsigned min_complete)
{
	unsigned n = 0;

	if (min_complete > ch->in_flight)
		min_complete = ch->in_flight;
	do {
		unsigned have;

		start_queued(ch);
		have = n + ch->nfinished;
		poll_module(ch, have < min_complete ? min_complete - have : 0);
		n += deliver(ch);
		/* in_flight can only reach 0 early if a done() has polled by itself. */
	} while (n < min_complete && ch->in_flight);
	if (ch->queued) /* by done() */
		poll_module(ch, 0);
	return n;
}

/* One I/O without the queue. */
static int rw_one(struct bdev_channel *ch, struct bdev_io *io)
{
	int r = check_io(ch->bdev, io);

	if (!r && (io->length || io->type == BDEV_FLUSH))
		r = ch->bdev->module->rw_sync(ch, io);
	if (r == -EOPNOTSUPP && io->type == BDEV_FLUSH)
		r = 0;
	io->result = r;
	if (io->done)
		io->done(io);
	return r;
}

static int rw_wait(struct bdev_channel *ch, struct bdev_io *ios, size_t n)
{
	int r = 0;

	/* What is queued must be started by whoever waits, so then there is no way around the queue. */
	if (n == 1 && ch->bdev->module->rw_sync && !ch->queued && ios->type != BDEV_RESET)
		return rw_one(ch, ios);
	for (size_t i = 0; i < n; i++)
		bdev_submit(ch, &ios[i]);
	for (;;) {
		unsigned pending = 0;

		for (size_t i = 0; i < n; i++)
			pending += ios[i].result == IO_PENDING;
		if (!pending)
			break;
		/* With others in flight, waiting for `pending` could mean waiting for them. */
		bdev_poll(ch, ch->in_flight == pending ? pending : 1);
	}
	for (size_t i = 0; i < n && !r; i++)
		r = ios[i].result;
	return r;
}

int bdev_rw_wait(struct bdev_channel *ch, struct bdev_io *ios, size_t n)
{
	struct bdev_wait w;
	int r;

	about_to_wait();
	if (!n || ios->type == BDEV_READ)
		return rw_wait(ch, ios, n);
	wait_begins(ch->bdev, &w);
	r = rw_wait(ch, ios, n);
	wait_ends(ch->bdev, &w);
	return r;
}

static int one(struct bdev_channel *ch, enum bdev_io_type type, void *buf, size_t len, uint64_t offset)
{
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct bdev_io io = { .type = type, .offset = offset, .length = len, .iov = &iov, .iovcnt = 1 };

	return bdev_rw_wait(ch, &io, 1);
}

int bdev_pread(struct bdev_channel *ch, void *buf, size_t len, uint64_t offset)
{
	return one(ch, BDEV_READ, buf, len, offset);
}

int bdev_pwrite(struct bdev_channel *ch, const void *buf, size_t len, uint64_t offset)
{
	return one(ch, BDEV_WRITE, (void *)(uintptr_t)buf, len, offset);
}

int bdev_flush(struct bdev_channel *ch)
{
	return one(ch, BDEV_FLUSH, NULL, 0, 0);
}
