// rdk::cpu_filters, cpu_zero_sums and cpu_weight_gradients: between weights (C, C, 3, 3) and their values at the
// Winograd points; called by rdk/backends/cpu_runs.py and cpu_norm.py.
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

// The transformed filters of all weights, one after another; weight i is of stage i modulo the stages.
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

// Where weight gradients are summed at the points, before the first: (copies, floats) of zeros.
at::Tensor cpu_zero_sums(int64_t copies, int64_t floats) {
  return scratch(copies * floats).zero_().view({copies, floats});
}

// Weight gradients from their sums at the points, sums: (copies, floats); an empty gradient is not wanted.
void cpu_weight_gradients(const at::Tensor& sums, const std::vector<at::Tensor>& gradients, at::IntArrayRef shape,
                          at::IntArrayRef stages, c10::string_view precision) {
  const Plan plan = plan_of(shape, stages, precision);
  const int64_t blocks = plan.geometry.blocks;
  TORCH_CHECK(gradients.size() == plan.stages.size(), "rdk: expected one gradient for each of ", plan.stages.size(),
              " stages, got ", gradients.size(), ".");
  std::vector<int64_t> offsets{0};
  for (const StagePlan& stage : plan.stage_plans) offsets.push_back(offsets.back() + stage.filter_floats);
  TORCH_CHECK(sums.scalar_type() == at::kFloat && sums.device().is_cpu() && sums.dim() == 2 && sums.size(0) > 0 &&
                  sums.stride(1) == 1 && sums.size(1) >= offsets.back(),
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
  run_parallel(parallel, static_cast<int>(gradients.size() * blocks), transform);
}

}  // namespace
}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def("cpu_filters(Tensor[] weights, int[] shape, int[] stages, str precision, bool transposed) -> Tensor",
        &cpu_filters);
  m.def("cpu_zero_sums(int copies, int floats) -> Tensor", &cpu_zero_sums);
  m.def("cpu_weight_gradients(Tensor sums, Tensor(a!)[] gradients, int[] shape, int[] stages, str precision) -> ()",
        &cpu_weight_gradients);
}
