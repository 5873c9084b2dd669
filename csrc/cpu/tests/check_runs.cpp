// Runs forward and backward of small odd shapes against a direct convolution in double, without PyTorch, under the
// sanitizers. Built and run by tests/test_cpu_sanitizers.py; prints one line per case and returns 1 where a result is
// wrong.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../backward.h"
#include "../forward.h"
#include "../isa.h"

namespace {

using rdk::MapView;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

struct Shape {
  int images, channels, height, width, iterations, workers;
  std::vector<rdk::Stage> stages;
};

std::mt19937 generator(0);

Floats normal(int64_t count, double scale = 1.0) {
  std::normal_distribution<double> distribution;
  Floats values(count);
  for (float& value : values) value = static_cast<float>(scale * distribution(generator));
  return values;
}

// Real threads, so that a worker that writes into another's memory spoils its results.
void parallel(int tasks, void (*body)(void* context, int task), void* context) {
  std::vector<std::thread> threads;
  for (int task = 0; task < tasks; ++task) threads.emplace_back(body, context, task);
  for (std::thread& thread : threads) thread.join();
}

// Channels innermost, as PyTorch's channels_last.
MapView view(Floats& map, const Shape& s) {
  const int64_t w = s.channels, h = w * s.width, n = h * s.height;
  return {map.data(), n, 1, h, w};
}

// target = convolution of source, or its adjoint, with weights (C, C, 3, 3); maps with channels innermost.
Doubles convolve(const Doubles& source, const Floats& weight, const Shape& s, int dilation, bool transposed) {
  Doubles target(source.size(), 0.0);
  const int c = s.channels;
  for (int n = 0; n < s.images; ++n)
    for (int y = 0; y < s.height; ++y)
      for (int x = 0; x < s.width; ++x)
        for (int tap = 0; tap < 9; ++tap) {
          const int sign = transposed ? -1 : 1;
          const int yy = y + sign * (tap / 3 - 1) * dilation, xx = x + sign * (tap % 3 - 1) * dilation;
          if (yy < 0 || xx < 0 || yy >= s.height || xx >= s.width) continue;
          const double* from = &source[((static_cast<int64_t>(n) * s.height + yy) * s.width + xx) * c];
          double* to = &target[((static_cast<int64_t>(n) * s.height + y) * s.width + x) * c];
          for (int o = 0; o < c; ++o)
            for (int i = 0; i < c; ++i) to[o] += from[i] * weight[(transposed ? i * c + o : o * c + i) * 9 + tap];
        }
  return target;
}

double difference(const Floats& got, const Doubles& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / std::fmax(norm, 1e-30));
}

rdk::FilterArgs filter_args(Floats& weight, const rdk::Plan& plan, float* u, bool transposed) {
  const int64_t c = plan.geometry.channels;
  rdk::FilterArgs args{weight.data(),
                       c * 9,
                       9,
                       3,
                       1,
                       static_cast<int32_t>(c),
                       static_cast<int32_t>(c),
                       u,
                       plan.geometry.filter_point(),
                       plan.geometry.blocks,
                       0,
                       plan.geometry.blocks,
                       1,
                       0};
  if (transposed)
    args = {weight.data() + 8, 9, c * 9,       -3, -1, args.outputs, args.inputs, u, args.u_point,
            args.blocks,       0, args.blocks, 1,  0};
  return args;
}

// Transformed filters of all stages, in memory of exactly their size.
Floats filters(const rdk::Kernels& kernels, const rdk::Plan& plan, std::vector<Floats>& weights, bool transposed) {
  Floats result(plan.gradient_floats);
  float* at = result.data();
  for (size_t s = 0; s < weights.size(); ++s) {
    kernels.filter_transform[plan.stage_plans[s].filter_kind()](filter_args(weights[s], plan, at, transposed));
    at += plan.stage_plans[s].filter_floats;
  }
  return result;
}

// One stage list without ReLU, so that the backward is the adjoint: <y, g> = <x, dx> + <inject, dinject> and so on.
bool check(const rdk::Kernels& kernels, const Shape& s, rdk::Precision precision) {
  rdk::Plan plan = rdk::make_plan(s.channels, s.height, s.width, s.stages, precision, kernels.row_tiles);
  rdk::fit_group(plan, s.images, s.workers);
  const int count = static_cast<int>(s.stages.size()), n = s.iterations;
  const int64_t floats = static_cast<int64_t>(s.images) * s.channels * s.height * s.width;
  std::vector<Floats> weights;
  for (int i = 0; i < count; ++i) weights.push_back(normal(s.channels * s.channels * 9, 0.3 / std::sqrt(s.channels)));
  Floats x = normal(floats), inject = normal(floats), grad = normal(floats);
  const int64_t padded = plan.geometry.blocks * rdk::kBlock;
  Floats bias = normal(padded, 0.1);
  for (int64_t i = s.channels; i < padded; ++i) bias[i] = 0.0f;

  // reference: inputs of every stage, then the adjoint
  std::vector<Doubles> inputs;
  Doubles state(x.begin(), x.end());
  for (int row = 0; row < n * count; ++row) {
    const rdk::Stage& stage = s.stages[row % count];
    inputs.push_back(state);
    state = convolve(inputs.back(), weights[row % count], s, stage.dilation, false);
    for (int64_t i = 0; i < floats; ++i) {
      state[i] += bias[i % s.channels];
      if (row % count == 0) state[i] += inject[i];
      if (stage.skip >= 0) state[i] += inputs[row - row % count + stage.skip][i];
    }
  }
  Doubles expected = state, down(grad.begin(), grad.end()), inject_grad(floats, 0.0);
  std::vector<Doubles> weight_grads(count, Doubles(s.channels * s.channels * 9, 0.0));
  std::vector<Doubles> skipped(n * count + 1, Doubles(floats, 0.0));
  for (int row = n * count - 1; row >= 0; --row) {
    const rdk::Stage& stage = s.stages[row % count];
    for (int64_t i = 0; i < floats; ++i) {
      if (stage.skip >= 0) skipped[row - row % count + stage.skip][i] += down[i];
      if (row % count == 0) inject_grad[i] += down[i];
    }
    Doubles& dw = weight_grads[row % count];
    for (int64_t p = 0; p < floats / s.channels; ++p) {
      const int px = static_cast<int>(p % s.width), py = static_cast<int>(p / s.width % s.height);
      for (int tap = 0; tap < 9; ++tap) {
        const int yy = py + (tap / 3 - 1) * stage.dilation, xx = px + (tap % 3 - 1) * stage.dilation;
        if (yy < 0 || xx < 0 || yy >= s.height || xx >= s.width) continue;
        const int64_t q = p + (yy - py) * s.width + xx - px;
        for (int o = 0; o < s.channels; ++o)
          for (int i = 0; i < s.channels; ++i)
            dw[(o * s.channels + i) * 9 + tap] += down[p * s.channels + o] * inputs[row][q * s.channels + i];
      }
    }
    down = convolve(down, weights[row % count], s, stage.dilation, true);
    for (int64_t i = 0; i < floats; ++i) down[i] += skipped[row][i];
  }

  // the drivers, every map and workspace of exactly its size
  Floats forward_filters = filters(kernels, plan, weights, false),
         backward_filters = filters(kernels, plan, weights, true);
  std::vector<Floats> maps(n * count, Floats(floats, NAN));
  rdk::ForwardRun forward{&kernels, plan, n, count, {}, view(x, s), view(inject, s), {}, {}};
  rdk::BackwardRun backward{};
  backward.kernels = &kernels;
  backward.plan = plan;
  backward.iterations = n;
  backward.from_start = backward.wants_input = true;
  backward.wants_weight.assign(count, true);
  backward.wants_bias.assign(count, true);
  for (int row = 0; row < n * count; ++row) {
    int64_t offset = 0;
    for (int earlier = 0; earlier < row % count; ++earlier) offset += plan.stage_plans[earlier].filter_floats;
    forward.parameters.push_back({forward_filters.data() + offset, bias.data(), nullptr, nullptr, nullptr});
    const bool at_end = row % count == count - 1;
    forward.tapes.push_back(at_end ? MapView{} : view(maps[row], s));
    if (at_end) forward.states.push_back(view(maps[row], s));
    backward.filters.push_back(backward_filters.data() + offset);
    backward.inputs.push_back(row == 0 ? view(x, s) : view(maps[row - 1], s));
    if (row % count == 0) backward.state_grads.push_back(MapView{});
  }
  auto workforce = [&](std::unique_ptr<float[]>& space, int64_t worker_floats, int buffers, bool together) {
    space.reset(new float[s.workers * worker_floats]);
    std::fill_n(space.get(), s.workers * worker_floats, NAN);
    return rdk::Workforce{space.get(), worker_floats, s.workers, buffers, together, parallel, {}};
  };
  std::unique_ptr<float[]> space;
  rdk::Workforce force = workforce(space, plan.forward_worker_floats, plan.forward_buffers, false);
  run_forward(forward, 0, s.images, force);
  bool right = true;
  double worst = 0.0;
  const auto note = [&](double error) {
    right = right && error < 1e-5;  // false for NaN, which a value never written leaves behind
    worst = std::fmax(worst, error);
  };
  note(difference(maps.back(), expected));

  for (const bool together : {false, true}) {
    const int copies = together ? 1 : s.workers;
    Floats grad_input(floats, NAN), inject_sum(floats, 0.0f), sums(copies * plan.gradient_floats, 0.0f);
    Doubles bias_sums(copies * count * padded, 0.0);
    backward.grad = view(grad, s);
    backward.grad_input = view(grad_input, s);
    backward.inject_sum = view(inject_sum, s);
    backward.weight_sums = sums.data();
    backward.copy_floats = plan.gradient_floats;
    backward.bias_sums = bias_sums.data();
    rdk::Workforce back = workforce(space, plan.backward_worker_floats, plan.backward_buffers, together);
    run_backward(backward, 0, s.images, back);
    note(difference(grad_input, down));
    note(difference(inject_sum, inject_grad));
    int64_t offset = 0;
    for (int stage = 0; stage < count; ++stage) {
      Floats got(s.channels * s.channels * 9, NAN);
      rdk::FilterArgs args = filter_args(got, plan, sums.data() + offset, false);
      args.copies = copies;
      args.copy_stride = plan.gradient_floats;
      kernels.weight_gradient[plan.stage_plans[stage].filter_kind()](args);
      offset += plan.stage_plans[stage].filter_floats;
      note(difference(got, weight_grads[stage]));
    }
  }
  std::printf("%s %s N%d C%d %dx%d, %d stages, %d iterations, %d workers: %.1e %s\n", kernels.name,
              precision == rdk::Precision::kFast ? "fast" : "accurate", s.images, s.channels, s.height, s.width, count,
              n, s.workers, worst, right ? "ok" : "WRONG");
  return right;
}

}  // namespace

int main() {
  const rdk::Stage plain{1, false, -1}, skip{1, false, 0}, dilated{2, false, -1}, wide{3, false, 1};
  const std::vector<Shape> shapes = {
      {1, 1, 1, 1, 2, 1, {plain}},
      {3, 5, 7, 4, 2, 2, {plain, skip}},
      {2, 17, 13, 13, 2, 3, {plain, dilated, wide}},
      {1, 32, 9, 9, 3, 2, {skip}},
      {5, 16, 6, 5, 2, 2, {plain, plain}},
      {2, 33, 3, 18, 2, 2, {dilated, skip}},
      {1, 40, 14, 11, 1, 4, {plain, wide}},
      {15, 8, 13, 13, 1, 1, {plain, skip}},
  };
  bool right = true;
  int sets = 0;
  for (const char* name : {"avx512", "avx2"}) {
    const rdk::Kernels* kernels = rdk::find_kernels(name);
    if (!kernels) {
      std::printf("%s: this processor lacks it\n", name);
      continue;
    }
    ++sets;
    for (const Shape& shape : shapes)
      for (const rdk::Precision precision : {rdk::Precision::kFast, rdk::Precision::kAccurate})
        right = check(*kernels, shape, precision) && right;
  }
  if (rdk::find_kernels("none")) right = false;
  return right && sets ? EXIT_SUCCESS : EXIT_FAILURE;
}
