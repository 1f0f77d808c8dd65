/* SPDX-License-Identifier: BSD-3-Clause */
/* crc.h - crc32c at hardware speed (isa-l). */
#ifndef UTIL_CRC_H
#define UTIL_CRC_H

#include <isa-l.h>
#include <stddef.h>
#include <stdint.h>

/* isa-l takes no const and an int length. Lengths here are at most a few MiB. */
static inline uint32_t crc32c(const void *data, size_t len)
{
	return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)len, 0xffffffffu) ^ 0xffffffffu;
}

#endif
