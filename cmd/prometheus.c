/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * prometheus.c - statistics in Prometheus' text format, version 0.0.4. One thread.
 *
 * Names follow its conventions: counters end in _total, times are seconds, sizes bytes. What differs by kind is a
 * label, so that sums over kinds and volumes can be asked for. Every series has the label cache (the folder), those of
 * a volume also volume.
 */
#include <stdio.h>
#include <string.h>

#include "common.h"
#include "stats.h"
#include "util/utf8.h"

/* A label value: backslash, quote and newline are escaped, as the format wants. One byte that is not UTF-8 would make
 * the collector drop the whole file: it is shown as \xNN. */
static void print_label(const char *key, const char *value)
{
	size_t left = strlen(value), n;

	printf("%s=\"", key);
	for (; left; value += n, left -= n) {
		n = utf8_length(value, left);
		if (!n) {
			printf("\\\\x%02x", (unsigned char)*value);
			n = 1;
		} else if (*value == '\n') {
			printf("\\n");
		} else if (*value == '"' || *value == '\\') {
			printf("\\%c", *value);
		} else {
			fwrite(value, 1, n, stdout);
		}
	}
	putchar('"');
}

static void head(const char *name, const char *type, const char *help)
{
	printf("# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void series(const json_t *stats, const char *name, const json_t *volume, const char *label, const char *value)
{
	printf("%s{", name);
	print_label("cache", jtext(json_object_get(stats, "cache"), "dir"));
	if (volume) {
		putchar(',');
		print_label("volume", jtext(volume, "name"));
	}
	if (label) {
		putchar(',');
		print_label(label, value);
	}
	printf("} ");
}

static void histogram_series(const json_t *stats, const char *name, const json_t *volume, const char *op,
			     const char *le)
{
	printf("%s{", name);
	print_label("cache", jtext(json_object_get(stats, "cache"), "dir"));
	putchar(',');
	print_label("volume", jtext(volume, "name"));
	putchar(',');
	print_label("op", op);
	putchar(',');
	print_label("le", le);
	printf("} ");
}

/* A number of the group `group` of the cache. */
static void cache_gauge(const json_t *stats, const char *group, const char *key, const char *name, const char *help)
{
	head(name, "gauge", help);
	series(stats, name, NULL, NULL, NULL);
	printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(json_object_get(json_object_get(stats, group), key)));
}

/* One sample per volume and key of a group. */
static void volume_group(const json_t *stats, const char *group, const char *label, const char *name, const char *type,
			 const char *help)
{
	json_t *v, *value;
	const char *key;
	size_t i;

	head(name, type, help);
	json_array_foreach(json_object_get(stats, "volumes"), i, v) {
		json_object_foreach(json_object_get(v, group), key, value) {
			series(stats, name, v, label, key);
			printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
		}
	}
}

static void volume_gauge(const json_t *stats, const char *key, const char *name, const char *help)
{
	json_t *v;
	size_t i;

	head(name, "gauge", help);
	json_array_foreach(json_object_get(stats, "volumes"), i, v) {
		series(stats, name, v, NULL, NULL);
		printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(json_object_get(v, key)));
	}
}

static void latency_gauges(const json_t *stats)
{
	static const char *const which[] = { "p50", "p99", "max" };
	json_t *v, *value;
	const char *op;
	char name[64];
	size_t i;

	for (size_t k = 0; k < 3; k++) {
		snprintf(name, sizeof(name), "blkcache_latency_%s_seconds", which[k]);
		head(name, "gauge",
		     k == 2 ? "Longest time of a request since load."
			    : "Quantile of the time of a request since load.");
		json_array_foreach(json_object_get(stats, "volumes"), i, v) {
			json_object_foreach(json_object_get(v, "latency_us"), op, value) {
				series(stats, name, v, "op", op);
				printf("%.9g\n", json_number_value(json_object_get(value, which[k])) / 1e6);
			}
		}
	}
	head("blkcache_timed_requests_total", "counter", "Requests whose time was taken.");
	json_array_foreach(json_object_get(stats, "volumes"), i, v) {
		json_object_foreach(json_object_get(v, "latency_us"), op, value) {
			series(stats, "blkcache_timed_requests_total", v, "op", op);
			printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(json_object_get(value, "count")));
		}
	}
}

/* A classic histogram. The series of a bucket has its upper bound, in seconds, as the label le. */
static void latency_histograms(const json_t *stats)
{
	static const char name[] = "blkcache_request_duration_seconds";
	json_t *v, *value, *pair;
	char bucket[sizeof(name) + 8], le[32];
	const char *op;
	size_t i, k;

	snprintf(bucket, sizeof(bucket), "%s_bucket", name);
	head(name, "histogram", "Time of requests since load.");
	json_array_foreach(json_object_get(stats, "volumes"), i, v) {
		json_object_foreach(json_object_get(v, "latency_us"), op, value) {
			json_int_t count = json_integer_value(json_object_get(value, "count"));

			json_array_foreach(json_object_get(value, "buckets"), k, pair) {
				snprintf(le, sizeof(le), "%.9g", json_number_value(json_array_get(pair, 0)) / 1e6);
				histogram_series(stats, bucket, v, op, le);
				printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(json_array_get(pair, 1)));
			}
			histogram_series(stats, bucket, v, op, "+Inf");
			printf("%" JSON_INTEGER_FORMAT "\n", count);
			series(stats, "blkcache_request_duration_seconds_sum", v, "op", op);
			printf("%.9g\n", json_number_value(json_object_get(value, "sum")) / 1e6);
			series(stats, "blkcache_request_duration_seconds_count", v, "op", op);
			printf("%" JSON_INTEGER_FORMAT "\n", count);
		}
	}
}

static void print_states(const json_t *stats)
{
	static const char *const states[] = { "running", "degraded", "failed", "flushing", "stopping", "stopped" };
	const json_t *caches = json_object_get(stats, "cache");
	json_t *v;
	size_t i;

	head("blkcache_state", "gauge", "1 for the state the cache is in.");
	for (size_t k = 0; k < sizeof(states) / sizeof(states[0]); k++) {
		series(stats, "blkcache_state", NULL, "state", states[k]);
		printf("%d\n", !strcmp(jtext(caches, "state"), states[k]));
	}
	head("blkcache_volume_state", "gauge", "1 for the state the volume is in.");
	json_array_foreach(json_object_get(stats, "volumes"), i, v) {
		for (size_t k = 0; k < sizeof(states) / sizeof(states[0]); k++) {
			series(stats, "blkcache_volume_state", v, "state", states[k]);
			printf("%d\n", !strcmp(jtext(v, "state"), states[k]));
		}
	}
}

static void print_daemon(const json_t *stats, bool loaded)
{
	const json_t *cache = json_object_get(stats, "cache"), *start = json_object_get(cache, "start_time");

	head("blkcache_up", "gauge", "1 if a daemon serves the cache and answered.");
	series(stats, "blkcache_up", NULL, NULL, NULL);
	printf("%d\n", loaded);
	head("blkcache_info", "gauge", "Always 1; the version of the program that printed this.");
	series(stats, "blkcache_info", NULL, "version", BLKCACHE_VERSION);
	printf("1\n");
	if (json_is_integer(start))
		cache_gauge(stats, "cache", "start_time", "blkcache_start_time_seconds",
			    "When the daemon was started, in seconds since 1970.");
	if (*jtext(cache, "why")) {
		head("blkcache_problem", "gauge", "Always 1; what is wrong.");
		series(stats, "blkcache_problem", NULL, "reason", jtext(cache, "why"));
		printf("1\n");
	}
}

static void print_sizes(const json_t *stats)
{
	cache_gauge(stats, "cache", "size_bytes", "blkcache_size_bytes", "Size of the cache's data file.");
	cache_gauge(stats, "cache", "line_size", "blkcache_line_size_bytes", "Size of a cache line.");
	cache_gauge(stats, "cache", "lines", "blkcache_lines", "Lines the cache has room for.");
	cache_gauge(stats, "cache", "ram_bytes", "blkcache_ram_bytes", "Memory for block data.");
	cache_gauge(stats, "cache", "metadata_bytes", "blkcache_metadata_bytes", "Memory for metadata.");
	cache_gauge(stats, "cache", "dirty_bytes", "blkcache_dirty_bytes", "Data not yet on the backing devices.");
	cache_gauge(stats, "usage", "occupied_lines", "blkcache_occupied_lines", "Lines in use.");
	cache_gauge(stats, "usage", "free_lines", "blkcache_free_lines", "Lines not in use.");
	cache_gauge(stats, "usage", "clean_lines", "blkcache_clean_lines", "Lines equal to the backing device.");
	cache_gauge(stats, "usage", "dirty_lines", "blkcache_dirty_lines", "Lines newer than the backing device.");
	volume_gauge(stats, "size_bytes", "blkcache_volume_size_bytes", "Size of the volume.");
	volume_gauge(stats, "dirty_bytes", "blkcache_volume_dirty_bytes", "Data not yet on the backing device.");
	volume_group(stats, "usage", "kind", "blkcache_volume_lines", "gauge", "Cache lines of the volume.");
}

void prometheus_print(const json_t *stats, bool loaded)
{
	print_states(stats);
	print_daemon(stats, loaded);
	if (!json_object_get(stats, "usage"))
		return; /* nothing more is known */
	print_sizes(stats);
	if (!loaded)
		return; /* nobody counts */
	volume_group(stats, "requests", "kind", "blkcache_requests_total", "counter",
		     "Requests by how they were served.");
	volume_group(stats, "bytes", "kind", "blkcache_bytes_total", "counter", "Bytes moved, by place and direction.");
	volume_group(stats, "errors", "kind", "blkcache_errors_total", "counter",
		     "Failed I/O and checksums that did not fit.");
	latency_gauges(stats);
	latency_histograms(stats);
}
