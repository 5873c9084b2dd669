// Which tile, how many buffers and blocks: pure arithmetic on sizes; called by ops.cpp, ops_residual.cpp, the
// kernels (layouts) and the tests.
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
  int buffer_bytes, staging, positions, barriers, total;
};

RDK_BOTH constexpr ConvLayout conv_layout(ConvTile tile, int slots, int buffers) {
  ConvLayout layout{};
  layout.buffer_bytes = round_up(2 * slots * kUnit, 128) + PackedWeights{tile.rows()}.slab_bytes();
  layout.staging = buffers * layout.buffer_bytes;
  layout.positions = layout.staging + 2 * tile.staging_bytes();
  layout.barriers = layout.positions + round_up(4 * slots, 16);
  layout.total = layout.barriers + 2 * 8 * kConvMaxBuffers;
  return layout;
}

struct ConvPlan {
  ConvTile tile;
  int slots, buffers, row_tiles, tiles, blocks, groups;  // groups: rows of the statistics
};

constexpr ConvPlan conv_plan_for(ConvTile tile, int images, int channels, const PaddedGrid& grid, int multiprocessors) {
  ConvPlan plan{};
  plan.tile = tile;
  if (!grid.halo_fits()) return plan;
  plan.slots = slab_slots(tile.positions() + 2 * grid.halo());
  plan.buffers = kConvMaxBuffers;
  while (plan.buffers > 0 && conv_layout(tile, plan.slots, plan.buffers).total > kSharedBytes) --plan.buffers;
  const int64_t positions = static_cast<int64_t>(images) * grid.period();
  const int columns = static_cast<int>((positions + tile.positions() - 1) / tile.positions());
  plan.row_tiles = ceil_div(channels, tile.rows());
  plan.tiles = columns * plan.row_tiles;
  plan.blocks = plan.tiles < multiprocessors ? plan.tiles : multiprocessors;
  plan.groups = columns * 2 / tile.m;
  return plan;
}

// Clocks of the slowest multiprocessor: waves of tiles, each bound by its products or by what it reads (est.).
constexpr int64_t conv_cost(const ConvPlan& plan, int channels, int multiprocessors) {
  const int64_t products = 9 * plan.tile.n;  // of one slab: two warpgroups, 9 taps, n / 2 clocks each
  const int64_t reads = conv_layout(plan.tile, plan.slots, 1).buffer_bytes / kL2BytesPerClock;
  const int64_t slab = products > reads ? products : reads;
  const int64_t hidden = plan.buffers < 3 ? 5 : 4;  // two buffers hide less of the reads
  return ceil_div(plan.tiles, multiprocessors) * slab * (channels / kChannelStep + kConvTileOverhead) * hidden;
}

// The cheapest tile that fits in shared memory; buffers is below kConvMinBuffers where none does.
constexpr ConvPlan conv_plan(int images, int channels, const PaddedGrid& grid, int multiprocessors) {
  ConvPlan best{};
#define RDK_TRY(M, N)                                                                                             \
  {                                                                                                               \
    const ConvPlan plan = conv_plan_for({M, N}, images, channels, grid, multiprocessors);                         \
    if (plan.buffers >= kConvMinBuffers && (best.buffers == 0 || conv_cost(plan, channels, multiprocessors) <     \
                                                                     conv_cost(best, channels, multiprocessors))) \
      best = plan;                                                                                                \
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
  p.buffers = plan.buffers;
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

// In 64 bits: a map that exceeds shared memory may have any number of them.
RDK_BOTH constexpr int64_t resident_slots(const PaddedGrid& grid) {
  const int64_t rows = grid.height + 2 * int64_t{grid.dilation};
  return (grid.dilation + rows * (int64_t{grid.width} + grid.dilation)) | 1;  // as odd_slots
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
constexpr ResidentPlan resident_plan(int images, int channels, const PaddedGrid& grid, int multiprocessors) {
  ResidentPlan plan{};
  const int64_t slots = resident_slots(grid);
  plan.blocks = images < multiprocessors ? images : multiprocessors;
#define RDK_TRY(N1, N2) \
  if (plan.tile.n1 == 0 && ResidentTile{N1, N2}.positions() >= grid.span()) plan.tile = {N1, N2};
  RDK_RESIDENT_TILES(RDK_TRY)
#undef RDK_TRY
  if (channels > kResidentMaxChannels) {
    plan.refusal = "the accumulators hold 64 channels";
  } else if (plan.tile.n1 == 0) {
    plan.refusal = "the accumulators of two warpgroups hold 816 positions";
  } else if (slots * kUnit > kSharedBytes || resident_layout(static_cast<int>(slots), channels).total > kSharedBytes) {
    plan.refusal = "map and weights exceed the shared memory of a multiprocessor";
  } else {
    plan.slots = static_cast<int>(slots);
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

// ---- residual

struct ResidualTile {
  int m, n1, n2;
  RDK_BOTH constexpr int rows() const { return kRows * m; }
  RDK_BOTH constexpr int positions() const { return (n1 + n2) * 2 / m; }
};

struct ResidualLayout {  // offsets in shared memory; the two maps are at 0 and map_bytes
  int map_bytes, buffer_bytes, ring, trash, barriers, total;
};

// A map ends where the products' reads do: no read of one map reaches what is being written behind it.
RDK_BOTH constexpr ResidualLayout residual_layout(ResidualTile tile, const PaddedGrid& grid, int slots, int channels,
                                                  int buffers) {
  const int reach = tile.positions() + 2 * grid.halo();
  ResidualLayout layout{};
  layout.map_bytes = round_up(((channels / 8 - 1) * slots + (reach > slots ? reach : slots)) * kUnit, 128);
  layout.buffer_bytes = 3 * PackedWeights{tile.rows()}.tap_bytes();
  layout.ring = 2 * layout.map_bytes;
  layout.trash = layout.ring + buffers * layout.buffer_bytes;
  layout.barriers = layout.trash + 2 * kWarpgroup * kUnit;
  layout.total = layout.barriers + 2 * 8 * kResidualMaxBuffers;
  return layout;
}

struct ResidualPlan {
  ResidualTile tile;
  SubGrids grids;
  PaddedGrid grid;
  int slots, buffers, items, blocks;
  const char* refusal;  // null where a grid fits
};

// The smallest tile for maps cut by `split`. `dilation`: the largest of the stages'.
constexpr ResidualPlan residual_plan_for(int split, int images, int channels, int height, int width, int dilation,
                                         int multiprocessors) {
  ResidualPlan plan{};
  plan.grids = {height, width, split};
  plan.grid = {ceil_div(height, split), ceil_div(width, split), dilation / split};
  plan.items = images * plan.grids.count();
  plan.blocks = plan.items < multiprocessors ? plan.items : multiprocessors;
  const int64_t rows = plan.grid.height + 2 * int64_t{plan.grid.dilation};
  const int64_t columns = int64_t{plan.grid.width} + plan.grid.dilation;
  if (channels > kResidualMaxChannels) {
    plan.refusal = "the accumulators hold 128 channels";
  } else if (rows * columns * channels * 2 * 2 > kSharedBytes) {
    plan.refusal = "two maps exceed the shared memory of a multiprocessor";
  } else {
    plan.slots = static_cast<int>(resident_slots(plan.grid));
#define RDK_TRY(M, N1, N2)                                                                                           \
  if (plan.tile.m == 0 && M == ceil_div(channels, kRows) && ResidualTile{M, N1, N2}.positions() >= plan.grid.span()) \
    plan.tile = {M, N1, N2};
    RDK_RESIDUAL_TILES(RDK_TRY)
#undef RDK_TRY
    if (plan.tile.m == 0) {
      plan.refusal = channels > kRows ? "the accumulators of two warpgroups hold 272 positions of 128 channels"
                                      : "the accumulators of two warpgroups hold 544 positions of 64 channels";
      return plan;
    }
    plan.buffers = kResidualMaxBuffers;
    const auto bytes = [&] { return residual_layout(plan.tile, plan.grid, plan.slots, channels, plan.buffers).total; };
    while (plan.buffers > 0 && bytes() > kSharedBytes) --plan.buffers;
    if (plan.buffers < kResidualMinBuffers)
      plan.refusal = "two maps and a ring of weights exceed the shared memory of a multiprocessor";
  }
  return plan;
}

// The cheapest cut: waves of grids over the multiprocessors, each as long as its tile is wide (est.). `common`:
// greatest common divisor of the stages' dilations; `refusal` is that of the finest cut.
constexpr ResidualPlan residual_plan(int images, int channels, int height, int width, int common, int largest,
                                     int multiprocessors) {
  const auto cost = [multiprocessors](const ResidualPlan& plan) {
    return static_cast<int64_t>(ceil_div(plan.items, multiprocessors)) * (plan.tile.n1 + plan.tile.n2);
  };
  ResidualPlan best = residual_plan_for(common, images, channels, height, width, largest, multiprocessors);
  for (int split = common - 1; split > 0; --split) {
    if (common % split != 0) continue;
    const ResidualPlan plan = residual_plan_for(split, images, channels, height, width, largest, multiprocessors);
    if (plan.refusal == nullptr && (best.refusal != nullptr || cost(plan) <= cost(best))) best = plan;
  }
  return best;
}

constexpr ResidualParams residual_params(const ResidualPlan& plan, int images, int channels) {
  ResidualParams p{};
  p.images = images;
  p.channels = channels;
  p.grids = plan.grids;
  p.grid = plan.grid;
  p.by_width = Divider::by(plan.grid.width);
  p.slots = plan.slots;
  p.buffers = plan.buffers;
  return p;
}

// ---- weight_gradient

struct WeightGradientLayout {  // offsets in shared memory
  int buffer_bytes, barriers, total;
};

RDK_BOTH constexpr WeightGradientLayout weight_gradient_layout(int slots, int buffers) {
  WeightGradientLayout layout{};
  layout.buffer_bytes = round_up(kRows / 8 * (odd_slots(kWeightGradientPositions) + slots) * kUnit, 128);
  layout.barriers = buffers * layout.buffer_bytes;
  layout.total = layout.barriers + 2 * 8 * kWeightGradientMaxBuffers;
  return layout;
}

// First of the blocks of positions that split `split` of `splits` takes; equal shares to within one.
RDK_BOTH constexpr int weight_gradient_share(int blocks, int splits, int split) {
  return static_cast<int>(static_cast<int64_t>(blocks) * split / splits);
}

struct WeightGradientPlan {
  int slots, buffers, channel_tiles, splits, blocks_per_pair;
};

// Time of one pair in buffers' products: waves of blocks over the multiprocessors, each with its share of the positions
// and a partial sum to add to (est.); times `splits`, to remain a whole number.
constexpr int64_t weight_gradient_cost(const WeightGradientPlan& plan, int splits, int multiprocessors) {
  const int64_t waves = ceil_div(plan.channel_tiles * plan.channel_tiles * splits, multiprocessors);
  return waves * (plan.blocks_per_pair + static_cast<int64_t>(kWeightGradientSumBuffers) * splits);
}

// `splits` is the cheapest whose partial sums are no more than two waves of blocks write. It depends on nothing but
// sizes, so that partial sums carry over from launch to launch. buffers is 0 where two of them do not fit with the
// halo.
constexpr WeightGradientPlan weight_gradient_plan(int images, int channels, const PaddedGrid& grid,
                                                  int multiprocessors) {
  WeightGradientPlan plan{};
  if (grid.halo_fits()) {
    plan.slots = odd_slots(kWeightGradientPositions + 2 * grid.halo());
    plan.buffers = kWeightGradientMaxBuffers;
    while (plan.buffers > 0 && weight_gradient_layout(plan.slots, plan.buffers).total > kSharedBytes) --plan.buffers;
    if (plan.buffers < kWeightGradientMinBuffers) plan.buffers = 0;
  }
  plan.channel_tiles = ceil_div(channels, kRows);
  const int64_t positions = static_cast<int64_t>(images) * grid.period();
  plan.blocks_per_pair = static_cast<int>((positions + kWeightGradientPositions - 1) / kWeightGradientPositions);
  const int most = ceil_div(2 * multiprocessors, plan.channel_tiles * plan.channel_tiles);
  plan.splits = 1;
  for (int splits = 2; splits <= most && splits <= plan.blocks_per_pair; ++splits) {
    const int64_t cost = weight_gradient_cost(plan, splits, multiprocessors) * plan.splits;
    if (cost < weight_gradient_cost(plan, plan.splits, multiprocessors) * splits) plan.splits = splits;
  }
  return plan;
}

constexpr WeightGradientParams weight_gradient_params(const WeightGradientPlan& plan, int images, int channels,
                                                      const PaddedGrid& grid) {
  WeightGradientParams p{};
  p.images = images;
  p.channels = channels;
  p.grid = grid;
  p.by_period = Divider::by(grid.period());
  p.by_pitch = Divider::by(grid.pitch());
  p.channel_tiles = plan.channel_tiles;
  p.splits = plan.splits;
  p.blocks_per_pair = plan.blocks_per_pair;
  p.slots = plan.slots;
  p.buffers = plan.buffers;
  return p;
}

}  // namespace rdk::cuda
