// Every tile size and limit of the CUDA kernels, in one place; read by the kernels, by plan.h and by the operators. The
// few that Python needs before a library is loaded stand in rdk/backends/cuda_kernels.py again; a test holds them
// equal. LONGEST_RUN in cuda_gradients.py, the iterations that a resident backward reverses at once, stands there
// alone: it is about memory, and no kernel knows it.
#pragma once

#include <cstdint>

namespace rdk::cuda {

// the machine: sm_90 (H100, H200)
inline constexpr int kSharedBytes = 232448;  // shared memory that one block may have
inline constexpr int kWarpgroup = 128;       // threads

// every kernel
inline constexpr int kChannelStep = 16;  // channels come in multiples of one wgmma k-step
inline constexpr int kMaxChannels = 1024;
inline constexpr int kRows = 64;  // rows of one wgmma: output channels
inline constexpr int kTaps = 9;
// groups of products that may be under way: PTX names no limit, and nobody has tried many on a GPU yet
inline constexpr int kGroupsUnderWay = 4;
inline constexpr int kMaxLaunchIterations = 1024;  // of a kernel that runs whole iterations
// of a batch, with empty rows and columns: they are counted in 32 bits, and a tile reaches beyond the last
inline constexpr int64_t kMaxPositions = 2147418112;  // 2^31 - 2^16

// conv: one producer warpgroup, two consumer warpgroups. A tile is (64 * M) output channels by (N * 2 / M) positions.
#define RDK_CONV_TILES(X) X(1, 128) X(1, 192) X(1, 256) X(2, 128) X(2, 192) X(2, 256)
inline constexpr int kConvThreads = 3 * kWarpgroup;
inline constexpr int kConvMaxBuffers = 4;
inline constexpr int kConvMinBuffers = 2;
inline constexpr int kConvProducerRegisters = 40;
inline constexpr int kConvConsumerRegisters = 232;
inline constexpr int kConvUnitsAtOnce = 4;   // of each added map, that a thread asks for together
inline constexpr int kConvTileOverhead = 4;  // cost of starting and finishing a tile, in slabs of 16 channels (est.)
inline constexpr int kL2BytesPerClock = 24;  // that one multiprocessor gets when all read (est.)

// resident: two warpgroups hold the accumulators of one whole image, N1 + N2 positions each
#define RDK_RESIDENT_TILES(X) X(144, 0) X(256, 0) X(208, 200)
inline constexpr int kResidentThreads = 2 * kWarpgroup;
inline constexpr int kResidentUnitsAtOnce = 4;  // of each added map, that a thread asks for together
inline constexpr int kResidentMaxChannels = 64;

// residual: one warpgroup that carries maps and weights, two consumer warpgroups. A tile is (64 * M) output channels by
// ((N1 + N2) * 2 / M) positions: all of a map.
#define RDK_RESIDUAL_TILES(X) \
  X(1, 96, 0) X(1, 144, 0) X(1, 144, 128) X(2, 96, 0) X(2, 144, 0) X(2, 192, 0) X(2, 144, 128)
inline constexpr int kResidualThreads = 3 * kWarpgroup;
inline constexpr int kResidualMaxChannels = 2 * kRows;
inline constexpr int kResidualMaxStages = 16;  // convolutions of one iteration
inline constexpr int kResidualMaxBuffers = 6;  // of the ring: a row of the filter for 16 input channels each
inline constexpr int kResidualMinBuffers = 2;
inline constexpr int kResidualCarrierRegisters = 88;
inline constexpr int kResidualConsumerRegisters = 208;

// rollout: two warpgroups share the input channels of a tile, 64 positions (a patch of 8 x 8 pixels) by N output
// channels
#define RDK_ROLLOUT_TILES(X) X(16) X(32) X(64)
inline constexpr int kRolloutThreads = 2 * kWarpgroup;
inline constexpr int kPatch = 8;                  // pixels along a side
inline constexpr int kRolloutMaxStages = 16;      // convolutions of one iteration
inline constexpr int kRolloutMinStageCount = 16;  // of a launch: they repay the filters' way to every block (est.)
inline constexpr int kRolloutMaxPatches = 2;      // of one block: with more images other kernels are faster (est.)
inline constexpr int kRolloutPortions = 4;        // of a patch, that arrive one after another
inline constexpr int kRolloutMinClocks = 16;      // of one product: reading 64 rows from shared memory (est.)
inline constexpr int kRolloutTileClocks = 1000;   // of fetching and finishing a patch beside its products (est.)

// weight_gradient: one producer warpgroup, one consumer warpgroup per row of the 3x3 filter. A tile is 64 by 64
// channels, all taps.
inline constexpr int kWeightGradientThreads = 4 * kWarpgroup;
inline constexpr int kWeightGradientPositions = 128;  // of one buffer
inline constexpr int kWeightGradientMaxBuffers = 4;
inline constexpr int kWeightGradientMinBuffers = 2;  // a buffer is returned when the next has been multiplied
inline constexpr int kWeightGradientSumBuffers = 5;  // what adding to a partial sum costs, in buffers' products (est.)
inline constexpr int kWeightGradientProducerRegisters = 40;
inline constexpr int kWeightGradientConsumerRegisters = 152;

}  // namespace rdk::cuda
