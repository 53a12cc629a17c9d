// The backward pass. A pair's (query head, block of queries) are dealt out to parts, each with its own sums of the
// gradients of keys and values, so that threads share even a single pair; the sums are added up in a fixed order.
#include <omp.h>

#include <vector>

#include "attention.h"

using namespace mindmodel;

namespace {

constexpr Index TASKS_PER_THREAD = 4;      // enough that the threads end together
constexpr Index PARTS_FLOATS = 16 << 20;   // limit of the parts' sums, unless threads would go without a part

template <class T, bool normed>
struct Backward : Attention<T, normed> {
  using Base = Attention<T, normed>;
  using Kind = typename KindOf<T>::Type;

  const T *out;
  const float *lse;
  const T *dout;
  T *dx;
  float *dq_weight = nullptr, *dk_weight = nullptr;
  Index round, parts;  // pairs at a time; parts of a pair

  explicit Backward(const Arguments &args)
      : Base(args), out(args.array<T>(Base::NUM_INPUTS)), lse(args.array<float>(Base::NUM_INPUTS + 1)),
        dout(args.array<T>(Base::NUM_INPUTS + 2)), dx(args.array<T>(Base::NUM_INPUTS + 3)) {
    if (normed) {
      dq_weight = args.array<float>(Base::NUM_INPUTS + 4);
      dk_weight = args.array<float>(Base::NUM_INPUTS + 5);
    }
    round = std::min(this->num_pairs(), std::max<Index>(1, ROUND_FLOATS / pair_floats()));
    const Index wanted = divide_up(TASKS_PER_THREAD * num_threads(), round), needed = divide_up(num_threads(), round);
    const Index affordable = PARTS_FLOATS / (round * part_floats());
    parts = std::min(units(), std::max(needed, std::min(wanted, affordable)));
  }

  Index units() const { return this->group * this->num_query_blocks; }
  // Keys and values as columns, keys as rows.
  Index pair_floats() const { return this->padded_seq() * (2 * this->head_size + this->columns); }
  Index part_floats() const { return 2 * this->padded_seq() * this->columns; }
  // Of a thread: blocks of queries and dout as they are (or keys, while they are packed) and as rows, of dq, of scores.
  Index thread_floats() const {
    return padded(2 * KEY_BLOCK * this->head_size + 3 * QUERY_BLOCK * this->columns + 2 * SCORES_FLOATS);
  }

  float *keys_as_rows(float *packed) const { return packed + 2 * this->padded_seq() * this->head_size; }

  void pack(Index pair, Index block, float *packed, float *keys) const {
    const Index first = block * KEY_BLOCK, count = std::min(KEY_BLOCK, this->seq - first), size = this->head_size;
    float *values = packed + this->padded_seq() * size;
    this->load(pair, this->key_slot(), first, count, keys);
    pack_as_columns<Float32>(keys, size, count, size, packed + first * size);
    pack_as_columns<Kind>(this->x + this->input_offset(pair, this->value_slot(), first), this->width, count, size,
                          values + first * size);
    pack_as_rows<Float32>(keys, size, count, size, KEY_BLOCK, keys_as_rows(packed) + first * this->columns);
  }

  // The rows of dout, and their products with the rows of out: what the softmax subtracts (FlashAttention, eq. 4).
  void load_dout(Index pair, Index head, Index first, Index count, float *rows, float *products) const {
    for (Index i = 0; i < count; i++) {
      const Index offset = this->output_offset(pair, head, first + i);
      float product = 0;
#pragma omp simd reduction(+ : product)
      for (Index j = 0; j < this->head_size; j++) {
        const float gradient = to_float(dout[offset + j]);
        rows[i * this->head_size + j] = gradient;
        product += gradient * to_float(out[offset + j]);
      }
      products[i] = product;
    }
  }

  // Scores to probabilities, dprobabilities to dscores, both rounded.
  void differentiate(const float *log_sums, const float *products, Index query, Index count, Index first_key,
                     Index num_keys, float *scores, float *gradients) const {
    for (Index i = 0; i < QUERY_BLOCK; i++) {
      float *row = scores + i * KEY_BLOCK, *gradient = gradients + i * KEY_BLOCK;
      const Index visible = i < count ? num_visible(query + i, first_key, num_keys) : 0;
      const float log_sum = visible ? log_sums[i] : 0, product = visible ? products[i] : 0;
#pragma omp simd
      for (Index j = 0; j < visible; j++) {
        const float p = fast_exp(row[j] - log_sum);
        row[j] = rounded<T>(p);
        gradient[j] = rounded<T>(p * (gradient[j] - product));
      }
      for (Index j = visible; j < num_keys; j++) row[j] = gradient[j] = 0;
    }
  }

  // One block of queries of one head: its dx; adds to the part's dkeys and dvalues.
  void attend(Index pair, Index head, Index block, float *packed, float *dkeys, float *dvalues, float *dweight,
              float *scratch) const {
    const Index first = block * QUERY_BLOCK, count = std::min(QUERY_BLOCK, this->seq - first);
    const Index size = this->head_size, columns = this->columns;
    const float *values = packed + this->padded_seq() * size, *key_rows = keys_as_rows(packed);
    float *queries = scratch, *gradients = queries + KEY_BLOCK * size, *query_rows = gradients + KEY_BLOCK * size;
    float *gradient_rows = query_rows + QUERY_BLOCK * columns, *dqueries = gradient_rows + QUERY_BLOCK * columns;
    float *scores = dqueries + QUERY_BLOCK * columns, *dscores = scores + SCORES_FLOATS;
    float products[QUERY_BLOCK];
    std::fill_n(queries, QUERY_BLOCK * size, 0.f);
    std::fill_n(gradients, QUERY_BLOCK * size, 0.f);
    this->load(pair, head, first, count, queries);
    load_dout(pair, head, first, count, gradients, products);
    pack_as_rows<Float32>(queries, size, QUERY_BLOCK, size, QUERY_BLOCK, query_rows);
    pack_as_rows<Float32>(gradients, size, QUERY_BLOCK, size, QUERY_BLOCK, gradient_rows);
    for (Index key = 0; key < first + count; key += KEY_BLOCK) {
      const Index num_keys = std::min(KEY_BLOCK, first + count - key), padded_keys = round_up(num_keys, TILE_COLUMNS);
      const Left<false> query_left{queries, size}, gradient_left{gradients, size}, dscores_left{dscores, KEY_BLOCK};
      const Left<true> probabilities_right{scores, KEY_BLOCK}, dscores_right{dscores, KEY_BLOCK};
      const Index key_strip = size * TILE_COLUMNS, query_strip = QUERY_BLOCK * TILE_COLUMNS;
      multiply_block(QUERY_BLOCK, padded_keys, size, query_left, packed + key * size, key_strip, scores, KEY_BLOCK,
                     false);
      multiply_block(QUERY_BLOCK, padded_keys, size, gradient_left, values + key * size, key_strip, dscores, KEY_BLOCK,
                     false);
      differentiate(lse + this->lse_offset(pair, head, first), products, first, count, key, num_keys, scores, dscores);
      multiply_block(num_keys, columns, QUERY_BLOCK, probabilities_right, gradient_rows, query_strip,
                     dvalues + key * columns, columns, true);
      multiply_block(num_keys, columns, QUERY_BLOCK, dscores_right, query_rows, query_strip, dkeys + key * columns,
                     columns, true);
      multiply_block(QUERY_BLOCK, columns, num_keys, dscores_left, key_rows + key * columns, KEY_BLOCK * TILE_COLUMNS,
                     dqueries, columns, key > 0);
    }
    this->store_gradient(pair, head, first, count, dqueries, dx, dweight);
  }

  // Units alternate between the parts, back and forth, so that each gets its share of long and short ones.
  void attend_part(Index pair, Index part, float *packed, float *sums, float *dweight, float *scratch) const {
    std::fill_n(sums, part_floats(), 0.f);
    for (Index turn = 0; turn * parts < units(); turn++) {
      const Index unit = turn * parts + (turn % 2 ? parts - 1 - part : part);
      if (unit < units())
        attend(pair, unit % this->group, unit / this->group, packed, sums, sums + part_floats() / 2, dweight, scratch);
    }
  }

  // The dx of a block of keys and values from the sums of the pair's parts.
  void store_keys(Index pair, Index block, float *sums, float *dweight) const {
    const Index first = block * KEY_BLOCK, count = std::min(KEY_BLOCK, this->seq - first);
    float *dkeys = sums + first * this->columns, *dvalues = dkeys + part_floats() / 2;
    for (Index part = 1; part < parts; part++) {
      const float *more_keys = dkeys + part * part_floats(), *more_values = dvalues + part * part_floats();
#pragma omp simd
      for (Index j = 0; j < count * this->columns; j++) {
        dkeys[j] += more_keys[j];
        dvalues[j] += more_values[j];
      }
    }
    this->store_gradient(pair, this->key_slot(), first, count, dkeys, dx, dweight);
    for (Index i = 0; i < count; i++) {
      T *row = dx + this->input_offset(pair, this->value_slot(), first + i);
      for (Index j = 0; j < this->head_size; j++) row[j] = from_float<T>(dvalues[i * this->columns + j]);
    }
  }

  // Sum of rows [count, head size] in a fixed order.
  void add_up(const std::vector<float> &rows, float *sum) const {
    std::fill_n(sum, this->head_size, 0.f);
    for (size_t i = 0; i < rows.size(); i++) sum[i % this->head_size] += rows[i];
  }

  int run() const {
    static Buffer packed_buffer, sums_buffer, thread_buffer;
    float *packed = packed_buffer.floats(round * pair_floats());
    float *sums = sums_buffer.floats(round * parts * part_floats());
    float *scratch = thread_buffer.floats(num_threads() * thread_floats());
    const Index size = normed ? this->head_size : 0;  // of the gradients of the norms' weights, one per task
    std::vector<float> dq_weights(this->num_pairs() * parts * size);
    std::vector<float> dk_weights(this->num_pairs() * this->num_key_blocks * size);
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
#pragma omp for schedule(dynamic, 1)
        for (Index t = 0; t < count * parts; t++) {
          const Index pair = t / parts;
          attend_part(first + pair, t % parts, packed + pair * pair_floats(), sums + t * part_floats(),
                      dq_weights.data() + (first * parts + t) * size, own);
        }
#pragma omp for
        for (Index t = 0; t < count * this->num_key_blocks; t++) {
          const Index pair = t / this->num_key_blocks;
          store_keys(first + pair, t % this->num_key_blocks, sums + pair * parts * part_floats(),
                     dk_weights.data() + (first * this->num_key_blocks + t) * size);
        }
      }
    }
    if (normed) {
      add_up(dq_weights, dq_weight);
      add_up(dk_weights, dk_weight);
    }
    return SUCCESS;
  }
};

}  // namespace

// x T[B S, (H + 2 K) d], cos and sin f32[S, d], heads i32[2], o T[B S, H d], lse f32[B, H, S], do T[B S, H d]
// -> dx as x
MINDMODEL_KERNEL(attention_backward) { return run_pass<Backward, false>(args); }

// The same with q_w f32[d], k_w f32[d], eps f32[1] after heads -> dx, dq_w f32[d], dk_w f32[d]
MINDMODEL_KERNEL(attention_qk_norm_backward) { return run_pass<Backward, true>(args); }
