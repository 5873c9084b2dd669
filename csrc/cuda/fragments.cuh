// Between a warpgroup's accumulators and its maps: starting with the bias, storing as halves. Called by conv.cuh,
// resident.cuh and residual.cuh.
#pragma once

#include "primitives.cuh"

namespace rdk::cuda {

// Every accumulator begins with the bias of its row: two rows per thread. bias: (channels,) or null.
RDK_DEVICE Pair bias_of_rows(const float* bias, int first_channel, int channels) {
  const int row = first_channel + fragment_row(thread_index() % kWarpgroup, 0);
  return {bias != nullptr && row < channels ? bias[row] : 0.0f,
          bias != nullptr && row + 8 < channels ? bias[row + 8] : 0.0f};
}
template <int Count>
RDK_DEVICE void fill_rows(float (&sums)[Count], const Pair& bias) {
#pragma unroll
  for (int i = 0; i < Count; ++i) sums[i] = i / 2 % 2 == 0 ? bias.low : bias.high;
}

// The slot, relative to the tile's first position, whose row this lane stores in step 0; step j stores 16 slots
// further.
RDK_DEVICE int stored_position() { return thread_index() % 32 / 16 * 8 + thread_index() % 8; }
// The chunk of 8 channels that this lane stores.
RDK_DEVICE int stored_chunk() { return thread_index() % kWarpgroup / 32 * 2 + thread_index() % 16 / 8; }

// Bit j: the row that this lane stores in step j, position `first` on, is no pixel of a map of height x width whose
// rows lie `pitch` positions apart.
RDK_DEVICE uint32_t rows_outside(int first, int count, int pitch, int height, int width) {
  uint32_t bits = 0;
  for (int j = 0; 16 * j < count; ++j) {
    const int q = first + 16 * j + stored_position();
    if (q / pitch >= height || q % pitch >= width) bits |= 1u << j;
  }
  return bits;
}

// Rounds the 64 x N sums and stores them as [chunk][slot][8]. `address` is this lane's for step 0 (stored_chunk,
// stored_position); where bit j of `redirected` is set, the lane's row of step j goes to `trash` instead.
template <class T, bool Relu, int N>
RDK_DEVICE void store_fragments(const float (&sums)[N / 2], uint32_t address, uint32_t redirected, uint32_t trash) {
#pragma unroll
  for (int j = 0; j < ceil_div(N, 16); ++j) {
    uint32_t word[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int i = 8 * j + 2 * m;
      if (i < N / 2) word[m] = Relu ? pack_relu<T>(sums[i], sums[i + 1]) : pack<T>(sums[i], sums[i + 1]);
    }
    const uint32_t to = redirected >> j & 1 ? trash : address + 16 * kUnit * j;
    if (16 * j + 16 <= N) {
      store_matrices_transposed(to, word[0], word[1], word[2], word[3]);
    } else {
      store_matrices_transposed(to, word[0], word[1]);
    }
  }
}

// The same after adding to the sums what lies where they are stored; each step's reads are under way during the step
// before.
template <class T, bool Relu, int N>
RDK_DEVICE void add_fragments(const float (&sums)[N / 2], uint32_t address, uint32_t redirected, uint32_t trash) {
  constexpr int kSteps = ceil_div(N, 16);
  uint32_t word[2][4];
  uint32_t to[2];
  const auto load = [&](int j) {
    to[j % 2] = redirected >> j & 1 ? trash : address + 16 * kUnit * j;
    uint32_t* into = word[j % 2];
    if (16 * j + 16 <= N) {
      load_matrices_transposed(to[j % 2], into[0], into[1], into[2], into[3]);
    } else {
      load_matrices_transposed(to[j % 2], into[0], into[1]);
    }
  };
  load(0);
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    if (j + 1 < kSteps) load(j + 1);
    uint32_t* from = word[j % 2];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int i = 8 * j + 2 * m;
      if (i >= N / 2) continue;
      const Pair old = unpack<T>(from[m]);
      const float low = sums[i] + old.low, high = sums[i + 1] + old.high;
      from[m] = Relu ? pack_relu<T>(low, high) : pack<T>(low, high);
    }
    if (16 * j + 16 <= N) {
      store_matrices_transposed(to[j % 2], from[0], from[1], from[2], from[3]);
    } else {
      store_matrices_transposed(to[j % 2], from[0], from[1]);
    }
  }
}

}  // namespace rdk::cuda
