// C = A B in float32 or float64 on any chip, with a program over the sums while they are in registers.
//
// A block computes ROWS x COLUMNS sums, each of its THREADS a tile of THREAD_ROWS x THREAD_COLUMNS. Blocks of DEPTH of
// A and B go through shared memory; the next ones are on their way to registers while a block is used. Sums run in the
// order of k, so that the same operands give the same bits.
//
// Bytes: A (N / COLUMNS) times, B (M / ROWS) times, less what the L2 cache keeps. Operations: 2 M N K.
#pragma once
#include "operands.cuh"

namespace fcdense {

// Element (i, k) of A lies at a + i a_row + k a_column, (k, j) of B at b + k b_row + j b_column.
struct Product {
    const void *a, *b;
    Index a_row, a_column, b_row, b_column;
    int rows, columns, depth;
};

template <int ROWS_, int COLUMNS_, int DEPTH_, int THREAD_ROWS_, int THREAD_COLUMNS_>
struct SimtTiling {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_;
    static constexpr int THREAD_ROWS = THREAD_ROWS_, THREAD_COLUMNS = THREAD_COLUMNS_;
    static constexpr int THREADS_ALONG = COLUMNS / THREAD_COLUMNS;
    static constexpr int THREADS = ROWS / THREAD_ROWS * THREADS_ALONG;
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

// Adds the columns of a block's tile in a fixed order and writes them to `sums`, one row for each block of rows.
template <class C, class Tiling>
__device__ __forceinline__ void column_sums(const C (&mine)[Tiling::THREAD_COLUMNS], C* shared, C* sums, int j0,
                                            int columns) {
    const int across = threadIdx.x % Tiling::THREADS_ALONG, down = threadIdx.x / Tiling::THREADS_ALONG;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < Tiling::THREAD_COLUMNS; j++)
        shared[down * Tiling::COLUMNS + across * Tiling::THREAD_COLUMNS + j] = mine[j];
    __syncthreads();
    for (int j = threadIdx.x; j < Tiling::COLUMNS && j0 + j < columns; j += Tiling::THREADS) {
        C sum = 0;
        for (int i = 0; i < Tiling::ROWS / Tiling::THREAD_ROWS; i++) sum += shared[i * Tiling::COLUMNS + j];
        sums[static_cast<Index>(blockIdx.y) * columns + j0 + j] = sum;
    }
}

template <class Program>
struct ProductAndProgram {
    Product product;
    typename Program::template Arguments<2> operands;
    void* sums;  // null, or where the column sums of output 0 go, a row for each block of rows
};

// T: how A and B are stored. A_ALONG_DEPTH: A's columns are contiguous. B_ALONG_DEPTH: those of B are.
template <class T, class Tiling, bool A_ALONG_DEPTH, bool B_ALONG_DEPTH, class Program>
__device__ void gemm_simt(const ProductAndProgram<Program>& arguments) {
    using C = Compute<T>;
    using FromA = Transfer<T, C, Tiling::ROWS, Tiling::DEPTH, Tiling::THREADS, A_ALONG_DEPTH>;
    using FromB = Transfer<T, C, Tiling::COLUMNS, Tiling::DEPTH, Tiling::THREADS, B_ALONG_DEPTH>;
    const Product& p = arguments.product;
    const T *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
    C* shared_a = reinterpret_cast<C*>(shared_memory());
    C* shared_b = shared_a + Tiling::DEPTH * FromA::ROW;
    const int i0 = blockIdx.y * Tiling::ROWS, j0 = blockIdx.x * Tiling::COLUMNS;
    const int ti = threadIdx.x / Tiling::THREADS_ALONG * Tiling::THREAD_ROWS;
    const int tj = threadIdx.x % Tiling::THREADS_ALONG * Tiling::THREAD_COLUMNS;
    C sums[Tiling::THREAD_ROWS][Tiling::THREAD_COLUMNS] = {};
    FromA next_a;
    FromB next_b;
    next_a.read(a, p.a_row, p.a_column, i0, p.rows, 0, p.depth);
    next_b.read(b, p.b_column, p.b_row, j0, p.columns, 0, p.depth);
    for (int k0 = 0; k0 < p.depth; k0 += Tiling::DEPTH) {
        next_a.write(shared_a);
        next_b.write(shared_b);
        __syncthreads();
        next_a.read(a, p.a_row, p.a_column, i0, p.rows, k0 + Tiling::DEPTH, p.depth);
        next_b.read(b, p.b_column, p.b_row, j0, p.columns, k0 + Tiling::DEPTH, p.depth);
#pragma unroll
        for (int k = 0; k < Tiling::DEPTH; k++) {
            C left[Tiling::THREAD_ROWS], right[Tiling::THREAD_COLUMNS];
#pragma unroll
            for (int i = 0; i < Tiling::THREAD_ROWS; i++) left[i] = shared_a[k * FromA::ROW + ti + i];
#pragma unroll
            for (int j = 0; j < Tiling::THREAD_COLUMNS; j++) right[j] = shared_b[k * FromB::ROW + tj + j];
#pragma unroll
            for (int i = 0; i < Tiling::THREAD_ROWS; i++)
#pragma unroll
                for (int j = 0; j < Tiling::THREAD_COLUMNS; j++) sums[i][j] += left[i] * right[j];
        }
        __syncthreads();
    }
    C total[Tiling::THREAD_COLUMNS] = {};
#pragma unroll
    for (int i = 0; i < Tiling::THREAD_ROWS; i++)
#pragma unroll
        for (int j = 0; j < Tiling::THREAD_COLUMNS; j++) {
            const int row = i0 + ti + i, column = j0 + tj + j;
            if (row < p.rows && column < p.columns)
                total[j] += Program::run(arguments.operands, Place<2>{{row, column}}, sums[i][j]);
        }
    if (arguments.sums)
        column_sums<C, Tiling>(total, shared_a, static_cast<C*>(arguments.sums), j0, p.columns);
}

}  // namespace fcdense
