// Chooses tiles, groups and chunks before each run; called by bindings.cpp, bindings_runs.cpp, convolve.cpp and
// tests/check_runs.cpp.
#include "plan.h"

#include <algorithm>

#include "tables.h"

namespace rdk {
namespace {

// The fewest points that cover `size` pixels with tiles of four and of three; of twos alone where they are wanted.
Cover cover(int size, Precision precision) {
  if (precision == Precision::kAccurate) return {2, (size + 1) / 2, 0};
  Cover best{3, (size + 2) / 3, 0};
  for (int fours = 1; fours <= (size + 3) / 4; ++fours) {
    const Cover next{4, fours, std::max(0, (size - 4 * fours + 2) / 3)};
    if (next.points() < best.points()) best = next;
  }
  return best;
}

StagePlan plan_stage(const Geometry& geometry, int dilation, Precision precision) {
  StagePlan plan{dilation, std::min(dilation, geometry.height), std::min(dilation, geometry.width), {}, {}, 0};
  plan.rows = cover((geometry.height + dilation - 1) / dilation, precision);
  plan.cols = cover((geometry.width + dilation - 1) / dilation, precision);
  plan.filter_floats = plan.filter_points() * geometry.filter_point();
  return plan;
}

// Rows (or columns) of a blocked buffer that the tiles of a stage read, the border above included.
int reach(int border, int dilation, const Cover& cover) {
  return border + (dilation - 1) + dilation * cover.start(cover.tiles()) + 1;
}

// An odd number of cache lines, so that the points do not fall on one set of the first-level cache.
int64_t odd_lines(int64_t lines) { return (lines | 1) * kBlock; }

}  // namespace

Kind kind_of(int rows, int cols) {
  for (int kind = 0; kind < kKinds; ++kind)
    if (kTileRows[kind] == rows && kTileCols[kind] == cols) return static_cast<Kind>(kind);
  return kTile22;
}

int forward_buffer_count(const std::vector<Stage>& stages) {
  const int count = static_cast<int>(stages.size());
  int most = 0;
  for (int s = 0; s < count; ++s) {
    int open = 0;  // earlier stage inputs that this or a later stage adds
    for (int j = 0; j < s; ++j) {
      bool needed = false;
      for (int k = s; k < count; ++k) needed = needed || stages[k].skip == j;
      open += needed;
    }
    most = std::max(most, open + 2);
  }
  return most;
}

Plan make_plan(int channels, int height, int width, const std::vector<Stage>& stages, Precision precision,
               int row_tiles) {
  Plan plan{};
  plan.stages = stages;
  Geometry& geometry = plan.geometry;
  geometry = {channels, (channels + kBlock - 1) / kBlock, height, width, 0, 0, 0};
  for (const Stage& stage : stages) geometry.border = std::max(geometry.border, stage.dilation);
  int most_points = 0;
  for (const Stage& stage : stages) {
    plan.stage_plans.push_back(plan_stage(geometry, stage.dilation, precision));
    const StagePlan& planned = plan.stage_plans.back();
    geometry.padded_height = std::max(geometry.padded_height, reach(geometry.border, stage.dilation, planned.rows));
    geometry.padded_width = std::max(geometry.padded_width, reach(geometry.border, stage.dilation, planned.cols));
    most_points = std::max(most_points, planned.filter_points());
    plan.gradient_floats += planned.filter_floats;
  }
  const Cut* cut = kCuts;
  while (geometry.blocks > cut->most_blocks) ++cut;
  plan.chunk = cut->tiles / row_tiles * row_tiles;
  plan.pass_pairs = cut->pairs;
  plan.group = static_cast<int>(std::max<int64_t>(1, plan.chunk / plan.stage_plans[0].tiles()));
  plan.points_floats = most_points * odd_lines(static_cast<int64_t>(geometry.blocks) * plan.chunk);
  return plan;
}

void fit_group(Plan& plan, int64_t images, int workers, bool inject, bool state_grads) {
  // the fewest whole rounds of all workers, in groups of nearly equal size that still fill no more than a chunk
  const int64_t round = static_cast<int64_t>(plan.group) * workers;
  const int64_t groups = std::max<int64_t>(1, (images + round - 1) / round * workers);
  plan.group = static_cast<int>(std::max<int64_t>(1, (images + groups - 1) / groups));
  plan.forward_buffers = forward_buffer_count(plan.stages) + inject;
  // dz and its successor, the stage's input, the gradients of inject and of the states, and an open gradient per skip
  plan.backward_buffers = 3 + inject + state_grads;
  for (const Stage& stage : plan.stages) plan.backward_buffers += stage.skip >= 0;
  const int64_t buffer = plan.group * plan.geometry.image();
  plan.forward_worker_floats = 2 * plan.points_floats + plan.forward_buffers * buffer;
  plan.backward_worker_floats = 2 * plan.points_floats + plan.backward_buffers * buffer;
}

}  // namespace rdk
