/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * main.c - picks the subcommand.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

static const struct command commands[] = {
	{ "create", "DIR --size SIZE", "make a cache in a folder", cmd_create },
	{ "add", "DIR NAME=BACKING", "register a volume, while running or stopped", cmd_add },
	{ "remove", "DIR NAME", "flush and forget a volume", cmd_remove },
	{ "load", "DIR MOUNTPOINT", "start the daemon of a cache and mount its volumes", cmd_load },
	{ "mount", "BACKING MOUNTPOINT --cache DIR", "create, add and load in one step", cmd_mount },
	{ "flush", "DIR [NAME]", "write dirty data to the backing device", cmd_flush },
	{ "stop", "DIR", "flush, unmount and end the daemon", cmd_stop },
	{ "status", "DIR", "show state, volumes, dirty data and what is wrong", cmd_status },
	{ "stats", "DIR [NAME]", "show counters since load", cmd_stats },
	{ "set", "DIR [NAME] KEY=VALUE...", "change tunables and keep them", cmd_set },
	{ "get", "DIR [NAME] [KEY...]", "show tunables", cmd_get },
	{ "check", "DIR", "verify a stopped cache against its checksums", cmd_check },
};
#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_help(void)
{
	printf("Usage: blkcache COMMAND [ARGUMENT...]\n"
	       "A block cache in user space: keeps hot blocks of slow devices on a fast disk and in RAM.\n\n"
	       "Commands:\n");
	for (size_t i = 0; i < NCOMMANDS; i++) {
		char head[64];

		snprintf(head, sizeof(head), "%s %s", commands[i].name, commands[i].args);
		printf("  %-38s %s\n", head, commands[i].summary);
	}
	printf("\n"
	       "  DIR      the cache folder          NAME     a volume: the file NAME in the mount point\n"
	       "  BACKING  a file, a block device, or a device spec such as delay:read=5ms:/data/disk.img\n\n"
	       "'blkcache COMMAND --help' tells more about one. Exit codes: 0 done, 1 failed, 3 done but dirty data\n"
	       "is left in the cache (or damage that costs no data), 64 wrong usage, 130 interrupted.\n");
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < NCOMMANDS; i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static int run_command(const struct command *c, int argc, char **argv)
{
	char name[64];

	snprintf(name, sizeof(name), "blkcache %s", c->name);
	argv[0] = name;
	command_set_name(c->name);
	return c->run(argc, argv);
}

static int dispatch(int argc, char **argv)
{
	const struct command *c;
	const char *word = argc > 1 ? argv[1] : NULL;

	if (!word) {
		fprintf(stderr, "blkcache: no command given; 'blkcache --help' lists them\n");
		return CMD_USAGE;
	}
	if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "-?") ||
	    (!strcmp(word, "help") && argc < 3)) {
		print_help();
		return CMD_OK;
	}
	if (!strcmp(word, "--version") || !strcmp(word, "-V") || !strcmp(word, "version")) {
		printf("blkcache %s\n", BLKCACHE_VERSION);
		return CMD_OK;
	}
	c = find_command(strcmp(word, "help") ? word : argv[2]);
	if (!c) {
		fprintf(stderr, "blkcache: unknown %s '%s'; 'blkcache --help' lists the commands\n",
			*word == '-' ? "option" : "command", strcmp(word, "help") ? word : argv[2]);
		return CMD_USAGE;
	}
	if (!strcmp(word, "help")) {
		char option[] = "--help", *args[] = { argv[0], option, NULL };

		return run_command(c, 2, args);
	}
	return run_command(c, argc - 1, argv + 1);
}

/* With 0, 1 or 2 closed, the next file opened would become stdin, stdout or stderr. */
static void open_std_streams(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

int main(int argc, char **argv)
{
	int code;

	open_std_streams();
	argp_err_exit_status = CMD_USAGE;
	code = dispatch(argc, argv);
	/* What a script reads must not be cut off silently (a full disk). */
	if ((fflush(stdout) || ferror(stdout)) && errno != EPIPE) {
		int failed = fail("cannot write the output: %s", strerror(errno));

		code = code ? code : failed;
	}
	return code;
}
