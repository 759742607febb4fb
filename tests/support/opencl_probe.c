// SPDX-License-Identifier: MIT
// Lists what libOpenCL.so offers, and has the first device compute: y[i] = 3 x[i] + 0.5.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT 1000
#define ALL_DEVICES 0xffffffffu
#define PLATFORM_VERSION 0x0901
#define PLATFORM_NAME 0x0902
#define DEVICE_NAME 0x102b
#define DRIVER_VERSION 0x102d
#define BUILD_LOG 0x1183
#define READ_WRITE 1

static const char source[] =
    "kernel void scale(global const float *x, global float *y) {\n"
    "  size_t i = get_global_id(0);\n"
    "  y[i] = mad(x[i], 3.0f, 0.5f);\n"
    "}\n";
static void *library;

static void *entry(const char *name) {
  void *found = dlsym(library, name);
  if (!found) { printf("no %s\n", name); exit(1); }
  return found;
}

static void must(const char *what, int32_t code) {
  if (code) { printf("%s: error %d\n", what, code); exit(1); }
}

#define CALL(result, name, types) ((result (*) types)entry(name))

int main(void) {
  library = dlopen("libOpenCL.so", RTLD_NOW);
  if (!library) { puts(dlerror()); return 1; }
  void *platform = NULL, *device = NULL;
  uint32_t platforms = 0, devices = 0;
  CALL(int32_t, "clGetPlatformIDs", (uint32_t, void **, uint32_t *))(1, &platform, &platforms);
  printf("%u platforms\n", platforms);
  if (!platforms) return 0;
  char text[4096] = "";
  int32_t (*platform_info)(void *, uint32_t, size_t, void *, size_t *) = entry("clGetPlatformInfo");
  must("platform", platform_info(platform, PLATFORM_NAME, sizeof text, text, NULL));
  printf("platform %s\n", text);
  CALL(int32_t, "clGetDeviceIDs", (void *, uint64_t, uint32_t, void **, uint32_t *))
  (platform, ALL_DEVICES, 1, &device, &devices);
  printf("%u devices\n", devices);
  if (!devices) return 0;
  int32_t (*device_info)(void *, uint32_t, size_t, void *, size_t *) = entry("clGetDeviceInfo");
  must("device", device_info(device, DEVICE_NAME, sizeof text, text, NULL));
  printf("device %s\n", text);
  must("driver", device_info(device, DRIVER_VERSION, sizeof text, text, NULL));
  printf("driver %s\n", text);

  int32_t code = 0;
  void *context = CALL(void *, "clCreateContext", (void *, uint32_t, void **, void *, void *, int32_t *))
                  (NULL, 1, &device, NULL, NULL, &code);
  must("context", code);
  void *queue = CALL(void *, "clCreateCommandQueue", (void *, void *, uint64_t, int32_t *))
                (context, device, 0, &code);
  must("queue", code);
  const char *lines = source;
  void *program = CALL(void *, "clCreateProgramWithSource",
                       (void *, uint32_t, const char **, size_t *, int32_t *))
                  (context, 1, &lines, NULL, &code);
  must("program", code);
  code = CALL(int32_t, "clBuildProgram", (void *, uint32_t, void **, const char *, void *, void *))
         (program, 1, &device, "", NULL, NULL);
  if (code) {
    CALL(int32_t, "clGetProgramBuildInfo", (void *, void *, uint32_t, size_t, void *, size_t *))
    (program, device, BUILD_LOG, sizeof text, text, NULL);
    puts(text);
  }
  must("build", code);
  void *kernel = CALL(void *, "clCreateKernel", (void *, const char *, int32_t *))(program, "scale", &code);
  must("kernel", code);

  static float x[COUNT], y[COUNT];
  for (int i = 0; i < COUNT; i++) x[i] = (float)i;
  void *(*buffer)(void *, uint64_t, size_t, void *, int32_t *) = entry("clCreateBuffer");
  void *in = buffer(context, READ_WRITE, sizeof x, NULL, &code);
  must("buffer", code);
  void *out = buffer(context, READ_WRITE, sizeof y, NULL, &code);
  must("buffer", code);
  int32_t (*argument)(void *, uint32_t, size_t, const void *) = entry("clSetKernelArg");
  must("argument", argument(kernel, 0, sizeof in, &in));
  must("argument", argument(kernel, 1, sizeof out, &out));
  must("write", CALL(int32_t, "clEnqueueWriteBuffer",
                     (void *, void *, uint32_t, size_t, size_t, const void *, uint32_t, void *, void *))
                (queue, in, 1, 0, sizeof x, x, 0, NULL, NULL));
  size_t count = COUNT;
  must("run", CALL(int32_t, "clEnqueueNDRangeKernel",
                   (void *, void *, uint32_t, size_t *, size_t *, size_t *, uint32_t, void *, void *))
              (queue, kernel, 1, NULL, &count, NULL, 0, NULL, NULL));
  must("read", CALL(int32_t, "clEnqueueReadBuffer",
                    (void *, void *, uint32_t, size_t, size_t, void *, uint32_t, void *, void *))
               (queue, out, 1, 0, sizeof y, y, 0, NULL, NULL));
  int right = 0;
  for (int i = 0; i < COUNT; i++) right += y[i] == 3 * x[i] + 0.5f;
  printf("%d of %d right\n", right, COUNT);
  return right != COUNT;
}
