// A program over whole arrays.
//
// Bytes: each operand once. Operations: those of the program.
#pragma once
#include "operands.cuh"

namespace fcdense {

template <int DIMS, class Program>
struct Elementwise {
    typename Program::template Arguments<DIMS> operands;
    const double* when;  // null, or where 0.0 means that nothing is to be changed
    Index shape[DIMS];   // the last axis in groups of N numbers
    Index size;          // groups
};

// Thread i takes groups i, i + threads, ... of N numbers; the last axis is the fastest.
template <int DIMS, int N, class Program>
__device__ void elementwise(const Elementwise<DIMS, Program>& a) {
    if (a.when && *a.when == 0.0) return;
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.size; i += step) {
        Place<DIMS> place = place_of<DIMS>(i, a.shape);
        place.at[DIMS - 1] *= N;
        Program::template run<N>(a.operands, place);
    }
}

// Numbers of one type as those of another: out = x. Whole numbers stay whole.
template <class R>
struct Cast {
    template <class T>
    static __device__ __forceinline__ R of(T x) {
        return static_cast<R>(x);
    }
    static __device__ __forceinline__ R of(Half x) { return of(widened<float>(x)); }
    static __device__ __forceinline__ R of(Bfloat16 x) { return of(widened<float>(x)); }
};
template <>
struct Cast<Half> {
    template <class T>
    static __device__ __forceinline__ Half of(T x) {
        return Rounded<Half>::of(widened<float>(x));
    }
};
template <>
struct Cast<Bfloat16> {
    template <class T>
    static __device__ __forceinline__ Bfloat16 of(T x) {
        return Rounded<Bfloat16>::of(widened<float>(x));
    }
};

template <int DIMS>
struct Copy {
    Operand<DIMS> x, out;
    Index shape[DIMS];  // as in Elementwise
    Index size;
};

template <class T, class R, int DIMS, int N>
__device__ void copy(const Copy<DIMS>& a) {
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.size; i += step) {
        Place<DIMS> place = place_of<DIMS>(i, a.shape);
        place.at[DIMS - 1] *= N;
        const auto x = packed<T, N>(a.x, place);
        Packed<R, N> out;
#pragma unroll
        for (int e = 0; e < N; e++) out.at[e] = Cast<R>::of(x.at[e]);
        packed<R, N>(a.out, place) = out;
    }
}

// What depends on scalars alone, computed once by one thread: out[k] = program_k(scalars).
template <class Program>
__device__ void scalar_work(const Elementwise<1, Program>& a) {
    if (a.when && *a.when == 0.0) return;
    Program::template run<1>(a.operands, Place<1>{{0}});
}

}  // namespace fcdense
