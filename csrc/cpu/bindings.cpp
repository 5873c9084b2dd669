// What bindings.h declares, and the operators that need no map: rdk::cpu_use_isa and cpu_plan, called by
// rdk/backends/cpu.py and cpu_runs.py; cpu_tile_points, cpu_clock and cpu_fma_flops, called by
// benchmarks/cpu_micro.py.
#include "bindings.h"

#include <ATen/Parallel.h>
#include <torch/library.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <string>

#include "isa.h"

namespace rdk::binding {
namespace {

const Kernels* chosen = nullptr;
std::atomic<int64_t> clock_ticks[kPhases];

}  // namespace

const Kernels& kernels() {
  TORCH_CHECK(chosen, "rdk: no instruction set was chosen for the cpu backend; rdk::cpu_use_isa comes first.");
  return *chosen;
}

Plan plan_of(at::IntArrayRef shape, at::IntArrayRef stages, c10::string_view precision) {
  TORCH_CHECK(shape.size() == 4 && stages.size() % 3 == 0,
              "rdk: expected a shape of 4 and stages of 3 numbers each, got the shape ", shape, " and the stages ",
              stages, ".");
  TORCH_CHECK(!stages.empty() && shape[1] > 0 && shape[2] > 0 && shape[3] > 0,
              "rdk: expected a stage, channels and pixels, got the shape ", shape, " and the stages ", stages, ".");
  std::vector<Stage> list;
  // from the larger side on, all taps but the middle one read zeros: a larger dilation is the same convolution
  const int64_t widest = std::max<int64_t>(1, std::max(shape[2], shape[3]));
  for (size_t i = 0; i < stages.size(); i += 3) {
    TORCH_CHECK(stages[i] > 0, "rdk: expected a dilation of 1 or more, got ", stages[i], ".");
    list.push_back(
        {static_cast<int>(std::min(stages[i], widest)), stages[i + 1] != 0, static_cast<int>(stages[i + 2])});
  }
  return make_plan(static_cast<int>(shape[1]), static_cast<int>(shape[2]), static_cast<int>(shape[3]), list,
                   precision == "accurate" ? Precision::kAccurate : Precision::kFast, kernels().row_tiles);
}

MapView view(const at::Tensor& maps, int64_t slot) {
  TORCH_CHECK(maps.scalar_type() == at::kFloat && maps.device().is_cpu(), "rdk: expected float32 maps on the CPU, got ",
              maps.scalar_type(), " on ", maps.device(), ".");
  const int64_t first = slot < 0 ? 0 : 1;
  TORCH_CHECK(maps.dim() == 4 + first, "rdk: expected ", 4 + first, " dimensions, got ", maps.dim(), ".");
  TORCH_CHECK(slot < 0 || slot < maps.size(0), "rdk: expected a map below ", maps.size(0), ", got ", slot, ".");
  float* data = maps.data_ptr<float>() + (slot < 0 ? 0 : slot * maps.stride(0));
  // the stride of a dimension of size 1 means nothing; 1 for channels takes the fast path
  const int64_t channel = maps.size(first + 1) == 1 ? 1 : maps.stride(first + 1);
  return {data, maps.stride(first), channel, maps.stride(first + 2), maps.stride(first + 3)};
}

void expect(const at::Tensor& tensor, at::IntArrayRef sizes, const char* what) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device().is_cpu() && tensor.sizes() == sizes &&
                  tensor.is_contiguous(),
              "rdk: expected ", what, " as dense float32 ", sizes, " on the CPU, got ", tensor.scalar_type(), " ",
              tensor.sizes(), " on ", tensor.device(), ".");
}

void parallel(int tasks, void (*body)(void* context, int task), void* context) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(context, static_cast<int>(task));
  });
}

void huge_pages(const at::Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = (begin + tensor.nbytes()) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

at::Tensor workspace(const Plan& plan, int64_t workers, int64_t buffer_floats) {
  return scratch(workers * plan.worker_floats(buffer_floats) + kBlock);  // a block more, to start on a cache line
}

Workforce workforce(const at::Tensor& workspace, int64_t workers, int64_t buffer_floats, bool together) {
  auto address = reinterpret_cast<uintptr_t>(workspace.data_ptr<float>());
  auto* aligned = reinterpret_cast<float*>((address + 63) / 64 * 64);
  return {aligned, buffer_floats, static_cast<int>(workers), together, parallel, {}};
}

void record(const Workforce& workforce) {
  for (const Space& space : workforce.spaces)
    for (int phase = 0; phase < kPhases; ++phase) clock_ticks[phase] += space.ticks[phase];
}

namespace {

// The name of the instruction set now in force; empty where this machine lacks the one wanted.
std::string cpu_use_isa(c10::string_view wanted) {
  chosen = find_kernels(std::string(wanted).c_str());
  return chosen ? chosen->name : "";
}

// [group, floats per worker and iterations of one run at most of the forward and of the backward, floats of weight
// sums, filter floats of each stage …]
std::vector<int64_t> cpu_plan(at::IntArrayRef shape, at::IntArrayRef stages, c10::string_view precision,
                              int64_t workers, bool inject, bool state_grads) {
  Plan plan = plan_of(shape, stages, precision);
  fit_group(plan, shape[0], static_cast<int>(workers), inject, state_grads);
  std::vector<int64_t> result{plan.group,
                              plan.worker_floats(plan.forward_buffer_floats),
                              plan.forward_bands.iterations,
                              plan.worker_floats(plan.backward_buffer_floats),
                              plan.backward_bands.iterations,
                              plan.gradient_floats};
  for (const StagePlan& stage : plan.stage_plans) result.push_back(stage.filter_floats);
  return result;
}

// Points of all tiles of one image in its first stage: multiply-adds per pair of channels.
int64_t cpu_tile_points(at::IntArrayRef shape, at::IntArrayRef stages, c10::string_view precision) {
  return plan_of(shape, stages, precision).stage_plans[0].tile_points();
}

// Clock ticks by phase since the last call: input transforms, products, output transforms, weight products, moves.
std::vector<int64_t> cpu_clock() {
  std::vector<int64_t> result;
  for (auto& ticks : clock_ticks) result.push_back(ticks.exchange(0));
  return result;
}

double cpu_fma_flops(int64_t steps) { return kernels().fma_flops(steps); }

}  // namespace
}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def("cpu_use_isa(str wanted) -> str", &cpu_use_isa);
  m.def("cpu_plan(int[] shape, int[] stages, str precision, int workers, bool inject, bool state_grads) -> int[]",
        &cpu_plan);
  m.def("cpu_tile_points(int[] shape, int[] stages, str precision) -> int", &cpu_tile_points);
  m.def("cpu_clock() -> int[]", &cpu_clock);
  m.def("cpu_fma_flops(int steps) -> float", &cpu_fma_flops);
}
