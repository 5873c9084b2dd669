// What the operators have in common: tensors to the pointers of a parameter struct, refused in a sentence where they do
// not fit. Included by ops.cpp and the files of operators beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

#include "device.h"
#include "launchers.h"

#if !defined(RDK_NAMESPACE)
#define RDK_NAMESPACE rdk
#endif

namespace rdk::cuda {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// The grid of a map that check_map has passed.
inline PaddedGrid grid_of(const Tensor& map, int64_t dilation, const char* op) {
  const int64_t images = std::max<int64_t>(map.size(0), 1);
  TORCH_CHECK(dilation >= 1 && dilation < kMaxPositions &&
                  map.size(2) + dilation <= kMaxPositions / (map.size(3) + dilation) / images,
              "rdk: ", op, ": expected a dilation of at least 1 and up to ", kMaxPositions,
              " positions, images * (height + dilation) * (width + dilation), got maps of shape ", map.sizes(),
              " and dilation ", dilation, "; pass fewer images at once.");
  return {static_cast<int>(map.size(2)), static_cast<int>(map.size(3)), static_cast<int>(dilation)};
}

// A map that a kernel may read or write: halves of `like`'s type and shape, channels innermost, at a multiple of 16
// bytes, pixels that 32 bits count.
inline void check_map(const Tensor& map, const Tensor& like, const char* op, const char* name) {
  TORCH_CHECK(on_device(map), "rdk: ", op, " needs an sm_90 device; ", name, " is on ", map.device(), ".");
  TORCH_CHECK(map.dim() == 4 && map.sizes() == like.sizes() && map.scalar_type() == like.scalar_type() &&
                  map.device() == like.device(),
              "rdk: ", op, ": expected ", name, " of shape ", like.sizes(), " and type ", like.scalar_type(), " on ",
              like.device(), ", got ", map.sizes(), ", ", map.scalar_type(), " on ", map.device(), ".");
  TORCH_CHECK(map.scalar_type() == at::kBFloat16 || map.scalar_type() == at::kHalf, "rdk: ", op, ": expected ", name,
              " in bfloat16 or float16, got ", map.scalar_type(), ".");
  TORCH_CHECK(map.is_contiguous(at::MemoryFormat::ChannelsLast) && map.size(1) % kChannelStep == 0 &&
                  map.size(1) <= kMaxChannels,
              "rdk: ", op, ": expected ", name, " channels_last with a multiple of ", kChannelStep, " channels up to ",
              kMaxChannels, ", got ", map.sizes(), " with strides ", map.strides(), ".");
  TORCH_CHECK(map.numel() <= kMaxPositions * map.size(1), "rdk: ", op, ": expected ", name, " of up to ", kMaxPositions,
              " pixels, got ", map.sizes(), "; pass fewer images at once.");
  TORCH_CHECK(reinterpret_cast<uintptr_t>(map.const_data_ptr()) % 16 == 0, "rdk: ", op, ": ", name,
              " does not start at a multiple of 16 bytes; pass a clone of it.");
}

inline const void* map_pointer(const MaybeTensor& map, const Tensor& like, const char* op, const char* name) {
  if (!map) return nullptr;
  check_map(*map, like, op, name);
  return map->const_data_ptr();
}

// Maps one behind another: `count` of them, or none where nothing was asked for.
inline void* maps_pointer(const std::optional<Tensor>& maps, int64_t count, const Tensor& like, const char* op,
                          const char* name) {
  TORCH_CHECK(maps ? maps->dim() == 5 && maps->size(0) == count : count == 0, "rdk: ", op, ": expected room for ",
              count, " ", name, " maps.");
  if (count == 0) return nullptr;
  for (const Tensor& map : maps->unbind(0)) check_map(map, like, op, name);
  return maps->mutable_data_ptr();
}

// Sets the bits of `keep`: numbers below `count`, ascending. `what` they are is said where they are not.
inline void set_kept(uint32_t* bits, at::IntArrayRef keep, int64_t count, const char* op, const char* what) {
  int64_t before = -1;
  for (const int64_t one : keep) {
    TORCH_CHECK(one > before && one < count, "rdk: ", op, ": expected ascending ", what, " below ", count,
                " to keep, got ", keep, ".");
    bits[one / 32] |= 1u << (one % 32);
    before = one;
  }
}

inline const float* channel_pointer(const MaybeTensor& values, const Tensor& like, const char* op, const char* name) {
  if (!values) return nullptr;
  TORCH_CHECK(values->scalar_type() == at::kFloat && values->is_contiguous() && values->dim() == 1 &&
                  values->size(0) == like.size(1) && values->device() == like.device(),
              "rdk: ", op, ": expected ", name, " as ", like.size(1), " contiguous float32 values on ", like.device(),
              ", got ", values->sizes(), ", ", values->scalar_type(), " on ", values->device(), ".");
  return values->const_data_ptr<float>();
}

// weights as cuda_pack returns them
inline void check_weights(const Tensor& weights, const Tensor& input, int64_t rows, const char* op) {
  const int64_t channels = input.size(1);
  const int64_t blocks = (channels + rows - 1) / rows;
  TORCH_CHECK(weights.dim() == 7 && weights.is_contiguous() && weights.scalar_type() == input.scalar_type() &&
                  weights.device() == input.device() && weights.size(0) == blocks &&
                  weights.size(1) == channels / kChannelStep && weights.size(4) * 8 == rows &&
                  reinterpret_cast<uintptr_t>(weights.const_data_ptr()) % 16 == 0,
              "rdk: ", op, ": expected weights from cuda_pack for ", channels, " channels in blocks of ", rows,
              " rows, got a tensor of shape ", weights.sizes(), " and type ", weights.scalar_type(), ".");
}

inline void check_launch(const char* error, const char* op) {
  TORCH_CHECK(error == nullptr, "rdk: ", op, ": the kernel could not be run: ", error, ".");
}

// Elements from each map to the next, which must be the same throughout `maps`; 0 for fewer than two.
inline int64_t stride_of(at::TensorList maps, const char* op, const char* name) {
  int64_t stride = 0;
  for (size_t i = 1; i < maps.size(); ++i) {
    const int64_t step =
        (static_cast<const char*>(maps[i].const_data_ptr()) - static_cast<const char*>(maps[i - 1].const_data_ptr())) /
        2;
    TORCH_CHECK(i == 1 || step == stride, "rdk: ", op, ": the maps of ", name, " are not evenly spaced in memory.");
    stride = step;
  }
  return stride;
}

}  // namespace rdk::cuda
