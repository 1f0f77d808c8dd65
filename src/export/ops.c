/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ops.c - all requests but READ and WRITE (see data.c), as libfuse's low-level operations. Run on worker threads, no
 * lock held.
 *
 * The tree is one folder of regular files whose names and sizes are those of the volumes at this moment: entries are
 * not cached by the kernel, so that an added volume appears and a removed one is gone at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define ENTRY_TIMEOUT 0.0 /* seconds; looked up at open only, so not worth being stale */
#define ATTR_TIMEOUT 1.0 /* seconds; size never changes, owner and mode only through us */

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

static struct export *export_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static void op_init(void *user, struct fuse_conn_info *conn)
{
	struct export *e = user;

	e->agreed = true;
	conn->want |= conn->capable & FUSE_CAP_ASYNC_DIO;
	/* Splicing costs more than it saves on small requests, and the engine wants the data in memory anyway. */
	conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
	/* With it the kernel takes the file for empty after an open with O_TRUNC; without it setattr is asked, and says
	 * how long it still is. */
	conn->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
	conn->max_write = VOLUME_MAX_IO; /* libfuse derives max_pages from it, which bounds reads too */
	/* The default of 12 would cap the depth of a loop device and of io_uring. */
	conn->max_background = e->max_background;
	conn->congestion_threshold = e->max_background * 3 / 4;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .entry_timeout = ENTRY_TIMEOUT, .attr_timeout = ATTR_TIMEOUT };
	struct export *e = export_of(req);
	struct volume *v = parent == ROOT_INO ? cache_volume_get(e->cache, name) : NULL;

	if (!v) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	node_stat(&e->nodes, v, &entry.attr);
	entry.ino = node_ino(v);
	volume_put(v);
	fuse_reply_entry(req, &entry);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct export *e = export_of(req);
	struct volume *v;
	struct stat st;

	(void)fi;
	if (ino == ROOT_INO) {
		node_stat_root(&e->nodes, &st);
	} else {
		v = node_volume(e->cache, ino);
		if (!v) {
			fuse_reply_err(req, ENOENT);
			return;
		}
		node_stat(&e->nodes, v, &st);
		volume_put(v);
	}
	fuse_reply_attr(req, &st, ATTR_TIMEOUT);
}

/*
 * A volume has a fixed size. What cp, dd and the like want of O_TRUNC and ftruncate is that nothing old is left from
 * there on: it reads as zeros then, and the size stays. To do nothing would be wrong, as on a block device it is not:
 * cp skips the holes of a sparse source in what it takes for an empty file.
 */
static int truncate_volume(struct volume *v, off_t size)
{
	uint64_t keep = (uint64_t)size;

	if (size < 0 || keep > volume_size(v))
		return -EFBIG;
	return keep < volume_size(v) ? volume_zero(v, keep, volume_size(v) - keep, true) : 0;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct export *e = export_of(req);
	struct volume *v = node_volume(e->cache, ino);
	int rc;

	if (!v) {
		fuse_reply_err(req, ino == ROOT_INO ? EPERM : ENOENT);
		return;
	}
	rc = to_set & FUSE_SET_ATTR_SIZE ? truncate_volume(v, attr->st_size) : 0;
	if (rc == 0)
		rc = node_set_attr(&e->nodes, v, attr, to_set);
	volume_put(v);
	if (rc != 0)
		fuse_reply_err(req, -rc);
	else
		op_getattr(req, ino, fi);
}

/*
 * Always past the page cache, so mmap(MAP_SHARED) is refused (ENODEV). FUSE_DIRECT_IO_ALLOW_MMAP (Linux 6.6) would
 * allow it, and is not asked for. It puts pages beside the direct writes, which are right only if the kernel drops them
 * after such a write as well as before it: a page that is faulted in between is old, and a store to it writes old data
 * over new (P3). Linux 6.18 does, which ones before it do not say. And no kernel drops them when a truncation leaves
 * the size as it is, as all of ours do.
 */
static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	/* libfuse 3.14.0 has no field for parallel direct writes (without, the kernel serialises writes to a file):
	 * built by hand. */
	struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES };
	struct export *e = export_of(req);
	struct volume *v = node_volume(e->cache, ino);
	int rc;

	(void)fi;
	if (!v) {
		fuse_reply_err(req, ino == ROOT_INO ? EISDIR : ENOENT);
		return;
	}
	rc = node_open(&e->nodes, v, request_unique, request_again, &out.fh);
	if (rc != 0) {
		volume_put(v);
		fuse_reply_err(req, -rc);
		return;
	}
	if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) != 0)
		node_release(&e->nodes, out.fh); /* the opener was killed meanwhile: no RELEASE will come */
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	node_release(&export_of(req)->nodes, fi->fh);
	fuse_reply_err(req, 0);
}

/* close(2): no point of durability, and refusing it with ENOSYS costs nothing later. */
static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct volume *v = node_handle(&export_of(req)->nodes, fi->fh);
	int rc = v ? volume_flush(v) : -EBADF;

	(void)ino;
	(void)datasync;
	/* ENOSYS would make the kernel report success from then on (P6). */
	fuse_reply_err(req, rc == -ENOSYS ? EIO : -rc);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
			 struct fuse_file_info *fi)
{
	struct volume *v = node_handle(&export_of(req)->nodes, fi->fh);
	uint64_t size = v ? volume_size(v) : 0, off = (uint64_t)offset, len = (uint64_t)length;
	bool beyond = off > size || len > size - off;
	int rc;

	(void)ino;
	if (!v || offset < 0 || length <= 0) {
		fuse_reply_err(req, v ? EINVAL : EBADF);
		return;
	}
	if (beyond && !(mode & FALLOC_FL_PUNCH_HOLE)) {
		fuse_reply_err(req, ENOSPC); /* the file cannot grow */
		return;
	}
	if (beyond)
		len = off >= size ? 0 : size - off;
	switch (mode) {
	case 0:
	case FALLOC_FL_KEEP_SIZE:
		rc = 0;
		break;
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
		rc = len ? volume_zero(v, off, len, true) : 0;
		break;
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
		rc = volume_zero(v, off, len, false);
		break;
	default:
		rc = -EOPNOTSUPP;
	}
	fuse_reply_err(req, -rc);
}

static int sum_size(struct volume *v, void *ctx)
{
	struct statvfs *st = ctx;

	st->f_blocks += (volume_size(v) + CACHE_BLOCK - 1) / CACHE_BLOCK;
	st->f_ffree--;
	return 0;
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	/*
	 * f_bsize is what a loop device takes for its discard granularity. All space counts as free, since all of it
	 * can be written: used up it would set off alarms, and keep programs that look first from copying an image
	 * here. Of files there are as many as there can be volumes.
	 */
	struct statvfs st = { .f_bsize = CACHE_BLOCK,
			      .f_frsize = CACHE_BLOCK,
			      .f_files = CACHE_MAX_VOLUMES,
			      .f_ffree = CACHE_MAX_VOLUMES,
			      .f_namemax = 127 };

	(void)ino;
	cache_volume_foreach(export_of(req)->cache, sum_size, &st);
	st.f_bfree = st.f_bavail = st.f_blocks;
	st.f_favail = st.f_ffree;
	fuse_reply_statfs(req, &st);
}

/* A cookie is 1 for ".", 2 for "..", 2 + id for a volume; it stays right when volumes come and go between two calls. */
struct listing {
	fuse_req_t req;
	off_t after;
	char *buf;
	size_t size, used;
};

static int list_one(struct listing *l, const char *name, const struct stat *st, off_t cookie)
{
	size_t need;

	if (cookie <= l->after)
		return 0;
	need = fuse_add_direntry(l->req, l->buf + l->used, l->size - l->used, name, st, cookie);
	if (need > l->size - l->used)
		return 1;
	l->used += need;
	return 0;
}

static int list_volume(struct volume *v, void *ctx)
{
	struct stat st = { .st_ino = node_ino(v), .st_mode = S_IFREG };

	return list_one(ctx, volume_name(v), &st, 2 + (off_t)volume_id(v));
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct stat dir = { .st_ino = ROOT_INO, .st_mode = S_IFDIR };
	struct listing l = { .req = req, .after = off, .buf = malloc(size), .size = size };

	(void)fi;
	if (ino != ROOT_INO || !l.buf) {
		fuse_reply_err(req, l.buf ? ENOTDIR : ENOMEM);
		free(l.buf);
		return;
	}
	if (list_one(&l, ".", &dir, 1) == 0 && list_one(&l, "..", &dir, 2) == 0)
		cache_volume_foreach(export_of(req)->cache, list_volume, &l);
	fuse_reply_buf(req, l.buf, l.used);
	free(l.buf);
}

/* Volumes come and go by `add` and `remove`. Left to libfuse the answer would be "function not implemented". */
static void op_refuse_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
			     struct fuse_file_info *fi)
{
	(void)parent;
	(void)name;
	(void)mode;
	(void)fi;
	fuse_reply_err(req, EPERM);
}

static void op_refuse_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	op_refuse_create(req, parent, name, mode, NULL);
}

static void op_refuse_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	op_refuse_create(req, parent, name, 0, NULL);
}

static void op_refuse_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
	(void)dev;
	op_refuse_create(req, parent, name, mode, NULL);
}

static void op_refuse_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
	(void)link;
	op_refuse_create(req, parent, name, 0, NULL);
}

static void op_refuse_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	(void)ino;
	op_refuse_create(req, parent, name, 0, NULL);
}

static void op_refuse_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
			     const char *new_name, unsigned flags)
{
	(void)new_parent;
	(void)new_name;
	(void)flags;
	op_refuse_create(req, parent, name, 0, NULL);
}

const struct fuse_lowlevel_ops export_ops = {
	.init = op_init,
	.lookup = op_lookup,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.open = op_open,
	.release = op_release,
	.flush = op_flush,
	.fsync = op_fsync,
	.fsyncdir = op_fsyncdir,
	.fallocate = op_fallocate,
	.statfs = op_statfs,
	.readdir = op_readdir,
	.create = op_refuse_create,
	.mknod = op_refuse_mknod,
	.symlink = op_refuse_symlink,
	.link = op_refuse_link,
	.mkdir = op_refuse_mkdir,
	.unlink = op_refuse_unlink,
	.rmdir = op_refuse_unlink,
	.rename = op_refuse_rename,
};
