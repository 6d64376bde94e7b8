// Around a step that is replayed many times in a row: each round takes rows of its own, and leaves its results.
//
// Bytes: the rows of a batch and the results, each read and written once. Operations: none.
#pragma once
#include "arrivals.cuh"
#include "elementwise.cuh"

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
    int bytes;           // of a unit of x: 1, 2, 4 or 16, or of one or four numbers that are converted
};

// Units of N numbers.
template <class T, class R, int N>
__device__ __forceinline__ void copy_units(const Piece& p, Index number) {
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = p.rows * p.units;
    const Index* order = p.order ? p.order + number * p.rows : nullptr;
    Packed<R, N>* out = static_cast<Packed<R, N>*>(p.out) + (order ? 0 : number * size);
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        Index from = i;
        if (order) {
            const Division place = divided(i, p.units);
            from = order[place.quotient] * p.units + place.rest;
        }
        const Packed<T, N> x = static_cast<const Packed<T, N>*>(p.x)[from];
        Packed<R, N> unit;
#pragma unroll
        for (int e = 0; e < N; e++) unit.at[e] = Cast<R>::of(x.at[e]);
        out[i] = unit;
    }
}

// out = x[order[number * rows :][: rows]], or, without an order, out[number] = x; by blocks along x.
__device__ __forceinline__ void copy_piece(const Piece& p, Index number) {
    if (p.bytes == 16) copy_units<unsigned, unsigned, 4>(p, number);
    else if (p.bytes == 4) copy_units<unsigned, unsigned, 1>(p, number);
    else if (p.bytes == 2) copy_units<unsigned short, unsigned short, 1>(p, number);
    else copy_units<unsigned char, unsigned char, 1>(p, number);
}

struct TakeRows {
    const Round* round;
    Piece pieces[PIECES];
};

// Up to the last round, whose rows stay.
__device__ inline void take_rows(const TakeRows& a) {
    if (a.round->running != 0.0) copy_piece(a.pieces[blockIdx.y], a.round->number);
}

// The same of numbers of one type, as those of another.
template <class T, class R>
__device__ void convert_rows(const TakeRows& a) {
    if (a.round->running == 0.0) return;
    const Piece& p = a.pieces[blockIdx.y];
    if (p.bytes == sizeof(T)) copy_units<T, R, 1>(p, a.round->number);
    else copy_units<T, R, 4>(p, a.round->number);
}

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
