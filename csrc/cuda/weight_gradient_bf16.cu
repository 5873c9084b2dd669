// weight_gradient.cuh for bfloat16; called by ops.cpp.
#include "weight_gradient.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_weight_gradient_bf16(const WeightGradientParams& p, void* stream) {
  return launch_weight_gradient<BF16>(p, stream);
}
}  // namespace rdk::cuda
