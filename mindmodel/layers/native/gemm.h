// Matrix products on all threads.
#pragma once

#include "kernel.h"

namespace mindmodel {

// How the elements lie in memory and what they stand for; `rounded_float32` is the nearest bfloat16, kept as a float32.
enum class Number { float32, bfloat16, rounded_float32 };

template <class T>
constexpr Number number_of();
template <>
constexpr Number number_of<float>() { return Number::float32; }
template <>
constexpr Number number_of<bfloat16>() { return Number::bfloat16; }

// What a float32 array counts as beside activations of type T.
template <class T>
constexpr Number float_beside() {
  return number_of<T>() == Number::bfloat16 ? Number::rounded_float32 : Number::float32;
}

// An operand: element (i, j) is data[i * stride + j], or data[i + j * stride] if `transposed`.
struct Matrix {
  const void *data;
  Number number;
  Index stride;
  bool transposed = false;
};

// Element (i, j) is data[i * stride + j]. A sum of bfloat16 products is rounded once, after the last product. With
// `accumulate`, which a bfloat16 result cannot have, the product is added to what is there.
struct Result {
  void *data;
  Number number;
  Index stride;
  bool accumulate = false;
};

// Sums [rows, columns], `stride` apart, rounded to their place in c; with `add` together with what is there.
void put_rounded(const Result &c, Index row, Index rows, Index column, Index columns, const float *sums, Index stride,
                 bool add);

// c[rows, columns] (+)= a[rows, depth] b[depth, columns]; products and sums are float32.
void gemm(Index rows, Index columns, Index depth, const Matrix &a, const Matrix &b, const Result &c);

}  // namespace mindmodel
