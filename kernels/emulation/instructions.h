// The instructions of cuda/ptx.cuh as the PTX ISA describes them, for the emulation.
#pragma once
#include "emulation.h"

namespace fcdense {

inline char* shared_memory() { return emulated_shared_memory(); }

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

}  // namespace fcdense
