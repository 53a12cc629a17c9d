// silu(gate) * up; a row is `num_blocks` pairs of a block of gates and a block of ups.
// Source: Shazeer (arXiv 2002.05202) eq. 6.
#include "kernel.h"

using namespace mindmodel;

// x T[M, 2 F], num_blocks i32[1] -> y T[M, F]
MINDMODEL_KERNEL(swiglu_forward) {
  const Index num_blocks = *args.array<int32_t>(1), pairs = args.size(0, 0) * num_blocks;
  const Index size = args.size(0, 1) / 2 / num_blocks;
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    const T *x = args.array<T>(0);
    T *y = args.array<T>(2);
#pragma omp parallel for num_threads(num_threads())
    for (Index i = 0; i < pairs; i++) {
      const T *gate = x + i * 2 * size, *up = gate + size;
      T *out = y + i * size;
#pragma omp simd
      for (Index j = 0; j < size; j++) {
        const float g = to_float(gate[j]);
        out[j] = from_float<T>(g * sigmoid(g) * to_float(up[j]));
      }
    }
    return SUCCESS;
  });
}

// x T[M, 2 F], num_blocks i32[1], dy T[M, F] -> dx T[M, 2 F]
MINDMODEL_KERNEL(swiglu_backward) {
  const Index num_blocks = *args.array<int32_t>(1), pairs = args.size(0, 0) * num_blocks;
  const Index size = args.size(0, 1) / 2 / num_blocks;
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    const T *x = args.array<T>(0), *dy = args.array<T>(2);
    T *dx = args.array<T>(3);
#pragma omp parallel for num_threads(num_threads())
    for (Index i = 0; i < pairs; i++) {
      const T *gate = x + i * 2 * size, *up = gate + size, *dout = dy + i * size;
      T *dgate = dx + i * 2 * size, *dup = dgate + size;
#pragma omp simd
      for (Index j = 0; j < size; j++) {
        const float g = to_float(gate[j]), s = sigmoid(g), silu = g * s, d = to_float(dout[j]);
        dgate[j] = from_float<T>(d * to_float(up[j]) * (s + silu - silu * s));
        dup[j] = from_float<T>(d * silu);
      }
    }
    return SUCCESS;
  });
}
