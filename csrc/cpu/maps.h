// Between maps of any strides and blocked buffers, image by image; sums over pixels. Included by filter_transform.h
// and kernel_table.h; called by convolve.cpp, parameter_sums.cpp, backward.cpp and band_walk.h.
#pragma once

namespace rdk::RDK_ISA {

struct LoadPixels {
  RDK_INLINE void full(float* map, float* blocked) { store(blocked, load(map)); }
  RDK_INLINE void some(float* map, float* blocked, int lanes) { store(blocked, load_part(map, lanes)); }
  RDK_INLINE void one(float& map, float& blocked) { blocked = map; }
  // up to a vector of pixels, side by side in the map, of up to a vector of channels
  RDK_INLINE void turned(float* map, int64_t channel, float* blocked, int channels, int pixels) {
    Vec rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = i < channels ? load_part(map + i * channel, pixels) : zero();
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (i < pixels) store(blocked + i * kBlock, rows[i]);
  }
};
struct StorePixels {
  RDK_INLINE void full(float* map, float* blocked) { store(map, load(blocked)); }
  RDK_INLINE void some(float* map, float* blocked, int lanes) { store_part(map, load(blocked), lanes); }
  RDK_INLINE void one(float& map, float& blocked) { map = blocked; }
  RDK_INLINE void turned(float* map, int64_t channel, float* blocked, int channels, int pixels) {
    Vec rows[kLanes];
    turn(blocked, pixels, rows);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (i < channels) store_part(map + i * channel, rows[i], pixels);
  }
  RDK_INLINE void turn(float* blocked, int pixels, Vec* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = i < pixels ? load(blocked + i * kBlock) : zero();
    transpose(rows);
  }
};
// Past the caches: the map's lines need not be fetched before they are written.
struct StreamPixels : StorePixels {
  RDK_INLINE void full(float* map, float* blocked) { stream(map, load(blocked)); }
};
struct AddPixels {
  RDK_INLINE void full(float* map, float* blocked) { store(map, add(load(map), load(blocked))); }
  RDK_INLINE void some(float* map, float* blocked, int lanes) {
    store_part(map, add(load_part(map, lanes), load(blocked)), lanes);
  }
  RDK_INLINE void one(float& map, float& blocked) { map += blocked; }
  RDK_INLINE void turned(float* map, int64_t channel, float* blocked, int channels, int pixels) {
    Vec rows[kLanes];
    StorePixels::turn(blocked, pixels, rows);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (i < channels) store_part(map + i * channel, add(load_part(map + i * channel, pixels), rows[i]), pixels);
  }
};

RDK_INLINE int up_to_lanes(int left) { return left < 0 ? 0 : left < kLanes ? left : kLanes; }

// A row whose channels lie side by side: pixel by pixel, so that the map, which is far away, is walked in order.
template <class Move>
static void move_pixels(const MapArgs& args, float* map, float* blocked) {
  const int whole = args.channels / kBlock, left = args.channels - whole * kBlock;
  for (int col = 0; col < args.width; ++col) {
    float *from = map + col * args.w, *to = blocked + col * kBlock;
    for (int block = 0; block < whole; ++block, from += kBlock, to += args.block)
      for (int lane = 0; lane < kBlock; lane += kLanes) Move::full(from + lane, to + lane);
    for (int lane = 0; lane < kBlock && left; lane += kLanes)
      Move::some(from + lane, to + lane, up_to_lanes(left - lane));
  }
}

// A row whose pixels lie side by side.
template <class Move>
static void move_planes(const MapArgs& args, float* map, float* blocked) {
  for (int channel = 0; channel < args.channels; channel += kLanes) {
    float* to = blocked + channel / kBlock * args.block + channel % kBlock;
    for (int col = 0; col < args.width; col += kLanes)
      Move::turned(map + channel * args.c + col, args.c, to + col * kBlock, up_to_lanes(args.channels - channel),
                   up_to_lanes(args.width - col));
  }
}

// A row of any strides.
template <class Move>
static void move_values(const MapArgs& args, float* map, float* blocked) {
  for (int channel = 0; channel < args.channels; ++channel)
    for (int col = 0; col < args.width; ++col)
      Move::one(map[channel * args.c + col * args.w],
                blocked[channel / kBlock * args.block + col * kBlock + channel % kBlock]);
}

template <class Move>
static void move_map(const MapArgs& args) {
  const auto move_row = args.c == 1 ? move_pixels<Move> : args.w == 1 ? move_planes<Move> : move_values<Move>;
  for (int row = 0; row < args.height; ++row) move_row(args, args.map + row * args.h, args.blocked + row * args.row);
}

static void store_map(const MapArgs& args) {
  constexpr int64_t kVectorBytes = sizeof(Vec);
  const int64_t steps =
      reinterpret_cast<intptr_t>(args.map) | args.h * int64_t{sizeof(float)} | args.w * int64_t{sizeof(float)};
  if (args.streamed && args.c == 1 && steps % kVectorBytes == 0) {
    move_map<StreamPixels>(args);
    _mm_sfence();  // other threads see the map once this one has joined them
  } else {
    move_map<StorePixels>(args);
  }
}

static void add_blocked(float* target, const float* source, int64_t floats) {
  for (int64_t i = 0; i < floats; i += kLanes) store(target + i, add(load(target + i), load(source + i)));
}

// Row sums in single precision, their total in double.
static void sum_pixels(const MapArgs& args, double* sums) {
  const int blocks = (args.channels + kBlock - 1) / kBlock;
  for (int block = 0; block < blocks; ++block) {
    for (int row = 0; row < args.height; ++row) {
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const float* pixels = args.blocked + block * args.block + row * args.row + lane;
        Vec total = zero();
        for (int col = 0; col < args.width; ++col) total = add(total, load(pixels + col * kBlock));
        float lanes[kLanes];
        store(lanes, total);
        for (int i = 0; i < kLanes; ++i) sums[block * kBlock + lane + i] += lanes[i];
      }
    }
  }
}

}  // namespace rdk::RDK_ISA
