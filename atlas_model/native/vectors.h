// Vectors of as many numbers as the processor's widest registers hold, and what the kernels do with them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace atlas {

#if defined(__AVX512F__)
constexpr long kVectorBytes = 64;
#elif defined(__AVX__)
constexpr long kVectorBytes = 32;
#else
constexpr long kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

// Numbers in a vector.
template <class T>
constexpr long kLanes = kVectorBytes / static_cast<long>(sizeof(T));

template <class T>
inline Vector<T> load(const T* source) {
    return *reinterpret_cast<const Vector<T>*>(source);
}

template <class T>
inline void store(T* target, Vector<T> values) {
    *reinterpret_cast<Vector<T>*>(target) = values;
}

inline double exponential(double x) { return std::exp(x); }
inline float exponential(float x) { return std::exp(x); }

inline Vector<double> exponential(Vector<double> x) {
    for (long lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::exp(x[lane]);
    return x;
}

// 2^n e^r with |r| <= ln 2 / 2 and the polynomial of Cephes' expf; beyond what a float holds it stays at the ends.
inline Vector<float> exponential(Vector<float> x) {
    typedef std::int32_t Bits __attribute__((vector_size(kVectorBytes)));
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number.
    x = x < -87.3f ? Vector<float>{} - 87.3f : x;
    x = x > 88.0f ? Vector<float>{} + 88.0f : x;
    Vector<float> shifted = x * 1.44269504088896341f + kRounder;
    Bits exponent, offset;
    const Vector<float> rounder = Vector<float>{} + kRounder;
    std::memcpy(&exponent, &shifted, sizeof exponent);
    std::memcpy(&offset, &rounder, sizeof offset);
    const Vector<float> n = shifted - kRounder;
    const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector<float> sum = r * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    sum = sum * r * r + r + 1.0f;
    const Bits power_bits = (exponent - offset + 127) << 23;
    Vector<float> power;
    std::memcpy(&power, &power_bits, sizeof power);
    return sum * power;
}

// Of a vector or of one number.
template <class V>
inline V sigmoid(V x) {
    return 1 / (1 + exponential(-x));
}
inline Vector<float> sigmoid(Vector<float> x) { return 1.0f / (1.0f + exponential(-x)); }
inline Vector<double> sigmoid(Vector<double> x) { return 1.0 / (1.0 + exponential(-x)); }

// each(load_at, store_at) for whole vectors, then for what is left number by number: `at` is the offset.
template <class T, class Whole, class Single>
inline void for_each(long count, Whole&& whole, Single&& single) {
    long at = 0;
    for (; at + kLanes<T> <= count; at += kLanes<T>) whole(at);
    for (; at < count; ++at) single(at);
}

template <class T>
inline T sum_of(Vector<T> values) {
    if constexpr (kLanes<T> >= 8) {
        typedef T Half __attribute__((vector_size(kVectorBytes / 2)));
        typedef T Quarter __attribute__((vector_size(kVectorBytes / 4)));
        Half halves[2];
        std::memcpy(halves, &values, sizeof values);
        const Half half = halves[0] + halves[1];
        Quarter quarters[2];
        std::memcpy(quarters, &half, sizeof half);
        const Quarter quarter = quarters[0] + quarters[1];
        T sum = quarter[0];
        for (long lane = 1; lane < kLanes<T> / 4; ++lane) sum += quarter[lane];
        return sum;
    }
    T sum = values[0];
    for (long lane = 1; lane < kLanes<T>; ++lane) sum += values[lane];
    return sum;
}

template <class T>
inline T dot(const T* a, const T* b, long count) {
    Vector<T> sums[4] = {};
    constexpr long kStep = 4 * kLanes<T>;
    long at = 0;
    for (; at + kStep <= count; at += kStep)
        for (long part = 0; part < 4; ++part)
            sums[part] += load(a + at + part * kLanes<T>) * load(b + at + part * kLanes<T>);
    for (; at + kLanes<T> <= count; at += kLanes<T>) sums[0] += load(a + at) * load(b + at);
    T sum = sum_of<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; at < count; ++at) sum += a[at] * b[at];
    return sum;
}

// target = source * factor.
template <class T>
inline void scale(const T* source, T factor, T* target, long count) {
    for_each<T>(
        count, [&](long at) { store<T>(target + at, load(source + at) * factor); },
        [&](long at) { target[at] = source[at] * factor; });
}

// As torch's: x / sqrt(mean(x^2) + eps) * weight.
template <class T>
inline void rms_norm(const T* x, const T* weight, T eps, T* target, long count) {
    const T inverse = 1 / std::sqrt(dot(x, x, count) / static_cast<T>(count) + eps);
    for_each<T>(
        count, [&](long at) { store<T>(target + at, load(x + at) * inverse * load(weight + at)); },
        [&](long at) { target[at] = x[at] * inverse * weight[at]; });
}

// To length 1, or as near as its length, at least `least`, allows.
template <class T>
inline void normalise(const T* x, T* target, long count, T least = T(1e-12)) {
    const T length = std::sqrt(dot(x, x, count));
    scale(x, 1 / (length < least ? least : length), target, count);
}

}  // namespace atlas
