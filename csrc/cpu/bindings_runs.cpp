// rdk::cpu_forward and rdk::cpu_backward: a run of iterations over some images of a batch; called by
// rdk/backends/cpu_runs.py, cpu_norm.py and bindings_whole.cpp.
#include <torch/library.h>

#include "backward.h"
#include "bindings.h"
#include "forward.h"

namespace rdk::binding {
namespace {

// Rows of channels, padded with zeros to whole blocks.
std::vector<float> padded_rows(const std::vector<at::Tensor>& rows, int64_t padded) {
  std::vector<float> result(rows.size() * padded, 0.0f);
  for (size_t i = 0; i < rows.size(); ++i) {
    TORCH_CHECK(rows[i].scalar_type() == at::kFloat && rows[i].dim() == 1,
                "rdk: expected float32 rows of channels, got ", rows[i].scalar_type(), " ", rows[i].sizes(), ".");
    const at::Tensor row = rows[i].contiguous();
    std::copy_n(row.data_ptr<float>(), row.numel(), result.data() + i * padded);
  }
  return result;
}

// slots: for each map that a run may store, its place in `maps`, or -1.
std::vector<MapView> stored(const std::optional<at::Tensor>& maps, at::IntArrayRef slots) {
  std::vector<MapView> views;
  for (int64_t slot : slots) {
    views.push_back(slot < 0 ? MapView{} : view(*maps, slot));
    views.back().streamed = true;
  }
  return views;
}

// The workspace has windows for no more.
void expect_iterations(int64_t iterations, const BandPlan& bands) {
  TORCH_CHECK(iterations <= bands.iterations, "rdk: expected at most ", bands.iterations,
              " iterations of a map of this size in one run, got ", iterations, ".");
}

}  // namespace

void cpu_forward(const at::Tensor& state, const std::optional<at::Tensor>& inject, const at::Tensor& filters,
                 const std::vector<at::Tensor>& biases, const std::optional<at::Tensor>& norm, at::IntArrayRef stages,
                 c10::string_view precision, int64_t iterations, int64_t stages_of_last,
                 const std::optional<at::Tensor>& out, const std::optional<at::Tensor>& states,
                 at::IntArrayRef state_slots, const std::optional<at::Tensor>& tapes, at::IntArrayRef tape_slots,
                 int64_t first_image, int64_t last_image, int64_t workers) {
  ForwardRun run{&kernels(),
                 plan_of(state.sizes(), stages, precision),
                 static_cast<int>(iterations),
                 static_cast<int>(stages_of_last),
                 {},
                 view(state),
                 {},
                 stored(states, state_slots),
                 stored(tapes, tape_slots)};
  const Plan& plan = run.plan;
  fit_group(run.plan, state.size(0), static_cast<int>(workers), inject.has_value(), false);
  expect_iterations(iterations, run.plan.forward_bands);
  if (inject) run.inject = view(*inject);
  if (out) run.states.back() = view(*out);
  // maps are large and new in every call: few page faults instead of one per 4 KiB
  if (states) huge_pages(*states);
  if (tapes) huge_pages(*tapes);
  if (out) huge_pages(*out);
  const int64_t padded = plan.geometry.blocks * static_cast<int64_t>(kBlock);
  const int64_t count = static_cast<int64_t>(plan.stages.size()), rows = iterations * count;
  TORCH_CHECK(static_cast<int64_t>(run.states.size()) == iterations && static_cast<int64_t>(run.tapes.size()) == rows,
              "rdk: expected a slot for each of ", iterations, " states and ", rows, " tapes, got ", run.states.size(),
              " and ", run.tapes.size(), ".");
  int64_t tied_floats = 0;
  for (const StagePlan& stage : plan.stage_plans) tied_floats += stage.filter_floats;
  const bool tied = filters.numel() == tied_floats;
  const std::vector<float> bias = padded_rows(biases, padded);
  std::vector<at::Tensor> norm_rows;
  if (norm) norm_rows = norm->reshape({3 * rows, plan.geometry.channels}).unbind(0);
  const std::vector<float> norms = padded_rows(norm_rows, padded);
  const float* filter = filters.data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    if (tied && row % count == 0) filter = filters.data_ptr<float>();
    const int64_t parameter = tied ? row % count : row;
    auto norm_row = [&](int64_t part) { return norm ? norms.data() + (part * rows + row) * padded : nullptr; };
    run.parameters.push_back(
        {filter, biases.empty() ? nullptr : bias.data() + parameter * padded, norm_row(0), norm_row(1), norm_row(2)});
    filter += plan.stage_plans[row % count].filter_floats;
  }
  const at::Tensor space = workspace(plan, workers, plan.forward_buffer_floats);
  Workforce force = workforce(space, workers, plan.forward_buffer_floats, false);
  run_forward(run, first_image, last_image, force);
  record(force);
}

void cpu_backward(const at::Tensor& grad, const std::optional<at::Tensor>& grad_input, const at::Tensor& state,
                  const std::optional<at::Tensor>& states, const std::optional<at::Tensor>& tapes,
                  const std::optional<at::Tensor>& state_grads, const std::optional<at::Tensor>& inject_sum,
                  const at::Tensor& filters, at::IntArrayRef stages, c10::string_view precision, int64_t iterations,
                  bool from_start, at::IntArrayRef wants_weight, at::IntArrayRef wants_bias,
                  const at::Tensor& weight_sums, const at::Tensor& bias_sums, int64_t first_image, int64_t last_image,
                  int64_t workers) {
  BackwardRun run{};
  run.kernels = &kernels();
  run.plan = plan_of(grad.sizes(), stages, precision);
  const Plan& plan = run.plan;
  fit_group(run.plan, grad.size(0), static_cast<int>(workers), inject_sum.has_value(), state_grads.has_value());
  expect_iterations(iterations, run.plan.backward_bands);
  run.iterations = static_cast<int>(iterations);
  run.from_start = from_start;
  run.wants_input = grad_input.has_value();
  run.wants_weight.assign(wants_weight.begin(), wants_weight.end());
  run.wants_bias.assign(wants_bias.begin(), wants_bias.end());
  const int64_t count = static_cast<int64_t>(plan.stages.size());
  const float* filter = filters.data_ptr<float>();
  for (int64_t i = 0; i < iterations; ++i) {
    for (int64_t s = 0; s < count; ++s) {
      run.filters.push_back(filter);
      filter += plan.stage_plans[s].filter_floats;
      run.inputs.push_back(s > 0 ? view(*tapes, i * (count - 1) + s - 1) : i > 0 ? view(*states, i - 1) : view(state));
    }
    filter = filters.data_ptr<float>();
    const int64_t entry = from_start ? i - 1 : i;
    run.state_grads.push_back(state_grads && entry >= 0 ? view(*state_grads, entry) : MapView{});
  }
  run.grad = view(grad);
  if (grad_input) run.grad_input = view(*grad_input);
  if (grad_input) huge_pages(*grad_input);
  if (inject_sum) run.inject_sum = view(*inject_sum);
  run.weight_sums = weight_sums.data_ptr<float>();
  run.copy_floats = plan.gradient_floats;
  run.bias_sums = bias_sums.data_ptr<double>();
  const bool together = weight_sums.size(0) < workers;
  const at::Tensor space = workspace(plan, workers, plan.backward_buffer_floats);
  Workforce force = workforce(space, workers, plan.backward_buffer_floats, together);
  run_backward(run, first_image, last_image, force);
  record(force);
}

}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def(
      "cpu_forward(Tensor state, Tensor? inject, Tensor filters, Tensor[] biases, Tensor? norm, int[] stages, str "
      "precision, "
      "int iterations, int stages_of_last, Tensor(a!)? out, Tensor(b!)? states, int[] state_slots, Tensor(c!)? tapes, "
      "int[] tape_slots, int first_image, int last_image, int workers) -> ()",
      &cpu_forward);
  m.def(
      "cpu_backward(Tensor grad, Tensor(a!)? grad_input, Tensor state, Tensor? states, Tensor? tapes, Tensor? "
      "state_grads, "
      "Tensor(b!)? inject_sum, Tensor filters, int[] stages, str precision, int iterations, bool from_start, "
      "int[] wants_weight, int[] wants_bias, Tensor(c!) weight_sums, Tensor(d!) bias_sums, int first_image, "
      "int last_image, int workers) -> ()",
      &cpu_backward);
}
