// residual.cuh for float16; called by ops_residual.cpp.
#include "residual.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_residual_fp16(const ResidualParams& p, ResidualTile tile, int blocks, void* stream) {
  return launch_residual<FP16>(p, tile, blocks, stream);
}
}  // namespace rdk::cuda
