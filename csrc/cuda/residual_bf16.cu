// residual.cuh for bfloat16; called by ops_residual.cpp.
#include "residual.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_residual_bf16(const ResidualParams& p, ResidualTile tile, int blocks, void* stream) {
  return launch_residual<BF16>(p, tile, blocks, stream);
}
}  // namespace rdk::cuda
