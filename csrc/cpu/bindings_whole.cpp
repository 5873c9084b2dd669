// rdk::cpu_whole_forward and rdk::cpu_whole_backward: all images of a tied call in one run, the filters of its weights
// and the gradients of its parameters with it; called by rdk/backends/cpu_runs.py. On small maps the way between Python
// and C++, and back for every step, takes longer than the kernels.
#include <torch/library.h>

#include "bindings.h"

namespace rdk::binding {
namespace {

// In the memory format that PyTorch's own convolutions have for this state (rdk/backends/layout.py: is_channels_last).
at::Tensor empty_as(const at::Tensor& state) {
  const bool ambiguous = state.size(1) == 1 || (state.size(2) == 1 && state.size(3) == 1);
  const at::MemoryFormat format = ambiguous ? at::MemoryFormat::Contiguous : state.suggest_memory_format();
  return at::empty(state.sizes(), state.options().memory_format(format));
}

std::vector<at::Tensor> room(const std::vector<at::Tensor>& parameters, at::IntArrayRef wanted) {
  TORCH_CHECK(parameters.size() == wanted.size(), "rdk: expected one number for each of ", parameters.size(),
              " parameters, got ", wanted.size(), ".");
  std::vector<at::Tensor> gradients;
  for (size_t i = 0; i < parameters.size(); ++i)
    gradients.push_back(wanted[i] ? at::empty_like(parameters[i]) : at::empty({0}, parameters[i].options()));
  return gradients;
}

// As cpu_forward, from weights. Returns the state after the last iteration, which has no slot.
at::Tensor cpu_whole_forward(const at::Tensor& state, const std::optional<at::Tensor>& inject,
                             const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& biases,
                             const std::optional<at::Tensor>& norm, at::IntArrayRef stages, c10::string_view precision,
                             int64_t iterations, const std::optional<at::Tensor>& states, at::IntArrayRef state_slots,
                             const std::optional<at::Tensor>& tapes, at::IntArrayRef tape_slots, int64_t workers) {
  const at::Tensor filters = cpu_filters(weights, state.sizes(), stages, precision, false);
  const at::Tensor out = empty_as(state);
  cpu_forward(state, inject, filters, biases, norm, stages, precision, iterations, static_cast<int64_t>(weights.size()),
              out, states, state_slots, tapes, tape_slots, 0, state.size(0), workers);
  return out;
}

// As cpu_backward over all iterations. Returns the gradients of the state, of the weights and of the biases, empty
// where none is wanted.
std::vector<at::Tensor> cpu_whole_backward(
    const at::Tensor& grad, const at::Tensor& state, const std::optional<at::Tensor>& states,
    const std::optional<at::Tensor>& tapes, const std::optional<at::Tensor>& state_grads,
    const std::optional<at::Tensor>& inject_sum, const std::vector<at::Tensor>& weights,
    const std::vector<at::Tensor>& biases, at::IntArrayRef stages, c10::string_view precision, int64_t iterations,
    bool wants_state, at::IntArrayRef wants_weight, at::IntArrayRef wants_bias, int64_t copies, int64_t workers) {
  const std::vector<at::Tensor> of_weights = room(weights, wants_weight), of_biases = room(biases, wants_bias);
  bool any = false;
  for (int64_t wanted : wants_weight) any = any || wanted;
  const at::Tensor filters = cpu_filters(weights, state.sizes(), stages, precision, true);
  const auto [weight_sums, bias_sums] =
      cpu_zero_sums(copies, any ? plan_of(state.sizes(), stages, precision).gradient_floats : 0,
                    static_cast<int64_t>(weights.size()), state.size(1));
  std::optional<at::Tensor> grad_state;
  if (wants_state) grad_state = empty_as(state);
  // a call without biases wants none of their gradients
  const std::vector<int64_t> no_bias(weights.size(), 0);
  cpu_backward(grad, grad_state, state, states, tapes, state_grads, inject_sum, filters, stages, precision, iterations,
               true, wants_weight, biases.empty() ? at::IntArrayRef(no_bias) : wants_bias, weight_sums, bias_sums, 0,
               state.size(0), workers);
  cpu_parameter_gradients(weight_sums, bias_sums, of_weights, of_biases, state.sizes(), stages, precision);
  std::vector<at::Tensor> gradients{wants_state ? *grad_state : at::empty({0}, state.options())};
  gradients.insert(gradients.end(), of_weights.begin(), of_weights.end());
  gradients.insert(gradients.end(), of_biases.begin(), of_biases.end());
  return gradients;
}

}  // namespace
}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def(
      "cpu_whole_forward(Tensor state, Tensor? inject, Tensor[] weights, Tensor[] biases, Tensor? norm, int[] stages, "
      "str precision, int iterations, Tensor(a!)? states, int[] state_slots, Tensor(b!)? tapes, int[] tape_slots, "
      "int workers) -> Tensor",
      &cpu_whole_forward);
  m.def(
      "cpu_whole_backward(Tensor grad, Tensor state, Tensor? states, Tensor? tapes, Tensor? state_grads, "
      "Tensor(a!)? inject_sum, Tensor[] weights, Tensor[] biases, int[] stages, str precision, int iterations, "
      "bool wants_state, int[] wants_weight, int[] wants_bias, int copies, int workers) "
      "-> Tensor[]",
      &cpu_whole_backward);
}
