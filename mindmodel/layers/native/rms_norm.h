// RMSNorm of one row, float32 inside; shared by the norm layers and by attention with normalised queries and keys.
#pragma once

#include "kernel.h"

namespace mindmodel {

template <class T>
inline float inverse_rms(const T *x, Index size, float eps) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (Index j = 0; j < size; j++) squares += to_float(x[j]) * to_float(x[j]);
  return 1.f / std::sqrt(squares / size + eps);
}

// y = x / rms(x) * weight; y is float32 that holds values of T. Rounds before the product with the weight and after it,
// as Hugging Face's LlamaRMSNorm.
template <class T>
inline void normalise(const T *x, const float *weight, float eps, Index size, float *y) {
  const float inverse = inverse_rms(x, size, eps);
#pragma omp simd
  for (Index j = 0; j < size; j++) y[j] = rounded<T>(rounded<T>(to_float(x[j]) * inverse) * rounded<T>(weight[j]));
}

// From dy (float or T) to dx; adds to dweight. dx_j = (w_j dy_j - u_j mean(w dy u)) / rms with u = x / rms.
// `residual`, if not null, is added to dx.
template <class T, class Gradient>
inline void normalise_backward(const T *x, const float *weight, float eps, Index size, const Gradient *dy,
                               const T *residual, T *dx, float *dweight) {
  const float inverse = inverse_rms(x, size, eps);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < size; j++) sum += to_float(dy[j]) * weight[j] * to_float(x[j]);
  const float mean = sum * inverse / size;
#pragma omp simd
  for (Index j = 0; j < size; j++) {
    const float unit = to_float(x[j]) * inverse, gradient = to_float(dy[j]);
    const float other = residual ? to_float(residual[j]) : 0.f;
    dx[j] = from_float<T>((gradient * weight[j] - unit * mean) * inverse + other);
    dweight[j] += gradient * unit;
  }
}

}  // namespace mindmodel
