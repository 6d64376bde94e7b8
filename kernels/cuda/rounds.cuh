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
    const Index* order;  // of rows to take; null for results
    Index rows, units;   // units of a row
    int bytes;           // of a unit: 1, 2, 4 or 16
};

template <class Unit>
__device__ __forceinline__ void copy_units(const Piece& p, Index number) {
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = p.rows * p.units;
    const Index* order = p.order ? p.order + number * p.rows : nullptr;
    Unit* out = static_cast<Unit*>(p.out) + (order ? 0 : number * size);
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        Index from = i;
        if (order) {
            const Division place = divided(i, p.units);
            from = order[place.quotient] * p.units + place.rest;
        }
        out[i] = static_cast<const Unit*>(p.x)[from];
    }
}

// out = x[order[number * rows :][: rows]], or, without an order, out[number] = x; by blocks along x.
__device__ __forceinline__ void copy_piece(const Piece& p, Index number) {
    if (p.bytes == 16) copy_units<Packed<unsigned, 4>>(p, number);
    else if (p.bytes == 4) copy_units<unsigned>(p, number);
    else if (p.bytes == 2) copy_units<unsigned short>(p, number);
    else copy_units<unsigned char>(p, number);
}

struct TakeRows {
    const Round* round;
    Piece pieces[PIECES];
};

__device__ inline void take_rows(const TakeRows& a) { copy_piece(a.pieces[blockIdx.y], a.round->number); }

struct LeaveResults {
    Round* round;
    const double* go_on;  // null, or 0 in a round that changed nothing and is the last one
    unsigned* arrivals;   // null where another launch ends the round
    Piece pieces[PIECES];
};

// Up to the last round. The last block ends the round, when all others know which one it was.
__device__ inline void leave_results(const LeaveResults& a) {
    const bool is_running = a.round->running != 0.0;
    if (is_running) copy_piece(a.pieces[blockIdx.y], a.round->number);
    if (!a.arrivals || !is_last_of(gridDim.x * gridDim.y, a.arrivals) || threadIdx.x) return;
    a.round->number++;
    if (!is_running) return;
    a.round->made++;
    if (a.go_on && *a.go_on == 0.0) a.round->running = 0.0;
}

}  // namespace fcdense
