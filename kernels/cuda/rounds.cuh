// Around a step that is replayed many times in a row: each round takes rows of its own, and leaves its results.
//
// Bytes: the rows of a batch and the results, each read and written once. Operations: none.
#pragma once
#include "arrivals.cuh"
#include "operands.cuh"

namespace fcdense {

constexpr int PIECES = 8;  // of a launch

struct Round {
    Index number, made;  // made: rounds up to the last one
    double running;      // 0 after it
};

// Rows in units of so many bytes, by which their addresses can be divided.
struct Piece {
    const void* x;
    void* out;
    const Index* order;  // of rows to take
    Index rows, units;   // units of a row
    int bytes;           // of a unit: 1, 2, 4 or 16
};

template <class Copy>
__device__ __forceinline__ void in_units(const Piece& piece, const Copy& copy) {
    if (piece.bytes == 16) copy.template of<Packed<unsigned, 4>>(piece);
    else if (piece.bytes == 4) copy.template of<unsigned>(piece);
    else if (piece.bytes == 2) copy.template of<unsigned short>(piece);
    else copy.template of<unsigned char>(piece);
}

struct TakeRows {
    const Round* round;
    Piece pieces[PIECES];
};

// out = x[order[number * rows :][: rows]]
struct Taking {
    Index number;
    template <class Unit>
    __device__ __forceinline__ void of(const Piece& p) const {
        const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = p.rows * p.units;
        const Index* order = p.order + number * p.rows;
        for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
            const Division place = divided(i, p.units);
            static_cast<Unit*>(p.out)[i] = static_cast<const Unit*>(p.x)[order[place.quotient] * p.units + place.rest];
        }
    }
};

__device__ inline void take_rows(const TakeRows& a) { in_units(a.pieces[blockIdx.y], Taking{a.round->number}); }

struct LeaveResults {
    Round* round;
    const double* go_on;  // null, or 0 in a round that changed nothing and is the last one
    unsigned* arrivals;   // null where another launch ends the round
    Piece pieces[PIECES];
};

// out[number] = x
struct Leaving {
    Index number;
    template <class Unit>
    __device__ __forceinline__ void of(const Piece& p) const {
        const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = p.rows * p.units;
        Unit* out = static_cast<Unit*>(p.out) + number * size;
        for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step)
            out[i] = static_cast<const Unit*>(p.x)[i];
    }
};

// Up to the last round. The last block ends the round, when all others know which one it was.
__device__ inline void leave_results(const LeaveResults& a) {
    const bool is_running = a.round->running != 0.0;
    if (is_running) in_units(a.pieces[blockIdx.y], Leaving{a.round->number});
    if (!a.arrivals || !is_last_of(gridDim.x * gridDim.y, a.arrivals) || threadIdx.x) return;
    a.round->number++;
    if (!is_running) return;
    a.round->made++;
    if (a.go_on && *a.go_on == 0.0) a.round->running = 0.0;
}

}  // namespace fcdense
