// The instructions of cuda/ptx.cuh as the PTX ISA describes them, for the emulation.
//
// How the numbers of a matrix lie in the registers of a warp is read from the PTX ISA (9.7.15, "Warp-level matrix
// instructions"): lane l, with g = l / 4 and t = l % 4, holds of a 16-bit matrix the numbers (g, 2 t) and (g, 2 t + 1).
// An instruction adds all its products at once and rounds toward zero, as Fasi, Higham, Mikaitis and Pranesh found of
// tensor cores (PeerJ Computer Science 7:e330, 2021); a GPU keeps fewer bits in between.
#pragma once
#include "emulation.h"

#ifndef FCDENSE_ARCHITECTURE
#define FCDENSE_ARCHITECTURE 900
#endif

namespace fcdense {

inline char* shared_memory() { return emulated_shared_memory(); }

inline int block_number() { return static_cast<int>(blockIdx.x); }

inline unsigned arrive(unsigned* counter, unsigned last) {
    emulated_counted();
    const unsigned before = *counter;
    *counter = before >= last ? 0 : before + 1;
    return before;
}

inline float half_to_float(unsigned short bits) {
    _Float16 x;
    __builtin_memcpy(&x, &bits, 2);
    return x;
}
inline unsigned short float_to_half(float x) {
    const _Float16 rounded = static_cast<_Float16>(x);
    unsigned short bits;
    __builtin_memcpy(&bits, &rounded, 2);
    return bits;
}

// To the nearest, ties away from zero.
inline unsigned float_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fffe000u : (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

// With errors as large as those of the instructions: 11 or 22 bits of the result are kept.
template <int BITS>
inline float emulated_approximation(double exact) {
    const float y = static_cast<float>(exact);
    return y - y == 0 ? __uint_as_float(__float_as_uint(y) & ~0u << (23 - BITS)) : y;
}
inline float exp2_approximate(float x) { return emulated_approximation<22>(pow(2.0, static_cast<double>(x))); }
inline float reciprocal_approximate(float x) { return emulated_approximation<22>(1.0 / static_cast<double>(x)); }
inline float tanh_approximate(float x) { return emulated_approximation<11>(tanh(static_cast<double>(x))); }

template <int BYTES>
inline void cp_async(void* to, const void* from, int valid) {
    emulated_copy(to, from, BYTES, valid);
}
inline void cp_async_commit() { emulated_copy_commit(); }
template <int GROUPS>
inline void cp_async_wait() {
    emulated_copy_wait(GROUPS);
}

struct EmulatedLoad {
    unsigned* registers;
    const void* row;
};

template <bool TRANSPOSED>
inline void emulated_ldmatrix(unsigned (&r)[4], const void* row) {
    emulated_aligned(row, 16);
    EmulatedLoad mine{r, row};
    emulated_warp_meeting(&mine, [](void** slots) {
        for (int matrix = 0; matrix < 4; matrix++)
            for (int lane = 0; lane < 32; lane++) {
                unsigned short pair[2];
                for (int e = 0; e < 2; e++) {
                    const int along = lane >> 2, across = (lane & 3) * 2 + e;
                    const int from = TRANSPOSED ? across : along, column = TRANSPOSED ? along : across;
                    const auto* source = static_cast<EmulatedLoad*>(slots[matrix * 8 + from])->row;
                    pair[e] = static_cast<const unsigned short*>(source)[column];
                }
                static_cast<EmulatedLoad*>(slots[lane])->registers[matrix] = pair[0] | unsigned(pair[1]) << 16;
            }
    });
}
inline void ldmatrix(unsigned (&r)[4], const void* row) { emulated_ldmatrix<false>(r, row); }
inline void ldmatrix_transposed(unsigned (&r)[4], const void* row) { emulated_ldmatrix<true>(r, row); }

// d + a b, with b's numbers 8 apart, rounded toward zero.
template <int K>
inline float emulated_sum(float d, const float* a, const float* b) {
    double sum = d;
    for (int k = 0; k < K; k++) sum += static_cast<double>(a[k]) * b[8 * k];
    const float rounded = static_cast<float>(sum);
    if (!(rounded - rounded == 0) || fabs(static_cast<double>(rounded)) <= fabs(sum)) return rounded;
    return __uint_as_float(__float_as_uint(rounded) - 1);
}

struct EmulatedMma {
    float* d;
    const unsigned *a, *b;
};

// D (16 x 8) += A (16 x K) B (K x 8); `A` has K / 16 * 4 or K / 8 * 2 registers of pairs of 16-bit numbers.
template <int K, float (*TO_FLOAT)(unsigned short)>
inline void emulated_mma_16bit(float* d, const unsigned* a, const unsigned* b) {
    EmulatedMma mine{d, a, b};
    emulated_warp_meeting(&mine, [](void** slots) {
        float a_[16][K], b_[K][8], d_[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const auto& m = *static_cast<EmulatedMma*>(slots[lane]);
            const int g = lane >> 2, t = (lane & 3) * 2;
            for (int i = 0; i < K / 4; i++)
                for (int e = 0; e < 2; e++)
                    a_[g + (i & 1) * 8][t + (i >> 1) * 8 + e] = TO_FLOAT(static_cast<unsigned short>(m.a[i] >> 16 * e));
            for (int i = 0; i < K / 8; i++)
                for (int e = 0; e < 2; e++) b_[t + i * 8 + e][g] = TO_FLOAT(static_cast<unsigned short>(m.b[i] >> 16 * e));
            for (int i = 0; i < 4; i++) d_[g + (i >> 1) * 8][t + (i & 1)] = m.d[i];
        }
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++)
                d_[i][j] = emulated_sum<K>(d_[i][j], a_[i], &b_[0][j]);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++)
                static_cast<EmulatedMma*>(slots[lane])->d[i] = d_[(lane >> 2) + (i >> 1) * 8][(lane & 3) * 2 + (i & 1)];
    });
}

inline float bfloat16_bits_to_float(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }

inline void mma_bf16_k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emulated_mma_16bit<16, bfloat16_bits_to_float>(d, a, b);
}
inline void mma_f16_k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emulated_mma_16bit<16, half_to_float>(d, a, b);
}
inline void mma_f16_k8(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
    const unsigned a[2] = {a0, a1};
    emulated_mma_16bit<8, half_to_float>(d, a, &b);
}

// A: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); B: (t, g), (t + 4, g); the last 13 bits of a number are ignored.
inline void mma_tf32_k8(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    EmulatedMma mine{d, a, b};
    emulated_warp_meeting(&mine, [](void** slots) {
        float a_[16][8], b_[8][8], d_[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const auto& m = *static_cast<EmulatedMma*>(slots[lane]);
            const int g = lane >> 2, t = lane & 3;
            for (int i = 0; i < 4; i++) a_[g + (i & 1) * 8][t + (i >> 1) * 4] = __uint_as_float(m.a[i] & ~0x1fffu);
            for (int i = 0; i < 2; i++) b_[t + i * 4][g] = __uint_as_float(m.b[i] & ~0x1fffu);
            for (int i = 0; i < 4; i++) d_[g + (i >> 1) * 8][t * 2 + (i & 1)] = m.d[i];
        }
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++)
                d_[i][j] = emulated_sum<8>(d_[i][j], a_[i], &b_[0][j]);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++)
                static_cast<EmulatedMma*>(slots[lane])->d[i] = d_[(lane >> 2) + (i >> 1) * 8][(lane & 3) * 2 + (i & 1)];
    });
}

}  // namespace fcdense
