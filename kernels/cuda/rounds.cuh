// Around a step that is replayed many times in a row: each round takes rows of its own, and leaves its results.
//
// Bytes: the rows of a batch, read and written once. Operations: none.
#pragma once
#include "numbers.cuh"

namespace fcdense {

enum : Index { GOING_ON, LAST, STOPPED };

// `state` is LAST in a round that changed nothing, and STOPPED in all that are launched after it.
struct Round {
    Index number, state, made;  // made: rounds up to the last one
};

struct TakeRows {
    const Round* round;
    const void* x;
    const Index* order;
    void* out;
    Index rows, columns;  // of out
};

// out = x[order[number * rows :][: rows]]; all of it is contiguous.
template <class T>
__device__ void take_rows(const TakeRows& a) {
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = a.rows * a.columns;
    const Index* order = a.order + a.round->number * a.rows;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        const Division place = divided(i, a.columns);
        static_cast<T*>(a.out)[i] = static_cast<const T*>(a.x)[order[place.quotient] * a.columns + place.rest];
    }
}

struct Keep {
    const Round* round;
    const void* x;
    void* out;
    Index size;  // of x
};

// out[number] = x, up to the last round.
template <class T>
__device__ void keep(const Keep& a) {
    if (a.round->state == STOPPED) return;
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
    T* out = static_cast<T*>(a.out) + a.round->number * a.size;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.size; i += step)
        out[i] = static_cast<const T*>(a.x)[i];
}

struct Control {
    Round* round;
    double* go_on;    // 0 in a round that changes nothing
    double* running;  // 0 once stopped
};

// After `go_on` was written: a round that changes nothing is the last one, and later ones change nothing either.
__device__ inline void look_whether_to_go_on(const Control& a) {
    if (a.round->state == STOPPED) *a.go_on = 0;
    else if (*a.go_on == 0) a.round->state = LAST;
}

__device__ inline void next_round(const Control& a) {
    a.round->number++;
    if (a.round->state != STOPPED) a.round->made++;
    if (a.round->state != LAST) return;
    a.round->state = STOPPED;
    *a.running = 0;
}

}  // namespace fcdense
