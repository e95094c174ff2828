// out = tail(x . (scales * w)^T + t . b^T + bias) as in linear.cu, for w stored in blocks that
// share scales: GGUF's types, NF4, FP4, mxfp8 and nvfp4 (linear_blocks.cuh). Weights keep their
// stored form until they are multiplied. The format is a run-time parameter.
//
// linear_blocks_128x128: the tile of linear_bf16, 2 x 2 warps of 64x64 and three stages of 16 KiB,
//   but w is dequantised on its way into shared memory, once for the 128 rows that share it. A
//   thread dequantises 32 weights per step: 4 to 10 loads of 16 L1 locations each, 180 to 250
//   instructions, 4 stores without conflicts. In SASS a step has 350 (Q8_0, Q4_0) to 470 (Q3_K,
//   Q5_K) instructions for 64 mma: 5.5 to 7.4 issue slots per mma. GeForce tensor cores take 32
//   cycles for one, an A100's 8: they are the limit, and two blocks share a multiprocessor, so that
//   one multiplies while the other dequantises. The lower bound of the time is that of linear_bf16:
//   2 rows n k / (bf16 rate). A step reads 8 KiB of x from L2 and, in the worst case (Q6_K, no hits
//   in L1), as much of w.
// linear_blocks_64x64: four blocks of 24 KiB, 16 weights a thread and step: twice the
//   dequantisation per product, for outputs that are too small for large tiles.
// linear_blocks_rows16: few rows (linear_few.cuh). The lower bound is the time to read w from
//   memory: 0.56 bytes per weight of Q4_0 and Q4_K. A weight costs a lane 7 (Q4_0) to 9 (Q4_K)
//   instructions, so an RTX 3060, which has 6.4e12 of them a second for 360 GB/s, could process 400
//   to 500 GB/s.
#include "linear_kernels.cuh"

TILED(blocks, BLOCKS)
