#include "decoder.h"

namespace atlas {

namespace {

template <class T>
const T* as(const void* numbers) {
    return static_cast<const T*>(numbers);
}

}  // namespace

template <class T>
Decoder<T>::Layer::Layer(const Shape& shape, const LayerWeights& weights)
    : given(weights),
      project(as<T>(weights.project), shape.num_channels(), shape.width),
      output_gate(as<T>(weights.output_gate), shape.value_inner_width(), shape.width),
      out(as<T>(weights.out), shape.width, 2 * shape.value_inner_width()),
      gate(as<T>(weights.expand), shape.feed_forward_width, shape.width),
      up(as<T>(weights.expand) + shape.feed_forward_width * shape.width, shape.feed_forward_width, shape.width),
      contract(as<T>(weights.contract), shape.width, shape.feed_forward_width) {}

template <class T>
Decoder<T>::Decoder(const Shape& shape, const ModelWeights& weights)
    : shape_(shape),
      embedding_(as<T>(weights.embedding)),
      norm_(as<T>(weights.norm)),
      head_(embedding_, shape.vocab_size, shape.width) {
    long longest = 0;
    layers_.reserve(static_cast<std::size_t>(shape.num_layers));
    for (long index = 0; index < shape.num_layers; ++index) {
        layers_.emplace_back(shape, weights.layers[index]);
        longest = std::max<long>(longest, weights.layers[index].chunk);
    }
    const long head_width = shape.key_inner_width() / shape.attention_heads;
    scratch_size_ =
        std::max(MemoryScratch<T>::size(shape, longest), AttentionScratch<T>::size(shape.window, head_width));
    scratch_size_ += kVectorBytes;  // The threads' own parts share no line of the cache.
}

template <class T>
void Decoder<T>::reserve(long num_rows, int num_threads) {
    scratch_.resize(static_cast<std::size_t>(num_threads * scratch_size_));
    if (num_rows <= num_rows_) return;
    const long keys = shape_.key_inner_width(), values = shape_.value_inner_width(), channels = shape_.num_channels();
    const long pairs = keys / shape_.attention_heads / 2;
    const std::pair<T**, long> parts[] = {
        {&rows_.x, shape_.width},
        {&rows_.normed, shape_.width},
        {&rows_.projected, channels},
        {&rows_.output_gate, values},
        {&rows_.convolved, channels},
        {&rows_.activated, channels},
        {&rows_.branches, 2 * values},
        {&rows_.gated, shape_.feed_forward_width},
        {&rows_.up, shape_.feed_forward_width},
        {&rows_.cosines, pairs},
        {&rows_.sines, pairs},
    };
    long size = 0;
    for (const auto& [part, width] : parts) size += width * num_rows;
    numbers_.resize(static_cast<std::size_t>(size));
    T* next = numbers_.data();
    for (const auto& [part, width] : parts) {
        *part = next;
        next += width * num_rows;
    }
    num_rows_ = num_rows;
}

template <class T>
bool Decoder<T>::step(long num_rows, const std::int64_t* token_ids, std::int64_t* positions, const LayerPlaces* places,
                      T* logits, int num_threads) {
    for (long row = 0; row < num_rows; ++row)
        if (token_ids[row] < 0 || token_ids[row] >= shape_.vocab_size) return false;
    reserve(num_rows, num_threads);
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        share_evenly(num_rows, [&](long row) { begin_row(row, token_ids[row], positions[row]); });
        barrier_.wait();
        for (const Layer& layer : layers_) {
            mix_tokens(layer, places[&layer - layers_.data()], num_rows, positions);
            feed_forward(layer, num_rows);
        }
        norm_rows(norm_, num_rows);
        multiply_into(head_, num_rows, rows_.normed, shape_.width, logits, false);
        barrier_.wait();
    }
    for (long row = 0; row < num_rows; ++row) ++positions[row];
    return true;
}

template <class T>
void Decoder<T>::multiply(long num_rows, T* logits, int num_threads) {
    reserve(num_rows, num_threads);
    const long width = shape_.width, branches = 2 * shape_.value_inner_width();
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        for (const Layer& layer : layers_) {
            multiply_into(layer.project, num_rows, rows_.normed, width, rows_.projected, false);
            multiply_into(layer.output_gate, num_rows, rows_.normed, width, rows_.output_gate, false);
            barrier_.wait();
            multiply_into(layer.out, num_rows, rows_.branches, branches, rows_.x, false);
            barrier_.wait();
            multiply_into(layer.gate, num_rows, rows_.normed, width, rows_.gated, false);
            multiply_into(layer.up, num_rows, rows_.normed, width, rows_.up, false);
            barrier_.wait();
            multiply_into(layer.contract, num_rows, rows_.gated, shape_.feed_forward_width, rows_.x, false);
            barrier_.wait();
        }
        multiply_into(head_, num_rows, rows_.normed, width, logits, false);
        barrier_.wait();
    }
}

template <class T>
void Decoder<T>::begin_row(long row, std::int64_t token_id, std::int64_t position) {
    const long width = shape_.width, pairs = shape_.key_inner_width() / shape_.attention_heads / 2;
    std::memcpy(rows_.x + row * width, embedding_ + token_id * width, static_cast<std::size_t>(width) * sizeof(T));
    make_angles(position, shape_.frequencies, pairs, rows_.cosines + row * pairs, rows_.sines + row * pairs);
}

template <class T>
void Decoder<T>::mix_tokens(const Layer& layer, const LayerPlaces& places, long num_rows,
                            const std::int64_t* positions) {
    const long width = shape_.width, values = shape_.value_inner_width();
    norm_rows(layer.given.mixer_norm, num_rows);
    multiply_into(layer.project, num_rows, rows_.normed, width, rows_.projected, false);
    multiply_into(layer.output_gate, num_rows, rows_.normed, width, rows_.output_gate, false);
    barrier_.wait();
    const long tail = (shape_.conv_width - 1) * shape_.num_channels();
    share_evenly(num_rows, [&](long row) {
        convolve_row(layer.given, static_cast<T*>(places.convolution) + row * tail, row);
    });
    barrier_.wait();
    const long num_units = shape_.num_heads + shape_.attention_heads;
    share_as_they_come(num_rows * num_units, [&](long index) {
        const long row = index / num_units, unit = index % num_units;
        if (unit < shape_.num_heads)
            step_memory(layer.given, places, row, unit, positions[row]);
        else
            step_attention(layer.given, places, row, unit - shape_.num_heads, positions[row]);
    });
    barrier_.wait();
    multiply_into(layer.out, num_rows, rows_.branches, 2 * values, rows_.x, true);
    barrier_.wait();
}

// The short convolution, whose tail moves on by a token, and SiLU; the memory's queries and keys to length 1.
template <class T>
void Decoder<T>::convolve_row(const LayerWeights& layer, T* tail, long row) {
    const long channels = shape_.num_channels(), before = shape_.conv_width - 1;
    const T* weight = as<T>(layer.convolution);
    const T* projected = rows_.projected + row * channels;
    T* convolved = rows_.convolved + row * channels;
    T* activated = rows_.activated + row * channels;
    const auto convolve = [&](long at, auto get, auto put) {
        const auto newest = get(projected + at);
        auto sum = newest * get(weight + before * channels + at);
        for (long token = 0; token < before; ++token) {
            sum += get(tail + token * channels + at) * get(weight + token * channels + at);
            put(tail + token * channels + at, token + 1 < before ? get(tail + (token + 1) * channels + at) : newest);
        }
        put(convolved + at, sum);
        put(activated + at, sum * sigmoid(sum));
    };
    const auto load_all = [](const T* place) { return load(place); };
    const auto store_all = [](T* place, Vector<T> values) { store<T>(place, values); };
    const auto load_one = [](const T* place) { return *place; };
    const auto store_one = [](T* place, T value) { *place = value; };
    for_each<T>(
        channels, [&](long at) { convolve(at, load_all, store_all); },
        [&](long at) { convolve(at, load_one, store_one); });
    for (long head = 0; head < 2 * shape_.num_heads; ++head)
        normalise(activated + head * shape_.key_width, activated + head * shape_.key_width, shape_.key_width);
}

template <class T>
void Decoder<T>::step_memory(const LayerWeights& layer, const LayerPlaces& places, long row, long head,
                             std::int64_t position) {
    const long keys = shape_.key_inner_width(), values = shape_.value_inner_width(), heads = shape_.num_heads;
    const long key_width = shape_.key_width, value_width = shape_.value_width;
    const T* normed = rows_.normed + row * shape_.width;
    const T* queries_keys = rows_.activated + row * shape_.num_channels();
    const T* key = queries_keys + keys + head * key_width;
    const T* value = queries_keys + 2 * keys + head * value_width;
    T gates[4];
    for (long kind = 0; kind < 4; ++kind) {
        const long output = kind * heads + head;
        const T* weight = as<T>(layer.gates) + output * (shape_.width + 2 * keys);
        const T opened = as<T>(layer.gate_bias)[output] + dot(normed, weight, shape_.width) +
                         dot(queries_keys, weight + shape_.width, 2 * keys);
        const T sixfold = opened + 3;
        gates[kind] = (sixfold < 0 ? T(0) : sixfold > 6 ? T(6) : sixfold) / 6 * as<T>(layer.largest_gates)[output];
    }
    if (shape_.retention == Retention::kNone) gates[1] = 1;

    const long place = row * heads + head, buffer = layer.chunk - 1;
    const HeadState<T> state = {static_cast<T*>(places.matrix) + place * shape_.num_features * value_width,
                                static_cast<T*>(places.keys) + place * buffer * key_width,
                                static_cast<T*>(places.values) + place * buffer * value_width,
                                static_cast<T*>(places.gates) + place * buffer * 4};
    const MemoryScratch<T> scratch(shape_, layer.chunk, scratch_.data() + thread_here() * scratch_size_);
    T* read = rows_.branches + row * 2 * values + values + head * value_width;
    read_memory(shape_, layer, head, queries_keys + head * key_width, state.matrix, scratch, read);
    rms_norm(read, as<T>(layer.read_scale) + head * value_width, static_cast<T>(shape_.read_norm_eps), read,
             value_width);
    const T* gate = rows_.output_gate + row * values + head * value_width;
    for_each<T>(
        value_width, [&](long at) { store<T>(read + at, load(read + at) * sigmoid(load(gate + at))); },
        [&](long at) { read[at] *= sigmoid(gate[at]); });
    const long phase = static_cast<long>(position % layer.chunk);
    if (phase == buffer)
        commit_chunk(shape_, layer, head, key, value, gates, state, scratch);
    else
        keep_token(shape_, phase, key, value, gates, state);
}

template <class T>
void Decoder<T>::step_attention(const LayerWeights& layer, const LayerPlaces& places, long row, long head,
                                std::int64_t position) {
    const long heads = shape_.attention_heads, keys = shape_.key_inner_width(), values = shape_.value_inner_width();
    const long width = keys / heads, value_width = values / heads, length = shape_.window - 1;
    const T* convolved = rows_.convolved + row * shape_.num_channels();
    const T* activated = rows_.activated + row * shape_.num_channels();
    const long place = row * heads + head;
    const AttentionScratch<T> scratch(shape_.window, width, scratch_.data() + thread_here() * scratch_size_);
    attend(position, shape_.window, width, value_width, convolved + head * width, convolved + keys + head * width,
           activated + 2 * keys + head * value_width, as<T>(layer.attention_scale)[head],
           rows_.cosines + row * (width / 2), rows_.sines + row * (width / 2),
           static_cast<T*>(places.attention_keys) + place * length * width,
           static_cast<T*>(places.attention_values) + place * length * value_width, scratch,
           rows_.branches + row * 2 * values + head * value_width);
}

template <class T>
void Decoder<T>::feed_forward(const Layer& layer, long num_rows) {
    const long width = shape_.width, inner = shape_.feed_forward_width;
    norm_rows(layer.given.feed_forward_norm, num_rows);
    share_panels(layer.gate.num_panels(), num_rows, [&](long panel, long first, long last) {
        const Rows<T> x = Rows<T>{rows_.normed, width}.from(first);
        layer.gate.multiply(panel, last - first, x, Put<T>{rows_.gated + first * inner, inner});
        layer.up.multiply(panel, last - first, x, Put<T>{rows_.up + first * inner, inner});
        for (long row = first; row < last; ++row) {
            T* gated = rows_.gated + row * inner + panel * kPanelWidth<T>;
            const T* up = rows_.up + row * inner + panel * kPanelWidth<T>;
            for_each<T>(
                layer.gate.width(panel),
                [&](long at) {
                    const Vector<T> gate = load(gated + at);
                    store<T>(gated + at, gate * sigmoid(gate) * load(up + at));
                },
                [&](long at) { gated[at] = gated[at] * sigmoid(gated[at]) * up[at]; });
        }
    });
    barrier_.wait();
    multiply_into(layer.contract, num_rows, rows_.gated, inner, rows_.x, true);
    barrier_.wait();
}

template <class T>
void Decoder<T>::multiply_into(const PackedWeight<T>& weight, long num_rows, const T* x, long stride, T* target,
                               bool adds) {
    const long outputs = weight.outputs();
    share_panels(weight.num_panels(), num_rows, [&](long panel, long first, long last) {
        const Rows<T> rows = Rows<T>{x, stride}.from(first);
        if (adds)
            weight.multiply(panel, last - first, rows, Add<T>{target + first * outputs, outputs});
        else
            weight.multiply(panel, last - first, rows, Put<T>{target + first * outputs, outputs});
    });
}

template <class T>
void Decoder<T>::norm_rows(const void* weight, long num_rows) {
    const long width = shape_.width;
    share_evenly(num_rows, [&](long row) {
        rms_norm(rows_.x + row * width, as<T>(weight), static_cast<T>(shape_.norm_eps), rows_.normed + row * width,
                 width);
    });
    barrier_.wait();
}

template class Decoder<float>;
template class Decoder<double>;

}  // namespace atlas

// For ctypes. A decoder is made for float or double and is used as such.
namespace {

constexpr int kOutOfMemory = 1, kOutOfVocabulary = 2;

template <class T>
void* make(const atlas::Shape* shape, const atlas::ModelWeights* weights) noexcept {
    try {
        return new atlas::Decoder<T>(*shape, *weights);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

template <class T>
int step(void* decoder, std::int64_t num_rows, const void* token_ids, void* positions, const atlas::LayerPlaces* places,
         void* logits, int num_threads) noexcept {
    try {
        const bool done = static_cast<atlas::Decoder<T>*>(decoder)->step(
            num_rows, static_cast<const std::int64_t*>(token_ids), static_cast<std::int64_t*>(positions), places,
            static_cast<T*>(logits), num_threads);
        return done ? 0 : kOutOfVocabulary;
    } catch (const std::bad_alloc&) {
        // NOTE: memory is reserved before the first row is touched.
        return kOutOfMemory;
    }
}

template <class T>
int multiply(void* decoder, std::int64_t num_rows, void* logits, int num_threads) noexcept {
    try {
        static_cast<atlas::Decoder<T>*>(decoder)->multiply(num_rows, static_cast<T*>(logits), num_threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return kOutOfMemory;
    }
}

}  // namespace

extern "C" {

#define ATLAS_EXPORT(NAME, T)                                                                                    \
    void* atlas_make_##NAME(const atlas::Shape* shape, const atlas::ModelWeights* weights) {                     \
        return make<T>(shape, weights);                                                                          \
    }                                                                                                            \
    int atlas_step_##NAME(void* decoder, std::int64_t num_rows, const void* token_ids, void* positions,          \
                          const atlas::LayerPlaces* places, void* logits, int num_threads) {                     \
        return step<T>(decoder, num_rows, token_ids, positions, places, logits, num_threads);                    \
    }                                                                                                            \
    int atlas_multiply_##NAME(void* decoder, std::int64_t num_rows, void* logits, int num_threads) {             \
        return multiply<T>(decoder, num_rows, logits, num_threads);                                              \
    }                                                                                                            \
    void atlas_free_##NAME(void* decoder) { delete static_cast<atlas::Decoder<T>*>(decoder); }

ATLAS_EXPORT(float, float)
ATLAS_EXPORT(double, double)
}
