// The operands of an elementwise program: the words in which all kernels speak of arrays.
//
// A program is a struct that is written from a traced function (fcdense/cuda/functor.py). It loads its operands at a
// place, computes, and stores its outputs, for N numbers at once. The same struct runs over a whole array
// (elementwise.cuh) and over the sums of a matrix product (gemm_*.cuh); then its operand 0 is the sum.
#pragma once
#include "numbers.cuh"

namespace fcdense {

// One element of arrays with DIMS axes, counted from 0.
template <int DIMS>
struct Place {
    Index at[DIMS];
};

// Element number i of arrays of this shape, the last axis the fastest.
template <int DIMS>
__device__ __forceinline__ Place<DIMS> place_of(Index i, const Index (&shape)[DIMS]) {
    Place<DIMS> place;
#pragma unroll
    for (int d = DIMS - 1; d > 0; d--) {
        const Division division = divided(i, shape[d]);
        place.at[d] = division.rest;
        i = division.quotient;
    }
    place.at[0] = i;
    return place;
}

// N numbers that follow each other along the last axis.
template <class C, int N>
struct Numbers {
    C at[N];
};

// The same as they are stored: one access of up to 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Packed {
    T at[N];
};

// An array; strides count elements, and one of 0 repeats the array along its axis.
template <int DIMS>
struct Operand {
    void* data;
    Index strides[DIMS];

    __device__ __forceinline__ Index offset(const Place<DIMS>& place) const {
        Index sum = 0;
#pragma unroll
        for (int d = 0; d < DIMS; d++) sum += place.at[d] * strides[d];
        return sum;
    }
};

// All operands of a program: INPUTS of them to be read, then OUTPUTS to be written, and its SCALARS, which are float64:
// `given` with the launch, or `live`, read from memory when the kernel runs.
template <int DIMS, int INPUTS, int OUTPUTS, int SCALARS>
struct Operands {
    Operand<DIMS> inputs[INPUTS ? INPUTS : 1];
    Operand<DIMS> outputs[OUTPUTS];
    const double* live;
    double given[SCALARS ? SCALARS : 1];

    __device__ __forceinline__ double scalar(int k) const { return live ? live[k] : given[k]; }
};

// N numbers of an array from `place` on, as they are stored. With N > 1 the array's last axis is contiguous, and `place`
// is a multiple of N along it at an address that a packed access may have.
template <class T, int N, int DIMS>
__device__ __forceinline__ Packed<T, N>& packed(const Operand<DIMS>& operand, const Place<DIMS>& place) {
    return *reinterpret_cast<Packed<T, N>*>(static_cast<T*>(operand.data) + operand.offset(place));
}

// The same, to compute with.
template <class C, class T, int N, int DIMS>
__device__ __forceinline__ Numbers<C, N> load(const Operand<DIMS>& operand, const Place<DIMS>& place) {
    const auto stored = packed<T, N>(operand, place);
    Numbers<C, N> numbers;
#pragma unroll
    for (int e = 0; e < N; e++) numbers.at[e] = widened<C>(stored.at[e]);
    return numbers;
}

// The same of an array that is repeated along its last axis.
template <class C, class T, int N, int DIMS>
__device__ __forceinline__ Numbers<C, N> load_repeated(const Operand<DIMS>& operand, const Place<DIMS>& place) {
    const C number = widened<C>(static_cast<const T*>(operand.data)[operand.offset(place)]);
    Numbers<C, N> numbers;
#pragma unroll
    for (int e = 0; e < N; e++) numbers.at[e] = number;
    return numbers;
}

template <class T, int DIMS, class C, int N>
__device__ __forceinline__ void store(const Operand<DIMS>& operand, const Place<DIMS>& place,
                                      const Numbers<C, N>& numbers) {
    Packed<T, N> rounded;
#pragma unroll
    for (int e = 0; e < N; e++) rounded.at[e] = Rounded<T>::of(numbers.at[e]);
    packed<T, N>(operand, place) = rounded;
}

}  // namespace fcdense
