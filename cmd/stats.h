/* SPDX-License-Identifier: BSD-3-Clause */
/* stats.h - output of `blkcache stats` that has a file of its own. One thread. */
#ifndef CMD_STATS_H
#define CMD_STATS_H

#include <jansson.h>
#include <stdbool.h>

/* Prints the object of `stats` in Prometheus' text format, for a node exporter's textfile collector or a small HTTP
 * wrapper. loaded: it is a daemon's; else of a stopped cache, or has nothing but the cache's folder and state. */
void prometheus_print(const json_t *stats, bool loaded);

#endif
