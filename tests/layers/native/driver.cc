// Runs every kernel over odd sizes, in float32 and bfloat16, with several numbers of threads, against plain references
// in double precision. Prints what differs and exits with 1, else with 0.
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
const char *mindmodel_gemm_backend();
Kernel linear_forward, linear_backward, rms_norm_forward, rms_norm_backward, residual_norm_backward;
Kernel swiglu_forward, swiglu_backward;
Kernel attention_forward, attention_backward, attention_qk_norm_forward, attention_qk_norm_backward;
Kernel head_loss, head_loss_forward, embedding_backward, square_sum, square_sums, adamw,
    adamw_with_norms, decode_step;
}

namespace {

const double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();
const double INFINITE = std::numeric_limits<double>::infinity();
std::mt19937 generator(1);
int num_failures = 0, num_checks = 0;
std::string context;

enum class Type { f32, bf16, i32 };

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  const uint32_t low = bits & 0xffff, high = bits >> 16;
  return static_cast<uint16_t>(high + (low > 0x8000 || (low == 0x8000 && high & 1)));
}

float from_bfloat16(uint16_t half) {
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

Array filled(Type type, Shape shape, Doubles values) {
  Array array(type, shape);
  for (size_t i = 0; i < values.size(); i++) array.set(i, values[i]);
  return array;
}

Array random_array(Type type, Shape shape, double scale = 1, double mean = 0) {
  Array array(type, shape);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (size_t i = 0; i < array.count(); i++) array.set(i, mean + scale * uniform(generator));
  return array;
}

int run(Kernel *kernel, std::vector<Array *> arrays) {
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

void expect(bool condition, const std::string &what) {
  num_checks++;
  if (condition) return;
  if (num_failures++ < 20) std::printf("%s: %s\n", context.c_str(), what.c_str());
}

// Every element within tolerance of the largest one, or of `least` where all are small because terms cancel; NaN where
// a NaN is wanted.
void expect_near(const std::string &what, const Array &found, const Doubles &wanted, double tolerance,
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

double epsilon(Type type) { return type == Type::bf16 ? 1. / 256 : 1e-6; }
double as_operand(Type type, double x) {
  return type == Type::bf16 ? from_bfloat16(to_bfloat16(static_cast<float>(x))) : x;
}
const char *name_of(Type type) { return type == Type::bf16 ? "bfloat16" : "float32"; }

// Runs `body` with several numbers of threads.
template <class Body>
void with_threads(const std::string &what, Body body, std::vector<int> counts = {1, 2, 3, 5}) {
  for (int threads : counts) {
    context = what + ", threads " + std::to_string(threads);
    mindmodel_set_threads(threads);
    body();
  }
}

std::string sizes(std::vector<int64_t> values) {
  std::string text;
  for (int64_t value : values) text += " " + std::to_string(value);
  return text;
}

void test_linear(Type type, int64_t m, int64_t n, int64_t k, std::vector<int> threads = {1, 2, 3, 5}) {
  Array x = random_array(type, {m, k}), w = random_array(Type::f32, {n, k}), dy = random_array(type, {m, n});
  const Doubles a = x.values(), c = dy.values();
  Doubles b = w.values(), y(m * n), dx(m * k), dw(n * k);
  for (double &value : b) value = as_operand(type, value);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++)
      for (int64_t p = 0; p < k; p++) {
        y[i * n + j] += a[i * k + p] * b[j * k + p];
        dx[i * k + p] += c[i * n + j] * b[j * k + p];
        dw[j * k + p] += c[i * n + j] * a[i * k + p];
      }
  const double tolerance = epsilon(type) + 1e-6 * std::sqrt(m + n + k);
  with_threads(std::string("linear ") + name_of(type) + sizes({m, n, k}), [&] {
    Array found(type, {m, n}), found_dx(type, {m, k}), found_dw(Type::f32, {n, k});
    expect(run(linear_forward, {&x, &w, &found}) == 0, "failed");
    expect_near("y", found, y, tolerance);
    expect(run(linear_backward, {&x, &w, &dy, &found_dx, &found_dw}) == 0, "failed");
    expect_near("dx", found_dx, dx, tolerance);
    expect_near("dw", found_dw, dw, tolerance);
    bool is_rounded = true;
    for (double value : found_dw.values()) is_rounded = is_rounded && value == as_operand(type, value);
    expect(is_rounded, "dw is not rounded");
  }, threads);
}

// y, and from dy also dx and the addition to dw, of one row
void norm_row(const double *x, const double *w, double eps, int64_t d, double *y, const double *dy, double *dx,
              double *dw) {
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

void test_rms_norm(Type type, int64_t m, int64_t d) {
  Array x = random_array(type, {m, d}), w = random_array(Type::f32, {d}, .3, 1), dy = random_array(type, {m, d});
  Array residual = random_array(type, {m, d}), eps = filled(Type::f32, {1}, {1e-3});
  const Doubles a = x.values(), weight = w.values(), g = dy.values();
  Doubles y(m * d), dx(m * d), dw(d);
  for (int64_t i = 0; i < m; i++)
    norm_row(&a[i * d], weight.data(), eps.get(0), d, &y[i * d], &g[i * d], &dx[i * d], dw.data());
  Doubles with_residual = residual.values();
  for (int64_t i = 0; i < m * d; i++) with_residual[i] += dx[i];
  with_threads(std::string("rms_norm ") + name_of(type) + sizes({m, d}), [&] {
    Array found(type, {m, d}), found_dx(type, {m, d}), found_dw(Type::f32, {d});
    expect(run(rms_norm_forward, {&x, &w, &eps, &found}) == 0, "failed");
    expect_near("y", found, y, 3 * epsilon(type));
    expect(run(rms_norm_backward, {&x, &w, &eps, &dy, &found_dx, &found_dw}) == 0, "failed");
    expect_near("dx", found_dx, dx, 3 * epsilon(type), 1);
    expect_near("dw", found_dw, dw, 1e-5);
    expect(run(residual_norm_backward, {&x, &w, &eps, &dy, &residual, &found_dx, &found_dw}) == 0, "failed");
    expect_near("dx with residual", found_dx, with_residual, 3 * epsilon(type));
    expect_near("dw with residual", found_dw, dw, 1e-5);
  });
}

void test_swiglu(Type type, int64_t m, int64_t f, int32_t num_blocks) {
  Array x = random_array(type, {m, 2 * f}, 8), dy = random_array(type, {m, f}),
        blocks = filled(Type::i32, {1}, {double(num_blocks)});
  Doubles y(m * f), dx(2 * m * f);
  const int64_t size = f / num_blocks;
  for (int64_t i = 0; i < m * f; i++) {
    const int64_t gate_at = i / size * 2 * size + i % size, up_at = gate_at + size;
    const double gate = x.get(gate_at), up = x.get(up_at), s = 1 / (1 + std::exp(-gate));
    y[i] = gate * s * up;
    dx[gate_at] = dy.get(i) * up * (s + gate * s * (1 - s));
    dx[up_at] = dy.get(i) * gate * s;
  }
  with_threads(std::string("swiglu ") + name_of(type) + sizes({m, f, num_blocks}), [&] {
    Array found(type, {m, f}), found_dx(type, {m, 2 * f});
    expect(run(swiglu_forward, {&x, &blocks, &found}) == 0, "failed");
    expect_near("y", found, y, epsilon(type));
    expect(run(swiglu_backward, {&x, &blocks, &dy, &found_dx}) == 0, "failed");
    expect_near("dx", found_dx, dx, epsilon(type));
  });
}

struct AttentionCase {
  int64_t batch, seq, kv_heads, group, d;
};

// Attention of one query head by the book, all scores at once, and its gradients.
void attend(int64_t s, int64_t d, const Doubles &q, const Doubles &k, const Doubles &v, const Doubles &out_gradient,
            Doubles &out, Doubles &lse, Doubles &dq, Doubles &dk, Doubles &dv) {
  for (int64_t i = 0; i < s; i++) {
    Doubles p(i + 1), dp(i + 1);
    double sum = 0, product = 0;
    for (int64_t j = 0; j <= i; j++) {
      for (int64_t c = 0; c < d; c++) p[j] += q[i * d + c] * k[j * d + c] / std::sqrt(d);
      sum += std::exp(p[j]);
    }
    lse[i] = std::log(sum);
    for (int64_t j = 0; j <= i; j++) {
      p[j] = std::exp(p[j]) / sum;
      for (int64_t c = 0; c < d; c++) {
        out[i * d + c] += p[j] * v[j * d + c];
        dp[j] += out_gradient[i * d + c] * v[j * d + c];
        dv[j * d + c] += p[j] * out_gradient[i * d + c];
      }
      product += p[j] * dp[j];
    }
    for (int64_t j = 0; j <= i; j++)
      for (int64_t c = 0; c < d; c++) {
        const double dscore = p[j] * (dp[j] - product) / std::sqrt(d);
        dq[i * d + c] += dscore * k[j * d + c];
        dk[j * d + c] += dscore * q[i * d + c];
      }
  }
}

// direction 1 rotates, -1 rotates back
void rotate(int64_t s, int64_t d, const Array &cos, const Array &sin, double direction, Doubles &rows) {
  for (int64_t i = 0; i < s; i++)
    for (int64_t j = 0; j < d / 2; j++) {
      double &a = rows[i * d + j], &b = rows[i * d + j + d / 2];
      const double c = cos.get(i * d + j), t = direction * sin.get(i * d + j), old = a;
      a = a * c - b * t;
      b = b * c + old * t;
    }
}

struct AttentionReference {
  AttentionCase size;
  Doubles x, q_w, k_w, dout, out, lse, dx, dq_w, dk_w;
  double eps;
  bool normed;
  const Array &cos, &sin;

  int64_t width() const { return (size.group + 2) * size.kv_heads * size.d; }
  int64_t row(int64_t b, int64_t i, int64_t slot) const { return (b * size.seq + i) * width() + slot * size.d; }

  // One head's rows, normalised and rotated.
  Doubles load(int64_t b, int64_t slot, const Doubles *w) const {
    Doubles rows(size.seq * size.d);
    for (int64_t i = 0; i < size.seq; i++) {
      const double *from = &x[row(b, i, slot)];
      if (w && normed) norm_row(from, w->data(), eps, size.d, &rows[i * size.d], nullptr, nullptr, nullptr);
      else std::copy(from, from + size.d, &rows[i * size.d]);
    }
    if (w) rotate(size.seq, size.d, cos, sin, 1, rows);
    return rows;
  }

  void store(int64_t b, int64_t slot, const Doubles *w, Doubles *dw, Doubles rows) {
    if (w) rotate(size.seq, size.d, cos, sin, -1, rows);
    Doubles y(size.d);
    for (int64_t i = 0; i < size.seq; i++) {
      const int64_t at = row(b, i, slot);
      if (w && normed) norm_row(&x[at], w->data(), eps, size.d, y.data(), &rows[i * size.d], &dx[at], dw->data());
      else std::copy(&rows[i * size.d], &rows[i * size.d] + size.d, &dx[at]);
    }
  }

  void compute() {
    const int64_t s = size.seq, d = size.d, heads = size.group * size.kv_heads;
    for (int64_t b = 0; b < size.batch; b++)
      for (int64_t g = 0; g < size.kv_heads; g++) {
        const int64_t key_slot = g * (size.group + 2) + size.group;
        const Doubles k = load(b, key_slot, &k_w), v = load(b, key_slot + 1, nullptr);
        Doubles dk(s * d), dv(s * d);
        for (int64_t r = 0; r < size.group; r++) {
          const int64_t head = g * size.group + r, slot = g * (size.group + 2) + r;
          Doubles o(s * d), go(s * d), l(s), dq(s * d);
          for (int64_t i = 0; i < s * d; i++) go[i] = dout[(b * s + i / d) * heads * d + head * d + i % d];
          attend(s, d, load(b, slot, &q_w), k, v, go, o, l, dq, dk, dv);
          for (int64_t i = 0; i < s * d; i++) out[(b * s + i / d) * heads * d + head * d + i % d] = o[i];
          for (int64_t i = 0; i < s; i++) lse[(b * heads + head) * s + i] = l[i];
          store(b, slot, &q_w, &dq_w, dq);
        }
        store(b, key_slot, &k_w, &dk_w, dk);
        store(b, key_slot + 1, nullptr, nullptr, dv);
      }
  }
};

void test_attention(Type type, bool normed, AttentionCase size, std::vector<int> threads = {1, 2, 3, 5}) {
  const int64_t rows = size.batch * size.seq, d = size.d, heads = size.group * size.kv_heads;
  const Shape in{rows, (heads + 2 * size.kv_heads) * d}, result{rows, heads * d};
  Array x = random_array(type, in, 2), dout = random_array(type, result), cos(Type::f32, {size.seq, d}), sin = cos;
  Array counts = filled(Type::i32, {2}, {double(heads), double(size.kv_heads)}), eps = filled(Type::f32, {1}, {1e-2});
  Array q_w = random_array(Type::f32, {d}, .5, 1), k_w = random_array(Type::f32, {d}, .5, 1);
  for (int64_t i = 0; i < size.seq * d; i++) {
    const double angle = i / d * std::pow(100, -2. * (i % d % (d / 2)) / d);
    cos.set(i, std::cos(angle));
    sin.set(i, std::sin(angle));
  }
  AttentionReference want{size,
                          x.values(),
                          q_w.values(),
                          k_w.values(),
                          dout.values(),
                          Doubles(rows * heads * d),
                          Doubles(heads * rows),
                          Doubles(x.count()),
                          Doubles(d),
                          Doubles(d),
                          eps.get(0),
                          normed,
                          cos,
                          sin};
  want.compute();
  const double tolerance = type == Type::bf16 ? 6 * epsilon(type) : 1e-5;
  const std::string what = std::string(normed ? "attention_qk_norm " : "attention ") + name_of(type);
  with_threads(
      what + sizes({size.batch, size.seq, size.kv_heads, size.group, d}),
      [&] {
        Array out(type, result), lse(Type::f32, {size.batch, heads, size.seq}), dx(type, in), dq_w(Type::f32, {d}),
            dk_w = dq_w;
        std::vector<Array*> inputs{&x, &cos, &sin, &counts};
        if (normed) inputs.insert(inputs.end(), {&q_w, &k_w, &eps});
        std::vector<Array*> forward = inputs, backward = inputs;
        forward.insert(forward.end(), {&out, &lse});
        backward.insert(backward.end(), {&out, &lse, &dout, &dx});
        if (normed) backward.insert(backward.end(), {&dq_w, &dk_w});
        expect(run(normed ? attention_qk_norm_forward : attention_forward, forward) == 0, "failed");
        expect_near("o", out, want.out, tolerance);
        expect_near("lse", lse, want.lse, tolerance);
        expect(run(normed ? attention_qk_norm_backward : attention_backward, backward) == 0, "failed");
        expect_near("dx", dx, want.dx, tolerance);
        if (normed) {
          expect_near("dq_w", dq_w, want.dq_w, 4 * tolerance, std::sqrt(rows));
          expect_near("dk_w", dk_w, want.dk_w, 4 * tolerance, std::sqrt(rows));
          const Array first = dq_w, first_dx = dx;
          run(attention_qk_norm_backward, backward);
          expect(first.bytes == dq_w.bytes && first_dx.bytes == dx.bytes, "differs when repeated");
        }
      },
      threads);
}

enum class Labels { some, none, all };

void test_head_loss(Type type, int64_t m, int64_t d, int64_t v, Labels kept, double z_loss,
                    std::vector<int> threads = {1, 2, 3, 5}) {
  Array x = random_array(type, {m, d}, 2), w = random_array(Type::f32, {v, d}), labels(Type::i32, {m});
  Array z = filled(Type::f32, {1}, {z_loss});
  const Doubles a = x.values();
  Doubles b = w.values(), sums(2), dx(m * d), dw(v * d), p(v);
  for (double &value : b) value = as_operand(type, value);
  for (int64_t i = 0; i < m; i++) {
    const bool ignored = kept == Labels::none || (kept == Labels::some && i % 3 == 1);
    const int64_t label = ignored ? -100 : static_cast<int64_t>(generator() % v);
    labels.set(i, static_cast<double>(label));
    if (ignored) continue;
    double sum = 0;
    for (int64_t j = 0; j < v; j++) {
      p[j] = 0;
      for (int64_t c = 0; c < d; c++) p[j] += a[i * d + c] * b[j * d + c];
      p[j] = as_operand(type, p[j]);
      sum += std::exp(p[j]);
    }
    const double log_sum = std::log(sum), entropy = log_sum - p[label];
    sums[0] += entropy + z.get(0) * log_sum * log_sum;
    sums[1] += entropy;
    for (int64_t j = 0; j < v; j++) {
      const double g = std::exp(p[j] - log_sum) * (1 + 2 * z.get(0) * log_sum) - (j == label);
      for (int64_t c = 0; c < d; c++) {
        dx[i * d + c] += g * b[j * d + c];
        dw[j * d + c] += g * a[i * d + c];
      }
    }
  }
  const double tolerance = type == Type::bf16 ? 3 * epsilon(type) : 1e-5;
  with_threads(std::string("head_loss ") + name_of(type) + sizes({m, d, v}), [&] {
    Array found(Type::f32, {2}), evaluated(Type::f32, {2}), found_dx(type, {m, d}), found_dw(Type::f32, {v, d});
    expect(run(head_loss, {&x, &w, &labels, &z, &found, &found_dx, &found_dw}) == 0, "failed");
    expect_near("sums", found, sums, tolerance);
    expect_near("dx", found_dx, dx, tolerance, 1);
    expect_near("dw", found_dw, dw, tolerance, 1);
    expect(run(head_loss_forward, {&x, &w, &labels, &z, &evaluated}) == 0, "failed");
    expect(evaluated.bytes == found.bytes, "the losses with and without gradients differ");
  }, threads);
}

void test_embedding(Type type, int64_t n, int64_t d, int64_t v) {
  Array ids(Type::i32, {n}), dy = random_array(type, {n, d});
  Doubles want(v * d);
  for (int64_t i = 0; i < n; i++) {
    ids.set(i, static_cast<double>(generator() % v));
    for (int64_t j = 0; j < d; j++) want[static_cast<int64_t>(ids.get(i)) * d + j] += dy.get(i * d + j);
  }
  with_threads(std::string("embedding ") + name_of(type) + sizes({n, d, v}), [&] {
    Array found(Type::f32, {v, d});
    expect(run(embedding_backward, {&ids, &dy, &found}) == 0, "failed");
    expect_near("dtable", found, want, 1e-6);
  });
}

void test_square_sum() {
  Array a = random_array(Type::f32, {3, 40000}), b = random_array(Type::f32, {1}),
        c = random_array(Type::f32, {5, 2, 3});
  double want = 0;
  for (const Array *array : {&a, &b, &c})
    for (double value : array->values()) want += value * value;
  Array found(Type::f32, {1});
  with_threads("square_sum", [&] {
    expect(run(square_sum, {&a, &b, &c, &found}) == 0, "failed");
    expect_near("sum", found, {want}, 1e-7);
  });
  c.set(7, NOT_A_NUMBER);
  run(square_sum, {&a, &b, &c, &found});
  expect(std::isnan(found.get(0)), "a NaN is lost");
  c.set(7, -INFINITE);
  run(square_sum, {&a, &b, &c, &found});
  expect(found.get(0) == INFINITE, "an infinity is lost");
}

void test_adamw(double apply) {
  const double lr = .01, beta1 = .9, beta2 = .99, eps = 1e-3, scale = .5;
  const Doubles decays{.1, 0};
  Array settings = filled(Type::f32, {6}, {lr, beta1, beta2, eps, scale, apply}),
        decay = filled(Type::f32, {2}, decays);
  with_threads("adamw", [&] {
    std::vector<Array> arrays;
    for (Shape shape : {Shape{7, 130}, Shape{1}})
      for (double mean : {0., 0., 2., 0.}) arrays.push_back(random_array(Type::f32, shape, 1, mean));
    const std::vector<Array> before = arrays;
    Array done(Type::f32, {1});
    std::vector<Array *> arguments{&settings, &decay};
    for (Array &array : arrays) arguments.push_back(&array);
    arguments.push_back(&done);
    std::vector<Array> again = arrays;
    expect(run(adamw, arguments) == 0, "failed");
    Array norms(Type::f32, {3, 2});
    std::vector<Array *> same{&settings, &decay};
    for (Array &array : again) same.push_back(&array);
    same.push_back(&norms);
    expect(run(adamw_with_norms, same) == 0, "with norms: failed");
    for (size_t i = 0; i < arrays.size(); i++) expect(again[i].bytes == arrays[i].bytes, "with norms: other bits");
    for (int i = 0; i < 2; i++) {
      double weight = 0, gradient = 0, added = 0;
      for (size_t j = 0; j < arrays[4 * i].values().size(); j++) {
        const double now = arrays[4 * i].get(j), was = before[4 * i].get(j), g = before[4 * i + 3].get(j);
        weight += now * now, gradient += g * g, added += (now - was) * (now - was);
      }
      const Doubles found{norms.get(i), norms.get(2 + i), norms.get(4 + i)}, wanted{weight, gradient, added};
      for (int kind = 0; kind < 3; kind++)
        expect(std::fabs(found[kind] - wanted[kind]) <= 1e-5 * wanted[kind], "with norms: another sum of squares");
    }
    expect(done.get(0) == apply, "done is not apply");
    for (int i = 0; i < 2; i++) {
      Doubles p = before[4 * i].values(), m = before[4 * i + 1].values(), v = before[4 * i + 2].values();
      const Doubles g = before[4 * i + 3].values();
      for (size_t j = 0; j < p.size(); j++) {
        const double gradient = g[j] * scale;
        m[j] = beta1 * m[j] + (1 - beta1) * gradient;
        v[j] = beta2 * v[j] + (1 - beta2) * gradient * gradient;
        p[j] -= lr * (m[j] / (std::sqrt(v[j]) + eps) + decays[i] * p[j]);
      }
      for (int j = 0; j < 4 && !apply; j++) expect(arrays[4 * i + j].bytes == before[4 * i + j].bytes, "touched");
      if (!apply) continue;
      expect_near("p", arrays[4 * i], p, 1e-6);
      expect_near("m", arrays[4 * i + 1], m, 1e-6);
      expect_near("v", arrays[4 * i + 2], v, 1e-6);
    }
  });
}

void test_refusals(Type type) {
  context = std::string("refusals ") + name_of(type);
  Array x = random_array(type, {3, 4}), w = random_array(Type::f32, {5, 4}), z = filled(Type::f32, {1}, {0});
  Array sums(Type::f32, {2}), dx = x, dw = w;
  Array high = filled(Type::i32, {3}, {0, 5, 1}), negative = filled(Type::i32, {3}, {0, -1, 1});
  expect(run(head_loss, {&x, &w, &high, &z, &sums, &dx, &dw}) != 0, "head_loss takes a label beyond the vocabulary");
  expect(run(head_loss_forward, {&x, &w, &high, &z, &sums}) != 0,
         "head_loss_forward takes a label beyond the vocabulary");
  expect(run(embedding_backward, {&high, &x, &dw}) != 0, "embedding_backward takes an id beyond the table");
  expect(run(embedding_backward, {&negative, &x, &dw}) != 0, "embedding_backward takes a negative id");
  Array whole = filled(Type::i32, {3, 4}, Doubles(12, 1)), y(type, {3, 5});
  expect(run(linear_forward, {&whole, &w, &y}) != 0, "linear_forward takes integers");
  Array heads = filled(Type::i32, {2}, {2, 1}), table(Type::f32, {3, 2}), lse(Type::f32, {1, 2, 3});
  expect(run(attention_forward, {&x, &table, &table, &heads, &x, &lse}) != 0, "attention takes rows of a wrong width");
}

// What is not finite must reach the loss and the gradients' norm, or a broken step would pass for a good one.
void test_not_finite(Type type) {
  for (double value : {NOT_A_NUMBER, INFINITE}) {
    context = std::string("not finite ") + name_of(type);
    Array x = random_array(type, {5, 6}), w = random_array(Type::f32, {7, 6}, .5, 1), y(type, {5, 7}), dx = x, dw = w;
    Array dy = random_array(type, {5, 7}), one(Type::f32, {1}), blocks = filled(Type::i32, {1}, {1});
    one.set(0, 1e-6);
    x.set(2 * 6 + 3, value);
    run(linear_forward, {&x, &w, &y});
    for (int64_t j = 0; j < 7; j++) expect(!std::isfinite(y.get(2 * 7 + j)), "linear_forward");
    expect(std::isfinite(y.get(7)), "linear_forward: another row");
    run(linear_backward, {&x, &w, &dy, &dx, &dw});
    for (int64_t j = 0; j < 7; j++) expect(!std::isfinite(dw.get(j * 6 + 3)), "linear_backward");
    Array weight = random_array(Type::f32, {6}), norm = x, gated(type, {5, 3});
    run(rms_norm_forward, {&x, &weight, &one, &norm});
    expect(std::isnan(norm.get(2 * 6 + 3)), "rms_norm_forward");
    run(swiglu_forward, {&x, &blocks, &gated});
    expect(!std::isfinite(gated.get(2 * 3)), "swiglu_forward");
    Array labels = filled(Type::i32, {5}, {0, 1, 2, 3, 4}), sums(Type::f32, {2});
    run(head_loss, {&x, &w, &labels, &one, &sums, &dx, &dw});
    expect(!std::isfinite(sums.get(0)) && !std::isfinite(dx.get(2 * 6)) && !std::isfinite(dw.get(0)), "head_loss");
    Array heads = filled(Type::i32, {2}, {1, 1}), cos = filled(Type::f32, {5, 2}, Doubles(10, 1)),
          sin = filled(Type::f32, {5, 2}, Doubles(10, 0));
    Array out(type, {5, 2}), lse(Type::f32, {1, 1, 5}), dout = random_array(type, {5, 2});
    run(attention_forward, {&x, &cos, &sin, &heads, &out, &lse});
    expect(!std::isfinite(out.get(4 * 2)) || !std::isfinite(lse.get(4)), "attention_forward");
    run(attention_backward, {&x, &cos, &sin, &heads, &out, &lse, &dout, &dx});
    expect(!std::isfinite(dx.get(2 * 6 + 2)) , "attention_backward");
  }
}

struct DecoderCase {
  int64_t batch, layers, kv_heads, group, head_size, hidden, ffn, blocks, vocab, slots;
  bool normed;
};

// y[rows] of one row: w[rows, size] x, added to what y holds
void add_product(const double *w, int64_t rows, int64_t size, const double *x, double *y) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < size; j++) y[i] += w[i * size + j] * x[j];
}

// A small decoder's arrays in the kernel's order, and the plain way through it, one sequence after another.
struct Decoder {
  DecoderCase c;
  double eps = 1e-5;
  std::vector<Array> arrays;  // ids, position, sizes, eps, cos, sin, embedding, norm, head, then those of the layers
  std::vector<Doubles> values, keys;  // of layer and sequence: what has been written so far

  explicit Decoder(const DecoderCase &size) : c(size), values(c.layers * c.batch), keys(c.layers * c.batch) {
    const int64_t d = c.head_size, width = c.kv_heads * c.group * d, qkv = width + 2 * c.kv_heads * d;
    const auto add = [&](Shape shape, double scale = .5, double mean = 0) {
      arrays.push_back(random_array(Type::f32, shape, scale, mean));
    };
    arrays.push_back(Array(Type::i32, {c.batch}));
    arrays.push_back(Array(Type::i32, {1}));
    const double heads = static_cast<double>(c.kv_heads * c.group);
    arrays.push_back(filled(Type::i32, {4}, {double(c.layers), heads, double(c.kv_heads), double(c.blocks)}));
    arrays.push_back(filled(Type::f32, {1}, {eps}));
    eps = arrays[3].get(0);
    add({c.slots, d}), add({c.slots, d}), add({c.vocab, c.hidden}), add({c.hidden}, .5, 1), add({c.vocab, c.hidden});
    for (int64_t i = 0; i < c.layers; i++) {
      add({c.hidden}, .5, 1), add({qkv, c.hidden}), add({c.hidden, width}), add({c.hidden}, .5, 1);
      add({2 * c.ffn, c.hidden}), add({c.hidden, c.ffn});
      for (int cache = 0; cache < 2; cache++)
        arrays.push_back(filled(Type::f32, {c.batch * c.kv_heads * c.slots, d},
                                Doubles(c.batch * c.kv_heads * c.slots * d, NOT_A_NUMBER)));
      if (c.normed) add({d}, .5, 1), add({d}, .5, 1);
    }
  }

  int per_layer() const { return c.normed ? 10 : 8; }
  Doubles at(int i) const { return arrays[i].values(); }

  void turn(const double *head, const Doubles *norm, int64_t position, double *turned) const {
    const int64_t d = c.head_size;
    Doubles normed(head, head + d);
    if (norm) norm_row(head, norm->data(), eps, d, normed.data(), nullptr, nullptr, nullptr);
    for (int64_t j = 0; j < d; j++) {
      const double other = j < d / 2 ? -normed[j + d / 2] : normed[j - d / 2];
      turned[j] = normed[j] * arrays[4].get(position * d + j) + other * arrays[5].get(position * d + j);
    }
  }

  Doubles attend(int64_t layer, int64_t sequence, const Doubles &qkv, int64_t position) {
    const int64_t d = c.head_size, first = 9 + layer * per_layer();
    const Doubles q_norm = c.normed ? at(first + 8) : Doubles(), k_norm = c.normed ? at(first + 9) : Doubles();
    Doubles &k = keys[layer * c.batch + sequence], &v = values[layer * c.batch + sequence], out;
    k.resize((position + 1) * c.kv_heads * d), v.resize(k.size());
    for (int64_t g = 0; g < c.kv_heads; g++) {
      const double *heads = &qkv[g * (c.group + 2) * d];
      turn(heads + c.group * d, c.normed ? &k_norm : nullptr, position, &k[(position * c.kv_heads + g) * d]);
      for (int64_t j = 0; j < d; j++) v[(position * c.kv_heads + g) * d + j] = heads[(c.group + 1) * d + j];
      for (int64_t h = 0; h < c.group; h++) {
        Doubles q(d), shares(position + 1), sum(d);
        turn(heads + h * d, c.normed ? &q_norm : nullptr, position, q.data());
        double total = 0;
        for (int64_t t = 0; t <= position; t++) {
          for (int64_t j = 0; j < d; j++) shares[t] += q[j] * k[(t * c.kv_heads + g) * d + j] / std::sqrt(double(d));
          total += shares[t] = std::exp(shares[t]);
        }
        for (int64_t t = 0; t <= position; t++)
          for (int64_t j = 0; j < d; j++) sum[j] += shares[t] / total * v[(t * c.kv_heads + g) * d + j];
        out.insert(out.end(), sum.begin(), sum.end());
      }
    }
    return out;
  }

  Doubles logits(int64_t sequence, int64_t id, int64_t position) {
    Doubles x(c.hidden), normed(c.hidden);
    for (int64_t j = 0; j < c.hidden; j++) x[j] = arrays[6].get(id * c.hidden + j);
    const int64_t width = c.kv_heads * c.group * c.head_size, block = c.ffn / c.blocks;
    for (int64_t i = 0; i < c.layers; i++) {
      const int first = static_cast<int>(9 + i * per_layer());
      Doubles qkv(width + 2 * c.kv_heads * c.head_size), gate_up(2 * c.ffn), active(c.ffn);
      norm_row(x.data(), at(first).data(), eps, c.hidden, normed.data(), nullptr, nullptr, nullptr);
      add_product(at(first + 1).data(), qkv.size(), c.hidden, normed.data(), qkv.data());
      add_product(at(first + 2).data(), c.hidden, width, attend(i, sequence, qkv, position).data(), x.data());
      norm_row(x.data(), at(first + 3).data(), eps, c.hidden, normed.data(), nullptr, nullptr, nullptr);
      add_product(at(first + 4).data(), 2 * c.ffn, c.hidden, normed.data(), gate_up.data());
      for (int64_t j = 0; j < c.ffn; j++) {
        const double *gate = &gate_up[j / block * 2 * block + j % block];
        active[j] = gate[0] / (1 + std::exp(-gate[0])) * gate[block];
      }
      add_product(at(first + 5).data(), c.hidden, c.ffn, active.data(), x.data());
    }
    norm_row(x.data(), at(7).data(), eps, c.hidden, normed.data(), nullptr, nullptr, nullptr);
    Doubles result(c.vocab);
    add_product(at(8).data(), c.vocab, c.hidden, normed.data(), result.data());
    return result;
  }

  int step(Array &found) {
    std::vector<Array *> all;
    for (Array &array : arrays) all.push_back(&array);
    all.push_back(&found);
    return run(decode_step, all);
  }
};

// As many tokens as there are slots; one more, and an id that is no word, are refused.
void test_decode(const DecoderCase &size) {
  const std::string name = "decode_step" + sizes({size.batch, size.layers, size.kv_heads, size.group, size.head_size});
  const std::mt19937 same = generator;
  with_threads(name, [&] {
    generator = same;
    Decoder decoder(size);
    Array found(Type::f32, {size.batch, size.vocab});
    for (int64_t position = 0; position < size.slots; position++) {
      Doubles wanted;
      decoder.arrays[1].set(0, double(position));
      for (int64_t b = 0; b < size.batch; b++) {
        const int64_t id = (7 * position + 3 * b) % size.vocab;
        decoder.arrays[0].set(b, double(id));
        const Doubles logits = decoder.logits(b, id, position);
        wanted.insert(wanted.end(), logits.begin(), logits.end());
      }
      expect(decoder.step(found) == 0, "failed");
      expect_near("logits", found, wanted, 2e-5);
    }
    decoder.arrays[1].set(0, double(size.slots));
    expect(decoder.step(found) != 0, "a position beyond the cache was taken");
    decoder.arrays[1].set(0, 0);
    for (double id : {-1., double(size.vocab)}) {
      decoder.arrays[0].set(size.batch - 1, id);
      expect(decoder.step(found) != 0, "an id that is no word was taken");
    }
  }, {1, 2, 5});
}

void test_all(Type type) {
  for (int64_t m : {1, 13, 100})
    for (int64_t n : {1, 17, 70})
      for (int64_t k : {1, 5, 33}) test_linear(type, m, n, k);
  test_linear(type, 70, 40, 600);
  test_linear(type, 3, 4200, 2);
  test_linear(type, 1, 140, 34000, {2});
  for (int64_t m : {1, 7, 130})
    for (int64_t d : {1, 3, 64, 100}) test_rms_norm(type, m, d);
  for (int64_t m : {1, 9})
    for (int32_t num_blocks : {1, 2, 4})
      for (int64_t size : {1, 21}) test_swiglu(type, m, size * num_blocks, num_blocks);
  for (bool normed : {false, true}) {
    for (int64_t seq : {1, 7, 129})
      for (int64_t d : {2, 6, 34})
        for (int64_t group : {1, 3}) test_attention(type, normed, {2, seq, 1, group, d}, {2, 5});
    test_attention(type, normed, {1, 200, 1, 1, 34});
    test_attention(type, normed, {1, 60, 3, 2, 16});
    test_attention(type, normed, {2000, 1, 1, 1, 2}, {3});
  }
  for (Labels kept : {Labels::some, Labels::none, Labels::all})
    for (int64_t m : {1, 20})
      for (int64_t v : {1, 2, 67})
        for (int64_t d : {1, 18}) test_head_loss(type, m, d, v, kept, kept == Labels::all ? 0 : .01);
  test_head_loss(type, 600, 3, 5, Labels::some, .01, {2, 3});
  test_head_loss(type, 2, 4200, 1100, Labels::some, .01, {2});
  for (int64_t n : {1, 40})
    for (int64_t d : {1, 2, 19})
      for (int64_t v : {1, 11}) test_embedding(type, n, d, v);
  test_refusals(type);
  test_not_finite(type);
}

}  // namespace

int main() {
  test_all(Type::f32);
  test_all(Type::bf16);
  test_square_sum();
  test_adamw(1);
  test_adamw(0);
  for (bool normed : {false, true}) {
    test_decode({1, 1, 1, 1, 2, 3, 1, 1, 2, 3, normed});
    test_decode({5, 2, 2, 3, 6, 19, 20, 2, 37, 4, normed});
    test_decode({2, 1, 3, 1, 34, 70, 33, 1, 5, 2, normed});
  }
  test_decode({9, 3, 1, 4, 16, 130, 68, 4, 1100, 2, false});
  std::printf("%d checks, %d failures, gemm: %s\n", num_checks, num_failures, mindmodel_gemm_backend());
  return num_failures ? 1 : 0;
}
