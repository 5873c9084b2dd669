// The forward of one group: the state stays in blocked buffers from the first iteration to the last; maps too large for
// that are left to forward_bands.cpp. Called by bindings_runs.cpp and tests/check_runs.cpp.
#include "buffer_pool.h"
#include "forward.h"

namespace rdk {
namespace {

bool added_later(const std::vector<Stage>& stages, int input, int after) {
  for (std::size_t s = after; s < stages.size(); ++s)
    if (stages[s].skip == input) return true;
  return false;
}

class GroupForward {
 public:
  GroupForward(const ForwardRun& run, const Group& group, float* buffers)
      : run_(run),
        group_(group),
        pool_(buffers, run.plan.group * run.plan.geometry.image(), run.plan.forward_buffers) {}

  void operator()() {
    float* state = pool_.take();
    load_group(group_, run_.state, state);
    if (run_.inject.data) {
      inject_ = pool_.take();
      load_group(group_, run_.inject, inject_);
    }
    for (int iteration = 0; iteration < run_.iterations; ++iteration) {
      state = iterate(iteration, state);
      if (run_.states[iteration].data) store_group(group_, run_.states[iteration], state);
    }
  }

 private:
  float* iterate(int iteration, float* state) {
    const std::vector<Stage>& stages = run_.plan.stages;
    const int count = static_cast<int>(stages.size());
    const int last = iteration + 1 == run_.iterations ? run_.stages_of_last : count;
    std::vector<float*> entered(count, nullptr);
    for (int s = 0; s < last; ++s) {
      const int c = iteration * count + s;
      Epilogue epilogue = epilogue_of(run_, c);
      int addends = 0;
      entered[s] = state;
      if (s == 0 && inject_) epilogue.addends[addends++] = inject_;
      float* skip = stages[s].skip >= 0 ? entered[stages[s].skip] : nullptr;
      if (skip) epilogue.addends[addends++] = skip;
      // a skip that is added for the last time gives its buffer to the sum
      const bool reuse = skip && skip != state && !added_later(stages, stages[s].skip, s + 1);
      float* next = reuse ? skip : pool_.take();
      convolve(group_, run_.plan.stage_plans[s], run_.parameters[c].filter, state, next, epilogue);
      const MapView& tape = run_.tapes[c];
      if (tape.data) store_group(group_, tape, next);
      if (!added_later(stages, s, s + 1)) pool_.give(state);
      if (skip && skip != state && !reuse && !added_later(stages, stages[s].skip, s + 1)) pool_.give(skip);
      state = next;
    }
    return state;
  }

  const ForwardRun& run_;
  const Group& group_;
  BufferPool pool_;
  float* inject_ = nullptr;
};

}  // namespace

Epilogue epilogue_of(const ForwardRun& run, int c) {
  const StageParameters& parameters = run.parameters[c];
  return {parameters.bias,
          parameters.mean,
          parameters.scale,
          parameters.shift,
          {},
          nullptr,
          run.plan.stages[c % run.plan.stages.size()].relu};
}

void run_forward(const ForwardRun& run, int64_t first_image, int64_t last_image, Workforce& workforce) {
  workforce.run(*run.kernels, run.plan, first_image, last_image, [&](const Group& group, float* buffers, int) {
    if (run.plan.forward_bands.step)
      forward_in_bands(run, group, buffers);
    else
      GroupForward(run, group, buffers)();
  });
}

}  // namespace rdk
