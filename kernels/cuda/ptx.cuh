// Every PTX instruction that the kernels use, behind a function. This is the only file with inline assembly.
//
// In the emulation the same functions are those of emulation/instructions.h. Names follow the PTX ISA.
#pragma once
#ifdef FCDENSE_EMULATION
#include "instructions.h"
#else

// The function of a translation unit that is launched, of `threads` threads a block: it calls function(arguments).
#define FCDENSE_KERNEL(Arguments, threads, function)                                                        \
    extern "C" __global__ void __launch_bounds__(threads, 1) kernel(const __grid_constant__ Arguments arguments) { \
        function(arguments);                                                                                \
    }

namespace fcdense {

// The dynamic shared memory of the block.
__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(128) char bytes[];
    return bytes;
}

// ---- 16-bit numbers -------------------------------------------------------------------------------------------------

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

}  // namespace fcdense
#endif
