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

constexpr Index SPAN = 1 << 12;  // of numbers that are updated at once: all arrays of a span stay in the cache

// A parameter p with its moments m and v and its gradient g.
struct Parameter {
  float *p, *m, *v;
  const float *g;
  float decay;
  Index count;

  // The update of `size` numbers from `first` on. Source: MindSpore's ops.AdamWeightDecay, g * scale for g.
  // Not inlined, so that a number has the same bits wherever its update is called from.
  __attribute__((noinline)) void update(const Settings &by, Index first, Index size) const {
    const float lr = by.lr, beta1 = by.beta1, beta2 = by.beta2, eps = by.eps, scale = by.scale, decay = this->decay;
    float *p = this->p + first, *m = this->m + first, *v = this->v + first;
    const float *g = this->g + first;
#pragma omp simd
    for (Index j = 0; j < size; j++) {
      const float gradient = g[j] * scale;
      m[j] = beta1 * m[j] + (1.f - beta1) * gradient;
      v[j] = beta2 * v[j] + (1.f - beta2) * gradient * gradient;
      p[j] -= lr * (m[j] / (std::sqrt(v[j]) + eps) + decay * p[j]);
    }
  }
};

// Those of the kernels below.
static std::vector<Parameter> parameters_of(const Arguments &args) {
  constexpr int FIRST = 2;
  const int n = (args.num_arrays - FIRST - 1) / 4;
  std::vector<Parameter> parameters;
  for (int i = 0; i < n; i++) {
    const auto array = [&](int kind) { return args.array<float>(FIRST + kind * n + i); };
    parameters.push_back(
        {array(0), array(1), array(2), array(3), args.array<float>(1)[i], args.num_elements(FIRST + i)});
  }
  return parameters;
}

// settings f32[6] = (lr, beta1, beta2, eps, scale, apply), decays f32[n], then n arrays p, n m, n v and n g, all f32 ->
// done f32[1] = apply. Works in place on p, m and v; touches nothing if apply is 0.
MINDMODEL_KERNEL(adamw) {
  const Settings &by = *args.array<Settings>(0);
  const std::vector<Parameter> parameters = parameters_of(args);
  *args.array<float>(args.num_arrays - 1) = by.apply;
  if (by.apply == 0.f) return SUCCESS;
#pragma omp parallel num_threads(num_threads())
  for (const Parameter &parameter : parameters) {
#pragma omp for nowait
    for (Index first = 0; first < parameter.count; first += SPAN)
      parameter.update(by, first, std::min(SPAN, parameter.count - first));
  }
  return SUCCESS;
}

// As adamw -> f32[3, n], sums of squares of each parameter after the update, of its gradient g and of what was added.
MINDMODEL_KERNEL(adamw_with_norms) {
  const Settings &by = *args.array<Settings>(0);
  const std::vector<Parameter> parameters = parameters_of(args);
  float *norms = args.array<float>(args.num_arrays - 1);
  for (size_t i = 0; i < parameters.size(); i++) {
    const Parameter &parameter = parameters[i];
    const Index num_spans = divide_up(parameter.count, SPAN);
    std::vector<double> sums(3 * num_spans);
#pragma omp parallel for num_threads(num_threads())
    for (Index s = 0; s < num_spans; s++) {
      const Index first = s * SPAN, size = std::min(SPAN, parameter.count - first);
      const float *p = parameter.p + first, *g = parameter.g + first;
      float before[SPAN];
      std::memcpy(before, p, size * sizeof(float));
      if (by.apply != 0.f) parameter.update(by, first, size);
      double weight = 0, gradient = 0, added = 0;
#pragma omp simd reduction(+ : weight, gradient, added)
      for (Index j = 0; j < size; j++) {
        const float difference = p[j] - before[j];
        weight += static_cast<double>(p[j]) * p[j];
        gradient += static_cast<double>(g[j]) * g[j];
        added += static_cast<double>(difference) * difference;
      }
      const double found[] = {weight, gradient, added};
      for (int kind = 0; kind < 3; kind++) sums[kind * num_spans + s] = found[kind];
    }
    for (int kind = 0; kind < 3; kind++) {
      double total = 0;
      for (Index s = 0; s < num_spans; s++) total += sums[kind * num_spans + s];
      norms[kind * parameters.size() + i] = static_cast<float>(total);
    }
  }
  return SUCCESS;
}
