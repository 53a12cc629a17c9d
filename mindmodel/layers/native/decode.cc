// A decoding step: logits after one new token of each of B sequences; keys and values of earlier ones are in a cache.
//
// A step reads every weight once and does little with it. So it is one kernel, whose threads stream the weights: rows
// of a matrix are shared out in pieces, and each meets the activations of all sequences while it is at hand.
#include <omp.h>

#include <algorithm>
#include <memory>

#include "phases.h"
#include "rms_norm.h"
#include "tile.h"

using namespace mindmodel;

namespace {

constexpr Index PIECE_FLOATS = 1 << 14;  // of weights; from one group of sequences to the next they stay in a cache
constexpr Index PIECES_PER_THREAD = 4;   // at least, so that threads end together
constexpr int ROWS = 3, COLUMNS = 4;     // dot products at a time: their sums and factors fit 16 registers

inline float sum_of(const Vector &vector) {
  float lanes[LANES];
  store(lanes, vector);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// y[j, i] (+)= row i of w * row j of x for i < rows <= num_rows and all j < num_columns; each is summed
// in `ways` parts.
template <int num_rows, int num_columns, int ways, bool accumulate>
inline void dot_products(const float *w, Index rows, Index size, const float *x, Index x_stride, float *y,
                         Index y_stride) {
  Vector sums[num_rows][num_columns][ways] = {};
  const float *row[num_rows];
  for (int i = 0; i < num_rows; i++) row[i] = w + std::min<Index>(i, rows - 1) * size;
  Index k = 0;
  for (; k + ways * LANES <= size; k += ways * LANES)
    MINDMODEL_UNROLL for (int way = 0; way < ways; way++) {
      Vector left[num_rows];
      MINDMODEL_UNROLL for (int i = 0; i < num_rows; i++) left[i] = load(row[i] + k + way * LANES);
      MINDMODEL_UNROLL for (int j = 0; j < num_columns; j++) {
        const Vector right = load(x + j * x_stride + k + way * LANES);
        MINDMODEL_UNROLL for (int i = 0; i < num_rows; i++) sums[i][j][way] += left[i] * right;
      }
    }
  for (int i = 0; i < std::min<Index>(num_rows, rows); i++)
    for (int j = 0; j < num_columns; j++) {
      Vector lanes = sums[i][j][0];
      for (int way = 1; way < ways; way++) lanes += sums[i][j][way];
      float sum = sum_of(lanes);
      for (Index tail = k; tail < size; tail++) sum += row[i][tail] * x[j * x_stride + tail];
      float &result = y[j * y_stride + i];
      result = accumulate ? result + sum : sum;
    }
}

template <int num_columns, bool accumulate>
void multiply_columns(const float *w, Index rows, Index size, const float *x, Index x_stride, float *y,
                      Index y_stride) {
  // A single sequence is memory's business, and one stream of it is the fastest
  constexpr int num_rows = num_columns == 1 ? 1 : ROWS, ways = num_columns == 1 ? 4 : 1;
  for (Index i = 0; i < rows; i += num_rows)
    dot_products<num_rows, num_columns, ways, accumulate>(w + i * size, rows - i, size, x, x_stride, y + i, y_stride);
}

// y[count, rows] (+)= x[count, size] w[rows, size]'.
template <bool accumulate = false>
void multiply(const float *w, Index rows, Index size, const float *x, Index x_stride, Index count, float *y,
              Index y_stride) {
  for (Index j = 0; j < count; j += COLUMNS, x += COLUMNS * x_stride, y += COLUMNS * y_stride) {
    switch (std::min<Index>(COLUMNS, count - j)) {
      case 1: multiply_columns<1, accumulate>(w, rows, size, x, x_stride, y, y_stride); break;
      case 2: multiply_columns<2, accumulate>(w, rows, size, x, x_stride, y, y_stride); break;
      case 3: multiply_columns<3, accumulate>(w, rows, size, x, x_stride, y, y_stride); break;
      default: multiply_columns<COLUMNS, accumulate>(w, rows, size, x, x_stride, y, y_stride);
    }
  }
}

void softmax(float *scores, Index count) {
  const float top = largest(scores[0], scores, count);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < count; j++) sum += scores[j] = fast_exp(scores[j] - top);
  const float scale = 1.f / sum;
#pragma omp simd
  for (Index j = 0; j < count; j++) scores[j] *= scale;
}

// y = x rotated by the angles of a position, times scale. Source: rotation of halves as in Hugging Face's Llama.
void rotate(const float *x, const float *cos, const float *sin, Index size, float scale, float *y) {
  const Index half = size / 2;
#pragma omp simd
  for (Index j = 0; j < half; j++) {
    y[j] = (x[j] * cos[j] - x[j + half] * sin[j]) * scale;
    y[j + half] = (x[j + half] * cos[j + half] + x[j] * sin[j + half]) * scale;
  }
}

struct Layer {
  const float *attention_norm, *qkv, *out, *mlp_norm, *gate_up, *down;
  float *keys, *values;
  const float *q_norm = nullptr, *k_norm = nullptr;
};

class Step {
 public:
  explicit Step(const Arguments& args)
      : args_(args),
        batch_(args.num_elements(0)),
        position_(*args.array<int32_t>(1)),
        eps_(*args.array<float>(3)),
        num_slots_(args.size(4, 0)),
        head_size_(args.size(4, 1)),
        hidden_size_(args.size(6, 1)),
        vocab_size_(args.size(6, 0)) {
    const int32_t *sizes = args.array<int32_t>(2);
    num_layers_ = sizes[0];
    num_kv_heads_ = sizes[2];
    group_ = sizes[1] / num_kv_heads_;
    num_blocks_ = sizes[3];
    arrays_per_layer_ = (args.num_arrays - FIRST_LAYER - 1) / num_layers_;
    width_ = num_kv_heads_ * group_ * head_size_;
    qkv_size_ = width_ + 2 * num_kv_heads_ * head_size_;
    ffn_size_ = args.size(FIRST_LAYER + 5, 1);
  }

  int run() {
    const int32_t *ids = args_.array<int32_t>(0);
    if (position_ < 0 || position_ >= num_slots_) return FAILURE;
    for (Index b = 0; b < batch_; b++)
      if (ids[b] < 0 || ids[b] >= vocab_size_) return FAILURE;
    static Buffer shared, own;
    x_ = shared.floats(batch_ * (hidden_size_ + qkv_size_ + width_ + ffn_size_));
    qkv_ = x_ + batch_ * hidden_size_;
    attended_ = qkv_ + batch_ * qkv_size_;
    activations_ = attended_ + batch_ * width_;
    for (Index b = 0; b < batch_; b++)
      std::copy_n(args_.array<float>(6) + ids[b] * hidden_size_, hidden_size_, x_ + b * hidden_size_);
    const Index own_floats = padded(std::max(batch_ * (hidden_size_ + 2 * gates_per_piece()),
                                             group_ * (head_size_ + position_ + 1) + head_size_));
    float *scratch = own.floats(num_threads() * own_floats);
    const std::unique_ptr<Phase[]> phases(new Phase[num_layers_ * PHASES_PER_LAYER + 1]);
#pragma omp parallel num_threads(num_threads())
    thread(phases.get(), scratch + omp_get_thread_num() * own_floats);
    return SUCCESS;
  }

 private:
  static constexpr int FIRST_LAYER = 9, PHASES_PER_LAYER = 5;

  Layer layer(int i) const {
    const int at = FIRST_LAYER + i * arrays_per_layer_;
    const auto array = [&](int j) { return args_.array<float>(at + j); };
    Layer layer{array(0), array(1), array(2), array(3), array(4), array(5), array(6), array(7)};
    if (arrays_per_layer_ > 8) {
      layer.q_norm = array(8);
      layer.k_norm = array(9);
    }
    return layer;
  }

  // One thread's part of the step.
  void thread(Phase *phase, float *scratch) {
    for (int i = 0; i < num_layers_; i++) {
      const Layer weights = layer(i);
      multiply_normed(*phase++, weights.attention_norm, weights.qkv, qkv_size_, qkv_, scratch);
      phase++->share(batch_ * num_kv_heads_, [&](Index group) { attend(weights, group, scratch); });
      add_product(*phase++, weights.out, width_, attended_);
      activate(*phase++, weights, scratch);
      add_product(*phase++, weights.down, ffn_size_, activations_);
    }
    multiply_normed(*phase, args_.array<float>(7), args_.array<float>(8), vocab_size_,
                    args_.array<float>(args_.num_arrays - 1), scratch);
  }

  // Rows of a weight that a thread takes at a time.
  static Index rows_per_piece(Index rows, Index size) {
    const Index even = divide_up(rows, PIECES_PER_THREAD * num_threads());
    return round_up(std::max<Index>(1, std::min(even, PIECE_FLOATS / size)), ROWS);
  }

  // Pairs of a gate's and an up's row that a thread takes at a time; they lie in one pair of blocks.
  Index gates_per_piece() const {
    return std::min(ffn_size_ / num_blocks_, rows_per_piece(ffn_size_, 2 * hidden_size_));
  }

  // work(begin, count) for pieces of `rows` rows of a weight.
  template <class Work>
  static void share_rows(Phase &phase, Index rows, Index size, Work work) {
    const Index step = rows_per_piece(rows, size);
    phase.share(divide_up(rows, step), [&](Index i) { work(i * step, std::min(step, rows - i * step)); });
  }

  void normalise_stream(const float *norm, float *normed) const {
    for (Index b = 0; b < batch_; b++)
      normalise(x_ + b * hidden_size_, norm, eps_, hidden_size_, normed + b * hidden_size_);
  }

  // y[B, rows] = norm(x) w'; every thread that takes a piece normalises for itself.
  void multiply_normed(Phase &phase, const float *norm, const float *w, Index rows, float *y, float *normed) const {
    bool ready = false;
    share_rows(phase, rows, hidden_size_, [&](Index begin, Index count) {
      if (!ready) normalise_stream(norm, normed);
      ready = true;
      multiply(w + begin * hidden_size_, count, hidden_size_, normed, hidden_size_, batch_, y + begin, rows);
    });
  }

  // x += y w'
  void add_product(Phase &phase, const float *w, Index size, const float *y) {
    share_rows(phase, hidden_size_, size, [&](Index begin, Index count) {
      multiply<true>(w + begin * size, count, size, y, size, batch_, x_ + begin, hidden_size_);
    });
  }

  // Attention of a sequence's KV head, whose query heads, key and value lie side by side.
  void attend(const Layer &weights, Index group, float *scratch) {
    const Index size = head_size_, count = position_ + 1;
    const float *cos = args_.array<float>(4) + position_ * size, *sin = args_.array<float>(5) + position_ * size;
    const float *heads = qkv_ + group * (group_ + 2) * size;  // groups of all sequences follow each other
    float *keys = weights.keys + group * num_slots_ * size, *values = weights.values + group * num_slots_ * size;
    float *normed = scratch, *queries = normed + size, *scores = queries + group_ * size;
    const auto turn = [&](const float *head, const float *norm, float scale, float *turned) {
      if (norm != nullptr) normalise(head, norm, eps_, size, normed);
      rotate(norm != nullptr ? normed : head, cos, sin, size, scale, turned);
    };
    for (Index i = 0; i < group_; i++)
      turn(heads + i * size, weights.q_norm, 1.f / std::sqrt(static_cast<float>(size)), queries + i * size);
    turn(heads + group_ * size, weights.k_norm, 1.f, keys + position_ * size);
    std::copy_n(heads + (group_ + 1) * size, size, values + position_ * size);
    multiply(keys, count, size, queries, size, group_, scores, count);
    float *attended = attended_ + group * group_ * size;
    for (Index i = 0; i < group_; i++) {
      softmax(scores + i * count, count);
      mix(scores + i * count, values, count, attended + i * size);
    }
  }

  // The sum of `count` values, each times its share.
  void mix(const float *shares, const float *values, Index count, float *sum) const {
    std::fill_n(sum, head_size_, 0.f);
    for (Index j = 0; j < count; j++, values += head_size_) {
      const float share = shares[j];
#pragma omp simd
      for (Index k = 0; k < head_size_; k++) sum[k] += share * values[k];
    }
  }

  // activations = silu(gate) * up of norm(x); gates and ups are alternating blocks of rows.
  void activate(Phase &phase, const Layer &weights, float *normed) {
    const Index block = ffn_size_ / num_blocks_, step = gates_per_piece();
    const Index pieces = divide_up(block, step);
    float *gates = normed + batch_ * hidden_size_, *ups = gates + batch_ * step;
    bool ready = false;
    phase.share(num_blocks_ * pieces, [&](Index i) {
      if (!ready) normalise_stream(weights.mlp_norm, normed);
      ready = true;
      const Index begin = i % pieces * step, count = std::min(step, block - begin), b = i / pieces;
      const float *gate = weights.gate_up + (2 * b * block + begin) * hidden_size_, *up = gate + block * hidden_size_;
      multiply(gate, count, hidden_size_, normed, hidden_size_, batch_, gates, count);
      multiply(up, count, hidden_size_, normed, hidden_size_, batch_, ups, count);
      for (Index j = 0; j < batch_; j++) {
        const float *g = gates + j * count, *u = ups + j * count;
        float *out = activations_ + j * ffn_size_ + b * block + begin;
#pragma omp simd
        for (Index k = 0; k < count; k++) out[k] = g[k] * sigmoid(g[k]) * u[k];
      }
    });
  }

  const Arguments &args_;
  Index batch_, position_;
  float eps_;
  Index num_slots_, head_size_, hidden_size_, vocab_size_;
  Index num_layers_, num_kv_heads_, group_, num_blocks_, width_, qkv_size_, ffn_size_;
  int arrays_per_layer_;
  float *x_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr, *activations_ = nullptr;
};

}  // namespace

// ids i32[B], position i32[1], sizes i32[4] = (layers, heads, KV heads, blocks of gate_up), eps f32[1], cos and sin
// f32[P, d], embedding f32[V, D], norm f32[D], head f32[V, D]; then of every layer the attention's norm f32[D], qkv
// f32[(H + 2 K) d, D], out f32[D, H d], the feed-forward layer's norm f32[D], gate_up f32[2 F, D], down f32[D, F], the
// cached keys and values f32[B K P, d] and, if queries and keys are normalised, their norms f32[d] -> logits f32[B, V].
// Writes the new keys and values to the cache; fails on an id or a position that is not in the tables.
MINDMODEL_KERNEL(decode_step) { return Step(args).run(); }
