// Random numbers by counting: Philox 4x64 (Salmon, Moraes, Dror, Shaw, SC 2011), the numbers of NumPy's generator.
#pragma once
#include "operands.cuh"

namespace fcdense {

using Word = unsigned long long;

// The four words of block `counter` of the stream with these keys, ten rounds.
__device__ __forceinline__ void philox(Word counter, Word key0, Word key1, Word (&x)[4]) {
    x[0] = counter, x[1] = x[2] = x[3] = 0;
    for (int round = 0; round < 10; round++) {
        const Word high0 = __umul64hi(0xD2E7470EE14C6C93ull, x[0]), low0 = 0xD2E7470EE14C6C93ull * x[0];
        const Word high1 = __umul64hi(0xCA5A826395121157ull, x[2]), low1 = 0xCA5A826395121157ull * x[2];
        x[0] = high1 ^ x[1] ^ key0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ key1;
        x[3] = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
}

struct Dropout {
    const void* x;
    const Word* stream;  // two words, the key
    Index stream_stride;
    void* out;
    double rate;
    Index size;
    Index packed;  // groups of eight, from the first one on, that may be read and written at once
};

// out = x / (1 - rate) where a number of the stream, uniform from 0 to 1, is at least `rate`, else 0; x is contiguous.
// A block of the stream serves eight numbers: half a word each, the low half first, of which 24 bits count.
template <class T>
__device__ void dropout(const Dropout& a) {
    using C = Compute<T>;
    using Eight = Packed<T, 8>;
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
    const C factor = static_cast<C>(1.0 / (1.0 - a.rate));
    for (Index n = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; 8 * n < a.size; n += step) {
        Word words[4];
        philox(static_cast<Word>(n) + 1, a.stream[0], a.stream[a.stream_stride], words);
        const T* x = static_cast<const T*>(a.x) + 8 * n;
        T* out = static_cast<T*>(a.out) + 8 * n;
        const Index rest = a.size - 8 * n;
        Eight numbers = {};
        if (n < a.packed) {
            numbers = *reinterpret_cast<const Eight*>(x);
        } else {
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e < rest) numbers.at[e] = x[e];
        }
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const unsigned half = static_cast<unsigned>(words[e / 2] >> 32 * (e % 2));
            const float uniform = static_cast<float>(half >> 8) * (1.0f / 16777216.0f);
            const C mask = uniform >= static_cast<float>(a.rate) ? factor : C(0);
            numbers.at[e] = Rounded<T>::of(widened<C>(numbers.at[e]) * mask);
        }
        if (n < a.packed) {
            *reinterpret_cast<Eight*>(out) = numbers;
        } else {
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e < rest) out[e] = numbers.at[e];
        }
    }
}

struct Stream {
    Word *state, *out;
};

// out = state, then state[1] += 1.
__device__ inline void next_stream(const Stream& a) {
    a.out[0] = a.state[0];
    a.out[1] = a.state[1]++;
}

}  // namespace fcdense
