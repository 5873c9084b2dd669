// The functions that start kernels, one per kernel and half type; defined in the .cu files, called by ops.cpp,
// ops_residual.cpp, ops_rollout.cpp and the tests.
#pragma once

#include "plan.h"
#include "rollout_plan.h"

namespace rdk::cuda {

// Each returns nullptr, or a sentence of CUDA's own.
const char* launch_conv_bf16(const ConvParams& p, ConvTile tile, int blocks, void* stream);
const char* launch_conv_fp16(const ConvParams& p, ConvTile tile, int blocks, void* stream);
const char* launch_resident_bf16(const ResidentParams& p, ResidentTile tile, int blocks, void* stream);
const char* launch_resident_fp16(const ResidentParams& p, ResidentTile tile, int blocks, void* stream);
const char* launch_residual_bf16(const ResidualParams& p, ResidualTile tile, int blocks, void* stream);
const char* launch_residual_fp16(const ResidualParams& p, ResidualTile tile, int blocks, void* stream);
const char* launch_rollout_bf16(const RolloutParams& p, RolloutTile tile, int blocks, void* stream);
const char* launch_rollout_fp16(const RolloutParams& p, RolloutTile tile, int blocks, void* stream);
const char* launch_weight_gradient_bf16(const WeightGradientParams& p, void* stream);
const char* launch_weight_gradient_fp16(const WeightGradientParams& p, void* stream);

}  // namespace rdk::cuda
