// Maps in units of 8 channels of one pixel: addresses, loads, widening, added maps, ReLU, mask. Included by every
// kernel.
#pragma once

#include "primitives.cuh"

namespace rdk::cuda {

struct Eight {
  float value[8];
};

template <class T>
RDK_DEVICE Eight widen(const Unit& unit) {
  Eight wide;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair pair = unpack<T>(unit.word[i]);
    wide.value[2 * i] = pair.low;
    wide.value[2 * i + 1] = pair.high;
  }
  return wide;
}
template <class T>
RDK_DEVICE Unit narrow(const Eight& wide) {
  Unit unit;
#pragma unroll
  for (int i = 0; i < 4; ++i) unit.word[i] = pack<T>(wide.value[2 * i], wide.value[2 * i + 1]);
  return unit;
}

// The 8 halves at element `offset` of a map.
RDK_DEVICE const void* halves_at(const void* map, int64_t offset) { return static_cast<const char*>(map) + 2 * offset; }
RDK_DEVICE void* halves_at(void* map, int64_t offset) { return static_cast<char*>(map) + 2 * offset; }

// The units of a map (null: none) at `offset`; where that is negative, whatever stands at the map's beginning. Without
// a branch between them, all are under way before the first is used.
template <int Count>
RDK_DEVICE void load_units(Unit (&units)[Count], const void* map, const int64_t (&offset)[Count]) {
  if (map == nullptr) return;
#pragma unroll
  for (int i = 0; i < Count; ++i) units[i] = load_global(halves_at(map, offset[i] < 0 ? 0 : offset[i]));
}

template <class T>
RDK_DEVICE void add_unit(Eight& z, const Unit& unit) {
  const Eight other = widen<T>(unit);
#pragma unroll
  for (int i = 0; i < 8; ++i) z.value[i] += other.value[i];
}

// As PyTorch's threshold: NaN passes.
RDK_DEVICE void clamp_negative(Eight& z) {
#pragma unroll
  for (int i = 0; i < 8; ++i) z.value[i] = z.value[i] <= 0.0f ? 0.0f : z.value[i];
}
template <class T>
RDK_DEVICE void apply_mask(Eight& z, const Unit& unit) {
  const Eight state = widen<T>(unit);
#pragma unroll
  for (int i = 0; i < 8; ++i) z.value[i] = state.value[i] <= 0.0f ? 0.0f : z.value[i];
}

// 8 floats per channel, or `otherwise` where there are none.
RDK_DEVICE Eight per_channel(const float* values, int channel, float otherwise) {
  Eight wide;
#pragma unroll
  for (int i = 0; i < 8; ++i) wide.value[i] = values != nullptr ? values[channel + i] : otherwise;
  return wide;
}

}  // namespace rdk::cuda
