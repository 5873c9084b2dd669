// The backward of one large image: band by band down the map, from the last convolution of the run to its first, each
// some rows behind the one whose gradient it reads. Called by backward.cpp.
#include "backward.h"
#include "band_walk.h"
#include "parameter_sums.h"

namespace rdk {
namespace {

class BandBackward {
 public:
  BandBackward(const BackwardRun& run, const Group& group, float* buffers, int copy)
      : run_(run),
        count_(static_cast<int>(run.plan.stages.size())),
        copy_(copy),
        walk_(group, run.plan.backward_bands, backward_stages(run.plan, run.iterations * count_), buffers) {}

  void operator()() {
    walk_.run(run_.grad, [&](int c, int first, int last) { reverse_rows(c, first, last); });
  }

 private:
  // Rows of the gradient of a stage's sum, in window c, to those of the sum before it.
  void reverse_rows(int c, int first, int last) {
    const int iteration = run_.iterations - 1 - c / count_, s = count_ - 1 - c % count_;
    const Reversal wants = reversal_of(run_, iteration, s);
    const Group& group = walk_.group(last - first);
    const StagePlan stage = walk_.stage(c, run_.plan.stage_plans[s], first, last);
    float* grad = walk_.rows(c, first);
    if (s == 0 && run_.inject_sum.data) walk_.add_to(run_.inject_sum, c, first, last);
    if (run_.wants_bias[s]) add_bias_sums(group, grad, bias_sums_of(run_, copy_, s));
    const float* input = nullptr;
    if (wants.reads_input)
      input = walk_.load_beside(run_.inputs[iteration * count_ + s], 0, first, last, stage.dilation);
    if (run_.wants_weight[s]) add_weight_sums(group, stage, input, grad, weight_sums_of(run_, copy_, s));
    if (!wants.input) return;

    Epilogue epilogue{};
    int addends = 0;
    const std::vector<int>& skipped = walk_.order().stage(c).addends;
    if (skipped.size() == 1) epilogue.addends[addends++] = walk_.rows(skipped[0], first);
    if (skipped.size() > 1) epilogue.addends[addends++] = walk_.sum_beside(skipped, 2, first, last);
    if (s == 0 && run_.state_grads[iteration].data)
      epilogue.addends[addends++] = walk_.load_beside(run_.state_grads[iteration], 1, first, last, 0);
    if (wants.masked) epilogue.mask = input;
    convolve(group, stage, run_.filters[iteration * count_ + s], grad, walk_.rows(c + 1, first), epilogue);
    if (c + 1 == walk_.order().convolutions() && run_.grad_input.data) walk_.store(run_.grad_input, c + 1, first, last);
  }

  const BackwardRun& run_;
  const int count_, copy_;
  BandWalk walk_;
};

}  // namespace

void backward_in_bands(const BackwardRun& run, const Group& group, float* buffers, int copy) {
  BandBackward(run, group, buffers, copy)();
}

}  // namespace rdk
