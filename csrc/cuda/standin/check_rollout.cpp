// The cases of rollout.cuh: several convolutions of few maps over blocks that run at the same time. Called by
// check.cpp.
#include <algorithm>
#include <utility>

#include "check.h"

namespace rdk::cuda::check {

namespace {

struct Run {
  int iterations, multiprocessors;
  bool inject = false;
  int every = 0;                                  // which states are kept: 0 none
  int expected_blocks = 0, expected_columns = 0;  // of the plan: what the case is about
};

const char* rollout(const Problem& problem, const std::vector<ResidualStage>& stages, const Run& run) {
  const Patches patches{problem.height, problem.width};
  const int count = static_cast<int>(stages.size());
  int largest = 0;
  for (const ResidualStage& stage : stages) largest = std::max(largest, stage.dilation);
  const RolloutPlan plan = rollout_plan(problem.images, problem.channels, patches, largest, count, run.multiprocessors);
  if (plan.refusal != nullptr) return plan.refusal;
  if (plan.blocks != run.expected_blocks || plan.tile.n != run.expected_columns) return "the plan is another";
  const auto elements = static_cast<int64_t>(problem.elements());
  Chain chain = random_chain(problem, count, plan.tile.n);
  RolloutParams p = rollout_params(plan, problem.images, problem.channels, patches, largest);
  for (int stage = 0; stage < count; ++stage) {
    p.stage[stage] = stages[stage];
    p.stage[stage].weights = chain.packed_weights[stage].data();
    p.stage[stage].bias = stage % 3 == 2 ? nullptr : chain.biases[stage].data();
    if (stage % 3 == 2) std::fill(chain.biases[stage].begin(), chain.biases[stage].end(), 0.0f);
  }
  const int states = run.every == 0 ? 0 : run.iterations / run.every;
  const bool last_is_kept = states > 0 && run.iterations % run.every == 0;
  uint32_t arrivals = 0;
  // one map more than is asked for, which must stay as it is
  Halves output(elements, 0x7fff), kept(elements * (states + 1), 0x7fff), workspace(2 * elements, 0x7fff);
  p.input = chain.input.data();
  p.inject = run.inject ? chain.inject.data() : nullptr;
  p.workspace = workspace.data();
  p.kept = kept.data(), p.kept_stride = elements;
  p.output = last_is_kept ? nullptr : output.data();
  p.arrivals = &arrivals;
  p.stages = count, p.stage_count = run.iterations * count;
  for (int iteration = run.every - 1; states > 0 && iteration < run.iterations; iteration += run.every)
    p.keep[iteration / 32] |= 1u << (iteration % 32);
  const char* error = problem.bf16 ? launch_rollout_bf16(p, plan.tile, plan.blocks, nullptr)
                                   : launch_rollout_fp16(p, plan.tile, plan.blocks, nullptr);
  if (error != nullptr) return error;

  Halves state = chain.input, before;
  for (int step = 0; step < p.stage_count; ++step) {
    const int iteration = step / count, stage = step % count;
    Halves after = plain_stage(problem, stages[stage], state, chain.weights[stage], chain.biases[stage],
                               run.inject && stage == 0 ? &chain.inject : nullptr, before);
    before = std::move(state);
    state = std::move(after);
    if (stage < count - 1 || states == 0 || (iteration + 1) % run.every != 0) continue;
    const auto from = kept.begin() + elements * (iteration / run.every);
    if (const char* wrong = differs(Halves(from, from + elements), state)) return wrong;
  }
  if (kept[elements * states] != 0x7fff) return "a state was written that was not asked for";
  return last_is_kept ? nullptr : differs(output, state);
}

}  // namespace

const char* rollout_case(const std::string& name) {
  const std::vector<ResidualStage> convolution = {{nullptr, nullptr, 1, 1, 0}};
  if (name == "rollout_1") return rollout({1, 32, 13, 11}, block(1, 1), {1, 9, false, 0, 4, 32});
  if (name == "rollout_2") return rollout({1, 64, 8, 9}, block(1, 1), {2, 8, true, 2, 4, 32});
  if (name == "rollout_5") return rollout({1, 48, 16, 7}, convolution, {5, 7, false, 2, 4, 32});
  if (name == "rollout_dilated") return rollout({1, 32, 15, 12, 1, false}, block(2, 2), {2, 8, true, 0, 4, 32});
  if (name == "rollout_recall") {
    const std::vector<ResidualStage> stages = {
        {nullptr, nullptr, 1, 0, 0}, {nullptr, nullptr, 2, 1, 0}, {nullptr, nullptr, 3, 1, 1}};
    return rollout({1, 16, 9, 17}, stages, {5, 6, true, 1, 6, 16});
  }
  // the maze network's form: eight groups of 16 channels
  if (name == "rollout_maze") return rollout({1, 128, 8, 8}, joined(block(1, 1), block(1, 1)), {2, 8, false, 0, 8, 16});
  // the roll-out of the mazes as it would run on an H100: 128 of its 132 multiprocessors
  if (name == "rollout_chip")
    return rollout({1, 128, 32, 32}, joined(block(1, 1), block(1, 1)), {2, 132, false, 1, 128, 16});
  // two images of two patches each, two patches a block; a quarter of the columns are no channels
  if (name == "rollout_images") return rollout({2, 48, 10, 5}, block(1, 1), {2, 2, true, 0, 2, 64});
  if (name == "rollout_wide") return rollout({1, 64, 17, 8, 1, false}, convolution, {5, 2, true, 5, 2, 64});
  return "no such case";
}

}  // namespace rdk::cuda::check
