/* The most multiplications and additions that the processor does in a second, in float32.
 *
 * Independent chains of fused multiply-adds in registers, nothing loaded or stored: as many as hide the latency of one.
 * Usage: peak THREADS; prints GFLOP/s over all threads. Build: gcc -O2 -march=native -ffp-contract=fast -pthread
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / 4)
#define CHAINS 12
#define REPEATS 20000000L

typedef float lanes __attribute__((vector_size(BYTES)));

static pthread_barrier_t barrier;
static volatile float sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Notes in `span`, two doubles, when it began and ended: the main thread may be woken too late to tell. */
static void *work(void *span) {
    lanes x, y, a[CHAINS];
    for (int lane = 0; lane < LANES; lane++) {
        x[lane] = 0.999f;
        y[lane] = 1e-3f;
    }
    for (int chain = 0; chain < CHAINS; chain++) a[chain] = y * (float)chain;
    pthread_barrier_wait(&barrier);
    ((double *)span)[0] = now();
    for (long i = 0; i < REPEATS; i++)
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; chain++) a[chain] = a[chain] * x + y;
    for (int chain = 0; chain < CHAINS; chain++) sink += a[chain][0];
    ((double *)span)[1] = now();
    return NULL;
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1;
    double best = 0.0;
    pthread_barrier_init(&barrier, NULL, threads);
    for (int attempt = 0; attempt < 5; attempt++) {
        pthread_t ids[threads];
        double spans[threads][2], start = 1e300, end = 0.0;
        for (int t = 0; t < threads; t++) pthread_create(&ids[t], NULL, work, spans[t]);
        for (int t = 0; t < threads; t++) {
            pthread_join(ids[t], NULL);
            if (spans[t][0] < start) start = spans[t][0];
            if (spans[t][1] > end) end = spans[t][1];
        }
        double rate = 2e-9 * LANES * CHAINS * REPEATS * threads / (end - start);
        if (rate > best) best = rate;
    }
    printf("%.1f\n", best);
    return 0;
}
