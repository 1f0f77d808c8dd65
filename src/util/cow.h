/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cow.h - file systems that copy on write. There, overwriting what is allocated takes new space, so that a disk that is
 * full stops writes to files that were preallocated.
 */
#ifndef UTIL_COW_H
#define UTIL_COW_H

/* A file that was just made and is empty: from now on it is overwritten in place, where the file system can be told so
 * (btrfs). 0: it is, or always was; -EOPNOTSUPP: it copies on write and cannot be told; another -errno. */
int cow_switch_off(int fd);

/* The file system's name if the file is one that is copied on write; NULL: it is overwritten in place. */
const char *cow_name(int fd);

#endif
