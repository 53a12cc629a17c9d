// Runs every kernel over odd sizes, in float32 and bfloat16, with several numbers of threads, against plain references
// in double precision. Prints what differs and exits with 1, else with 0.
#include "check.h"

namespace {

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
    for (double mean : {0., 0., 2., 0.})  // of p, m, v, g
      for (Shape shape : {Shape{7, 130}, Shape{1}}) arrays.push_back(random_array(Type::f32, shape, 1, mean));
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
      for (size_t j = 0; j < arrays[i].values().size(); j++) {
        const double now = arrays[i].get(j), was = before[i].get(j), g = before[6 + i].get(j);
        weight += now * now, gradient += g * g, added += (now - was) * (now - was);
      }
      const Doubles found{norms.get(i), norms.get(2 + i), norms.get(4 + i)}, wanted{weight, gradient, added};
      for (int kind = 0; kind < 3; kind++)
        expect(std::fabs(found[kind] - wanted[kind]) <= 1e-5 * wanted[kind], "with norms: another sum of squares");
    }
    expect(done.get(0) == apply, "done is not apply");
    for (int i = 0; i < 2; i++) {
      Doubles p = before[i].values(), m = before[2 + i].values(), v = before[4 + i].values();
      const Doubles g = before[6 + i].values();
      for (size_t j = 0; j < p.size(); j++) {
        const double gradient = g[j] * scale;
        m[j] = beta1 * m[j] + (1 - beta1) * gradient;
        v[j] = beta2 * v[j] + (1 - beta2) * gradient * gradient;
        p[j] -= lr * (m[j] / (std::sqrt(v[j]) + eps) + decays[i] * p[j]);
      }
      for (int j = i; j < 8 && !apply; j += 2) expect(arrays[j].bytes == before[j].bytes, "touched");
      if (!apply) continue;
      expect_near("p", arrays[i], p, 1e-6);
      expect_near("m", arrays[2 + i], m, 1e-6);
      expect_near("v", arrays[4 + i], v, 1e-6);
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
  std::printf("%d checks, %d failures\n", num_checks, num_failures);
  return num_failures ? 1 : 0;
}
