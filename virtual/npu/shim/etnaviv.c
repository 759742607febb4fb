/* SPDX-License-Identifier: MIT
 *
 * The door of etnaviv: /dev/dri/renderD128. Interface: Linux 6.12 include/uapi/drm/etnaviv_drm.h; its
 * structures are written out here, so that building needs nothing but a C library.
 */
#include <errno.h>
#include <stdlib.h>

#include "shim.h"

#define SOFTPIN_START 0x400000u
#define SUBMIT_SOFTPIN 0x0008u

enum {
	NR_GET_PARAM = 0x40, NR_GEM_NEW = 0x42, NR_GEM_INFO = 0x43, NR_GEM_CPU_PREP = 0x44,
	NR_GEM_CPU_FINI = 0x45, NR_GEM_SUBMIT = 0x46, NR_WAIT_FENCE = 0x47, NR_GEM_WAIT = 0x49,
	NR_PM_QUERY_DOM = 0x4a, NR_PM_QUERY_SIG = 0x4b,
};

enum {
	PARAM_MODEL = 0x01, PARAM_REVISION = 0x02, PARAM_SOFTPIN_START = 0x1b,
	PARAM_PRODUCT_ID = 0x1c, PARAM_CUSTOMER_ID = 0x1d, PARAM_ECO_ID = 0x1e,
};

struct get_param { uint32_t pipe, param; uint64_t value; };
struct gem_new { uint64_t size; uint32_t flags, handle; };
struct gem_info { uint32_t handle, pad; uint64_t offset; };
struct gem_handle { uint32_t handle; };
struct submit_bo { uint32_t flags, handle; uint64_t presumed; };
struct gem_submit {
	uint32_t fence, pipe, exec_state, nr_bos, nr_relocs, stream_size;
	uint64_t bos, relocs, stream;
	uint32_t flags; int32_t fence_fd;
	uint64_t pmrs; uint32_t nr_pmrs, pad;
};

static uint32_t fence_number;

static int gem_submit(struct gem_submit *args)
{
	const struct submit_bo *bos = (const void *)(uintptr_t)args->bos;
	struct request_buffer *buffers;
	int error;

	if (!(args->flags & SUBMIT_SOFTPIN) || args->nr_relocs || args->nr_pmrs || args->pipe)
		return -EINVAL;
	if (args->nr_bos > MAX_BUFFERS || args->stream_size > MAX_STREAM || args->stream_size % 4)
		return -EINVAL;
	buffers = calloc(args->nr_bos ? args->nr_bos : 1, sizeof *buffers);
	if (!buffers)
		return -ENOMEM;
	for (uint32_t i = 0; i < args->nr_bos; i++) {
		if (!known(bos[i].handle)) {
			free(buffers);
			return -EINVAL;
		}
		buffers[i] = (struct request_buffer){bos[i].presumed, buffer_of(bos[i].handle)->offset,
						     buffer_of(bos[i].handle)->size, bos[i].flags};
	}
	error = run_submit(buffers, args->nr_bos, (const void *)(uintptr_t)args->stream,
			   args->stream_size);
	free(buffers);
	args->fence = ++fence_number;
	return error;
}

static int get_param(struct get_param *args)
{
	if (args->pipe)
		return -ENXIO;
	switch (args->param) {
	case PARAM_MODEL: args->value = identity.model; return 0;
	case PARAM_REVISION: args->value = identity.revision; return 0;
	case PARAM_SOFTPIN_START: args->value = SOFTPIN_START; return 0;
	case PARAM_PRODUCT_ID: args->value = identity.product_id; return 0;
	case PARAM_CUSTOMER_ID: args->value = identity.customer_id; return 0;
	case PARAM_ECO_ID: args->value = identity.eco_id; return 0;
	default: args->value = 0; return 0; /* features: all come from Mesa's own database */
	}
}

static int request(unsigned int number, void *data)
{
	switch (number) {
	case NR_GET_PARAM: return get_param(data);
	case NR_GEM_NEW: {
		struct gem_new *args = data;
		return buffer_new(args->size, &args->handle);
	}
	case NR_GEM_INFO: {
		struct gem_info *info = data;
		if (!known(info->handle))
			return -ENOENT;
		info->offset = buffer_of(info->handle)->offset;
		return 0;
	}
	case NR_GEM_CPU_PREP: case NR_GEM_CPU_FINI: case NR_GEM_WAIT:
		return known(((struct gem_handle *)data)->handle) ? 0 : -ENOENT;
	case NR_GEM_SUBMIT: return gem_submit(data);
	case NR_WAIT_FENCE: return 0; /* a submit returns when it has run */
	case NR_PM_QUERY_DOM: case NR_PM_QUERY_SIG: return -ENXIO;
	default: return -ENOTTY;
	}
}

const struct door etnaviv_door = {"etnaviv", "/dev/dri/renderD128", 1, 4, request};
