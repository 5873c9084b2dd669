// rdk::cpu_finish: BatchNorm's moments and application on channels_last maps; called by
// rdk/backends/cpu_norm.py.
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "bindings.h"
#include "tables.h"

namespace rdk::binding {
namespace {

const at::Tensor& dense(const at::Tensor& map) {
  TORCH_CHECK(map.scalar_type() == at::kFloat && map.device().is_cpu() && map.dim() == 4 &&
                  map.permute({0, 2, 3, 1}).is_contiguous(),
              "rdk: expected a dense channels_last float32 map on the CPU, got ", map.scalar_type(), " ", map.sizes(),
              " with strides ", map.strides(), " on ", map.device(), ".");
  return map;
}

const at::Tensor& dense_like(const at::Tensor& map, const at::Tensor& other) {
  TORCH_CHECK(map.sizes() == other.sizes(), "rdk: expected a map of ", other.sizes(), ", got ", map.sizes(), ".");
  return dense(map);
}

struct Moments {
  double count = 0;
  std::vector<double> mean, squares;
  explicit Moments(int64_t channels) : mean(channels), squares(channels) {}

  void merge(double other_count, const double* other_mean, const double* other_squares) {
    const double total = count + other_count;
    for (size_t c = 0; c < mean.size(); ++c) {
      const double difference = other_mean[c] - mean[c];
      squares[c] += other_squares[c] + difference * difference * (count * other_count / total);
      mean[c] += difference * (other_count / total);
    }
    count = total;
  }
};

// Row `row` of dense (rows, channels).
float* row_of(const at::Tensor& rows, int64_t row, int64_t channels, const char* what) {
  TORCH_CHECK(rows.dim() == 2 && row >= 0 && row < rows.size(0), "rdk: expected ", what, " (rows, ", channels,
              ") with a row ", row, ", got ", rows.sizes(), ".");
  expect(rows, {rows.size(0), channels}, what);
  return rows.data_ptr<float>() + row * channels;
}

// Mean and biased variance over all but the channels; images are merged in order, so threads change nothing.
void measure_moments(const at::Tensor& z, float* mean, float* variance) {
  const int64_t images = z.size(0), channels = z.size(1), pixels = z.size(2) * z.size(3);
  TORCH_CHECK(z.numel() > 0, "rdk: expected a map that is not empty, got ", z.sizes(), ".");
  std::vector<Moments> moments(images, Moments(channels));
  const float* data = z.data_ptr<float>();
  run_parallel(parallel, static_cast<int>(images), [&](int image) {
    std::vector<double> part(2 * channels);
    const float* map = data + image * pixels * channels;
    for (int64_t first = 0; first < pixels; first += kMomentPixels) {
      const int64_t count = std::min(kMomentPixels, pixels - first);
      kernels().pixel_moments(map + first * channels, count, static_cast<int32_t>(channels), part.data(),
                              part.data() + channels);
      moments[image].merge(static_cast<double>(count), part.data(), part.data() + channels);
    }
  });
  for (int64_t image = 1; image < images; ++image)
    moments[0].merge(moments[image].count, moments[image].mean.data(), moments[image].squares.data());
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = static_cast<float>(moments[0].mean[c]);
    variance[c] = static_cast<float>(moments[0].squares[c] / moments[0].count);
  }
}

// A norm's weight over the deviation, as rdk/backends/cpu_runs.py: norm_constants has it.
std::vector<float> scales(const at::Tensor& weight, const float* variance, double eps) {
  std::vector<float> result(weight.numel());
  const float* data = weight.data_ptr<float>();
  for (size_t c = 0; c < result.size(); ++c)
    result[c] = static_cast<float>(data[c] / std::sqrt(static_cast<double>(variance[c]) + eps));
  return result;
}

// out = act((z - mean) * scale + bias + inject + skip), scale = weight / sqrt(variance + eps), mean and variance from
// row `row` of (rows, C); with `measure` they are z's own and written there first. out may be z.
void cpu_finish(const at::Tensor& z, const at::Tensor& means, const at::Tensor& variances, int64_t row, bool measure,
                const at::Tensor& weight, const at::Tensor& bias, double eps, const std::optional<at::Tensor>& inject,
                const std::optional<at::Tensor>& skip, bool relu, const at::Tensor& out) {
  const int64_t images = dense(z).size(0), channels = z.size(1), pixels = z.size(2) * z.size(3);
  float* const mean = row_of(means, row, channels, "means");
  float* const variance = row_of(variances, row, channels, "variances");
  const at::Tensor factors = weight.contiguous(), shifts = bias.contiguous();
  expect(factors, {channels}, "a norm's weight");
  expect(shifts, {channels}, "a norm's bias");
  const float* injected = inject ? dense_like(*inject, z).data_ptr<float>() : nullptr;
  const float* skipped = skip ? dense_like(*skip, z).data_ptr<float>() : nullptr;
  const float* source = z.data_ptr<float>();
  float* target = dense_like(out, z).data_ptr<float>();
  if (measure) measure_moments(z, mean, variance);
  const std::vector<float> scale = scales(factors, variance, eps);
  const float* shift = shifts.data_ptr<float>();
  const int64_t pieces = std::max<int64_t>(1, pixels / kMomentPixels);
  run_parallel(parallel, static_cast<int>(images * pieces), [&](int task) {
    const int64_t first = task / pieces * pixels + task % pieces * pixels / pieces;
    const int64_t last = task / pieces * pixels + (task % pieces + 1) * pixels / pieces;
    const int64_t at = first * channels;
    kernels().finish_pixels({source + at, mean, scale.data(), shift, injected ? injected + at : nullptr,
                             skipped ? skipped + at : nullptr, target + at, last - first,
                             static_cast<int32_t>(channels), relu});
  });
}

}  // namespace
}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def(
      "cpu_finish(Tensor z, Tensor(a!) means, Tensor(b!) variances, int row, bool measure, Tensor weight, Tensor bias, "
      "float eps, Tensor? inject, Tensor? skip, bool relu, Tensor(c!) out) -> ()",
      &cpu_finish);
}
