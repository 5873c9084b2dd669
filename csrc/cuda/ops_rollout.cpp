// The operators of rollout.cuh: iterations of few images over all multiprocessors; called by
// rdk/backends/cuda_kernels.py.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks.h"

namespace rdk::cuda {
namespace {

// What is refused, "" where nothing is, and the output channels of a block.
std::tuple<std::string, int64_t> rollout_plan_op(int64_t images, int64_t channels, int64_t height, int64_t width,
                                                 int64_t dilation, int64_t stages, int64_t iterations,
                                                 int64_t multiprocessors) {
  if (iterations * stages < kRolloutMinStageCount) return {"fewer than 16 convolutions do not repay its beginning", 0};
  const Patches patches{static_cast<int>(height), static_cast<int>(width)};
  const RolloutPlan plan =
      rollout_plan(static_cast<int>(images), static_cast<int>(channels), patches, static_cast<int>(dilation),
                   static_cast<int>(stages), static_cast<int>(multiprocessors));
  return {plan.refusal == nullptr ? "" : plan.refusal, plan.tile.n};
}

void rollout_op(const Tensor& input, at::TensorList weights, at::TensorList biases, const MaybeTensor& inject,
                at::IntArrayRef dilations, const c10::List<bool>& relu, const c10::List<bool>& skip, int64_t iterations,
                at::IntArrayRef keep, int64_t multiprocessors, Tensor workspace, Tensor arrivals,
                std::optional<Tensor> kept, std::optional<Tensor> output) {
  const char* op = "cuda_rollout";
  check_map(input, input, op, "input");
  if (input.numel() == 0) return;
  const size_t stages = weights.size();
  TORCH_CHECK(
      stages >= 1 && stages <= kRolloutMaxStages && dilations.size() == stages && relu.size() == stages &&
          skip.size() == stages && (biases.empty() || biases.size() == stages) && !skip.get(0) &&
          std::all_of(dilations.begin(), dilations.end(),
                      [](int64_t dilation) { return dilation >= 1 && dilation < kMaxPositions; }),
      "rdk: cuda_rollout: expected 1 to ", kRolloutMaxStages,
      " stages with a weight, a dilation, relu and skip each, no skip at the first, and a bias each or none; got ",
      stages, " weights, dilations ", dilations, ", ", relu.size(), " relu, ", skip.size(), " skip and ", biases.size(),
      " biases.");
  TORCH_CHECK(iterations >= 1 && iterations <= kMaxLaunchIterations, "rdk: cuda_rollout: expected 1 to ",
              kMaxLaunchIterations, " iterations, got ", iterations, ".");
  const int images = static_cast<int>(input.size(0)), channels = static_cast<int>(input.size(1));
  const int largest = static_cast<int>(*std::max_element(dilations.begin(), dilations.end()));
  const Patches patches{static_cast<int>(input.size(2)), static_cast<int>(input.size(3))};
  const RolloutPlan plan =
      rollout_plan(images, channels, patches, largest, static_cast<int>(stages), static_cast<int>(multiprocessors));
  TORCH_CHECK(plan.refusal == nullptr, "rdk: cuda_rollout: ", plan.refusal, "; the input is ", input.sizes(), ".");
  const OnDevice device(input);
  RolloutParams p = rollout_params(plan, images, channels, patches, largest);
  p.input = input.const_data_ptr();
  p.inject = map_pointer(inject, input, op, "inject");
  for (size_t stage = 0; stage < stages; ++stage) {
    check_weights(weights[stage], input, plan.tile.n, op);
    p.stage[stage].weights = weights[stage].const_data_ptr();
    if (!biases.empty()) p.stage[stage].bias = channel_pointer(biases[stage], input, op, "bias");
    p.stage[stage].dilation = static_cast<int>(dilations[stage]);
    p.stage[stage].relu = relu.get(stage);
    p.stage[stage].skip = skip.get(stage);
  }
  set_kept(p.keep, keep, iterations, op, "iterations");
  p.kept = maps_pointer(kept, static_cast<int64_t>(keep.size()), input, op, "kept");
  if (p.kept != nullptr) p.kept_stride = kept->stride(0);
  TORCH_CHECK(
      output.has_value() == (keep.empty() || keep.back() != iterations - 1),
      "rdk: cuda_rollout: expected an output, or that the state after the last iteration is kept, and not both.");
  if (output) {
    check_map(*output, input, op, "output");
    p.output = output->mutable_data_ptr();
  }
  p.workspace = maps_pointer(workspace, 2, input, op, "workspace");
  TORCH_CHECK(workspace.stride(0) == p.map_elements,
              "rdk: cuda_rollout: expected the maps of the workspace one right behind the other.");
  TORCH_CHECK(arrivals.scalar_type() == at::kInt && arrivals.numel() == 1 && arrivals.device() == input.device(),
              "rdk: cuda_rollout: expected arrivals as one int32 value on ", input.device(), ", got ", arrivals.sizes(),
              ", ", arrivals.scalar_type(), " on ", arrivals.device(), ".");
  arrivals.zero_();  // on the stream of the launch, before it
  p.arrivals = static_cast<uint32_t*>(arrivals.mutable_data_ptr());
  p.stages = static_cast<int>(stages);
  p.stage_count = static_cast<int>(iterations * static_cast<int64_t>(stages));
  const auto run = input.scalar_type() == at::kBFloat16 ? launch_rollout_bf16 : launch_rollout_fp16;
  check_launch(run(p, plan.tile, plan.blocks, device.stream()), op);
}

}  // namespace
}  // namespace rdk::cuda

TORCH_LIBRARY_FRAGMENT(RDK_NAMESPACE, m) {
  m.def(
      "cuda_rollout_plan(int images, int channels, int height, int width, int dilation, int stages, int iterations, "
      "int multiprocessors) -> (str, int)",
      &rdk::cuda::rollout_plan_op);
  m.def(
      "cuda_rollout(Tensor input, Tensor[] weights, Tensor[] biases, Tensor? inject, int[] dilations, bool[] relu, "
      "bool[] skip, int iterations, int[] keep, int multiprocessors, Tensor(a!) workspace, Tensor(b!) arrivals, "
      "Tensor(c!)? kept, Tensor(d!)? output) -> ()");
  m.impl("cuda_rollout", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(rdk::cuda::rollout_op));
}
