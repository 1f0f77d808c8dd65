/* SPDX-License-Identifier: BSD-3-Clause */
/* label.h - what the file module needs of label.c beside the public functions. Any thread. */
#ifndef BDEV_LABEL_H
#define BDEV_LABEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The label of a kernel block device, or of the file that fd has open. */
void label_of_block(dev_t rdev, char *label, size_t len);
void label_of_file(int fd, char *label, size_t len);

/* Does the file system keep inode numbers over a mount? */
bool label_inodes_last(int fd);

/* Does it keep modification times? A volume of a blkcache mount has the time of its mount at first. */
bool label_times_last(int fd);

/* The modification time of the file behind a loop device that shows all of it, in ns; 0 if it is none. */
int64_t label_loop_mtime(dev_t rdev);

#endif
