// rdk::cpu_statistics and rdk::cpu_finish: BatchNorm's moments and application on channels_last maps; called by
// rdk/backends/cpu_norm.py.
#include <torch/library.h>

#include <algorithm>

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

// Mean and biased variance over all but the channels; images are merged in order, so threads change nothing.
void cpu_statistics(const at::Tensor& z, const at::Tensor& mean, const at::Tensor& variance) {
  const int64_t images = dense(z).size(0), channels = z.size(1), pixels = z.size(2) * z.size(3);
  expect(mean, {channels}, "means");
  expect(variance, {channels}, "variances");
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
    mean.data_ptr<float>()[c] = static_cast<float>(moments[0].mean[c]);
    variance.data_ptr<float>()[c] = static_cast<float>(moments[0].squares[c] / moments[0].count);
  }
}

// out = act((z - mean) * scale + shift + inject + skip); constants: (3, C) of means, scales and shifts. out may be z.
void cpu_finish(const at::Tensor& z, const at::Tensor& constants, const std::optional<at::Tensor>& inject,
                const std::optional<at::Tensor>& skip, bool relu, const at::Tensor& out) {
  const int64_t images = dense(z).size(0), channels = z.size(1), pixels = z.size(2) * z.size(3);
  const at::Tensor rows = constants.contiguous();
  expect(rows, {3, channels}, "means, scales and shifts");
  const float* row = rows.data_ptr<float>();
  const float* injected = inject ? dense_like(*inject, z).data_ptr<float>() : nullptr;
  const float* skipped = skip ? dense_like(*skip, z).data_ptr<float>() : nullptr;
  const float* source = z.data_ptr<float>();
  float* target = dense_like(out, z).data_ptr<float>();
  const int64_t pieces = std::max<int64_t>(1, pixels / kMomentPixels);
  run_parallel(parallel, static_cast<int>(images * pieces), [&](int task) {
    const int64_t first = task / pieces * pixels + task % pieces * pixels / pieces;
    const int64_t last = task / pieces * pixels + (task % pieces + 1) * pixels / pieces;
    const int64_t at = first * channels;
    kernels().finish_pixels({source + at, row, row + channels, row + 2 * channels, injected ? injected + at : nullptr,
                             skipped ? skipped + at : nullptr, target + at, last - first,
                             static_cast<int32_t>(channels), relu});
  });
}

}  // namespace
}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def("cpu_statistics(Tensor z, Tensor(a!) mean, Tensor(b!) variance) -> ()", &cpu_statistics);
  m.def("cpu_finish(Tensor z, Tensor constants, Tensor? inject, Tensor? skip, bool relu, Tensor(a!) out) -> ()",
        &cpu_finish);
}
