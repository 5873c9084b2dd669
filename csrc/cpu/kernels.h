// What the kernels and their callers agree on: argument structs of pointers and strides, and one table of kernels
// per instruction set. Included by crew.h, plan.h, isa.h, kernels_avx2.cpp and kernels_avx512.cpp.
// Strides that inner loops use are passed by value, or copied first: a vector's store might change what a reference
// points to, so that every step would load them again.
#pragma once
#include <stdint.h>

namespace rdk {

constexpr int kBlock = 16;  // channels stored side by side: one cache line of floats

// Tile kinds: outputs per tile, rows x columns. In the kernels' templates a tile has MR x MC outputs and TR x TC =
// (MR + 2) x (MC + 2) points; filters are transformed for the largest kind of a stage.
enum Kind { kTile22, kTile33, kTile34, kTile43, kTile44, kKinds };
constexpr int kTileRows[kKinds] = {2, 3, 3, 4, 4};
constexpr int kTileCols[kKinds] = {2, 3, 4, 3, 4};
constexpr int kMaxAddends = 3;

// Tiles side by side in one tile row of one sub-grid of one image.
struct Strip {
  int64_t offset;  // floats from the start of a blocked buffer to the first tile's first output pixel, block 0
  int32_t first;   // number of the first tile within the chunk
  int32_t tiles;
  int32_t rows;  // output rows inside the map, at most the tile's
  int32_t cols;  // output columns inside the map over all tiles of the strip
};

// A blocked buffer as the transforms see it; steps include the dilation.
struct Grid {
  int64_t block;  // floats from one channel block to the next
  int64_t row;    // floats from one row of the sub-grid to the next
  int64_t pixel;
  int32_t blocks;
};

struct Tiles {
  const Strip* strips;
  int32_t count;
};

// Transformed data: [row of points][point][block][tile][16 channels]
struct Points {
  float* data;
  int64_t row;    // floats from one row of points to the next
  int64_t point;  // floats from one point to the next
  int64_t block;
};

// The tiles that have a point: F(3,3) lacks one of the points of F(4,3).
struct TileRange {
  int32_t first, count;
};

struct Epilogue {
  const float* bias;  // (C), or null
  const float* mean;  // (C) each; null without norm: z = (z - mean) * scale + shift
  const float* scale;
  const float* shift;
  const float* addends[kMaxAddends];  // blocked buffers, null from the first unused one on
  const float* mask;                  // blocked buffer: 0 where it is <= 0; null without
  bool relu;
};

struct OutputArgs {
  Points points;
  Grid grid;
  Tiles tiles;
  float* target;
  int32_t first_block;  // of the target; points hold grid.blocks blocks from there on
  Epilogue epilogue;
};

// m[p][b][t] = sum over channels of v[p][channel][t] * u[p][channel][b]
struct ProductArgs {
  Points v, m;
  const float* u;  // [point][pair of blocks][channel, padded][32], the last pair 16 wide where blocks are odd
  int64_t u_point;
  int32_t channels;  // summed over
  int32_t blocks;    // of outputs, in all
  int32_t first_pair, pairs;
  int32_t points;
  const TileRange* ranges;  // one per point
};

// The weight gradients' sums: u[p][channel][b] += sum over tiles of v[p][channel][t] * w[p][b][t]
struct WeightProductArgs {
  Points v, w;
  float* u;
  int64_t u_point;
  int32_t blocks;  // of v and of w
  int32_t first_point, points;
  const TileRange* ranges;  // one per point, from point 0 on
};

// Weights of any strides; an output lane o, an input channel i, a tap (r, s).
struct FilterArgs {
  float* weight;
  int64_t output, input, row, col;
  int32_t outputs, inputs;
  float* u;  // as ProductArgs.u; for a weight gradient `copies` of them, copy_stride apart, are summed
  int64_t u_point;
  int32_t blocks;  // of outputs; also the padded input channels / 16
  int32_t first_block, end_block;
  int32_t copies;
  int64_t copy_stride;
  bool streamed = false;  // filters stored past the caches, where a vector is a whole line; u on a line's boundary
};

// One image between a strided map and a blocked buffer.
struct MapArgs {
  float* map;
  int64_t c, h, w;  // strides
  float* blocked;   // first pixel inside the border
  int64_t block, row;
  int32_t channels, height, width;
  bool streamed = false;  // stored past the caches
};

// A channels_last map as (pixels, channels), and what follows its convolution.
struct FinishArgs {
  const float* z;
  const float* mean;
  const float* scale;
  const float* shift;
  const float* inject;  // as z, or null
  const float* skip;    // as z, or null
  float* out;
  int64_t pixels;
  int32_t channels;
  bool relu;
};

struct Kernels {
  const char* name;
  int32_t row_tiles;  // tiles per step of the product: chunks that are multiples of it waste nothing
  void (*input_transform[kKinds])(const float* source, Grid, Tiles, Points);
  void (*gradient_transform[kKinds])(const float* source, Grid, Tiles, Points);
  void (*output_transform[kKinds])(const OutputArgs&);
  void (*filter_transform[kKinds])(const FilterArgs&);
  void (*weight_gradient[kKinds])(const FilterArgs&);
  void (*product)(const ProductArgs&);
  void (*weight_product)(const WeightProductArgs&);
  void (*load_map)(const MapArgs&);
  void (*store_map)(const MapArgs&);
  void (*add_to_map)(const MapArgs&);
  void (*add_blocked)(float* target, const float* source, int64_t floats);
  void (*sum_pixels)(const MapArgs&, double* sums);  // sums[channel] += over the image
  void (*finish_pixels)(const FinishArgs&);
  // (mean, sum of squared deviations) of each channel over some pixels of a (pixels, channels) map
  void (*pixel_moments)(const float* z, int64_t pixels, int32_t channels, double* mean, double* squares);
  double (*fma_flops)(int64_t steps);  // runs independent fused multiply-adds; returns how many flops
};

namespace avx512 {
const Kernels* kernels();
}
namespace avx2 {
const Kernels* kernels();
}

}  // namespace rdk
