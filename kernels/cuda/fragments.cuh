// Tensor cores: operands in shared memory, and the part of them that each lane of a warp holds.
//
// "Fragment" and the layouts of lanes are those of the PTX ISA, 9.7.15 "Warp-level matrix instructions": lane l, with
// g = l / 4 and t = l % 4, holds of A (16 x K) rows g and g + 8, of B (K x 8) column g, of the sums (g, 2 t),
// (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
#pragma once
#include "numbers.cuh"

namespace fcdense {

// A tile of one operand, WIDTH rows of A or columns of B by DEPTH. It lies as the operand does: with ALONG_DEPTH the
// numbers of one row of A follow each other, else those of one k. Chunks of 16 bytes are permuted within a line, by
// exclusive or, so that the 8 chunks that are read at once lie in 8 different places modulo 128 bytes.
template <class T, int WIDTH, int DEPTH, bool ALONG_DEPTH>
struct SharedTile {
    static constexpr int LINES = ALONG_DEPTH ? WIDTH : DEPTH, LENGTH = ALONG_DEPTH ? DEPTH : WIDTH;
    static constexpr int PER_CHUNK = 16 / sizeof(T), CHUNKS = LENGTH / PER_CHUNK, BYTES = LINES * LENGTH * sizeof(T);
    // Numbers of 32 bits are no pairs that ldmatrix could transpose: four lines of two chunks are read at once.
    static constexpr bool PAIRS_OF_CHUNKS = sizeof(T) == 4 && !ALONG_DEPTH;
    static_assert(CHUNKS % 8 == 0 || (CHUNKS == 4 && !PAIRS_OF_CHUNKS), "the permutation is for these lengths");

    static __device__ __forceinline__ int offset(int line, int chunk) {
        const int permuted = PAIRS_OF_CHUNKS ? chunk ^ (line & 3) << 1
                             : CHUNKS == 4   ? chunk ^ (line >> 1 & 3)
                                             : chunk ^ (line & 7);
        return (line * CHUNKS + permuted) * 16;
    }
    static __device__ __forceinline__ int offset_of(int line, int at) {
        return offset(line, at / PER_CHUNK) + at % PER_CHUNK * static_cast<int>(sizeof(T));
    }

    // The tile from (i0, k0) on; what lies at `end` or beyond, or at `depth` or beyond, is zero. COPY bytes go at once;
    // those of one number are no asynchronous copies.
    template <int COPY, int THREADS>
    static __device__ __forceinline__ void read(char* tile, const T* from, Index line_stride, int i0, int end, int k0,
                                                int depth) {
        constexpr int NUMBERS = COPY / static_cast<int>(sizeof(T)), ACROSS = LENGTH / NUMBERS;
        constexpr int COUNT = LINES * ACROSS / THREADS, STEP = THREADS / ACROSS;
        constexpr int AT_ONCE = COUNT > 4 ? 4 : COUNT;  // more would not leave enough registers
        static_assert(LINES % STEP == 0 && THREADS % ACROSS == 0, "a thread moves the same part of every STEP-th line");
        const int line0 = ALONG_DEPTH ? i0 : k0, line_end = ALONG_DEPTH ? end : depth;
        const int at0 = ALONG_DEPTH ? k0 : i0, at_end = ALONG_DEPTH ? depth : end;
        const int first = threadIdx.x / ACROSS, at = threadIdx.x % ACROSS * NUMBERS, rest = at_end - at0 - at;
        const int of_line = rest < 0 ? 0 : rest < NUMBERS ? rest : NUMBERS;
#pragma unroll AT_ONCE
        for (int c = 0; c < COUNT; c++) {
            const int line = first + c * STEP, count = line0 + line < line_end ? of_line : 0;
            const T* source = from + (line0 + line) * line_stride + at0 + at;  // read where there is something to copy
            char* to = tile + offset_of(line, at);
            if constexpr (COPY >= 4)
                cp_async<COPY>(to, source, count * static_cast<int>(sizeof(T)));
            else
                *reinterpret_cast<T*>(to) = count ? *source : T{};
        }
    }

    // 16 x 16 numbers of 16 bits, or 16 x 8 of 32 bits, from row i0 of A and from k0 on.
    static __device__ __forceinline__ void fragment_a(unsigned (&r)[4], const char* tile, int i0, int k0) {
        const int lane = threadIdx.x % 32;
        if constexpr (ALONG_DEPTH) {
            ldmatrix(r, tile + offset(i0 + lane % 16, k0 / PER_CHUNK + lane / 16));
        } else if constexpr (sizeof(T) == 2) {
            ldmatrix_transposed(r, tile + offset(k0 + lane / 16 * 8 + lane % 8, i0 / PER_CHUNK + lane / 8 % 2));
        } else {
#pragma unroll
            for (int n = 0; n < 4; n++) r[n] = word(tile, k0 + lane % 4 + n / 2 * 4, i0 + lane / 4 + n % 2 * 8);
        }
    }

    // The same of B from column j0 on, for two products of 8 columns: r[0] and r[1], then r[2] and r[3].
    static __device__ __forceinline__ void fragment_b(unsigned (&r)[4], const char* tile, int j0, int k0) {
        const int lane = threadIdx.x % 32;
        if constexpr (ALONG_DEPTH) {
            ldmatrix(r, tile + offset(j0 + lane / 16 * 8 + lane % 8, k0 / PER_CHUNK + lane / 8 % 2));
        } else if constexpr (sizeof(T) == 2) {
            ldmatrix_transposed(r, tile + offset(k0 + lane % 16, j0 / PER_CHUNK + lane / 16));
        } else {
#pragma unroll
            for (int n = 0; n < 4; n++) r[n] = word(tile, k0 + lane % 4 + n % 2 * 4, j0 + lane / 4 + n / 2 * 8);
        }
    }

    static __device__ __forceinline__ unsigned word(const char* tile, int line, int at) {
        return *reinterpret_cast<const unsigned*>(tile + offset_of(line, at));
    }
};

// ---- what operands are multiplied as ---------------------------------------------------------------------------------
//
// Each has T, how operands are stored; K, the depth of one instruction; Operand, a fragment that `prepare` makes ready;
// and add(d, a, b, n): d += a b for product n of the two that a fragment of B serves.

struct Whole {
    unsigned at[4];
    __device__ __forceinline__ void prepare() {}
};

struct Bfloat16Product {
    using T = Bfloat16;
    using Operand = Whole;
    static constexpr int K = 16;
    static __device__ __forceinline__ void add(float (&d)[4], const Whole& a, const Whole& b, int n) {
        mma_bf16_k16(d, a.at, b.at[2 * n], b.at[2 * n + 1]);
    }
};

struct HalfProduct {
    using T = Half;
    using Operand = Whole;
    static constexpr int K = 16;
    static __device__ __forceinline__ void add(float (&d)[4], const Whole& a, const Whole& b, int n) {
#if FCDENSE_ARCHITECTURE >= 800
        mma_f16_k16(d, a.at, b.at[2 * n], b.at[2 * n + 1]);
#else
        mma_f16_k8(d, a.at[0], a.at[1], b.at[2 * n]);
        mma_f16_k8(d, a.at[2], a.at[3], b.at[2 * n + 1]);
#endif
    }
};

// float32 rounded to TF32.
struct Tf32Product {
    struct Operand {
        unsigned at[4];
        __device__ __forceinline__ void prepare() {
#pragma unroll
            for (int n = 0; n < 4; n++) at[n] = float_to_tf32(__uint_as_float(at[n]));
        }
    };
    using T = float;
    static constexpr int K = 8;
    static __device__ __forceinline__ void add(float (&d)[4], const Operand& a, const Operand& b, int n) {
        mma_tf32_k8(d, a.at, b.at[2 * n], b.at[2 * n + 1]);
    }
};

// float32 as the sum of two numbers of TF32, of which 22 bits behind the point remain: three products, the small ones
// first. Tensor cores round sums toward zero, which adds up over a long depth, so that these are added outside of them
// (Ootomo and Yokota, Int. J. High Perform. Comput. Appl. 36, 2022). What is infinite, or would be as TF32, is in `rest`.
struct SplitTf32Product {
    struct Operand {
        unsigned at[4], rest[4];
        __device__ __forceinline__ void prepare() {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const float x = __uint_as_float(at[n]), largest = __uint_as_float(0x7f7fe000u);
                at[n] = float_to_tf32(fminf(fmaxf(x, -largest), largest));
                rest[n] = float_to_tf32(x - __uint_as_float(at[n]));
            }
        }
    };
    using T = float;
    static constexpr int K = 8;
    static __device__ __forceinline__ void add(float (&d)[4], const Operand& a, const Operand& b, int n) {
        float part[4] = {};
        mma_tf32_k8(part, a.rest, b.at[2 * n], b.at[2 * n + 1]);
        mma_tf32_k8(part, a.at, b.rest[2 * n], b.rest[2 * n + 1]);
        mma_tf32_k8(part, a.at, b.at[2 * n], b.at[2 * n + 1]);
#pragma unroll
        for (int i = 0; i < 4; i++) d[i] += part[i];
    }
};

}  // namespace fcdense
