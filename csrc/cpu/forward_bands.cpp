// The forward of one large image: band by band down the map, through all convolutions of the run. Called by
// forward.cpp.
#include "band_walk.h"
#include "forward.h"

namespace rdk {
namespace {

class BandForward {
 public:
  BandForward(const ForwardRun& run, const Group& group, float* buffers)
      : run_(run),
        count_(static_cast<int>(run.plan.stages.size())),
        walk_(group, run.plan.forward_bands,
              forward_stages(run.plan, (run.iterations - 1) * count_ + run.stages_of_last), buffers) {}

  void operator()() {
    walk_.run(run_.state, [&](int c, int first, int last) { convolve_rows(c, first, last); });
  }

 private:
  void convolve_rows(int c, int first, int last) {
    const int s = c % count_;
    Epilogue epilogue = epilogue_of(run_, c);
    int addends = 0;
    if (s == 0 && run_.inject.data) epilogue.addends[addends++] = walk_.load_beside(run_.inject, 0, first, last, 0);
    for (int skip : walk_.order().stage(c).addends) epilogue.addends[addends++] = walk_.rows(skip, first);
    convolve(walk_.group(last - first), walk_.stage(c, run_.plan.stage_plans[s], first, last),
             run_.parameters[c].filter, walk_.rows(c, first), walk_.rows(c + 1, first), epilogue);
    if (run_.tapes[c].data) walk_.store(run_.tapes[c], c + 1, first, last);
    const MapView& state = run_.states[c / count_];
    if (s == count_ - 1 && state.data) walk_.store(state, c + 1, first, last);
  }

  const ForwardRun& run_;
  const int count_;
  BandWalk walk_;
};

}  // namespace

void forward_in_bands(const ForwardRun& run, const Group& group, float* buffers) { BandForward(run, group, buffers)(); }

}  // namespace rdk
