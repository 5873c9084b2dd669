// A program that holds every index, descriptor and schedule function of geometry.h and plan.h against plain loops;
// built and run by tests/test_cuda_arithmetic.py. Prints one line per function; exits with 1 at the first that is
// wrong.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "../plan.h"
#include "../rollout_plan.h"

using namespace rdk::cuda;

namespace {

const char* under_test = "";

void expect(bool holds, const char* what, long a = 0, long b = 0, long c = 0) {
  if (holds) return;
  std::printf("%s: %s (%ld, %ld, %ld)\n", under_test, what, a, b, c);
  std::exit(1);
}

void dividers() {
  std::mt19937 random_source(1);
  for (int divisor = 1; divisor < 3000; divisor += divisor < 70 ? 1 : 37) {
    const Divider by = Divider::by(divisor);
    const auto check = [&](int n) { expect(by.quotient(n) == n / divisor, "quotient", n, divisor, by.quotient(n)); };
    for (int n = 0; n < 500; ++n) check(n);
    for (int i = 0; i < 500; ++i) {
      const int multiple = static_cast<int>(random_source() % (0x7fffffffu / divisor)) * divisor;
      check(multiple);
      if (multiple > 0) check(multiple - 1);
    }
    check(0x7fffffff);
  }
}

// A position's pixel, and what each of its taps reads, by walking through the line of positions.
void positions() {
  for (const auto& [images, height, width, dilation] : std::vector<std::array<int, 4>>{
           {1, 1, 1, 1}, {2, 3, 5, 1}, {3, 4, 2, 3}, {2, 9, 7, 2}, {4, 1, 6, 1}, {2, 6, 1, 2}}) {
    const PaddedGrid grid{height, width, dilation};
    const Divider by_period = Divider::by(grid.period()), by_pitch = Divider::by(grid.pitch());
    const auto pixel_at = [&](int q) { return pixel_of_position(q, images, grid, by_period, by_pitch); };
    std::map<int, int> position_of;
    int q = 0;
    for (int image = 0; image < images; ++image)
      for (int y = 0; y < height + dilation; ++y)
        for (int x = 0; x < width + dilation; ++x, ++q) {
          const bool real = y < height && x < width;
          const int pixel = real ? (image * height + y) * width + x : -1;
          expect(pixel_at(q) == pixel, "pixel", q, pixel, pixel_at(q));
          if (real) position_of[pixel] = q;
        }
    expect(q == images * grid.period(), "period", q);
    for (int outside : {-1, -grid.halo(), q, q + grid.halo()})
      expect(pixel_at(outside) == -1, "outside the batch", outside);
    for (const auto& [pixel, at] : position_of)
      for (int r = 0; r < 3; ++r)
        for (int s = 0; s < 3; ++s) {
          const int y = pixel / width % height + (r - 1) * dilation, x = pixel % width + (s - 1) * dilation;
          const bool real = y >= 0 && y < height && x >= 0 && x < width;
          const int neighbour = real ? pixel + (r - 1) * dilation * width + (s - 1) * dilation : -1;
          expect(pixel_at(at + grid.tap(r, s)) == neighbour, "tap", pixel, r, s);
          expect(grid.tap(r, s) >= -grid.halo() && grid.tap(r, s) <= grid.halo(), "halo", r, s);
        }
    expect(position_of[height * width - 1] - position_of[0] + 1 == grid.span(), "span");
  }
}

void shared_maps() {
  for (int slots = 1; slots < 400; ++slots) {
    expect(odd_slots(slots) % 2 == 1 && odd_slots(slots) >= slots && odd_slots(slots) <= slots + 1, "odd_slots", slots);
    expect(slab_slots(slots) % 8 == 4 && slab_slots(slots) >= slots && slab_slots(slots) < slots + 8, "slab_slots",
           slots);
  }
  // a quarter of a warp stores 8 units at once: they must lie in 8 different groups of 4 banks
  std::set<uint32_t> banks;
  for (int chunk = 0; chunk < 8; ++chunk) banks.insert(map_address(0, odd_slots(870), chunk, 5) / kUnit % 8);
  expect(banks.size() == 8, "banks of 8 chunks");
  banks.clear();
  for (int lane = 0; lane < 8; ++lane) banks.insert(map_address(0, slab_slots(300), lane % 2, lane / 2) / kUnit % 8);
  expect(banks.size() == 8, "banks of 2 chunks");
}

// The bits that the PTX manual names: start 0-13, leading offset 16-29, stride offset 32-45, all in units of 16 bytes.
void descriptors() {
  const uint64_t d = descriptor(0x1230, 13936, 128);
  expect((d & 0x3fff) == 0x123, "start");
  expect((d >> 16 & 0x3fff) == 13936 / 16, "leading offset");
  expect((d >> 32 & 0x3fff) == 128 / 16, "stride offset");
  expect(d >> 46 == 0 && (d >> 14 & 3) == 0 && (d >> 30 & 3) == 0, "all other bits are zero");
  expect((descriptor(kSharedBytes - 16, 0, 0) & 0x3fff) == (kSharedBytes - 16) / 16, "the last unit can be named");
}

void packed_weights() {
  for (int rows : {64, 128})
    for (int channels : {16, 48, 144}) {
      const PackedWeights packed{rows};
      int64_t expected = 0;
      for (int block = 0; block * rows < channels; ++block)
        for (int slab = 0; slab < channels / 16; ++slab) {
          expect(expected == (static_cast<int64_t>(block) * (channels / 16) + slab) * packed.slab_bytes() / 2,
                 "slab_bytes");
          for (int tap = 0; tap < 9; ++tap)
            for (int half = 0; half < 2; ++half)
              for (int row = 0; row < rows; ++row)
                for (int k = 0; k < 8; ++k, ++expected)
                  expect(packed.index(block * rows + row, slab * 16 + half * 8 + k, tap, channels / 16) == expected,
                         "index", row, k, tap);
        }
    }
}

void fragments() {
  for (int columns : {64, 144, 200, 256}) {
    std::set<std::pair<int, int>> seen;
    for (int thread = 0; thread < 128; ++thread)
      for (int i = 0; i < columns / 2; ++i) seen.insert({fragment_row(thread, i), fragment_column(thread, i)});
    expect(seen.size() == 64u * columns && seen.rbegin()->first == 63, "every element once", columns);
  }
}

void conv_plans() {
  for (int images : {1, 3, 50, 128})
    for (int channels : {16, 64, 80, 128, 512, 1024})
      for (int size : {1, 9, 16, 28, 32, 224})
        for (int dilation : {1, 2}) {
          const PaddedGrid grid{size, size, dilation};
          const ConvPlan plan = conv_plan(images, channels, grid, 132);
          expect(plan.stages >= kConvMinStages, "fits", images, channels, size);
          expect(conv_layout(plan.tile, plan.slots, plan.stages).total <= kSharedBytes, "shared memory", images,
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
#define RDK_TRY(M, N)                                                                                          \
  {                                                                                                            \
    const ConvPlan other = conv_plan_for({M, N}, images, channels, grid, 132);                                 \
    expect(other.stages < kConvMinStages || conv_cost(plan, channels, 132) <= conv_cost(other, channels, 132), \
           "cheapest");                                                                                        \
  }
          RDK_CONV_TILES(RDK_TRY)
#undef RDK_TRY
        }
  expect(conv_plan(1, 64, {8, 4000, 1}, 132).stages == 0, "a row that cannot fit is refused");
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
                  expect(slot + grid.tap(r, s) >= 0 && slot + grid.tap(r, s) < plan.slots, "tap in range", y, x,
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

// Every pixel lies in one grid, and what a convolution reads from it lies in the same grid, nearer by `split`.
void sub_grids() {
  for (const auto& [images, height, width, split] : std::vector<std::array<int, 4>>{
           {1, 1, 1, 1}, {2, 5, 7, 1}, {2, 8, 6, 2}, {1, 7, 9, 2}, {1, 10, 11, 3}, {3, 2, 5, 3}, {1, 1, 4, 8}}) {
    const SubGrids grids{height, width, split};
    std::set<int64_t> seen;
    for (int item = 0; item < images * grids.count(); ++item) {
      const SubGrid sub = grids.grid(item);
      expect(sub.height >= 1 && sub.height <= ceil_div(height, split) && sub.width >= 1 &&
                 sub.width <= ceil_div(width, split),
             "size", item, sub.height, sub.width);
      for (int y = 0; y < sub.height; ++y)
        for (int x = 0; x < sub.width; ++x) {
          const int64_t pixel = grids.pixel(sub, y, x);
          expect(seen.insert(pixel).second, "each pixel once", item, y, x);
          const int column = static_cast<int>(pixel % width), row = static_cast<int>(pixel / width % height);
          expect(pixel / width / height == sub.image, "image", item, y, x);
          for (int dilation : {1, 2})  // in the grid
            for (int r = -1; r < 2; ++r)
              for (int s = -1; s < 2; ++s) {
                const int to_row = row + r * dilation * split, to_column = column + s * dilation * split;
                const bool real = to_row >= 0 && to_row < height && to_column >= 0 && to_column < width;
                const int to_y = y + r * dilation, to_x = x + s * dilation;
                const bool inside = to_y >= 0 && to_y < sub.height && to_x >= 0 && to_x < sub.width;
                expect(real == inside, "a grid ends where the map does", item, y, x);
                const int64_t there = (static_cast<int64_t>(sub.image) * height + to_row) * width + to_column;
                if (real) expect(grids.pixel(sub, to_y, to_x) == there, "tap", item, y, x);
              }
        }
    }
    expect(static_cast<int>(seen.size()) == images * height * width, "all pixels");
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
          expect(first + grid.tap(0, 0) >= 0 && end + grid.tap(2, 2) < plan.slots, "taps", height, width);
        }
}

void wgrad_plans() {
  for (int images : {1, 5, 128})
    for (int channels : {16, 64, 144, 512})
      for (int size : {5, 16, 28}) {
        const PaddedGrid grid{size, size, 1};
        const WgradPlan plan = wgrad_plan(images, channels, grid, 132);
        expect(plan.stages >= 2 && wgrad_layout(plan.slots, plan.stages).total <= kSharedBytes, "fits", images,
               channels, size);
        expect(static_cast<int64_t>(plan.blocks_per_step) * kWgradPositions >=
                   static_cast<int64_t>(images) * grid.period(),
               "covers all positions");
        expect(plan.slots >= kWgradPositions + 2 * grid.halo(), "halo");
        for (int steps : {1, 8}) {
          int next = 0;
          for (int split = 0; split < plan.splits; ++split) {
            expect(wgrad_share(steps * plan.blocks_per_step, plan.splits, split) == next, "shares follow each other");
            next = wgrad_share(steps * plan.blocks_per_step, plan.splits, split + 1);
            expect(next > wgrad_share(steps * plan.blocks_per_step, plan.splits, split), "no share is empty", images,
                   channels, size);
          }
          expect(next == steps * plan.blocks_per_step, "shares cover everything");
        }
      }
  // a consumer returns a stage when it has the next: a ring of one would stand still
  for (int dilation : {1, 2, 4, 16})
    for (int width = 1; width < 700; ++width) {
      const WgradPlan plan = wgrad_plan(1, 64, {3, width, dilation}, 132);
      if (plan.stages > 0) {
        expect(plan.stages >= kWgradMinStages && wgrad_layout(plan.slots, plan.stages).total <= kSharedBytes, "stages",
               width, dilation, plan.stages);
      } else {
        expect(wgrad_layout(plan.slots, kWgradMinStages).total > kSharedBytes, "refused without need", width, dilation);
      }
    }
}

// Every pixel lies in one patch, and what a tap reads around a patch is a pixel's own neighbour.
void patches() {
  for (const auto& [images, height, width] :
       std::vector<std::array<int, 3>>{{1, 1, 1}, {2, 8, 8}, {1, 9, 7}, {3, 16, 17}, {1, 32, 32}, {2, 3, 25}}) {
    const Patches all{height, width};
    std::set<int> seen;
    for (int patch = 0; patch < images * all.count(); ++patch) {
      for (int row = 0; row < 64; ++row) {  // of a product
        const int y = row / 8, x = row % 8, pixel = all.pixel(patch, y, x);
        if (pixel < 0) continue;
        expect(seen.insert(pixel).second && pixel < images * height * width, "each pixel once", patch, y, x);
        for (const auto& [dilation, largest] : std::vector<std::array<int, 2>>{{1, 1}, {2, 2}, {1, 3}, {2, 3}})
          for (int r = 0; r < 3; ++r)
            for (int s = 0; s < 3; ++s) {
              // the slot that row 0 reads, and from there 8 rows in a line, then a pitch further
              const int pitch = 8 + 2 * largest;
              const int slot = patch_tap(r, s, dilation, largest) + y * pitch + x;
              expect(slot >= 0 && slot < patch_slots(largest), "tap inside", r, s, slot);
              const int found = all.pixel(patch, slot / pitch - largest, slot % pitch - largest);
              const int to_y = pixel / width % height + (r - 1) * dilation;
              const int to_x = pixel % width + (s - 1) * dilation;
              const bool real = to_y >= 0 && to_y < height && to_x >= 0 && to_x < width;
              expect(found == (real ? pixel + (r - 1) * dilation * width + (s - 1) * dilation : -1), "tap", pixel, r,
                     s);
            }
      }
    }
    expect(static_cast<int>(seen.size()) == images * height * width, "all pixels", height, width);
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
            for (int processors : {1, 4, 132}) {
              const Patches maps{size, size};
              const RolloutPlan plan = rollout_plan(images, channels, maps, dilation, stages, processors);
              if (plan.refusal != nullptr) continue;
              expect(rollout_layout(plan.tile, channels, stages, dilation, plan.slots).total <= kSharedBytes,
                     "shared memory", channels, stages, dilation);
              expect(plan.blocks <= processors && plan.patches <= kRolloutMaxPatches, "runs together", plan.blocks);
              expect(plan.groups * plan.tile.n >= channels && (plan.groups - 1) * plan.tile.n < channels, "channels");
              expect(plan.blocks % plan.groups == 0, "whole groups", plan.blocks, plan.groups);
              const int columns = plan.blocks / plan.groups, all = images * maps.count();
              expect(columns * plan.patches >= all && (columns - 1) * plan.patches <= all, "patches", columns, all);
              expect(plan.slots >= patch_slots(dilation), "slots");
    // no other tile of the table is cheaper
#define RDK_TRY(N)                                                                                             \
  {                                                                                                            \
    const RolloutPlan other = rollout_plan_for({N}, images, channels, maps, dilation, stages, processors);     \
    expect(other.refusal != nullptr || rollout_cost(plan, channels) <= rollout_cost(other, channels), "cost"); \
  }
              RDK_ROLLOUT_TILES(RDK_TRY)
#undef RDK_TRY
            }
}

}  // namespace

// everything is known at compile time too
static_assert(Divider::by(29).quotient(811) == 27);
static_assert(conv_plan(128, 512, {16, 16, 1}, 132).stages >= 3);
// what the warpgroups of a block ask for is what it was launched with: 65,536 registers, a multiple of 8 per thread
constexpr int launched_registers(int threads) { return 65536 / threads / 8 * 8 * (threads / kWarpgroup); }
static_assert(kConvProducerRegisters + 2 * kConvConsumerRegisters <= launched_registers(kConvThreads) &&
              kWgradProducerRegisters + 3 * kWgradConsumerRegisters <= launched_registers(kWgradThreads) &&
              kResidualCarrierRegisters + 2 * kResidualConsumerRegisters <= launched_registers(kResidualThreads));

int main() {
  const std::map<const char*, void (*)()> checks = {
      {"dividers", dividers},          {"positions", positions},           {"shared_maps", shared_maps},
      {"descriptors", descriptors},    {"packed_weights", packed_weights}, {"fragments", fragments},
      {"conv_plans", conv_plans},      {"resident_plans", resident_plans}, {"wgrad_plans", wgrad_plans},
      {"sub_grids", sub_grids},        {"residual_plans", residual_plans}, {"patches", patches},
      {"rollout_plans", rollout_plans}};
  for (const auto& [name, check] : checks) {
    under_test = name;
    check();
    std::printf("%s: right\n", name);
  }
  return 0;
}
