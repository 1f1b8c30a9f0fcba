// What the caller hands over: the model's sizes and the addresses of its weights. decoder.py has the same in Python,
// field by field. Weights are float or double, as the decoder is, and stay where they are while it lives.
#pragma once

#include <cstdint>

namespace atlas {

enum class Objective : std::int64_t { kL2, kDot, kLp, kHuber };
enum class Retention : std::int64_t { kNone, kZero, kInitial };

struct Shape {
    std::int64_t vocab_size, width, num_layers, feed_forward_width, conv_width;
    std::int64_t num_heads, key_width, value_width;
    std::int64_t attention_heads, window;
    std::int64_t feature_degree, feature_width, num_features, has_unit_features;
    std::int64_t num_monomials_2, num_monomials_3;
    std::int64_t has_bounded_step;
    Objective objective;
    Retention retention;
    double objective_parameter, norm_eps, read_norm_eps;
    const std::int64_t *factors_2, *factors_3;  // [degree, num_monomials]: which dimensions a monomial multiplies
    const double* frequencies;                  // [head width of attention / 2], of the rotary angles

    long key_inner_width() const { return num_heads * key_width; }
    long value_inner_width() const { return num_heads * value_width; }
    long num_channels() const { return 2 * key_inner_width() + value_inner_width(); }
};

struct LayerWeights {
    std::int64_t chunk;              // memory_chunk_size
    const void* mixer_norm;          // [width]
    const void* project;             // [num_channels, width]
    const void* output_gate;         // [value_inner_width, width]
    const void* convolution;         // [conv_width, num_channels]
    const void* gates;               // [4 num_heads, width + 2 key_inner_width]
    const void* gate_bias;           // [4 num_heads]
    const void* largest_gates;       // [4 num_heads]: what an open gate is worth
    const void* feature_projection;  // [num_heads, key_width, feature_width], or null
    const void* feature_roots;       // [num_heads, num_features], null where the features are the key
    const void* read_scale;          // [num_heads, value_width]
    const void* initial;             // [num_heads, num_features, value_width]
    const void* attention_scale;     // [attention_heads]
    const void* out;                 // [width, 2 value_inner_width]
    const void* feed_forward_norm;   // [width]
    const void* expand;              // [2 feed_forward_width, width]: the gates, then what they gate
    const void* contract;            // [width, feed_forward_width]
};

struct ModelWeights {
    const void* embedding;  // [vocab_size, width]
    const void* norm;       // [width]
    const LayerWeights* layers;
};

// The first row's places in a layer's part of the state; the rows follow one another without gaps.
struct LayerPlaces {
    void *matrix, *keys, *values, *gates, *convolution, *attention_keys, *attention_values;
};

}  // namespace atlas
