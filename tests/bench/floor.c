/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * floor.c - the least a FUSE daemon can do: a yardstick for the benches, sharing no code with blkcache.
 *
 *   floor [-t THREADS] -m SIZE_MIB MOUNTPOINT     a file "vol" in memory
 *   floor [-t THREADS] -f FILE MOUNTPOINT         a file "vol" that is FILE, by O_DIRECT pread and pwrite
 *
 * No cache, no checksums, no locks, libfuse's own thread loop (34 threads). What blkcache's hits take beyond the memory
 * floor is what the engine costs; the file floor is what its SSD hits would cost without an engine. Stays in the
 * foreground; SIGTERM or an unmount ends it. Handlers run on libfuse's threads and share only what is set before the
 * mount.
 */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

#define VOL_INO 2
#define FOREVER 1e6 /* seconds; nothing here changes */
#define MAX_IO (1u << 20)

static struct {
	char *memory; /* or NULL */
	int fd;
	uint64_t size;
} store = { .fd = -1 };

static __thread char *thread_buf; /* aligned, for O_DIRECT; lives as long as the process */

static char *aligned_buf(void)
{
	if (!thread_buf)
		thread_buf = aligned_alloc(4096, MAX_IO);
	return thread_buf;
}

static struct stat attributes(fuse_ino_t ino)
{
	struct stat st = { .st_ino = ino, .st_nlink = 1, .st_blksize = 4096 };

	if (ino == FUSE_ROOT_ID) {
		st.st_mode = S_IFDIR | 0755;
	} else {
		st.st_mode = S_IFREG | 0600;
		st.st_size = (off_t)store.size;
		st.st_blocks = (blkcnt_t)(store.size / 512);
	}
	return st;
}

static void on_init(void *ctx, struct fuse_conn_info *conn)
{
	(void)ctx;
	conn->want |= conn->capable & FUSE_CAP_ASYNC_DIO;
	conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
	conn->max_write = MAX_IO;
	conn->max_background = 128;
	conn->congestion_threshold = 96;
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = { .ino = VOL_INO, .attr_timeout = FOREVER, .entry_timeout = FOREVER };

	if (parent != FUSE_ROOT_ID || strcmp(name, "vol")) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	e.attr = attributes(VOL_INO);
	fuse_reply_entry(req, &e);
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st = attributes(ino);

	(void)fi;
	fuse_reply_attr(req, &st, FOREVER);
}

/* The size is fixed and times are not kept; a client that sets them (mkfs does) is not told. */
static void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int what, struct fuse_file_info *fi)
{
	(void)attr, (void)what;
	on_getattr(req, ino, fi);
}

/* libfuse 3.14 cannot say "parallel direct writes", so the reply is made by hand. */
static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES };

	(void)fi;
	if (ino != VOL_INO)
		fuse_reply_err(req, EISDIR);
	else
		fuse_reply_buf(req, (const char *)&out, sizeof out);
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi)
{
	uint64_t at = (uint64_t)off, left = at < store.size ? store.size - at : 0;
	ssize_t n;

	(void)ino, (void)fi;
	if (len > left)
		len = left;
	if (store.memory) {
		fuse_reply_buf(req, store.memory + at, len);
		return;
	}
	n = pread(store.fd, aligned_buf(), len, off);
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_buf(req, aligned_buf(), (size_t)n);
}

static void on_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t len, off_t off, struct fuse_file_info *fi)
{
	ssize_t n = (ssize_t)len;

	(void)ino, (void)fi;
	if ((uint64_t)off > store.size || len > store.size - (uint64_t)off || len > MAX_IO) {
		fuse_reply_err(req, ENOSPC);
		return;
	}
	if (store.memory)
		memcpy(store.memory + off, data, len);
	else
		n = pwrite(store.fd, memcpy(aligned_buf(), data, len), len, off);
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_write(req, (size_t)n);
}

static void on_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino, (void)datasync, (void)fi;
	fuse_reply_err(req, store.memory || !fdatasync(store.fd) ? 0 : errno);
}

static const struct fuse_lowlevel_ops ops = {
	.init = on_init,
	.lookup = on_lookup,
	.getattr = on_getattr,
	.setattr = on_setattr,
	.open = on_open,
	.read = on_read,
	.write = on_write,
	.fsync = on_fsync,
};

static int open_file(const char *path)
{
	struct stat st;

	store.fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (store.fd < 0 || fstat(store.fd, &st)) {
		fprintf(stderr, "floor: %s: %s\n", path, strerror(errno));
		return -1;
	}
	store.size = (uint64_t)st.st_size;
	return 0;
}

static int make_memory(const char *mib)
{
	store.size = strtoull(mib, NULL, 10) << 20;
	store.memory = mmap(NULL, store.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!store.size || store.memory == MAP_FAILED) {
		fprintf(stderr, "floor: no memory for %s MiB\n", mib);
		return -1;
	}
	memset(store.memory, 1, store.size); /* no page faults while measuring */
	return 0;
}

static int serve(char *program, const char *mountpoint, unsigned threads)
{
	char *argv[] = { program, (char *)"-ofsname=floor", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(2, argv);
	struct fuse_session *se = fuse_session_new(&args, &ops, sizeof ops, NULL);
	struct fuse_loop_config *cfg = fuse_loop_cfg_create();
	int rc = 1;

	if (!se)
		goto out;
	if (fuse_set_signal_handlers(se) || fuse_session_mount(se, mountpoint))
		goto destroy;
	fuse_loop_cfg_set_max_threads(cfg, threads);
	fuse_loop_cfg_set_idle_threads(cfg, threads);
	rc = fuse_session_loop_mt(se, cfg) < 0;
	fuse_session_unmount(se);
destroy:
	fuse_remove_signal_handlers(se);
	fuse_session_destroy(se);
out:
	fuse_loop_cfg_destroy(cfg);
	fuse_opt_free_args(&args);
	return rc;
}

int main(int argc, char **argv)
{
	unsigned threads = 34;
	int o, rc = -1;

	while ((o = getopt(argc, argv, "t:m:f:")) != -1) {
		if (o == 't')
			threads = (unsigned)atoi(optarg);
		else if (o == 'm' && rc)
			rc = make_memory(optarg);
		else if (o == 'f' && rc)
			rc = open_file(optarg);
		else
			rc = -1;
	}
	if (rc || optind != argc - 1 || !threads) {
		fprintf(stderr, "usage: floor [-t THREADS] -m SIZE_MIB|-f FILE MOUNTPOINT\n");
		return 64;
	}
	return serve(argv[0], argv[optind], threads);
}
