// The plans of plan.h and rollout_plan.h: that they fit, cover everything and are the cheapest of their tables. Called
// by arithmetic.cpp.
#include <array>
#include <set>
#include <vector>

#include "arithmetic.h"

namespace rdk::cuda::arithmetic {

void conv_plans() {
  for (int images : {1, 3, 50, 128})
    for (int channels : {16, 64, 80, 128, 512, 1024})
      for (int size : {1, 9, 16, 28, 32, 224})
        for (int dilation : {1, 2}) {
          const PaddedGrid grid{size, size, dilation};
          const ConvPlan plan = conv_plan(images, channels, grid, 132);
          expect(plan.buffers >= kConvMinBuffers, "fits", images, channels, size);
          expect(conv_layout(plan.tile, plan.slots, plan.buffers).total <= kSharedBytes, "shared memory", images,
                 channels, size);
          expect(plan.slots >= plan.tile.positions() + 2 * grid.halo(), "halo", images, channels, size);
          const int columns = plan.tiles / plan.row_tiles;
          expect(static_cast<int64_t>(columns) * plan.tile.positions() >= static_cast<int64_t>(images) * grid.period(),
                 "covers all positions");
          expect(plan.row_tiles * plan.tile.rows() >= channels && (plan.row_tiles - 1) * plan.tile.rows() < channels,
                 "covers all channels");
          std::set<std::pair<int, int>> seen;
          const Divider by = Divider::by(plan.row_tiles);
          for (int t = 0; t < plan.tiles; ++t) seen.insert({by.quotient(t), t - by.quotient(t) * plan.row_tiles});
          expect(static_cast<int>(seen.size()) == columns * plan.row_tiles, "every tile once");
    // no other tile of the table is cheaper
#define RDK_TRY(M, N)                                                                                            \
  {                                                                                                              \
    const ConvPlan other = conv_plan_for({M, N}, images, channels, grid, 132);                                   \
    expect(other.buffers < kConvMinBuffers || conv_cost(plan, channels, 132) <= conv_cost(other, channels, 132), \
           "cheapest");                                                                                          \
  }
          RDK_CONV_TILES(RDK_TRY)
#undef RDK_TRY
        }
  expect(conv_plan(1, 64, {8, 4000, 1}, 132).buffers == 0, "a row that cannot fit is refused");
}

// Halos of so many bytes that 32 bits would wrap around, for one by pure chance to what would fit.
void wide_halos() {
  for (const PaddedGrid& grid : {PaddedGrid{1, 131072, 64}, {8, 8, 5000}, {1, 32, 4017}, {1, 1, 46000}}) {
    expect(conv_plan(1, 32, grid, 132).buffers == 0, "conv", grid.width, grid.dilation);
    expect(weight_gradient_plan(1, 32, grid, 132).buffers == 0, "weight_gradient", grid.width, grid.dilation);
    expect(resident_plan(1, 32, grid, 132).refusal != nullptr, "resident", grid.width, grid.dilation);
    const Patches maps{grid.height, grid.width};
    expect(residual_plan(1, 32, grid.height, grid.width, grid.dilation, grid.dilation, 132).refusal == nullptr ||
               grid.width > 544 * grid.dilation,
           "residual: cut by the dilation, a small map fits", grid.width, grid.dilation);
    expect(residual_plan(1, 32, grid.height, grid.width, 1, grid.dilation, 132).refusal != nullptr, "residual",
           grid.width, grid.dilation);
    expect(rollout_plan(1, 32, maps, grid.dilation, 2, 132).refusal != nullptr, "rollout", grid.width, grid.dilation);
  }
}

void resident_plans() {
  // the figures of the resident map of 64 channels, 28 x 28
  const PaddedGrid w1{28, 28, 1};
  expect(resident_slots(w1) == 871 && w1.span() == 811, "slots of 28 x 28");
  expect(resident_layout(871, 64).weights == 111488 && resident_weight_bytes(64) == 73728, "bytes of 28 x 28");
  expect(resident_layout(871, 64).total <= kSharedBytes, "28 x 28 fits");
  for (int channels : {16, 32, 48, 64})
    for (int height = 1; height < 34; ++height)
      for (int width = 1; width < 34; width += 3)
        for (int dilation : {1, 2, 3}) {
          const PaddedGrid grid{height, width, dilation};
          const ResidentPlan plan = resident_plan(1, channels, grid, 132);
          if (plan.refusal != nullptr) continue;
          expect(plan.tile.positions() >= grid.span(), "tile holds the map", height, width, dilation);
          const ResidentLayout layout = resident_layout(plan.slots, channels);
          expect(layout.total <= kSharedBytes, "shared memory", channels, height, width);
          std::set<int> used;
          for (int y = 0; y < height; ++y)
            for (int x = 0; x < width; ++x) {
              const int slot = resident_first_slot(grid) + y * grid.pitch() + x;
              used.insert(slot);
              for (int r = 0; r < 3; ++r)
                for (int s = 0; s < 3; ++s)
                  expect(slot + tap_of(grid, r, s) >= 0 && slot + tap_of(grid, r, s) < plan.slots, "tap in range", y, x,
                         dilation);
            }
          // rows of a store that belong to no pixel and are redirected: no slot of theirs is one of a pixel's
          for (int q = 0; q < plan.tile.positions(); ++q) {
            const bool pixel = q < grid.span() && q % grid.pitch() < grid.width;
            expect(pixel == (used.count(resident_first_slot(grid) + q) == 1), "redirected rows", height, width, q);
          }
          // the products' reads past the map stay inside shared memory
          const int last = (channels / 8 - 1) * plan.slots + plan.tile.positions() - 1 + 2 * grid.halo();
          expect((last + 1) * kUnit <= layout.total, "reads past the end", channels, height, width);
        }
}

void residual_plans() {
  // the figures of four grids of 16 x 16 at 128 channels
  const ResidualPlan w5 = residual_plan(50, 128, 32, 32, 2, 2, 132);
  const ResidualLayout layout5 = residual_layout(w5.tile, w5.grid, w5.slots, 128, w5.buffers);
  expect(w5.refusal == nullptr && w5.grids.split == 2 && w5.items == 200 && w5.blocks == 132, "grids of 32 x 32");
  expect(w5.tile.m == 2 && w5.tile.n1 == 144 && w5.tile.n2 == 128 && w5.grid.span() == 271, "tile of 16 x 16");
  expect(w5.slots == 307 && layout5.map_bytes == 78720 && layout5.buffer_bytes == 12288, "bytes of 16 x 16");
  expect(w5.buffers == 5 && layout5.total == 223072, "shared memory of 16 x 16", w5.buffers, layout5.total);
  expect(residual_plan(1, 128, 32, 32, 1, 1, 132).refusal != nullptr, "a whole map of 32 x 32 does not fit");
  for (int channels : {16, 64, 80, 128})
    for (int height = 1; height < 40; height += 1 + height / 8)
      for (int width = 1; width < 40; width += 3)
        for (const auto& [common, largest] : std::vector<std::array<int, 2>>{{1, 1}, {1, 3}, {2, 2}, {2, 6}, {6, 6}}) {
          const ResidualPlan plan = residual_plan(3, channels, height, width, common, largest, 5);
          for (int split = 1; split <= common; ++split) {
            if (common % split != 0) continue;
            const ResidualPlan other = residual_plan_for(split, 3, channels, height, width, largest, 5);
            if (other.refusal != nullptr) continue;
            expect(plan.refusal == nullptr, "fits", channels, height, width);
            expect(ceil_div(plan.items, 5) * (plan.tile.n1 + plan.tile.n2) <=
                       ceil_div(other.items, 5) * (other.tile.n1 + other.tile.n2),
                   "cheapest", channels, height, width);
          }
          if (plan.refusal != nullptr) continue;
          const PaddedGrid& grid = plan.grid;
          expect(grid.dilation * plan.grids.split == largest && plan.tile.rows() >= channels, "cut");
          expect(plan.items == 3 * plan.grids.count() && plan.tile.positions() >= grid.span(), "tile holds the grid");
          const ResidualLayout layout = residual_layout(plan.tile, grid, plan.slots, channels, plan.buffers);
          expect(plan.buffers >= kResidualMinBuffers && layout.total <= kSharedBytes, "shared memory", channels, height,
                 width);
          expect(layout.ring % 128 == 0 && layout.buffer_bytes % 128 == 0 && layout.barriers % 8 == 0, "alignment");
          // the furthest read of a product stays in its own map, and every tap of a pixel does
          const int last = (channels / 8 - 1) * plan.slots + plan.tile.positions() - 1 + 2 * grid.halo();
          expect((last + 1) * kUnit <= layout.map_bytes, "reads past the end", channels, height, width);
          const int first = resident_first_slot(grid), end = first + grid.span() - 1;
          expect(first + tap_of(grid, 0, 0) >= 0 && end + tap_of(grid, 2, 2) < plan.slots, "taps", height, width);
        }
}

void weight_gradient_plans() {
  for (int images : {1, 5, 128})
    for (int channels : {16, 64, 144, 512})
      for (int size : {5, 16, 28}) {
        const PaddedGrid grid{size, size, 1};
        const WeightGradientPlan plan = weight_gradient_plan(images, channels, grid, 132);
        expect(plan.buffers >= 2 && weight_gradient_layout(plan.slots, plan.buffers).total <= kSharedBytes, "fits",
               images, channels, size);
        expect(static_cast<int64_t>(plan.blocks_per_pair) * kWeightGradientPositions >=
                   static_cast<int64_t>(images) * grid.period(),
               "covers all positions");
        expect(plan.slots >= kWeightGradientPositions + 2 * grid.halo(), "halo");
        for (int pairs : {1, 8}) {
          int next = 0;
          for (int split = 0; split < plan.splits; ++split) {
            expect(weight_gradient_share(pairs * plan.blocks_per_pair, plan.splits, split) == next,
                   "shares follow each other");
            next = weight_gradient_share(pairs * plan.blocks_per_pair, plan.splits, split + 1);
            expect(next > weight_gradient_share(pairs * plan.blocks_per_pair, plan.splits, split), "no share is empty",
                   images, channels, size);
          }
          expect(next == pairs * plan.blocks_per_pair, "shares cover everything");
        }
      }
  // how much of 132 multiprocessors' time the blocks fill, in percent; what tiles alone leave idle is split further
  for (const auto& [channels, filled] : std::vector<std::array<int, 2>>{{64, 90},
                                                                        {128, 100},
                                                                        {192, 95},
                                                                        {384, 95},
                                                                        {448, 92},
                                                                        {512, 96},
                                                                        {576, 92},
                                                                        {768, 72},
                                                                        {896, 98},
                                                                        {1024, 96}}) {
    const WeightGradientPlan plan = weight_gradient_plan(128, channels, {28, 28, 1}, 132);
    const int tiles = plan.channel_tiles * plan.channel_tiles, blocks = tiles * plan.splits;
    expect(100 * blocks / (ceil_div(blocks, 132) * 132) >= filled, "multiprocessors idle", channels, plan.splits);
    expect((plan.splits - 1) * tiles < 2 * 132, "too many partial sums", channels, plan.splits);
    for (int splits = 1; (splits - 1) * tiles < 2 * 132; ++splits)
      expect(weight_gradient_cost(plan, plan.splits, 132) * splits <=
                 weight_gradient_cost(plan, splits, 132) * plan.splits,
             "cheapest", channels, splits);
  }
  expect(weight_gradient_plan(0, 64, {8, 8, 1}, 132).splits == 1, "one partial sum where there are no pixels");
  // a consumer returns a buffer when it has the next: a ring of one would stand still
  for (int dilation : {1, 2, 4, 16})
    for (int width = 1; width < 700; ++width) {
      const PaddedGrid grid{3, width, dilation};
      const WeightGradientPlan plan = weight_gradient_plan(1, 64, grid, 132);
      const int slots = odd_slots(kWeightGradientPositions + 2 * grid.halo());
      if (plan.buffers > 0) {
        expect(plan.buffers >= kWeightGradientMinBuffers &&
                   weight_gradient_layout(slots, plan.buffers).total <= kSharedBytes,
               "buffers", width, dilation, plan.buffers);
      } else {
        expect(weight_gradient_layout(slots, kWeightGradientMinBuffers).total > kSharedBytes, "refused without need",
               width, dilation);
      }
    }
}

void rollout_plans() {
  // the figures of one map of 32 x 32 at 128 channels, four convolutions
  const RolloutPlan maze = rollout_plan(1, 128, {32, 32}, 1, 4, 132);
  const RolloutLayout layout = rollout_layout(maze.tile, 128, 4, 1, maze.slots);
  expect(maze.refusal == nullptr && maze.tile.n == 16 && maze.blocks == 128 && maze.patches == 1, "tiles of 32 x 32");
  expect(layout.patch == 147456 && layout.exchange - layout.patch == 25600, "bytes of 32 x 32");
  expect(layout.total == 177968, "shared memory of 32 x 32", layout.total);
  for (int images : {0, 1, 2, 5, 20})
    for (int channels : {16, 48, 64, 128, 464, 1024})
      for (int size : {1, 8, 9, 13, 28, 32, 224})
        for (int stages : {1, 2, 4, 5, 16})
          for (int dilation : {1, 2, 5, 40, 100000})
            for (int multiprocessors : {1, 4, 132}) {
              const Patches maps{size, size};
              const RolloutPlan plan = rollout_plan(images, channels, maps, dilation, stages, multiprocessors);
              if (plan.refusal != nullptr) continue;
              expect(rollout_layout(plan.tile, channels, stages, dilation, plan.slots).total <= kSharedBytes,
                     "shared memory", channels, stages, dilation);
              expect(plan.blocks <= multiprocessors && plan.patches <= kRolloutMaxPatches, "runs together",
                     plan.blocks);
              expect(plan.groups * plan.tile.n >= channels && (plan.groups - 1) * plan.tile.n < channels, "channels");
              expect(plan.blocks % plan.groups == 0, "whole groups", plan.blocks, plan.groups);
              const int columns = plan.blocks / plan.groups, all = images * maps.count();
              expect(columns * plan.patches >= all && (columns - 1) * plan.patches <= all, "patches", columns, all);
              expect(plan.slots >= patch_slots(dilation), "slots");
    // no other tile of the table is cheaper
#define RDK_TRY(N)                                                                                              \
  {                                                                                                             \
    const RolloutPlan other = rollout_plan_for({N}, images, channels, maps, dilation, stages, multiprocessors); \
    expect(other.refusal != nullptr || rollout_cost(plan, channels) <= rollout_cost(other, channels), "cost");  \
  }
              RDK_ROLLOUT_TILES(RDK_TRY)
#undef RDK_TRY
            }
}

}  // namespace rdk::cuda::arithmetic
