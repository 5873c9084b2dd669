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
struct AddPixels {
  RDK_INLINE void full(float* map, float* blocked) { store(map, add(load(map), load(blocked))); }
  RDK_INLINE void some(float* map, float* blocked, int lanes) {
    store_part(map, add(load_part(map, lanes), load(blocked)), lanes);
  }
  RDK_INLINE void one(float& map, float& blocked) { map += blocked; }
};

template <class Move>
static void move_map(const MapArgs& args) {
  const int blocks = (args.channels + kBlock - 1) / kBlock;
  for (int row = 0; row < args.height; ++row) {
    for (int block = 0; block < blocks; ++block) {
      const int left = args.channels - block * kBlock;
      float* map = args.map + row * args.h + block * kBlock * args.c;
      float* blocked = args.blocked + block * args.block + row * args.row;
      if (args.c == 1 && left >= kBlock) {
        for (int col = 0; col < args.width; ++col)
          for (int lane = 0; lane < kBlock; lane += kLanes)
            Move::full(map + col * args.w + lane, blocked + col * kBlock + lane);
      } else if (args.c == 1) {
        for (int col = 0; col < args.width; ++col)
          for (int lane = 0; lane < kBlock; lane += kLanes) {
            const int lanes = left - lane < 0 ? 0 : left - lane < kLanes ? left - lane : kLanes;
            Move::some(map + col * args.w + lane, blocked + col * kBlock + lane, lanes);
          }
      } else {
        for (int lane = 0; lane < kBlock && lane < left; ++lane)
          for (int col = 0; col < args.width; ++col)
            Move::one(map[lane * args.c + col * args.w], blocked[col * kBlock + lane]);
      }
    }
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
