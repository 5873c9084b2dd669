// conv.cuh for float16; called by ops.cpp.
#include "conv.cuh"
#include "launchers.h"

namespace rdk::cuda {
const char* launch_conv_fp16(const ConvParams& p, ConvTile tile, int blocks, void* stream) {
  return launch_conv<FP16>(p, tile, blocks, stream);
}
}  // namespace rdk::cuda
