// The plain structs that cross from host code to kernels: pointers, sizes, and what follows from them. Filled by
// plan.h, rollout_plan.h and the operators, read by the kernels.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace rdk::cuda {

// One 3x3 convolution of channels_last maps with everything that follows it:
// z = conv(input) + bias; z = z * scale + shift; z += inject; z += skip; z = max(z, 0); z = 0 where mask <= 0.
struct ConvParams {
  const void* input;    // (images, height, width, channels)
  const void* weights;  // PackedWeights of 64 * m rows
  const float* bias;    // (channels,) or null, as are scale and shift
  const float* scale;
  const float* shift;
  const void* inject;  // as input, or null, as are skip and mask
  const void* skip;
  const void* mask;
  void* output;       // as input
  float* statistics;  // (groups, 3, channels): count, mean and sum of squared deviations of z + bias; or null
  int images, channels, relu;
  PaddedGrid grid;
  Divider by_period, by_pitch, by_row_tiles;
  int row_tiles, tiles;  // blocks of 64 * m output channels; all tiles
  int slots, buffers;    // of one slab of 16 channels in shared memory; of the ring
};

// Iterations of one convolution with the map of an image held in shared memory.
// forward: h = relu(conv(h) + bias + inject).
// reverse: g = conv(g); g += add[iteration]; g = 0 where mask[iteration] <= 0.
struct ResidentParams {
  const void* input;                // (images, height, width, channels)
  const void* weights;              // PackedWeights of 64 rows
  const float* bias;                // (channels,) or null
  const void* inject;               // (images, height, width, channels), added at every iteration, or null
  const void* add;                  // gradient maps added at the iterations before the last, or null
  const void* add_last;             // the one of the last iteration, or null
  const void* mask;                 // states that mask the iterations before the last, or null
  const void* mask_last;            // the one of the last iteration, or null
  int64_t add_stride, mask_stride;  // elements from the map of one iteration to that of the next; may be negative
  void* kept;                       // (bits set in keep, images, height, width, channels): maps after those iterations
  int64_t kept_stride;              // elements
  void* output;                     // the map after the last iteration
  uint32_t keep[kMaxLaunchIterations / 32];  // bit i: keep the map after iteration i
  int images, channels, iterations, relu;
  PaddedGrid grid;
  Divider by_width;
  int slots;  // of a chunk in shared memory
};

// One convolution of an iteration: z = conv(h) + bias; z += the input of the stage before (skip); z = max(z, 0) (relu).
struct ResidualStage {
  const void* weights;  // PackedWeights of 64 * m rows
  const float* bias;    // (channels,) or null
  int dilation, relu, skip;
};

// Iterations of several convolutions; two maps of a grid stay in shared memory. A step is one stage of one iteration:
// step i is stage i % stages of iteration i / stages.
struct ResidualParams {
  const void* input;   // (images, height, width, channels)
  const void* inject;  // the same, added at the first stage of every iteration, or null
  ResidualStage stage[kResidualMaxStages];
  void* kept;           // (bits set in keep, images, height, width, channels): maps after those iterations
  int64_t kept_stride;  // elements
  void* tapes;          // ((iterations - tape_first) * (stages - 1), images, ...): maps after all stages but the last
  int64_t tape_stride;  // elements
  void* output;         // the map after the last stage of the launch, or null
  uint32_t keep[kMaxLaunchIterations / 32];  // bit i: keep the map after iteration i
  int images, channels, stages, stage_count, tape_first;
  SubGrids grids;
  PaddedGrid grid;  // the largest of a map's grids, with the largest of the stages' dilations in it
  Divider by_width;
  int slots, buffers;  // of a chunk in shared memory; of the ring of weights
};

// Iterations of several convolutions of few maps over all multiprocessors, in steps as above.
struct RolloutParams {
  const void* input;                         // (images, height, width, channels)
  const void* inject;                        // the same, added at the first stage of every iteration, or null
  ResidualStage stage[kRolloutMaxStages];    // weights: PackedWeights of as many rows as the tile has channels
  void* workspace;                           // (2, images, height, width, channels): the maps between steps, in turn
  int64_t map_elements;                      // of one map of the batch
  void* kept;                                // (bits set in keep, images, ...): maps after those iterations
  int64_t kept_stride;                       // elements
  void* output;                              // the map after the last stage of the launch, or null where that is kept
  uint32_t* arrivals;                        // of blocks at the grid's barrier; 0 at the launch
  uint32_t keep[kMaxLaunchIterations / 32];  // bit i: keep the map after iteration i
  int channels, stages, stage_count;
  Patches patches;
  int all_patches;              // of all images
  int dilation, slots, groups;  // the stages' largest; of a chunk in shared memory; groups of output channels
};

// A pair is the gradient of a sum and the map that entered its convolution.
// dW[tap][o][i] += sum over pairs, images and pixels of grad[o, p] * state[i, p + tap], split over blocks.
struct WeightGradientParams {
  const void* grad_first;             // of the first pair: (images, height, width, channels)
  const void* grad;                   // of the pairs after it
  const void* state;                  // of the pairs before the last
  const void* state_last;             // of the last pair
  int64_t grad_stride, state_stride;  // elements from one pair to the next; may be negative
  float* partials;                    // (splits, tiles, 9, 64, 64)
  int pairs, images, channels, accumulate;
  PaddedGrid grid;
  Divider by_period, by_pitch;
  int channel_tiles, splits,
      blocks_per_pair;  // 64-channel tiles; blocks that share one tile; 128-position blocks of one pair
  int slots, buffers;
};

}  // namespace rdk::cuda
