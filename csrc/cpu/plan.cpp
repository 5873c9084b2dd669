// Chooses tiles, groups and chunks; called by the bindings before each run.
#include "plan.h"

#include <algorithm>

namespace rdk {
namespace {

// Tiles of a chunk, and about of a group: enough to use a filter panel often, few enough that maps and transformed
// tiles stay near the second-level cache. Five steps of the AVX-512 product.
constexpr int kChunkTiles = 70;
// A map is covered by tiles of two sizes where that saves a fifth of the products, and where the filters, which then
// have up to 121 points instead of 36, stay small.
constexpr int kMixedChannels = 128;
constexpr double kMixedSaving = 0.2;

struct Cover {
  int fours, threes;
  int points() const { return 6 * fours + 5 * threes; }
};

// The fewest points that cover `size` pixels with tiles of four and of three.
Cover cover(int size, bool mixed) {
  Cover best{(size + 3) / 4, 0};
  for (int fours = 0; fours <= (size + 3) / 4; ++fours) {
    const int threes = std::max(0, (size - 4 * fours + 2) / 3);
    if (!mixed && fours != 0 && threes != 0) continue;
    const Cover next{fours, threes};
    if (next.points() < best.points()) best = next;
  }
  return best;
}

Kind kind_of(int rows, int cols) {
  for (int kind = 0; kind < kKinds; ++kind)
    if (kTileRows[kind] == rows && kTileCols[kind] == cols) return static_cast<Kind>(kind);
  return kTile22;
}

StagePlan plan_stage(const Geometry& geometry, int dilation, Precision precision) {
  StagePlan plan{dilation, std::min(dilation, geometry.height), std::min(dilation, geometry.width), {}, 0};
  const int height = (geometry.height + dilation - 1) / dilation, width = (geometry.width + dilation - 1) / dilation;
  if (precision == Precision::kAccurate) {
    plan.classes.push_back({kTile22, 0, (height + 1) / 2, 0, (width + 1) / 2, 0});
  } else {
    Cover rows = cover(height, false), cols = cover(width, false);
    const Cover mixed_rows = cover(height, true), mixed_cols = cover(width, true);
    const double points = rows.points() * cols.points(), mixed_points = mixed_rows.points() * mixed_cols.points();
    if (geometry.channels <= kMixedChannels && mixed_points <= (1.0 - kMixedSaving) * points) {
      rows = mixed_rows;
      cols = mixed_cols;
    }
    const int row_counts[2] = {rows.fours, rows.threes}, col_counts[2] = {cols.fours, cols.threes};
    for (int r = 0; r < 2; ++r) {
      for (int c = 0; c < 2; ++c) {
        if (row_counts[r] == 0 || col_counts[c] == 0) continue;
        plan.classes.push_back(
            {kind_of(4 - r, 4 - c), r * 4 * rows.fours, row_counts[r], c * 4 * cols.fours, col_counts[c], 0});
      }
    }
  }
  for (TileClass& tiles : plan.classes) {
    tiles.filter_offset = plan.filter_floats;
    plan.filter_floats += tiles.points() * geometry.filter_point();
  }
  return plan;
}

// Rows (or columns) of a blocked buffer that the tiles of a stage read, the border above included.
int reach(int border, int dilation, int first, int tiles, int size) {
  return border + (dilation - 1) + dilation * (first + tiles * size) + 1;
}

// An odd number of cache lines, so that the points do not fall on one set of the first-level cache.
int64_t odd_lines(int64_t lines) { return (lines | 1) * kBlock; }

}  // namespace

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
  return most + 1;
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
    for (const TileClass& c : plan.stage_plans.back().classes) {
      geometry.padded_height = std::max(geometry.padded_height,
                                        reach(geometry.border, stage.dilation, c.first_row, c.rows, kTileRows[c.kind]));
      geometry.padded_width = std::max(geometry.padded_width,
                                       reach(geometry.border, stage.dilation, c.first_col, c.cols, kTileCols[c.kind]));
      most_points = std::max(most_points, c.points());
    }
    plan.gradient_floats += plan.stage_plans.back().filter_floats;
  }
  int64_t image_tiles = 0;
  for (const TileClass& c : plan.stage_plans[0].classes) image_tiles += plan.stage_plans[0].tiles(c);
  plan.chunk = kChunkTiles / row_tiles * row_tiles;
  plan.group = static_cast<int>(std::max<int64_t>(1, plan.chunk / image_tiles));
  // every class of tiles fills a step of the product
  for (const TileClass& c : plan.stage_plans[0].classes)
    plan.group = std::max(plan.group, static_cast<int>(row_tiles / plan.stage_plans[0].tiles(c)));
  plan.points_floats = most_points * odd_lines(static_cast<int64_t>(geometry.blocks) * plan.chunk);
  plan.forward_buffers = forward_buffer_count(stages);
  // dz and its successor, the stage's input, the gradients of inject and of the states, and an open gradient per skip
  int skips = 0;
  for (const Stage& stage : stages) skips += stage.skip >= 0;
  plan.backward_buffers = 5 + skips;
  return plan;
}

void fit_group(Plan& plan, int64_t images, int workers) {
  // as many groups as whole rounds of all workers take, of nearly equal size
  const int64_t rounds = std::max<int64_t>(1, images / (static_cast<int64_t>(plan.group) * workers));
  const int64_t groups = std::max<int64_t>(1, rounds * workers);
  plan.group = static_cast<int>(std::max<int64_t>(1, (images + groups - 1) / groups));
  const int64_t buffer = plan.group * plan.geometry.image();
  plan.forward_worker_floats = 2 * plan.points_floats + plan.forward_buffers * buffer;
  plan.backward_worker_floats = 2 * plan.points_floats + plan.backward_buffers * buffer;
}

}  // namespace rdk
