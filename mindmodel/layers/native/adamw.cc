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

// settings f32[6] = (lr, beta1, beta2, eps, scale, apply), decays f32[n], then n times p, m, v, g f32 ->
// done f32[1] = apply. Works in place on p, m and v; touches nothing if apply is 0.
MINDMODEL_KERNEL(adamw) {
  constexpr int FIRST = 2;
  const Settings &by = *args.array<Settings>(0);
  const float *decays = args.array<float>(1);
  const int num_parameters = (args.num_arrays - FIRST - 1) / 4;
  *args.array<float>(args.num_arrays - 1) = by.apply;
  if (by.apply == 0.f) return SUCCESS;
#pragma omp parallel num_threads(num_threads())
  for (int i = 0; i < num_parameters; i++) {
    const int at = FIRST + 4 * i;
    float *p = args.array<float>(at), *m = args.array<float>(at + 1), *v = args.array<float>(at + 2);
    const float *g = args.array<float>(at + 3);
    const Index count = args.num_elements(at);
#pragma omp for nowait
    for (Index j = 0; j < count; j += SPAN)
      update(by, decays[i], p + j, m + j, v + j, g + j, std::min(SPAN, count - j));
  }
  return SUCCESS;
}

// As adamw -> f32[3, n], sums of squares of each parameter after the update, of its gradient g and of what was added.
MINDMODEL_KERNEL(adamw_with_norms) {
  constexpr int FIRST = 2;
  const Settings &by = *args.array<Settings>(0);
  const float *decays = args.array<float>(1);
  const int num_parameters = (args.num_arrays - FIRST - 1) / 4;
  float *norms = args.array<float>(args.num_arrays - 1);
  for (int i = 0; i < num_parameters; i++) {
    const int at = FIRST + 4 * i;
    float *p = args.array<float>(at), *m = args.array<float>(at + 1), *v = args.array<float>(at + 2);
    const float *g = args.array<float>(at + 3);
    const Index count = args.num_elements(at), num_spans = divide_up(count, SPAN);
    std::vector<double> sums(3 * num_spans);
#pragma omp parallel for num_threads(num_threads())
    for (Index s = 0; s < num_spans; s++) {
      const Index first = s * SPAN, size = std::min(SPAN, count - first);
      float before[SPAN];
      std::memcpy(before, p + first, size * sizeof(float));
      if (by.apply != 0.f) update(by, decays[i], p + first, m + first, v + first, g + first, size);
      double weight = 0, gradient = 0, added = 0;
#pragma omp simd reduction(+ : weight, gradient, added)
      for (Index j = 0; j < size; j++) {
        const float difference = p[first + j] - before[j];
        weight += static_cast<double>(p[first + j]) * p[first + j];
        gradient += static_cast<double>(g[first + j]) * g[first + j];
        added += static_cast<double>(difference) * difference;
      }
      const double found[] = {weight, gradient, added};
      for (int kind = 0; kind < 3; kind++) sums[kind * num_spans + s] = found[kind];
    }
    for (int kind = 0; kind < 3; kind++) {
      double total = 0;
      for (Index s = 0; s < num_spans; s++) total += sums[kind * num_spans + s];
      norms[kind * num_parameters + i] = static_cast<float>(total);
    }
  }
  return SUCCESS;
}
