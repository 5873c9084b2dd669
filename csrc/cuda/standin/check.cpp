// A program that runs each kernel on small integer problems through the stand-in and compares with plain loops,
// exactly; built and run by tests/test_cuda_standin.py, also under ThreadSanitizer and with a kernel broken on purpose.
// Usage: check [--late] [--watchdog seconds] case …; prints one line per case, exits with 1 at the first that is wrong.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "check.h"

using namespace rdk::cuda;
using namespace rdk::cuda::check;

namespace {

// Bias, skip, ReLU and mask; with `affine` also scale, shift and inject; with `statistics` those of the sums.
const char* conv_case(const Problem& problem, int multiprocessors, bool affine = false, bool statistics = false) {
  const ConvPlan plan = conv_plan(problem.images, problem.channels, problem.grid(), multiprocessors);
  const Halves input = random_map(problem, -3, 3), skip = random_map(problem, -3, 3), mask = random_map(problem, -1, 1);
  const std::vector<float> weights = random_weights(problem, 0.1);
  const Halves packed_weights = packed(problem, weights, plan.tile.rows());
  std::vector<float> bias(problem.channels);
  for (float& value : bias) value = static_cast<float>(static_cast<int>(random_source() % 7) - 3);
  Halves output(problem.elements(), 0x7fff), expected(problem.elements());
  ConvParams p = conv_params(plan, problem.images, problem.channels, problem.grid());
  p.input = input.data(), p.weights = packed_weights.data(), p.bias = bias.data();
  p.skip = skip.data(), p.mask = mask.data(), p.output = output.data(), p.relu = 1;
  const Halves inject = random_map(problem, -3, 3);
  std::vector<float> scale(problem.channels, 1.0f), shift(problem.channels, 0.0f);
  std::vector<float> groups(static_cast<size_t>(plan.groups) * 3 * problem.channels, __builtin_nanf(""));
  if (affine) {
    for (float& value : scale) value = static_cast<float>(1 << random_source() % 3);
    for (float& value : shift) value = static_cast<float>(static_cast<int>(random_source() % 7) - 3);
    p.scale = scale.data(), p.shift = shift.data(), p.inject = inject.data();
  }
  if (statistics) p.statistics = groups.data();
  const char* error = problem.bf16 ? launch_conv_bf16(p, plan.tile, plan.blocks, nullptr)
                                   : launch_conv_fp16(p, plan.tile, plan.blocks, nullptr);
  if (error != nullptr) return error;
  const std::vector<float> sums = plain_convolution(problem, input, weights);
  for (size_t i = 0; i < expected.size(); ++i) {
    float z = widen(narrow(sums[i] + bias[i % problem.channels], problem), problem);
    z = z * scale[i % problem.channels] + shift[i % problem.channels] + (affine ? widen(inject[i], problem) : 0.0f);
    z += widen(skip[i], problem);
    expected[i] = narrow(z <= 0 || widen(mask[i], problem) <= 0 ? 0.0f : z, problem);
  }
  if (statistics) {
    for (int channel = 0; channel < problem.channels; ++channel) {
      double count = 0, sum = 0, squares = 0, mean = 0, spread = 0;
      for (int group = 0; group < plan.groups; ++group) {
        const float* of_group = groups.data() + static_cast<size_t>(group) * 3 * problem.channels + channel;
        count += of_group[0], sum += static_cast<double>(of_group[0]) * of_group[problem.channels];
      }
      const double pixels = static_cast<double>(problem.elements()) / problem.channels;
      if (count != pixels) return "the statistics count other pixels";
      for (int group = 0; group < plan.groups; ++group) {
        const float* of_group = groups.data() + static_cast<size_t>(group) * 3 * problem.channels + channel;
        const double away = of_group[problem.channels] - sum / pixels;
        squares += of_group[2 * problem.channels] + of_group[0] * away * away;
      }
      for (size_t i = channel; i < sums.size(); i += problem.channels)
        mean += widen(narrow(sums[i] + bias[channel], problem), problem) / pixels;
      for (size_t i = channel; i < sums.size(); i += problem.channels) {
        const double away = widen(narrow(sums[i] + bias[channel], problem), problem) - mean;
        spread += away * away;
      }
      if (std::abs(sum / pixels - mean) > 1e-5 * (1 + std::abs(mean)) ||
          std::abs(squares - spread) > 1e-5 * (1 + spread))
        return "the statistics are wrong";
    }
  }
  return differs(output, expected);
}

// Iterations forward, every second state kept. With `inject` the sums pass through the finishing pass.
const char* resident_case(const Problem& problem, int iterations, bool with_inject, int multiprocessors) {
  const ResidentPlan plan = resident_plan(problem.images, problem.channels, problem.grid(), multiprocessors);
  if (plan.refusal != nullptr) return plan.refusal;
  const Halves input = random_map(problem, -2, 2), inject = random_map(problem, -2, 2);
  const std::vector<float> weights = random_weights(problem, 3.0 / (kTaps * problem.channels));
  const Halves packed_weights = packed(problem, weights, kRows);
  std::vector<float> bias(problem.channels);
  for (float& value : bias) value = static_cast<float>(static_cast<int>(random_source() % 5) - 2);
  const int kept_states = iterations / 2;
  Halves output(problem.elements(), 0x7fff), kept(problem.elements() * (kept_states + 1), 0x7fff);
  ResidentParams p = resident_params(plan, problem.images, problem.channels, problem.grid());
  p.input = input.data(), p.weights = packed_weights.data(), p.bias = bias.data();
  p.inject = with_inject ? inject.data() : nullptr;
  p.kept = kept.data(), p.kept_stride = static_cast<int64_t>(problem.elements()), p.output = output.data();
  p.iterations = iterations, p.relu = 1;
  for (int iteration = 1; iteration < iterations; iteration += 2) p.keep[iteration / 32] |= 1u << (iteration % 32);
  const char* error = problem.bf16 ? launch_resident_bf16(p, plan.tile, plan.blocks, nullptr)
                                   : launch_resident_fp16(p, plan.tile, plan.blocks, nullptr);
  if (error != nullptr) return error;
  Halves state = input;
  for (int iteration = 0; iteration < iterations; ++iteration) {
    const std::vector<float> sums = plain_convolution(problem, state, weights);
    for (size_t i = 0; i < state.size(); ++i) {
      float z = sums[i] + bias[i % problem.channels];
      if (with_inject) z = widen(narrow(z, problem), problem) + widen(inject[i], problem);
      state[i] = narrow(z <= 0 ? 0.0f : z, problem);
    }
    if (iteration % 2 == 0) continue;
    const auto from = kept.begin() + static_cast<int64_t>(problem.elements()) * (iteration / 2);
    if (const char* wrong = differs(Halves(from, from + static_cast<int64_t>(problem.elements())), state)) return wrong;
  }
  if (kept[problem.elements() * kept_states] != 0x7fff) return "a state was written that was not asked for";
  return differs(output, state);
}

// Iterations in reverse: added gradients and masks of every iteration, and those of the last kept apart.
const char* reverse_case(const Problem& problem, int iterations, int multiprocessors) {
  const ResidentPlan plan = resident_plan(problem.images, problem.channels, problem.grid(), multiprocessors);
  if (plan.refusal != nullptr) return plan.refusal;
  const Halves input = random_map(problem, -2, 2), add_last = random_map(problem, -2, 2),
               mask_last = random_map(problem, -1, 1);
  Halves add, mask;
  for (int iteration = 0; iteration < iterations - 1; ++iteration) {
    const Halves one = random_map(problem, -2, 2), two = random_map(problem, -1, 1);
    add.insert(add.end(), one.begin(), one.end());
    mask.insert(mask.end(), two.begin(), two.end());
  }
  const std::vector<float> weights = random_weights(problem, 3.0 / (kTaps * problem.channels));
  const Halves packed_weights = packed(problem, weights, kRows);
  const auto elements = static_cast<int64_t>(problem.elements());
  Halves output(problem.elements(), 0x7fff), kept(problem.elements() * iterations, 0x7fff);
  ResidentParams p = resident_params(plan, problem.images, problem.channels, problem.grid());
  p.input = input.data(), p.weights = packed_weights.data();
  p.add_last = add_last.data(), p.mask_last = mask_last.data();
  if (iterations > 1) {  // the maps of iteration 0 lie last, as states do in a backward
    p.add = add.data() + (iterations - 2) * elements, p.mask = mask.data() + (iterations - 2) * elements;
    p.add_stride = p.mask_stride = -elements;
  }
  p.kept = kept.data(), p.kept_stride = elements, p.output = output.data(), p.iterations = iterations;
  for (int iteration = 0; iteration < iterations - 1; ++iteration) p.keep[iteration / 32] |= 1u << (iteration % 32);
  const char* error = problem.bf16 ? launch_resident_bf16(p, plan.tile, plan.blocks, nullptr)
                                   : launch_resident_fp16(p, plan.tile, plan.blocks, nullptr);
  if (error != nullptr) return error;
  Halves gradient = input;
  for (int iteration = 0; iteration < iterations; ++iteration) {
    const std::vector<float> sums = plain_convolution(problem, gradient, weights);
    const uint16_t* added =
        iteration == iterations - 1 ? add_last.data() : add.data() + (iterations - 2 - iteration) * elements;
    const uint16_t* masking =
        iteration == iterations - 1 ? mask_last.data() : mask.data() + (iterations - 2 - iteration) * elements;
    for (size_t i = 0; i < gradient.size(); ++i) {
      const float z = widen(narrow(sums[i], problem), problem) + widen(added[i], problem);
      gradient[i] = narrow(widen(masking[i], problem) <= 0 ? 0.0f : z, problem);
    }
    if (iteration == iterations - 1) continue;
    if (const char* wrong =
            differs(Halves(kept.begin() + iteration * elements, kept.begin() + (iteration + 1) * elements), gradient))
      return wrong;
  }
  return differs(output, gradient);
}

// Two runs of pairs into the same partial sums.
const char* weight_gradient_case(const Problem& problem, int pairs, int multiprocessors) {
  const WeightGradientPlan plan =
      weight_gradient_plan(problem.images, problem.channels, problem.grid(), multiprocessors);
  const int channels = problem.channels, tiles = plan.channel_tiles * plan.channel_tiles;
  std::vector<float> partials(static_cast<size_t>(plan.splits) * tiles * kTaps * kRows * kRows, __builtin_nanf(""));
  std::vector<double> expected(static_cast<size_t>(channels) * channels * kTaps, 0.0);
  const auto elements = static_cast<int64_t>(problem.elements());
  for (int run = 0; run < 2; ++run) {
    std::vector<Halves> grads, states;
    Halves later_grads, earlier_states;  // as the backward holds them: gradients forward in pairs, states backward
    for (int pair = 0; pair < pairs; ++pair) {
      grads.push_back(random_map(problem, -2, 2));
      states.push_back(random_map(problem, -2, 2));
      if (pair > 0) later_grads.insert(later_grads.end(), grads[pair].begin(), grads[pair].end());
    }
    for (int pair = pairs - 2; pair >= 0; --pair)
      earlier_states.insert(earlier_states.end(), states[pair].begin(), states[pair].end());
    WeightGradientParams p = weight_gradient_params(plan, problem.images, channels, problem.grid());
    p.grad_first = grads[0].data(), p.grad = later_grads.data(), p.grad_stride = elements;
    p.state_last = states[pairs - 1].data(), p.state_stride = -elements;
    p.state = pairs > 1 ? earlier_states.data() + (pairs - 2) * elements : nullptr;
    p.partials = partials.data(), p.pairs = pairs, p.accumulate = run;
    const char* error =
        problem.bf16 ? launch_weight_gradient_bf16(p, nullptr) : launch_weight_gradient_fp16(p, nullptr);
    if (error != nullptr) return error;
    for (int pair = 0; pair < pairs; ++pair)
      for (int image = 0; image < problem.images; ++image)
        for (int y = 0; y < problem.height; ++y)
          for (int x = 0; x < problem.width; ++x)
            for (int tap = 0; tap < kTaps; ++tap) {
              const int from_y = y + (tap / 3 - 1) * problem.dilation, from_x = x + (tap % 3 - 1) * problem.dilation;
              if (from_y < 0 || from_y >= problem.height || from_x < 0 || from_x >= problem.width) continue;
              const size_t at = ((static_cast<size_t>(image) * problem.height + y) * problem.width + x) * channels;
              const size_t from =
                  ((static_cast<size_t>(image) * problem.height + from_y) * problem.width + from_x) * channels;
              for (int o = 0; o < channels; ++o) {
                const float gradient = widen(grads[pair][at + o], problem);
                if (gradient == 0.0f) continue;
                for (int i = 0; i < channels; ++i)
                  expected[(static_cast<size_t>(o) * channels + i) * kTaps + tap] +=
                      gradient * widen(states[pair][from + i], problem);
              }
            }
  }
  for (int o = 0; o < channels; ++o)
    for (int i = 0; i < channels; ++i)
      for (int tap = 0; tap < kTaps; ++tap) {
        double found = 0;
        const size_t inside = (static_cast<size_t>(tap) * kRows + o % kRows) * kRows + i % kRows;
        for (int split = 0; split < plan.splits; ++split)
          found += partials[(static_cast<size_t>(split) * tiles + o / kRows * plan.channel_tiles + i / kRows) * kTaps *
                                kRows * kRows +
                            inside];
        if (found != expected[(static_cast<size_t>(o) * channels + i) * kTaps + tap])
          return "a weight gradient is wrong";
      }
  return nullptr;
}

// The widest map that the plan takes, where the ring has the fewest buffers.
const char* widest_weight_gradient_case(int dilation) {
  Problem problem{1, 16, 3, 1, dilation};
  while (weight_gradient_plan(1, 16, {3, problem.width + 1, dilation}, 1).buffers > 0) ++problem.width;
  return weight_gradient_case(problem, 1, 1);
}

const char* run_case(const std::string& name) {
  if (name == "conv") return conv_case({2, 32, 9, 11, 1}, 2);
  if (name == "conv_wide") return conv_case({2, 144, 7, 6, 2}, 3);
  if (name == "conv_fp16") return conv_case({3, 64, 8, 8, 1, false}, 1);
  if (name == "conv_affine") return conv_case({2, 80, 6, 9, 1}, 4, true);
  if (name == "conv_statistics") return conv_case({3, 48, 17, 11, 1}, 2, false, true);
  if (name == "resident_1") return resident_case({3, 32, 5, 9, 1}, 1, false, 2);
  if (name == "resident_2") return resident_case({1, 64, 15, 14, 1}, 2, false, 1);
  if (name == "resident_5") return resident_case({2, 64, 28, 28, 1}, 5, false, 2);
  if (name == "resident_inject") return resident_case({2, 48, 9, 7, 1}, 5, true, 1);
  if (name == "resident_dilated") return resident_case({2, 16, 17, 13, 2, false}, 5, false, 1);
  if (name == "resident_many") return resident_case({1, 16, 22, 21, 1}, 40, false, 1);
  if (name == "reverse_1") return reverse_case({2, 32, 6, 7, 1}, 1, 2);
  if (name == "reverse_2") return reverse_case({1, 48, 17, 18, 1, false}, 2, 1);
  if (name == "reverse_5") return reverse_case({3, 64, 10, 9, 1}, 5, 2);
  if (name == "weight_gradient_1") return weight_gradient_case({3, 32, 6, 7, 1}, 1, 2);
  if (name == "weight_gradient_2") return weight_gradient_case({1, 16, 30, 5, 1}, 2, 3);
  if (name == "weight_gradient_5") return weight_gradient_case({2, 80, 9, 8, 2, false}, 5, 9);
  if (name == "weight_gradient_ring") return weight_gradient_case({4, 64, 17, 16, 1}, 3, 1);
  if (name == "weight_gradient_widest") return widest_weight_gradient_case(1);
  if (name == "weight_gradient_widest_dilated") return widest_weight_gradient_case(4);
  if (name.starts_with("residual")) return residual_case(name);
  if (name.starts_with("rollout")) return rollout_case(name);
  return "no such case";
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string word = arguments[i];
    if (word == "--late") {
      standin::settings().late = true;
    } else if (word == "--watchdog") {
      standin::settings().watchdog_seconds = std::atof(arguments[++i]);
    } else {
      const char* wrong = run_case(word);
      std::printf("%s: %s\n", word.c_str(), wrong == nullptr ? "exact" : wrong);
      if (wrong != nullptr) return 1;
    }
  }
  return 0;
}
