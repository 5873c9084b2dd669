// The backward over a run of iterations, one group of images after another; called by bindings_runs.cpp and
// tests/check_runs.cpp.
#pragma once
#include <cstdint>
#include <vector>

#include "convolve.h"

namespace rdk {

struct BackwardRun {
  const Kernels* kernels;
  Plan plan;
  int iterations;
  // the first iteration of the run is that of the call: its input is no ReLU's output
  bool from_start;
  bool wants_input;
  std::vector<bool> wants_weight, wants_bias;  // per stage
  std::vector<const float*> filters;           // transposed, iteration-major
  std::vector<MapView> inputs;                 // of each stage of each iteration, iteration-major
  // added to the gradient of the state that enters each iteration; null data for none
  std::vector<MapView> state_grads;
  MapView grad;        // of the last sum, before its ReLU
  MapView grad_input;  // before the ReLU of the iteration ahead of the run; null data where nobody wants it
  MapView inject_sum;  // added to; null data for none
  float* weight_sums;  // per copy: all stages, one after another, at the points; added to
  int64_t copy_floats;
  double* bias_sums;  // (copy, stage, padded channel); added to
};

// What is asked of a stage's reversal: the gradient of its input, its mask, and whether the input itself is read.
struct Reversal {
  bool input, masked, reads_input;
};
Reversal reversal_of(const BackwardRun& run, int iteration, int s);

// Sums of a stage's parameters in one worker's copy.
float* weight_sums_of(const BackwardRun& run, int copy, int s);
double* bias_sums_of(const BackwardRun& run, int copy, int s);

// The backward of one image walked down in bands; see backward_bands.cpp.
void backward_in_bands(const BackwardRun& run, const Group& group, float* buffers, int copy);

void run_backward(const BackwardRun& run, int64_t first_image, int64_t last_image, Workforce& workforce);

}  // namespace rdk
