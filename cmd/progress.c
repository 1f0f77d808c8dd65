/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * progress.c - see progress.h. The rate is the mean since the start: steadier than the last moment's, and right for an
 * ETA when one device is written from end to end.
 */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

#define BAR_WIDTH 30

void progress_init(struct progress *p, const char *verb)
{
	*p = (struct progress){ .verb = verb, .tty = isatty(STDOUT_FILENO) };
	clock_gettime(CLOCK_MONOTONIC, &p->start);
}

double progress_seconds(const struct progress *p)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - p->start.tv_sec) + (double)(now.tv_nsec - p->start.tv_nsec) / 1e9;
}

static void format_eta(char *buf, size_t len, double seconds)
{
	unsigned long s = seconds < 1e7 ? (unsigned long)(seconds + 0.5) : 0;

	if (!s && seconds > 1)
		snprintf(buf, len, "?");
	else if (s >= 3600)
		snprintf(buf, len, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
	else
		snprintf(buf, len, "%lu:%02lu", s / 60, s % 60);
}

void progress_show(struct progress *p, uint64_t done, uint64_t total)
{
	double seconds = progress_seconds(p), rate = seconds > 0 ? (double)done / seconds : 0;
	double share = total ? (double)done / (double)total : 0;
	char bar[BAR_WIDTH + 1], eta[32];
	size_t full;

	if (!p->tty || !total)
		return;
	if (share > 1)
		share = 1;
	full = (size_t)(share * BAR_WIDTH);
	memset(bar, '-', BAR_WIDTH);
	memset(bar, '#', full);
	bar[BAR_WIDTH] = '\0';
	format_eta(eta, sizeof(eta), rate > 0 && total > done ? (double)(total - done) / rate : total > done ? 1e9 : 0);
	printf("\r%s [%s] %3.0f %%  %s of %s  %s/s  ETA %s\033[K", p->verb, bar, share * 100, size_text(done),
	       size_text(total), size_text((uint64_t)rate), eta);
	fflush(stdout);
	p->shown = true;
}

void progress_clear(struct progress *p)
{
	if (p->shown)
		printf("\r\033[K");
	fflush(stdout);
	p->shown = false;
}

int progress_from_daemon(json_t *msg, void *ctx)
{
	if (msg)
		progress_show(ctx, jcount(msg, "done_bytes"), jcount(msg, "total_bytes"));
	return interrupted();
}

int progress_from_engine(const struct cache_progress *cp, void *ctx)
{
	progress_show(ctx, cp->done_bytes, cp->total_bytes);
	return interrupted();
}
