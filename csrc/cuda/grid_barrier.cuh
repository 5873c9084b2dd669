// A barrier of all blocks of a launch that run at the same time; used by rollout.cuh.
#pragma once

#include "primitives.cuh"

namespace rdk::cuda {

// Arrivals are counted in one word that is 0 at the launch and never reset: the barrier of turn i is passed when it has
// reached (i + 1) * blocks. What any thread of any block stored in global memory before is seen by all threads after.
struct GridBarrier {
  uint32_t* arrivals;
  uint32_t expected = 0;

  // Called by all `threads` of every block.
  RDK_DEVICE void wait(int threads) {
    barrier_sync(0, threads);
    if (thread_index() == 0) {
#if !defined(RDK_BREAK_ROLLOUT_RELEASE)
      fence_device();  // the stores of the whole block, known to this thread by the barrier before
#endif
      count_up(arrivals);
      expected += static_cast<uint32_t>(block_count());
#if !defined(RDK_BREAK_ROLLOUT_WAIT)
      wait_for_count(arrivals, expected);
#endif
#if !defined(RDK_BREAK_ROLLOUT_ACQUIRE)
      fence_device();
#endif
    }
    barrier_sync(0, threads);
  }
};

}  // namespace rdk::cuda
