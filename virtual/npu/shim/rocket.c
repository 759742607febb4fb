/* SPDX-License-Identifier: MIT
 *
 * The door of rocket: /dev/accel/accel0. Interface: Linux 7.3 include/uapi/drm/rocket_accel.h; its
 * structures are written out here, so that building needs nothing but a C library.
 *
 * All of a process's buffers are in the NPU's address space while they live, as rocket_gem.c maps them.
 * A submit's jobs become one stream of 32-bit words, in the order in which the kernel would begin them:
 * job_count, then for each job: task_count, in_count, out_count, each task's address and number of
 * commands, the addresses of the buffers that it reads, and address and size of those that it writes.
 */
#include <errno.h>
#include <stdlib.h>

#include "shim.h"

#define NPU_BASE 0x100000u /* added to a buffer's place in the memory: its address for the NPU */

enum { NR_CREATE_BO = 0x40, NR_SUBMIT = 0x41, NR_PREP_BO = 0x42, NR_FINI_BO = 0x43 };

struct create_bo { uint32_t size, handle; uint64_t dma_address, offset; };
struct bo_handle { uint32_t handle, reserved; };
struct task { uint32_t regcmd, regcmd_count; };
struct job {
	uint64_t tasks, in_bo_handles, out_bo_handles;
	uint32_t task_count, task_struct_size, in_bo_handle_count, out_bo_handle_count;
};
struct submit { uint64_t jobs; uint32_t job_count, job_struct_size; uint64_t reserved; };

struct words { uint32_t *data; uint32_t count; };

static int add(struct words *words, uint32_t value)
{
	if (words->count == MAX_STREAM / 4)
		return -E2BIG;
	words->data[words->count++] = value;
	return 0;
}

static uint32_t address_of(uint32_t handle)
{
	return (uint32_t)(NPU_BASE + buffer_of(handle)->offset);
}

static int add_handles(struct words *words, uint64_t place, uint32_t count, int with_sizes)
{
	const uint32_t *handles = (const void *)(uintptr_t)place;
	int error = 0;

	for (uint32_t i = 0; i < count && !error; i++) {
		error = known(handles[i]) ? add(words, address_of(handles[i])) : -ENOENT;
		if (!error && with_sizes)
			error = add(words, (uint32_t)buffer_of(handles[i])->size);
	}
	return error;
}

static int add_job(struct words *words, const struct job *job)
{
	const char *tasks = (const void *)(uintptr_t)job->tasks;
	int error = 0;

	if (job->task_struct_size < sizeof(struct task) || !job->task_count)
		return -EINVAL;
	if (add(words, job->task_count) || add(words, job->in_bo_handle_count) ||
	    add(words, job->out_bo_handle_count))
		return -E2BIG;
	for (uint32_t i = 0; i < job->task_count && !error; i++) {
		const struct task *task = (const void *)(tasks + (size_t)i * job->task_struct_size);
		error = task->regcmd_count ? add(words, task->regcmd) : -EINVAL;
		if (!error)
			error = add(words, task->regcmd_count);
	}
	if (!error)
		error = add_handles(words, job->in_bo_handles, job->in_bo_handle_count, 0);
	if (!error)
		error = add_handles(words, job->out_bo_handles, job->out_bo_handle_count, 1);
	return error;
}

static int run_jobs(const struct submit *args)
{
	const char *jobs = (const void *)(uintptr_t)args->jobs;
	struct words words = {malloc(MAX_STREAM), 0};
	struct request_buffer *buffers = calloc(buffers_end(), sizeof *buffers);
	uint32_t count = 0;
	int error = words.data && buffers ? add(&words, args->job_count) : -ENOMEM;

	for (uint32_t i = 0; i < args->job_count && !error; i++)
		error = add_job(&words, (const void *)(jobs + (size_t)i * args->job_struct_size));
	for (uint32_t handle = 1; handle < buffers_end() && !error; handle++)
		if (known(handle))
			buffers[count++] = (struct request_buffer){address_of(handle), buffer_of(handle)->offset,
								   buffer_of(handle)->size, 3};
	if (!error)
		error = run_submit(buffers, count, words.data, words.count * 4);
	free(buffers);
	free(words.data);
	return error;
}

static int request(unsigned int number, void *data)
{
	switch (number) {
	case NR_CREATE_BO: {
		struct create_bo *args = data;
		int error = buffer_new(args->size, &args->handle);
		if (!error) {
			args->offset = buffer_of(args->handle)->offset;
			args->dma_address = address_of(args->handle);
		}
		return error;
	}
	case NR_SUBMIT: {
		const struct submit *args = data;
		if (args->job_struct_size < sizeof(struct job) || args->reserved)
			return -EINVAL;
		return args->job_count ? run_jobs(args) : 0;
	}
	case NR_PREP_BO: case NR_FINI_BO: {
		const struct bo_handle *args = data;
		if (args->reserved)
			return -EINVAL;
		return known(args->handle) ? 0 : -ENOENT; /* a submit returns when it has run */
	}
	default: return -ENOTTY;
	}
}

const struct door rocket_door = {"rocket", "/dev/accel/accel0", 0, 0, request};
