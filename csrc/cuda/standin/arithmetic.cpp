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
}

}  // namespace

// everything is known at compile time too
static_assert(Divider::by(29).quotient(811) == 27);
static_assert(conv_plan(128, 512, {16, 16, 1}, 132).stages >= 3);
static_assert(kConvProducerRegisters + 2 * kConvConsumerRegisters <= 512 &&
              kWgradProducerRegisters + 3 * kWgradConsumerRegisters <= 512);

int main() {
  const std::map<const char*, void (*)()> checks = {
      {"dividers", dividers},       {"positions", positions},           {"shared_maps", shared_maps},
      {"descriptors", descriptors}, {"packed_weights", packed_weights}, {"fragments", fragments},
      {"conv_plans", conv_plans},   {"resident_plans", resident_plans}, {"wgrad_plans", wgrad_plans}};
  for (const auto& [name, check] : checks) {
    under_test = name;
    check();
    std::printf("%s: right\n", name);
  }
  return 0;
}
