/* SPDX-License-Identifier: BSD-3-Clause */
/* args.h - the "key=value,key=value" lists of device specs. */
#ifndef BDEV_ARGS_H
#define BDEV_ARGS_H

#include <stdint.h>

#include "blkcache/error.h"

/* A cursor over a list. Set `rest` to a writable, NUL-terminated copy of it: it is cut up in place. */
struct args {
	char *rest;
	char *key, *value; /* the current pair, "" for a missing value */
};

/* 1: the next pair is in key and value; 0: the end; -EINVAL: an empty piece or one without a key. */
int args_next(struct args *a, const char *module, struct bc_error *err);

/* For the modules whose only argument is their size: parses "size=SIZE". */
int args_only_size(const char *args, const char *module, uint64_t *size, struct bc_error *err);

#endif
