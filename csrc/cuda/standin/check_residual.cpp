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

// Every second state is kept. One map more than is asked for must stay as it is.
struct Results {
  int states, tapes;
  Halves output, kept, taped;

  Results(const Problem& problem, int stages, const Run& run)
      : states((run.iterations - run.partial) / 2),
        tapes(run.tape_first < 0 ? 0 : (run.iterations - run.tape_first) * (stages - 1)),
        output(problem.elements(), 0x7fff),
        kept(problem.elements() * (states + 1), 0x7fff),
        taped(problem.elements() * (tapes + 1), 0x7fff) {}
};

const char* compare(const Problem& problem, const std::vector<ResidualStage>& stages, const Run& run,
                    const Chain& chain, const Results& results) {
  const auto elements = static_cast<int64_t>(problem.elements());
  const int count = static_cast<int>(stages.size());
  Halves state = chain.input, before;
  const auto differs_at = [&](const Halves& maps, int64_t number) {
    return differs(Halves(maps.begin() + number * elements, maps.begin() + (number + 1) * elements), state);
  };
  for (int step = 0; step < run.iterations * count - run.partial; ++step) {
    const int iteration = step / count, stage = step % count;
    Halves after = plain_stage(problem, stages[stage], state, chain.weights[stage], chain.biases[stage],
                               run.inject && stage == 0 ? &chain.inject : nullptr, before);
    before = std::move(state);
    state = std::move(after);
    if (stage == count - 1) {
      if (const char* wrong = iteration % 2 == 1 ? differs_at(results.kept, iteration / 2) : nullptr) return wrong;
    } else if (results.tapes > 0 && iteration >= run.tape_first) {
      if (const char* wrong = differs_at(results.taped, (iteration - run.tape_first) * (count - 1) + stage))
        return wrong;
    }
  }
  if (results.kept[elements * results.states] != 0x7fff) return "a state was written that was not asked for";
  if (results.taped[elements * results.tapes] != 0x7fff) return "a tape was written that was not asked for";
  return run.partial ? nullptr : differs(results.output, state);
}

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
  const Chain chain = random_chain(problem, count, plan.tile.rows());
  ResidualParams p = residual_params(plan, problem.images, problem.channels);
  for (int stage = 0; stage < count; ++stage) {
    p.stage[stage] = stages[stage];
    p.stage[stage].dilation /= plan.grids.split;
    p.stage[stage].weights = chain.packed_weights[stage].data();
    p.stage[stage].bias = chain.biases[stage].data();
  }
  Results results(problem, count, run);
  p.input = chain.input.data();
  p.inject = run.inject ? chain.inject.data() : nullptr;
  p.kept = results.kept.data(), p.kept_stride = elements;
  p.tapes = results.tapes > 0 ? results.taped.data() : nullptr;
  p.tape_stride = elements, p.tape_first = run.tape_first;
  p.output = run.partial ? nullptr : results.output.data();
  p.stages = count, p.stage_count = run.iterations * count - run.partial;
  for (int iteration = 1; iteration < run.iterations - run.partial; iteration += 2)
    p.keep[iteration / 32] |= 1u << (iteration % 32);
  const char* error = problem.bf16 ? launch_residual_bf16(p, plan.tile, plan.blocks, nullptr)
                                   : launch_residual_fp16(p, plan.tile, plan.blocks, nullptr);
  return error != nullptr ? error : compare(problem, stages, run, chain, results);
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
