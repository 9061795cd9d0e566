/* random.h - random numbers by counter: each is a function of (seed, use, index), so it does
 * not depend on the order in which things happen. SplitMix64's finaliser (Steele, Lea, Flood 2014).
 */
#ifndef TDGEN_SIM_RANDOM_H
#define TDGEN_SIM_RANDOM_H

#include <stdint.h>

enum { TD_SIM_LENGTH = 1, TD_SIM_NOISE, TD_SIM_FAILURE };

static inline uint64_t td_sim_mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Uniform in [0, 1). */
static inline double td_sim_uniform(uint64_t seed, uint64_t use, uint64_t index) {
    return (double)(td_sim_mix(td_sim_mix(td_sim_mix(seed) ^ use) ^ index) >> 11) * 0x1p-53;
}

#endif
