// C = A B in float32 or float64 on any chip, with a program over the sums while they are in registers.
//
// A block computes ROWS x COLUMNS sums, each of its THREADS a tile of THREAD_ROWS x THREAD_COLUMNS. Blocks of DEPTH of
// A and B go through shared memory; the next ones are on their way to registers while a block is used. Sums run in the
// order of k, so that the same operands give the same bits.
//
// Bytes: A (N / COLUMNS) times, B (M / ROWS) times, less what the L2 cache keeps. Operations: 2 M N K.
#pragma once
#include "product.cuh"

namespace fcdense {

// The columns of a thread are groups of 4, THREADS_ALONG groups apart, so that neighbouring threads read neighbouring
// numbers of shared memory.
template <int ROWS_, int COLUMNS_, int DEPTH_, int THREAD_ROWS_, int THREAD_COLUMNS_>
struct SimtTiling {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_;
    static constexpr int THREAD_ROWS = THREAD_ROWS_, THREAD_COLUMNS = THREAD_COLUMNS_;
    static constexpr int THREADS_ALONG = COLUMNS / THREAD_COLUMNS, GROUP = 4;
    static constexpr int THREADS = ROWS / THREAD_ROWS * THREADS_ALONG;

    static __device__ __forceinline__ int column(int j) {
        return (j / GROUP * THREADS_ALONG + threadIdx.x % THREADS_ALONG) * GROUP + j % GROUP;
    }
};

// A part of an operand on its way from memory to shared memory as [k][i]. With ALONG_DEPTH, numbers of one i that
// follow each other in k are read by neighbouring threads, else those of one k.
template <class T, class C, int WIDTH, int DEPTH, int THREADS, bool ALONG_DEPTH>
struct Transfer {
    static constexpr int COUNT = WIDTH * DEPTH / THREADS, ROW = WIDTH + 4;
    static_assert(WIDTH * DEPTH % THREADS == 0, "every thread moves as much");
    C held[COUNT];

    static __device__ __forceinline__ int depth_of(int n) { return ALONG_DEPTH ? n % DEPTH : n / WIDTH; }
    static __device__ __forceinline__ int width_of(int n) { return ALONG_DEPTH ? n / DEPTH : n % WIDTH; }

    __device__ __forceinline__ void read(const T* from, Index stride, Index depth_stride, int i0, int end, int k0,
                                         int depth) {
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            const int at = n * THREADS + threadIdx.x, i = i0 + width_of(at), k = k0 + depth_of(at);
            held[n] = i < end && k < depth ? widened<C>(from[i * stride + k * depth_stride]) : C(0);
        }
    }

    __device__ __forceinline__ void write(C* to) const {
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            const int at = n * THREADS + threadIdx.x;
            to[depth_of(at) * ROW + width_of(at)] = held[n];
        }
    }
};

// T: how A and B are stored. A_ALONG_DEPTH: A's columns are contiguous. B_ALONG_DEPTH: those of B are. N: numbers of a
// row that the program takes at once. S: how column sums are stored.
template <class T, class Tiling, bool A_ALONG_DEPTH, bool B_ALONG_DEPTH, int N, class S, class Program>
__device__ void gemm_simt(const ProductAndProgram<Program>& arguments) {
    using C = Compute<T>;
    using FromA = Transfer<T, C, Tiling::ROWS, Tiling::DEPTH, Tiling::THREADS, A_ALONG_DEPTH>;
    using FromB = Transfer<T, C, Tiling::COLUMNS, Tiling::DEPTH, Tiling::THREADS, B_ALONG_DEPTH>;
    const Product& p = arguments.product;
    const T *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
    C* shared_a = reinterpret_cast<C*>(shared_memory());
    C* shared_b = shared_a + Tiling::DEPTH * FromA::ROW;
    const TileOfBlock tile = tile_of_block<Tiling>(p, blockIdx.x);
    const int i0 = tile.i0, j0 = tile.j0;
    const int start = blockIdx.z * p.part, depth = p.depth - start < p.part ? p.depth : start + p.part;
    const int down = threadIdx.x / Tiling::THREADS_ALONG, ti = down * Tiling::THREAD_ROWS;
    C sums[Tiling::THREAD_ROWS][Tiling::THREAD_COLUMNS] = {};
    FromA next_a;
    FromB next_b;
    next_a.read(a, p.a_row, p.a_column, i0, p.rows, start, depth);
    next_b.read(b, p.b_column, p.b_row, j0, p.columns, start, depth);
    for (int k0 = start; k0 < depth; k0 += Tiling::DEPTH) {
        next_a.write(shared_a);
        next_b.write(shared_b);
        __syncthreads();
        next_a.read(a, p.a_row, p.a_column, i0, p.rows, k0 + Tiling::DEPTH, depth);
        next_b.read(b, p.b_column, p.b_row, j0, p.columns, k0 + Tiling::DEPTH, depth);
        // Double has half of the registers for its sums; 8 steps at once would not fit beside them on an sm_100a.
#pragma unroll(sizeof(C) == 8 ? 4 : Tiling::DEPTH)
        for (int k = 0; k < Tiling::DEPTH; k++) {
            C left[Tiling::THREAD_ROWS], right[Tiling::THREAD_COLUMNS];
#pragma unroll
            for (int i = 0; i < Tiling::THREAD_ROWS; i++) left[i] = shared_a[k * FromA::ROW + ti + i];
#pragma unroll
            for (int j = 0; j < Tiling::THREAD_COLUMNS; j++) right[j] = shared_b[k * FromB::ROW + Tiling::column(j)];
#pragma unroll
            for (int i = 0; i < Tiling::THREAD_ROWS; i++)
#pragma unroll
                for (int j = 0; j < Tiling::THREAD_COLUMNS; j++) sums[i][j] += left[i] * right[j];
        }
        __syncthreads();
    }
    if (gridDim.z > 1) {
        C* part = part_of_block<C, Tiling>(arguments);
#pragma unroll
        for (int i = 0; i < Tiling::THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < Tiling::THREAD_COLUMNS; j += N) {
                Packed<C, N> packed;
#pragma unroll
                for (int e = 0; e < N; e++) packed.at[e] = sums[i][j + e];
                *reinterpret_cast<Packed<C, N>*>(part + (ti + i) * Tiling::COLUMNS + Tiling::column(j)) = packed;
            }
        if (!is_last_of(gridDim.z, arguments.arrivals + blockIdx.x)) return;
        const int groups = sum_parts<C, Tiling, N>(arguments, tile, shared_a);
        if (arguments.sums) sum_columns<C, S, Tiling>(arguments, tile, shared_a, groups);
        return;
    }
    C total[Tiling::THREAD_COLUMNS] = {};
#pragma unroll
    for (int i = 0; i < Tiling::THREAD_ROWS; i++)
#pragma unroll
        for (int j = 0; j < Tiling::THREAD_COLUMNS; j += N) {
            const int row = i0 + ti + i, column = j0 + Tiling::column(j);
            if (row >= p.rows || column >= p.columns) continue;
            Numbers<C, N> numbers;
#pragma unroll
            for (int e = 0; e < N; e++) numbers.at[e] = sums[i][j + e];
            Program::run(arguments.operands, Place<2>{{row, column}}, numbers);
#pragma unroll
            for (int e = 0; e < N; e++) total[j + e] += numbers.at[e];
        }
    if (!arguments.sums) return;
#pragma unroll
    for (int j = 0; j < Tiling::THREAD_COLUMNS; j++) shared_a[down * Tiling::COLUMNS + Tiling::column(j)] = total[j];
    sum_columns<C, S, Tiling>(arguments, tile, shared_a, Tiling::ROWS / Tiling::THREAD_ROWS);
}

}  // namespace fcdense
