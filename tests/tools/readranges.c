/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * readranges - reads every range over every mix of neighbouring blocks that are absent, clean, dirty or partly dirty.
 *
 *   readranges fill FILE        prepares a backing file
 *   readranges prepare VOLUME   brings the blocks into their states (the volume in mode wb, its cache fresh)
 *   readranges check VOLUME     reads all ranges; exit status 1 and a line for each of the first wrong ones
 *
 * The volume is a row of windows, one for each of the 4^3 mixes of three blocks; a window is followed by a block nobody
 * touches. Every byte has a value of its own by position and by whether it is the backing's or newly written, so a
 * piece from a wrong place, of a wrong length or of a wrong age shows. Ranges start and end at sector boundaries and
 * one byte beside them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096u
#define SECTOR 512u
#define BLOCKS 3u /* per window */
#define WINDOW ((BLOCKS + 1) * BLOCK)
#define MIXES 64u /* 4 ^ BLOCKS */
#define SIZE (MIXES * WINDOW)

enum { ABSENT, CLEAN, DIRTY, PARTLY };

#define PART_FROM 700u /* a partly dirty block is written here only */
#define PART_LEN 1500u

static unsigned block_state(uint32_t pos)
{
	uint32_t mix = pos / WINDOW, block = pos % WINDOW / BLOCK;

	return block < BLOCKS ? mix >> (2 * block) & 3 : ABSENT;
}

static unsigned char old_byte(uint32_t pos)
{
	return (unsigned char)((pos * 2654435761u) >> 24) & 0x7f;
}

static unsigned char want_byte(uint32_t pos)
{
	unsigned s = block_state(pos);
	uint32_t in = pos % BLOCK;
	bool new = s == DIRTY || (s == PARTLY && in >= PART_FROM && in < PART_FROM + PART_LEN);

	return new ? (unsigned char)((pos * 2246822519u) >> 24) | 0x80 : old_byte(pos);
}

static void die(const char *what)
{
	fprintf(stderr, "readranges: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void fill(int fd)
{
	static unsigned char buf[SIZE];

	for (uint32_t i = 0; i < SIZE; i++)
		buf[i] = old_byte(i);
	if (write(fd, buf, SIZE) != (ssize_t)SIZE)
		die("write");
}

static void prepare(int fd)
{
	unsigned char buf[BLOCK];

	for (uint32_t pos = 0; pos < SIZE; pos += BLOCK) {
		unsigned s = block_state(pos);
		uint32_t from = s == PARTLY ? PART_FROM : 0, len = s == PARTLY ? PART_LEN : BLOCK;

		if (s == CLEAN && pread(fd, buf, BLOCK, pos) != (ssize_t)BLOCK)
			die("read");
		for (uint32_t i = 0; i < len; i++)
			buf[i] = want_byte(pos + from + i);
		if (s >= DIRTY && pwrite(fd, buf, len, pos + from) != (ssize_t)len)
			die("write");
	}
}

static bool check_range(int fd, uint32_t from, uint32_t to)
{
	static unsigned char buf[WINDOW + 2];
	ssize_t got = pread(fd, buf, to - from, from);

	if (got != (ssize_t)(to - from)) {
		fprintf(stderr, "%u..%u: read returned %zd: %s\n", from, to, got, got < 0 ? strerror(errno) : "short");
		return false;
	}
	for (uint32_t i = from; i < to; i++) {
		if (buf[i - from] == want_byte(i))
			continue;
		fprintf(stderr, "mix %u, range %u..%u: byte %u (block state %u) is %02x, want %02x\n", from / WINDOW,
			from % WINDOW, from % WINDOW + to - from, i % WINDOW, block_state(i), buf[i - from],
			want_byte(i));
		return false;
	}
	return true;
}

static int check(int fd)
{
	unsigned bad = 0, ranges = 0;

	for (uint32_t w = 0; w < SIZE && bad < 10; w += WINDOW) {
		for (uint32_t a = 0; a < WINDOW; a += SECTOR) {
			for (uint32_t b = a + SECTOR; b <= WINDOW; b += SECTOR) {
				bad += !check_range(fd, w + a, w + b);
				ranges++;
			}
			bad += !check_range(fd, w + a + 1, w + WINDOW - 1);
			bad += !check_range(fd, w + a + 1, w + a + SECTOR - 1);
			ranges += 2;
		}
	}
	printf("%u ranges, %u wrong\n", ranges, bad);
	return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
	int fd;

	if (argc != 3) {
		fprintf(stderr, "usage: readranges fill FILE | prepare VOLUME | check VOLUME\n");
		return 64;
	}
	fd = open(argv[2], strcmp(argv[1], "fill") == 0 ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR, 0600);
	if (fd < 0)
		die(argv[2]);
	if (strcmp(argv[1], "fill") == 0)
		fill(fd);
	else if (strcmp(argv[1], "prepare") == 0)
		prepare(fd);
	else
		return check(fd);
	return 0;
}
