// The device that a tensor lives on: guard, current stream, capability; included by checks.h. The stand-in has the
// CPU as its device.
#pragma once

#include <ATen/core/Tensor.h>

#if !defined(RDK_STANDIN)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace rdk::cuda {

#if defined(RDK_STANDIN)

struct OnDevice {
  explicit OnDevice(const at::Tensor&) {}
  void* stream() const { return nullptr; }
};
inline bool on_device(const at::Tensor& tensor) { return tensor.is_cpu(); }

#else

struct OnDevice {
  c10::cuda::CUDAGuard guard;
  explicit OnDevice(const at::Tensor& tensor) : guard(tensor.device()) {
    int major = 0, minor = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, tensor.get_device()));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, tensor.get_device()));
    TORCH_CHECK(major == 9 && minor == 0, "rdk: the cuda backend needs an sm_90 device; ", tensor.device(),
                " has compute capability ", major, ".", minor, ".");
  }
  void* stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
};
inline bool on_device(const at::Tensor& tensor) { return tensor.is_cuda(); }

#endif

}  // namespace rdk::cuda
