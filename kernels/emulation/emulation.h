// CUDA C++ on the processor: what the language has and g++ lacks. The instructions are in instructions.h.
//
// A kernel is compiled as plain C++ with this header in the place of the GPU's own declarations, and run by runtime.cpp:
// each thread of a block is a fiber, blocks follow one another. Nothing here is fast; it shows what a kernel computes.
#pragma once

// The functions of math.h that kernels call, one by one: <cmath> takes longer to compile than a kernel.
#define EMULATED_FUNCTION(name, parameters_float, parameters_double) \
    float name##f parameters_float noexcept;                         \
    double name parameters_double noexcept;
#define EMULATED_FUNCTION_OF_ONE(name) EMULATED_FUNCTION(name, (float), (double))
#define EMULATED_FUNCTION_OF_TWO(name) EMULATED_FUNCTION(name, (float, float), (double, double))
extern "C" {
EMULATED_FUNCTION_OF_ONE(fabs)
EMULATED_FUNCTION_OF_ONE(exp)
EMULATED_FUNCTION_OF_ONE(expm1)
EMULATED_FUNCTION_OF_ONE(log)
EMULATED_FUNCTION_OF_ONE(log1p)
EMULATED_FUNCTION_OF_ONE(sqrt)
EMULATED_FUNCTION_OF_ONE(tanh)
EMULATED_FUNCTION_OF_ONE(sinh)
EMULATED_FUNCTION_OF_ONE(cosh)
EMULATED_FUNCTION_OF_ONE(sin)
EMULATED_FUNCTION_OF_ONE(cos)
EMULATED_FUNCTION_OF_ONE(atan)
EMULATED_FUNCTION_OF_ONE(erf)
EMULATED_FUNCTION_OF_ONE(erfc)
EMULATED_FUNCTION_OF_TWO(pow)
EMULATED_FUNCTION_OF_TWO(hypot)
EMULATED_FUNCTION_OF_TWO(fmin)
EMULATED_FUNCTION_OF_TWO(fmax)
}

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

extern "C" {
// The thread that runs now.
struct EmulatedThread {
    dim3 index;
    int lane;
};
extern EmulatedThread* emulated_thread;
extern dim3 emulated_block, emulated_block_size, emulated_grid_size;

char* emulated_shared_memory();
void emulated_block_barrier();
// Waits for the other threads of the warp; the last one calls work(slots), where slots[lane] is what each brought.
void emulated_warp_meeting(void* mine, void (*work)(void** slots));
void emulated_counted();  // the block, as done
void emulated_aligned(const void* address, int bytes);
void emulated_copy(void* to, const void* from, int bytes, int valid);
void emulated_copy_commit();
void emulated_copy_wait(int groups_left);
}

#define threadIdx (emulated_thread->index)
#define blockIdx emulated_block
#define blockDim emulated_block_size
#define gridDim emulated_grid_size

inline void __syncthreads() { emulated_block_barrier(); }
inline void __syncwarp(unsigned = ~0u) {
    emulated_warp_meeting(nullptr, [](void**) {});
}

template <class T>
struct Shuffle {
    T value, result;
    int source;
};

template <class T>
T emulated_shuffle(T value, int source) {
    Shuffle<T> mine{value, value, source};
    emulated_warp_meeting(&mine, [](void** slots) {
        for (int lane = 0; lane < 32; lane++) {
            auto* to = static_cast<Shuffle<T>*>(slots[lane]);
            auto* from = to && to->source >= 0 && to->source < 32 ? static_cast<Shuffle<T>*>(slots[to->source]) : nullptr;
            if (from) to->result = from->value;
        }
    });
    return mine.result;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated_shuffle(value, emulated_thread->lane ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulated_shuffle(value, lane);
}

inline float normcdff(float x) { return static_cast<float>(0.5 * erfc(-static_cast<double>(x) * sqrt(0.5))); }
inline double normcdf(double x) { return 0.5 * erfc(-x * sqrt(0.5)); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

#define FCDENSE_KERNEL(Arguments, threads, blocks, function)         \
    extern "C" void emulated_kernel(const void* arguments) {         \
        function(*static_cast<const Arguments*>(arguments));         \
    }                                                                \
    extern "C" const unsigned long emulated_arguments = sizeof(Arguments);
