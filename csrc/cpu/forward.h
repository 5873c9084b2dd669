// All iterations of a run, one group of images after another; called by bindings_runs.cpp and tests/check_runs.cpp.
#pragma once
#include <cstdint>
#include <vector>

#include "convolve.h"

namespace rdk {

// What one stage of one iteration applies; norm pointers are null without norm.
struct StageParameters {
  const float* filter;
  const float* bias;
  const float* mean;
  const float* scale;
  const float* shift;
};

struct ForwardRun {
  const Kernels* kernels;
  Plan plan;
  int iterations;      // of this run
  int stages_of_last;  // stages that the last iteration runs: all, or fewer where only its tape is wanted
  std::vector<StageParameters> parameters;  // iteration-major
  MapView state, inject;
  std::vector<MapView> states;  // after each iteration; null data where not asked for
  std::vector<MapView> tapes;   // after each stage of each iteration; likewise
};

// What convolution `c` of a run does with its sums, but for what it adds.
Epilogue epilogue_of(const ForwardRun& run, int c);

// The forward of one image walked down in bands; see forward_bands.cpp.
void forward_in_bands(const ForwardRun& run, const Group& group, float* buffers);

void run_forward(const ForwardRun& run, int64_t first_image, int64_t last_image, Workforce& workforce);

}  // namespace rdk
