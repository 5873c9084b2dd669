// Runs forward and backward of small odd shapes against a direct convolution in double, without PyTorch, under the
// sanitizers. Built and run by tests/test_cpu_sanitizers.py; prints one line per case and returns 1 where a result is
// wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <utility>
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
  bool bands = false;  // walked down in bands, though the map is small
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

// What one case starts from: channels innermost, the bias padded with zeros to whole blocks.
struct Data {
  std::vector<Floats> weights;
  Floats x, inject, grad, bias;
};

template <class Values>
struct Results {
  Values output, grad_input, inject_grad;
  std::vector<Values> weight_grads;  // per stage
};

int64_t map_floats(const Shape& s) { return static_cast<int64_t>(s.images) * s.channels * s.height * s.width; }

Data make_data(const Shape& s, int64_t padded) {
  Data data;
  for (size_t i = 0; i < s.stages.size(); ++i)
    data.weights.push_back(normal(s.channels * s.channels * 9, 0.3 / std::sqrt(s.channels)));
  for (Floats* map : {&data.x, &data.inject, &data.grad}) *map = normal(map_floats(s));
  data.bias = normal(padded, 0.1);
  for (int64_t i = s.channels; i < padded; ++i) data.bias[i] = 0.0f;
  return data;
}

// The inputs of every stage of every iteration; the last entry is the output.
std::vector<Doubles> reference_forward(const Shape& s, const Data& data) {
  const int count = static_cast<int>(s.stages.size());
  std::vector<Doubles> maps{Doubles(data.x.begin(), data.x.end())};
  for (int row = 0; row < s.iterations * count; ++row) {
    const rdk::Stage& stage = s.stages[row % count];
    Doubles next = convolve(maps.back(), data.weights[row % count], s, stage.dilation, false);
    for (int64_t i = 0; i < map_floats(s); ++i) {
      next[i] += data.bias[i % s.channels];
      if (row % count == 0) next[i] += data.inject[i];
      if (stage.skip >= 0) next[i] += maps[row - row % count + stage.skip][i];
    }
    maps.push_back(std::move(next));
  }
  return maps;
}

// weight_grad += the products of a stage's input with the gradient of its sum.
void add_weight_grad(const Shape& s, int dilation, const Doubles& input, const Doubles& grad, Doubles& weight_grad) {
  const int c = s.channels;
  for (int64_t p = 0; p < map_floats(s) / c; ++p) {
    const int px = static_cast<int>(p % s.width), py = static_cast<int>(p / s.width % s.height);
    for (int tap = 0; tap < 9; ++tap) {
      const int yy = py + (tap / 3 - 1) * dilation, xx = px + (tap % 3 - 1) * dilation;
      if (yy < 0 || xx < 0 || yy >= s.height || xx >= s.width) continue;
      const int64_t q = p + (yy - py) * s.width + xx - px;
      for (int o = 0; o < c; ++o)
        for (int i = 0; i < c; ++i) weight_grad[(o * c + i) * 9 + tap] += grad[p * c + o] * input[q * c + i];
    }
  }
}

// No stage has a ReLU, so the backward is the adjoint: <y, g> = <x, dx> + <inject, dinject> and so on.
Results<Doubles> reference(const Shape& s, const Data& data) {
  const int count = static_cast<int>(s.stages.size()), rows = s.iterations * count;
  const int64_t floats = map_floats(s);
  std::vector<Doubles> maps = reference_forward(s, data);
  Results<Doubles> results{maps.back(), {data.grad.begin(), data.grad.end()}, Doubles(floats, 0.0), {}};
  results.weight_grads.assign(count, Doubles(s.channels * s.channels * 9, 0.0));
  Doubles& grad = results.grad_input;
  std::vector<Doubles> skipped(rows + 1, Doubles(floats, 0.0));
  for (int row = rows - 1; row >= 0; --row) {
    const rdk::Stage& stage = s.stages[row % count];
    for (int64_t i = 0; i < floats; ++i) {
      if (stage.skip >= 0) skipped[row - row % count + stage.skip][i] += grad[i];
      if (row % count == 0) results.inject_grad[i] += grad[i];
    }
    add_weight_grad(s, stage.dilation, maps[row], grad, results.weight_grads[row % count]);
    grad = convolve(grad, data.weights[row % count], s, stage.dilation, true);
    for (int64_t i = 0; i < floats; ++i) grad[i] += skipped[row][i];
  }
  return results;
}

// run_forward and run_backward of one case, every map and workspace of exactly its size and NaN until it is written.
class Runs {
 public:
  Runs(const rdk::Kernels& kernels, const rdk::Plan& plan, const Shape& s, Data& data)
      : kernels_(kernels),
        plan_(plan),
        s_(s),
        data_(data),
        count_(static_cast<int>(s.stages.size())),
        forward_filters_(filters(kernels, plan, data.weights, false)),
        backward_filters_(filters(kernels, plan, data.weights, true)),
        maps_(s.iterations * count_, Floats(map_floats(s), NAN)) {}

  const Floats& forward() {
    rdk::ForwardRun run{&kernels_, plan_, s_.iterations, count_, {}, view(data_.x, s_), view(data_.inject, s_), {}, {}};
    for (int row = 0; row < s_.iterations * count_; ++row) {
      const float* filter = forward_filters_.data() + offset(row % count_);
      run.parameters.push_back({filter, data_.bias.data(), nullptr, nullptr, nullptr});
      const bool at_end = row % count_ == count_ - 1;
      run.tapes.push_back(at_end ? MapView{} : view(maps_[row], s_));
      if (at_end) run.states.push_back(view(maps_[row], s_));
    }
    rdk::Workforce force = workforce(plan_.forward_buffer_floats, false);
    run_forward(run, 0, s_.images, force);
    return maps_.back();
  }

  // After forward(), whose maps it reads. together: all workers on each group, with one copy of the weight sums.
  Results<Floats> backward(bool together) {
    const int copies = together ? 1 : s_.workers;
    Results<Floats> results{{}, Floats(map_floats(s_), NAN), Floats(map_floats(s_), 0.0f), {}};
    Floats sums(copies * plan_.gradient_floats, 0.0f);
    Doubles bias_sums(copies * count_ * plan_.geometry.blocks * rdk::kBlock, 0.0);
    rdk::BackwardRun run{};
    run.kernels = &kernels_;
    run.plan = plan_;
    run.iterations = s_.iterations;
    run.from_start = run.wants_input = true;
    run.wants_weight.assign(count_, true);
    run.wants_bias.assign(count_, true);
    for (int row = 0; row < s_.iterations * count_; ++row) {
      run.filters.push_back(backward_filters_.data() + offset(row % count_));
      run.inputs.push_back(row == 0 ? view(data_.x, s_) : view(maps_[row - 1], s_));
      if (row % count_ == 0) run.state_grads.push_back(MapView{});
    }
    run.grad = view(data_.grad, s_);
    run.grad_input = view(results.grad_input, s_);
    run.inject_sum = view(results.inject_grad, s_);
    run.weight_sums = sums.data();
    run.copy_floats = plan_.gradient_floats;
    run.bias_sums = bias_sums.data();
    rdk::Workforce force = workforce(plan_.backward_buffer_floats, together);
    run_backward(run, 0, s_.images, force);
    for (int stage = 0; stage < count_; ++stage) {
      results.weight_grads.emplace_back(s_.channels * s_.channels * 9, NAN);
      rdk::FilterArgs args = filter_args(results.weight_grads.back(), plan_, sums.data() + offset(stage), false);
      args.copies = copies;
      args.copy_stride = plan_.gradient_floats;
      kernels_.weight_gradient[plan_.stage_plans[stage].filter_kind()](args);
    }
    return results;
  }

 private:
  // Of a stage's filter among those of all stages.
  int64_t offset(int stage) const {
    int64_t floats = 0;
    for (int earlier = 0; earlier < stage; ++earlier) floats += plan_.stage_plans[earlier].filter_floats;
    return floats;
  }

  rdk::Workforce workforce(int64_t buffer_floats, bool together) {
    const int64_t floats = s_.workers * plan_.worker_floats(buffer_floats);
    space_.reset(new float[floats]);
    std::fill_n(space_.get(), floats, NAN);
    return {space_.get(), buffer_floats, s_.workers, together, parallel, {}};
  }

  const rdk::Kernels& kernels_;
  const rdk::Plan& plan_;
  const Shape& s_;
  Data& data_;
  const int count_;
  Floats forward_filters_, backward_filters_;
  std::vector<Floats> maps_;  // after each stage of each iteration
  std::unique_ptr<float[]> space_;
};

bool check(const rdk::Kernels& kernels, const Shape& s, rdk::Precision precision) {
  rdk::Plan plan = rdk::make_plan(s.channels, s.height, s.width, s.stages, precision, kernels.row_tiles);
  // a run of all iterations needs the windows of all
  int64_t held = s.bands ? 1 : plan.geometry.image() * 1000;
  do {
    rdk::fit_group(plan, s.images, s.workers, true, false, held);
    held += plan.geometry.image() / 10;
  } while (std::min(plan.forward_bands.iterations, plan.backward_bands.iterations) < s.iterations);
  bool right = s.bands == (plan.forward_bands.step > 0 && plan.backward_bands.step > 0);
  Data data = make_data(s, plan.geometry.blocks * rdk::kBlock);
  const Results<Doubles> expected = reference(s, data);
  double worst = 0.0;
  const auto compare = [&](const Floats& got, const Doubles& wanted) {
    const double error = difference(got, wanted);
    right = right && error < 1e-5;  // false for NaN, which a value never written leaves behind
    worst = std::fmax(worst, error);
  };
  Runs runs(kernels, plan, s, data);
  compare(runs.forward(), expected.output);
  if (s.bands) {  // the same tiles, and so the same bits
    rdk::Plan whole = plan;
    whole.forward_bands = {};
    whole.forward_buffer_floats = plan.forward_buffers * plan.geometry.image();
    right = right && Runs(kernels, whole, s, data).forward() == runs.forward();
  }
  for (const bool together : {false, true}) {
    const Results<Floats> got = runs.backward(together);
    compare(got.grad_input, expected.grad_input);
    compare(got.inject_grad, expected.inject_grad);
    for (size_t stage = 0; stage < s.stages.size(); ++stage)
      compare(got.weight_grads[stage], expected.weight_grads[stage]);
  }
  std::printf("%s %s N%d C%d %dx%d%s, %zu stages, %d iterations, %d workers: %.1e %s\n", kernels.name,
              precision == rdk::Precision::kFast ? "fast" : "accurate", s.images, s.channels, s.height, s.width,
              s.bands ? " in bands" : "", s.stages.size(), s.iterations, s.workers, worst, right ? "ok" : "WRONG");
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
      {1, 3, 211, 90, 1, 1, {plain}, true},
      {2, 5, 213, 67, 2, 2, {plain, skip}, true},
      {1, 17, 150, 81, 2, 3, {plain, dilated}, true},
      {3, 2, 301, 70, 1, 2, {dilated, wide, skip, plain}, true},
      {1, 4, 260, 70, 2, 1, {skip, plain, skip, skip}, true},
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
