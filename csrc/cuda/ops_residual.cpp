// The operators of residual.cuh: blocks of several convolutions whose maps stay in shared memory; called by
// rdk/backends/cuda_kernels.py.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "checks.h"

namespace rdk::cuda {
namespace {

ResidualPlan plan_of(int64_t images, int64_t channels, int64_t height, int64_t width, at::IntArrayRef dilations,
                     int64_t multiprocessors) {
  int64_t common = 0, largest = 0;
  for (const int64_t dilation : dilations) {
    TORCH_CHECK(dilation >= 1 && dilation < kMaxPositions, "rdk: cuda_residual: expected dilations of 1 to ",
                kMaxPositions - 1, ", got ", dilations, ".");
    common = std::gcd(common, dilation);
    largest = std::max(largest, dilation);
  }
  return residual_plan(static_cast<int>(images), static_cast<int>(channels), static_cast<int>(height),
                       static_cast<int>(width), static_cast<int>(common), static_cast<int>(largest),
                       static_cast<int>(multiprocessors));
}

// What is refused, "" where nothing is; output channels and positions of a tile; grids that a block takes in turn.
std::tuple<std::string, int64_t, int64_t, int64_t> residual_plan_op(int64_t images, int64_t channels, int64_t height,
                                                                    int64_t width, at::IntArrayRef dilations,
                                                                    int64_t multiprocessors) {
  TORCH_CHECK(!dilations.empty(), "rdk: cuda_residual_plan: expected a dilation for every stage, got none.");
  const ResidualPlan plan = plan_of(images, channels, height, width, dilations, multiprocessors);
  if (plan.refusal != nullptr) return {plan.refusal, 0, 0, 0};
  return {"", plan.tile.rows(), plan.tile.positions(), ceil_div(plan.items, static_cast<int>(multiprocessors))};
}

void residual_op(const Tensor& input, at::TensorList weights, at::TensorList biases, const MaybeTensor& inject,
                 at::IntArrayRef dilations, const c10::List<bool>& relu, const c10::List<bool>& skip,
                 int64_t stage_count, at::IntArrayRef keep, int64_t tape_first, int64_t multiprocessors,
                 std::optional<Tensor> kept, std::optional<Tensor> tapes, std::optional<Tensor> output) {
  const char* op = "cuda_residual";
  check_map(input, input, op, "input");
  if (input.numel() == 0) return;
  const size_t stages = weights.size();
  TORCH_CHECK(stages >= 1 && stages <= kResidualMaxStages && dilations.size() == stages && relu.size() == stages &&
                  skip.size() == stages && (biases.empty() || biases.size() == stages) && !skip.get(0),
              "rdk: cuda_residual: expected 1 to ", kResidualMaxStages,
              " stages with a weight, a dilation, relu and skip "
              "each, no skip at the first, and a bias each or none; got ",
              stages, " weights, ", dilations.size(), " dilations, ", relu.size(), " relu, ", skip.size(), " skip and ",
              biases.size(), " biases.");
  const int64_t count = static_cast<int64_t>(stages), iterations = (stage_count + count - 1) / count;
  TORCH_CHECK(stage_count >= 1 && iterations <= kMaxLaunchIterations && iterations * count - stage_count <= 1,
              "rdk: cuda_residual: expected all stages of 1 to ", kMaxLaunchIterations, " iterations of ", count,
              " stages, or one stage less, got ", stage_count, ".");
  const int images = static_cast<int>(input.size(0)), channels = static_cast<int>(input.size(1));
  const ResidualPlan plan = plan_of(images, channels, input.size(2), input.size(3), dilations, multiprocessors);
  TORCH_CHECK(plan.refusal == nullptr, "rdk: cuda_residual: ", plan.refusal, "; the input is ", input.sizes(), ".");
  const OnDevice device(input);
  ResidualParams p = residual_params(plan, images, channels);
  p.input = input.const_data_ptr();
  p.inject = map_pointer(inject, input, op, "inject");
  for (size_t stage = 0; stage < stages; ++stage) {
    check_weights(weights[stage], input, plan.tile.rows(), op);
    p.stage[stage].weights = weights[stage].const_data_ptr();
    if (!biases.empty()) p.stage[stage].bias = channel_pointer(biases[stage], input, op, "bias");
    p.stage[stage].dilation = static_cast<int>(dilations[stage]) / plan.grids.split;
    p.stage[stage].relu = relu.get(stage);
    p.stage[stage].skip = skip.get(stage);
  }
  set_kept(p.keep, keep, stage_count / count, op, "iterations");
  p.kept = maps_pointer(kept, static_cast<int64_t>(keep.size()), input, op, "kept");
  if (p.kept != nullptr) p.kept_stride = kept->stride(0);
  // the tape of an iteration: the results of all its stages but the last
  TORCH_CHECK(tape_first >= 0 && tape_first <= iterations, "rdk: cuda_residual: expected tape_first of 0 to ",
              iterations, ", got ", tape_first, ".");
  p.tapes = maps_pointer(tapes, (iterations - tape_first) * (count - 1), input, op, "tape");
  if (p.tapes != nullptr) p.tape_stride = tapes->stride(0);
  p.tape_first = static_cast<int>(tape_first);
  if (output) {
    check_map(*output, input, op, "output");
    p.output = output->mutable_data_ptr();
  }
  p.stages = static_cast<int>(stages);
  p.stage_count = static_cast<int>(stage_count);
  const auto run = input.scalar_type() == at::kBFloat16 ? launch_residual_bf16 : launch_residual_fp16;
  check_launch(run(p, plan.tile, plan.blocks, device.stream()), op);
}

}  // namespace
}  // namespace rdk::cuda

TORCH_LIBRARY_FRAGMENT(RDK_NAMESPACE, m) {
  m.def(
      "cuda_residual_plan(int images, int channels, int height, int width, int[] dilations, int multiprocessors) -> "
      "(str, int, int, int)",
      &rdk::cuda::residual_plan_op);
  m.def(
      "cuda_residual(Tensor input, Tensor[] weights, Tensor[] biases, Tensor? inject, int[] dilations, bool[] relu, "
      "bool[] skip, int stage_count, int[] keep, int tape_first, int multiprocessors, Tensor(a!)? kept, Tensor(b!)? "
      "tapes, Tensor(c!)? output) -> ()");
  m.impl("cuda_residual", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(rdk::cuda::residual_op));
}
