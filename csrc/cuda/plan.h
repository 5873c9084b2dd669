// Which tile, how many stages and blocks: pure arithmetic on sizes; called by ops.cpp, the kernels (layouts) and the
// tests.
#pragma once

#include <cstdint>

#include "params.h"

namespace rdk::cuda {

// ---- conv

struct ConvTile {
  int m = 1, n = 0;  // 64 * m output channels; n positions per warpgroup
  RDK_BOTH constexpr int rows() const { return kRows * m; }
  RDK_BOTH constexpr int positions() const { return n * 2 / m; }
  RDK_BOTH constexpr int staging_slots() const { return odd_slots(n); }
  RDK_BOTH constexpr int staging_bytes() const { return round_up(kRows / 8 * staging_slots() * kUnit, 128); }
};

struct ConvLayout {  // offsets in shared memory
  int stage_bytes, staging, positions, barriers, total;
};

RDK_BOTH constexpr ConvLayout conv_layout(ConvTile tile, int slots, int stages) {
  ConvLayout layout{};
  layout.stage_bytes = round_up(2 * slots * kUnit, 128) + PackedWeights{tile.rows()}.slab_bytes();
  layout.staging = stages * layout.stage_bytes;
  layout.positions = layout.staging + 2 * tile.staging_bytes();
  layout.barriers = layout.positions + round_up(4 * slots, 16);
  layout.total = layout.barriers + 2 * 8 * kConvMaxStages;
  return layout;
}

struct ConvPlan {
  ConvTile tile;
  int slots, stages, row_tiles, tiles, blocks, groups;  // groups: rows of the statistics
};

constexpr ConvPlan conv_plan_for(ConvTile tile, int images, int channels, const PaddedGrid& grid, int processors) {
  ConvPlan plan{};
  plan.tile = tile;
  plan.slots = slab_slots(tile.positions() + 2 * grid.halo());
  plan.stages = kConvMaxStages;
  while (plan.stages > 0 && conv_layout(tile, plan.slots, plan.stages).total > kSharedBytes) --plan.stages;
  const int64_t positions = static_cast<int64_t>(images) * grid.period();
  const int columns = static_cast<int>((positions + tile.positions() - 1) / tile.positions());
  plan.row_tiles = ceil_div(channels, tile.rows());
  plan.tiles = columns * plan.row_tiles;
  plan.blocks = plan.tiles < processors ? plan.tiles : processors;
  plan.groups = columns * 2 / tile.m;
  return plan;
}

// Clocks of the slowest multiprocessor: waves of tiles, each bound by its products or by what it reads (est.).
constexpr int64_t conv_cost(const ConvPlan& plan, int channels, int processors) {
  const int64_t products = 9 * plan.tile.n;  // of one slab: two warpgroups, 9 taps, n / 2 clocks each
  const int64_t reads = conv_layout(plan.tile, plan.slots, 1).stage_bytes / kL2BytesPerClock;
  const int64_t slab = products > reads ? products : reads;
  const int64_t hidden = plan.stages < 3 ? 5 : 4;  // two stages hide less of the reads
  return ceil_div(plan.tiles, processors) * slab * (channels / kChannelStep + kConvTileOverhead) * hidden;
}

// The cheapest tile that fits in shared memory; stages is below kConvMinStages where none does.
constexpr ConvPlan conv_plan(int images, int channels, const PaddedGrid& grid, int processors) {
  ConvPlan best{};
#define RDK_TRY(M, N)                                                                                        \
  {                                                                                                          \
    const ConvPlan plan = conv_plan_for({M, N}, images, channels, grid, processors);                         \
    if (plan.stages >= kConvMinStages &&                                                                     \
        (best.stages == 0 || conv_cost(plan, channels, processors) < conv_cost(best, channels, processors))) \
      best = plan;                                                                                           \
  }
  RDK_CONV_TILES(RDK_TRY)
#undef RDK_TRY
  return best;
}

// Geometry of the launch; the caller adds the pointers.
constexpr ConvParams conv_params(const ConvPlan& plan, int images, int channels, const PaddedGrid& grid) {
  ConvParams p{};
  p.images = images;
  p.channels = channels;
  p.grid = grid;
  p.by_period = Divider::by(grid.period());
  p.by_pitch = Divider::by(grid.pitch());
  p.by_row_tiles = Divider::by(plan.row_tiles);
  p.row_tiles = plan.row_tiles;
  p.tiles = plan.tiles;
  p.slots = plan.slots;
  p.stages = plan.stages;
  return p;
}

// ---- resident

struct ResidentTile {
  int n1, n2;
  RDK_BOTH constexpr int positions() const { return 2 * (n1 + n2); }
};

struct ResidentLayout {  // offsets in shared memory; the map is at 0
  int weights, trash, barrier, total;
};

// The slot of pixel (0, 0): `dilation` empty rows above it and as many columns before the first.
RDK_BOTH constexpr int resident_first_slot(const PaddedGrid& grid) {
  return grid.dilation + grid.dilation * grid.pitch();
}

RDK_BOTH constexpr int resident_slots(const PaddedGrid& grid) {
  return odd_slots(grid.dilation + (grid.height + 2 * grid.dilation) * grid.pitch());
}
RDK_BOTH constexpr int resident_weight_bytes(int channels) {
  return channels / kChannelStep * PackedWeights{kRows}.slab_bytes();
}

RDK_BOTH constexpr ResidentLayout resident_layout(int slots, int channels) {
  ResidentLayout layout{};
  layout.weights = round_up(channels / 8 * slots * kUnit, 128);
  layout.trash = layout.weights + resident_weight_bytes(channels);
  layout.barrier = layout.trash + kResidentThreads * kUnit;
  layout.total = layout.barrier + 16;
  return layout;
}

struct ResidentPlan {
  ResidentTile tile;
  int slots, blocks;
  const char* refusal;  // null where the map fits
};

// The smallest tile that holds the map; `refusal` says which of the limits is exceeded.
constexpr ResidentPlan resident_plan(int images, int channels, const PaddedGrid& grid, int processors) {
  ResidentPlan plan{};
  plan.slots = resident_slots(grid);
  plan.blocks = images < processors ? images : processors;
#define RDK_TRY(N1, N2) \
  if (plan.tile.n1 == 0 && ResidentTile{N1, N2}.positions() >= grid.span()) plan.tile = {N1, N2};
  RDK_RESIDENT_TILES(RDK_TRY)
#undef RDK_TRY
  if (channels > kResidentMaxChannels) {
    plan.refusal = "the accumulators hold 64 channels";
  } else if (plan.tile.n1 == 0) {
    plan.refusal = "the accumulators of two warpgroups hold 816 positions";
  } else if (resident_layout(plan.slots, channels).total > kSharedBytes) {
    plan.refusal = "map and weights exceed the shared memory of a multiprocessor";
  }
  return plan;
}

constexpr ResidentParams resident_params(const ResidentPlan& plan, int images, int channels, const PaddedGrid& grid) {
  ResidentParams p{};
  p.images = images;
  p.channels = channels;
  p.grid = grid;
  p.by_width = Divider::by(grid.width);
  p.slots = plan.slots;
  return p;
}

// ---- wgrad

struct WgradLayout {  // offsets in shared memory
  int stage_bytes, barriers, total;
};

RDK_BOTH constexpr WgradLayout wgrad_layout(int slots, int stages) {
  WgradLayout layout{};
  layout.stage_bytes = round_up(kRows / 8 * (odd_slots(kWgradPositions) + slots) * kUnit, 128);
  layout.barriers = stages * layout.stage_bytes;
  layout.total = layout.barriers + 2 * 8 * kWgradMaxStages;
  return layout;
}

// First of the blocks of positions that split `split` of `splits` takes; equal shares to within one.
RDK_BOTH constexpr int wgrad_share(int blocks, int splits, int split) {
  return static_cast<int>(static_cast<int64_t>(blocks) * split / splits);
}

struct WgradPlan {
  int slots, stages, channel_tiles, splits, blocks_per_step;
};

// `splits` depends on nothing but sizes, so that partial sums carry over from launch to launch. stages is 0 where the
// halo does not fit.
constexpr WgradPlan wgrad_plan(int images, int channels, const PaddedGrid& grid, int processors) {
  WgradPlan plan{};
  plan.slots = odd_slots(kWgradPositions + 2 * grid.halo());
  plan.stages = kWgradMaxStages;
  while (plan.stages > 0 && wgrad_layout(plan.slots, plan.stages).total > kSharedBytes) --plan.stages;
  plan.channel_tiles = ceil_div(channels, kRows);
  const int64_t positions = static_cast<int64_t>(images) * grid.period();
  plan.blocks_per_step = static_cast<int>((positions + kWgradPositions - 1) / kWgradPositions);
  const int tiles = plan.channel_tiles * plan.channel_tiles;
  plan.splits = tiles < processors ? processors / tiles : 1;
  if (plan.splits > plan.blocks_per_step) plan.splits = plan.blocks_per_step;
  return plan;
}

constexpr WgradParams wgrad_params(const WgradPlan& plan, int images, int channels, const PaddedGrid& grid) {
  WgradParams p{};
  p.images = images;
  p.channels = channels;
  p.grid = grid;
  p.by_period = Divider::by(grid.period());
  p.by_pitch = Divider::by(grid.pitch());
  p.channel_tiles = plan.channel_tiles;
  p.splits = plan.splits;
  p.blocks_per_step = plan.blocks_per_step;
  p.slots = plan.slots;
  p.stages = plan.stages;
  return p;
}

}  // namespace rdk::cuda
