/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ioflags - one read or write with given flags, which dd cannot do.
 *
 *   ioflags write FILE OFFSET LENGTH BYTE [sync|dsync|rwf_dsync|plain]    writes LENGTH times BYTE in one call
 *   ioflags expect FILE OFFSET LENGTH BYTE                                exit status 1 unless every byte is BYTE
 *
 * Prints what the call returned.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int do_write(const char *path, off_t offset, size_t len, int byte, const char *how)
{
	int flags = strcmp(how, "sync") == 0 ? O_SYNC : strcmp(how, "dsync") == 0 ? O_DSYNC : 0;
	int fd = open(path, O_WRONLY | flags);
	char *buf = malloc(len ? len : 1);
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	ssize_t put;

	if (fd < 0 || !buf) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 2;
	}
	memset(buf, byte, len);
	put = pwritev2(fd, &iov, 1, offset, strcmp(how, "rwf_dsync") == 0 ? RWF_DSYNC : 0);
	if (put < 0)
		printf("%s\n", strerror(errno));
	else
		printf("%zd\n", put);
	free(buf);
	return put == (ssize_t)len ? 0 : 1;
}

static int do_expect(const char *path, off_t offset, size_t len, int byte)
{
	int fd = open(path, O_RDONLY);
	char *buf = malloc(len ? len : 1);
	size_t have = 0;
	int rc = 0;

	if (fd < 0 || !buf) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 2;
	}
	while (have < len) {
		ssize_t got = pread(fd, buf + have, len - have, offset + (off_t)have);

		if (got <= 0) {
			fprintf(stderr, "%s: at %lld: %s\n", path, (long long)offset + (long long)have,
				got < 0 ? strerror(errno) : "end of file");
			rc = 2;
			break;
		}
		have += (size_t)got;
	}
	for (size_t i = 0; i < have && rc == 0; i++) {
		if ((unsigned char)buf[i] != byte) {
			fprintf(stderr, "%s: byte %lld is %u, not %d\n", path, (long long)offset + (long long)i,
				(unsigned char)buf[i], byte);
			rc = 1;
		}
	}
	free(buf);
	return rc;
}

int main(int argc, char **argv)
{
	if (argc >= 6 && strcmp(argv[1], "write") == 0)
		return do_write(argv[2], atoll(argv[3]), strtoul(argv[4], NULL, 10), atoi(argv[5]),
				argc > 6 ? argv[6] : "plain");
	if (argc == 6 && strcmp(argv[1], "expect") == 0)
		return do_expect(argv[2], atoll(argv[3]), strtoul(argv[4], NULL, 10), atoi(argv[5]));
	fprintf(stderr, "usage: ioflags write FILE OFFSET LENGTH BYTE [sync|dsync|rwf_dsync|plain] | expect FILE "
			"OFFSET LENGTH BYTE\n");
	return 64;
}
