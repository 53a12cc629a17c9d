// The heart of all matrix products: a tile of the result that stays in registers, and the packing of its operands.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernel.h"

#if defined(__clang__)
#define MINDMODEL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MINDMODEL_UNROLL _Pragma("GCC unroll 16")
#endif

namespace mindmodel {

// LANES floats to a vector register; a tile is TILE_ROWS rows of TILE_VECTORS vectors. Its sums, one row of the right
// operand and one element of the left operand must fit the 32 (AVX-512, aarch64) or 16 registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 12, TILE_VECTORS = 2;
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE_ROWS = 6, TILE_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE_ROWS = 8, TILE_VECTORS = 2;
#else
constexpr int LANES = 4, TILE_ROWS = 4, TILE_VECTORS = 2;
#endif
constexpr int TILE_COLUMNS = TILE_VECTORS * LANES;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

inline Vector load(const float *p) {
  Vector vector;
  std::memcpy(&vector, p, sizeof vector);
  return vector;
}
inline void store(float *p, const Vector &vector) { std::memcpy(p, &vector, sizeof vector); }

// The left operand of a tile: element (i, k) is data[i * stride + k], or data[i + k * stride] if `transposed`; the next
// tile's begins `group_stride` further. TILE_ROWS rows must be readable, even where fewer are used.
template <bool transposed>
struct Left {
  const float *data;
  Index stride;
  Index group_stride = transposed ? TILE_ROWS : TILE_ROWS * stride;
};

// c[rows, columns] (+)= a b; b holds `depth` rows of TILE_COLUMNS floats.
template <bool transposed>
inline __attribute__((always_inline)) void tile(Index depth, Left<transposed> a, const float *b, float *c,
                                                Index c_stride, bool accumulate, Index rows, Index columns) {
  const Index row_step = transposed ? 1 : a.stride, step = transposed ? a.stride : 1;
  const float *element = a.data;
  for (Index i = 0; i < rows; i++) __builtin_prefetch(c + i * c_stride, 1);
  Vector sum[TILE_ROWS][TILE_VECTORS] = {};
  for (Index k = 0; k < depth; k++, element += step, b += TILE_COLUMNS) {
    Vector right[TILE_VECTORS];
    MINDMODEL_UNROLL for (int j = 0; j < TILE_VECTORS; j++) right[j] = load(b + j * LANES);
    MINDMODEL_UNROLL for (int i = 0; i < TILE_ROWS; i++) {
      const float left = element[i * row_step];
      MINDMODEL_UNROLL for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] += left * right[j];
    }
  }
  if (rows == TILE_ROWS && columns == TILE_COLUMNS) {
    MINDMODEL_UNROLL for (int i = 0; i < TILE_ROWS; i++) {
      MINDMODEL_UNROLL for (int j = 0; j < TILE_VECTORS; j++) {
        float *result = c + i * c_stride + j * LANES;
        store(result, accumulate ? load(result) + sum[i][j] : sum[i][j]);
      }
    }
    return;
  }
  float edge[TILE_ROWS * TILE_COLUMNS];
  MINDMODEL_UNROLL for (int i = 0; i < TILE_ROWS; i++) {
    MINDMODEL_UNROLL for (int j = 0; j < TILE_VECTORS; j++) store(edge + i * TILE_COLUMNS + j * LANES, sum[i][j]);
  }
  for (Index i = 0; i < rows; i++)
    for (Index j = 0; j < columns; j++)
      c[i * c_stride + j] = (accumulate ? c[i * c_stride + j] : 0.f) + edge[i * TILE_COLUMNS + j];
}

// c[rows, columns] (+)= a b on one thread. b: strips of TILE_COLUMNS columns, b_stride floats apart.
template <bool transposed>
__attribute__((noinline)) void multiply_block(Index rows, Index columns, Index depth, Left<transposed> a,
                                              const float *b, Index b_stride, float *c, Index c_stride,
                                              bool accumulate) {
  // A strip comes from the second or third cache: each tile fetches a share of the next one ahead of its use
  const Index ahead = divide_up(depth * TILE_COLUMNS, divide_up(rows, TILE_ROWS));
  for (Index j = 0; j < columns; j += TILE_COLUMNS, b += b_stride) {
    Left<transposed> group = a;
    const float *next = b + b_stride;
    for (Index i = 0; i < rows; i += TILE_ROWS, group.data += a.group_stride, next += ahead) {
      if (j + TILE_COLUMNS < columns)
        for (Index p = 0; p < ahead; p += 16) __builtin_prefetch(next + p);
      tile(depth, group, b, c + i * c_stride + j, c_stride, accumulate, std::min<Index>(TILE_ROWS, rows - i),
           std::min<Index>(TILE_COLUMNS, columns - j));
    }
  }
}

// How an operand lies in memory and what its elements stand for.
struct Float32 {
  using Memory = float;
  static float value(float x) { return x; }
};
struct BFloat16 {
  using Memory = bfloat16;
  static float value(bfloat16 x) { return to_float(x); }
};
struct RoundedFloat32 {  // the nearest bfloat16
  using Memory = float;
  static float value(float x) { return rounded<bfloat16>(x); }
};

// A strip `width` <= size wide, padded with zeros to `size`: packed[k * size + i] = element (i, k).
template <int size, class Kind>
void pack_strip(const typename Kind::Memory *data, Index i_step, Index k_step, Index width, Index depth,
                float *packed) {
  if (width < size) std::fill_n(packed, depth * size, 0.f);
  if (width == size && i_step == 1) {
    for (Index k = 0; k < depth; k++, data += k_step, packed += size) {
      __builtin_prefetch(data + 16 * k_step);  // lines far apart, which no processor fetches by itself
      for (int i = 0; i < size; i++) packed[i] = Kind::value(data[i]);
    }
    return;
  }
  constexpr Index STEP = 16;  // a line of the source is used up before the next, however far apart they are
  for (Index k = 0; k < depth; k += STEP)
    for (Index i = 0; i < width; i++)
      for (Index p = k; p < std::min(depth, k + STEP); p++)
        packed[p * size + i] = Kind::value(data[i * i_step + p * k_step]);
}

}  // namespace mindmodel
