// What the binding files share: the instruction set in force, plans from operator arguments, views of tensors,
// threads. Included by bindings.cpp, bindings_filters.cpp, bindings_norm.cpp, bindings_runs.cpp and
// bindings_scratch.cpp and bindings_whole.cpp.
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <tuple>
#include <vector>

#include "convolve.h"

namespace rdk::binding {

// Raises where no instruction set was chosen (rdk/backends/cpu.py chooses before the first call).
const Kernels& kernels();

// stages: three integers per stage (dilation, relu, skip or -1). shape: (N, C, H, W).
Plan plan_of(at::IntArrayRef shape, at::IntArrayRef stages, c10::string_view precision);

// A float32 CPU tensor (N, C, H, W), or entry `slot` of a stack of them, as forward.h and backward.h have it.
MapView view(const at::Tensor& maps, int64_t slot = -1);

// Raises unless the tensor holds dense float32 numbers of these sizes on the CPU; `what` names it.
void expect(const at::Tensor& tensor, at::IntArrayRef sizes, const char* what);

// PyTorch's intra-op threads.
void parallel(int tasks, void (*body)(void* context, int task), void* context);

// Asks the system for large pages under a tensor's memory: the points of a tile lie on as many pages as there are
// points.
void huge_pages(const at::Tensor& tensor);

// Uninitialised float32 values for as long as one call works in them; see bindings_scratch.cpp.
at::Tensor scratch(int64_t floats);

// What the workers of one run write into, each with `buffer_floats` of blocked buffers; and these workers.
at::Tensor workspace(const Plan& plan, int64_t workers, int64_t buffer_floats);
Workforce workforce(const at::Tensor& workspace, int64_t workers, int64_t buffer_floats, bool together);

// The transformed filters of all weights, one after another; weight i is of stage i modulo the stages.
at::Tensor cpu_filters(const std::vector<at::Tensor>& weights, at::IntArrayRef shape, at::IntArrayRef stages,
                       c10::string_view precision, bool transposed);

// A run of iterations over some images. norm: (3, iterations * stages, C) of means, scales and shifts. slots: the place
// of each map that may be stored, or -1. The state after the last iteration goes to `out`, where given.
void cpu_forward(const at::Tensor& state, const std::optional<at::Tensor>& inject, const at::Tensor& filters,
                 const std::vector<at::Tensor>& biases, const std::optional<at::Tensor>& norm, at::IntArrayRef stages,
                 c10::string_view precision, int64_t iterations, int64_t stages_of_last,
                 const std::optional<at::Tensor>& out, const std::optional<at::Tensor>& states,
                 at::IntArrayRef state_slots, const std::optional<at::Tensor>& tapes, at::IntArrayRef tape_slots,
                 int64_t first_image, int64_t last_image, int64_t workers);

// The reverse of a run. states: enter the second and every later iteration. tapes: the other stages' inputs,
// iteration-major. state_grads: added to the gradient of what enters each iteration but, with from_start, the first.
void cpu_backward(const at::Tensor& grad, const std::optional<at::Tensor>& grad_input, const at::Tensor& state,
                  const std::optional<at::Tensor>& states, const std::optional<at::Tensor>& tapes,
                  const std::optional<at::Tensor>& state_grads, const std::optional<at::Tensor>& inject_sum,
                  const at::Tensor& filters, at::IntArrayRef stages, c10::string_view precision, int64_t iterations,
                  bool from_start, at::IntArrayRef wants_weight, at::IntArrayRef wants_bias,
                  const at::Tensor& weight_sums, const at::Tensor& bias_sums, int64_t first_image, int64_t last_image,
                  int64_t workers);

// Where gradients are summed before the first, all zeros: (copies, weight_floats) of weights at the points, and of
// biases (copies, stages, channels in whole blocks) in float64.
std::tuple<at::Tensor, at::Tensor> cpu_zero_sums(int64_t copies, int64_t weight_floats, int64_t stages,
                                                 int64_t channels);

// Gradients of the stages' weights and biases from their sums; an empty gradient is not wanted, nor is any bias's of an
// empty list.
void cpu_parameter_gradients(const at::Tensor& sums, const at::Tensor& bias_sums,
                             const std::vector<at::Tensor>& gradients, const std::vector<at::Tensor>& bias_gradients,
                             at::IntArrayRef shape, at::IntArrayRef stages, c10::string_view precision);

// Adds the workers' time by phase to the clock that rdk::cpu_clock reads.
void record(const Workforce& workforce);

}  // namespace rdk::binding
