// The parts of a product whose depth was cut, added in their order, with a program over the sums.
//
// Bytes: the parts once, in the type of the sums, and the operands of the program. Operations: an addition a number.
#pragma once
#include "product.cuh"

namespace fcdense {

template <class Program>
struct PartsAndProgram {
    const void* parts;  // [part][row][column]
    int rows, columns, count;
    typename Program::template Arguments<2> operands;
    void* sums;  // null, or where the column sums of output 0 go, a row for each row of blocks
};

// A block takes ROWS rows of WARP N columns; its warps take one row after another.
template <class Program, int N, int ROWS, int THREADS>
__device__ void sum_parts(const PartsAndProgram<Program>& a) {
    using C = typename Program::C;
    constexpr int WARP = 32, COLUMNS = WARP * N, WARPS = THREADS / WARP;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int j0 = blockIdx.y * COLUMNS, column = j0 + lane * N, i0 = blockIdx.x * ROWS;
    const Index size = static_cast<Index>(a.rows) * a.columns;
    Numbers<C, N> total = {};
    for (int row = i0 + warp; row < i0 + ROWS && row < a.rows && column < a.columns; row += WARPS) {
        Numbers<C, N> numbers = {};
        const C* part = static_cast<const C*>(a.parts) + static_cast<Index>(row) * a.columns + column;
        for (int k = 0; k < a.count; k++, part += size) {
            const auto packed = *reinterpret_cast<const Packed<C, N>*>(part);
#pragma unroll
            for (int e = 0; e < N; e++) numbers.at[e] += packed.at[e];
        }
        Program::run(a.operands, Place<2>{{row, column}}, numbers);
#pragma unroll
        for (int e = 0; e < N; e++) total.at[e] += numbers.at[e];
    }
    if (!a.sums) return;
    C* shared = reinterpret_cast<C*>(shared_memory());
#pragma unroll
    for (int e = 0; e < N; e++) shared[warp * COLUMNS + lane * N + e] = total.at[e];
    sum_groups<C, COLUMNS, THREADS>(
        shared, WARPS, static_cast<C*>(a.sums) + static_cast<Index>(blockIdx.x) * a.columns + j0, a.columns - j0);
}

}  // namespace fcdense
