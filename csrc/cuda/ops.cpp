// The operators of conv.cuh, resident.cuh and weight_gradient.cuh: checks, parameter structs, launches; called by
// rdk/backends/cuda_kernels.py. What they write is the caller's; cuda_pack alone returns a tensor of its own.
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <torch/library.h>

#include <tuple>

#include "checks.h"

namespace rdk::cuda {
namespace {

// ---- planning: sizes only

std::vector<int64_t> conv_plan_op(int64_t images, int64_t channels, int64_t height, int64_t width, int64_t dilation,
                                  int64_t multiprocessors) {
  const PaddedGrid grid{static_cast<int>(height), static_cast<int>(width), static_cast<int>(dilation)};
  const ConvPlan plan =
      conv_plan(static_cast<int>(images), static_cast<int>(channels), grid, static_cast<int>(multiprocessors));
  return {plan.buffers, plan.tile.rows(), plan.tile.positions(), plan.groups, plan.tiles, plan.blocks};
}

// What is refused, "" where nothing is; output channels and positions of a tile; images that a block takes in turn.
std::tuple<std::string, int64_t, int64_t, int64_t> resident_plan_op(int64_t images, int64_t channels, int64_t height,
                                                                    int64_t width, int64_t dilation,
                                                                    int64_t multiprocessors) {
  const PaddedGrid grid{static_cast<int>(height), static_cast<int>(width), static_cast<int>(dilation)};
  const ResidentPlan plan =
      resident_plan(static_cast<int>(images), static_cast<int>(channels), grid, static_cast<int>(multiprocessors));
  return {plan.refusal == nullptr ? "" : plan.refusal, kRows, plan.tile.positions(),
          (images + multiprocessors - 1) / multiprocessors};
}

std::vector<int64_t> weight_gradient_plan_op(int64_t images, int64_t channels, int64_t height, int64_t width,
                                             int64_t dilation, int64_t multiprocessors) {
  const PaddedGrid grid{static_cast<int>(height), static_cast<int>(width), static_cast<int>(dilation)};
  const WeightGradientPlan plan = weight_gradient_plan(static_cast<int>(images), static_cast<int>(channels), grid,
                                                       static_cast<int>(multiprocessors));
  return {plan.buffers, plan.splits, plan.channel_tiles};
}

// ---- weights

// (O, I, 3, 3) as [block of rows][k / 16][tap][k / 8 % 2][row / 8][row % 8][k % 8], rows padded with zeros.
// `transposed`: those of the gradient of the input, taps flipped.
Tensor pack_op(const Tensor& weight, int64_t rows, bool transposed) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(0) == weight.size(1) && weight.size(2) == 3 && weight.size(3) == 3 &&
                  weight.size(0) % kChannelStep == 0,
              "rdk: cuda_pack: expected a weight of shape (C, C, 3, 3) with a multiple of ", kChannelStep,
              " channels, got ", weight.sizes(), ".");
  TORCH_CHECK(rows == 16 || rows == 32 || rows == 64 || rows == 128,
              "rdk: cuda_pack: expected blocks of 16, 32, 64 or 128 rows, got ", rows, ".");
  const int64_t channels = weight.size(0);
  Tensor taps = transposed ? weight.transpose(0, 1).flip({2, 3}) : weight;
  const int64_t blocks = (channels + rows - 1) / rows;
  taps = at::constant_pad_nd(taps, {0, 0, 0, 0, 0, 0, 0, blocks * rows - channels});
  return taps.reshape({blocks, rows / 8, 8, channels / kChannelStep, 2, 8, kTaps})
      .permute({0, 3, 6, 4, 1, 2, 5})
      .contiguous();
}

// ---- launches

void conv_op(const Tensor& input, const Tensor& weights, const MaybeTensor& bias, const MaybeTensor& scale,
             const MaybeTensor& shift, const MaybeTensor& inject, const MaybeTensor& skip, const MaybeTensor& mask,
             int64_t dilation, bool relu, int64_t multiprocessors, Tensor output, std::optional<Tensor> statistics) {
  const char* op = "cuda_conv";
  check_map(input, input, op, "input");
  check_map(output, input, op, "output");
  if (input.numel() == 0) return;
  const PaddedGrid grid = grid_of(input, dilation, op);
  const int images = static_cast<int>(input.size(0)), channels = static_cast<int>(input.size(1));
  const ConvPlan plan = conv_plan(images, channels, grid, static_cast<int>(multiprocessors));
  TORCH_CHECK(plan.buffers >= kConvMinBuffers, "rdk: cuda_conv: a map of width ", grid.width, " at dilation ", dilation,
              " does not fit in shared memory with its halo.");
  check_weights(weights, input, plan.tile.rows(), op);
  const OnDevice device(input);
  ConvParams p = conv_params(plan, images, channels, grid);
  p.input = input.const_data_ptr();
  p.weights = weights.const_data_ptr();
  p.bias = channel_pointer(bias, input, op, "bias");
  p.scale = channel_pointer(scale, input, op, "scale");
  p.shift = channel_pointer(shift, input, op, "shift");
  p.inject = map_pointer(inject, input, op, "inject");
  p.skip = map_pointer(skip, input, op, "skip");
  p.mask = map_pointer(mask, input, op, "mask");
  p.output = output.mutable_data_ptr();
  p.relu = relu;
  if (statistics) {
    TORCH_CHECK(statistics->scalar_type() == at::kFloat && statistics->is_contiguous() &&
                    statistics->device() == input.device() &&
                    statistics->sizes() == at::IntArrayRef({plan.groups, 3, channels}),
                "rdk: cuda_conv: expected statistics of shape (", plan.groups, ", 3, ", channels, ") in float32, got ",
                statistics->sizes(), ".");
    p.statistics = statistics->mutable_data_ptr<float>();
  }
  const auto run = input.scalar_type() == at::kBFloat16 ? launch_conv_bf16 : launch_conv_fp16;
  check_launch(run(p, plan.tile, plan.blocks, device.stream()), op);
}

void resident_op(const Tensor& input, const Tensor& weights, const MaybeTensor& bias, const MaybeTensor& inject,
                 at::TensorList add, at::TensorList mask, int64_t dilation, bool relu, int64_t iterations,
                 at::IntArrayRef keep, int64_t multiprocessors, std::optional<Tensor> kept,
                 std::optional<Tensor> output) {
  const char* op = "cuda_resident";
  check_map(input, input, op, "input");
  if (input.numel() == 0) return;
  const PaddedGrid grid = grid_of(input, dilation, op);
  const int images = static_cast<int>(input.size(0)), channels = static_cast<int>(input.size(1));
  const ResidentPlan plan = resident_plan(images, channels, grid, static_cast<int>(multiprocessors));
  TORCH_CHECK(plan.refusal == nullptr, "rdk: cuda_resident: ", plan.refusal, "; the input is ", input.sizes(), ".");
  TORCH_CHECK(iterations >= 1 && iterations <= kMaxLaunchIterations, "rdk: cuda_resident: expected 1 to ",
              kMaxLaunchIterations, " iterations, got ", iterations, ".");
  // one map per iteration, or one less: none for the last iteration
  const auto fits = [iterations](at::TensorList maps) {
    const auto count = static_cast<int64_t>(maps.size());
    return count == 0 || count == iterations || count == iterations - 1;
  };
  TORCH_CHECK(fits(add) && fits(mask), "rdk: cuda_resident: expected an added map and a mask for each of ", iterations,
              " iterations, for all but the last, or none; got ", add.size(), " and ", mask.size(), ".");
  check_weights(weights, input, kRows, op);
  const OnDevice device(input);
  ResidentParams p = resident_params(plan, images, channels, grid);
  p.input = input.const_data_ptr();
  p.weights = weights.const_data_ptr();
  p.bias = channel_pointer(bias, input, op, "bias");
  p.inject = map_pointer(inject, input, op, "inject");
  for (const Tensor& map : add) check_map(map, input, op, "add");
  for (const Tensor& map : mask) check_map(map, input, op, "mask");
  const auto before_last = static_cast<size_t>(iterations - 1);
  if (!add.empty()) {
    p.add = add[0].const_data_ptr();
    p.add_stride = stride_of(add.slice(0, before_last), op, "add");
    p.add_last = add.size() > before_last ? add[before_last].const_data_ptr() : nullptr;
  }
  if (!mask.empty()) {
    p.mask = mask[0].const_data_ptr();
    p.mask_stride = stride_of(mask.slice(0, before_last), op, "mask");
    p.mask_last = mask.size() > before_last ? mask[before_last].const_data_ptr() : nullptr;
  }
  set_kept(p.keep, keep, iterations, op, "iterations");
  p.kept = maps_pointer(kept, static_cast<int64_t>(keep.size()), input, op, "kept");
  if (p.kept != nullptr) p.kept_stride = kept->stride(0);
  if (output) {
    check_map(*output, input, op, "output");
    p.output = output->mutable_data_ptr();
  }
  p.iterations = static_cast<int>(iterations);
  p.relu = relu;
  const auto run = input.scalar_type() == at::kBFloat16 ? launch_resident_bf16 : launch_resident_fp16;
  check_launch(run(p, plan.tile, plan.blocks, device.stream()), op);
}

void weight_gradient_op(at::TensorList grads, at::TensorList states, int64_t dilation, bool accumulate,
                        int64_t multiprocessors, Tensor partials) {
  const char* op = "cuda_weight_gradient";
  TORCH_CHECK(!grads.empty() && grads.size() == states.size(),
              "rdk: cuda_weight_gradient: expected as many gradients as states, got ", grads.size(), " and ",
              states.size(), ".");
  const Tensor& like = grads[0];
  for (const Tensor& map : grads) check_map(map, like, op, "a gradient");
  for (const Tensor& map : states) check_map(map, like, op, "a state");
  if (like.numel() == 0) {
    if (!accumulate) partials.zero_();
    return;
  }
  const PaddedGrid grid = grid_of(like, dilation, op);
  const int images = static_cast<int>(like.size(0)), channels = static_cast<int>(like.size(1));
  const size_t pairs = grads.size();
  const WeightGradientPlan plan = weight_gradient_plan(images, channels, grid, static_cast<int>(multiprocessors));
  TORCH_CHECK(plan.buffers >= kWeightGradientMinBuffers, "rdk: cuda_weight_gradient: a map of width ", grid.width,
              " at dilation ", dilation, " does not fit in shared memory with its halo.");
  TORCH_CHECK(partials.scalar_type() == at::kFloat && partials.is_contiguous() && partials.device() == like.device() &&
                  partials.sizes() ==
                      at::IntArrayRef({plan.splits, plan.channel_tiles, plan.channel_tiles, kTaps, kRows, kRows}),
              "rdk: cuda_weight_gradient: expected float32 partials of shape (", plan.splits, ", ", plan.channel_tiles,
              ", ", plan.channel_tiles, ", 9, 64, 64), got ", partials.sizes(), ".");
  const OnDevice device(like);
  WeightGradientParams p = weight_gradient_params(plan, images, channels, grid);
  p.grad_first = grads[0].const_data_ptr();
  p.state_last = states[pairs - 1].const_data_ptr();
  if (pairs > 1) {
    p.grad = grads[1].const_data_ptr();
    p.grad_stride = stride_of(grads.slice(1), op, "the gradients");
    p.state = states[0].const_data_ptr();
    p.state_stride = stride_of(states.slice(0, pairs - 1), op, "the states");
  }
  p.partials = partials.mutable_data_ptr<float>();
  p.pairs = static_cast<int>(pairs);
  p.accumulate = accumulate;
  const auto run = like.scalar_type() == at::kBFloat16 ? launch_weight_gradient_bf16 : launch_weight_gradient_fp16;
  check_launch(run(p, device.stream()), op);
}

}  // namespace
}  // namespace rdk::cuda

TORCH_LIBRARY_FRAGMENT(RDK_NAMESPACE, m) {
  m.def("cuda_conv_plan(int images, int channels, int height, int width, int dilation, int multiprocessors) -> int[]",
        &rdk::cuda::conv_plan_op);
  m.def(
      "cuda_resident_plan(int images, int channels, int height, int width, int dilation, int multiprocessors) -> "
      "(str, int, int, int)",
      &rdk::cuda::resident_plan_op);
  m.def(
      "cuda_weight_gradient_plan(int images, int channels, int height, int width, int dilation, int multiprocessors) "
      "-> int[]",
      &rdk::cuda::weight_gradient_plan_op);
  m.def("cuda_pack(Tensor weight, int rows, bool transposed) -> Tensor", &rdk::cuda::pack_op);
  m.def(
      "cuda_conv(Tensor input, Tensor weights, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? inject, Tensor? "
      "skip, Tensor? mask, int dilation, bool relu, int multiprocessors, Tensor(a!) output, Tensor(b!)? statistics) -> "
      "()");
  m.def(
      "cuda_resident(Tensor input, Tensor weights, Tensor? bias, Tensor? inject, Tensor[] add, Tensor[] mask, int "
      "dilation, bool relu, int iterations, int[] keep, int multiprocessors, Tensor(a!)? kept, Tensor(b!)? output) -> "
      "()");
  m.def(
      "cuda_weight_gradient(Tensor[] grads, Tensor[] states, int dilation, bool accumulate, int multiprocessors, "
      "Tensor(a!) partials) -> ()");
  // one implementation for every device: it says itself what it needs
  m.impl("cuda_conv", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(rdk::cuda::conv_op));
  m.impl("cuda_resident", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(rdk::cuda::resident_op));
  m.impl("cuda_weight_gradient", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(rdk::cuda::weight_gradient_op));
}
