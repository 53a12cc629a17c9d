// Arrays, kernels over them, and what is expected of them, with several numbers of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

using Shape = std::vector<int64_t>;
using Doubles = std::vector<double>;
using Kernel = int(int, void **, int *, int64_t **, const char **, void *, void *);

extern "C" {
void mindmodel_set_threads(int);
Kernel linear_forward, linear_backward, rms_norm_forward, rms_norm_backward, residual_norm_backward;
Kernel swiglu_forward, swiglu_backward;
Kernel attention_forward, attention_backward, attention_qk_norm_forward, attention_qk_norm_backward;
Kernel head_loss, head_loss_forward, embedding_backward, square_sum, square_sums, adamw,
    adamw_with_norms, decode_step;
}

const double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();
const double INFINITE = std::numeric_limits<double>::infinity();
inline std::mt19937 generator(1);
inline int num_failures = 0, num_checks = 0;
inline std::string context;

enum class Type { f32, bf16, i32 };

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  const uint32_t low = bits & 0xffff, high = bits >> 16;
  return static_cast<uint16_t>(high + (low > 0x8000 || (low == 0x8000 && high & 1)));
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// An array of exactly the bytes it needs, so that an address sanitizer sees what lies beside it.
struct Array {
  Type type;
  Shape shape;
  std::vector<char> bytes;

  Array(Type type_, Shape shape_)
      : type(type_), shape(shape_), bytes(count() * (type_ == Type::bf16 ? 2 : 4), '\x7f') {}

  size_t count() const {
    size_t product = 1;
    for (int64_t size : shape) product *= size;
    return product;
  }
  double get(size_t i) const {
    float f;
    uint16_t h;
    int32_t n;
    switch (type) {
      case Type::f32: return std::memcpy(&f, &bytes[4 * i], 4), f;
      case Type::bf16: return std::memcpy(&h, &bytes[2 * i], 2), from_bfloat16(h);
      default: return std::memcpy(&n, &bytes[4 * i], 4), n;
    }
  }
  void set(size_t i, double value) {
    const float f = static_cast<float>(value);
    const uint16_t h = to_bfloat16(f);
    if (type == Type::f32) std::memcpy(&bytes[4 * i], &f, 4);
    if (type == Type::bf16) std::memcpy(&bytes[2 * i], &h, 2);
    if (type == Type::i32) {
      const int32_t n = static_cast<int32_t>(value);
      std::memcpy(&bytes[4 * i], &n, 4);
    }
  }
  Doubles values() const {
    Doubles result(count());
    for (size_t i = 0; i < result.size(); i++) result[i] = get(i);
    return result;
  }
};

inline Array filled(Type type, Shape shape, Doubles values) {
  Array array(type, shape);
  for (size_t i = 0; i < values.size(); i++) array.set(i, values[i]);
  return array;
}

inline Array random_array(Type type, Shape shape, double scale = 1, double mean = 0) {
  Array array(type, shape);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (size_t i = 0; i < array.count(); i++) array.set(i, mean + scale * uniform(generator));
  return array;
}

inline int run(Kernel *kernel, std::vector<Array *> arrays) {
  std::vector<void *> data;
  std::vector<int> ndims;
  std::vector<int64_t *> shapes;
  std::vector<const char *> dtypes;
  for (Array *array : arrays) {
    data.push_back(array->bytes.data());
    ndims.push_back(static_cast<int>(array->shape.size()));
    shapes.push_back(array->shape.data());
    dtypes.push_back(array->type == Type::f32 ? "float32" : array->type == Type::bf16 ? "bfloat16" : "int32");
  }
  return kernel(static_cast<int>(arrays.size()), data.data(), ndims.data(), shapes.data(), dtypes.data(), nullptr,
                nullptr);
}

inline void expect(bool condition, const std::string &what) {
  num_checks++;
  if (condition) return;
  if (num_failures++ < 20) std::printf("%s: %s\n", context.c_str(), what.c_str());
}

// Every element within tolerance of the largest one, or of `least` where all are small because terms cancel; NaN where
// a NaN is wanted.
inline void expect_near(const std::string &what, const Array &found, const Doubles &wanted, double tolerance,
                 double least = 1e-6) {
  double largest = least;
  for (double value : wanted)
    if (std::isfinite(value)) largest = std::fmax(largest, std::fabs(value));
  for (size_t i = 0; i < wanted.size(); i++) {
    const double got = found.get(i), error = std::fabs(got - wanted[i]);
    const bool same = std::isnan(wanted[i]) ? std::isnan(got) : got == wanted[i] || error <= tolerance * largest;
    if (!same) {
      char text[200];
      std::snprintf(text, sizeof text, "%s[%zu] is %.9g, not %.9g", what.c_str(), i, got, wanted[i]);
      return expect(false, text);
    }
  }
  expect(true, what);
}

inline double epsilon(Type type) { return type == Type::bf16 ? 1. / 256 : 1e-6; }
inline double as_operand(Type type, double x) {
  return type == Type::bf16 ? from_bfloat16(to_bfloat16(static_cast<float>(x))) : x;
}
inline const char *name_of(Type type) { return type == Type::bf16 ? "bfloat16" : "float32"; }

// Runs `body` with several numbers of threads.
template <class Body>
void with_threads(const std::string &what, Body body, std::vector<int> counts = {1, 2, 3, 5}) {
  for (int threads : counts) {
    context = what + ", threads " + std::to_string(threads);
    mindmodel_set_threads(threads);
    body();
  }
}

inline std::string sizes(std::vector<int64_t> values) {
  std::string text;
  for (int64_t value : values) text += " " + std::to_string(value);
  return text;
}

// y, and from dy also dx and the addition to dw, of one row
inline void norm_row(const double *x, const double *w, double eps, int64_t d, double *y,
                     const double *dy = nullptr, double *dx = nullptr, double *dw = nullptr) {
  double squares = 0, mean = 0;
  for (int64_t j = 0; j < d; j++) squares += x[j] * x[j];
  const double inverse = 1 / std::sqrt(squares / d + eps);
  for (int64_t j = 0; j < d; j++) y[j] = x[j] * inverse * w[j];
  if (!dy) return;
  for (int64_t j = 0; j < d; j++) mean += w[j] * dy[j] * x[j] * inverse / d;
  for (int64_t j = 0; j < d; j++) {
    dx[j] = (w[j] * dy[j] - x[j] * inverse * mean) * inverse;
    dw[j] += dy[j] * x[j] * inverse;
  }
}

// Of a file of their own: attention.cc and decode.cc.
struct AttentionCase {
  int64_t batch, seq, kv_heads, group, d;
};
void test_attention(Type type, bool normed, AttentionCase size, std::vector<int> threads = {1, 2, 3, 5});

struct DecoderCase {
  int64_t batch, layers, kv_heads, group, head_size, hidden, ffn, blocks, vocab, slots;
  bool normed;
};
void test_decode(const DecoderCase &size);
