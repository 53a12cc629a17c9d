// Linear layer without bias. The weights and their gradient are float32; beside bfloat16 activations they are rounded.
#include "gemm.h"
#include "kernel.h"

using namespace mindmodel;

// x T[M, K], w f32[N, K] -> y T[M, N] = x w'
MINDMODEL_KERNEL(linear_forward) {
  const Index rows = args.size(0, 0), in = args.size(0, 1), out = args.size(1, 0);
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    gemm(rows, out, in, {args.arrays[0], number_of<T>(), in}, {args.arrays[1], float_beside<T>(), in, true},
         {args.arrays[2], number_of<T>(), out});
    return SUCCESS;
  });
}

// x T[M, K], w f32[N, K], dy T[M, N] -> dx T[M, K] = dy w, dw f32[N, K] = dy' x
MINDMODEL_KERNEL(linear_backward) {
  const Index rows = args.size(0, 0), in = args.size(0, 1), out = args.size(1, 0);
  return with_type(args, 0, [&](auto zero) {
    using T = decltype(zero);
    gemm(rows, in, out, {args.arrays[2], number_of<T>(), out}, {args.arrays[1], float_beside<T>(), in},
         {args.arrays[3], number_of<T>(), in});
    gemm(out, in, rows, {args.arrays[2], number_of<T>(), out, true}, {args.arrays[0], number_of<T>(), in},
         {args.arrays[4], float_beside<T>(), in});
    return SUCCESS;
  });
}
