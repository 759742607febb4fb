/* SPDX-License-Identifier: MIT
 *
 * A kernel driver for the tests of preload.c: jobs take FAKE_JOB_MS each, one after another, behind the submit.
 * FAKE_DRIVER is its name. Interfaces: Linux include/uapi/drm/{drm,etnaviv_drm,rocket_accel,ethosu_accel}.h.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t ends_ns[64];
static uint32_t submits;

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int wait_for(uint64_t end_ns, int nonblock)
{
	while (now() < end_ns) {
		struct timespec left = {.tv_nsec = (long)(end_ns - now()) % 1000000000};
		if (nonblock) {
			errno = EBUSY;
			return -1;
		}
		nanosleep(&left, NULL);
	}
	return 0;
}

uint64_t fake_end_ns(uint32_t job)
{
	return ends_ns[job];
}

int ioctl(int fd, unsigned long request, ...)
{
	const char *driver = getenv("FAKE_DRIVER");
	va_list arguments;
	uint32_t *words;
	uint64_t last;

	(void)fd;
	va_start(arguments, request);
	words = va_arg(arguments, void *);
	va_end(arguments);
	last = submits ? ends_ns[submits - 1] : 0;
	switch (request & 0xff) {
	case 0x00: { /* VERSION: name_len is a size_t behind three ints, its buffer follows */
		char *name = *(char **)(words + 6);
		memcpy(name, driver, strlen(driver));
		return 0;
	}
	case 0x41: case 0x45: case 0x46: /* the submits of rocket, ethosu, etnaviv */
		if (*driver == 'r' && words[2] != 1) /* jobs have to come one by one */
			break;
		last = last > now() ? last : now();
		ends_ns[submits++] = last + strtoul(getenv("FAKE_JOB_MS"), NULL, 10) * 1000000u;
		if (*driver == 'e' && driver[2] == 'n')
			words[0] = submits; /* the fence */
		return 0;
	case 0x47: /* etnaviv's WAIT_FENCE: pipe, fence, flags */
		return wait_for(ends_ns[words[1] - 1], words[2] & 1);
	case 0x42: /* rocket's PREP_BO, ethosu's BO_WAIT */
		return wait_for(last, 0);
	}
	errno = EINVAL;
	return -1;
}
