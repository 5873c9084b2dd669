// The order in which large maps are walked down, rows only; called by plan.cpp, band_walk.h, forward_bands.cpp and
// backward_bands.cpp.
#include "bands.h"

#include <algorithm>
#include <utility>

namespace rdk {
namespace {

// How many tiles end at or before a row.
int tiles_until(const BandStage& stage, int row) {
  const Cover& rows = stage.rows;
  const int sub_row = row / stage.dilation, edge = rows.large * rows.size;
  return std::min(rows.tiles(),
                  sub_row <= edge ? sub_row / rows.size : rows.large + (sub_row - edge) / (rows.size - 1));
}

}  // namespace

std::vector<BandStage> forward_stages(const Plan& plan, int convolutions) {
  const int count = static_cast<int>(plan.stages.size());
  std::vector<BandStage> stages;
  for (int c = 0; c < convolutions; ++c) {
    const Stage& stage = plan.stages[c % count];
    stages.push_back({stage.dilation, plan.stage_plans[c % count].rows, {}});
    if (stage.skip >= 0) stages.back().addends.push_back(c - c % count + stage.skip);
  }
  return stages;
}

std::vector<BandStage> backward_stages(const Plan& plan, int convolutions) {
  const int count = static_cast<int>(plan.stages.size());
  std::vector<BandStage> stages;
  for (int c = 0; c < convolutions; ++c) {
    const int s = count - 1 - c % count;
    stages.push_back({plan.stages[s].dilation, plan.stage_plans[s].rows, {}});
    for (int later = s; later < count; ++later)  // the gradients of the sums to which this stage's input was added
      if (plan.stages[later].skip == s) stages.back().addends.push_back(c - (later - s));
  }
  return stages;
}

Bands::Bands(int height, int step, std::vector<BandStage> stages)
    : height_(height), step_(step), stages_(std::move(stages)), done_(stages_.size() + 1, 0) {}

bool Bands::adds(int convolution, int window) const {
  const std::vector<int>& addends = stages_[convolution].addends;
  return std::find(addends.begin(), addends.end(), window) != addends.end();
}

int Bands::next(int window) const {
  const int wanted = std::min(height_, done_[window] + step_);
  if (window == 0) return wanted;
  const BandStage& writer = stages_[window - 1];
  auto row_of = [&](int tiles) { return std::min(height_, writer.dilation * writer.rows.start(tiles)); };
  int tiles = tiles_until(writer, wanted);
  if (row_of(tiles) < wanted) ++tiles;
  if (done_[window - 1] < height_)
    tiles = std::min(tiles, tiles_until(writer, std::max(0, done_[window - 1] - writer.dilation)));
  return std::max(done_[window], row_of(tiles));
}

Cover Bands::tiles(int convolution, int first, int last) const {
  const BandStage& stage = stages_[convolution];
  const int begin = tiles_until(stage, first), end = last == height_ ? stage.rows.tiles() : tiles_until(stage, last);
  const int large = std::clamp(stage.rows.large, begin, end) - begin;
  return {stage.rows.size, large, end - begin - large};
}

int Bands::needed(int window) const {
  int row = done_[window];
  for (int c = 0; c < convolutions(); ++c) {
    if (done_[c + 1] == height_) continue;
    if (reads(c, window)) row = std::min(row, done_[c + 1] - stages_[c].dilation);
    if (adds(c, window)) row = std::min(row, done_[c + 1]);
  }
  return row;
}

int Bands::room(int window, int last) const {
  if (last < height_) return last;
  int row = height_;  // tiles reach beyond the map
  for (int c = 0; c < convolutions(); ++c)
    if (reads(c, window) || adds(c, window))
      row = std::max(row, stages_[c].dilation * (stages_[c].rows.start(stages_[c].rows.tiles()) + 1));
  return row;
}

int window_rows(Bands bands) {
  int most = 0;
  while (!bands.finished()) {
    for (int window = 0; window <= bands.convolutions(); ++window) {
      const int first = bands.done(window), last = bands.next(window);
      if (last == first) continue;
      most = std::max(most, bands.room(window, last) - bands.needed(window));
      if (window > 0) {
        const int dilation = bands.stage(window - 1).dilation;
        most = std::max(most, std::max(last + dilation, bands.room(window - 1, last)) - (first - dilation));
      }
      bands.advance(window, last);
    }
  }
  return most;
}

}  // namespace rdk
