/* SPDX-License-Identifier: MIT
 *
 * A /dev/accel/accel0 that lets Mesa's rocket and ethosu drivers begin, for one process, by LD_PRELOAD.
 *
 * Which operations a driver takes is decided before anything is compiled, and written to the log. Nothing can be
 * run on it: what comes after the decisions may end the process.
 *
 * Interface: Linux 6.18 include/uapi/drm/ethosu_accel.h, rocket_accel.h and drm.h; numbers and structures are
 * written out here. Environment: ACCEL_STUB_DRIVER (name of the kernel driver), ACCEL_STUB_ID (of an Ethos-U).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NODE "/dev/accel/accel0"
#define FOLDER "/dev/accel/"
#define RENDER "/dev/dri/"
#define ROOM (64ull << 20)

enum { NR_VERSION = 0x00, NR_GEM_CLOSE = 0x09, NR_FIRST = 0x40, NR_SECOND = 0x41, NR_FOURTH = 0x43 };

struct drm_version {
	int major, minor, patch;
	size_t name_len; char *name;
	size_t date_len; char *date;
	size_t desc_len; char *desc;
};
struct dev_query { uint32_t type, size; uint64_t pointer; };
struct ethosu_bo { uint64_t size; uint32_t flags, handle; };
struct ethosu_offset { uint32_t handle, pad; uint64_t offset; };
struct rocket_bo { uint32_t size, handle; uint64_t dma_address, offset; };

static int node = -1;
static struct stat node_stat;
static uint32_t handles;
static uint64_t used, offsets[4096];

static uint64_t room(uint64_t size)
{
	uint64_t offset = used;
	used += (size + 4095) & ~4095ull;
	offsets[++handles & 4095] = offset;
	return offset;
}

static int open_node(void)
{
	if (node < 0) {
		node = memfd_create("accel-stub", MFD_CLOEXEC);
		if (node < 0 || ftruncate(node, (off_t)ROOM) || fstat(node, &node_stat))
			return -1;
	}
	return fcntl(node, F_DUPFD_CLOEXEC, 3);
}

static int is_ours(int fd)
{
	struct stat stat;
	return node >= 0 && !fstat(fd, &stat) && stat.st_ino == node_stat.st_ino &&
	       stat.st_dev == node_stat.st_dev;
}

static void give(char *target, size_t *size, const char *text)
{
	if (target && *size)
		memcpy(target, text, *size < strlen(text) ? *size : strlen(text));
	*size = strlen(text);
}

static int request_of(unsigned int number, void *data)
{
	const char *driver = getenv("ACCEL_STUB_DRIVER");
	int is_rocket = driver && !strcmp(driver, "rocket");

	if (number == NR_VERSION) {
		struct drm_version *version = data;
		version->major = 1; version->minor = 0; version->patch = 0;
		give(version->name, &version->name_len, driver ? driver : "");
		give(version->date, &version->date_len, "20250101");
		give(version->desc, &version->desc_len, "stub");
		return 0;
	}
	if (number == NR_FIRST && is_rocket) {
		struct rocket_bo *bo = data;
		bo->offset = room(bo->size);
		bo->handle = handles;
		bo->dma_address = bo->offset;
		return 0;
	}
	if (number == NR_FIRST) {
		struct dev_query *query = data;
		const char *id = getenv("ACCEL_STUB_ID");
		uint32_t info[4] = {id ? (uint32_t)strtoul(id, NULL, 0) : 0, 0x8, 384 << 10, 4};
		memcpy((void *)(uintptr_t)query->pointer, info, query->size < sizeof info ? query->size : sizeof info);
		return 0;
	}
	if (number == NR_SECOND && !is_rocket) {
		struct ethosu_bo *bo = data;
		room(bo->size);
		bo->handle = handles;
		return 0;
	}
	if (number == NR_FOURTH && !is_rocket) {
		struct ethosu_offset *args = data;
		args->offset = offsets[args->handle & 4095];
		return 0;
	}
	return 0; /* waits and closes */
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, ...);
	va_list arguments;
	void *data;

	va_start(arguments, request);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (((request >> 8) & 0xff) == 'd' && is_ours(fd))
		return request_of(request & 0xff, data);
	if (!next)
		next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	return next(fd, request, data);
}

static int opened(int folder, const char *path, int flags, mode_t mode)
{
	if (!strcmp(path, NODE))
		return open_node();
	if (!strncmp(path, FOLDER, strlen(FOLDER)) || !strncmp(path, RENDER, strlen(RENDER))) {
		errno = ENOENT;
		return -1;
	}
	return (int)syscall(SYS_openat, folder, path, flags | O_LARGEFILE, mode);
}

#define MODE(flags)                                                       \
	mode_t mode = 0;                                                  \
	if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {    \
		va_list arguments;                                        \
		va_start(arguments, flags);                               \
		mode = va_arg(arguments, mode_t);                         \
		va_end(arguments);                                        \
	}

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
