/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * check.c - see check.h. Beyond the oracle's comparison:
 *
 *   - a cache whose creation had returned is there and opens; what creation left half done can be replaced
 *   - every block that recovery kept has the contents its checksum says (P3)
 *   - every clean block is byte for byte what the backing device has (P4, P5: it is clean only after that was flushed)
 *   - volumes and their modes are as last recorded
 *   - after writing everything back, the backing devices hold what the volumes read as (P5)
 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/durable/identity.h"
#include "engine/life/life.h"

struct check_stats check_stats;

static uint8_t *content; /* of one volume */

static bool check_block(struct cache *c, int data, const struct volume *v, uint64_t block,
			const struct journal_block *blk, bool dirty, char *why, size_t len)
{
	uint8_t in_slot[CACHE_BLOCK], below[CACHE_BLOCK] = { 0 };
	unsigned index = (unsigned)(v->name[1] - '0');
	struct buffer *buf;
	char spec[16];

	buf = buffer_get(c->buffers, blk->slot);
	if (buf) { /* filled since the recovery */
		memcpy(in_slot, buffer_data(buf), CACHE_BLOCK);
		buffer_release(buf);
	} else {
		file_read(data, in_slot, CACHE_BLOCK, (uint64_t)blk->slot * CACHE_BLOCK);
	}
	if (crc32c(in_slot, CACHE_BLOCK) != blk->crc) {
		snprintf(why, len, "P3: volume %s block %llu is %s in slot %u, and the slot holds something else",
			 v->name, (unsigned long long)block, dirty ? "dirty" : "clean", blk->slot);
		return false;
	}
	if (dirty) {
		check_stats.dirty++;
		return true;
	}
	check_stats.warm++;
	sprintf(spec, "b%u", index);
	file_read(file_find(spec), below, block_bytes(v, block), block * CACHE_BLOCK);
	if (!memcmp(in_slot, below, block_bytes(v, block)))
		return true;
	snprintf(why, len,
		 "P4: volume %s block %llu is clean in slot %u, and stale: the backing device has something else",
		 v->name, (unsigned long long)block, blk->slot);
	return false;
}

bool check_lines(struct cache *c, char *why, size_t len)
{
	struct lines *l = &c->lines;
	int data = file_find(CACHE_DATA_FILE);
	bool ok = true;

	/* eviction runs on its own thread, under the other side of this lock */
	pthread_rwlock_wrlock(&c->volumes_lock);
	for (uint32_t e = 0; e < l->n && ok; e++) {
		uint64_t key = lines_word(l, e) & LINE_KEY_MASK;
		struct volume *v = key ? c->volume[line_key_volume(key)] : NULL;
		uint16_t valid = key ? line_valid(l, e) : 0, dirty = line_dirty(l, e);

		for (unsigned b = 0; b < l->bpl && ok; b++)
			if (valid >> b & 1)
				ok = check_block(c, data, v, (line_key_line(key) << l->bpl_shift) + b,
						 line_block(l, e, b), dirty >> b & 1, why, len);
	}
	pthread_rwlock_unlock(&c->volumes_lock);
	return ok;
}

static bool read_volume(struct volume *v, uint64_t bytes, char *why, size_t len)
{
	for (uint64_t at = 0; at < bytes; at += 65536) {
		int rc = volume_pread(v, content + at, bytes - at < 65536 ? (uint32_t)(bytes - at) : 65536, at);

		if (rc) {
			snprintf(why, len, "volume %s cannot be read at %llu: %s", volume_name(v),
				 (unsigned long long)at, strerror(-rc));
			return false;
		}
	}
	return true;
}

static bool check_volume(const struct run *r, struct cache *c, struct verdict *d, unsigned i, uint32_t p, char *why,
			 size_t len)
{
	const struct volume_history *h = &r->oracle.vol[i];
	struct expectation x;
	struct volume *v = NULL;
	char name[16], spec[16];
	bool ok = true;

	oracle_expect(&r->oracle, r->ops, r->nops, i, p, &x);
	sprintf(name, "v%u", i);
	sprintf(spec, "b%u", i);
	if (c)
		v = cache_volume_get(c, name);
	if (v ? !x.may_exist : x.must_exist) {
		snprintf(why, len, "volume %s %s", name, v ? "is there and should not be" : "is gone");
		ok = false;
	} else if (v && !(x.modes >> (int)volume_mode(v) & 1)) {
		snprintf(why, len, "volume %s is in mode %s, which it was not given", name,
			 cache_mode_name(volume_mode(v)));
		ok = false;
	}
	memset(content, 0, h->nblocks * CACHE_BLOCK);
	if (ok && v) {
		ok = read_volume(v, h->bytes, why, len);
	} else if (ok) {
		if (x.exact_if_gone)
			x.floor = x.ceil;
		file_read(file_find(spec), content, h->bytes, 0);
	}
	ok = ok && verdict_volume(d, i, &x, content, why, len);
	if (v)
		volume_put(v);
	return ok;
}

static bool check_written_back(const struct run *r, struct cache *c, char *why, size_t len)
{
	struct bc_error err = { 0 };
	struct cache_info info;
	char name[16], spec[16];

	if (cache_write_back(c, NULL, NULL, NULL, &err)) {
		snprintf(why, len, "writing back after recovery failed: %s", err.msg);
		return false;
	}
	cache_get_info(c, &info);
	if (info.dirty_bytes) {
		snprintf(why, len, "%llu bytes are dirty after everything was written back",
			 (unsigned long long)info.dirty_bytes);
		return false;
	}
	for (unsigned i = 0; i < VOLUMES; i++) {
		const struct volume_history *h = &r->oracle.vol[i];
		struct volume *v;
		uint8_t *below;
		bool ok;

		sprintf(name, "v%u", i);
		sprintf(spec, "b%u", i);
		v = cache_volume_get(c, name);
		if (!v)
			continue;
		below = malloc(h->bytes);
		if (!below)
			abort();
		ok = read_volume(v, h->bytes, why, len);
		file_read(file_find(spec), below, h->bytes, 0);
		if (ok && memcmp(below, content, h->bytes)) {
			snprintf(why, len, "P5: after writing back, volume %s and its backing device differ", name);
			ok = false;
		}
		free(below);
		volume_put(v);
		if (!ok)
			return false;
	}
	return check_lines(c, why, len);
}

/* Creation was cut short: nothing may be in the way of another try. */
static bool check_absent(const struct run *r, uint32_t p, bool again, char *why, size_t len)
{
	struct cache_create_params cp = { .size_bytes = r->cfg.cache_size,
					  .line_size = r->cfg.line_size,
					  .mode = CACHE_MODE_WT,
					  .ram_bytes = 1 << 20,
					  .force = true };
	struct bc_error err = { 0 };
	struct cache *c;

	check_stats.absent++;
	if (oracle_cache_must_exist(&r->oracle, r->ops, r->nops, p)) {
		snprintf(why, len, "the cache is gone");
		return false;
	}
	if (!again)
		return true;
	workload_forget_lock();
	if (cache_create(crash_dir, &cp, &err) || cache_open(crash_dir, 0, &c, NULL, &err)) {
		snprintf(why, len, "the cache cannot be created again: %s", err.msg);
		return false;
	}
	cache_close(c, NULL);
	return true;
}

/* Did anything set a write-intent mark? Those that a load found stay for a while: it does not wait for backing devices
 * to be flushed. */
static bool wrote_through(const struct run *r, uint32_t p)
{
	if (r->rerun)
		return true;
	for (unsigned i = 0; i < r->nops; i++) {
		const struct op *op = &r->ops[i];

		if (op->ran && op->begin < p && (op->through || op->type == OP_ZERO || op->type == OP_PUNCH))
			return true;
	}
	return false;
}

/* Did somebody else write to a backing device? */
static bool meddled(const struct run *r, uint32_t p)
{
	for (unsigned i = 0; i < r->nops; i++)
		if (r->ops[i].type == OP_MEDDLE && r->ops[i].ran && r->ops[i].begin < p)
			return true;
	return false;
}

bool check_state(const struct run *r, uint32_t p, struct world *w, bool extra, char *why, size_t len)
{
	struct cache_open_report report;
	struct bc_error err = { 0 };
	struct verdict d = { 0 };
	struct cache *c = NULL;
	bool ok = true, others = meddled(r, p);

	if (!content)
		content = malloc(4 * VOLUME_MAX_IO);
	if (!content)
		abort();
	check_stats.states++;
	world = w;
	verdict_begin(&d, &r->oracle);
	/* once it is written down what others did, no load has to see it again (P10) */
	sample_ns = r->noted && p >= r->noted - 1 ? 0 : UNHURRIED;
	if (cache_exists(crash_dir)) {
		if (cache_open(crash_dir, 0, &c, &report, &err)) {
			snprintf(why, len, "the cache cannot be opened: %s", err.msg);
			ok = false;
			goto out;
		}
		check_stats.dropped_epochs += report.epochs_dropped;
		check_stats.void_journals += strstr(report.notes, "starts empty") != NULL;
		check_stats.redone += report.redo_blocks;
		check_stats.dropped_clean += report.dropped_clean_lines;
		ok = check_lines(c, why, len);
		/* nobody but us was there: P10 must not see others, nor hide a stale line by dropping it */
		if (ok && report.changed_volumes && !others) {
			snprintf(why, len, "P10: nobody else wrote to backing: %s", report.notes);
			ok = false;
		}
		if (ok && report.dropped_clean_lines && !others && !wrote_through(r, p)) {
			snprintf(why, len, "P4: recovery dropped %llu clean lines: %s",
				 (unsigned long long)report.dropped_clean_lines, report.notes);
			ok = false;
		}
	}
	for (unsigned i = 0; i < VOLUMES && ok; i++)
		ok = check_volume(r, c, &d, i, p, why, len);
	if (ok)
		ok = verdict_end(&d, why, len);
	if (ok && extra && c)
		ok = check_written_back(r, c, why, len);
	if (c) {
		if (cache_close(c, &err) && ok) {
			snprintf(why, len, "closing failed after recovery: %s", err.msg);
			ok = false;
		}
	} else if (ok) {
		ok = check_absent(r, p, extra, why, len);
	}
out:
	free(d.fits);
	world_free(world);
	world = NULL;
	return ok;
}
