// weight_gradient.cuh for float16; called by ops.cpp.
#include "weight_gradient.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_weight_gradient_fp16(const WeightGradientParams& p, void* stream) {
  return launch_weight_gradient<FP16>(p, stream);
}
}  // namespace rdk::cuda
