// Gradient of a table's rows.
#include <omp.h>

#include <algorithm>

#include "kernel.h"

using namespace mindmodel;

// ids i32[n], dy T[n, D], table f32[V, D], which gives the shape alone -> dtable f32[V, D].
// Fails on an id outside of the table.
MINDMODEL_KERNEL(embedding_backward) {
  const Index num_ids = args.num_elements(0), num_rows = args.size(2, 0), size = args.size(2, 1);
  const int32_t *ids = args.array<int32_t>(0);
  float *dtable = args.array<float>(args.num_arrays - 1);
  for (Index i = 0; i < num_ids; i++)
    if (ids[i] < 0 || ids[i] >= num_rows) return FAILURE;
  return with_type(args, 1, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = args.array<T>(1);
#pragma omp parallel num_threads(num_threads())
    {
      // Each thread owns columns, so that rows which occur twice need no lock and are summed in their order
      const Index thread = omp_get_thread_num(), threads = omp_get_num_threads();
      const Index begin = size * thread / threads, end = size * (thread + 1) / threads;
      for (Index row = 0; row < num_rows; row++) std::fill_n(dtable + row * size + begin, end - begin, 0.f);
      for (Index i = 0; i < num_ids; i++) {
        float *sum = dtable + ids[i] * size;
        const T *gradient = dy + i * size;
#pragma omp simd
        for (Index j = begin; j < end; j++) sum[j] += to_float(gradient[j]);
      }
    }
    return SUCCESS;
  });
}
