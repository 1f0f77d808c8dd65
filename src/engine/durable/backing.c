/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * backing.c - writes to, and flushes of, a volume's backing device. write_seq counts the writes that have ended,
 * flushed_seq says how many of them a flush has covered since; both move here and in the cleaner only.
 */
#include "engine/durable/durable.h"

#include <errno.h>
#include <string.h>

#include "engine/durable/identity.h"
#include "engine/durable/takeover_log.h"

int backing_flush_on(struct bdev_channel *ch, struct volume *v)
{
	uint64_t seq = atomic_load_explicit(&v->write_seq, memory_order_acquire), was;
	int rc;

	if (atomic_load(&v->backing_failed))
		return -EIO;
	if (ctr_get(v->flushed_seq) >= seq)
		return 0;
	rc = bdev_flush(ch);
	if (rc) {
		/* P6: the kernel may have dropped what it could not write, so a second flush would lie */
		ctr_add(v->n.err_backing_write, 1);
		atomic_store(&v->backing_failed, true);
		takeover_log_backing_failed(v->cache, v, true);
		cache_degrade(v->cache, "volume %s: flushing the backing device failed: %s", v->name, strerror(-rc));
		return rc;
	}
	if (atomic_load(&v->backing_failed)) /* somebody else's flush, meanwhile */
		return -EIO;
	/* it was flushed to a file that goes with this process: not what a flush promises */
	if (bdev_is_deleted(v->bdev)) {
		identity_check_name(v, NAME_PATIENCE_MS, NULL);
		return -ESTALE;
	}
	if (MUTATE(FLUSH_SEQ))
		seq = ctr_get(v->write_seq);
	was = ctr_get(v->flushed_seq);
	while (was < seq && !atomic_compare_exchange_weak(&v->flushed_seq, &was, seq))
		;
	return 0;
}

int backing_flush(struct thread_ctx *t, struct volume *v)
{
	struct bdev_channel *ch;

	if (!atomic_load(&v->backing_failed) && ctr_get(v->flushed_seq) >= atomic_load(&v->write_seq))
		return 0;
	ch = thread_ctx_backing(t, v);
	return ch ? backing_flush_on(ch, v) : -ENOMEM;
}

int backing_write(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, char **data)
{
	struct bdev_channel *ch = thread_ctx_backing(t, v);
	struct bdev_io io = { .type = BDEV_WRITE, .offset = first * CACHE_BLOCK, .iov = t->iov };
	int rc;

	if (!ch)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		uint32_t bytes = block_bytes(v, first + i);
		struct iovec *last = io.iovcnt ? &t->iov[io.iovcnt - 1] : NULL;

		io.length += bytes;
		if (last && (char *)last->iov_base + last->iov_len == data[i])
			last->iov_len += bytes;
		else
			t->iov[io.iovcnt++] = (struct iovec){ .iov_base = data[i], .iov_len = bytes };
	}
	rc = bdev_rw_wait(ch, &io, 1);
	atomic_fetch_add_explicit(&v->write_seq, 1, memory_order_release);
	ctr_add(v->n.backing_written, io.length);
	if (rc)
		ctr_add(v->n.err_backing_write, 1);
	return rc;
}

int backing_zero(struct thread_ctx *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	struct bdev_channel *ch = thread_ctx_backing(t, v);
	struct bdev_io io = { .type = punch ? BDEV_UNMAP : BDEV_WRITE_ZEROES, .offset = off, .length = len };
	int rc;

	if (!ch)
		return -ENOMEM;
	rc = bdev_rw_wait(ch, &io, 1);
	atomic_fetch_add_explicit(&v->write_seq, 1, memory_order_release);
	if (rc)
		ctr_add(v->n.err_backing_write, 1);
	return rc;
}
