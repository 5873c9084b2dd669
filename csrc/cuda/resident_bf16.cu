// resident.cuh for bfloat16; called by ops.cpp.
#include "resident.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_resident_bf16(const ResidentParams& p, ResidentTile tile, int blocks, void* stream) {
  return launch_resident<BF16>(p, tile, blocks, stream);
}
}  // namespace rdk::cuda
