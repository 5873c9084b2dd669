// The cases of residual.cuh: blocks of several convolutions, their grids, injects, kept states and tapes. Called by
// check.cpp.
#include <algorithm>
#include <numeric>
#include <utility>

#include "check.h"

namespace rdk::cuda::check {

namespace {

struct Run {
  int iterations, multiprocessors;
  bool inject = false;
  int tape_first = -1;   // tapes of the iterations from there on; -1: none
  bool partial = false;  // all but the last stage of the last iteration, and no output: the tape alone
};

// Every second state is kept.
const char* blocks_case(const Problem& problem, const std::vector<ResidualStage>& stages, const Run& run) {
  int common = 0, largest = 0;
  for (const ResidualStage& stage : stages) {
    common = std::gcd(common, stage.dilation);
    largest = std::max(largest, stage.dilation);
  }
  const ResidualPlan plan = residual_plan(problem.images, problem.channels, problem.height, problem.width, common,
                                          largest, run.multiprocessors);
  if (plan.refusal != nullptr) return plan.refusal;
  const auto elements = static_cast<int64_t>(problem.elements());
  const int count = static_cast<int>(stages.size());
  const Halves input = random_map(problem, -2, 2), inject = random_map(problem, -2, 2);
  std::vector<std::vector<float>> weights(count), biases(count);
  std::vector<Halves> packed_weights(count);
  ResidualParams p = residual_params(plan, problem.images, problem.channels);
  for (int stage = 0; stage < count; ++stage) {
    weights[stage] = random_weights(problem, 1.5 / (kTaps * problem.channels));
    packed_weights[stage] = packed(problem, weights[stage], plan.tile.rows());
    for (int channel = 0; channel < problem.channels; ++channel)
      biases[stage].push_back(static_cast<float>(static_cast<int>(random_source() % 5) - 2));
    p.stage[stage] = stages[stage];
    p.stage[stage].dilation /= plan.grids.split;
    p.stage[stage].weights = packed_weights[stage].data();
    p.stage[stage].bias = biases[stage].data();
  }
  const int stage_count = run.iterations * count - run.partial;
  const int states = (run.iterations - run.partial) / 2;
  const int tapes = run.tape_first < 0 ? 0 : (run.iterations - run.tape_first) * (count - 1);
  // one map more than is asked for, which must stay as it is
  Halves output(elements, 0x7fff), kept(elements * (states + 1), 0x7fff), taped(elements * (tapes + 1), 0x7fff);
  p.input = input.data();
  p.inject = run.inject ? inject.data() : nullptr;
  p.kept = kept.data(), p.kept_stride = elements;
  p.tapes = tapes > 0 ? taped.data() : nullptr, p.tape_stride = elements, p.tape_first = run.tape_first;
  p.output = run.partial ? nullptr : output.data();
  p.stages = count, p.stage_count = stage_count;
  for (int iteration = 1; iteration < run.iterations - run.partial; iteration += 2)
    p.keep[iteration / 32] |= 1u << (iteration % 32);
  const char* error = problem.bf16 ? launch_residual_bf16(p, plan.tile, plan.blocks, nullptr)
                                   : launch_residual_fp16(p, plan.tile, plan.blocks, nullptr);
  if (error != nullptr) return error;

  Halves state = input, before;
  const auto differs_at = [&](const Halves& maps, int64_t number) {
    return differs(Halves(maps.begin() + number * elements, maps.begin() + (number + 1) * elements), state);
  };
  for (int step = 0; step < stage_count; ++step) {
    const int iteration = step / count, stage = step % count;
    Halves after = plain_stage(problem, stages[stage], state, weights[stage], biases[stage],
                               run.inject && stage == 0 ? &inject : nullptr, before);
    before = std::move(state);
    state = std::move(after);
    if (stage == count - 1) {
      if (const char* wrong = iteration % 2 == 1 ? differs_at(kept, iteration / 2) : nullptr) return wrong;
    } else if (tapes > 0 && iteration >= run.tape_first) {
      if (const char* wrong = differs_at(taped, (iteration - run.tape_first) * (count - 1) + stage)) return wrong;
    }
  }
  if (kept[elements * states] != 0x7fff) return "a state was written that was not asked for";
  if (taped[elements * tapes] != 0x7fff) return "a tape was written that was not asked for";
  return run.partial ? nullptr : differs(output, state);
}

}  // namespace

const char* residual_case(const std::string& name) {
  const std::vector<ResidualStage> linear = {{nullptr, nullptr, 1, 0, 0}}, convolution = {{nullptr, nullptr, 1, 1, 0}};
  if (name == "residual_1") return blocks_case({3, 32, 8, 9}, block(1, 1), {1, 2});
  if (name == "residual_2") return blocks_case({1, 128, 16, 16}, block(1, 1), {2, 1, true});
  if (name == "residual_5") return blocks_case({1, 80, 9, 9}, joined(block(1, 1), block(1, 1)), {5, 1, false, 3});
  // the maze network's form: four grids of 16x16 at dilation 2
  if (name == "residual_dilated") return blocks_case({1, 128, 32, 32}, block(2, 2), {1, 3});
  // grids of 12x13, 12x12, 11x13 and 11x12 one after another on the same multiprocessor
  if (name == "residual_uneven") return blocks_case({1, 16, 23, 25}, block(2, 2), {2, 1, true});
  // three stages change the map that an iteration begins with
  if (name == "residual_recall") return blocks_case({1, 64, 9, 8, 1, false}, joined(linear, block(2, 3)), {5, 1, true});
  if (name == "residual_mixed") return blocks_case({1, 16, 29, 27}, block(4, 2), {2, 3});
  if (name == "residual_many") return blocks_case({1, 48, 5, 6, 1, false}, convolution, {40, 1});
  if (name == "residual_tape") return blocks_case({2, 112, 11, 11}, joined(linear, block(1, 1)), {1, 1, true, 0, true});
  return "no such case";
}

}  // namespace rdk::cuda::check
