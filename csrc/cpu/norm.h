// BatchNorm on channels_last maps: what follows the convolution, and the moments of a batch. Included by
// kernel_table.h; called by bindings_norm.cpp.
#pragma once

namespace rdk::RDK_ISA {

RDK_INLINE Vec load_up_to(const float* p, int lanes) { return lanes >= kLanes ? load(p) : load_part(p, lanes); }

// The same operations in the same order as the epilogue of output_transform.
static void finish_pixels(const FinishArgs& args) {
  for (int channel = 0; channel < args.channels; channel += kLanes) {
    const int lanes = args.channels - channel;
    const Vec mean = load_up_to(args.mean + channel, lanes), scale = load_up_to(args.scale + channel, lanes);
    const Vec shift = load_up_to(args.shift + channel, lanes);
    int64_t offset = channel;
    for (int64_t pixel = 0; pixel < args.pixels; ++pixel, offset += args.channels) {
      Vec z = fma(sub(load_up_to(args.z + offset, lanes), mean), scale, shift);
      if (args.inject) z = add(z, load_up_to(args.inject + offset, lanes));
      if (args.skip) z = add(z, load_up_to(args.skip + offset, lanes));
      if (args.relu) z = relu(z);
      if (lanes >= kLanes)
        store(args.out + offset, z);
      else
        store_part(args.out + offset, z, lanes);
    }
  }
}

// Deviations are taken from the mean of these pixels, so a mean far from zero costs no digits (Chan et al. 1979).
static void pixel_moments(const float* z, int64_t pixels, int32_t channels, double* mean, double* squares) {
  for (int channel = 0; channel < channels; channel += kLanes) {
    const int lanes = channels - channel;
    Vec total = zero();
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      total = add(total, load_up_to(z + pixel * channels + channel, lanes));
    const Vec centre = mul(total, broadcast(1.0f / static_cast<float>(pixels)));
    Vec rest = zero(), square = zero();
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const Vec deviation = sub(load_up_to(z + pixel * channels + channel, lanes), centre);
      rest = add(rest, deviation);
      square = fma(deviation, deviation, square);
    }
    float centres[kLanes], rests[kLanes], sums[kLanes];
    store(centres, centre);
    store(rests, rest);
    store(sums, square);
    for (int i = 0; i < kLanes && i < lanes; ++i) {
      const double correction = rests[i] / static_cast<double>(pixels);
      mean[channel + i] = centres[i] + correction;
      squares[channel + i] = sums[i] - correction * rests[i];
    }
  }
}

}  // namespace rdk::RDK_ISA
