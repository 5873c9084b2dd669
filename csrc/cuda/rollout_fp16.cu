// rollout.cuh for float16; called by ops_rollout.cpp.
#include "rollout.cuh"

#include "launchers.h"

namespace rdk::cuda {
const char* launch_rollout_fp16(const RolloutParams& p, RolloutTile tile, int blocks, void* stream) {
  return launch_rollout<FP16>(p, tile, blocks, stream);
}
}  // namespace rdk::cuda
