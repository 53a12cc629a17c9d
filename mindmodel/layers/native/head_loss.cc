// Output layer and cross entropy with z-loss (PaLM, arXiv 2204.02311, section 5). A block of rows' logits are made,
// replaced by their gradient and used up, so that the whole [M, V] array never exists. Logits are float32 in memory;
// beside bfloat16 activations they hold bfloat16 values.
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "kernel.h"

using namespace mindmodel;

namespace {

constexpr Index LOGITS_FLOATS = 4 << 20, MAX_BLOCK_ROWS = 512;

// Rows of the weight are used this many floats at a time: no product's operand or depth grows with the vocabulary.
constexpr Index WEIGHT_FLOATS = 4 << 20;

struct Loss {
  double entropy = 0, with_z = 0;  // sums over the kept rows
};

// The loss of a row of logits; with `gradient` its gradient replaces the logits.
template <class T, bool gradient>
Loss row_loss(float *logits, Index vocab_size, int32_t label, float z_loss) {
  const float wanted = logits[label], top = largest(logits[0], logits, vocab_size);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < vocab_size; j++) {
    const float e = fast_exp(logits[j] - top);
    if (gradient) logits[j] = e;
    sum += e;
  }
  const double log_sum = top + std::log(static_cast<double>(sum)), entropy = log_sum - wanted;
  if (gradient) {
    const float row_scale = static_cast<float>(1 + 2 * z_loss * log_sum), scale = row_scale / sum;
    const float at_label = logits[label] * scale - 1.f;
#pragma omp simd
    for (Index j = 0; j < vocab_size; j++) logits[j] = rounded<T>(logits[j] * scale);
    logits[label] = rounded<T>(at_label);
  }
  return {entropy, entropy + z_loss * log_sum * log_sum};
}

template <class T>
struct Head {
  const T *x;
  const float *weight;
  const int32_t *labels;
  float z_loss;
  Index rows, size, vocab_size;
  Index block_rows, chunk;  // rows of x and of the weight at a time

  explicit Head(const Arguments &args)
      : x(args.array<T>(0)),
        weight(args.array<float>(1)),
        labels(args.array<int32_t>(2)),
        z_loss(*args.array<float>(3)),
        rows(args.size(0, 0)),
        size(args.size(0, 1)),
        vocab_size(args.size(1, 0)),
        block_rows(std::min({rows, MAX_BLOCK_ROWS, std::max<Index>(16, LOGITS_FLOATS / vocab_size)})),
        chunk(std::min(vocab_size, round_up(std::max<Index>(1024, WEIGHT_FLOATS / size), 64))) {}

  Matrix x_rows(Index row, bool transposed) const { return {x + row * size, number_of<T>(), size, transposed}; }
  Matrix weight_rows(Index v, bool transposed) const {
    return {weight + v * size, float_beside<T>(), size, transposed};
  }

  template <class Body>
  void for_chunks(Body body) const {
    for (Index v = 0; v < vocab_size; v += chunk) body(v, std::min(chunk, vocab_size - v));
  }

  void make_logits(Index row, Index count, float *logits) const {
    for_chunks([&](Index v, Index num_v) {
      gemm(count, num_v, size, x_rows(row, false), weight_rows(v, true), {logits + v, float_beside<T>(), vocab_size});
    });
  }

  template <bool gradient>
  void add_losses(Index row, Index count, float *logits, std::vector<Loss> &losses) const {
#pragma omp parallel for num_threads(num_threads()) schedule(dynamic, 1)
    for (Index i = 0; i < count; i++) {
      float *row_logits = logits + i * vocab_size;
      const int32_t label = labels[row + i];
      if (label >= 0) {
        losses[row + i] = row_loss<T, gradient>(row_logits, vocab_size, label, z_loss);
      } else if (gradient) {
        std::fill_n(row_logits, vocab_size, 0.f);
      }
    }
  }

  // sums: products that are not rounded yet
  void make_dx(Index row, Index count, const float *dlogits, float *sums, T *dx) const {
    for_chunks([&](Index v, Index num_v) {
      gemm(count, size, num_v, {dlogits + v, Number::float32, vocab_size}, weight_rows(v, false),
           {sums, Number::float32, size, v > 0});
    });
#pragma omp parallel for num_threads(num_threads())
    for (Index i = 0; i < count; i++)
      for (Index j = 0; j < size; j++) dx[(row + i) * size + j] = from_float<T>(sums[i * size + j]);
  }

  void add_dweight(Index row, Index count, const float *dlogits, float *dweight) const {
    const Number number = row + count == rows ? float_beside<T>() : Number::float32;
    for_chunks([&](Index v, Index num_v) {
      gemm(num_v, size, count, {dlogits + v, Number::float32, vocab_size, true}, x_rows(row, false),
           {dweight + v * size, number, size, row > 0});
    });
  }
};

template <bool gradient>
int loss(const Arguments &args) {
  static Buffer logits_buffer, dx_buffer;
  const Index rows = args.size(0, 0);
  for (Index i = 0; i < rows; i++)
    if (args.array<int32_t>(2)[i] >= args.size(1, 0)) return FAILURE;
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    const Head<T> head(args);
    float *logits = logits_buffer.floats(head.block_rows * head.vocab_size);
    float *dx_sums = gradient ? dx_buffer.floats(head.block_rows * head.size) : nullptr;
    std::vector<Loss> losses(rows);
    for (Index row = 0; row < rows; row += head.block_rows) {
      const Index count = std::min(head.block_rows, rows - row);
      head.make_logits(row, count, logits);
      head.template add_losses<gradient>(row, count, logits, losses);
      if (gradient) {
        head.make_dx(row, count, logits, dx_sums, args.array<T>(5));
        head.add_dweight(row, count, logits, args.array<float>(6));
      }
    }
    Loss total;
    for (const Loss &row : losses) {
      total.entropy += row.entropy;
      total.with_z += row.with_z;
    }
    float *sums = args.array<float>(4);
    sums[0] = static_cast<float>(total.with_z);
    sums[1] = static_cast<float>(total.entropy);
    return SUCCESS;
  });
}

}  // namespace

// x T[M, D], w f32[V, D], labels i32[M] (negative: ignored), z_loss f32[1] ->
// sums f32[2] = (entropy + z_loss * logsum^2, entropy) over the kept rows, dx T[M, D], dw f32[V, D] of the first sum.
// Fails on a label outside of the vocabulary.
MINDMODEL_KERNEL(head_loss) { return loss<true>(args); }

// x T[M, D], w f32[V, D], labels i32[M], z_loss f32[1] -> sums f32[2]
MINDMODEL_KERNEL(head_loss_forward) { return loss<false>(args); }
