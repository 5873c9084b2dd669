// What the cases of the check program share: small integer problems, plain loops, the exact comparison. Included by
// check.cpp and the files of cases beside it.
#pragma once

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../launchers.h"
#include "machine.h"

namespace rdk::cuda::check {

using Halves = std::vector<uint16_t>;

struct Problem {
  int images, channels, height, width, dilation = 1;
  bool bf16 = true;
  PaddedGrid grid() const { return {height, width, dilation}; }
  size_t elements() const { return static_cast<size_t>(images) * height * width * channels; }
};

inline std::mt19937 random_source(1);

inline float widen(uint16_t half, const Problem& problem) { return standin::half_to_float(half, problem.bf16); }
inline uint16_t narrow(float value, const Problem& problem) { return standin::float_to_half(value, problem.bf16); }

inline Halves random_map(const Problem& problem, int low, int high) {
  std::uniform_int_distribution<int> draw(low, high);
  Halves map(problem.elements());
  for (uint16_t& half : map) half = narrow(static_cast<float>(draw(random_source)), problem);
  return map;
}

// (out, in, tap); a few of each row are not zero, so that values stay small over iterations
inline std::vector<float> random_weights(const Problem& problem, double density) {
  std::uniform_real_distribution<double> draw(0, 1);
  std::vector<float> weights(static_cast<size_t>(problem.channels) * problem.channels * kTaps);
  for (float& weight : weights)
    weight = draw(random_source) < density ? (draw(random_source) < 0.5 ? -1.0f : 1.0f) : 0.0f;
  return weights;
}

inline Halves packed(const Problem& problem, const std::vector<float>& weights, int rows) {
  const PackedWeights layout{rows};
  const int slabs = problem.channels / kChannelStep;
  Halves result(static_cast<size_t>(round_up(problem.channels, rows)) * problem.channels * kTaps, narrow(0, problem));
  for (int o = 0; o < problem.channels; ++o)
    for (int i = 0; i < problem.channels; ++i)
      for (int tap = 0; tap < kTaps; ++tap)
        result[layout.index(o, i, tap, slabs)] =
            narrow(weights[(static_cast<size_t>(o) * problem.channels + i) * kTaps + tap], problem);
  return result;
}

inline std::vector<float> plain_convolution(const Problem& problem, const Halves& input,
                                            const std::vector<float>& weights) {
  const int channels = problem.channels;
  std::vector<float> output(problem.elements(), 0.0f);
  size_t at = 0;
  for (int image = 0; image < problem.images; ++image)
    for (int y = 0; y < problem.height; ++y)
      for (int x = 0; x < problem.width; ++x, at += channels)
        for (int tap = 0; tap < kTaps; ++tap) {
          const int from_y = y + (tap / 3 - 1) * problem.dilation, from_x = x + (tap % 3 - 1) * problem.dilation;
          if (from_y < 0 || from_y >= problem.height || from_x < 0 || from_x >= problem.width) continue;
          const size_t from =
              ((static_cast<size_t>(image) * problem.height + from_y) * problem.width + from_x) * channels;
          for (int i = 0; i < channels; ++i) {
            const float value = widen(input[from + i], problem);
            if (value == 0.0f) continue;
            for (int o = 0; o < channels; ++o)
              output[at + o] += value * weights[(static_cast<size_t>(o) * channels + i) * kTaps + tap];
          }
        }
  return output;
}

// One stage of a chain: convolution, bias, inject where given, a skip of the map that entered the stage before, ReLU.
inline Halves plain_stage(const Problem& problem, const ResidualStage& stage, const Halves& state,
                          const std::vector<float>& weights, const std::vector<float>& bias, const Halves* inject,
                          const Halves& before) {
  Problem dilated = problem;
  dilated.dilation = stage.dilation;
  const std::vector<float> sums = plain_convolution(dilated, state, weights);
  Halves after(state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    float z = sums[i] + bias[i % problem.channels];
    if (inject != nullptr) z += widen((*inject)[i], problem);
    if (stage.skip) z += widen(before[i], problem);
    after[i] = narrow(stage.relu && z <= 0 ? 0.0f : z, problem);
  }
  return after;
}

inline const char* differs(const Halves& found, const Halves& expected) {
  static char text[96];
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found[i] == expected[i] || ((found[i] | expected[i]) & 0x7fff) == 0) continue;  // both zeros are zero
    std::snprintf(text, sizeof text, "element %zu is %04x, expected %04x", i, found[i], expected[i]);
    return text;
  }
  return nullptr;
}

// Two stages at these dilations that close a residual block.
inline std::vector<ResidualStage> block(int first, int second) {
  return {{nullptr, nullptr, first, 1, 0}, {nullptr, nullptr, second, 1, 1}};
}
inline std::vector<ResidualStage> joined(std::vector<ResidualStage> one, const std::vector<ResidualStage>& two) {
  one.insert(one.end(), two.begin(), two.end());
  return one;
}

// What a case of several stages begins with. rows: of the blocks that its kernel packs weights in.
struct Chain {
  Halves input, inject;
  std::vector<std::vector<float>> weights, biases;  // of each stage
  std::vector<Halves> packed_weights;
};

inline Chain random_chain(const Problem& problem, int stages, int rows) {
  Chain chain{random_map(problem, -2, 2), random_map(problem, -2, 2), {}, {}, {}};
  for (int stage = 0; stage < stages; ++stage) {
    chain.weights.push_back(random_weights(problem, 1.5 / (kTaps * problem.channels)));
    chain.packed_weights.push_back(packed(problem, chain.weights.back(), rows));
    std::vector<float>& bias = chain.biases.emplace_back();
    for (int channel = 0; channel < problem.channels; ++channel)
      bias.push_back(static_cast<float>(static_cast<int>(random_source() % 5) - 2));
  }
  return chain;
}

// Cases in files of their own, by name; nullptr where the result is exact.
const char* residual_case(const std::string& name);
const char* rollout_case(const std::string& name);

}  // namespace rdk::cuda::check
