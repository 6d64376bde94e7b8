// Numbers: how they are stored, what they are computed in, and the functions that activations are made of.
//
// Arithmetic is float for float, Half and Bfloat16, and double for double. NaN propagates through all functions, also
// through maximum and minimum, where CUDA's fmaxf drops it.
#pragma once
#include "ptx.cuh"

namespace fcdense {

using Index = long long;

struct Division {
    Index quotient, rest;
};
// a / b for numbers that are not negative: in 32 bits, which is several times as fast, where they suffice.
__device__ __forceinline__ Division divided(Index a, Index b) {
    if ((a | b) >> 32) return {a / b, a % b};
    const unsigned quotient = static_cast<unsigned>(a) / static_cast<unsigned>(b);
    return {quotient, static_cast<unsigned>(a) - quotient * static_cast<unsigned>(b)};
}

// By their bits: the compiler does not divide by zero before the GPU would.
template <class C>
__device__ __forceinline__ C infinity() {
    return C(__uint_as_float(0x7f800000u));
}
template <class C>
__device__ __forceinline__ C not_a_number() {
    return C(__uint_as_float(0x7fc00000u));
}

struct Half {
    unsigned short bits;
};
struct Bfloat16 {
    unsigned short bits;
};

template <class T>
struct ComputeType {
    using type = float;
};
template <>
struct ComputeType<double> {
    using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

template <class C, class T>
__device__ __forceinline__ C widened(T x) {
    return static_cast<C>(x);
}
template <class C>
__device__ __forceinline__ C widened(Half x) {
    return static_cast<C>(half_to_float(x.bits));
}
template <class C>
__device__ __forceinline__ C widened(Bfloat16 x) {
    return static_cast<C>(__uint_as_float(static_cast<unsigned>(x.bits) << 16));
}

// Rounded to the nearest, ties to even.
template <class T>
struct Rounded {
    template <class C>
    static __device__ __forceinline__ T of(C x) {
        return static_cast<T>(x);
    }
};
template <>
struct Rounded<Half> {
    static __device__ __forceinline__ Half of(float x) { return {float_to_half(x)}; }
    static __device__ __forceinline__ Half of(double x) { return {float_to_half(static_cast<float>(x))}; }
};
template <>
struct Rounded<Bfloat16> {
    static __device__ __forceinline__ Bfloat16 of(float x) {
        const unsigned bits = __float_as_uint(x);
        const unsigned nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
        return {static_cast<unsigned short>((x != x ? bits | 0x400000u : nearest) >> 16)};
    }
    static __device__ __forceinline__ Bfloat16 of(double x) { return of(static_cast<float>(x)); }
};

// ---- functions, by the names of the traced operations ---------------------------------------------------------------

#define FCDENSE_FUNCTION(name, single, twice)                                              \
    __device__ __forceinline__ float name(float x) { return single(x); }                   \
    __device__ __forceinline__ double name(double x) { return twice(x); }

FCDENSE_FUNCTION(absolute, ::fabsf, ::fabs)
FCDENSE_FUNCTION(exp, ::expf, ::exp)
FCDENSE_FUNCTION(expm1, ::expm1f, ::expm1)
FCDENSE_FUNCTION(log, ::logf, ::log)
FCDENSE_FUNCTION(log1p, ::log1pf, ::log1p)
FCDENSE_FUNCTION(sqrt, ::sqrtf, ::sqrt)
FCDENSE_FUNCTION(tanh, ::tanhf, ::tanh)
FCDENSE_FUNCTION(sinh, ::sinhf, ::sinh)
FCDENSE_FUNCTION(cosh, ::coshf, ::cosh)
FCDENSE_FUNCTION(sin, ::sinf, ::sin)
FCDENSE_FUNCTION(cos, ::cosf, ::cos)
FCDENSE_FUNCTION(arctan, ::atanf, ::atan)
FCDENSE_FUNCTION(erf, ::erff, ::erf)
FCDENSE_FUNCTION(ndtr, ::normcdff, ::normcdf)
#undef FCDENSE_FUNCTION

__device__ __forceinline__ float power(float x, float y) { return ::powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return ::pow(x, y); }

template <class C>
__device__ __forceinline__ C maximum(C a, C b) {
    return a != a || a > b ? a : b;
}
template <class C>
__device__ __forceinline__ C minimum(C a, C b) {
    return a != a || a < b ? a : b;
}
// inf where one operand is infinite, also beside NaN.
__device__ __forceinline__ float hypot(float a, float b) { return ::hypotf(a, b); }
__device__ __forceinline__ double hypot(double a, double b) { return ::hypot(a, b); }

template <class C>
__device__ __forceinline__ C sign(C x) {
    return x > C(0) ? C(1) : x < C(0) ? C(-1) : x;
}
// 1 / (1 + exp(-x)): exp may overflow to inf, of which 0 is the right limit.
template <class C>
__device__ __forceinline__ C sigmoid(C x) {
    return C(1) / (C(1) + exp(-x));
}
template <class C>
__device__ __forceinline__ C softplus(C x) {
    return maximum(x, C(0)) + log1p(exp(-absolute(x)));
}

// The same functions for results that are rounded to bfloat16, by the instructions of the special function unit: their
// relative errors of up to 2^-11 (tanh) and 2^-17 (exp of 80, less nearer to 0) are a quarter of that rounding or less.
namespace approximate {

__device__ __forceinline__ float exp(float x) { return exp2_approximate(x * 1.4426950408889634f); }
__device__ __forceinline__ float tanh(float x) { return tanh_approximate(x); }
__device__ __forceinline__ float sigmoid(float x) { return reciprocal_approximate(1.0f + exp(-x)); }
__device__ __forceinline__ float softplus(float x) {
    return maximum(x, 0.0f) + log1p(exp(-absolute(x)));
}

}  // namespace approximate

}  // namespace fcdense
