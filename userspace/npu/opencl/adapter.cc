// SPDX-License-Identifier: MIT
// Makes TFLite's GPU delegate an external one: load_delegate("libopencl_delegate.so", {...}).
// The two functions are what tensorflow/lite/delegates/external/external_delegate.cc looks for.
// Before the delegate, it counts OpenCL devices: without one TFLite would say no more than that it failed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tensorflow/lite/delegates/gpu/cl/opencl_wrapper.h"
#include "tensorflow/lite/delegates/gpu/delegate.h"

namespace {

// Says on stderr which devices there are, in lines that userspace/npu/validate/judge/delegation.py reads.
int CountDevices() {
  // OpenCL's own header declares functions of the same names.
  namespace cl = tflite::gpu::cl;
  if (!cl::LoadOpenCL().ok()) {
    std::fprintf(stderr, "npu-bsp opencl: libOpenCL.so cannot be loaded\n");
    return -1;
  }
  cl_uint platform_count = 0;
  if (cl::clGetPlatformIDs(0, nullptr, &platform_count) != CL_SUCCESS) platform_count = 0;
  std::vector<cl_platform_id> platforms(platform_count);
  if (platform_count) cl::clGetPlatformIDs(platform_count, platforms.data(), nullptr);
  int found = 0;
  for (cl_platform_id platform : platforms) {
    char platform_name[256] = "";
    cl::clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof(platform_name), platform_name, nullptr);
    // The kind that TFLite itself asks for (cl_device.cc).
    cl_uint device_count = 0;
    if (cl::clGetDeviceIDs(platform, CL_DEVICE_TYPE_GPU, 0, nullptr, &device_count) != CL_SUCCESS)
      continue;
    std::vector<cl_device_id> devices(device_count);
    if (device_count)
      cl::clGetDeviceIDs(platform, CL_DEVICE_TYPE_GPU, device_count, devices.data(), nullptr);
    for (cl_device_id device : devices) {
      char name[256] = "", version[256] = "";
      cl::clGetDeviceInfo(device, CL_DEVICE_NAME, sizeof(name), name, nullptr);
      cl::clGetDeviceInfo(device, CL_DRIVER_VERSION, sizeof(version), version, nullptr);
      std::fprintf(stderr, "npu-bsp opencl: device %s | %s | %s\n", platform_name, name, version);
      ++found;
    }
  }
  std::fprintf(stderr, "npu-bsp opencl: %u platforms, %d devices\n", platform_count, found);
  return found;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count,
    void (*report_error)(const char*)) {
  TfLiteGpuDelegateOptionsV2 options = TfLiteGpuDelegateOptionsV2Default();
  options.experimental_flags |= TFLITE_GPU_EXPERIMENTAL_FLAGS_CL_ONLY;
  // As label_image's --use_gpu does it: quantised models are allowed, and so is half precision.
  options.experimental_flags |= TFLITE_GPU_EXPERIMENTAL_FLAGS_ENABLE_QUANT;
  options.is_precision_loss_allowed = 1;
  options.inference_preference = TFLITE_GPU_INFERENCE_PREFERENCE_SUSTAINED_SPEED;
  for (size_t i = 0; i < count; ++i) {
    if (!std::strcmp(keys[i], "precision_loss")) {
      options.is_precision_loss_allowed = std::atoi(values[i]);
    } else if (!std::strcmp(keys[i], "max_partitions")) {
      options.max_delegated_partitions = std::atoi(values[i]);
    } else {
      std::fprintf(stderr, "npu-bsp opencl: unknown option %s; known: precision_loss, "
                   "max_partitions\n", keys[i]);
      if (report_error) report_error("unknown option");
      return nullptr;
    }
  }
  if (CountDevices() <= 0) {
    if (report_error) report_error("no OpenCL device");
    return nullptr;
  }
  return TfLiteGpuDelegateV2Create(&options);
}

extern "C" __attribute__((visibility("default"))) void tflite_plugin_destroy_delegate(
    TfLiteDelegate* delegate) {
  if (delegate) TfLiteGpuDelegateV2Delete(delegate);
}
