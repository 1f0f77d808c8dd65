/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * progress.c - see progress.h. The terminal's width is asked for each time: it may have changed. The rate is the mean
 * since the start: steadier than the last moment's, and right for an ETA when one device is written from end to end.
 */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
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

/* Characters of a line on the terminal; 0: unknown. A line that is longer would go on below, again each time. */
static size_t terminal_width(void)
{
	struct winsize size;

	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 ? 0 : size.ws_col;
}

/* All of it if it fits, else without the bar, without the sizes, and at last cut off. One column stays free: some
 * terminals go to the next line when the last one is filled. */
static void print_fitting(const char *verb, double share, const char *done, const char *total, const char *rate,
			  const char *eta)
{
	size_t width = terminal_width(), room = width ? width - 1 : SIZE_MAX, full = (size_t)(share * BAR_WIDTH);
	char bar[BAR_WIDTH + 1], line[300];

	memset(bar, '-', BAR_WIDTH);
	memset(bar, '#', full);
	bar[BAR_WIDTH] = '\0';
	snprintf(line, sizeof(line), "%s [%s] %3.0f %%  %s of %s  %s/s  ETA %s", verb, bar, share * 100, done, total,
		 rate, eta);
	if (strlen(line) > room)
		snprintf(line, sizeof(line), "%s %3.0f %%  %s of %s  %s/s  ETA %s", verb, share * 100, done, total,
			 rate, eta);
	if (strlen(line) > room)
		snprintf(line, sizeof(line), "%s %3.0f %%  %s/s  ETA %s", verb, share * 100, rate, eta);
	if (strlen(line) > room)
		snprintf(line, sizeof(line), "%3.0f %%  ETA %s", share * 100, eta);
	if (strlen(line) > room)
		line[room] = '\0';
	printf("\r%s\033[K", line);
}

void progress_show(struct progress *p, uint64_t done, uint64_t total)
{
	double seconds = progress_seconds(p), rate = seconds > 0 ? (double)done / seconds : 0;
	double share = total ? (double)done / (double)total : 0;
	char eta[32];

	if (!p->tty || !total)
		return;
	if (share > 1)
		share = 1;
	format_eta(eta, sizeof(eta), rate > 0 && total > done ? (double)(total - done) / rate : total > done ? 1e9 : 0);
	print_fitting(p->verb, share, size_text(done), size_text(total), size_text((uint64_t)rate), eta);
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
