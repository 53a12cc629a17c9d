#include "onednn.h"

#include <omp.h>

#include <algorithm>

#if !defined(MINDMODEL_ONEDNN)

bool mindmodel::onednn_gemm(Index, Index, Index, const Matrix &, const Matrix &, const Result &) { return false; }

#else

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#define MINDMODEL_ONEDNN_BFLOAT16
#endif

// oneDNN's functions for row-major matrices (n: as it is, t: transposed). Without a thread pool each works on
// one thread.
extern "C" {
int dnnl_threadpool_interop_sgemm(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *,
                                  int64_t, float, float *, int64_t, void *);
int dnnl_threadpool_interop_gemm_bf16bf16f32(char, char, int64_t, int64_t, int64_t, float, const uint16_t *, int64_t,
                                             const uint16_t *, int64_t, float, float *, int64_t, void *);
}

namespace mindmodel {

namespace {

// body(row, rows, column, columns) on every thread for its share of the result, cut along the longer side. The body
// returns oneDNN's status, 0 for success; oneDNN refuses before it writes anything.
template <class Body>
bool share(Index rows, Index columns, Body body) {
  int status = 0;
#pragma omp parallel num_threads(num_threads()) reduction(| : status)
  {
    const Index thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const Index size = std::max(rows, columns), begin = size * thread / threads, end = size * (thread + 1) / threads;
    if (begin < end) {
      status |= rows >= columns ? body(begin, end - begin, 0, columns) : body(0, rows, begin, end - begin);
    }
  }
  return status == 0;
}

template <class Memory>
const Memory *at(const Matrix &m, Index row, Index column) {
  return static_cast<const Memory *>(m.data) + (m.transposed ? column * m.stride + row : row * m.stride + column);
}

char flag(const Matrix &m) { return m.transposed ? 'T' : 'N'; }

bool multiply_float32(Index rows, Index columns, Index depth, const Matrix &a, const Matrix &b, const Result &c) {
  return share(rows, columns, [&](Index row, Index m, Index column, Index n) {
    return dnnl_threadpool_interop_sgemm(flag(a), flag(b), m, n, depth, 1.f, at<float>(a, row, 0), a.stride,
                                         at<float>(b, 0, column), b.stride, c.accumulate ? 1.f : 0.f,
                                         static_cast<float *>(c.data) + row * c.stride + column, c.stride, nullptr);
  });
}

#if defined(MINDMODEL_ONEDNN_BFLOAT16)
constexpr Index SUM_FLOATS = 1 << 18;  // of a thread's sums before they are rounded

// The operand in bfloat16: itself, or a copy without gaps in `buffer`.
Matrix converted(const Matrix &m, Index rows, Index columns, Buffer &buffer) {
  if (m.number == Number::bfloat16) return m;
  const Index lines = m.transposed ? columns : rows, length = m.transposed ? rows : columns;
  bfloat16 *copy = reinterpret_cast<bfloat16 *>(buffer.floats(divide_up(lines * length, 2)));
#pragma omp parallel for num_threads(num_threads())
  for (Index i = 0; i < lines; i++) {
    const float *line = static_cast<const float *>(m.data) + i * m.stride;
    for (Index j = 0; j < length; j++) copy[i * length + j] = from_float<bfloat16>(line[j]);
  }
  return {copy, Number::bfloat16, length, m.transposed};
}

int multiply(Index rows, Index columns, Index depth, const Matrix &a, Index row, const Matrix &b, Index column,
             float beta, float *c, Index stride) {
  return dnnl_threadpool_interop_gemm_bf16bf16f32(flag(a), flag(b), rows, columns, depth, 1.f, at<uint16_t>(a, row, 0),
                                                  a.stride, at<uint16_t>(b, 0, column), b.stride, beta, c, stride,
                                                  nullptr);
}

bool multiply_bfloat16(Index rows, Index columns, Index depth, const Matrix &a_, const Matrix &b_, const Result &c) {
  static Buffer a_buffer, b_buffer, sum_buffer;
  const Matrix a = converted(a_, rows, depth, a_buffer), b = converted(b_, depth, columns, b_buffer);
  const Index sum_size = std::max(SUM_FLOATS, padded(columns));
  float *all_sums = sum_buffer.floats(num_threads() * sum_size);
  return share(rows, columns, [&](Index row, Index m, Index column, Index n) {
    int status = 0;
    float *sums = all_sums + omp_get_thread_num() * sum_size;
    const Index step = std::max<Index>(1, sum_size / n);
    for (Index i = 0; i < m; i += step) {
      const Index count = std::min(step, m - i);
      if (c.number == Number::float32) {
        float *result = static_cast<float *>(c.data) + (row + i) * c.stride + column;
        status |= multiply(count, n, depth, a, row + i, b, column, c.accumulate ? 1.f : 0.f, result, c.stride);
        continue;
      }
      status |= multiply(count, n, depth, a, row + i, b, column, 0.f, sums, n);
      if (status) return status;
      put_rounded(c, row + i, count, column, n, sums, n, c.accumulate);
    }
    return status;
  });
}
#endif

}  // namespace

bool onednn_gemm(Index rows, Index columns, Index depth, const Matrix &a, const Matrix &b, const Result &c) {
  if (a.number == Number::float32 && b.number == Number::float32)
    return multiply_float32(rows, columns, depth, a, b, c);
#if defined(MINDMODEL_ONEDNN_BFLOAT16)
  return multiply_bfloat16(rows, columns, depth, a, b, c);
#else
  return false;
#endif
}

}  // namespace mindmodel

#endif
