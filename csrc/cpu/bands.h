// Large maps, a band of rows at a time: the convolutions of a run follow one another down the map, each some rows
// behind the one that it reads, so that of the maps between them only windows of rows are held. Included by
// band_walk.h; called by plan.cpp, forward_bands.cpp and backward_bands.cpp.
#pragma once
#include <vector>

#include "plan.h"

namespace rdk {

// One convolution of a run. Number c reads window c and writes window c + 1.
struct BandStage {
  int dilation;
  Cover rows;
  std::vector<int> addends;  // windows whose rows are added to its sums; at the same rows, without a border
};

// The convolutions of a run forwards, and those of its gradients, last one first.
std::vector<BandStage> forward_stages(const Plan& plan, int convolutions);
std::vector<BandStage> backward_stages(const Plan& plan, int convolutions);

// Whose rows come next. A step brings about `step` rows to every window, and no cut goes through a tile: the tiles are
// those of the whole map, and so are the results.
class Bands {
 public:
  Bands(int height, int step, std::vector<BandStage> stages);

  int convolutions() const { return static_cast<int>(stages_.size()); }
  const BandStage& stage(int convolution) const { return stages_[convolution]; }
  bool finished() const { return done_.back() == height_; }
  // whether a window is read by a convolution, or added to its sums
  bool reads(int convolution, int window) const { return convolution == window; }
  bool adds(int convolution, int window) const;
  // rows that a window has had so far, and will have had after this step
  int done(int window) const { return done_[window]; }
  int next(int window) const;
  void advance(int window, int last) { done_[window] = last; }
  // the tiles of a convolution from its row `first` to `last`
  Cover tiles(int convolution, int first, int last) const;
  // the first row of a window that is still to be read (below zero for zeros above the map), and one past the last row
  // that it must have room for once it has had `last`
  int needed(int window) const;
  int room(int window, int last) const;

 private:
  int height_, step_;
  std::vector<BandStage> stages_;
  std::vector<int> done_;
};

// The most rows that a window holds at once, or that a band with the rows around it has.
int window_rows(Bands bands);

}  // namespace rdk
