// RMSNorm. Source: Zhang and Sennrich (arXiv 1910.07467) eq. 4.
#include "rms_norm.h"

#include <algorithm>

using namespace mindmodel;

// x T[M, D], w f32[D], eps f32[1] -> y T[M, D]
MINDMODEL_KERNEL(rms_norm_forward) {
  const Index rows = args.size(0, 0), size = args.size(0, 1);
  const float *weight = args.array<float>(1), eps = *args.array<float>(2);
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    const T *x = args.array<T>(0);
    T *y = args.array<T>(3);
#pragma omp parallel for num_threads(num_threads())
    for (Index i = 0; i < rows; i++) {
      const T *in = x + i * size;
      T *out = y + i * size;
      const float inverse = inverse_rms(in, size, eps);
#pragma omp simd
      for (Index j = 0; j < size; j++)
        out[j] = from_float<T>(rounded<T>(to_float(in[j]) * inverse) * rounded<T>(weight[j]));
    }
    return SUCCESS;
  });
}

namespace {

// Array 3 is dy; with `residual` array 4 is another gradient of x, which is added.
int backward(const Arguments &args, bool residual) {
  static Buffer buffer;
  const Index rows = args.size(0, 0), size = args.size(0, 1), stride = padded(size);
  const float *weight = args.array<float>(1), eps = *args.array<float>(2);
  float *dweight = args.array<float>(residual ? 6 : 5);
  // Sums per chunk of rows, not per thread: so the result does not depend on the number of threads
  const Index chunk = std::max<Index>(16, divide_up(rows, 64)), num_chunks = divide_up(rows, chunk);
  float *sums = buffer.floats(num_chunks * stride);
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    const T *x = args.array<T>(0), *dy = args.array<T>(3);
    const T *other = residual ? args.array<T>(4) : nullptr;
    T *dx = args.array<T>(residual ? 5 : 4);
#pragma omp parallel num_threads(num_threads())
    {
#pragma omp for
      for (Index c = 0; c < num_chunks; c++) {
        std::fill_n(sums + c * stride, size, 0.f);
        for (Index i = c * chunk; i < std::min(rows, (c + 1) * chunk); i++) {
          const T *added = residual ? other + i * size : nullptr;
          normalise_backward(x + i * size, weight, eps, size, dy + i * size, added, dx + i * size, sums + c * stride);
        }
      }
#pragma omp for
      for (Index j = 0; j < size; j++) {
        float sum = 0;
        for (Index c = 0; c < num_chunks; c++) sum += sums[c * stride + j];
        dweight[j] = sum;
      }
    }
    return SUCCESS;
  });
}

}  // namespace

// x T[M, D], w f32[D], eps f32[1], dy T[M, D] -> dx T[M, D], dw f32[D]
MINDMODEL_KERNEL(rms_norm_backward) { return backward(args, false); }

// x T[M, D], w f32[D], eps f32[1], dy T[M, D], dresidual T[M, D] -> dx T[M, D] with dresidual added, dw f32[D]
MINDMODEL_KERNEL(residual_norm_backward) { return backward(args, true); }
