// Chooses tiles, groups and chunks before each run; called by bindings.cpp, bindings_runs.cpp, convolve.cpp and
// tests/check_runs.cpp.
#include "plan.h"

#include <algorithm>

#include "bands.h"

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

// Whether one stage's input is added to several sums, its own among them.
bool shares_skips(const std::vector<Stage>& stages) {
  for (std::size_t s = 0; s < stages.size(); ++s)
    for (std::size_t later = s + 1; later < stages.size(); ++later)
      if (stages[s].skip >= 0 && stages[s].skip == stages[later].skip) return true;
  return false;
}

// Replaces whole maps of one image, of buffer_floats together, by windows on them where they take more than held_floats
// and windows take less. beside: buffers for a band of other maps.
void fit_bands(const Plan& plan, std::vector<BandStage> (*stages_of)(const Plan&, int), int beside, int crew,
               int64_t held_floats, BandPlan& bands, int64_t& buffer_floats) {
  if (plan.group > 1 || buffer_floats <= held_floats) return;
  const Geometry& geometry = plan.geometry;
  const int count = static_cast<int>(plan.stages.size());
  int tile = 1;
  int64_t most = 1;  // tiles in so many rows
  for (const StagePlan& stage : plan.stage_plans) {
    tile = std::max(tile, stage.dilation * stage.rows.size);
    most = std::max<int64_t>(most, int64_t{stage.grid_rows} * stage.grid_cols * stage.cols.tiles());
  }
  const int step = static_cast<int>(tile * std::max<int64_t>(1, int64_t{plan.chunk} * crew / most));
  const int64_t row_floats = geometry.blocks * geometry.row(), allowed = crew * held_floats;
  const auto needed = [&](int iterations) {
    return window_rows(Bands(geometry.height, step, stages_of(plan, count * iterations)));
  };
  const auto floats = [&](int iterations, int rows) {
    return (int64_t{count} * iterations + 1 + beside) * rows * row_floats;
  };
  int spare = kWindowSteps * step, iterations = 1, least = needed(1);
  while (spare > step && floats(1, least + spare) > allowed) spare /= 2;
  if (floats(1, least + spare) >= buffer_floats) return;
  const int64_t windows = allowed / ((least + spare) * row_floats) - 1 - beside;
  for (int more = static_cast<int>(std::min<int64_t>(windows / count, kWalkIterations)); more > 1; --more) {
    const int rows = needed(more);
    if (floats(more, rows + spare) > allowed) continue;
    iterations = more;
    least = rows;
    break;
  }
  bands = {step, least + spare, iterations};
  buffer_floats = (floats(iterations, bands.rows) + crew - 1) / crew;
}

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

void fit_group(Plan& plan, int64_t images, int workers, bool inject, bool state_grads, int64_t held_floats) {
  // the fewest whole rounds of all workers, in groups of nearly equal size that still fill no more than a chunk
  const int64_t round = static_cast<int64_t>(plan.group) * workers;
  const int64_t groups = std::max<int64_t>(1, (images + round - 1) / round * workers);
  plan.group = static_cast<int>(std::max<int64_t>(1, (images + groups - 1) / groups));
  plan.forward_buffers = forward_buffer_count(plan.stages) + inject;
  // dz and its successor, the stage's input, and an open gradient per skip; the gradients of inject and of the states
  int least = 3;
  for (const Stage& stage : plan.stages) least += stage.skip >= 0;
  plan.backward_buffers = least + inject + state_grads;
  const int64_t buffer = plan.group * plan.geometry.image();
  plan.forward_buffer_floats = plan.forward_buffers * buffer;
  plan.backward_buffer_floats = plan.backward_buffers * buffer;
  // one image on all workers is cut for all of them, and has the memory of all
  const int crew = images < workers ? workers : 1;
  fit_bands(plan, forward_stages, inject, crew, held_floats, plan.forward_bands, plan.forward_buffer_floats);
  // a stage's input, the gradient of a state, and a sum of several windows
  const int beside = shares_skips(plan.stages) ? 3 : 2;
  fit_bands(plan, backward_stages, beside, crew, held_floats, plan.backward_bands, plan.backward_buffer_floats);
  // a backward that then wants fewer gradients may hold its maps whole
  const int64_t fewer = std::min<int64_t>(plan.backward_buffers - 1, held_floats / buffer);
  if (plan.backward_bands.step && fewer >= least)
    plan.backward_buffer_floats = std::max(plan.backward_buffer_floats, fewer * buffer);
}

}  // namespace rdk
