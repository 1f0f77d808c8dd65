/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_bdev_file.c - files and kernel block devices: every byte right at any alignment, with direct I/O and without,
 * with io_uring and without; one owner (P10); a device that changes is noticed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/loop.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "bdev_random.h"

static char dir[200], path[230];

static void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%.150s/bdev-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/a:b=c,d", dir); /* a path may hold what specs are made of */
}

static void teardown(void)
{
	char cmd[300];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	cr_expect_eq(system(cmd), 0);
}

static void make_file(const char *name, uint64_t size)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

/* Random I/O, then everything again through a fresh open and through the plain file. */
static void random_file(const char *spec, const char *file, uint64_t size, unsigned batches)
{
	uint64_t rng = test_seed();
	struct bdev *b = test_open(spec, BDEV_OPEN_CLAIM);
	struct bdev_channel *ch = test_channel(b);
	char *ref = calloc(1, size), *plain = malloc(size);
	int fd;

	cr_assert_eq(bdev_size(b), size);
	random_test(b, ch, ref, batches, &rng);
	verify_all(b, ch, ref);
	bdev_channel_close(ch);
	bdev_close(b);
	b = test_open(spec, BDEV_OPEN_RDONLY);
	ch = test_channel(b);
	verify_all(b, ch, ref);
	bdev_channel_close(ch);
	bdev_close(b);
	fd = open(file, O_RDONLY | O_CLOEXEC);
	cr_assert_eq(pread(fd, plain, size, 0), (ssize_t)size);
	close(fd);
	random_compare(plain, ref, size, 0);
	free(ref);
	free(plain);
}

static const uint64_t sizes[] = { 1 << 20, (1 << 20) + 1, 999999, 1 << 19 | 512, 4095, 1 };

Test(bdev_file, random, .init = setup, .fini = teardown)
{
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		make_file(path, sizes[i]);
		random_file(path, path, sizes[i], 60);
	}
}

Test(bdev_file, random_wrapped, .init = setup, .fini = teardown)
{
	char spec[400];

	snprintf(spec, sizeof(spec), "delay:read=10us-500us:error::file:%s", path);
	make_file(path, 999999);
	random_file(spec, path, 999999, 60);
}

/* A tmpfs without direct I/O (or with it, from Linux 6.6 on): the module finds out by itself. */
Test(bdev_file, random_tmpfs)
{
	char name[] = "/dev/shm/bdev-XXXXXX";
	int fd = mkstemp(name);

	if (fd < 0)
		cr_skip_test("no /dev/shm");
	cr_assert_eq(ftruncate(fd, 999999), 0);
	close(fd);
	random_file(name, name, 999999, 60);
	unlink(name);
}

/* From now on the system call `nr` fails with `error`. */
static void forbid(unsigned nr, unsigned error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(code) / sizeof(*code), code };

	cr_assert_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	cr_assert_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog), 0);
	cr_assert(syscall(nr, -1, NULL) == -1 && errno == (int)error);
}

/* As in a container. */
Test(bdev_file, random_without_io_uring, .init = setup, .fini = teardown)
{
	make_file(path, 999999);
	forbid(__NR_io_uring_setup, EPERM);
	random_file(path, path, 999999, 60);
}

/* A file system without fallocate: zeros are written. */
Test(bdev_file, random_without_fallocate, .init = setup, .fini = teardown)
{
	make_file(path, 999999);
	forbid(__NR_fallocate, EOPNOTSUPP);
	random_file(path, path, 999999, 60);
}

/* P6: the first flush fails (plain fdatasync, made to fail); those through io_uring would succeed, but what was written
 * before may be lost. */
Test(bdev_file, failed_flush_is_final, .init = setup, .fini = teardown)
{
	struct bdev_io io[2] = { { .type = BDEV_FLUSH }, { .type = BDEV_FLUSH } };
	struct bdev *b;
	struct bdev_channel *ch;

	make_file(path, 4096);
	b = test_open(path, BDEV_OPEN_CLAIM);
	ch = test_channel(b);
	cr_expect_eq(bdev_rw_wait(ch, io, 2), 0);
	forbid(__NR_fdatasync, EIO);
	cr_expect_eq(bdev_flush(ch), -EIO);
	cr_expect_eq(bdev_rw_wait(ch, io, 2), -EIO);
	cr_expect_eq(io[1].result, -EIO);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* A flush may be started, something else done, and then waited for. */
Test(bdev_file, flush_in_background, .init = setup, .fini = teardown)
{
	struct bdev *b;
	struct bdev_channel *ch;
	struct bdev_io io = { .type = BDEV_FLUSH };
	char buf[100] = "x";
	unsigned n;

	make_file(path, 1 << 20);
	b = test_open(path, BDEV_OPEN_CLAIM);
	ch = test_channel(b);
	cr_expect_eq(bdev_pwrite(ch, buf, 100, 5), 0);
	bdev_submit(ch, &io);
	n = bdev_poll(ch, 0);
	cr_expect_eq(bdev_pwrite(ch, buf, 100, 50000), 0);
	while (bdev_in_flight(ch))
		n += bdev_poll(ch, 1);
	cr_expect_eq(n, 1);
	cr_expect_eq(io.result, 0);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* More pieces than are handled at once, and of odd sizes. */
Test(bdev_file, many_pieces, .init = setup, .fini = teardown)
{
	struct iovec iov[BDEV_MAX_IOV];
	struct bdev_io io[2] = { { .type = BDEV_WRITE, .iov = iov }, { .type = BDEV_FLUSH } };
	struct bdev *b;
	struct bdev_channel *ch;
	char *buf = NULL;

	cr_assert_eq(posix_memalign((void **)&buf, 4096, 1 << 20), 0);
	for (size_t i = 0; i < 1 << 20; i++)
		buf[i] = (char)(i * 7 + i / 4096);
	make_file(path, 1 << 20);
	b = test_open(path, 0);
	ch = test_channel(b);
	for (int round = 0; round < 2; round++) { /* pieces of odd sizes; of 512 bytes */
		uint64_t pos = 0;

		for (int i = 0; i < BDEV_MAX_IOV; i++, pos += iov[i - 1].iov_len)
			iov[i] = (struct iovec){ buf + pos, round ? 512 : 1 + (size_t)i % 700 };
		io[0].type = BDEV_WRITE;
		io[0].length = pos;
		io[0].iovcnt = BDEV_MAX_IOV;
		cr_assert_eq(bdev_rw_wait(ch, io, 2), 0);
		io[0].type = BDEV_READ;
		memset(buf, 0, pos);
		cr_assert_eq(bdev_rw_wait(ch, io, 1), 0);
		for (size_t i = 0; i < pos; i++)
			cr_assert_eq(buf[i], (char)(i * 7 + i / 4096));
	}
	bdev_channel_close(ch);
	bdev_close(b);
	free(buf);
}

struct moving {
	struct bdev_channel *ch;
	int result;
};

static void *use_elsewhere(void *arg)
{
	struct moving *m = arg;
	struct bdev_io io[3] = { { .type = BDEV_FLUSH },
				 { .type = BDEV_UNMAP, .length = 100 },
				 { .type = BDEV_FLUSH } };

	m->result = bdev_rw_wait(m->ch, io, 3);
	return NULL;
}

/* A channel may be opened on one thread, used on others, and closed on yet another one. */
Test(bdev_file, channel_changes_hands, .init = setup, .fini = teardown)
{
	struct bdev *b;
	struct moving m = { 0 };
	pthread_t t;

	make_file(path, 1 << 20);
	b = test_open(path, 0);
	m.ch = test_channel(b);
	for (int i = 0; i < 6; i++) {
		m.result = 1;
		if (i % 3 == 2) {
			use_elsewhere(&m);
		} else {
			cr_assert_eq(pthread_create(&t, NULL, use_elsewhere, &m), 0);
			pthread_join(t, NULL);
		}
		cr_expect_eq(m.result, 0);
	}
	bdev_channel_close(m.ch);
	bdev_close(b);
}

static void expect_refused(const char *spec, unsigned flags, int code, const char *word)
{
	struct bc_error err = { 0 };
	struct bdev *b;

	cr_expect_eq(bdev_open(spec, flags, &b, &err), code, "%s: %d %s", spec, err.code, err.msg);
	cr_expect_not_null(strstr(err.msg, word), "no '%s' in: %s", word, err.msg);
}

Test(bdev_file, refusals_say_why, .init = setup, .fini = teardown)
{
	expect_refused(dir, 0, -EISDIR, "directory");
	expect_refused(path, 0, -ENOENT, "truncate -s");
	make_file(path, 0);
	expect_refused(path, 0, -EINVAL, "size 0");
	unlink(path);
	cr_assert_eq(mkfifo(path, 0600), 0);
	expect_refused(path, BDEV_OPEN_RDONLY, -EINVAL, "pipe");
	expect_refused("/dev/null", 0, -EINVAL, "character device");
	if (getuid())
		return;
	unlink(path);
	make_file(path, 4096);
	chmod(dir, 0755);
	cr_assert_eq(seteuid(65534), 0);
	expect_refused(path, 0, -EACCES, "permission");
	cr_assert_eq(seteuid(0), 0);
}

/* P10: one claim on a file, whatever name it is opened by. Opens without a claim are not hindered. */
Test(bdev_file, claim_within_process, .init = setup, .fini = teardown)
{
	char other[240], spec[300];
	struct bdev *b, *reader;

	make_file(path, 4096);
	snprintf(other, sizeof(other), "%s/link", dir);
	cr_assert_eq(link(path, other), 0);
	snprintf(spec, sizeof(spec), "delay:read=1ms:%s", other);
	b = test_open(path, BDEV_OPEN_CLAIM);
	expect_refused(path, BDEV_OPEN_CLAIM, -EBUSY, "this very process");
	expect_refused(spec, BDEV_OPEN_CLAIM, -EBUSY, "this very process");
	reader = test_open(other, BDEV_OPEN_RDONLY);
	bdev_close(reader);
	expect_refused(path, BDEV_OPEN_CLAIM, -EBUSY, "this very process");
	bdev_close(b);
	b = test_open(spec, BDEV_OPEN_CLAIM); /* a wrapper claims what is below */
	expect_refused(path, BDEV_OPEN_CLAIM, -EBUSY, "this very process");
	bdev_close(b);
	bdev_close(test_open(path, BDEV_OPEN_CLAIM));
}

/* P10: another process is kept out, and told by whom; the claim ends with its owner, killed or not. */
Test(bdev_file, claim_among_processes, .init = setup, .fini = teardown)
{
	char c, pid_text[40];
	int ready[2], status;
	pid_t pid;

	make_file(path, 4096);
	cr_assert_eq(pipe(ready), 0);
	pid = fork();
	if (!pid) {
		struct bdev *b;
		int r = bdev_open(path, BDEV_OPEN_CLAIM, &b, NULL);

		if (r || write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(1);
	}
	cr_assert_eq(read(ready[0], &c, 1), 1);
	snprintf(pid_text, sizeof(pid_text), "by process %d (", pid);
	expect_refused(path, BDEV_OPEN_CLAIM, -EBUSY, pid_text);
	bdev_close(test_open(path, 0));
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	bdev_close(test_open(path, BDEV_OPEN_CLAIM));
}

/* P10: size, identity and modification time of a file are seen as they are now. */
Test(bdev_file, identity, .init = setup, .fini = teardown)
{
	struct bdev_identity a, n;
	struct bdev *b;
	struct bdev_channel *ch;
	struct stat st;
	char buf[8192];

	make_file(path, 10000);
	b = test_open(path, 0);
	ch = test_channel(b);
	cr_assert_eq(stat(path, &st), 0);
	bdev_get_identity(b, &a);
	cr_expect_eq(a.size, 10000);
	cr_expect(a.id[0] == st.st_dev && a.id[1] == st.st_ino);
	cr_expect_eq(a.mtime_ns, st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec);
	cr_expect_eq(utimensat(AT_FDCWD, path, (struct timespec[2]){ { 1, 2 }, { 3, 4 } }, 0), 0);
	bdev_get_identity(b, &n);
	cr_expect_eq(n.mtime_ns, 3000000004);
	cr_expect_eq(bdev_check_size(b), 0);
	cr_expect_eq(truncate(path, 5000), 0);
	cr_expect_eq(bdev_check_size(b), -ESTALE);
	/* What is gone is an error, never a short read or zeros; with the queue and without. */
	cr_expect_eq(bdev_pread(ch, buf, 1000, 8000), -EIO);
	cr_expect_eq(bdev_pread(ch, buf, 8192, 0), -EIO);
	cr_expect_eq(bdev_pread(ch, buf, 5000, 0), 0);
	struct iovec iov = { buf, 6000 };
	struct bdev_io io[2] = { { .type = BDEV_READ, .length = 6000, .iov = &iov, .iovcnt = 1 },
				 { .type = BDEV_FLUSH } };
	cr_expect_eq(bdev_rw_wait(ch, io, 2), -EIO);
	cr_expect_eq(io[1].result, 0);
	cr_expect_eq(truncate(path, 20000), 0);
	cr_expect_eq(bdev_check_size(b), -ESTALE);
	bdev_channel_close(ch);
	bdev_close(b);
}

/* UNMAP gives space back where the file system can. */
Test(bdev_file, unmap_frees, .init = setup, .fini = teardown)
{
	struct bdev *b;
	struct bdev_channel *ch;
	struct bdev_io io = { .type = BDEV_UNMAP, .length = 1 << 20 };
	char *buf = malloc(1 << 20);
	struct stat before, after;

	memset(buf, 1, 1 << 20);
	make_file(path, 1 << 20);
	b = test_open(path, 0);
	ch = test_channel(b);
	cr_expect_eq(bdev_pwrite(ch, buf, 1 << 20, 0), 0);
	cr_expect_eq(bdev_flush(ch), 0);
	cr_assert_eq(stat(path, &before), 0);
	cr_expect_eq(bdev_rw_wait(ch, &io, 1), 0);
	cr_assert_eq(stat(path, &after), 0);
	if (bdev_io_type_supported(b, BDEV_UNMAP))
		cr_expect_lt(after.st_blocks, before.st_blocks);
	cr_expect_eq(after.st_size, 1 << 20);
	bdev_channel_close(ch);
	bdev_close(b);
	free(buf);
}

/* A loop device over `path`, or -1 where there is none. Its descriptor keeps it (LO_FLAGS_AUTOCLEAR). */
static int loop_device(char *name, size_t len)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), fd = -1, file, nr;
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };

	for (int tries = 0; control >= 0 && fd < 0 && tries < 10; tries++) { /* others take loop devices as well */
		nr = ioctl(control, LOOP_CTL_GET_FREE);
		if (nr < 0)
			break;
		snprintf(name, len, "/dev/loop%d", nr);
		fd = open(name, O_RDWR | O_CLOEXEC);
		file = open(path, O_RDWR | O_CLOEXEC);
		config.fd = (unsigned)file;
		if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config)) {
			close(fd);
			fd = -1;
		}
		close(file);
	}
	if (control >= 0)
		close(control);
	return fd;
}

/* A kernel block device: the same promises; its claim also keeps mounts and the like away. */
Test(bdev_file, block_device, .init = setup, .fini = teardown)
{
	char name[40];
	struct bdev_identity id;
	struct bdev *b;
	struct stat st;
	int fd, excl;

	make_file(path, (1 << 20) + 512);
	fd = loop_device(name, sizeof(name));
	if (fd < 0)
		cr_skip_test("no loop devices here");
	random_file(name, name, (1 << 20) + 512, 60);
	b = test_open(name, BDEV_OPEN_CLAIM);
	bdev_get_identity(b, &id);
	cr_assert_eq(fstat(fd, &st), 0);
	cr_expect(id.size == (1 << 20) + 512 && id.id[0] == st.st_rdev && id.id[1] == 0);
	cr_assert_eq(stat(path, &st), 0); /* the time is that of the loop's file */
	cr_expect_eq(id.mtime_ns, st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec);
	expect_refused(name, BDEV_OPEN_CLAIM, -EBUSY, "this very process");
	cr_expect(open(name, O_RDWR | O_EXCL | O_CLOEXEC) < 0 && errno == EBUSY);
	bdev_close(b);
	excl = open(name, O_RDWR | O_EXCL | O_CLOEXEC);
	cr_expect_geq(excl, 0);
	expect_refused(name, BDEV_OPEN_CLAIM, -EBUSY, "in use");
	close(excl);
	close(fd);
}
