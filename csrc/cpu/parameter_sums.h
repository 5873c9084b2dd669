// What a group adds to the gradients of a stage's weight and bias. Included by backward.cpp and backward_bands.cpp.
#pragma once
#include "convolve.h"

namespace rdk {

// sums[point] += the products of a stage's input with the gradient of its sum, all workers on every chunk of tiles.
void add_weight_sums(const Group& group, const StagePlan& stage, const float* input, const float* grad, float* sums);

// sums[channel] += the gradient over all pixels.
void add_bias_sums(const Group& group, float* grad, double* sums);

}  // namespace rdk
