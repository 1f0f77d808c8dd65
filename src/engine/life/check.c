/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * check.c - `blkcache check`: a stopped cache's journal and data against their checksums. Opens everything read-only
 * and changes nothing. Blocks are read in slot order, a batch at a time. A block whose data is still carried by its
 * journal row is checked there by the journal.
 */
#include "engine/life/life.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH 16384

struct item {
	uint64_t block;
	uint32_t slot, crc;
	uint16_t volume;
	bool dirty;
};

struct checking {
	struct cache_check_report *result;
	struct bc_error *err;
	void (*report)(void *ctx, const char *what);
	void *ctx;
	int (*progress)(const struct cache_progress *p, void *ctx);
	struct cache_progress p;
	uint64_t last_progress;
	struct bdev_channel *ch;
	char *buf;
	uint32_t bpl_shift;
	struct item item[BATCH];
	uint32_t n;
	struct item *bad; /* to be reported once it is known what rows carry */
	uint32_t nbad, bad_cap;
	uint64_t *redo; /* a bit per slot */
	char *names[CACHE_MAX_VOLUMES + 1];
};

static int by_slot(const void *a, const void *b)
{
	const struct item *x = a, *y = b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static int add_bad(struct checking *k, const struct item *it)
{
	if (k->nbad == k->bad_cap) {
		uint32_t cap = k->bad_cap ? k->bad_cap * 2 : 256;
		struct item *p = realloc(k->bad, cap * sizeof *p);

		if (!p)
			return bc_fail(k->err, -ENOMEM, "out of memory");
		k->bad = p;
		k->bad_cap = cap;
	}
	k->bad[k->nbad++] = *it;
	return 0;
}

static int check_batch(struct checking *k)
{
	int rc = 0;

	qsort(k->item, k->n, sizeof k->item[0], by_slot);
	for (uint32_t i = 0, run; i < k->n && !rc; i += run) {
		bool failed;

		for (run = 1; i + run < k->n && run < MAX_BLOCKS && k->item[i + run].slot == k->item[i].slot + run;
		     run++)
			;
		failed = bdev_pread(k->ch, k->buf, (size_t)run * CACHE_BLOCK,
				    (uint64_t)k->item[i].slot * CACHE_BLOCK) != 0;
		for (uint32_t b = 0; b < run && !rc; b++)
			if (failed || crc32c(k->buf + (size_t)b * CACHE_BLOCK, CACHE_BLOCK) != k->item[i + b].crc)
				rc = add_bad(k, &k->item[i + b]);
	}
	k->p.done_bytes += (uint64_t)k->n * CACHE_BLOCK;
	k->n = 0;
	if (!rc && k->progress && now_ns() - k->last_progress > 200000000) {
		k->last_progress = now_ns();
		if (k->progress(&k->p, k->ctx))
			rc = bc_fail(k->err, -EINTR, "interrupted");
	}
	return rc;
}

static int on_volume(void *ctx, const struct journal_volume *v)
{
	struct checking *k = ctx;

	if (v->id && v->id <= CACHE_MAX_VOLUMES && !k->names[v->id])
		k->names[v->id] = strdup(v->name);
	return 0;
}

static int on_line(void *ctx, const struct journal_line *l)
{
	struct checking *k = ctx;
	int rc = 0;

	k->result->lines++;
	for (unsigned b = 0; b < 1u << k->bpl_shift && !rc; b++) {
		if (!(l->valid >> b & 1))
			continue;
		k->result->blocks++;
		k->item[k->n++] = (struct item){
			.block = (l->line << k->bpl_shift) + b,
			.slot = l->blk[b].slot,
			.crc = l->blk[b].crc,
			.volume = l->volume,
			.dirty = l->dirty >> b & 1,
		};
		if (k->n == BATCH)
			rc = check_batch(k);
	}
	return rc;
}

static int on_verify(void *ctx, const struct journal_block *blocks, uint32_t n)
{
	struct checking *k = ctx;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t at = (uint64_t)blocks[i].slot * CACHE_BLOCK;
		int rc = bdev_pread(k->ch, k->buf, CACHE_BLOCK, at);

		if (rc)
			return bc_fail(k->err, rc,
				       "the data file cannot be read at byte %llu: %s; what was flushed last cannot be "
				       "checked, and a load refuses as well",
				       (unsigned long long)at, strerror(-rc));
		if (crc32c(k->buf, CACHE_BLOCK) != blocks[i].crc)
			return 0;
	}
	return 1;
}

static int on_redo(void *ctx, uint32_t slot, const void *data)
{
	struct checking *k = ctx;

	(void)data;
	k->redo[slot / 64] |= 1ull << (slot % 64);
	return 0;
}

static void journal_finding(void *ctx, const char *what)
{
	struct checking *k = ctx;
	char text[600];

	k->result->journal_errors++;
	snprintf(text, sizeof text, "journal: %s", what);
	k->report(k->ctx, text);
}

static void report_bad(struct checking *k)
{
	char text[400];

	for (uint32_t i = 0; i < k->nbad; i++) {
		const struct item *it = &k->bad[i];
		const char *name = it->volume <= CACHE_MAX_VOLUMES && k->names[it->volume] ? k->names[it->volume] : "?";

		if (k->redo[it->slot / 64] >> (it->slot % 64) & 1)
			continue; /* the journal row carries it; load writes it again */
		if (it->dirty)
			k->result->bad_dirty_blocks++;
		else
			k->result->bad_clean_blocks++;
		snprintf(text, sizeof text, "volume %s: the %s block at byte %llu (slot %u) fails its checksum%s", name,
			 it->dirty ? "dirty" : "clean", (unsigned long long)it->block * CACHE_BLOCK, it->slot,
			 it->dirty ? ": its data is lost" : "; it will be read from backing again");
		k->report(k->ctx, text);
	}
}

static int check_opened(const char *dir, struct journal *j, struct checking *k)
{
	static const struct journal_load_ops ops = {
		.volume = on_volume, .verify = on_verify, .line = on_line, .redo = on_redo
	};
	struct journal_load_report jr;
	struct journal_geometry geo;
	struct bc_error damage = { 0 };
	struct bdev *data = NULL;
	char path[4200], text[600];
	int rc;

	journal_get_geometry(j, &geo);
	k->bpl_shift = (uint32_t)__builtin_ctz(geo.blocks_per_line);
	k->redo = calloc(geo.nslots / 64 + 1, 8);
	k->buf = aligned_alloc(CACHE_BLOCK, MAX_BLOCKS * CACHE_BLOCK);
	if (!k->redo || !k->buf)
		return bc_fail(k->err, -ENOMEM, "out of memory");
	snprintf(path, sizeof path, "%s/%s", dir, CACHE_DATA_FILE);
	rc = cache_check_data_file(dir, k->err);
	if (rc)
		return rc;
	rc = bdev_open(path, BDEV_OPEN_RDONLY, &data, k->err);
	if (rc)
		return rc;
	if (bdev_size(data) < geo.size_bytes) {
		k->result->journal_errors++;
		snprintf(text, sizeof text, "the data file has %llu bytes and should have %llu",
			 (unsigned long long)bdev_size(data), (unsigned long long)geo.size_bytes);
		k->report(k->ctx, text);
	}
	k->ch = bdev_channel_open(data, 0);
	rc = k->ch ? 0 : bc_fail(k->err, -ENOMEM, "out of memory");
	if (!rc) {
		int n = journal_check(j, journal_finding, k);

		if (n < 0)
			journal_finding(k, strerror(-n));
		rc = journal_load(j, &ops, k, &jr, &damage);
		if (rc == -EUCLEAN) { /* a finding, not a failure to check */
			journal_finding(k, damage.msg);
			rc = 0;
		} else if (rc) {
			if (k->err && !k->err->code)
				*k->err = damage;
		} else {
			rc = check_batch(k);
			k->result->epochs_dropped = jr.epochs_dropped;
			if (jr.epochs_dropped) {
				snprintf(text, sizeof text,
					 "journal: %llu unflushed epoch(s) are incomplete and will be dropped at load: "
					 "%s",
					 (unsigned long long)jr.epochs_dropped, jr.why_dropped);
				k->report(k->ctx, text);
			}
		}
		report_bad(k);
	}
	bdev_channel_close(k->ch);
	bdev_close(data);
	return rc;
}

int cache_check(const char *dir, struct cache_check_report *result, void (*report)(void *ctx, const char *what),
		void *ctx, int (*progress)(const struct cache_progress *p, void *ctx), struct bc_error *err)
{
	struct checking *k = calloc(1, sizeof *k);
	struct journal *j = NULL;
	int dir_fd = -1, lock_fd = -1, rc;

	memset(result, 0, sizeof *result);
	if (err)
		err->code = 0;
	if (!k)
		return bc_fail(err, -ENOMEM, "out of memory");
	k->result = result;
	k->err = err;
	k->report = report;
	k->ctx = ctx;
	k->progress = progress;
	if (!cache_exists(dir)) {
		rc = bc_fail(err, -ENOENT, "%s holds no cache (there is no %s in it)", dir, JOURNAL_FILE);
		goto out;
	}
	rc = cache_lock_dir(dir, faccessat(AT_FDCWD, dir, W_OK, AT_EACCESS) && errno == EROFS, 0, &dir_fd, &lock_fd,
			    err);
	if (!rc)
		rc = journal_open(dir, true, &j, err);
	if (!rc)
		rc = check_opened(dir, j, k);
out:
	journal_close(j);
	if (lock_fd >= 0)
		close(lock_fd);
	if (dir_fd >= 0)
		close(dir_fd);
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		free(k->names[i]);
	free(k->bad);
	free(k->redo);
	free(k->buf);
	free(k);
	return rc;
}
