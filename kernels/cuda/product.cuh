// What all matrix products have in common: their operands, the order of their tiles, sums of their columns.
#pragma once
#include "arrivals.cuh"
#include "operands.cuh"

namespace fcdense {

// C = A B. Element (i, k) of A lies at a + i a_row + k a_column, (k, j) of B at b + k b_row + j b_column.
//
// Block (x, z) computes tile x from the `part` of the depth that begins at z part. With several parts each block keeps
// its sums, and the last one to come adds those of its tile in the order of the parts: the same bits every time.
struct Product {
    const void *a, *b;
    Index a_row, a_column, b_row, b_column;
    int rows, columns, depth, part;
};

template <class Program>
struct ProductAndProgram {
    Product product;
    typename Program::template Arguments<2> operands;
    void* parts;          // [part][tile][row of the tile][column of it], in the type of the sums
    void* sums_of_tiles;  // [row of tiles][column]: the column sums of output 0 over the rows of a tile
    void* sums;           // null, or the column sums of output 0
    unsigned* arrivals;   // 0 for each tile, then for each column of tiles, before the launch and after it
    int adds;             // whether the column sums are added to what is there
};

// The first row and column of a block's tile.
struct TileOfBlock {
    int i0, j0;
};

// Tiles in bands of up to 8 rows of them, column by column: blocks that run at the same time share what they read.
template <class Tiling>
__device__ __forceinline__ TileOfBlock tile_of_block(const Product& p, int block) {
    constexpr int BAND = 8;
    const int tile_rows = (p.rows + Tiling::ROWS - 1) / Tiling::ROWS;
    const int tile_columns = (p.columns + Tiling::COLUMNS - 1) / Tiling::COLUMNS;
    const int band = block / (BAND * tile_columns), within = block % (BAND * tile_columns);
    const int rest = tile_rows - band * BAND, height = rest < BAND ? rest : BAND;
    return {(band * BAND + within % height) * Tiling::ROWS, within / height * Tiling::COLUMNS};
}

// The sums of this block's part and tile: those of one row after another.
template <class C, class Tiling, class Program>
__device__ __forceinline__ C* part_of_block(const ProductAndProgram<Program>& arguments) {
    const Index block = static_cast<Index>(blockIdx.z) * gridDim.x + blockIdx.x;
    return static_cast<C*>(arguments.parts) + block * (Tiling::ROWS * Tiling::COLUMNS);
}

// Adds the parts of a tile in their order and gives them to the program, N numbers of a row at a time. The column sums
// of its output 0 are left in `shared`, as so many rows as it returns.
template <class C, class Tiling, int N, class Program>
__device__ __forceinline__ int sum_parts(const ProductAndProgram<Program>& arguments, TileOfBlock tile, C* shared) {
    constexpr int ACROSS = Tiling::COLUMNS / N, GROUPS = Tiling::THREADS / ACROSS;
    static_assert(Tiling::THREADS % ACROSS == 0, "a thread stays in its columns");
    const Product& p = arguments.product;
    const Index part_size = static_cast<Index>(gridDim.x) * (Tiling::ROWS * Tiling::COLUMNS);
    const C* parts = static_cast<const C*>(arguments.parts) + blockIdx.x * (Tiling::ROWS * Tiling::COLUMNS);
    const int across = threadIdx.x % ACROSS * N, group = threadIdx.x / ACROSS;
    const int i0 = tile.i0, column = tile.j0 + across;
    Numbers<C, N> total = {};
    for (int line = group; line < Tiling::ROWS && i0 + line < p.rows && column < p.columns; line += GROUPS) {
        Numbers<C, N> numbers = {};
        const C* part = parts + line * Tiling::COLUMNS + across;
#pragma unroll 4
        for (unsigned z = 0; z < gridDim.z; z++, part += part_size) {
            const auto packed = *reinterpret_cast<const Packed<C, N>*>(part);
#pragma unroll
            for (int e = 0; e < N; e++) numbers.at[e] += packed.at[e];
        }
        Program::run(arguments.operands, Place<2>{{i0 + line, column}}, numbers);
#pragma unroll
        for (int e = 0; e < N; e++) total.at[e] += numbers.at[e];
    }
#pragma unroll
    for (int e = 0; e < N; e++) shared[group * Tiling::COLUMNS + across + e] = total.at[e];
    return GROUPS;
}

// Adds the `groups` rows of shared memory, in their order, and with them the column sums of all tiles of this column.
// S: how the result is stored.
template <class C, class S, class Tiling, class Program>
__device__ __forceinline__ void sum_columns(const ProductAndProgram<Program>& arguments, TileOfBlock tile,
                                            const C* shared, int groups) {
    const Product& p = arguments.product;
    const int i0 = tile.i0, j0 = tile.j0, tile_rows = (p.rows + Tiling::ROWS - 1) / Tiling::ROWS;
    C* of_tiles = static_cast<C*>(arguments.sums_of_tiles) + j0;
    __syncthreads();
    for (int j = threadIdx.x; j < Tiling::COLUMNS && j0 + j < p.columns; j += Tiling::THREADS) {
        C sum = 0;
        for (int i = 0; i < groups; i++) sum += shared[i * Tiling::COLUMNS + j];
        of_tiles[static_cast<Index>(i0 / Tiling::ROWS) * p.columns + j] = sum;
    }
    if (!is_last_of(tile_rows, arguments.arrivals + gridDim.x + j0 / Tiling::COLUMNS)) return;
    for (int j = threadIdx.x; j < Tiling::COLUMNS && j0 + j < p.columns; j += Tiling::THREADS) {
        double sum = 0;  // of many tiles
#pragma unroll 4
        for (int i = 0; i < tile_rows; i++) sum += of_tiles[static_cast<Index>(i) * p.columns + j];
        S* to = static_cast<S*>(arguments.sums) + j0 + j;
        if (arguments.adds) sum += widened<double>(*to);
        *to = Rounded<S>::of(static_cast<C>(sum));
    }
}

}  // namespace fcdense
