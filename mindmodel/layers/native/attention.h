// Causal attention with rotary embedding and grouped keys and values: what the forward and the backward pass share.
//
// A row of x holds, per KV head, its query heads, its key and its value. Blocks of queries meet blocks of keys; blocks
// above the diagonal are skipped and no more than one block of scores per thread exists.
// Source: Dao et al., FlashAttention (arXiv 2205.14135); rotation of halves as in Hugging Face's Llama.
#pragma once

#include "rms_norm.h"
#include "tile.h"

namespace mindmodel {

constexpr Index QUERY_BLOCK = 48, KEY_BLOCK = 128;
static_assert(QUERY_BLOCK % TILE_ROWS == 0 && KEY_BLOCK % TILE_COLUMNS == 0, "blocks are whole tiles");

// A block of scores; the tail is read, but not used, where the last tile of its transpose is not full.
constexpr Index SCORES_FLOATS = QUERY_BLOCK * KEY_BLOCK + TILE_ROWS;

// Packed keys and values are kept for as many KV heads at a time.
constexpr Index ROUND_FLOATS = 4 << 20;

template <class T>
struct KindOf {
  using Type = Float32;
};
template <>
struct KindOf<bfloat16> {
  using Type = BFloat16;
};

// The inputs that both passes begin with: x, cos, sin, heads and, if queries and keys are normalised, q_w, k_w, eps.
template <class T, bool normed>
struct Attention {
  static constexpr int NUM_INPUTS = normed ? 7 : 4;

  const T *x;
  const float *cos, *sin;
  const float *q_weight = nullptr, *k_weight = nullptr;
  float eps = 0, scale;
  Index batch, seq, num_heads, num_kv_heads, group, head_size, width;
  Index columns;                     // head size, padded to whole tiles
  Index num_key_blocks, num_query_blocks;

  explicit Attention(const Arguments &args)
      : x(args.array<T>(0)), cos(args.array<float>(1)), sin(args.array<float>(2)), seq(args.size(1, 0)),
        num_heads(args.array<int32_t>(3)[0]), num_kv_heads(args.array<int32_t>(3)[1]), head_size(args.size(1, 1)),
        width(args.size(0, 1)) {
    batch = args.size(0, 0) / seq;
    group = num_heads / num_kv_heads;
    scale = 1.f / std::sqrt(static_cast<float>(head_size));
    columns = round_up(head_size, TILE_COLUMNS);
    num_key_blocks = divide_up(seq, KEY_BLOCK);
    num_query_blocks = divide_up(seq, QUERY_BLOCK);
    if (normed) {
      q_weight = args.array<float>(4);
      k_weight = args.array<float>(5);
      eps = *args.array<float>(6);
    }
  }

  bool fits(const Arguments &args) const {
    return num_heads % num_kv_heads == 0 && args.size(0, 0) % seq == 0 && head_size % 2 == 0 &&
           width == (num_heads + 2 * num_kv_heads) * head_size;
  }

  // A pair is a sequence and a KV head of it; a slot is a query head of the KV head, or its key or value.
  Index num_pairs() const { return batch * num_kv_heads; }
  Index key_slot() const { return group; }
  Index value_slot() const { return group + 1; }
  Index padded_seq() const { return num_key_blocks * KEY_BLOCK; }

  Index input_offset(Index pair, Index slot, Index position) const {
    return (pair / num_kv_heads * seq + position) * width + (pair % num_kv_heads * (group + 2) + slot) * head_size;
  }
  Index output_stride() const { return num_heads * head_size; }
  Index output_offset(Index pair, Index head, Index position) const {
    return (pair / num_kv_heads * seq + position) * output_stride() + (pair % num_kv_heads * group + head) * head_size;
  }
  Index lse_offset(Index pair, Index head, Index position) const {
    return (pair / num_kv_heads * num_heads + pair % num_kv_heads * group + head) * seq + position;
  }

  // Rows of a head as an operand [count, head_size]: normalised, rotated, scaled, rounded.
  void load(Index pair, Index slot, Index position, Index count, float *rows) const {
    const bool is_query = slot < group;
    const Index half = head_size / 2;
    for (Index i = 0; i < count; i++) {
      const T *in = x + input_offset(pair, slot, position + i);
      const float *c = cos + (position + i) * head_size, *s = sin + (position + i) * head_size;
      const float factor = is_query ? scale : 1.f;
      float *out = rows + i * head_size;
      if (normed) {
        normalise(in, is_query ? q_weight : k_weight, eps, head_size, out);
      } else {
        for (Index j = 0; j < head_size; j++) out[j] = to_float(in[j]);
      }
#pragma omp simd
      for (Index j = 0; j < half; j++) {
        const float a = out[j], b = out[j + half];
        out[j] = rounded<T>((a * c[j] - b * s[j]) * factor);
        out[j + half] = rounded<T>((b * c[j] + a * s[j]) * factor);
      }
    }
  }

  // The reverse: gradients of loaded rows, `columns` apart, which it overwrites, into dx; adds to the norm's dweight.
  void store_gradient(Index pair, Index slot, Index position, Index count, float *rows, T *dx, float *dweight) const {
    const bool is_query = slot < group;
    const Index half = head_size / 2;
    for (Index i = 0; i < count; i++) {
      const Index offset = input_offset(pair, slot, position + i);
      const float *c = cos + (position + i) * head_size, *s = sin + (position + i) * head_size;
      const float factor = is_query ? scale : 1.f;
      float *row = rows + i * columns;
#pragma omp simd
      for (Index j = 0; j < half; j++) {
        const float a = row[j], b = row[j + half];
        row[j] = (a * c[j] + b * s[j]) * factor;
        row[j + half] = (b * c[j] - a * s[j]) * factor;
      }
      if (normed) {
        normalise_backward<T>(x + offset, is_query ? q_weight : k_weight, eps, head_size, row, nullptr, dx + offset,
                              dweight);
      } else {
        for (Index j = 0; j < head_size; j++) dx[offset + j] = from_float<T>(row[j]);
      }
    }
  }
};

// Rows [count, size], `stride` apart, as the right operand of a product over `size`: rows become columns.
template <class Kind>
void pack_as_columns(const typename Kind::Memory *rows, Index stride, Index count, Index size, float *packed) {
  for (Index i = 0; i < count; i += TILE_COLUMNS)
    pack_strip<TILE_COLUMNS, Kind>(rows + i * stride, stride, 1, std::min<Index>(TILE_COLUMNS, count - i), size,
                                   packed + i * size);
}

// Rows [count, size], `stride` apart, as the right operand of a product over the rows; a strip has room for
// `capacity` rows.
template <class Kind>
void pack_as_rows(const typename Kind::Memory *rows, Index stride, Index count, Index size, Index capacity,
                  float *packed) {
  for (Index j = 0; j < size; j += TILE_COLUMNS)
    pack_strip<TILE_COLUMNS, Kind>(rows + j, 1, stride, std::min<Index>(TILE_COLUMNS, size - j), count,
                                   packed + j * capacity);
}

// Keys of a block that a query sees: those up to itself.
inline Index num_visible(Index query, Index first_key, Index num_keys) {
  return std::max<Index>(0, std::min(num_keys, query + 1 - first_key));
}

// A forward or backward pass over arguments that fit it.
template <template <class, bool> class Pass, bool normed>
int run_pass(const Arguments &args) {
  return with_type(args, 0, [&](auto zero) {
    const Pass<decltype(zero), normed> pass(args);
    return pass.fits(args) ? pass.run() : FAILURE;
  });
}

}  // namespace mindmodel
