// wgrad.cuh for bfloat16; called by ops.cpp.
#include "wgrad.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_wgrad_bf16(const WgradParams& p, void* stream) { return launch_wgrad<BF16>(p, stream); }
}  // namespace rdk::cuda
