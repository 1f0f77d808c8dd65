/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * label.c - who a kernel block device is (P10). Names such as /dev/sdb go to whoever is found first at a boot; what the
 * kernel and the udev database say of a device stays with it.
 *
 * Keys, the strongest first:
 *
 *   wwid, wwn, serial       of the disk (sysfs; the udev database in `udev-wwn`, `udev-serial`)
 *   dm, md                  UUID of a device-mapper or RAID device
 *   loop                    inode of the file, offset, size limit
 *   nbd                     what the client calls the export
 *   partuuid, part          of a partition: its UUID, its number and first sector
 *   ptuuid, fsuuid, path    hints for people: what is on it may be changed by our own writes
 *   written                 boot, disk sequence number, sectors written and discarded
 *   clock=local             its modification time is by this machine's clock
 *
 * A key counts only if it is known both times. udev may not have seen a device yet, so its values have keys of their
 * own and are not compared with the kernel's. Of the disk, and then of the partition on it, the first key decides that
 * is known both times: weaker ones are composed by programs that may change (udev's serial numbers have).
 *
 * Everything is read from files of the kernel's and of udev's, which answer without asking the device.
 */
#include "bdev/label.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "blkcache/bdev.h"

#define VALUE_MAX 400
#define FS_FUSE 0x65735546u

static const struct key {
	const char *name;
	const char *said; /* to people; NULL: not */
	enum kind { HINT, OF_DISK, OF_PARTITION } kind;
} keys[] = {
	{ "wwid", "WWID", OF_DISK },
	{ "wwn", "WWN", OF_DISK },
	{ "udev-wwn", NULL, OF_DISK },
	{ "serial", "serial number", OF_DISK },
	{ "udev-serial", "serial number", OF_DISK },
	{ "dm", "device-mapper UUID", OF_DISK },
	{ "md", "RAID UUID", OF_DISK },
	{ "loop", "loop over inode", OF_DISK },
	{ "nbd", "NBD export", OF_DISK },
	{ "partuuid", "partition UUID", OF_PARTITION },
	{ "part", "partition", OF_PARTITION },
	{ "ptuuid", "partition table UUID", HINT },
	{ "fsuuid", "file system UUID", HINT },
	{ "path", "known as", HINT },
};
#define NKEYS (sizeof(keys) / sizeof(keys[0]))

/* ---- lines ---- */

void bdev_label_get(const char *label, const char *key, char *value, size_t len)
{
	size_t n = strlen(key);

	value[0] = 0;
	for (const char *p = label; *p; p += strcspn(p, "\n"), p += *p == '\n') {
		if (!strncmp(p, key, n) && p[n] == '=') {
			snprintf(value, len, "%.*s", (int)strcspn(p + n + 1, "\n"), p + n + 1);
			return;
		}
	}
}

/* Adds a line, unless the value is empty or there is no room for all of it. Blanks at the ends go, bytes that do not
 * belong in a message become '_'. */
static void add(char *label, size_t len, const char *key, const char *value)
{
	size_t used = strlen(label), n;

	value += strspn(value, " \t\n");
	n = strcspn(value, "\n");
	while (n && (value[n - 1] == ' ' || value[n - 1] == '\t'))
		n--;
	if (!n || used + strlen(key) + n + 3 > len)
		return;
	used += (size_t)snprintf(label + used, len - used, "%s=", key);
	for (size_t i = 0; i < n; i++)
		label[used++] = (unsigned char)value[i] < 32 || (unsigned char)value[i] > 126 ? '_' : value[i];
	label[used++] = '\n';
	label[used] = 0;
}

enum bdev_sameness bdev_label_compare(const char *then, const char *now)
{
	enum bdev_sameness r = BDEV_UNKNOWN;
	enum kind decided = HINT;
	char a[VALUE_MAX], b[VALUE_MAX];

	for (size_t i = 0; i < NKEYS; i++) {
		if (keys[i].kind == HINT || keys[i].kind == decided)
			continue;
		bdev_label_get(then, keys[i].name, a, sizeof(a));
		bdev_label_get(now, keys[i].name, b, sizeof(b));
		if (!a[0] || !b[0])
			continue;
		if (strcmp(a, b))
			return BDEV_OTHER;
		r = BDEV_SAME;
		decided = keys[i].kind;
	}
	return r;
}

void bdev_label_describe(const char *label, char *text, size_t len)
{
	char v[VALUE_MAX];
	size_t n = 0;

	text[0] = 0;
	for (size_t i = 0; i < NKEYS; i++) {
		bdev_label_get(label, keys[i].name, v, sizeof(v));
		/* whole pieces only */
		if (!v[0] || !keys[i].said || n + strlen(keys[i].said) + strlen(v) + 4 > len)
			continue;
		n += (size_t)snprintf(text + n, len - n, "%s%s %s", n ? ", " : "", keys[i].said, v);
	}
	if (!text[0])
		snprintf(text, len, "a device without serial number or UUID");
}

/* ---- what the kernel says ---- */

/* The first line of a file; "" if it cannot be had. */
static void read_text(const char *dir, const char *name, char *value)
{
	char path[PATH_MAX];
	FILE *f;

	value[0] = 0;
	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return;
	f = fopen(path, "re");
	if (f && !fgets(value, VALUE_MAX, f))
		value[0] = 0;
	if (f)
		fclose(f);
	value[strcspn(value, "\n")] = 0;
}

static void add_text(char *label, size_t len, const char *key, const char *dir, const char *name)
{
	char value[VALUE_MAX];

	read_text(dir, name, value);
	add(label, len, key, value);
}

/* The value of a line "PREFIXvalue" of a file: the udev database's "E:ID_SERIAL=...", a uevent's "PARTUUID=...". */
static void add_line(char *label, size_t len, const char *key, const char *path, const char *prefix)
{
	FILE *f = fopen(path, "re");
	char line[2 * VALUE_MAX];

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, prefix, strlen(prefix)))
			continue;
		add(label, len, key, line + strlen(prefix));
		break;
	}
	if (f)
		fclose(f);
}

static void add_udev(dev_t rdev, bool partition, char *label, size_t len)
{
	char db[64];

	snprintf(db, sizeof(db), "/run/udev/data/b%u:%u", major(rdev), minor(rdev));
	add_line(label, len, "udev-wwn", db, "E:ID_WWN_WITH_EXTENSION=");
	add_line(label, len, "udev-serial", db, "E:ID_SERIAL=");
	if (partition)
		add_line(label, len, "partuuid", db, "E:ID_PART_ENTRY_UUID=");
	else
		add_line(label, len, "ptuuid", db, "E:ID_PART_TABLE_UUID=");
	add_line(label, len, "fsuuid", db, "E:ID_FS_UUID=");
}

/* A loop device's file. False: there is none, or it has no name any more, or that leads elsewhere. */
static bool loop_file(const char *sys, struct stat *st, char *path)
{
	read_text(sys, "loop/backing_file", path);
	return path[0] == '/' && !stat(path, st) && S_ISREG(st->st_mode);
}

static bool clock_is_local(const struct statfs *fs);

static void add_loop(const char *sys, char *label, size_t len)
{
	char file[VALUE_MAX], offset[VALUE_MAX], limit[VALUE_MAX], text[3 * VALUE_MAX];
	struct statfs fs;
	struct stat st;
	int fd;

	if (!loop_file(sys, &st, file))
		return;
	read_text(sys, "loop/offset", offset);
	read_text(sys, "loop/sizelimit", limit);
	fd = open(file, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return;
	if (label_inodes_last(fd)) {
		snprintf(text, sizeof(text), "%llu:%.20s:%.20s", (unsigned long long)st.st_ino, offset, limit);
		add(label, len, "loop", text);
	}
	if (!fstatfs(fd, &fs) && clock_is_local(&fs))
		add(label, len, "clock", "local");
	close(fd);
	add(label, len, "path", file);
}

int64_t label_loop_mtime(dev_t rdev)
{
	char sys[64], file[VALUE_MAX], offset[VALUE_MAX], limit[VALUE_MAX];
	struct stat st;

	snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(rdev), minor(rdev));
	if (!loop_file(sys, &st, file))
		return 0;
	read_text(sys, "loop/offset", offset);
	read_text(sys, "loop/sizelimit", limit);
	if (strcmp(offset, "0") || strcmp(limit, "0")) /* others may use the rest of the file */
		return 0;
	return st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
}

/* How much was written to it since it came up. Not for a partition, which can also be written by way of its disk, and
 * not where the kernel was told not to count. */
static void add_written(const char *sys, char *label, size_t len)
{
	char boot[VALUE_MAX], seq[VALUE_MAX], counts[VALUE_MAX], on[VALUE_MAX], text[2 * VALUE_MAX];
	unsigned long long wrote, dropped;

	read_text("/proc/sys/kernel/random", "boot_id", boot);
	read_text(sys, "diskseq", seq);
	read_text(sys, "stat", counts);
	read_text(sys, "queue/iostats", on);
	if (!boot[0] || !seq[0] || strcmp(on, "1") ||
	    sscanf(counts, "%*u %*u %*u %*u %*u %*u %llu %*u %*u %*u %*u %*u %*u %llu", &wrote, &dropped) != 2)
		return;
	snprintf(text, sizeof(text), "%.40s:%.20s:%llu:%llu", boot, seq, wrote, dropped);
	add(label, len, "written", text);
}

int bdev_label_unwritten(const char *then, const char *now)
{
	char a[VALUE_MAX], b[VALUE_MAX];
	size_t head;

	bdev_label_get(then, "written", a, sizeof(a));
	bdev_label_get(now, "written", b, sizeof(b));
	if (!a[0] || !b[0])
		return 0;
	head = strcspn(a, ":") + 1;
	if (head > strlen(a))
		return 0;
	head += strcspn(a + head, ":") + 1;
	if (strncmp(a, b, head)) /* another boot, or it was taken away and came back */
		return 0;
	if (strcmp(a, b))
		return -1;
	return strcmp(a + head, "0:0") ? 1 : 0; /* some drivers count nothing */
}

/* A path that stays with the device: by what it is, not by where or when it was found. */
static void add_path(dev_t rdev, char *label, size_t len)
{
	static const char *const dirs[] = { "/dev/disk/by-id", "/dev/disk/by-partuuid" };
	char path[PATH_MAX];
	struct dirent *d;
	struct stat st;
	bool found = false;

	for (size_t i = 0; i < 2 && !found; i++) {
		DIR *dir = opendir(dirs[i]);

		while (dir && !found && (d = readdir(dir))) {
			snprintf(path, sizeof(path), "%s/%s", dirs[i], d->d_name);
			found = !stat(path, &st) && S_ISBLK(st.st_mode) && st.st_rdev == rdev;
		}
		if (dir)
			closedir(dir);
	}
	if (found)
		add(label, len, "path", path);
}

void label_of_block(dev_t rdev, char *label, size_t len)
{
	char sys[64], disk[80], path[160], number[VALUE_MAX], start[VALUE_MAX], part[2 * VALUE_MAX];
	bool partition;

	label[0] = 0;
	snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(rdev), minor(rdev));
	read_text(sys, "partition", number);
	partition = number[0] != 0;
	snprintf(disk, sizeof(disk), "%s%s", sys, partition ? "/.." : "");
	add_text(label, len, "wwid", disk, "wwid"); /* NVMe */
	add_text(label, len, "wwid", disk, "device/wwid"); /* SCSI, SATA */
	add_text(label, len, "serial", disk, "serial"); /* virtio */
	add_text(label, len, "serial", disk, "device/serial"); /* NVMe, MMC */
	add_text(label, len, "dm", disk, "dm/uuid");
	add_text(label, len, "md", disk, "md/uuid");
	add_text(label, len, "nbd", disk, "backend");
	if (partition) {
		snprintf(path, sizeof(path), "%s/uevent", sys);
		add_line(label, len, "partuuid", path, "PARTUUID=");
		read_text(sys, "start", start);
		snprintf(part, sizeof(part), "%.20s from sector %.20s", number, start);
		add(label, len, "part", part);
	}
	add_udev(rdev, partition, label, len);
	add_loop(disk, label, len);
	if (!partition)
		add_written(sys, label, len);
	add_path(rdev, label, len);
}

void bdev_label_of_path(const char *path, char label[BDEV_LABEL_MAX])
{
	struct stat st;

	label[0] = 0;
	if (!stat(path, &st) && S_ISBLK(st.st_mode))
		label_of_block(st.st_rdev, label, BDEV_LABEL_MAX);
}

/* A loop device's file may be one of the same number in another file system: then the path must be the same as well. */
static bool is_same(const char *label, const char *other)
{
	char a[VALUE_MAX], b[VALUE_MAX];

	if (bdev_label_compare(label, other) != BDEV_SAME)
		return false;
	bdev_label_get(label, "loop", a, sizeof(a));
	if (!a[0])
		return true;
	bdev_label_get(label, "path", a, sizeof(a));
	bdev_label_get(other, "path", b, sizeof(b));
	return !strcmp(a, b);
}

bool bdev_label_find(const char *label, uint64_t size, char *path, size_t len)
{
	DIR *dir = opendir("/sys/class/block");
	char sys[300], other[BDEV_LABEL_MAX], text[VALUE_MAX];
	struct dirent *d;
	unsigned n = 0;

	while (dir && (d = readdir(dir))) {
		unsigned major_nr, minor_nr;
		char dev[300];
		struct stat st;

		if (d->d_name[0] == '.')
			continue;
		snprintf(sys, sizeof(sys), "/sys/class/block/%.255s", d->d_name);
		read_text(sys, "size", text);
		if (strtoull(text, NULL, 10) != size / 512)
			continue;
		read_text(sys, "dev", text);
		if (sscanf(text, "%u:%u", &major_nr, &minor_nr) != 2)
			continue;
		label_of_block(makedev(major_nr, minor_nr), other, sizeof(other));
		if (!is_same(label, other))
			continue;
		snprintf(dev, sizeof(dev), "/dev/%.255s", d->d_name);
		for (char *p = dev; *p; p++) /* cciss!c0d0 is /dev/cciss/c0d0 */
			if (*p == '!')
				*p = '/';
		if (stat(dev, &st) || !S_ISBLK(st.st_mode) || st.st_rdev != makedev(major_nr, minor_nr))
			continue;
		n++;
		snprintf(path, len, "%s", dev);
	}
	if (dir)
		closedir(dir);
	return n == 1;
}

/* ---- files ---- */

/* Numbers of <linux/magic.h>, which has not all of them. */
bool label_inodes_last(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return true;
	switch ((uint32_t)fs.f_type) {
	case FS_FUSE: /* sshfs, rclone, ... number what they meet */
	case 0xff534d42: /* CIFS */
	case 0xfe534d42: /* SMB2 */
	case 0x517b: /* SMB */
	case 0x01021997: /* 9p */
	case 0x786f4256: /* VirtualBox */
	case 0x4d44: /* FAT */
	case 0x2011bab0: /* exFAT */
		return false;
	default:
		return true;
	}
}

bool label_times_last(int fd)
{
	char line[1024], dev[32];
	struct statfs fs;
	struct stat st;
	bool ours = false;
	FILE *f;

	if (fstatfs(fd, &fs) || (uint32_t)fs.f_type != FS_FUSE || fstat(fd, &st))
		return true;
	snprintf(dev, sizeof(dev), " %u:%u ", major(st.st_dev), minor(st.st_dev));
	f = fopen("/proc/self/mountinfo", "re");
	while (f && !ours && fgets(line, sizeof(line), f))
		ours = strstr(line, dev) && strstr(line, " - fuse.blkcache ");
	if (f)
		fclose(f);
	return !ours;
}

static bool clock_is_local(const struct statfs *fs)
{
	switch ((uint32_t)fs->f_type) {
	case 0xef53: /* ext2, 3, 4 */
	case 0x58465342: /* XFS */
	case 0x9123683e: /* btrfs */
	case 0xf2f52010: /* F2FS */
	case 0x2fc12fc1: /* ZFS */
	case 0xca451a4e: /* bcachefs */
	case 0x01021994: /* tmpfs */
	case 0x794c7630: /* overlay */
		return true;
	default:
		return false;
	}
}

void label_of_file(int fd, char *label, size_t len)
{
	struct statfs fs;

	label[0] = 0;
	if (!fstatfs(fd, &fs) && clock_is_local(&fs))
		add(label, len, "clock", "local");
}
