// Between maps of any strides and blocked buffers, image by image; sums over pixels.
#pragma once

namespace rdk::RDK_ISA {

struct LoadPixels {
  RDK_INLINE void full(float* map, float* blocked) { store(blocked, load(map)); }
  RDK_INLINE void some(float* map, float* blocked, int lanes) { store(blocked, load_part(map, lanes)); }
  RDK_INLINE void one(float& map, float& blocked) { blocked = map; }
};
struct StorePixels {
  RDK_INLINE void full(float* map, float* blocked) { store(map, load(blocked)); }
  RDK_INLINE void some(float* map, float* blocked, int lanes) { store_part(map, load(blocked), lanes); }
  RDK_INLINE void one(float& map, float& blocked) { map = blocked; }
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
};

// Pixel by pixel where the channels lie side by side, so that the map, which is far away, is walked in order.
template <class Move>
static void move_map(const MapArgs& args) {
  const int whole = args.c == 1 ? args.channels / kBlock : 0;
  const int blocks = (args.channels + kBlock - 1) / kBlock;
  for (int row = 0; row < args.height; ++row) {
    float* map = args.map + row * args.h;
    float* blocked = args.blocked + row * args.row;
    for (int col = 0; col < args.width && args.c == 1; ++col) {
      float *from = map + col * args.w, *to = blocked + col * kBlock;
      for (int block = 0; block < whole; ++block, from += kBlock, to += args.block)
        for (int lane = 0; lane < kBlock; lane += kLanes) Move::full(from + lane, to + lane);
      if (whole == blocks) continue;
      const int left = args.channels - whole * kBlock;
      for (int lane = 0; lane < kBlock; lane += kLanes)
        Move::some(from + lane, to + lane, left - lane < 0 ? 0 : left - lane < kLanes ? left - lane : kLanes);
    }
    for (int block = whole; block < blocks && args.c != 1; ++block) {
      const int left = args.channels - block * kBlock;
      for (int lane = 0; lane < kBlock && lane < left; ++lane)
        for (int col = 0; col < args.width; ++col)
          Move::one(map[(block * kBlock + lane) * args.c + col * args.w],
                    blocked[block * args.block + col * kBlock + lane]);
    }
  }
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
