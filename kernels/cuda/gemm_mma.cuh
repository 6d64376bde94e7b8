// C = A B on tensor cores by mma.sync, with float32 sums and a program over them.
//
// A block computes ROWS x COLUMNS sums, each of its warps WARP_ROWS x WARP_COLUMNS. Tiles of DEPTH of A and B are copied
// to shared memory STAGES - 1 ahead of their use. The sums then go through shared memory, 16 rows of each warp at a
// time, so that a thread takes 4 numbers of a row and a warp writes whole lines.
//
// Bytes: A (N / COLUMNS) times, B (M / ROWS) times, less what the L2 cache keeps. Operations: 2 M N K.
#pragma once
#include "fragments.cuh"
#include "product.cuh"

namespace fcdense {

template <int ROWS_, int COLUMNS_, int DEPTH_, int WARP_ROWS_, int WARP_COLUMNS_, int STAGES_>
struct MmaTiling {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_, STAGES = STAGES_;
    static constexpr int WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr int WARPS_DOWN = ROWS / WARP_ROWS, WARPS_ALONG = COLUMNS / WARP_COLUMNS;
    static constexpr int THREADS = 32 * WARPS_DOWN * WARPS_ALONG;
    static constexpr int DOWN = WARP_ROWS / 16, ALONG = WARP_COLUMNS / 8;  // instructions of a warp for each K
};

// COPY: bytes that are copied at once. N: numbers of a row that the program takes at once, 1 or 4. S: how column sums
// are stored.
template <class Math, class Tiling, bool A_ALONG_DEPTH, bool B_ALONG_DEPTH, int COPY_A, int COPY_B, int N, class S,
          class Program>
__device__ void gemm_mma(const ProductAndProgram<Program>& arguments) {
    using T = typename Math::T;
    using TileA = SharedTile<T, Tiling::ROWS, Tiling::DEPTH, A_ALONG_DEPTH>;
    using TileB = SharedTile<T, Tiling::COLUMNS, Tiling::DEPTH, B_ALONG_DEPTH>;
    constexpr int STAGES = Tiling::STAGES, STAGE = TileA::BYTES + TileB::BYTES;
    const Product& p = arguments.product;
    const Index a_line = A_ALONG_DEPTH ? p.a_row : p.a_column, b_line = B_ALONG_DEPTH ? p.b_column : p.b_row;
    char* shared = shared_memory();
    const TileOfBlock tile = tile_of_block<Tiling>(p, blockIdx.x);
    const int start = blockIdx.z * p.part, depth = p.depth - start < p.part ? p.depth : start + p.part;
    const int tiles = (depth - start + Tiling::DEPTH - 1) / Tiling::DEPTH;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_down = warp / Tiling::WARPS_ALONG, warp_along = warp % Tiling::WARPS_ALONG;

    auto read = [&](int n) {
        if (n < tiles) {
            char* stage = shared + n % STAGES * STAGE;
            const int k0 = start + n * Tiling::DEPTH;
            TileA::template read<COPY_A, Tiling::THREADS>(stage, static_cast<const T*>(p.a), a_line, tile.i0,
                                                        p.rows, k0, depth);
            TileB::template read<COPY_B, Tiling::THREADS>(stage + TileA::BYTES, static_cast<const T*>(p.b), b_line,
                                                        tile.j0, p.columns, k0, depth);
        }
        cp_async_commit();
    };

    float sums[Tiling::DOWN][Tiling::ALONG][4] = {};
#pragma unroll
    for (int n = 0; n < STAGES - 1; n++) read(n);
    for (int n = 0; n < tiles; n++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // all copies of tile n are there, and tile n - 1, whose place is now taken, is used
        read(n + STAGES - 1);
        const char *stage_a = shared + n % STAGES * STAGE, *stage_b = stage_a + TileA::BYTES;
#pragma unroll
        for (int k = 0; k < Tiling::DEPTH; k += Math::K) {
            typename Math::Operand left[Tiling::DOWN], right;
#pragma unroll
            for (int i = 0; i < Tiling::DOWN; i++) {
                TileA::fragment_a(left[i].at, stage_a, warp_down * Tiling::WARP_ROWS + i * 16, k);
                left[i].prepare();
            }
#pragma unroll
            for (int j = 0; j < Tiling::ALONG; j += 2) {
                TileB::fragment_b(right.at, stage_b, warp_along * Tiling::WARP_COLUMNS + j * 8, k);
                right.prepare();
#pragma unroll
                for (int i = 0; i < Tiling::DOWN; i++) {
                    Math::add(sums[i][j], left[i], right, 0);
                    Math::add(sums[i][j + 1], left[i], right, 1);
                }
            }
        }
    }
    cp_async_wait<0>();

    // [row of the slab][column], 16 rows of each row of warps at a time.
    constexpr int SLAB = 16 * Tiling::WARPS_DOWN, LINE = Tiling::COLUMNS + 8, ACROSS = Tiling::COLUMNS / N;
    constexpr int GROUPS = Tiling::THREADS / ACROSS;
    static_assert(Tiling::THREADS % ACROSS == 0, "a thread stays in its columns");
    float* slab = reinterpret_cast<float*>(shared);
    const TileOfBlock target = tile_of_block<Tiling>(p, block_number());
    const int across = threadIdx.x % ACROSS * N, group = threadIdx.x / ACROSS, column = target.j0 + across;
    const bool is_part = gridDim.z > 1;
    Numbers<float, N> total = {};
#pragma unroll
    for (int i = 0; i < Tiling::DOWN; i++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < Tiling::ALONG; j++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                slab[(warp_down * 16 + lane / 4 + n / 2 * 8) * LINE + warp_along * Tiling::WARP_COLUMNS + j * 8 +
                     lane % 4 * 2 + n % 2] = sums[i][j][n];
        __syncthreads();
        for (int line = group; line < SLAB; line += GROUPS) {
            const int row = line / 16 * Tiling::WARP_ROWS + i * 16 + line % 16;
            const auto packed = *reinterpret_cast<const Packed<float, N>*>(slab + line * LINE + across);
            if (is_part) {
                float* part = part_of_block<float, Tiling>(arguments) + row * Tiling::COLUMNS + across;
                *reinterpret_cast<Packed<float, N>*>(part) = packed;
                continue;
            }
            if (target.i0 + row >= p.rows || column >= p.columns) continue;
            Numbers<float, N> numbers;
#pragma unroll
            for (int e = 0; e < N; e++) numbers.at[e] = packed.at[e];
            Program::run(arguments.operands, Place<2>{{target.i0 + row, column}}, numbers);
#pragma unroll
            for (int e = 0; e < N; e++) total.at[e] += numbers.at[e];
        }
    }
    if (is_part) {
        if (!is_last_of(gridDim.z, arguments.arrivals + blockIdx.x)) return;
        sum_parts<float, Tiling, N>(arguments, target, slab);
    } else {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < N; e++) slab[group * Tiling::COLUMNS + across + e] = total.at[e];
    }
    if (arguments.sums) sum_columns<float, S, Tiling>(arguments, target, slab, GROUPS);
}

}  // namespace fcdense
