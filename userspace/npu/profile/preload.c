/* SPDX-License-Identifier: MIT
 *
 * Stamps each submit to an NPU's kernel driver and its end, for the process that preloads it (LD_PRELOAD).
 *
 * It passes every ioctl() on; from npu_profile_start() to npu_profile_stop() it keeps an event for each job
 * that is submitted. When a job ended is known from what the drivers have for that:
 *
 *   etnaviv: the submit's fence. A thread waits for one after another, so that the NPU has its next job before
 *            the last one has ended, as without a profile.
 *   rocket:  a submit of several jobs is made into as many submits, and each is waited for (PREP_BO of what it
 *            writes, which has the CPU's caches invalidated as well).
 *   ethosu:  a submit is a whole partition; BO_WAIT of its regions.
 *
 * Interfaces: Linux include/uapi/drm/{drm,etnaviv_drm,rocket_accel,ethosu_accel}.h; their structures are written
 * out here, so that building needs nothing but a C library. What Mesa writes into etnaviv's command stream:
 * src/gallium/drivers/etnaviv/etnaviv_ml_nn.c and _tp.c.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define WAIT_S 300

typedef int ioctl_function(int, unsigned long, ...);

/* ---- what profiling.py reads ---- */

struct event {
	uint64_t begin_ns, end_ns; /* CLOCK_MONOTONIC; end 0: it was not seen to end */
	uint32_t nn, tp;           /* jobs in it; rocket's and ethosu's count as nn */
	uint32_t group;            /* rocket: what it writes; else 0 */
	uint32_t fence, pipe;
	int32_t fd;
};

static struct event *events;
static uint32_t capacity;
static atomic_uint used, dropped; /* events; submits for which there was no room */
static atomic_int running;

/* ---- the interfaces ---- */

#define IOC(direction, number, type) \
	((unsigned long)(direction) << 30 | sizeof(type) << 16 | 'd' << 8 | (number))
enum { WRITE = 1, BOTH = 3 };

struct drm_version {
	int major, minor, patch;
	size_t name_len; char *name;
	size_t date_len; char *date;
	size_t desc_len; char *desc;
};
struct etnaviv_submit {
	uint32_t fence, pipe, exec_state, nr_bos, nr_relocs, stream_size;
	uint64_t bos, relocs, stream;
	uint32_t flags; int32_t fence_fd;
	uint64_t pmrs; uint32_t nr_pmrs, pad;
};
struct etnaviv_wait { uint32_t pipe, fence, flags, pad; int64_t seconds, nanoseconds; };
struct rocket_job {
	uint64_t tasks, in_bo_handles, out_bo_handles;
	uint32_t task_count, task_struct_size, in_bo_handle_count, out_bo_handle_count;
};
struct rocket_submit { uint64_t jobs; uint32_t job_count, job_struct_size; uint64_t reserved; };
struct bo_wait { uint32_t handle, reserved; int64_t timeout_ns; }; /* rocket's PREP_BO, ethosu's BO_WAIT */
struct ethosu_job { uint32_t cmd_bo, sram_size, region_bo_handles[8]; };
struct ethosu_submit { uint64_t jobs; uint32_t job_count, pad; };

#define VERSION IOC(BOTH, 0x00, struct drm_version)
#define ETNAVIV_WAIT_FENCE IOC(WRITE, 0x47, struct etnaviv_wait)
#define ROCKET_PREP_BO IOC(WRITE, 0x42, struct bo_wait)
#define ETHOSU_BO_WAIT IOC(BOTH, 0x42, struct bo_wait)
enum { ETNAVIV_SUBMIT = 0x46, ROCKET_SUBMIT = 0x41, ETHOSU_SUBMIT = 0x45 }; /* newer ones may be longer */
enum { WAIT_NONBLOCK = 1 };

static ioctl_function *next(void)
{
	static ioctl_function *found;
	if (!found)
		found = (ioctl_function *)dlsym(RTLD_NEXT, "ioctl");
	return found;
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int is_driver(int fd, const char *name)
{
	char found[16] = {0}, rest[64];
	struct drm_version version = {
		.name_len = sizeof found - 1, .name = found,
		.date_len = sizeof rest, .date = rest, .desc_len = sizeof rest, .desc = rest,
	};
	return !next()(fd, VERSION, &version) && !strcmp(found, name);
}

static struct event *begin(int fd)
{
	uint32_t place = atomic_load(&used);
	if (place == capacity) {
		atomic_fetch_add(&dropped, 1);
		return NULL;
	}
	events[place] = (struct event){.fd = fd, .begin_ns = now()};
	return &events[place];
}

/* ---- etnaviv ---- */

static pthread_t waiter;
static sem_t submitted;

static int wait_fence(const struct event *event, uint32_t flags)
{
	struct etnaviv_wait wait = {.pipe = event->pipe, .fence = event->fence, .flags = flags};
	int result;

	wait.seconds = (int64_t)(now() / 1000000000u) + WAIT_S;
	do
		result = next()(event->fd, ETNAVIV_WAIT_FENCE, &wait);
	while (result && errno == EINTR);
	return result;
}

/* Takes the events in their order; sees the end of those that had not ended when they were submitted. */
static void *wait_for_all(void *unused)
{
	(void)unused;
	for (uint32_t place = 0;; place++) {
		while (sem_wait(&submitted))
			;
		if (place == atomic_load(&used))
			return NULL; /* npu_profile_stop() */
		if (!events[place].end_ns && !wait_fence(&events[place], 0))
			events[place].end_ns = now();
	}
}

/* Count the writes of the states that start a job: PS_NN_INST_ADDR, PS_TP_INST_ADDR (etnaviv's state.xml). */
static void count_jobs(struct event *event, const uint32_t *words, uint32_t count)
{
	for (uint32_t place = 0; place < count;) {
		uint32_t header = words[place], first = header & 0xffff, values = header >> 16 & 0x3ff;
		if (header >> 27 != 1) { /* not LOAD_STATE */
			place += 2;
			continue;
		}
		values = values ? values : 1024;
		for (uint32_t state = first; state < first + values; state++) {
			event->nn += state == 0x10a0 >> 2;
			event->tp += state == 0x10b8 >> 2;
		}
		place += (values + 2) & ~1u;
	}
}

static int etnaviv_submit(int fd, unsigned long request, struct etnaviv_submit *args)
{
	struct event *event = begin(fd);
	int result = next()(fd, request, args), error = errno;

	if (!event)
		return result;
	if (!result) {
		event->fence = args->fence;
		event->pipe = args->pipe;
		if (!wait_fence(event, WAIT_NONBLOCK))
			event->end_ns = now();
		count_jobs(event, (const uint32_t *)(uintptr_t)args->stream, args->stream_size / 4);
		atomic_fetch_add(&used, 1);
		sem_post(&submitted);
	}
	errno = error;
	return result;
}

/* ---- rocket ---- */

static int bo_wait(int fd, unsigned long request, uint32_t handle)
{
	struct bo_wait wait = {.handle = handle, .timeout_ns = (int64_t)now() + WAIT_S * 1000000000ll};
	return next()(fd, request, &wait);
}

static int rocket_submit(int fd, unsigned long request, struct rocket_submit *args)
{
	for (uint32_t i = 0; i < args->job_count; i++) {
		uint64_t place = args->jobs + (uint64_t)i * args->job_struct_size;
		const struct rocket_job *job = (const void *)(uintptr_t)place;
		const uint32_t *outs = (const void *)(uintptr_t)job->out_bo_handles;
		struct rocket_submit one = *args;
		struct event *event = begin(fd);
		int result;

		one.jobs = place;
		one.job_count = 1;
		result = next()(fd, request, &one);
		if (result)
			return result;
		if (!event)
			continue;
		event->nn = job->task_count;
		event->group = job->out_bo_handle_count ? outs[0] : 0;
		if (event->group && !bo_wait(fd, ROCKET_PREP_BO, event->group))
			event->end_ns = now();
		atomic_fetch_add(&used, 1);
		sem_post(&submitted);
	}
	return 0;
}

/* ---- ethosu ---- */

static int ethosu_submit(int fd, unsigned long request, struct ethosu_submit *args)
{
	struct event *event = begin(fd);
	int result = next()(fd, request, args), failed = 0;

	if (result || !event)
		return result;
	event->nn = args->job_count;
	for (uint32_t i = 0; i < args->job_count; i++) {
		const struct ethosu_job *job = (const struct ethosu_job *)(uintptr_t)args->jobs + i;
		for (int region = 0; region < 8; region++)
			if (job->region_bo_handles[region])
				failed |= bo_wait(fd, ETHOSU_BO_WAIT, job->region_bo_handles[region]);
	}
	if (!failed)
		event->end_ns = now();
	atomic_fetch_add(&used, 1);
	sem_post(&submitted);
	return 0;
}

/* ---- the process's own ioctl() ---- */

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *data;
	uint32_t number = request & 0xff;

	va_start(arguments, request);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (!atomic_load(&running) || (request >> 8 & 0xff) != 'd')
		return next()(fd, request, data);
	if (number == ETNAVIV_SUBMIT && is_driver(fd, "etnaviv"))
		return etnaviv_submit(fd, request, data);
	if (number == ROCKET_SUBMIT && is_driver(fd, "rocket"))
		return rocket_submit(fd, request, data);
	if (number == ETHOSU_SUBMIT && is_driver(fd, "ethosu"))
		return ethosu_submit(fd, request, data);
	return next()(fd, request, data);
}

/* ---- what profiling.py calls ---- */

/* Begin, with room for so many events; 0, or an errno. One thread submits at a time, as TFLite does. */
EXPORT int npu_profile_start(uint32_t most)
{
	int error;

	if (atomic_load(&running))
		return EBUSY;
	free(events);
	events = calloc(most ? most : 1, sizeof *events);
	capacity = events ? most : 0;
	atomic_store(&used, 0);
	atomic_store(&dropped, 0);
	if (!events)
		return ENOMEM;
	sem_init(&submitted, 0, 0);
	error = pthread_create(&waiter, NULL, wait_for_all, NULL);
	if (!error)
		atomic_store(&running, 1);
	return error;
}

/* End: wait for what was submitted, and return how many events there are. */
EXPORT uint32_t npu_profile_stop(void)
{
	if (atomic_exchange(&running, 0)) {
		sem_post(&submitted);
		pthread_join(waiter, NULL);
	}
	return atomic_load(&used);
}

EXPORT const struct event *npu_profile_events(void)
{
	return events;
}

EXPORT uint32_t npu_profile_dropped(void)
{
	return atomic_load(&dropped);
}
