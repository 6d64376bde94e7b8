// What all matrix products have in common: their operands, the order of their tiles, sums of their columns.
#pragma once
#include "operands.cuh"

namespace fcdense {

// C = A B. Element (i, k) of A lies at a + i a_row + k a_column, (k, j) of B at b + k b_row + j b_column.
//
// Block (x, z) computes tile x from the `part` of the depth that begins at z part. With several parts the program only
// stores: C then has the rows of part 0, those of part 1 and so on, which sum_parts.cuh adds.
struct Product {
    const void *a, *b;
    Index a_row, a_column, b_row, b_column;
    int rows, columns, depth, part;
};

template <class Program>
struct ProductAndProgram {
    Product product;
    typename Program::template Arguments<2> operands;
    void* sums;  // null, or where the column sums of output 0 go, a row for each row of tiles
};

struct TileOfBlock {
    int row, column;
};

// Tiles in bands of up to 8 rows of them, column by column: blocks that run at the same time share what they read.
__device__ __forceinline__ TileOfBlock tile_of_block(int tile_rows, int tile_columns) {
    constexpr int BAND = 8;
    const int block = blockIdx.x, band = block / (BAND * tile_columns), within = block % (BAND * tile_columns);
    const int rest = tile_rows - band * BAND, height = rest < BAND ? rest : BAND;
    return {band * BAND + within % height, within / height};
}

// Adds the `groups` rows of shared memory, of COLUMNS numbers each, in their order, and writes them from `sums` on.
template <class C, int COLUMNS, int THREADS>
__device__ __forceinline__ void sum_groups(const C* shared, int groups, C* sums, int columns) {
    __syncthreads();
    for (int j = threadIdx.x; j < COLUMNS && j < columns; j += THREADS) {
        C sum = 0;
        for (int i = 0; i < groups; i++) sum += shared[i * COLUMNS + j];
        sums[j] = sum;
    }
}

}  // namespace fcdense
