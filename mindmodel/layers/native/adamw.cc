// The optimizer's kernels: the gradients' norm and the update, for all parameters at once.
#include <algorithm>
#include <vector>

#include "kernel.h"

using namespace mindmodel;

// any number of f32 arrays -> f32[1], the sum of all squares
MINDMODEL_KERNEL(square_sum) {
  // Sums per chunk, not per thread: so the result does not depend on the number of threads
  constexpr Index CHUNK = 1 << 14;
  const int num_inputs = args.num_arrays - 1;
  double total = 0;
  for (int i = 0; i < num_inputs; i++) {
    const float *x = args.array<float>(i);
    const Index count = args.num_elements(i), num_chunks = divide_up(count, CHUNK);
    std::vector<double> sums(num_chunks);
#pragma omp parallel for num_threads(num_threads())
    for (Index c = 0; c < num_chunks; c++) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (Index j = c * CHUNK; j < std::min(count, (c + 1) * CHUNK); j++) sum += static_cast<double>(x[j]) * x[j];
      sums[c] = sum;
    }
    for (double sum : sums) total += sum;
  }
  *args.array<float>(num_inputs) = static_cast<float>(total);
  return SUCCESS;
}

// settings f32[6] = (lr, beta1, beta2, eps, scale, apply), decays f32[n], then n times p, m, v, g f32 ->
// done f32[1] = apply. Works in place on p, m and v; touches nothing if apply is 0.
// Source: MindSpore's ops.AdamWeightDecay, g * scale for g.
MINDMODEL_KERNEL(adamw) {
  constexpr int FIRST = 2;
  const float *settings = args.array<float>(0), *decays = args.array<float>(1);
  const float lr = settings[0], beta1 = settings[1], beta2 = settings[2], eps = settings[3], scale = settings[4];
  const bool apply = settings[5] != 0.f;
  const int num_parameters = (args.num_arrays - FIRST - 1) / 4;
  *args.array<float>(args.num_arrays - 1) = settings[5];
  if (!apply) return SUCCESS;
#pragma omp parallel num_threads(num_threads())
  for (int i = 0; i < num_parameters; i++) {
    const int at = FIRST + 4 * i;
    float *p = args.array<float>(at), *m = args.array<float>(at + 1), *v = args.array<float>(at + 2);
    const float *g = args.array<float>(at + 3), decay = decays[i];
    const Index count = args.num_elements(at);
#pragma omp for simd nowait
    for (Index j = 0; j < count; j++) {
      const float gradient = g[j] * scale;
      m[j] = beta1 * m[j] + (1.f - beta1) * gradient;
      v[j] = beta2 * v[j] + (1.f - beta2) * gradient * gradient;
      p[j] -= lr * (m[j] / (std::sqrt(v[j]) + eps) + decay * p[j]);
    }
  }
  return SUCCESS;
}
