// Matrix products by the oneDNN library that comes with MindSpore, where it is faster than our own.
#pragma once

#include "gemm.h"

namespace mindmodel {

// As gemm, or false if the product is not one of those that oneDNN is used for, or if oneDNN refuses it.
bool onednn_gemm(Index rows, Index columns, Index depth, const Matrix &a, const Matrix &b, const Result &c);

}  // namespace mindmodel
