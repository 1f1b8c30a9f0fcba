// One head's sliding-window attention of one row, whose window is a ring: see atlas_model/attention.py.
#pragma once

#include "products.h"

namespace atlas {

// Cosines and sines of a row's rotary angles, [head_width / 2] each; the angle in double, for positions are large.
template <class T>
void make_angles(std::int64_t position, const double* frequencies, long count, T* cosines, T* sines) {
    for (long pair = 0; pair < count; ++pair) {
        const double angle = static_cast<double>(position) * frequencies[pair];
        cosines[pair] = static_cast<T>(std::cos(angle));
        sines[pair] = static_cast<T>(std::sin(angle));
    }
}

// x [width] to length 1, each pair (x_i, x_{i + width / 2}) turned by its angle, and scaled.
template <class T>
void turn(const T* x, const T* cosines, const T* sines, T factor, long width, T* target) {
    const long half = width / 2;
    normalise(x, target, width);
    for (long pair = 0; pair < half; ++pair) {
        const T first = target[pair], second = target[pair + half];
        target[pair] = (first * cosines[pair] - second * sines[pair]) * factor;
        target[pair + half] = (second * cosines[pair] + first * sines[pair]) * factor;
    }
}

template <class T>
struct AttentionScratch {
    static long size(long window, long width) { return window + 2 * width; }
    AttentionScratch(long window, long width, T* memory)
        : weights(memory), query(memory + window), key(query + width) {}
    T *weights, *query, *key;
};

// query, key [width] before they are turned, value [value_width] -> what the token sees, [value_width]; its key and
// value enter the ring, [window - 1, width | value_width], at position % (window - 1).
template <class T>
void attend(std::int64_t position, long window, long width, long value_width, const T* query, const T* key,
            const T* value, T factor, const T* cosines, const T* sines, T* ring_keys, T* ring_values,
            const AttentionScratch<T>& scratch, T* target) {
    const long length = window - 1;
    const long held = position < length ? static_cast<long>(position) : length;
    turn(query, cosines, sines, factor, width, scratch.query);
    turn(key, cosines, sines, T(1), width, scratch.key);
    T* weights = scratch.weights;
    weights[held] = dot(scratch.query, scratch.key, width);
    T largest = weights[held];
    for (long place = 0; place < held; ++place) {
        weights[place] = dot(scratch.query, ring_keys + place * width, width);
        largest = weights[place] > largest ? weights[place] : largest;
    }
    const auto weigh = [largest](auto score) { return exponential(score - largest); };
    for_each<T>(
        held + 1, [&](long at) { store<T>(weights + at, weigh(load(weights + at))); },
        [&](long at) { weights[at] = weigh(weights[at]); });
    T total = 0;
    for (long place = 0; place <= held; ++place) total += weights[place];
    const T inverse = 1 / total, own = weights[held];
    product(1, value_width, held, Rows<T>{weights, 0}, ring_values, value_width, Put<T>{target, 0});
    for (long at = 0; at < value_width; ++at) target[at] = (target[at] + own * value[at]) * inverse;
    if (length == 0) return;
    const long place = static_cast<long>(position % length);
    std::memcpy(ring_keys + place * width, scratch.key, static_cast<std::size_t>(width) * sizeof(T));
    std::memcpy(ring_values + place * value_width, value, static_cast<std::size_t>(value_width) * sizeof(T));
}

}  // namespace atlas
