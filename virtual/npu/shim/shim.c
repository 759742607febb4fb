/* SPDX-License-Identifier: MIT
 *
 * A fake DRM device node for one process, by LD_PRELOAD; etnaviv.c and rocket.c are the drivers behind it.
 *
 * open() of the node gives a descriptor of a sealed memfd that holds all buffer objects. The driver
 * answers with a buffer's offset in that file, so mmap(), dup(), fstat() and close() need no
 * interposition: only open*() and ioctl() do. The same memfd goes to the emulator over a Unix socket;
 * a submit is a message, and the emulator works on the buffers in place.
 *
 * Interface: Linux 6.12 include/uapi/drm/drm.h; structures are written out here, so that building needs
 * nothing but a C library.
 *
 * Environment: NPU_SHIM_SOCKET (path, required), NPU_SHIM_DRIVER (etnaviv, or rocket),
 * NPU_SHIM_TIMEOUT_S (seconds for one submit, 120), NPU_SHIM_MEMORY_MIB (1024), NPU_SHIM_POISON (byte
 * that fills new buffers; the kernel's is 0).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "shim.h"

#define PAGE 4096ull

static const char magic[8] = {'N', 'P', 'U', 'S', 'H', 'I', 'M', '1'};

/* ---- the DRM interface: numbers and structures of drm.h ---- */

enum { NR_VERSION = 0x00, NR_GEM_CLOSE = 0x09, NR_GET_CAP = 0x0c };

struct drm_version {
	int major, minor, patch;
	size_t name_len; char *name;
	size_t date_len; char *date;
	size_t desc_len; char *desc;
};
struct drm_close { uint32_t handle, pad; };
struct drm_cap { uint64_t capability, value; };

/* ---- the messages to the emulator: see server.py ---- */

struct hello { char magic[8]; uint64_t memory_size; };
struct request { uint32_t buffers, stream_size; };
struct answer { uint32_t status, text_size; };

/* ---- state ---- */

static struct buffer table[MAX_BUFFERS];
static uint32_t next_handle = 1;
static uint64_t memory_size, memory_used = PAGE;
static int memory_fd = -1, server = -1, poison;
static struct sockaddr_un found; /* of the emulator that was set up last */
static struct stat memory_stat;
struct welcome identity;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const struct door *door(void)
{
	const char *driver = getenv("NPU_SHIM_DRIVER");
	return driver && !strcmp(driver, rocket_door.driver) ? &rocket_door : &etnaviv_door;
}

static long setting(const char *name, long fallback)
{
	const char *text = getenv(name);
	return text && *text ? strtol(text, NULL, 0) : fallback;
}

static int complain(const char *what, int error)
{
	fprintf(stderr, "npu-shim: %s: %s\n", what, strerror(error));
	return -error;
}

/* Send or receive all of it; the socket's time-outs bound each wait. Returns 0 or -errno. */
static int transfer(int sending, void *data, size_t size)
{
	char *place = data;
	while (size) {
		ssize_t done = sending ? send(server, place, size, MSG_NOSIGNAL) : recv(server, place, size, 0);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK ? -ETIMEDOUT : -errno;
		if (!done)
			return -ECONNRESET;
		place += done;
		size -= (size_t)done;
	}
	return 0;
}

static int send_hello(void)
{
	struct hello hello = {.memory_size = memory_size};
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {.iov_base = &hello, .iov_len = sizeof hello};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	memcpy(hello.magic, magic, sizeof magic);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &memory_fd, sizeof(int));
	return sendmsg(server, &message, MSG_NOSIGNAL) == (ssize_t)sizeof hello ? 0 : -EIO;
}

/* Make the memory and find the emulator, once for each socket. Returns 0 or -errno. */
static int set_up(void)
{
	const char *path = getenv("NPU_SHIM_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval timeout = {.tv_sec = setting("NPU_SHIM_TIMEOUT_S", 120)};

	if (!path || strlen(path) >= sizeof address.sun_path)
		return complain("NPU_SHIM_SOCKET must be a path of at most 107 bytes", EINVAL);
	memcpy(address.sun_path, path, strlen(path));
	if (memory_fd >= 0 && strcmp(path, found.sun_path)) {
		/* Another emulator than before, as in a fork of a process that had one: memory of its own. */
		close(memory_fd);
		if (server >= 0)
			close(server);
		memory_fd = server = -1;
		memset(table, 0, sizeof table);
		next_handle = 1;
		memory_used = PAGE;
	}
	if (server >= 0)
		return 0;
	found = address;
	if (memory_fd < 0) {
		memory_size = (uint64_t)setting("NPU_SHIM_MEMORY_MIB", 1024) << 20;
		poison = (int)setting("NPU_SHIM_POISON", 0) & 255;
		memory_fd = memfd_create("npu-shim", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (memory_fd < 0 || ftruncate(memory_fd, (off_t)memory_size) ||
		    fcntl(memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) ||
		    fstat(memory_fd, &memory_stat))
			return complain("memory", errno);
	}
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server < 0)
		return complain("socket", errno);
	setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
	setsockopt(server, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
	if (connect(server, (struct sockaddr *)&address, sizeof address) || send_hello() ||
	    transfer(0, &identity, sizeof identity) || memcmp(identity.magic, magic, sizeof magic)) {
		int error = errno ? errno : EPROTO;
		close(server);
		server = -1;
		return complain("the emulator does not answer", error);
	}
	return 0;
}

static int is_ours(int fd)
{
	struct stat stat;
	return memory_fd >= 0 && !fstat(fd, &stat) && stat.st_ino == memory_stat.st_ino &&
	       stat.st_dev == memory_stat.st_dev;
}

/* ---- buffers ---- */

/* Buffers lie a page apart. A freed buffer's room is used again by one of the same size. */
int buffer_new(uint64_t wanted, uint32_t *given)
{
	uint64_t size = (wanted + PAGE - 1) & ~(PAGE - 1);
	uint32_t handle;

	if (!wanted || wanted > memory_size)
		return -EINVAL;
	for (handle = 1; handle < next_handle; handle++)
		if (!table[handle].size && table[handle].room == size)
			break;
	if (handle == next_handle) {
		if (next_handle == MAX_BUFFERS || memory_used + size + PAGE > memory_size)
			return -ENOMEM;
		next_handle++;
		table[handle].offset = memory_used;
		table[handle].room = size;
		memory_used += size + PAGE;
	} else if (fallocate(memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			     (off_t)table[handle].offset, (off_t)size)) {
		return -errno;
	}
	table[handle].size = size;
	if (poison) {
		void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd,
				   (off_t)table[handle].offset);
		if (place == MAP_FAILED)
			return -errno;
		memset(place, poison, size);
		munmap(place, size);
	}
	*given = handle;
	return 0;
}

int known(uint32_t handle)
{
	return handle && handle < next_handle && table[handle].size;
}

const struct buffer *buffer_of(uint32_t handle)
{
	return &table[handle];
}

uint32_t buffers_end(void)
{
	return next_handle;
}

/* ---- submits ---- */

static int receive_answer(void)
{
	struct answer answer;
	char text[1024];
	int error = transfer(0, &answer, sizeof answer);

	if (error)
		return error;
	while (answer.text_size) {
		size_t part = answer.text_size < sizeof text - 1 ? answer.text_size : sizeof text - 1;
		error = transfer(0, text, part);
		if (error)
			return error;
		text[part] = 0;
		answer.text_size -= (uint32_t)part;
		fputs(text, stderr);
		if (!answer.text_size)
			fputc('\n', stderr);
	}
	return answer.status ? -EIO : 0;
}

int run_submit(const struct request_buffer *buffers, uint32_t count, const void *stream, uint32_t size)
{
	struct request request = {.buffers = count, .stream_size = size};
	int error;

	if (server < 0)
		return -EIO;
	error = transfer(1, &request, sizeof request);
	if (!error)
		error = transfer(1, (void *)(uintptr_t)buffers, count * sizeof *buffers);
	if (!error)
		error = transfer(1, (void *)(uintptr_t)stream, size);
	if (!error)
		error = receive_answer();
	if (error && error != -EIO) {
		complain("the emulator is gone", -error);
		close(server);
		server = -1;
		error = -EIO;
	}
	return error;
}

/* ---- the ioctls ---- */

static void give(char *target, size_t *size, const char *text)
{
	if (target && *size)
		memcpy(target, text, *size < strlen(text) ? *size : strlen(text));
	*size = strlen(text);
}

static int request_of(unsigned int number, void *data)
{
	switch (number) {
	case NR_VERSION: {
		struct drm_version *version = data;
		version->major = door()->major; version->minor = door()->minor; version->patch = 0;
		give(version->name, &version->name_len, door()->driver);
		give(version->date, &version->date_len, "20151214"); /* libdrm: not empty */
		give(version->desc, &version->desc_len, "virtual NPU");
		return 0;
	}
	case NR_GET_CAP: ((struct drm_cap *)data)->value = 0; return 0;
	case NR_GEM_CLOSE: {
		struct drm_close *close = data;
		if (!known(close->handle))
			return -EINVAL;
		table[close->handle].size = 0;
		return 0;
	}
	default: {
		int result = door()->request(number, data);
		if (result == -ENOTTY)
			fprintf(stderr, "npu-shim: DRM ioctl %#x is not emulated\n", number);
		return result == -ENOTTY ? -EINVAL : result;
	}
	}
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, ...);
	va_list arguments;
	void *data;

	va_start(arguments, request);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (((request >> 8) & 0xff) == 'd' && is_ours(fd)) {
		pthread_mutex_lock(&lock);
		int result = request_of(request & 0xff, data);
		pthread_mutex_unlock(&lock);
		if (result >= 0)
			return result;
		errno = -result;
		return -1;
	}
	if (!next)
		next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	return next(fd, request, data);
}

/* ---- open ---- */

static int open_node(void)
{
	int error;

	pthread_mutex_lock(&lock);
	error = set_up();
	pthread_mutex_unlock(&lock);
	if (!error)
		return fcntl(memory_fd, F_DUPFD_CLOEXEC, 3);
	errno = -error;
	return -1;
}

static int ordinary_open(int folder, const char *path, int flags, mode_t mode)
{
	return (int)syscall(SYS_openat, folder, path, flags | O_LARGEFILE, mode);
}

#define NEEDS_MODE(flags) ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE)
#define WITH_MODE(mode, flags)                                                                      \
	mode_t mode = 0;                                                                            \
	if (NEEDS_MODE(flags)) {                                                                    \
		va_list arguments;                                                                  \
		va_start(arguments, flags);                                                         \
		mode = va_arg(arguments, mode_t);                                                   \
		va_end(arguments);                                                                  \
	}

int open(const char *path, int flags, ...)
{
	WITH_MODE(mode, flags)
	return strcmp(path, door()->node) ? ordinary_open(AT_FDCWD, path, flags, mode) : open_node();
}

int open64(const char *path, int flags, ...)
{
	WITH_MODE(mode, flags)
	return strcmp(path, door()->node) ? ordinary_open(AT_FDCWD, path, flags, mode) : open_node();
}

int openat(int folder, const char *path, int flags, ...)
{
	WITH_MODE(mode, flags)
	return strcmp(path, door()->node) ? ordinary_open(folder, path, flags, mode) : open_node();
}

int openat64(int folder, const char *path, int flags, ...)
{
	WITH_MODE(mode, flags)
	return strcmp(path, door()->node) ? ordinary_open(folder, path, flags, mode) : open_node();
}

int __open_2(const char *path, int flags)
{
	return open(path, flags);
}

int __open64_2(const char *path, int flags)
{
	return open64(path, flags);
}
