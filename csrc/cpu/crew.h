// Who works on one group of images: one worker alone, or all of them together with a barrier after each step.
// Included by convolve.h, and so by all that shares work out.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace rdk {

enum Phase { kTransformIn, kProduct, kTransformOut, kWeightProduct, kMove, kPhases };

// What one worker owns: two buffers of transformed data, and the time it spent by phase.
struct Space {
  float* a;
  float* b;
  int64_t ticks[kPhases];
};

// Runs body(context, 0 … tasks-1), each once, in any order and on any threads; set by the bindings.
using Parallel = void (*)(int tasks, void (*body)(void* context, int task), void* context);

template <class F>
void run_parallel(Parallel parallel, int tasks, F f) {
  parallel(tasks, [](void* context, int task) { (*static_cast<F*>(context))(task); }, &f);
}

struct Crew {
  Space* spaces;
  int size;
  Parallel parallel;

  // f(index, space) for every index; the shares are fixed by the number of workers
  template <class F>
  void each(int64_t count, F f) const {
    if (size == 1) {
      for (int64_t i = 0; i < count; ++i) f(i, spaces[0]);
      return;
    }
    run_parallel(parallel, size, [&](int worker) {
      for (int64_t i = worker; i < count; i += size) f(i, spaces[worker]);
    });
  }
};

inline int64_t ticks_now() {
#if defined(__x86_64__)
  return static_cast<int64_t>(__builtin_ia32_rdtsc());
#else
  return 0;
#endif
}

// Adds the time from its construction on to one phase of a worker.
class Stopwatch {
 public:
  Stopwatch(Space& space, Phase phase) : space_(space), phase_(phase), start_(ticks_now()) {}
  ~Stopwatch() { next(phase_); }
  void next(Phase phase) {
    const int64_t now = ticks_now();
    space_.ticks[phase_] += now - start_;
    start_ = now;
    phase_ = phase;
  }

 private:
  Space& space_;
  Phase phase_;
  int64_t start_;
};

}  // namespace rdk
