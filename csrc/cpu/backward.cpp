// The backward of one group: the gradient stays in blocked buffers; weight gradients are summed at the Winograd
// points. Maps too large for that are left to backward_bands.cpp. Called by bindings_runs.cpp and tests/check_runs.cpp.
#include "backward.h"

#include <algorithm>

#include "buffer_pool.h"
#include "parameter_sums.h"

namespace rdk {
namespace {

class GroupBackward {
 public:
  GroupBackward(const BackwardRun& run, const Group& group, float* buffers, int copy)
      : run_(run),
        group_(group),
        stages_(static_cast<int>(run.plan.stages.size())),
        copy_(copy),
        buffer_floats_(run.plan.group * run.plan.geometry.image()),
        pool_(buffers, buffer_floats_, run.plan.backward_buffers) {}

  void operator()() {
    grad_ = pool_.take();
    input_ = pool_.take();
    load_group(group_, run_.grad, grad_);
    for (int iteration = run_.iterations - 1; iteration >= 0; --iteration) {
      skipped_.assign(stages_, nullptr);
      for (int s = stages_ - 1; s >= 0; --s) reverse(iteration, s);
    }
    if (run_.grad_input.data) store_group(group_, run_.grad_input, grad_);
    if (inject_) add_group_to(group_, run_.inject_sum, inject_);
  }

 private:
  // From the gradient of a stage's sum to that of the sum before it.
  void reverse(int iteration, int s) {
    const Reversal wants = reversal_of(run_, iteration, s);
    if (s == 0 && run_.inject_sum.data) add_inject();
    if (run_.wants_bias[s]) add_bias_sums(group_, grad_, bias_sums_of(run_, copy_, s));
    if (wants.reads_input) load_group(group_, run_.inputs[iteration * stages_ + s], input_);
    if (run_.wants_weight[s])
      add_weight_sums(group_, run_.plan.stage_plans[s], input_, grad_, weight_sums_of(run_, copy_, s));
    if (!wants.input) return;

    const Stage& stage = run_.plan.stages[s];
    Epilogue epilogue{};
    int addends = 0;
    if (stage.skip == s) epilogue.addends[addends++] = grad_;
    if (skipped_[s]) epilogue.addends[addends++] = skipped_[s];
    float* state_grad = nullptr;
    if (s == 0 && run_.state_grads[iteration].data) {
      state_grad = pool_.take();
      load_group(group_, run_.state_grads[iteration], state_grad);
      epilogue.addends[addends++] = state_grad;
    }
    if (wants.masked) epilogue.mask = input_;
    float* next = pool_.take();
    convolve(group_, run_.plan.stage_plans[s], run_.filters[iteration * stages_ + s], grad_, next, epilogue);
    if (state_grad) pool_.give(state_grad);
    if (skipped_[s]) pool_.give(skipped_[s]);
    pass_to_skip(stage.skip == s ? -1 : stage.skip);
    grad_ = next;
  }

  // The gradient of this sum is also one of the input of stage `target`; its buffer is kept or added for that.
  void pass_to_skip(int target) {
    if (target < 0) {
      pool_.give(grad_);
    } else if (skipped_[target]) {
      add(skipped_[target], grad_);
      pool_.give(grad_);
    } else {
      skipped_[target] = grad_;
    }
  }

  void add(float* target, const float* source) {
    group_.crew.each(group_.images, [&](int64_t image, Space& space) {
      Stopwatch watch(space, kMove);
      const int64_t floats = run_.plan.geometry.image();
      group_.kernels.add_blocked(target + image * floats, source + image * floats, floats);
    });
  }

  void add_inject() {
    if (!inject_) {
      inject_ = pool_.take();
      std::fill_n(inject_, group_.images * run_.plan.geometry.image(), 0.0f);
    }
    add(inject_, grad_);
  }

  const BackwardRun& run_;
  const Group& group_;
  const int stages_, copy_;
  const int64_t buffer_floats_;
  BufferPool pool_;
  float* grad_ = nullptr;
  float* input_ = nullptr;
  float* inject_ = nullptr;
  std::vector<float*> skipped_;  // per stage: gradient of its input that came through skips
};

}  // namespace

Reversal reversal_of(const BackwardRun& run, int iteration, int s) {
  const std::vector<Stage>& stages = run.plan.stages;
  const bool first_of_call = run.from_start && iteration == 0 && s == 0;
  const bool input = !first_of_call || run.wants_input;
  const bool masked = input && (s > 0 ? stages[s - 1].relu : !first_of_call && stages.back().relu);
  return {input, masked, masked || run.wants_weight[s]};
}

float* weight_sums_of(const BackwardRun& run, int copy, int s) {
  float* sums = run.weight_sums + copy * run.copy_floats;
  for (int earlier = 0; earlier < s; ++earlier) sums += run.plan.stage_plans[earlier].filter_floats;
  return sums;
}

double* bias_sums_of(const BackwardRun& run, int copy, int s) {
  const int64_t stages = static_cast<int64_t>(run.plan.stages.size());
  return run.bias_sums + (copy * stages + s) * run.plan.geometry.blocks * kBlock;
}

void run_backward(const BackwardRun& run, int64_t first_image, int64_t last_image, Workforce& workforce) {
  workforce.run(*run.kernels, run.plan, first_image, last_image, [&](const Group& group, float* buffers, int copy) {
    if (run.plan.backward_bands.step)
      backward_in_bands(run, group, buffers, copy);
    else
      GroupBackward(run, group, buffers, copy)();
  });
}

}  // namespace rdk
