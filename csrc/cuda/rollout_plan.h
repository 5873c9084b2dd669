// How few maps are cut over all multiprocessors for the roll-out: pure arithmetic on sizes; called by ops_rollout.cpp,
// rollout.cuh (layout) and the tests.
#pragma once

#include <cstdint>

#include "params.h"

namespace rdk::cuda {

struct RolloutTile {
  int n = 0;                                                                     // output channels
  RDK_BOTH constexpr int exchange_bytes() const { return kRolloutThreads * n; }  // half of each thread's sums
};

struct RolloutLayout {  // offsets in shared memory; the filters of all stages are at 0
  int stage_bytes, patch, exchange, pixels, barrier, total;
};

RDK_BOTH constexpr int patch_pitch(int dilation) { return kPatch + 2 * dilation; }
RDK_BOTH constexpr int patch_slots(int dilation) { return patch_pitch(dilation) * patch_pitch(dilation); }
// The slot that tap (r, s) of a patch's first pixel reads; `dilation` is the stage's, `largest` that of all stages.
RDK_BOTH constexpr int patch_tap(int r, int s, int dilation, int largest) {
  return (largest + (r - 1) * dilation) * patch_pitch(largest) + largest + (s - 1) * dilation;
}

RDK_BOTH constexpr RolloutLayout rollout_layout(RolloutTile tile, int channels, int stages, int dilation, int slots) {
  RolloutLayout layout{};
  layout.stage_bytes = channels / kChannelStep * PackedWeights{tile.n}.slab_bytes();
  layout.patch = stages * layout.stage_bytes;
  layout.exchange = layout.patch + channels / 8 * slots * kUnit;
  layout.pixels = layout.exchange + tile.exchange_bytes();
  layout.barrier = layout.pixels + round_up(4 * kRolloutMaxPatches * patch_slots(dilation), 16);
  layout.total = layout.barrier + 16;
  return layout;
}

struct RolloutPlan {
  RolloutTile tile;
  int slots, groups, patches, blocks;  // groups of output channels; patches of one block; blocks of all groups
  const char* refusal;                 // null where it fits
};

// One tile of the table; `refusal` says what does not fit. dilation: the largest of the stages'.
constexpr RolloutPlan rollout_plan_for(RolloutTile tile, int images, int channels, const Patches& patches, int dilation,
                                       int stages, int multiprocessors) {
  RolloutPlan plan{};
  plan.tile = tile;
  plan.slots = slab_slots(patch_slots(dilation));
  plan.groups = ceil_div(channels, tile.n);
  const int64_t total = int64_t{images} * ceil_div(patches.height, kPatch) * ceil_div(patches.width, kPatch);
  if (total > int64_t{kRolloutMaxPatches} * (multiprocessors / plan.groups)) {
    plan.refusal = "the images are more than two patches of 8x8 pixels for each multiprocessor";
    return plan;
  }
  const int all = static_cast<int>(total);
  if (rollout_layout(tile, channels, stages, dilation, plan.slots).total > kSharedBytes) {
    plan.refusal = "its share of all stages' filters and a patch exceed the shared memory of a multiprocessor";
    return plan;
  }
  plan.patches = all == 0 ? 1 : ceil_div(all, multiprocessors / plan.groups);
  plan.blocks = plan.groups * ceil_div(all, plan.patches);
  return plan;
}

// Clocks of one convolution (est.).
constexpr int rollout_cost(const RolloutPlan& plan, int channels) {
  const int product = plan.tile.n / 2 > kRolloutMinClocks ? plan.tile.n / 2 : kRolloutMinClocks;
  return plan.patches * (kTaps * channels / kChannelStep * product + kRolloutTileClocks);
}

// Whether a tile is to be preferred: it fits and costs less, or as much with fewer blocks.
constexpr bool rollout_better(const RolloutPlan& plan, const RolloutPlan& best, int channels) {
  if (plan.refusal != nullptr || best.refusal != nullptr) return plan.refusal == nullptr;
  const int cost = rollout_cost(plan, channels), least = rollout_cost(best, channels);
  return cost < least || (cost == least && plan.blocks < best.blocks);
}

// The best tile that fits; where none does, the refusal of the narrowest.
constexpr RolloutPlan rollout_plan(int images, int channels, const Patches& patches, int dilation, int stages,
                                   int multiprocessors) {
  RolloutPlan best{};
  if (int64_t{dilation} * dilation > kSharedBytes / (4 * kUnit)) {  // below, 32 bits hold what is computed
    best.refusal = "its share of all stages' filters and a patch exceed the shared memory of a multiprocessor";
    return best;
  }
#define RDK_TRY(N)                                                                                                \
  {                                                                                                               \
    const RolloutPlan plan = rollout_plan_for({N}, images, channels, patches, dilation, stages, multiprocessors); \
    if (best.tile.n == 0 || rollout_better(plan, best, channels)) best = plan;                                    \
  }
  RDK_ROLLOUT_TILES(RDK_TRY)
#undef RDK_TRY
  return best;
}

// Geometry of the launch; the caller adds stages and pointers.
constexpr RolloutParams rollout_params(const RolloutPlan& plan, int images, int channels, const Patches& patches,
                                       int dilation) {
  RolloutParams p{};
  p.map_elements = static_cast<int64_t>(images) * patches.height * patches.width * channels;
  p.channels = channels;
  p.patches = patches;
  p.all_patches = images * patches.count();
  p.dilation = dilation;
  p.slots = plan.slots;
  p.groups = plan.groups;
  return p;
}

}  // namespace rdk::cuda
