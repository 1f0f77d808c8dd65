/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * counters.h - what is counted for each volume, declared once. From these lists come the engine's counters, struct
 * volume_stats, the JSON keys of `stats`, Prometheus' series and the manual page (`make man`): a counter is added here,
 * and counted where it happens, and that is all.
 *
 * A list calls X(name, help) for each of its counters. `name` is the JSON key and the Prometheus label, so it never
 * changes; `help` is a sentence for the manual. A list's counters have one unit and one kind: all of them only grow
 * while the cache is loaded, and start at zero with each load.
 */
#ifndef BLKCACHE_COUNTERS_H
#define BLKCACHE_COUNTERS_H

/* Requests. A request counts once, as a hit, partial miss, miss or pass-through, when it has been answered well. */
#define REQUEST_COUNTERS(X)                                                                                            \
	X(read_hits, "Reads of which every block was in the cache.")                                                   \
	X(read_partial_misses, "Reads of which some blocks were in the cache.")                                        \
	X(read_misses, "Reads of which no block was in the cache.")                                                    \
	X(write_hits, "Writes of which every block was in the cache before.")                                          \
	X(write_partial_misses, "Writes of which some blocks were in the cache before.")                               \
	X(write_misses, "Writes of which no block was in the cache before.")                                           \
	X(pass_through_reads, "Reads that the mode pt sent to the backing device.")                                    \
	X(pass_through_writes, "Writes that went past the cache: in mode pt, or after the cache was lost.")            \
	X(flushes, "Flushes: fsync, fdatasync, or a loop device's flush. Failed ones count too.")                      \
	X(discards, "Discards and requests to write zeroes.")

/* Bytes moved between clients, RAM, the cache's device and the backing device. */
#define BYTE_COUNTERS(X)                                                                                               \
	X(volume_read, "Bytes that clients read from the volume.")                                                     \
	X(volume_written, "Bytes that clients wrote to the volume.")                                                   \
	X(ram_read, "Bytes of reads that RAM answered, in whole blocks.")                                              \
	X(cache_read, "Bytes that reads took from the cache's device, in whole blocks.")                               \
	X(cache_written, "Bytes put into the cache, by writes, fills and defragmentation, in whole blocks.")           \
	X(backing_read, "Bytes read from the backing device.")                                                         \
	X(backing_written, "Bytes written to the backing device.")

/* Failed I/O, and data that failed its checksum. */
#define ERROR_COUNTERS(X)                                                                                              \
	X(cache_read, "Failed reads of the cache's device.")                                                           \
	X(cache_write, "Failed writes and flushes of the cache's device.")                                             \
	X(backing_read, "Failed reads of the backing device.")                                                         \
	X(backing_write, "Failed writes and flushes of the backing device.")                                           \
	X(checksum, "Blocks in the cache that failed their checksum.")

/* Times of requests, as histograms. */
#define LATENCY_HISTOGRAMS(X)                                                                                          \
	X(read_hit, "Time of reads of which every block was in the cache.")                                            \
	X(read_miss, "Time of all other reads.")                                                                       \
	X(write, "Time of writes.")                                                                                    \
	X(flush, "Time of flushes.")

/* X for structure members that hold a counter's value. */
#define COUNTER_VALUE(name, help) uint64_t name;

#endif
