// wgrad.cuh for float16; called by ops.cpp.
#include "wgrad.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_wgrad_fp16(const WgradParams& p, void* stream) { return launch_wgrad<FP16>(p, stream); }
}  // namespace rdk::cuda
