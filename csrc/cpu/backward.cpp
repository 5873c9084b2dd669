// The backward of one group: the gradient stays in blocked buffers; weight gradients are summed at the Winograd
// points. Called by bindings_runs.cpp and tests/check_runs.cpp.
#include "backward.h"

#include <algorithm>

#include "buffer_pool.h"

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
    const Stage& stage = run_.plan.stages[s];
    const bool first_of_call = run_.from_start && iteration == 0 && s == 0;
    const bool wants_input = !first_of_call || run_.wants_input;
    const bool masked = s > 0 ? run_.plan.stages[s - 1].relu : !first_of_call && run_.plan.stages[stages_ - 1].relu;
    if (s == 0 && run_.inject_sum.data) add_inject();
    if (run_.wants_bias[s]) add_bias(s);
    if (run_.wants_weight[s] || (masked && wants_input))
      load_group(group_, run_.inputs[iteration * stages_ + s], input_);
    if (run_.wants_weight[s]) add_weight(s);
    if (!wants_input) return;

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
    if (masked) epilogue.mask = input_;
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

  void add_bias(int s) {
    const Geometry& geometry = run_.plan.geometry;
    double* sums = run_.bias_sums + (static_cast<int64_t>(copy_) * stages_ + s) * geometry.blocks * kBlock;
    group_.crew.each(geometry.blocks, [&](int64_t block, Space& space) {
      Stopwatch watch(space, kMove);
      for (int image = 0; image < group_.images; ++image)
        group_.kernels.sum_pixels(
            {nullptr, 0, 0, 0, grad_ + image * geometry.image() + geometry.origin() + block * geometry.block(),
             geometry.block(), geometry.row(), kBlock, geometry.height, geometry.width},
            sums + block * kBlock);
    });
  }

  void add_weight(int s) {
    const Plan& plan = run_.plan;
    const StagePlan& stage = plan.stage_plans[s];
    const Geometry& geometry = plan.geometry;
    const Grid grid = make_grid(geometry, stage.dilation);
    float* sums = run_.weight_sums + copy_ * run_.copy_floats;
    for (int earlier = 0; earlier < s; ++earlier) sums += plan.stage_plans[earlier].filter_floats;
    Space& shared = group_.crew.spaces[0];
    const int64_t total = group_.images * stage.tiles();
    const int64_t pieces = (total + plan.chunk - 1) / plan.chunk, size = (total + pieces - 1) / pieces;
    Chunk chunk;
    for (int64_t first = 0; first < total; first += size) {
      const int64_t count = std::min(size, total - first);
      make_chunk(plan, stage, first, first + count, chunk);
      const Points v = make_points(plan, stage, shared.a, count), w = make_points(plan, stage, shared.b, count);
      const int workers = group_.crew.size;
      group_.crew.each(workers, [&](int64_t number, Space& space) {
        Stopwatch watch(space, kTransformIn);
        for (Chunk::Part part : chunk.parts) {
          const int begin = static_cast<int>(number * part.strips / workers);
          part.strips = static_cast<int>((number + 1) * part.strips / workers) - begin;
          part.first_strip += begin;
          group_.kernels.input_transform[part.kind](input_, grid, chunk.tiles(part), part_of(v, part));
          group_.kernels.gradient_transform[part.kind](grad_, grid, chunk.tiles(part), part_of(w, part));
        }
      });
      group_.crew.each(workers, [&](int64_t number, Space& space) {
        Stopwatch watch(space, kWeightProduct);
        const int points = stage.filter_points();
        const int begin = static_cast<int>(number * points / workers),
                  end = static_cast<int>((number + 1) * points / workers);
        group_.kernels.weight_product(
            {v, w, sums, geometry.filter_point(), geometry.blocks, begin, end - begin, chunk.ranges.data()});
      });
    }
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

void run_backward(const BackwardRun& run, int64_t first_image, int64_t last_image, Workforce& workforce) {
  workforce.run(*run.kernels, run.plan, first_image, last_image,
                [&](const Group& group, float* buffers, int copy) { GroupBackward(run, group, buffers, copy)(); });
}

}  // namespace rdk
