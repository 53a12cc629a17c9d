// The optimizer's kernels: norms and the update, for all parameters at once.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernel.h"

using namespace mindmodel;

// The sum of all squares of x. Per chunk, not per thread: so it does not depend on the number of threads.
template <class T>
static double squares_of(const T *x, Index count) {
  constexpr Index CHUNK = 1 << 14;
  const Index num_chunks = divide_up(count, CHUNK);
  std::vector<double> sums(num_chunks);
#pragma omp parallel for num_threads(num_threads())
  for (Index c = 0; c < num_chunks; c++) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index j = c * CHUNK; j < std::min(count, (c + 1) * CHUNK); j++)
      sum += static_cast<double>(to_float(x[j])) * to_float(x[j]);
    sums[c] = sum;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// any number of f32 arrays -> f32[1], the sum of all squares
MINDMODEL_KERNEL(square_sum) {
  const int num_inputs = args.num_arrays - 1;
  double total = 0;
  for (int i = 0; i < num_inputs; i++) total += squares_of(args.array<float>(i), args.num_elements(i));
  *args.array<float>(num_inputs) = static_cast<float>(total);
  return SUCCESS;
}

// n arrays of T -> f32[n], the sum of all squares of each
MINDMODEL_KERNEL(square_sums) {
  const int num_inputs = args.num_arrays - 1;
  float *sums = args.array<float>(num_inputs);
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    for (int i = 0; i < num_inputs; i++)
      sums[i] = static_cast<float>(squares_of(args.array<T>(i), args.num_elements(i)));
    return SUCCESS;
  });
}

struct Settings {
  float lr, beta1, beta2, eps, scale, apply;
};

// The update of `count` numbers. Source: MindSpore's ops.AdamWeightDecay, g * scale for g.
// Not inlined, so that a number has the same bits wherever its update is called from.
__attribute__((noinline)) static void update(const Settings &by, float decay, float *p, float *m, float *v,
                                             const float *g, Index count) {
  const float lr = by.lr, beta1 = by.beta1, beta2 = by.beta2, eps = by.eps, scale = by.scale;
#pragma omp simd
  for (Index j = 0; j < count; j++) {
    const float gradient = g[j] * scale;
    m[j] = beta1 * m[j] + (1.f - beta1) * gradient;
    v[j] = beta2 * v[j] + (1.f - beta2) * gradient * gradient;
    p[j] -= lr * (m[j] / (std::sqrt(v[j]) + eps) + decay * p[j]);
  }
}

constexpr Index SPAN = 1 << 12;  // of numbers that are updated at once: all arrays of a span stay in the cache

// The inputs of both kernels below: settings f32[6] = (lr, beta1, beta2, eps, scale, apply), decays f32[n], then n
// arrays p, n m, n v and n g, all f32. They work in place on p, m and v, and touch nothing if apply is 0.
struct Inputs {
  static constexpr int FIRST = 2;

  explicit Inputs(const Arguments &args)
      : args(args), by(*args.array<Settings>(0)), num_parameters((args.num_arrays - FIRST - 1) / 4) {}

  Index num_spans(int i) const { return divide_up(args.num_elements(FIRST + i), SPAN); }

  // work(span, decay, p, m, v, g, count) for every span of every parameter; spans are numbered through.
  template <class Work>
  void for_spans(Work work) const {
    const float *decays = args.array<float>(1);
#pragma omp parallel num_threads(num_threads())
    for (int i = 0, first = 0; i < num_parameters; first += num_spans(i), i++) {
      const auto array = [&](int kind) { return args.array<float>(FIRST + kind * num_parameters + i); };
      float *p = array(0), *m = array(1), *v = array(2);
      const float *g = array(3);
      const Index count = args.num_elements(FIRST + i);
#pragma omp for nowait
      for (Index j = 0; j < count; j += SPAN)
        work(first + j / SPAN, decays[i], p + j, m + j, v + j, g + j, std::min(SPAN, count - j));
    }
  }

  const Arguments &args;
  const Settings &by;
  const int num_parameters;
};

// -> done f32[1] = apply
MINDMODEL_KERNEL(adamw) {
  const Inputs inputs(args);
  *args.array<float>(args.num_arrays - 1) = inputs.by.apply;
  if (inputs.by.apply == 0.f) return SUCCESS;
  inputs.for_spans([&](Index, float decay, float *p, float *m, float *v, const float *g, Index count) {
    update(inputs.by, decay, p, m, v, g, count);
  });
  return SUCCESS;
}

struct Squares {
  double weight = 0, gradient = 0, added = 0;
};

// Of a span, in float32: 256 summands at most in a lane of 16.
static Squares squares_of(const float *p, const float *before, const float *g, Index count) {
  float weight = 0, gradient = 0, added = 0;
#pragma omp simd reduction(+ : weight, gradient, added)
  for (Index j = 0; j < count; j++) {
    const float difference = p[j] - before[j];
    weight += p[j] * p[j];
    gradient += g[j] * g[j];
    added += difference * difference;
  }
  return {weight, gradient, added};
}

// -> f32[3, n], sums of squares of each parameter after the update, of its gradient g and of what was added
MINDMODEL_KERNEL(adamw_with_norms) {
  const Inputs inputs(args);
  const int n = inputs.num_parameters;
  Index num_spans = 0;
  for (int i = 0; i < n; i++) num_spans += inputs.num_spans(i);
  std::vector<Squares> of_spans(num_spans);
  inputs.for_spans([&](Index span, float decay, float *p, float *m, float *v, const float *g, Index count) {
    float before[SPAN];
    std::memcpy(before, p, count * sizeof(float));
    if (inputs.by.apply != 0.f) update(inputs.by, decay, p, m, v, g, count);
    of_spans[span] = squares_of(p, before, g, count);
  });
  float *sums = args.array<float>(args.num_arrays - 1);
  for (int i = 0, span = 0; i < n; i++) {
    Squares total;
    for (const int end = span + inputs.num_spans(i); span < end; span++) {
      total.weight += of_spans[span].weight;
      total.gradient += of_spans[span].gradient;
      total.added += of_spans[span].added;
    }
    sums[i] = total.weight, sums[n + i] = total.gradient, sums[2 * n + i] = total.added;
  }
  return SUCCESS;
}
