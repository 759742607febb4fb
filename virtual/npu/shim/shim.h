/* SPDX-License-Identifier: MIT
 *
 * What the shim's parts share: see shim.c.
 */
#ifndef NPU_SHIM_H
#define NPU_SHIM_H

#include <stdint.h>

#pragma GCC visibility push(hidden) /* none of it is for the process that loads the shim */

#define MAX_BUFFERS 65536u
#define MAX_STREAM (4u << 20)

/* A kernel driver as a process sees it: shim.c answers what all DRM drivers have, this the rest. */
struct door {
	const char *driver; /* DRM_IOCTL_VERSION's name */
	const char *node;   /* path that is opened */
	int major, minor;
	int (*request)(unsigned int number, void *data); /* an ioctl; returns 0 or -errno */
};
extern const struct door etnaviv_door, rocket_door;

/* ---- the messages to the emulator: see server.py ---- */

struct welcome { char magic[8]; uint32_t model, revision, product_id, customer_id, eco_id, reserved; };
struct request_buffer { uint64_t address, offset, size, flags; };
extern struct welcome identity;

/* ---- buffers: handles from 1 to buffers_end() - 1 ---- */

struct buffer { uint64_t offset, size, room; };

int buffer_new(uint64_t size, uint32_t *handle);
int known(uint32_t handle);
const struct buffer *buffer_of(uint32_t handle);
uint32_t buffers_end(void);

/* Have the emulator run a stream with these buffers; returns 0 or -errno. */
int run_submit(const struct request_buffer *buffers, uint32_t count, const void *stream, uint32_t size);

#pragma GCC visibility pop

#endif
