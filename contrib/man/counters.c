/* SPDX-License-Identifier: BSD-3-Clause */
/* counters.c - prints the manual page's section COUNTERS, from counters.h. Built and run by `make man`. */
#include <stdint.h>
#include <stdio.h>

#include "blkcache/counters.h"

#define ITEM(name, help) printf(".TP\n.B %s\n%s\n", #name, help);

static void group(const char *title, const char *what)
{
	printf(".SS %s\n%s\n", title, what);
}

int main(void)
{
	puts(".SH COUNTERS\n"
	     "All counters of a volume start at zero with each load, and only grow.\n"
	     "The names are the keys of\n"
	     ".BR \"stats \\-\\-format json\" .\n"
	     "For Prometheus they are values of the label\n"
	     ".B kind\n"
	     "or\n"
	     ".BR op .");
	group("requests (blkcache_requests_total)", "Requests, by how they were served.");
	REQUEST_COUNTERS(ITEM)
	group("bytes (blkcache_bytes_total)", "Bytes moved, by place and direction.");
	BYTE_COUNTERS(ITEM)
	group("errors (blkcache_errors_total)", "Failed I/O, and checksums that did not fit.");
	ERROR_COUNTERS(ITEM)
	group("latency_us (blkcache_request_duration_seconds)",
	      "Histograms of times, for Prometheus with buckets, sum and count. JSON has the keys\n"
	      ".BR count ,\n.BR p50 ,\n.BR p99 ,\n.BR max \nand\n.BR sum ,\nin microseconds.");
	LATENCY_HISTOGRAMS(ITEM)
	return 0;
}
