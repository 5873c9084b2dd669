// Every tuning number of the CPU backend's C++, in one place; included by plan.h, convolve.cpp, the bindings
// and, of the kernels, product.h, tile_transforms.h and filter_transform.h. Two kinds stand elsewhere: kRowTiles and
// kWeightRows, with the registers that they fill, in vector_avx2.h and vector_avx512.h; and what cuts calls and memory
// in Python, SLICE_PRODUCTS, UNTIED_FILTER_BYTES, SUM_BYTES and WORKER_PIXELS, in rdk/backends/cpu_runs.py.
#pragma once
#include <stdint.h>

namespace rdk {

// plan: tiles of a chunk, and about of a group (enough to use a filter panel often, few enough that maps and
// transformed tiles stay near the second-level cache; multiples of a step of the AVX-512 product), and pairs of output
// blocks whose products wait for the output transform together (each pass over the pairs fetches the tiles again)
struct Cut {
  int most_blocks, tiles, pairs;
};
constexpr Cut kCuts[] = {
    {1, 70, 1},          // all of it is small
    {4, 42, 1},          // the filters stay in the second-level cache, and so do the tiles that they leave room for
    {8, 84, 2},          // the filters do not: more tiles for each fetch of them
    {INT32_MAX, 70, 4},  // neither do the tiles
};

// plan: bytes of blocked maps that a worker holds at most, beyond which maps are walked down in bands (the caches have
// long ceased to hold them; enough for the windows of a few iterations); and the steps that fit into a window beside
// the rows it must hold (each time it is full its last rows are moved to its start), and iterations of one walk
constexpr int64_t kHeldBytes = int64_t{8} << 20;
constexpr int kWindowSteps = 4;
constexpr int kWalkIterations = 16;

// tiles of one strip: its column transforms leave room in the first-level cache for the points' lines
constexpr int kMaxStripTiles = 4;

// product: channels per partial sum; a filter panel stays in the first-level cache, and rounding grows less
constexpr int kDepth = 128;

// filter transforms: points, and outputs of a weight, are lines far from one another; those of so many inputs later are
// fetched ahead, or each access waits for its own
constexpr int kInputsAhead = 4;

// bytes of transformed filters from which they are stored past the caches: most of so many are gone from the
// second-level cache before the product reads them, and each line would be fetched from memory only to be overwritten
constexpr int64_t kStreamedFilters = int64_t{3} << 20;

// bytes from which a call's scratch memory is kept for the next: less of it the C library keeps anyway
constexpr int64_t kLeastKept = int64_t{1} << 20;

// norm: pixels whose moments are taken at once, while they are in the cache
constexpr int64_t kMomentPixels = 64;

}  // namespace rdk
