// conv.cuh for bfloat16; called by ops.cpp.
#include "conv.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_conv_bf16(const ConvParams& p, ConvTile tile, int blocks, void* stream) {
  return launch_conv<BF16>(p, tile, blocks, stream);
}
}  // namespace rdk::cuda
