// One head's memory of one row: the delta rule with a matrix, read at the chunk's first token and moved at its last.
// See atlas_model/memory: rule.py has the equations, coefficients.py and step_bound.py the scalars.
#pragma once

#include <limits>

#include "products.h"
#include "weights.h"

namespace atlas {

// phi of keys or queries [count, key_width] of one head -> [count, num_features]: atlas_model/feature_map.py.
template <class T>
void make_features(const Shape& shape, const LayerWeights& layer, long head, long count, const T* x, T* projected,
                   T* features) {
    const long key_width = shape.key_width, width = shape.feature_width, all = shape.num_features;
    if (shape.feature_degree == 1) {
        std::memcpy(features, x, static_cast<std::size_t>(count * key_width) * sizeof(T));
        return;
    }
    const T* source = x;
    if (layer.feature_projection != nullptr) {
        const T* projection = static_cast<const T*>(layer.feature_projection) + head * key_width * width;
        product(count, width, key_width, Rows<T>{x, key_width}, projection, width, Put<T>{projected, width});
        source = projected;
    }
    const T* roots = static_cast<const T*>(layer.feature_roots) + head * all;
    for (long row = 0; row < count; ++row) {
        const T* own = source + row * width;
        T* target = features + row * all;
        target[0] = 1;
        std::memcpy(target + 1, x + row * key_width, static_cast<std::size_t>(key_width) * sizeof(T));
        T* next = target + 1 + key_width;
        for (long degree = 2; degree <= shape.feature_degree; ++degree) {
            const std::int64_t* factors = degree == 2 ? shape.factors_2 : shape.factors_3;
            const long number = degree == 2 ? shape.num_monomials_2 : shape.num_monomials_3;
            for (long monomial = 0; monomial < number; ++monomial) {
                T value = own[factors[monomial]] * own[factors[number + monomial]];
                if (degree == 3) value *= own[factors[2 * number + monomial]];
                next[monomial] = value;
            }
            next += number;
        }
        for_each<T>(
            all, [&](long at) { store<T>(target + at, load(target + at) * load(roots + at)); },
            [&](long at) { target[at] *= roots[at]; });
        if (shape.has_unit_features) normalise(target, target, all);
    }
}

// The derivative of the objective in the answer: atlas_model/objectives.py.
template <class T>
void make_slopes(const Shape& shape, const T* answers, const T* values, T* slopes, long count) {
    const T parameter = static_cast<T>(shape.objective_parameter);
    for (long at = 0; at < count; ++at) {
        const T error = answers[at] - values[at];
        switch (shape.objective) {
            case Objective::kL2: slopes[at] = error; break;
            case Objective::kDot: slopes[at] = -values[at]; break;
            case Objective::kLp: slopes[at] = std::copysign(std::pow(std::abs(error), parameter - 1), error); break;
            case Objective::kHuber:
                slopes[at] = error < -parameter ? -parameter : error > parameter ? parameter : error;
        }
    }
}

// The places of one row and head in the state: its matrix and the buffers of its open chunk.
template <class T>
struct HeadState {
    T *matrix, *keys, *values, *gates;
};

// What a thread needs to compute a head's commit in.
template <class T>
struct MemoryScratch {
    static long size(const Shape& shape, long chunk) {
        return chunk * (shape.num_features + shape.feature_width + 2 * shape.value_width + 1);
    }
    MemoryScratch(const Shape& shape, long chunk, T* memory)
        : features(memory),
          projected(features + chunk * shape.num_features),
          slopes(projected + chunk * shape.feature_width),
          values(slopes + chunk * shape.value_width),
          writes(values + chunk * shape.value_width) {}
    T *features, *projected, *slopes, *values, *writes;
};

// What a query [key_width] reads, [value_width], not normalised yet.
template <class T>
void read_memory(const Shape& shape, const LayerWeights& layer, long head, const T* query, const T* matrix,
                 const MemoryScratch<T>& scratch, T* target) {
    make_features(shape, layer, head, 1, query, scratch.projected, scratch.features);
    product(1, shape.value_width, shape.num_features, Rows<T>{scratch.features, 0}, matrix, shape.value_width,
            Put<T>{target, 0});
}

// 1 / max(1, |sum_i w_i x_i x_i^T|_F): the bounded step.
template <class T>
T step_scale(const T* writes, const T* features, long count, long num_features) {
    T square = 0;
    for (long i = 0; i < count; ++i)
        for (long j = 0; j <= i; ++j) {
            const T inner = dot(features + i * num_features, features + j * num_features, num_features);
            square += (i == j ? 1 : 2) * writes[i] * writes[j] * inner * inner;
        }
    const T norm = std::sqrt(std::max(square, std::numeric_limits<T>::min()));
    // NOTE: in this order a norm that is not a number stays one, as torch's clamp leaves it.
    return 1 / (norm < 1 ? T(1) : norm);
}

// The chunk's last token, with its gates, ends the chunk: the matrix is moved and the buffers are zeroed.
template <class T>
void commit_chunk(const Shape& shape, const LayerWeights& layer, long head, const T* key, const T* value,
                  const T* gates, const HeadState<T>& state, const MemoryScratch<T>& scratch) {
    const long size = layer.chunk, before = size - 1, all = shape.num_features, width = shape.value_width;
    make_features(shape, layer, head, before, state.keys, scratch.projected, scratch.features);
    make_features(shape, layer, head, 1, key, scratch.projected, scratch.features + before * all);
    std::memcpy(scratch.values, state.values, static_cast<std::size_t>(before * width) * sizeof(T));
    std::memcpy(scratch.values + before * width, value, static_cast<std::size_t>(width) * sizeof(T));
    T kept = 1;
    for (long token = size - 1; token >= 0; --token) {
        const T* own = token < before ? state.gates + token * 4 : gates;
        scratch.writes[token] = kept * own[2] * own[0];
        kept *= own[1];
    }
    product(size, width, all, Rows<T>{scratch.features, all}, state.matrix, width, Put<T>{scratch.slopes, width});
    make_slopes(shape, scratch.slopes, scratch.values, scratch.slopes, size * width);
    const T bound = shape.has_bounded_step ? step_scale(scratch.writes, scratch.features, size, all) : T(1);
    for (long token = 0; token < size; ++token)
        scale(scratch.slopes + token * width, scratch.writes[token] * bound, scratch.slopes + token * width, width);
    const T* initial = nullptr;
    if (shape.retention == Retention::kInitial) initial = static_cast<const T*>(layer.initial) + head * all * width;
    if (shape.retention == Retention::kNone) kept = 1;
    T* matrix = state.matrix;
    product(all, width, size, Rows<T>{scratch.features, 1, all}, scratch.slopes, width,
            [&](long row, long column, auto sums) {
                const long at = row * width + column;
                using Sums = decltype(sums);
                Sums left, start{};
                std::memcpy(&left, matrix + at, sizeof left);
                if (initial != nullptr) std::memcpy(&start, initial + at, sizeof start);
                left = left * kept + start * (1 - kept) - sums;
                std::memcpy(matrix + at, &left, sizeof left);
            });
    std::memset(state.keys, 0, static_cast<std::size_t>(before * shape.key_width) * sizeof(T));
    std::memset(state.values, 0, static_cast<std::size_t>(before * width) * sizeof(T));
    std::memset(state.gates, 0, static_cast<std::size_t>(before * 4) * sizeof(T));
}

// Until its chunk ends a token waits in the buffers.
template <class T>
void keep_token(const Shape& shape, long place, const T* key, const T* value, const T* gates,
                const HeadState<T>& state) {
    std::memcpy(state.keys + place * shape.key_width, key, static_cast<std::size_t>(shape.key_width) * sizeof(T));
    std::memcpy(state.values + place * shape.value_width, value,
                static_cast<std::size_t>(shape.value_width) * sizeof(T));
    std::memcpy(state.gates + place * 4, gates, 4 * sizeof(T));
}

}  // namespace atlas
