/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fsrecord - writes, renames, truncates and deletes files of a file system while somebody kills the daemon below it,
 * and checks what is left: whatever fsync promised (P1), and nothing foreign (P3).
 *
 * - fsrecord init DIR STATE SEED: makes folders and first files in DIR, durably, and a new state file
 * - fsrecord write DIR STATE SECONDS: works at random until the time is over or I/O fails; status 1 if a read was wrong
 * - fsrecord verify DIR STATE: reads everything; status 1 if a promise was broken, 2 if it could not read
 * - fsrecord damage DIR STATE: after a good verify, does to some files what verify must find; prints "KIND PATH" lines
 *
 * Every 4 KiB block is a function of (seed, file, block, version). File numbers are never used again, versions count up
 * over everything ever written. The state file, which must not lie on that file system, knows
 * - of each block the version that was fsynced for certain, and the newest that may have been written,
 * - of each file its length when it was fsynced, and the shortest and longest since,
 * - of the names what they meant when the folders were last fsynced, and each change begun since, in order.
 * It notes a change before the call and durability after the call has succeeded.
 *
 * After a crash
 * - the names are those of some moment since the folders were fsynced: ext4 keeps one thread's changes in order;
 * - a file is as long as it was at some time since its fsync, or somewhere between;
 * - a block is whole, its file's, in its place, and of a version from fsynced to written; or zeros, if no version of it
 *   is certain or the file was cut off before it (space that has been allocated and not written reads as zeros).
 * What verify saw is durable and becomes the new record, so that neither older nor lost content can come up later.
 *
 * Pages are not stable under write-back: who changes one meanwhile may himself tear what reaches the disk. So a block
 * is written through the page cache once at most between two fsyncs of its file; O_DIRECT knows no such limit.
 *
 * Each thread has folders of its own, so its records need no lock; `version` is shared.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define THREADS 4u
#define FOLDERS 2u /* per thread */
#define NAMES 48u /* per thread; the even ones lie in the first folder */
#define CHANGES 32u /* of names between two fsyncs of the folders */
#define FILES (NAMES + CHANGES) /* that a name may mean at one time */
#define LONGEST 96u /* blocks of a file */
#define BUDGET 2400u /* blocks of a thread's files */
#define CHUNK 32u /* blocks written at once */
#define MAGIC 0x626c6b6366736b31ull
#define NONE UINT32_MAX

struct file {
	uint32_t id; /* 0: this record is free */
	uint32_t len, synced_len, min_len, max_len; /* blocks; min and max since the fsync */
	uint32_t synced[LONGEST], written[LONGEST]; /* versions; 0 = never */
	bool paged[LONGEST]; /* written through the page cache since the fsync */
};

/* One step: two names get new meanings at once. A step that concerns one name has it twice. */
struct change {
	uint32_t name[2], file[2];
};

struct thread {
	uint32_t durable[NAMES], current[NAMES]; /* indexes of files, or NONE */
	uint32_t nchanges;
	struct change changes[CHANGES];
	struct file files[FILES];
};

struct state {
	uint64_t magic, seed;
	uint32_t version, ids;
	struct thread threads[THREADS];
};

struct worker {
	pthread_t thread;
	unsigned index;
	struct thread *t;
	uint64_t random;
	int folders[FOLDERS];
	uint64_t writes, fsyncs, renames, deletes, reads;
};

static struct state *state;
static atomic_uint version, ids;
static atomic_bool dead, wrong;
static struct timespec deadline;

static void die(const char *what)
{
	fprintf(stderr, "fsrecord: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void load_state(const char *path)
{
	int fd = open(path, O_RDONLY);

	state = malloc(sizeof(*state));
	if (fd < 0 || !state || read(fd, state, sizeof(*state)) != (ssize_t)sizeof(*state) || state->magic != MAGIC)
		die(path);
	close(fd);
}

static void save_state(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, state, sizeof(*state)) != (ssize_t)sizeof(*state) || close(fd) != 0)
		die(path);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint32_t pick(struct worker *w, uint32_t n)
{
	w->random = mix(w->random);
	return (uint32_t)((w->random >> 32) % n);
}

/* ---- blocks ---- */

struct seen {
	enum { ZEROS, STAMPED, TORN, FOREIGN } kind;
	uint32_t id, block, version;
};

static void stamp(void *buf, uint32_t id, uint32_t block, uint32_t v)
{
	uint64_t *word = buf, x = mix(state->seed ^ mix((uint64_t)id << 32 | block) ^ v);

	word[0] = MAGIC;
	word[1] = state->seed;
	word[2] = (uint64_t)id << 32 | block;
	word[3] = v;
	for (unsigned i = 4; i < BLOCK / 8; i++)
		word[i] = x = x * 6364136223846793005ull + 1442695040888963407ull;
}

static struct seen look(const uint64_t *buf)
{
	static __thread uint64_t want[BLOCK / 8];
	struct seen s = { ZEROS };

	if (buf[0] == 0 && memcmp(buf, buf + 1, BLOCK - 8) == 0)
		return s;
	s.id = (uint32_t)(buf[2] >> 32);
	s.block = (uint32_t)buf[2];
	s.version = (uint32_t)buf[3];
	s.kind = FOREIGN;
	if (buf[0] == MAGIC && buf[1] == state->seed) {
		stamp(want, s.id, s.block, s.version);
		s.kind = memcmp(buf, want, BLOCK) == 0 ? STAMPED : TORN;
	}
	return s;
}

static const char *describe(const struct seen *s)
{
	static __thread char text[100];

	if (s->kind == ZEROS)
		return "zeros";
	if (s->kind == FOREIGN)
		return "what was never written to any file";
	snprintf(text, sizeof(text), "%sfile %u block %u version %u", s->kind == TORN ? "a torn block, once " : "",
		 s->id, s->block, s->version);
	return text;
}

/* ---- names and files ---- */

static const char *name_of(uint32_t name)
{
	static __thread char text[16];

	snprintf(text, sizeof(text), "n%02u", name);
	return text;
}

static const char *path_of(uint32_t thread, uint32_t name)
{
	static __thread char text[40];

	snprintf(text, sizeof(text), "t%u.%u/n%02u", thread, name % FOLDERS, name);
	return text;
}

static int open_name(struct worker *w, uint32_t name, int flags)
{
	return openat(w->folders[name % FOLDERS], name_of(name), flags, 0600);
}

static int open_folders(struct worker *w, const char *dir, unsigned index)
{
	char path[4096];

	w->index = index;
	w->t = &state->threads[index];
	for (unsigned i = 0; i < FOLDERS; i++) {
		snprintf(path, sizeof(path), "%s/t%u.%u", dir, index, i);
		w->folders[i] = open(path, O_RDONLY | O_DIRECTORY);
		if (w->folders[i] < 0)
			return -1;
	}
	return 0;
}

static void apply(uint32_t *names, const struct change *c)
{
	names[c->name[0]] = c->file[0];
	names[c->name[1]] = c->file[1];
}

static void note_change(struct thread *t, uint32_t a, uint32_t file_a, uint32_t b, uint32_t file_b)
{
	struct change *c = &t->changes[t->nchanges++];

	*c = (struct change){ { a, b }, { file_a, file_b } };
	apply(t->current, c);
}

/* The names as they are now are durable; files without one are no more. */
static void note_names_durable(struct thread *t)
{
	bool used[FILES] = { false };

	memcpy(t->durable, t->current, sizeof(t->durable));
	t->nchanges = 0;
	for (uint32_t i = 0; i < NAMES; i++)
		if (t->current[i] != NONE)
			used[t->current[i]] = true;
	for (uint32_t i = 0; i < FILES; i++)
		if (!used[i])
			t->files[i].id = 0;
}

static void note_fsynced(struct file *f)
{
	f->synced_len = f->min_len = f->max_len = f->len;
	memset(f->written + f->len, 0, (LONGEST - f->len) * sizeof(f->written[0]));
	memcpy(f->synced, f->written, sizeof(f->synced));
	memset(f->paged, 0, sizeof(f->paged));
}

/* There is always a free one: a change brings one file at most. */
static uint32_t new_file(struct thread *t)
{
	uint32_t i = 0;

	while (t->files[i].id != 0)
		i++;
	t->files[i] = (struct file){ .id = atomic_fetch_add(&ids, 1) + 1 };
	return i;
}

static uint32_t blocks_used(const struct thread *t)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < NAMES; i++)
		if (t->current[i] != NONE)
			n += t->files[t->current[i]].len;
	return n;
}

/* A random name that means a file, or one that does not; NONE if there is none. */
static uint32_t pick_name(struct worker *w, bool taken)
{
	uint32_t start = pick(w, NAMES);

	for (uint32_t i = 0; i < NAMES; i++) {
		uint32_t name = (start + i) % NAMES;

		if ((w->t->current[name] != NONE) == taken)
			return name;
	}
	return NONE;
}

/* ---- what a worker does: each returns 0, or -1 with errno when I/O failed ---- */

static int fsync_folders(struct worker *w)
{
	for (unsigned i = 0; i < FOLDERS; i++)
		if (fsync(w->folders[i]) != 0)
			return -1;
	note_names_durable(w->t);
	w->fsyncs++;
	return 0;
}

static int fsync_file(struct worker *w, int fd, struct file *f)
{
	if ((pick(w, 2) ? fsync(fd) : fdatasync(fd)) != 0)
		return -1;
	note_fsynced(f);
	w->fsyncs++;
	return 0;
}

static int write_blocks(struct worker *w, int fd, struct file *f, uint32_t first, uint32_t n, int how, bool direct)
{
	static __thread char buf[CHUNK * BLOCK] __attribute__((aligned(BLOCK)));
	struct iovec iov = { .iov_base = buf, .iov_len = (size_t)n * BLOCK };
	uint32_t v = atomic_fetch_add(&version, 1) + 1;
	ssize_t done;

	for (uint32_t i = 0; i < n; i++) {
		stamp(buf + (size_t)i * BLOCK, f->id, first + i, v);
		f->written[first + i] = v;
		f->paged[first + i] = !direct;
	}
	if (first + n > f->len)
		f->len = first + n;
	if (f->len > f->max_len)
		f->max_len = f->len;
	done = pwritev2(fd, &iov, 1, (off_t)first * BLOCK, how);
	if (done != (ssize_t)iov.iov_len) {
		if (done >= 0)
			errno = EIO;
		return -1;
	}
	w->writes++;
	return 0;
}

static int append(struct worker *w, int fd, struct file *f, uint32_t n, bool direct)
{
	/* What was cut off after its page was written and is now written again: see the head. */
	for (uint32_t i = f->len; i < f->len + n && i < LONGEST && !direct; i++)
		if (f->paged[i] && fsync_file(w, fd, f) != 0)
			return -1;
	while (n > 0 && f->len < LONGEST) {
		uint32_t now = n < CHUNK ? n : CHUNK;

		if (now > LONGEST - f->len)
			now = LONGEST - f->len;
		if (write_blocks(w, fd, f, f->len, now, 0, direct) != 0)
			return -1;
		n -= now;
	}
	return 0;
}

static int overwrite(struct worker *w, int fd, struct file *f, bool direct)
{
	uint32_t first = pick(w, f->len), n = 1;
	bool dsync = pick(w, 8) == 0;

	if (pick(w, 3) == 0)
		n += pick(w, (f->len - first < CHUNK ? f->len - first : CHUNK));
	for (uint32_t i = first; i < first + n && !direct; i++)
		if (f->paged[i] && fsync_file(w, fd, f) != 0)
			return -1;
	if (write_blocks(w, fd, f, first, n, dsync ? RWF_DSYNC : 0, direct) != 0)
		return -1;
	for (uint32_t i = first; dsync && i < first + n; i++)
		if (i < f->min_len)
			f->synced[i] = f->written[i];
	return 0;
}

static int cut(int fd, struct file *f, uint32_t len)
{
	if (len < f->min_len)
		f->min_len = len;
	f->len = len;
	return ftruncate(fd, (off_t)len * BLOCK);
}

static int read_back(struct worker *w, int fd, uint32_t name, const struct file *f)
{
	static __thread uint64_t buf[LONGEST * BLOCK / 8] __attribute__((aligned(BLOCK)));
	ssize_t got = pread(fd, buf, sizeof(buf), 0);

	if (got < 0)
		return -1;
	for (uint32_t i = 0; i < f->len && (i + 1) * BLOCK <= (size_t)got; i++) {
		struct seen s = look(buf + (size_t)i * BLOCK / 8);

		if (s.version == f->written[i] &&
		    (s.version == 0 ? s.kind == ZEROS : s.kind == STAMPED && s.id == f->id && s.block == i))
			continue;
		fprintf(stderr, "%s: read while it was in use: block %u: %s, want file %u version %u\n",
			path_of(w->index, name), i, describe(&s), f->id, f->written[i]);
		atomic_store(&wrong, true);
	}
	if (got != (ssize_t)f->len * BLOCK) { /* an error in the middle is a short read first */
		errno = EIO;
		return -1;
	}
	w->reads++;
	return 0;
}

static int rename_name(struct worker *w, uint32_t from, uint32_t to, unsigned flags)
{
	const char *to_name = strdupa(name_of(to));

	w->renames++;
	return renameat2(w->folders[from % FOLDERS], name_of(from), w->folders[to % FOLDERS], to_name, flags);
}

/* A new file under a free name, now and then moved over an old one at once. */
static int create(struct worker *w)
{
	uint32_t name = pick_name(w, false), over = pick(w, 3) == 0 ? pick_name(w, true) : NONE, file;
	bool direct = pick(w, 2), synced = pick(w, 4) != 0;
	int fd, rc;

	if (name == NONE || blocks_used(w->t) > BUDGET)
		return 0;
	file = new_file(w->t);
	note_change(w->t, name, file, name, file);
	fd = open_name(w, name, O_RDWR | O_CREAT | O_EXCL | (direct ? O_DIRECT : 0));
	if (fd < 0)
		return -1;
	rc = append(w, fd, &w->t->files[file], 1 + pick(w, LONGEST), direct);
	if (rc == 0 && synced)
		rc = fsync_file(w, fd, &w->t->files[file]);
	close(fd);
	if (rc == 0 && over != NONE) {
		note_change(w->t, name, NONE, over, file);
		rc = rename_name(w, name, over, 0);
	}
	if (rc == 0 && pick(w, 3) == 0)
		rc = fsync_folders(w);
	return rc;
}

static int change_name(struct worker *w)
{
	uint32_t a = pick_name(w, true), b = pick_name(w, pick(w, 2));

	if (a == NONE || b == NONE || a == b)
		return 0;
	if (w->t->current[b] != NONE && pick(w, 2)) {
		note_change(w->t, a, w->t->current[b], b, w->t->current[a]);
		return rename_name(w, a, b, RENAME_EXCHANGE);
	}
	note_change(w->t, a, NONE, b, w->t->current[a]);
	return rename_name(w, a, b, 0);
}

static int unlink_name(struct worker *w)
{
	uint32_t name = pick_name(w, true);

	if (name == NONE)
		return 0;
	note_change(w->t, name, NONE, name, NONE);
	w->deletes++;
	return unlinkat(w->folders[name % FOLDERS], name_of(name), 0);
}

static int change_content(struct worker *w, uint32_t what)
{
	uint32_t name = pick_name(w, true);
	bool direct = pick(w, 2);
	struct file *f;
	int fd, rc = 0;

	if (name == NONE)
		return 0;
	f = &w->t->files[w->t->current[name]];
	fd = open_name(w, name, O_RDWR | (direct ? O_DIRECT : 0));
	if (fd < 0)
		return -1;
	if (what < 45) {
		if (blocks_used(w->t) <= BUDGET)
			rc = append(w, fd, f, 1 + pick(w, 16), direct);
	} else if (what < 50) {
		rc = cut(fd, f, pick(w, f->len + 1));
	} else if (what < 75) {
		rc = f->len > 0 ? overwrite(w, fd, f, direct) : 0;
	} else if (what < 85) {
		rc = read_back(w, fd, name, f);
	} else if (what < 88) { /* begun and not waited for: it goes on under what comes next */
		rc = sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
	} else {
		rc = fsync_file(w, fd, f);
	}
	if (rc == 0 && pick(w, 5) == 0)
		rc = fsync_file(w, fd, f);
	close(fd);
	return rc;
}

static int trim(struct worker *w)
{
	struct fstrim_range range = { .len = UINT64_MAX };

	return ioctl(w->folders[0], FITRIM, &range) == 0 || errno == EOPNOTSUPP ? 0 : -1;
}

static int work(struct worker *w)
{
	uint32_t what = pick(w, 100);

	if (w->t->nchanges + 2 > CHANGES || what >= 97)
		return pick(w, 20) == 0 ? trim(w) : fsync_folders(w);
	if (what < 16)
		return create(w);
	if (what < 21)
		return change_name(w);
	if (what < 28)
		return unlink_name(w);
	return change_content(w, what);
}

static bool time_over(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > deadline.tv_sec || (now.tv_sec == deadline.tv_sec && now.tv_nsec > deadline.tv_nsec);
}

/* Ends the work. False if it was not what a file system says when its disk is gone. */
static bool note_failure(const struct worker *w)
{
	bool expected = errno == EIO || errno == EROFS || errno == ESHUTDOWN;

	if (!expected) {
		fprintf(stderr, "thread %u: unexpected: %s\n", w->index, strerror(errno));
		atomic_store(&wrong, true);
	}
	atomic_store(&dead, true);
	return expected;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(&dead) && !time_over())
		if (work(w) != 0)
			note_failure(w);
	return NULL;
}

static int cmd_write(const char *dir, const char *state_path, double seconds)
{
	static struct worker workers[THREADS];
	uint64_t writes = 0, fsyncs = 0, renames = 0, deletes = 0, reads = 0, used = 0;

	load_state(state_path);
	atomic_store(&version, state->version);
	atomic_store(&ids, state->ids);
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += (time_t)seconds;
	for (unsigned i = 0; i < THREADS; i++) {
		if (open_folders(&workers[i], dir, i) != 0 && !note_failure(&workers[i]))
			return 1;
		workers[i].random = mix(mix(state->seed) + state->version) ^ i;
	}
	for (unsigned i = 0; i < THREADS; i++)
		if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0)
			die("pthread_create");
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		writes += workers[i].writes;
		fsyncs += workers[i].fsyncs;
		renames += workers[i].renames;
		deletes += workers[i].deletes;
		reads += workers[i].reads;
		used += blocks_used(workers[i].t);
	}
	state->version = atomic_load(&version);
	state->ids = atomic_load(&ids);
	save_state(state_path);
	printf("writes %" PRIu64 " fsyncs %" PRIu64 " renames %" PRIu64 " deletes %" PRIu64 " reads %" PRIu64
	       ", %" PRIu64 " MiB, %s\n",
	       writes, fsyncs, renames, deletes, reads, used * BLOCK >> 20,
	       atomic_load(&dead) ? "until an I/O failed" : "until the time was over");
	return atomic_load(&wrong) ? 1 : 0;
}

/* ---- verify ---- */

struct found {
	bool there;
	uint64_t size;
	struct seen blocks[LONGEST];
};

static unsigned foreign_names;

static void scan_file(int folder, const char *name, struct found *found)
{
	static uint64_t buf[(LONGEST + 1) * BLOCK / 8] __attribute__((aligned(BLOCK)));
	int fd = openat(folder, name, O_RDONLY);
	ssize_t got = 0, n;

	if (fd < 0)
		die(name);
	do {
		n = pread(fd, (char *)buf + got, sizeof(buf) - (size_t)got, got);
		if (n < 0)
			die(name);
		got += n;
	} while (n > 0);
	close(fd);
	found->there = true;
	found->size = (uint64_t)got;
	for (uint32_t i = 0; i < LONGEST && (i + 1) * BLOCK <= found->size; i++)
		found->blocks[i] = look(buf + (size_t)i * BLOCK / 8);
}

static void scan_folder(struct worker *w, unsigned folder, struct found *found)
{
	DIR *dir = fdopendir(w->folders[folder]);
	struct dirent *e;

	if (!dir)
		die("fdopendir");
	while (errno = 0, (e = readdir(dir))) {
		uint32_t name = (uint32_t)strtoul(e->d_name + 1, NULL, 10);

		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (name < NAMES && name % FOLDERS == folder && strcmp(e->d_name, name_of(name)) == 0 &&
		    !found[name].there) {
			scan_file(dirfd(dir), e->d_name, &found[name]);
			continue;
		}
		fprintf(stderr, "t%u.%u/%s: a name that nobody made, or twice\n", w->index, folder, e->d_name);
		foreign_names++;
	}
	if (errno != 0)
		die("reading a folder");
	closedir(dir);
}

/* What is wrong with a file, NULL if nothing. */
static const char *fault_of(const struct file *f, const struct found *found)
{
	static char text[300];
	uint32_t len = (uint32_t)(found->size / BLOCK);

	if (found->size % BLOCK != 0 || len < f->min_len || len > f->max_len) {
		snprintf(text, sizeof(text), "%" PRIu64 " bytes, but fsynced with %u blocks, since then %u to %u",
			 found->size, f->synced_len, f->min_len, f->max_len);
		return text;
	}
	for (uint32_t i = 0; i < len; i++) {
		const struct seen *s = &found->blocks[i];

		if (s->kind == ZEROS ? f->synced[i] == 0 || i >= f->min_len
				     : s->kind == STAMPED && s->id == f->id && s->block == i &&
					       s->version >= f->synced[i] && s->version <= f->written[i])
			continue;
		snprintf(text, sizeof(text),
			 "block %u: %s, but it is file %u, version %u was fsynced and %u the last written", i,
			 describe(s), f->id, f->synced[i], f->written[i]);
		return text;
	}
	return NULL;
}

/* How many names do not fit what was found. */
static unsigned faults(uint32_t thread, const uint32_t *names, const struct found *found, bool tell)
{
	const struct thread *t = &state->threads[thread];
	unsigned bad = 0;

	for (uint32_t i = 0; i < NAMES; i++) {
		const char *fault = NULL;

		if (names[i] == NONE && found[i].there)
			fault = "there, but deleted or never made";
		else if (names[i] != NONE && !found[i].there)
			fault = "missing";
		else if (names[i] != NONE)
			fault = fault_of(&t->files[names[i]], &found[i]);
		if (!fault)
			continue;
		bad++;
		if (tell)
			fprintf(stderr, "%s: %s\n", path_of(thread, i), fault);
	}
	return bad;
}

/* The moment since the folders were last fsynced that fits best, and whether it fits. */
static bool thread_is_good(uint32_t thread, const struct found *found)
{
	struct thread *t = &state->threads[thread];
	uint32_t names[NAMES], best[NAMES], changes = 0;
	unsigned least = UINT32_MAX;

	memcpy(names, t->durable, sizeof(names));
	for (uint32_t i = 0; i <= t->nchanges; i++) {
		unsigned bad = faults(thread, names, found, false);

		if (bad < least) {
			least = bad;
			changes = i;
			memcpy(best, names, sizeof(best));
		}
		if (i < t->nchanges)
			apply(names, &t->changes[i]);
	}
	if (least > 0) {
		fprintf(stderr, "thread %u: no moment fits, the best is after %u of %u changes of names:\n", thread,
			changes, t->nchanges);
		faults(thread, best, found, true);
		return false;
	}
	memcpy(t->current, best, sizeof(best));
	note_names_durable(t);
	for (uint32_t i = 0; i < NAMES; i++) {
		struct file *f;

		if (best[i] == NONE)
			continue;
		f = &t->files[best[i]];
		f->len = (uint32_t)(found[i].size / BLOCK);
		for (uint32_t b = 0; b < f->len; b++)
			f->written[b] = found[i].blocks[b].version;
		note_fsynced(f);
	}
	return true;
}

static int cmd_verify(const char *dir, const char *state_path)
{
	static struct found found[NAMES];
	struct worker w;
	bool good = true;

	load_state(state_path);
	for (unsigned i = 0; i < THREADS; i++) {
		if (open_folders(&w, dir, i) != 0)
			die(dir);
		memset(found, 0, sizeof(found));
		for (unsigned j = 0; j < FOLDERS; j++)
			scan_folder(&w, j, found);
		good &= thread_is_good(i, found);
	}
	if (!good || foreign_names > 0)
		return 1;
	save_state(state_path);
	return 0;
}

/* ---- the rest ---- */

/* Files from the start, so that there is more than a small cache can hold. */
static int fill(struct worker *w)
{
	while (blocks_used(w->t) < BUDGET * 3 / 4) {
		uint32_t name = pick_name(w, false), file;
		int fd, rc;

		if (name == NONE)
			break;
		file = new_file(w->t);
		w->t->current[name] = file;
		fd = open_name(w, name, O_RDWR | O_CREAT | O_EXCL);
		if (fd < 0)
			return -1;
		rc = append(w, fd, &w->t->files[file], LONGEST / 2 + pick(w, LONGEST / 2), false);
		close(fd);
		if (rc != 0)
			return -1;
	}
	return 0;
}

static int cmd_init(const char *dir, const char *state_path, const char *seed)
{
	char path[4096];
	int fd;

	state = calloc(1, sizeof(*state));
	if (!state)
		die("init");
	state->magic = MAGIC;
	state->seed = strtoull(seed, NULL, 10);
	for (unsigned i = 0; i < THREADS; i++) {
		struct worker w = { .random = mix(state->seed) ^ i };

		memset(state->threads[i].current, 0xff, sizeof(state->threads[i].current));
		for (unsigned j = 0; j < FOLDERS; j++) {
			snprintf(path, sizeof(path), "%s/t%u.%u", dir, i, j);
			if (mkdir(path, 0700) != 0)
				die(path);
		}
		if (open_folders(&w, dir, i) != 0)
			die(dir);
		if (fill(&w) != 0)
			die("making files");
	}
	fd = open(dir, O_RDONLY | O_DIRECTORY);
	if (fd < 0 || syncfs(fd) != 0)
		die(dir);
	for (unsigned i = 0; i < THREADS; i++) {
		note_names_durable(&state->threads[i]);
		for (uint32_t j = 0; j < FILES; j++)
			note_fsynced(&state->threads[i].files[j]);
	}
	state->version = atomic_load(&version);
	state->ids = atomic_load(&ids);
	save_state(state_path);
	return 0;
}

static int damage(struct worker *w, uint32_t name, unsigned kind, uint32_t other)
{
	static char buf[BLOCK] __attribute__((aligned(BLOCK))), old[BLOCK];
	const struct file *f = &w->t->files[w->t->current[name]], *o = &w->t->files[w->t->current[other]];
	uint32_t b = f->len - 1;
	int fd = open_name(w, name, O_RDWR), rc;

	if (fd < 0)
		return -1;
	stamp(buf, f->id, b, f->synced[b]);
	stamp(old, f->id, b, f->synced[b] - 1);
	switch (kind) {
	case 0: /* older */
		memcpy(buf, old, BLOCK);
		break;
	case 1: /* newer */
		stamp(buf, f->id, b, f->written[b] + 1);
		break;
	case 2: /* another file's */
		stamp(buf, o->id, b, f->synced[b]);
		break;
	case 3: /* another block's */
		stamp(buf, f->id, b + 1, f->synced[b]);
		break;
	case 4: /* torn */
		memcpy(buf + BLOCK / 2, old + BLOCK / 2, BLOCK / 2);
		break;
	case 5: /* one bit */
		buf[BLOCK - 1] ^= 1;
		break;
	case 6: /* zeros */
		memset(buf, 0, BLOCK);
		break;
	}
	if (kind < 7)
		rc = pwrite(fd, buf, BLOCK, (off_t)b * BLOCK) == BLOCK ? 0 : -1;
	else if (kind == 7)
		rc = ftruncate(fd, (off_t)b * BLOCK);
	else if (kind == 8)
		rc = unlinkat(w->folders[name % FOLDERS], name_of(name), 0);
	else
		rc = rename_name(w, name, other, RENAME_EXCHANGE);
	close(fd);
	return rc;
}

static int cmd_damage(const char *dir, const char *state_path)
{
	static const char *const kinds[] = { "older", "newer", "other-file", "other-block", "torn",
					     "bit",   "zeros", "short",      "missing",     "exchanged" };
	struct worker w;
	uint32_t name = 0, other;

	load_state(state_path);
	if (open_folders(&w, dir, 0) != 0)
		die(dir);
	for (unsigned kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		uint32_t chosen[2], n = 0;

		for (; n < 2 && name < NAMES; name++) {
			const struct file *f = w.t->current[name] == NONE ? NULL : &w.t->files[w.t->current[name]];

			if (f && f->len > 0 && f->synced[f->len - 1] > 1)
				chosen[n++] = name;
		}
		if (n < 2) {
			fprintf(stderr, "fsrecord: too few files\n");
			return 2;
		}
		other = chosen[1];
		if (damage(&w, chosen[0], kind, other) != 0)
			die(kinds[kind]);
		printf("%s %s\n", kinds[kind], path_of(0, chosen[0]));
		if (kind < 9)
			name = other; /* untouched, so it is the next one's */
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "init") == 0)
		return cmd_init(argv[2], argv[3], argv[4]);
	if (argc == 5 && strcmp(argv[1], "write") == 0)
		return cmd_write(argv[2], argv[3], atof(argv[4]));
	if (argc == 4 && strcmp(argv[1], "verify") == 0)
		return cmd_verify(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "damage") == 0)
		return cmd_damage(argv[2], argv[3]);
	fprintf(stderr, "usage: fsrecord init DIR STATE SEED | write DIR STATE SECONDS | verify DIR STATE | damage DIR "
			"STATE\n");
	return 64;
}
