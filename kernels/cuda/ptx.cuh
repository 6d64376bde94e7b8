// Every PTX instruction that the kernels use, behind a function. This is the only file with inline assembly.
//
// In the emulation the same functions are those of emulation/instructions.h. Names follow the PTX ISA.
#pragma once
#ifdef FCDENSE_EMULATION
#include "instructions.h"
#else

#define FCDENSE_ARCHITECTURE __CUDA_ARCH__

// The function of a translation unit that is launched, of `threads` threads a block: it calls function(arguments), with
// registers few enough for `blocks` of them on a multiprocessor.
#define FCDENSE_KERNEL(Arguments, threads, blocks, function)                                     \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                \
        kernel(const __grid_constant__ Arguments arguments) {                                    \
        function(arguments);                                                                     \
    }

namespace fcdense {

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// The dynamic shared memory of the block.
__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(128) char bytes[];
    return bytes;
}

// blockIdx.x, read anew: who needs it late holds nothing that follows from it in registers until then.
__device__ __forceinline__ int block_number() {
    int number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return number;
}

// Counts up to `last` and then begins at 0 again; what the count was. Of the blocks that count here, each sees what
// those before it had written, behind a barrier, when they counted (PTX ISA, 8 "Memory Consistency Model").
__device__ __forceinline__ unsigned arrive(unsigned* counter, unsigned last) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last) : "memory");
    return before;
}

// ---- numbers --------------------------------------------------------------------------------------------------------

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
// The nearest number of TF32, which has 10 bits behind the point (sm_80).
__device__ __forceinline__ unsigned float_to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// Of the special function unit. Relative errors (PTX ISA): 2^-22 of exp2, 2^-23 of 1 / x, 2^-11 of tanh.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float tanh_approximate(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- asynchronous copies to shared memory (sm_80) -------------------------------------------------------------------

// BYTES (4, 8 or 16), of which the first `valid` are copied and the others become zeros; both addresses are multiples of
// BYTES. Chips before sm_80 copy at once.
template <int BYTES>
__device__ __forceinline__ void cp_async(void* to, const void* from, int valid) {
#if __CUDA_ARCH__ >= 800
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                     "r"(valid)
                     : "memory");
#else
    struct alignas(BYTES) Chunk {
        unsigned short at[BYTES / 2];
    } chunk;
    if (valid == BYTES) {
        chunk = *static_cast<const Chunk*>(from);
    } else {
#pragma unroll
        for (int i = 0; i < BYTES / 2; i++) chunk.at[i] = 2 * i < valid ? static_cast<const unsigned short*>(from)[i] : 0;
    }
    *static_cast<Chunk*>(to) = chunk;
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most GROUPS of the groups committed last are under way.
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// ---- matrices in the registers of a warp ----------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit numbers; lane 8 i + j gives the address of row j of matrix i.
__device__ __forceinline__ void ldmatrix(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// D += A B with A of 16 rows and B of 8 columns, float32 sums.
__device__ __forceinline__ void mma_bf16_k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16_k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16_k8(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
__device__ __forceinline__ void mma_tf32_k8(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace fcdense
#endif
