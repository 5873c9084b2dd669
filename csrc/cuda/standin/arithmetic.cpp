// A program that holds every index, descriptor and schedule function of geometry.h and plan.h against plain loops;
// built and run by tests/test_cuda_arithmetic.py. Prints one line per function; exits with 1 at the first that is
// wrong.
#include <array>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "arithmetic.h"

using namespace rdk::cuda;
using namespace rdk::cuda::arithmetic;

namespace {

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
          expect(pixel_at(at + tap_of(grid, r, s)) == neighbour, "tap", pixel, r, s);
          expect(tap_of(grid, r, s) >= -grid.halo() && tap_of(grid, r, s) <= grid.halo(), "halo", r, s);
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
  expect(descriptor_start(0x3000000 + 0x1230) == 0x123, "the number of a block in its cluster is no part of a start");
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

}  // namespace

// everything is known at compile time too
static_assert(Divider::by(29).quotient(811) == 27);
static_assert(conv_plan(128, 512, {16, 16, 1}, 132).buffers >= 3);
// what the warpgroups of a block ask for is what it was launched with: 65,536 registers, a multiple of 8 per thread
constexpr int launched_registers(int threads) { return 65536 / threads / 8 * 8 * (threads / kWarpgroup); }
static_assert(kConvProducerRegisters + 2 * kConvConsumerRegisters <= launched_registers(kConvThreads) &&
              kWeightGradientProducerRegisters + 3 * kWeightGradientConsumerRegisters <=
                  launched_registers(kWeightGradientThreads) &&
              kResidualCarrierRegisters + 2 * kResidualConsumerRegisters <= launched_registers(kResidualThreads));

int main() {
  const std::map<const char*, void (*)()> checks = {{"dividers", dividers},
                                                    {"positions", positions},
                                                    {"shared_maps", shared_maps},
                                                    {"descriptors", descriptors},
                                                    {"packed_weights", packed_weights},
                                                    {"fragments", fragments},
                                                    {"conv_plans", conv_plans},
                                                    {"resident_plans", resident_plans},
                                                    {"weight_gradient_plans", weight_gradient_plans},
                                                    {"sub_grids", sub_grids},
                                                    {"residual_plans", residual_plans},
                                                    {"patches", patches},
                                                    {"rollout_plans", rollout_plans},
                                                    {"wide_halos", wide_halos}};
  for (const auto& [name, check] : checks) {
    under_test = name;
    check();
    std::printf("%s: right\n", name);
  }
  return 0;
}
