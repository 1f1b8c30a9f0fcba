// One token a row through the whole model: what AtlasModel.step computes in the layout `mag` with the delta rule.
#pragma once

#include <utility>
#include <vector>

#include "attention.h"
#include "memory.h"
#include "products.h"
#include "threads.h"
#include "weights.h"

namespace atlas {

// Numbers for every row, made and used up within a step.
template <class T>
struct Activations {
    T *x, *normed, *projected, *output_gate, *convolved, *activated, *branches, *gated, *up, *cosines, *sines;
};

template <class T>
class Decoder {
   public:
    Decoder(const Shape& shape, const ModelWeights& weights);

    // Reads token_ids [num_rows] into a state: the places of its layers, and its positions. Writes logits
    // [num_rows, vocab_size] and whatever the tokens change of the state, in place. False, and nothing done, for an id
    // that is not of the vocabulary.
    bool step(long num_rows, const std::int64_t* token_ids, std::int64_t* positions, const LayerPlaces* places,
              T* logits, int num_threads);

    // The dense products of a step alone, of whatever numbers the last step has left.
    void multiply(long num_rows, T* logits, int num_threads);

   private:
    struct Layer {
        Layer(const Shape& shape, const LayerWeights& given);
        LayerWeights given;
        PackedWeight<T> project, output_gate, out, gate, up, contract;
    };

    void reserve(long num_rows, int num_threads);
    void begin_row(long row, std::int64_t token_id, std::int64_t position);
    void mix_tokens(const Layer& layer, const LayerPlaces& places, long num_rows, const std::int64_t* positions);
    void convolve_row(const LayerWeights& layer, T* tail, long row);
    void step_memory(const LayerWeights& layer, const LayerPlaces& places, long row, long head, std::int64_t position);
    void step_attention(const LayerWeights& layer, const LayerPlaces& places, long row, long head,
                        std::int64_t position);
    void feed_forward(const Layer& layer, long num_rows);
    void multiply_into(const PackedWeight<T>& weight, long num_rows, const T* x, long stride, T* target, bool adds);
    void norm_rows(const void* weight, long num_rows);

    Shape shape_;
    const T *embedding_, *norm_;
    std::vector<Layer> layers_;
    PackedWeight<T> head_;
    long scratch_size_ = 0, num_rows_ = 0;
    std::vector<T> numbers_, scratch_;
    Barrier barrier_;
    Activations<T> rows_{};
};

}  // namespace atlas
