// rdk::cpu_filters, cpu_zero_sums and cpu_parameter_gradients: between weights (C, C, 3, 3) and their values at the
// Winograd points, and from sums to gradients; called by rdk/backends/cpu_runs.py, cpu_norm.py and bindings_whole.cpp.
#include <torch/library.h>

#include "bindings.h"
#include "tables.h"

namespace rdk::binding {
namespace {

FilterArgs filter_args(const Geometry& geometry, const at::Tensor& weight, bool transposed) {
  TORCH_CHECK(weight.scalar_type() == at::kFloat && weight.device().is_cpu() && weight.dim() == 4 &&
                  weight.size(0) == geometry.channels && weight.size(1) == geometry.channels && weight.size(2) == 3 &&
                  weight.size(3) == 3,
              "rdk: expected float32 weights (", geometry.channels, ", ", geometry.channels, ", 3, 3) on the CPU, got ",
              weight.scalar_type(), " ", weight.sizes(), " on ", weight.device(), ".");
  FilterArgs args{weight.data_ptr<float>(),
                  weight.stride(0),
                  weight.stride(1),
                  weight.stride(2),
                  weight.stride(3),
                  geometry.channels,
                  geometry.channels,
                  nullptr,
                  geometry.filter_point(),
                  geometry.blocks,
                  0,
                  0,
                  1,
                  0};
  if (transposed) {  // outputs and inputs exchanged, taps reversed
    args.weight += 2 * args.row + 2 * args.col;
    std::swap(args.output, args.input);
    args.row = -args.row;
    args.col = -args.col;
  }
  return args;
}

// Sums over the copies of one stage's bias gradient, in their order.
void bias_gradient(const at::Tensor& sums, int64_t stage, const at::Tensor& gradient) {
  const int64_t channels = gradient.numel(), copies = sums.size(0), copy = sums.stride(0), step = gradient.stride(0);
  const double* data = sums.data_ptr<double>() + stage * sums.stride(1);
  float* result = gradient.data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (int64_t i = 0; i < copies; ++i) total += data[i * copy + c];
    result[c * step] = static_cast<float>(total);
  }
}

}  // namespace

at::Tensor cpu_filters(const std::vector<at::Tensor>& weights, at::IntArrayRef shape, at::IntArrayRef stages,
                       c10::string_view precision, bool transposed) {
  const Plan plan = plan_of(shape, stages, precision);
  const int64_t count = static_cast<int64_t>(plan.stages.size()), blocks = plan.geometry.blocks;
  std::vector<int64_t> offsets{0};
  for (size_t i = 0; i < weights.size(); ++i)
    offsets.push_back(offsets.back() + plan.stage_plans[i % count].filter_floats);
  at::Tensor result = scratch(offsets.back());
  float* data = result.data_ptr<float>();
  const bool streamed = static_cast<int64_t>(result.nbytes()) >= kStreamedFilters;
  auto transform = [&](int task) {
    const int64_t i = task / blocks, block = task % blocks;
    FilterArgs args = filter_args(plan.geometry, weights[i], transposed);
    args.u = data + offsets[i];
    args.streamed = streamed;
    args.first_block = static_cast<int>(block);
    args.end_block = static_cast<int>(block + 1);
    kernels().filter_transform[plan.stage_plans[i % count].filter_kind()](args);
  };
  run_parallel(parallel, static_cast<int>(weights.size() * blocks), transform);
  return result;
}

std::tuple<at::Tensor, at::Tensor> cpu_zero_sums(int64_t copies, int64_t weight_floats, int64_t stages,
                                                 int64_t channels) {
  const int64_t padded = (channels + kBlock - 1) / kBlock * kBlock;
  return {scratch(copies * weight_floats).zero_().view({copies, weight_floats}),
          at::zeros({copies, stages, padded}, at::kDouble)};
}

void cpu_parameter_gradients(const at::Tensor& sums, const at::Tensor& bias_sums,
                             const std::vector<at::Tensor>& gradients, const std::vector<at::Tensor>& bias_gradients,
                             at::IntArrayRef shape, at::IntArrayRef stages, c10::string_view precision) {
  const Plan plan = plan_of(shape, stages, precision);
  const int64_t blocks = plan.geometry.blocks, count = static_cast<int64_t>(plan.stages.size());
  TORCH_CHECK(
      gradients.size() == plan.stages.size() && (bias_gradients.empty() || bias_gradients.size() == plan.stages.size()),
      "rdk: expected one gradient for each of ", count, " stages, got ", gradients.size(), " of weights and ",
      bias_gradients.size(), " of biases.");
  std::vector<int64_t> offsets{0};
  for (const StagePlan& stage : plan.stage_plans) offsets.push_back(offsets.back() + stage.filter_floats);
  bool any = false;
  for (const at::Tensor& gradient : gradients) any = any || gradient.numel() > 0;
  TORCH_CHECK(!any || (sums.scalar_type() == at::kFloat && sums.device().is_cpu() && sums.dim() == 2 &&
                       sums.size(0) > 0 && sums.stride(1) == 1 && sums.size(1) >= offsets.back()),
              "rdk: expected float32 sums (copies, ", offsets.back(), " or more) with stride 1 on the CPU, got ",
              sums.scalar_type(), " ", sums.sizes(), " with strides ", sums.strides(), " on ", sums.device(), ".");
  auto transform = [&](int task) {
    const int64_t s = task / blocks, block = task % blocks;
    if (gradients[s].numel() == 0) return;
    FilterArgs args = filter_args(plan.geometry, gradients[s], false);
    args.u = sums.data_ptr<float>() + offsets[s];
    args.first_block = static_cast<int>(block);
    args.end_block = static_cast<int>(block + 1);
    args.copies = static_cast<int>(sums.size(0));
    args.copy_stride = sums.stride(0);
    kernels().weight_gradient[plan.stage_plans[s].filter_kind()](args);
  };
  if (any) run_parallel(parallel, static_cast<int>(gradients.size() * blocks), transform);
  for (int64_t s = 0; s < static_cast<int64_t>(bias_gradients.size()); ++s) {
    const at::Tensor& gradient = bias_gradients[s];
    if (gradient.numel() == 0) continue;
    TORCH_CHECK(gradient.scalar_type() == at::kFloat && gradient.device().is_cpu() && gradient.dim() == 1 &&
                    gradient.size(0) == plan.geometry.channels,
                "rdk: expected a float32 gradient (", plan.geometry.channels, ",) of a bias on the CPU, got ",
                gradient.scalar_type(), " ", gradient.sizes(), " on ", gradient.device(), ".");
    TORCH_CHECK(bias_sums.scalar_type() == at::kDouble && bias_sums.device().is_cpu() && bias_sums.dim() == 3 &&
                    bias_sums.size(1) == count && bias_sums.size(2) >= gradient.size(0) && bias_sums.stride(2) == 1,
                "rdk: expected float64 sums (copies, ", count, ", ", gradient.size(0),
                " or more) with stride 1 on the CPU, got ", bias_sums.scalar_type(), " ", bias_sums.sizes(), " on ",
                bias_sums.device(), ".");
    bias_gradient(bias_sums, s, gradient);
  }
}

}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def("cpu_filters(Tensor[] weights, int[] shape, int[] stages, str precision, bool transposed) -> Tensor",
        &cpu_filters);
  m.def("cpu_zero_sums(int copies, int weight_floats, int stages, int channels) -> (Tensor weights, Tensor biases)",
        &cpu_zero_sums);
  m.def(
      "cpu_parameter_gradients(Tensor sums, Tensor bias_sums, Tensor(a!)[] gradients, Tensor(b!)[] bias_gradients, "
      "int[] shape, int[] stages, str precision) -> ()",
      &cpu_parameter_gradients);
}
