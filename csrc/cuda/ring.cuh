// A ring of buffers in shared memory: where a producer or a consumer stands in it, how buffers are handed over and
// returned. Used by conv.cuh, residual.cuh and weight_gradient.cuh.
#pragma once

#include "primitives.cuh"

namespace rdk::cuda {

struct Turn {
  int buffer = 0;
  uint32_t parity = 0;  // of the buffer's barriers; a producer starts with 1: the ring is empty

  RDK_DEVICE void advance(int buffers) {
    if (++buffer == buffers) buffer = 0, parity ^= 1;
  }
  RDK_DEVICE int before(int buffers) const { return buffer == 0 ? buffers - 1 : buffer - 1; }
};

// A consumer's warp returns a buffer whose products are done.
RDK_DEVICE void release(uint32_t empty, int buffer) {
#if !defined(RDK_BREAK_CONV_RELEASE)
  if (thread_index() % 32 == 0) mbarrier_arrive(empty + 8 * buffer);
#endif
}

// A thread of a warpgroup that fills the ring by copy_async: a buffer's copies are under way while the next is begun.
struct Filling {
  uint32_t full, empty;  // the barriers of buffer 0
  int buffers;
  Turn turn{0, 1};
  int pending = -1;  // a buffer whose copies are under way

  // Before the copies of buffer turn.buffer: waits until the consumers have returned it.
  RDK_DEVICE void begin() {
    const uint32_t barrier = empty + 8 * turn.buffer;
    if (pending >= 0 && !mbarrier_test(barrier, turn.parity)) {  // no reason to keep the consumers waiting meanwhile
      copy_async_wait<0>();
      hand_over();
    }
#if !defined(RDK_BREAK_CONV_EMPTY)
    mbarrier_wait(barrier, turn.parity);
#endif
  }
  // After them: the buffer before is handed over, and the next has its turn.
  RDK_DEVICE void end() {
    copy_async_commit();
    if (pending >= 0) {
      copy_async_wait<1>();
      hand_over();
    }
    pending = turn.buffer;
    turn.advance(buffers);
  }
  // After all buffers.
  RDK_DEVICE void finish() {
    if (pending < 0) return;
    copy_async_wait<0>();
    hand_over();
  }

 private:
  // The thread's copies have landed (the caller waited) and are made visible to wgmma.
  RDK_DEVICE void hand_over() {
#if !defined(RDK_BREAK_CONV_FENCE) && !defined(RDK_BREAK_WEIGHT_GRADIENT_FENCE)
    fence_async_proxy();
#endif
    mbarrier_arrive(full + 8 * pending);
    pending = -1;
  }
};

}  // namespace rdk::cuda
