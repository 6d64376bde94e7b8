// Blocks that work on one result: the last of them to come finishes it.
#pragma once
#include "ptx.cuh"

namespace fcdense {

// Whether this block is the last of `count` that arrive at a counter, which is 0 before the launch and after it. The
// last one sees what all of them have written. Which one it is differs from run to run, and what it does may not depend
// on that.
__device__ __forceinline__ bool is_last_of(unsigned count, unsigned* counter) {
    unsigned& before = *reinterpret_cast<unsigned*>(shared_memory());
    __syncthreads();  // all of this block have written
    if (threadIdx.x == 0) before = arrive(counter, count - 1);
    __syncthreads();
    const bool is_last = before == count - 1;
    __syncthreads();  // the place in shared memory is free again
    return is_last;
}

}  // namespace fcdense
