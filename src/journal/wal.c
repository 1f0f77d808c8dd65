/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wal.c - SQLite's log at opening: has it been changed since it was written, and is it durable. Under the journal's
 * exclusive (read-only: shared) lock on the database, before anything is written.
 *
 *   JOURNAL_FILE "-wal" (sqlite.org/walformat.html), numbers big-endian:
 *   header:  0 magic  4 version  8 page size  12 number of restarts  16 salts (8 bytes)  24 sum of the 24 bytes before
 *   frame:   0 page number  4 size of the database if the transaction ends here, else 0  8 salts  16 sum  24 page
 *
 * A frame's sum goes over its first 8 bytes and its page, and begins with the sum of the frame before: they are a
 * chain. Replay ends at the first frame that has not the header's salts or does not continue the chain, and takes that
 * for the end. Nothing tells SQLite a frame that was torn by a power loss from one that rotted later, with any number
 * of flushed epochs behind it. Here the two are told apart.
 *
 * What is known. A transaction is synced before the next one begins (synchronous=FULL; after a failed sync the journal
 * is failed and writes no more). The header is synced before the first frame with its salts; a restart with new salts
 * comes only after all that lies in the log is durable in the database. Disks tear at sectors of 512 bytes. SQLite does
 * not pad transactions with copies of their last frame (it does so only on disks without "powersafe overwrite", which
 * it takes all for).
 *
 * Frames. Let b be the first frame that does not continue the chain. If there is a frame c >= b that ends a
 * transaction, and frame c+1 has the header's salts and continues the chain from c, then b rotted. For whoever wrote
 * c+1 had in mind a log in which c ends a transaction, so all up to c had been synced, by its commit or at an opening
 * (jdb_wal_prepare); and nobody who finds it whole writes other bytes there before a restart. Unless it rotted, it is
 * still there, and there is no such b. This needs no assumption about what lies behind the end of the log: frames from
 * before the last restart have other salts; pieces of transactions that were torn or rolled back have these salts, and
 * perhaps a last frame each, but nothing continues the chain from one.
 *
 * "Continues the chain from c": c's page or its sum may be what rotted, so both are tried, the sum that c says and the
 * one that its content has. With the latter it is proved that c ends a transaction, for that is in the sum. With the
 * former it must be known that c's field 4 and its sum are of one write: c continues the chain itself, or both lie in
 * one sector. (In 62 of 64 frames they do. If not, and c is damaged itself, the next transaction's end is the proof.)
 *
 * Header. It lies in one sector, so that it is there or not; before the first transaction it is zeros, as the reserve
 * is. So a header that does not verify is damage, and so is one of zeros before frames.
 *
 * What cannot be told. Damage of the log's last transaction, when not one whole frame follows it: that is what power
 * loss leaves of a commit. Damage that takes the head of the frame which ends the last but one: that one and the last
 * then look like one that was torn. A log that was cut off, or is zeros from some frame on: it was like that once.
 * A later epoch in the ring is a witness, though: it names the epoch before it, and the load refuses if that is gone
 * (ring.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal/db.h"
#include "util/cow.h"
#include "util/log.h"

#define WAL_MAGIC 0x377f0682u /* lowest bit set: sums are made of big-endian words */
#define WAL_VERSION 3007000u
#define WAL_HEADER 32u
#define FRAME_HEADER 24u
#define FRAME (FRAME_HEADER + JOURNAL_PAGE)
#define CHUNK (64 * FRAME)
#define SECTOR 512u

#define REMEDY "restore the log from a copy, or make the cache anew"
#define HEADER_DAMAGED                                                                                                 \
	"the header of its log (" JOURNAL_FILE "-wal) does not verify, so nothing in the log counts; " REMEDY
#define FRAME_DAMAGED                                                                                                  \
	"frame %llu of its log (" JOURNAL_FILE                                                                         \
	"-wal) was changed after it had been written, so nothing from there on "                                       \
	"counts, though it was durable; " REMEDY

struct sum {
	uint32_t a, b;
};

struct scan {
	bool big_endian;
	uint8_t salts[8];
	uint64_t n, bad; /* frames seen; the first one that does not continue the chain, counted from 1, or 0 */
	/* of the last frame: */
	struct sum said, content; /* the sum that it says, and the one that it has */
	bool content_known;
	bool ends; /* a transaction */
	bool one_write; /* field 4 and the sum */
};

static uint32_t be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static struct sum sum_at(const uint8_t *p)
{
	return (struct sum){ be32(p), be32(p + 4) };
}

static struct sum sum_add(bool big_endian, struct sum s, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i += 8) {
		s.a += (big_endian ? be32(p + i) : get32(p + i)) + s.b;
		s.b += (big_endian ? be32(p + i + 4) : get32(p + i + 4)) + s.a;
	}
	return s;
}

static struct sum sum_frame(const struct scan *w, struct sum before, const uint8_t *f)
{
	return sum_add(w->big_endian, sum_add(w->big_endian, before, f, 8), f + FRAME_HEADER, JOURNAL_PAGE);
}

static bool same(struct sum x, struct sum y)
{
	return x.a == y.a && x.b == y.b;
}

static bool zeros(const uint8_t *p, size_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

static bool header_verify(struct scan *w, const uint8_t *h)
{
	w->big_endian = be32(h) & 1;
	memcpy(w->salts, h + 16, sizeof(w->salts));
	w->said = w->content = sum_add(w->big_endian, (struct sum){ 0 }, h, 24);
	w->content_known = true;
	return (be32(h) & ~1u) == WAL_MAGIC && be32(h + 4) == WAL_VERSION && be32(h + 8) == JOURNAL_PAGE &&
	       same(w->said, sum_at(h + 24));
}

/* The next frame, which lies at `pos` of the file. True: it proves that an earlier one was changed. */
static bool frame_proves(struct scan *w, const uint8_t *f, uint64_t pos)
{
	bool ours = be32(f) && !memcmp(f + 8, w->salts, sizeof(w->salts)), by_content, fits, proof;
	struct sum said = sum_at(f + 16);

	by_content = ours && w->content_known && same(sum_frame(w, w->content, f), said);
	fits = by_content || (ours && same(sum_frame(w, w->said, f), said));
	proof = w->bad && w->ends && (by_content || (fits && w->one_write));
	w->n++;
	if (!fits && !w->bad)
		w->bad = w->n;
	w->content = fits || !ours ? said : sum_frame(w, w->said, f);
	w->content_known = ours;
	w->said = said;
	w->ends = be32(f + 4) != 0;
	w->one_write = fits || pos % SECTOR <= SECTOR - FRAME_HEADER;
	return proof;
}

/* Up to n bytes; fewer only at the end of the file. */
static ssize_t read_at(int fd, uint8_t *p, size_t n, off_t pos)
{
	size_t got = 0;

	while (got < n) {
		ssize_t some = pread(fd, p + got, n - got, pos + (off_t)got);

		if (some < 0 && errno == EINTR)
			continue;
		if (some < 0)
			return -errno;
		if (!some)
			break;
		got += (size_t)some;
	}
	return (ssize_t)got;
}

static int scan(struct journal *j, int fd, uint8_t *buf, struct bc_error *err)
{
	uint8_t head[WAL_HEADER] = { 0 };
	struct scan w = { 0 };
	bool empty;
	ssize_t n = read_at(fd, head, sizeof(head), 0);

	empty = n <= 0 || zeros(head, sizeof(head));
	if (!empty && !header_verify(&w, head))
		return jdb_damaged(j, err, HEADER_DAMAGED);
	for (uint64_t pos = WAL_HEADER; n > 0; pos += (uint64_t)n) {
		n = read_at(fd, buf, CHUNK, (off_t)pos);
		for (ssize_t at = 0; at + (ssize_t)FRAME <= n; at += FRAME) {
			if (empty && !zeros(buf + at, FRAME_HEADER))
				return jdb_damaged(j, err, HEADER_DAMAGED);
			if (!empty && frame_proves(&w, buf + at, pos + (uint64_t)at))
				return jdb_damaged(j, err, FRAME_DAMAGED, (unsigned long long)w.bad);
		}
		if (n < (ssize_t)CHUNK)
			break;
	}
	return n < 0 ? bc_fail(err, (int)n, "%s-wal: cannot be read: %s", j->path, strerror((int)-n)) : 0;
}

int jdb_wal_check(struct journal *j, struct bc_error *err)
{
	uint8_t *buf = malloc(CHUNK);
	char *path = NULL;
	int fd = -1, code;

	if (!buf || asprintf(&path, "%s-wal", j->path) < 0) {
		code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
		path = NULL;
	} else {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			code = errno == ENOENT ? 0 : bc_fail(err, -errno, "%s: %s", path, strerror(errno));
		else
			code = scan(j, fd, buf, err);
	}
	if (fd >= 0)
		close(fd);
	free(path);
	free(buf);
	return code;
}

/*
 * A WAL left by a crash is rewritten in place with its own bytes and synced: if the last owner died of a failed sync,
 * the page cache shows frames as clean that never reached the disk (P6), and everything committed after them would be
 * lost with them. Then zeros follow, which to SQLite are frames with a wrong salt, that is, the end of the log. That
 * part is best effort: without the reserve everything works until the disk is full.
 */
int jdb_wal_prepare(struct journal *j, struct bc_error *err)
{
	const size_t size = 1 << 16;
	uint8_t *buf = calloc(1, size);
	char *path = NULL;
	struct stat st;
	int fd = -1, code = 0;
	ssize_t n;

	if (!buf || asprintf(&path, "%s-wal", j->path) < 0) {
		code = bc_fail(err, -ENOMEM, "%s: out of memory", j->path);
		goto out;
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || fstat(fd, &st) < 0) {
		code = bc_fail(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	if (!st.st_size)
		cow_switch_off(fd);
	for (off_t pos = 0; pos < st.st_size; pos += n) {
		n = pread(fd, buf, size, pos);
		if (n <= 0 || pwrite(fd, buf, (size_t)n, pos) != n) {
			code = bc_fail(err, -EIO, "%s: cannot be made durable: %s", path,
				       n ? strerror(errno) : "it shrank");
			goto out;
		}
	}
	memset(buf, 0, size);
	for (off_t pos = st.st_size; pos < (off_t)journal_wal_reserve; pos += n) {
		n = pwrite(fd, buf, journal_wal_reserve - (size_t)pos < size ? journal_wal_reserve - (size_t)pos : size,
			   pos);
		if (n <= 0) {
			log_warn("%s: no space for the journal's reserve; a full disk may stop the cache", path);
			break;
		}
	}
	if (fdatasync(fd) < 0)
		code = bc_fail(err, -errno, "%s: cannot be made durable: %s", path, strerror(errno));
	else if (!fstat(fd, &st))
		atomic_store(&j->wal_bytes, (uint64_t)st.st_size);
	j->log_reserved = atomic_load(&j->wal_bytes);
out:
	if (fd >= 0)
		close(fd);
	free(path);
	free(buf);
	return code;
}
