// Attention, forward and backward, against all scores at once.
#include "check.h"

namespace {

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
      if (w && normed) norm_row(from, w->data(), eps, size.d, &rows[i * size.d]);
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

}  // namespace

void test_attention(Type type, bool normed, AttentionCase size, std::vector<int> threads) {
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
