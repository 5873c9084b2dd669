// How a problem is cut: tiles per map, images per group, tiles per chunk, floats per worker. Decided in plan.cpp, by
// the numbers of tables.h; included by convolve.h and bands.h.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "tables.h"

namespace rdk {

enum class Precision { kFast, kAccurate };

// The tiles along one axis of a sub-grid: some of `size` outputs, then some of one output less.
struct Cover {
  int size, large, small;
  int tiles() const { return large + small; }
  int points() const { return large * (size + 2) + small * (size + 1); }
  int start(int tile) const { return tile * size - (tile > large ? tile - large : 0); }
};

Kind kind_of(int rows, int cols);

// A dilated convolution is one convolution on each of dilation x dilation sub-grids (rows and columns modulo the
// dilation).
struct StagePlan {
  int dilation, grid_rows, grid_cols;  // sub-grids that hold a pixel
  Cover rows, cols;
  int64_t filter_floats;
  Kind filter_kind() const { return kind_of(rows.size, cols.size); }
  int filter_points() const { return (rows.size + 2) * (cols.size + 2); }
  int64_t tiles() const { return static_cast<int64_t>(grid_rows) * grid_cols * rows.tiles() * cols.tiles(); }
  // products per pair of channels
  int64_t tile_points() const { return static_cast<int64_t>(grid_rows) * grid_cols * rows.points() * cols.points(); }
};

// Blocked buffer of one group of images: [image][channel block][row][column][16], with a border that stays zero.
struct Geometry {
  int channels, blocks, height, width, border, padded_height, padded_width;
  int64_t row() const { return static_cast<int64_t>(padded_width) * kBlock; }
  int64_t block() const { return padded_height * row(); }
  int64_t image() const { return blocks * block(); }
  int64_t origin() const { return border * (row() + kBlock); }
  // one point of a filter; an odd number of cache lines, so that the points do not fall on one set of a cache, but for
  // one block, whose points have few lines and lie in different sets anyway
  int64_t filter_point() const {
    const int64_t lines = static_cast<int64_t>(blocks) * blocks * kBlock;
    return (blocks == 1 ? lines : lines | 1) * kBlock;
  }
};

struct Stage {
  int dilation;
  bool relu;
  int skip;  // -1 for none
};

// How a large map is walked down in one run, see bands.h; a step of 0 rows for maps that are held whole.
struct BandPlan {
  int step = 0;                // rows that a step brings to every window
  int rows = 0;                // rows of a window
  int iterations = INT32_MAX;  // of one run at most
};

struct Plan {
  Geometry geometry;
  std::vector<Stage> stages;
  std::vector<StagePlan> stage_plans;     // one per stage
  int group;                              // images processed together through all iterations
  int chunk;                              // most tiles transformed at a time
  int pass_pairs;                         // pairs of output blocks per pass over the points
  int64_t points_floats;                  // one buffer of transformed data of a chunk
  int forward_buffers, backward_buffers;  // blocked buffers per group, where maps are held whole
  BandPlan forward_bands, backward_bands;
  int64_t forward_buffer_floats, backward_buffer_floats;  // blocked buffers or windows, per worker
  int64_t worker_floats(int64_t buffer_floats) const { return 2 * points_floats + buffer_floats; }
  int64_t gradient_floats;  // weight gradients of all stages, at the points
};

// Depends on the image and the stages only: neither on the batch nor on the threads, so that results do not either.
Plan make_plan(int channels, int height, int width, const std::vector<Stage>& stages, Precision precision,
               int row_tiles);

// Fits the group to a batch, never above the plan's own, and its buffers to what a run has beside the state; changes no
// result. A backward may have less than it was planned with. held_floats: blocked buffers of one worker that are held
// at most before maps are walked down in bands.
void fit_group(Plan& plan, int64_t images, int workers, bool inject, bool state_grads,
               int64_t held_floats = kHeldBytes / sizeof(float));

// Blocked buffers alive at once in the forward of one iteration without an inject.
int forward_buffer_count(const std::vector<Stage>& stages);

}  // namespace rdk
