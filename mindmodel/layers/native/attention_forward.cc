#include <omp.h>

#include "attention.h"

using namespace mindmodel;

namespace {

template <class T, bool normed>
struct Forward : Attention<T, normed> {
  using Base = Attention<T, normed>;
  using Kind = typename KindOf<T>::Type;

  T *out;
  float *lse;

  explicit Forward(const Arguments &args)
      : Base(args), out(args.array<T>(Base::NUM_INPUTS)), lse(args.array<float>(Base::NUM_INPUTS + 1)) {}

  // Keys and values of one pair, packed.
  Index pair_floats() const { return this->padded_seq() * (this->head_size + this->columns); }
  // Of a thread: a block of queries (or keys, while they are packed), of results and of scores.
  Index thread_floats() const {
    return padded(KEY_BLOCK * this->head_size + QUERY_BLOCK * this->columns + SCORES_FLOATS);
  }

  void pack(Index pair, Index block, float *packed, float *keys) const {
    const Index first = block * KEY_BLOCK, count = std::min(KEY_BLOCK, this->seq - first);
    float *values = packed + this->padded_seq() * this->head_size;
    this->load(pair, this->key_slot(), first, count, keys);
    pack_as_columns<Float32>(keys, this->head_size, count, this->head_size, packed + first * this->head_size);
    pack_as_rows<Kind>(this->x + this->input_offset(pair, this->value_slot(), first), this->width, count,
                       this->head_size, KEY_BLOCK, values + first * this->columns);
  }

  // Scores to unnormalised probabilities; keeps the running maximum and sum, and rescales the result so far by them.
  void soften(Index query, Index count, Index first_key, Index num_keys, float *scores, float *top, float *sum,
              float *result) const {
    for (Index i = 0; i < QUERY_BLOCK; i++) {
      float *row = scores + i * KEY_BLOCK, row_sum = 0;
      const Index visible = i < count ? num_visible(query + i, first_key, num_keys) : 0;
      const float new_top = largest(top[i], row, visible);
#pragma omp simd reduction(+ : row_sum)
      for (Index j = 0; j < visible; j++) {
        const float e = fast_exp(row[j] - new_top);
        row[j] = rounded<T>(e);
        row_sum += e;
      }
      for (Index j = visible; j < num_keys; j++) row[j] = 0;
      if (first_key > 0 && new_top > top[i]) {
        const float factor = fast_exp(top[i] - new_top);
        sum[i] *= factor;
        for (Index j = 0; j < this->columns; j++) result[i * this->columns + j] *= factor;
      }
      top[i] = new_top;
      sum[i] += row_sum;
    }
  }

  void attend(Index pair, Index head, Index block, const float *packed, float *scratch) const {
    const Index first = block * QUERY_BLOCK, count = std::min(QUERY_BLOCK, this->seq - first), size = this->head_size;
    const float *values = packed + this->padded_seq() * size;
    float *queries = scratch, *result = queries + KEY_BLOCK * size, *scores = result + QUERY_BLOCK * this->columns;
    float top[QUERY_BLOCK], sum[QUERY_BLOCK] = {};
    std::fill_n(top, QUERY_BLOCK, -1e30f);
    std::fill_n(queries, QUERY_BLOCK * size, 0.f);
    this->load(pair, head, first, count, queries);
    for (Index key = 0; key < first + count; key += KEY_BLOCK) {
      const Index num_keys = std::min(KEY_BLOCK, first + count - key);
      multiply_block(QUERY_BLOCK, round_up(num_keys, TILE_COLUMNS), size, Left<false>{queries, size},
                     packed + key * size, size * TILE_COLUMNS, scores, KEY_BLOCK, false);
      soften(first, count, key, num_keys, scores, top, sum, result);
      multiply_block(QUERY_BLOCK, this->columns, num_keys, Left<false>{scores, KEY_BLOCK}, values + key * this->columns,
                     KEY_BLOCK * TILE_COLUMNS, result, this->columns, key > 0);
    }
    for (Index i = 0; i < count; i++) {
      T *row = out + this->output_offset(pair, head, first + i);
      const float inverse = 1.f / sum[i];
      for (Index j = 0; j < size; j++) row[j] = from_float<T>(result[i * this->columns + j] * inverse);
      lse[this->lse_offset(pair, head, first + i)] = top[i] + std::log(sum[i]);
    }
  }

  int run() const {
    static Buffer packed_buffer, thread_buffer;
    const Index round = std::min(this->num_pairs(), std::max<Index>(1, ROUND_FLOATS / pair_floats()));
    float *packed = packed_buffer.floats(round * pair_floats());
    float *scratch = thread_buffer.floats(num_threads() * thread_floats());
#pragma omp parallel num_threads(num_threads())
    {
      float *own = scratch + omp_get_thread_num() * thread_floats();
      for (Index first = 0; first < this->num_pairs(); first += round) {
        const Index count = std::min(round, this->num_pairs() - first);
#pragma omp for
        for (Index t = 0; t < count * this->num_key_blocks; t++) {
          const Index pair = t / this->num_key_blocks;
          pack(first + pair, t % this->num_key_blocks, packed + pair * pair_floats(), own);
        }
        // The last queries see the most keys: they come first, so that the threads end together
        const Index tasks_per_block = count * this->group;
#pragma omp for schedule(dynamic, 1)
        for (Index t = 0; t < this->num_query_blocks * tasks_per_block; t++) {
          const Index block = this->num_query_blocks - 1 - t / tasks_per_block;
          const Index pair = t % tasks_per_block / this->group;
          attend(first + pair, t % this->group, block, packed + pair * pair_floats(), own);
        }
      }
    }
    return SUCCESS;
  }
};

}  // namespace

// x T[B S, (H + 2 K) d], cos and sin f32[S, d] with equal halves, heads i32[2] = (H, K)
// -> o T[B S, H d], lse f32[B, H, S]
MINDMODEL_KERNEL(attention_forward) { return run_pass<Forward, false>(args); }

// The same with q_w f32[d], k_w f32[d], eps f32[1] after heads: RMSNorm of each query and key head before the rotation
MINDMODEL_KERNEL(attention_qk_norm_forward) { return run_pass<Forward, true>(args); }
