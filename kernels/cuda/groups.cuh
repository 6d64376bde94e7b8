// Threads that work on one row together: a warp, or a whole block.
#pragma once
#include "numbers.cuh"

namespace fcdense {

constexpr int WARP = 32;

struct Sum {
    template <class C>
    static __device__ __forceinline__ C start() {
        return C(0);
    }
    template <class C>
    static __device__ __forceinline__ C join(C a, C b) {
        return a + b;
    }
};
struct Maximum {
    template <class C>
    static __device__ __forceinline__ C start() {
        return -infinity<C>();
    }
    template <class C>
    static __device__ __forceinline__ C join(C a, C b) {
        return maximum(a, b);
    }
};
struct Minimum {
    template <class C>
    static __device__ __forceinline__ C start() {
        return infinity<C>();
    }
    template <class C>
    static __device__ __forceinline__ C join(C a, C b) {
        return minimum(a, b);
    }
};

// THREADS threads of a block that follow each other: a power of two up to a warp, or a multiple of it. All threads of
// the block take part in `joined` together.
template <int THREADS>
struct Group {
    int rank, number;
    __device__ __forceinline__ Group() : rank(threadIdx.x % THREADS), number(threadIdx.x / THREADS) {}

    // What all values of the group give, the same for each of its threads and the same in every run.
    template <class Operation, class C>
    __device__ __forceinline__ C joined(C value) const {
#pragma unroll
        for (int distance = (THREADS < WARP ? THREADS : WARP) / 2; distance > 0; distance /= 2)
            value = Operation::join(value, __shfl_xor_sync(0xffffffffu, value, distance));
        if constexpr (THREADS > WARP) {
            C* parts = reinterpret_cast<C*>(shared_memory()) + number * (THREADS / WARP);
            __syncthreads();
            if (rank % WARP == 0) parts[rank / WARP] = value;
            __syncthreads();
            value = parts[0];
#pragma unroll
            for (int i = 1; i < THREADS / WARP; i++) value = Operation::join(value, parts[i]);
        }
        return value;
    }
};

}  // namespace fcdense
