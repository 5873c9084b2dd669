// What the binding files share: the instruction set in force, plans from operator arguments, views of tensors,
// threads. Included by bindings.cpp, bindings_filters.cpp, bindings_norm.cpp, bindings_runs.cpp and
// bindings_scratch.cpp.
#pragma once
#include <ATen/ATen.h>

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

// The workers of one call, each with `buffer_floats` of blocked buffers; `workspace` must hold what the plan says.
Workforce workforce(const Plan& plan, const at::Tensor& workspace, int64_t workers, int64_t buffer_floats,
                    bool together);

// Adds the workers' time by phase to the clock that rdk::cpu_clock reads.
void record(const Workforce& workforce);

}  // namespace rdk::binding
