// Where a producer or a consumer stands in a ring of stages in shared memory; used by conv.cuh and residual.cuh.
#pragma once

#include "primitives.cuh"

namespace rdk::cuda {

struct Turn {
  int stage = 0;
  uint32_t parity = 0;  // of the stage's barriers; a producer starts with 1: the ring is empty

  RDK_DEVICE void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
  RDK_DEVICE int before(int stages) const { return stage == 0 ? stages - 1 : stage - 1; }
};

}  // namespace rdk::cuda
