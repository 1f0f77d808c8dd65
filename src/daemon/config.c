/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config.c - blkcache.conf, an INI file read with libinih. Any thread; no state after the call.
 *
 * The keys are one table: the parser, the messages and the manual page follow it. A key that is unknown is an error and
 * not a warning, since a misspelt "allow-other" or "ram" would otherwise be noticed much later.
 */
#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "blkcache/units.h"
#include "daemon/daemon.h"

struct parse {
	const char *path;
	FILE *file;
	unsigned line; /* lines read so far = number of the line being parsed */
	bool in_line; /* the last piece read had no newline */
	uint64_t seen; /* a bit per key of the table */
	struct daemon_config *cfg;
	struct bc_error *err;
	int ret; /* the first error of handle() or read_line() ... */
	unsigned error_line; /* ... and its line */
};

static int parse_size(const char *value, void *out)
{
	int ret = units_parse_size(value, out);

	return !ret && !*(uint64_t *)out ? -EINVAL : ret; /* 0 would look like a key that is not there */
}

static int parse_line_size(const char *value, void *out)
{
	uint64_t size;

	if (units_parse_size(value, &size) || size < CACHE_BLOCK || size > 65536 || (size & (size - 1)))
		return -EINVAL;
	*(uint32_t *)out = (uint32_t)size;
	return 0;
}

static int parse_mode(const char *value, void *out)
{
	return cache_mode_parse(value, out);
}

static int parse_count(const char *value, void *out)
{
	uint64_t n;

	if (units_parse_u64(value, &n) || n < 1 || n > 4096)
		return -EINVAL;
	*(unsigned *)out = (unsigned)n;
	return 0;
}

static int parse_bool(const char *value, void *out)
{
	static const char *const yes[] = { "yes", "true", "on", "1" }, *const no[] = { "no", "false", "off", "0" };

	for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
		if (!strcasecmp(value, yes[i]) || !strcasecmp(value, no[i])) {
			*(bool *)out = !strcasecmp(value, yes[i]);
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_log_level(const char *value, void *out)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (!strcasecmp(value, names[i])) {
			*(enum log_level *)out = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_patience(const char *value, void *out)
{
	uint64_t us;

	if (units_parse_time(value, &us) || us < 1000000 || us > UINT64_C(3600000000))
		return -EINVAL;
	*(unsigned *)out = (unsigned)(us / 1000);
	return 0;
}

static const struct key {
	const char *section, *name, *accepts;
	int (*parse)(const char *value, void *out);
	size_t offset;
} keys[] = {
	{ "cache", "size", "a size such as 10G", parse_size, offsetof(struct daemon_config, size) },
	{ "cache", "line-size", "4K, 8K, 16K, 32K or 64K", parse_line_size, offsetof(struct daemon_config, line_size) },
	{ "cache", "mode", "wt, wb, wa, wi, wo or pt", parse_mode, offsetof(struct daemon_config, mode) },
	{ "cache", "ram", "a size such as 64M", parse_size, offsetof(struct daemon_config, ram) },
	{ "daemon", "threads", "a number from 1 to 4096", parse_count, offsetof(struct daemon_config, threads) },
	{ "daemon", "max-background", "a number from 1 to 4096", parse_count,
	  offsetof(struct daemon_config, max_background) },
	{ "daemon", "allow-other", "yes or no", parse_bool, offsetof(struct daemon_config, allow_other) },
	{ "daemon", "survive", "yes or no", parse_bool, offsetof(struct daemon_config, survive) },
	{ "daemon", "patience", "a time from 1s to 3600s", parse_patience,
	  offsetof(struct daemon_config, patience_ms) },
	{ "daemon", "log-level", "error, warn, info or debug", parse_log_level,
	  offsetof(struct daemon_config, log_level) },
};
#define NKEYS (sizeof(keys) / sizeof(keys[0]))

/* "a, b, c": the keys of a section. */
static const char *known_keys(const char *section, char *buf, size_t len)
{
	size_t n = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < NKEYS && n < len; i++)
		if (!strcmp(keys[i].section, section))
			n += (size_t)snprintf(buf + n, len - n, "%s%s", n ? ", " : "", keys[i].name);
	return buf;
}

static int reject(struct parse *p, const char *section, const char *name)
{
	char list[200];

	if (!*section)
		return bc_fail(p->err, -EINVAL,
			       "%s:%u: '%.60s' stands outside of a section; put it below [cache] or [daemon]", p->path,
			       p->line, name);
	known_keys(section, list, sizeof(list));
	if (!*list)
		return bc_fail(p->err, -EINVAL, "%s:%u: unknown section [%.60s]; known are [cache] and [daemon]",
			       p->path, p->line, section);
	return bc_fail(p->err, -EINVAL, "%s:%u: unknown key '%.60s' in [%s]; known are %s", p->path, p->line, name,
		       section, list);
}

/* libinih's callback: zero is an error. Only the first is kept, for libinih goes on to the end. */
static int handle(void *user, const char *section, const char *name, const char *value)
{
	struct parse *p = user;
	size_t i;

	if (p->ret)
		return 0;
	for (i = 0; i < NKEYS; i++)
		if (!strcmp(keys[i].section, section) && !strcmp(keys[i].name, name))
			break;
	if (i == NKEYS)
		p->ret = reject(p, section, name);
	else if (p->seen & (1ull << i))
		p->ret = bc_fail(p->err, -EINVAL, "%s:%u: '%s' is given twice; remove one", p->path, p->line, name);
	else if (keys[i].parse(value, (char *)p->cfg + keys[i].offset))
		p->ret = bc_fail(p->err, -EINVAL, "%s:%u: %s = %.60s: expected %s", p->path, p->line, name, value,
				 keys[i].accepts);
	if (i < NKEYS)
		p->seen |= 1ull << i;
	p->error_line = p->line;
	return !p->ret;
}

/* fgets that counts: libinih hands no line number to its callback. */
static char *read_line(char *buf, int size, void *stream)
{
	struct parse *p = stream;
	int end = size - 1;

	memset(buf, 1, (size_t)size); /* the last zero in it is then the one that fgets puts behind what it has read */
	if (!fgets(buf, size, p->file))
		return NULL;
	while (buf[end])
		end--;
	if (!p->in_line)
		p->line++;
	if ((int)strlen(buf) != end && !p->ret) {
		/* libinih would not see what follows it. */
		p->error_line = p->line;
		p->ret = bc_fail(p->err, -EINVAL,
				 "%s:%u: a zero byte: the file is damaged, or no text file; write it anew", p->path,
				 p->line);
	}
	p->in_line = !strchr(buf, '\n');
	if (p->in_line && (int)strlen(buf) == size - 1 && !p->ret) {
		/* libinih would take the rest of the line for another one. */
		p->error_line = p->line;
		p->ret = bc_fail(p->err, -EINVAL, "%s:%u: the line is longer than %d characters", p->path, p->line,
				 size - 2);
	}
	return buf;
}

int config_load_file(const char *path, struct daemon_config *cfg, struct bc_error *err)
{
	struct parse p = { .path = path, .cfg = cfg, .err = err };
	int line;

	*cfg = (struct daemon_config){ .mode = CACHE_MODE_WT, .log_level = LOG_LEVEL_INFO };
	p.file = fopen(path, "re");
	if (!p.file)
		return bc_fail(err, -errno, "%s: cannot read the configuration: %s", path, strerror(errno));
	line = ini_parse_stream(read_line, &p, handle, &p);
	if (!p.ret && ferror(p.file))
		p.ret = bc_fail(err, -EIO, "%s: cannot read the configuration: %s", path, strerror(errno));
	/* libinih gives the line of the first error, ours or its own: a section it could not read makes the keys below
	 * it look wrong. */
	if (line > 0 && (!p.ret || (unsigned)line < p.error_line))
		p.ret = bc_fail(err, -EINVAL, "%s:%d: expected KEY = VALUE or [SECTION]", path, line);
	else if (!p.ret && line < 0)
		p.ret = bc_fail(err, -ENOMEM, "%s: out of memory", path);
	fclose(p.file);
	return p.ret;
}

int config_load(struct daemon_config *cfg, struct bc_error *err)
{
	const char *path = getenv(CONFIG_ENV);
	struct bc_error mine = { 0 };
	int ret;

	if (!path || !*path)
		path = CONFIG_FILE;
	ret = config_load_file(path, cfg, &mine);
	if (ret == -ENOENT)
		return 0;
	if (ret && err)
		*err = mine;
	return ret;
}
