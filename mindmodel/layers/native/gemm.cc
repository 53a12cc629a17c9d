#include "gemm.h"

#include <omp.h>

#include "onednn.h"
#include "tile.h"

namespace mindmodel {
namespace {

// MAX_DEPTH x TILE_COLUMNS floats of the right operand stay in the first cache, a task's rows x MAX_DEPTH of the left
// operand in the second, a panel of the right operand in the third.
constexpr Index MAX_DEPTH = std::min(384, 6144 / TILE_COLUMNS);
constexpr Index MIN_ROWS = 24, MAX_ROWS = 96;  // of a task
constexpr Index PANEL_FLOATS = 4 << 20, MAX_PANEL_COLUMNS = 4096;
constexpr Index TASKS_PER_THREAD = 6;  // enough that the threads end together

struct Plan {
  Index depth;          // of a step; the last one may be smaller
  Index panel_columns;  // of the right operand, packed at a time
  Index rows, columns;  // of a task

  Plan(Index rows_, Index columns_, Index depth_) {
    depth = divide_up(depth_, divide_up(depth_, MAX_DEPTH));
    const Index limit = std::max<Index>(PANEL_FLOATS / depth_, 8 * TILE_COLUMNS);
    const Index num_panels = divide_up(columns_, std::min(limit, MAX_PANEL_COLUMNS));
    panel_columns = round_up(divide_up(columns_, num_panels), TILE_COLUMNS);
    // Columns are split only where there are too few rows, since each split packs the left operand again
    const Index wanted = TASKS_PER_THREAD * num_threads();
    rows = round_up(std::min(rows_, std::clamp(rows_ / wanted, MIN_ROWS, MAX_ROWS)), TILE_ROWS);
    columns = round_up(divide_up(panel_columns, divide_up(wanted, divide_up(rows_, rows))), TILE_COLUMNS);
  }
};

template <class Body>
void with_kind(Number number, Body body) {
  switch (number) {
    case Number::float32: return body(Float32());
    case Number::bfloat16: return body(BFloat16());
    case Number::rounded_float32: return body(RoundedFloat32());
  }
}

// TILE_COLUMNS columns of `depth` rows of b.
void pack_right(const Matrix &b, Index k, Index depth, Index column, Index columns, float *packed) {
  const Index column_step = b.transposed ? b.stride : 1, k_step = b.transposed ? 1 : b.stride;
  with_kind(b.number, [&](auto kind) {
    using Kind = decltype(kind);
    const auto *data = static_cast<const typename Kind::Memory *>(b.data) + k * k_step + column * column_step;
    pack_strip<TILE_COLUMNS, Kind>(data, column_step, k_step, std::min<Index>(TILE_COLUMNS, columns - column), depth,
                                   packed);
  });
}

// Rows of a that lie one after another, in their order.
template <class Kind>
void pack_rows(const typename Kind::Memory *data, Index stride, Index rows, Index depth, float *packed) {
  for (Index i = 0; i < rows; i++)
    for (Index k = 0; k < depth; k++) packed[i * depth + k] = Kind::value(data[i * stride + k]);
}

// Rows of a transposed a, in groups of TILE_ROWS.
template <class Kind>
void pack_groups(const typename Kind::Memory *data, Index stride, Index rows, Index depth, float *packed) {
  for (Index k = 0; k < depth; k++, data += stride, packed += TILE_ROWS) {
    for (Index i = 0; i < rows; i += 16) __builtin_prefetch(data + 8 * stride + i);
    Index i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
      for (int j = 0; j < TILE_ROWS; j++) packed[i * depth + j] = Kind::value(data[i + j]);
    for (Index j = 0; i + j < rows; j++) packed[i * depth + j] = Kind::value(data[i + j]);
  }
}

// The order of each is the one that needs no transposition.
void pack_left(const Matrix &a, Index row, Index rows, Index k, Index depth, float *packed) {
  with_kind(a.number, [&](auto kind) {
    using Kind = decltype(kind);
    const auto *data = static_cast<const typename Kind::Memory *>(a.data);
    if (a.transposed) pack_groups<Kind>(data + row + k * a.stride, a.stride, rows, depth, packed);
    else pack_rows<Kind>(data + row * a.stride + k, a.stride, rows, depth, packed);
  });
}

// c[rows, columns] (+)= a b for packed operands.
void multiply_packed(bool transposed, Index rows, Index columns, Index depth, const float *a, const float *b, float *c,
                     Index c_stride, bool accumulate) {
  const Index strip = depth * TILE_COLUMNS, group = depth * TILE_ROWS;
  if (transposed)
    multiply_block(rows, columns, depth, Left<true>{a, TILE_ROWS, group}, b, strip, c, c_stride, accumulate);
  else
    multiply_block(rows, columns, depth, Left<false>{a, depth}, b, strip, c, c_stride, accumulate);
}

void own_gemm(Index rows, Index columns, Index depth, const Matrix &a, const Matrix &b, const Result &c) {
  static Buffer right_buffer, left_buffer, sum_buffer;
  const Plan plan(rows, columns, depth);
  const bool own_sums = c.number == Number::bfloat16;
  const Index left_size = padded(plan.rows * plan.depth);
  const Index sum_size = own_sums ? padded(plan.rows * plan.columns) : 0;
  float *right = right_buffer.floats(depth * plan.panel_columns);
  float *all_left = left_buffer.floats(num_threads() * left_size);
  float *all_sums = sum_buffer.floats(num_threads() * sum_size);
  const Index num_steps = divide_up(depth, plan.depth), row_tasks = divide_up(rows, plan.rows);

#pragma omp parallel num_threads(num_threads())
  {
    float *left = all_left + omp_get_thread_num() * left_size;
    float *own = all_sums + omp_get_thread_num() * sum_size;
    for (Index panel = 0; panel < columns; panel += plan.panel_columns) {
      const Index panel_columns = std::min(plan.panel_columns, columns - panel);
      const Index strips = divide_up(panel_columns, TILE_COLUMNS), panel_stride = strips * TILE_COLUMNS;
      const Index column_tasks = divide_up(panel_columns, plan.columns);
#pragma omp for
      for (Index t = 0; t < strips * num_steps; t++) {
        const Index j = t % strips * TILE_COLUMNS, k = t / strips * plan.depth, step = std::min(plan.depth, depth - k);
        pack_right(b, k, step, panel + j, columns, right + k * panel_stride + j * step);
      }
#pragma omp for schedule(dynamic, 1) nowait
      for (Index t = 0; t < row_tasks * column_tasks; t++) {
        const Index row = t / column_tasks * plan.rows, m = std::min(plan.rows, rows - row);
        const Index j = t % column_tasks * plan.columns, n = std::min(plan.columns, panel_columns - j);
        float *sums = own_sums ? own : static_cast<float *>(c.data) + row * c.stride + panel + j;
        const Index stride = own_sums ? plan.columns : c.stride;
        for (Index k = 0; k < depth; k += plan.depth) {
          const Index step = std::min(plan.depth, depth - k);
          pack_left(a, row, m, k, step, left);
          multiply_packed(a.transposed, m, n, step, left, right + k * panel_stride + j * step, sums, stride,
                          c.accumulate || k > 0);
        }
        if (c.number != Number::float32) put_rounded(c, row, m, panel + j, n, sums, stride, false);
      }
      if (panel + plan.panel_columns < columns) {
#pragma omp barrier
      }
    }
  }
}

}  // namespace

void put_rounded(const Result &c, Index row, Index rows, Index column, Index columns, const float *sums, Index stride,
                 bool add) {
  for (Index i = 0; i < rows; i++) {
    const float *from = sums + i * stride;
    const Index offset = (row + i) * c.stride + column;
    if (c.number == Number::bfloat16) {
      bfloat16 *to = static_cast<bfloat16 *>(c.data) + offset;
      for (Index j = 0; j < columns; j++) to[j] = from_float<bfloat16>(from[j]);
    } else {
      float *to = static_cast<float *>(c.data) + offset;
      for (Index j = 0; j < columns; j++) to[j] = rounded<bfloat16>((add ? to[j] : 0.f) + from[j]);
    }
  }
}

void gemm(Index rows, Index columns, Index depth, const Matrix &a, const Matrix &b, const Result &c) {
  if (!onednn_gemm(rows, columns, depth, a, b, c)) own_gemm(rows, columns, depth, a, b, c);
}

}  // namespace mindmodel
