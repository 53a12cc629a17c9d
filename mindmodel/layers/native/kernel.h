// What every kernel shares: its signature, types, threads and scratch memory.
//
// MindSpore's ops.Custom(func_type="aot") calls a kernel with its inputs, then its outputs. All arrays are contiguous.
// T in the comments is the type of the activations, float32 or bfloat16; M is the number of rows (batch x sequence).
#pragma once

#include <cstdint>
#include <string_view>

#include "number.h"

namespace mindmodel {

using Index = int64_t;

inline Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
inline Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

// Threads that a kernel uses.
int num_threads();

// Scratch memory that grows and is kept between calls. Kernels run one at a time, so one per use is enough.
// Never freed: another thread may still be in a kernel while the process exits.
class Buffer {
 public:
  // At least `count` floats, 64-byte aligned; their values are undefined. Throws std::bad_alloc.
  float *floats(Index count);

 private:
  float *data_ = nullptr;
  Index count_ = 0;
};

// A number of floats that keeps two threads' shares of a buffer in different cache lines.
inline Index padded(Index count) { return round_up(count, 16); }

struct Arguments {
  int num_arrays;
  void **arrays;
  int *ndims;
  int64_t **shapes;
  const char **dtypes;

  template <class T>
  T *array(int i) const { return static_cast<T *>(arrays[i]); }
  Index size(int i, int axis) const { return shapes[i][axis]; }
  Index num_elements(int i) const;
};

constexpr int SUCCESS = 0, FAILURE = 1;

// Runs a kernel: one at a time, since each uses all the threads; an exception becomes a failure.
int run(int (*kernel)(const Arguments &), const Arguments &args);

// Defines the exported function `name`; the kernel's body follows. It returns SUCCESS or FAILURE.
#define MINDMODEL_KERNEL(name)                                                                                  \
  static int name##_kernel(const mindmodel::Arguments &args);                                                   \
  extern "C" int name(int num_arrays, void **arrays, int *ndims, int64_t **shapes, const char **dtypes, void *, \
                      void *) {                                                                                 \
    return mindmodel::run(name##_kernel, {num_arrays, arrays, ndims, shapes, dtypes});                          \
  }                                                                                                             \
  static int name##_kernel(const mindmodel::Arguments &args)

// body(T()) for the type T of array i.
template <class Body>
int with_type(const Arguments &args, int i, Body body) {
  const std::string_view dtype = args.dtypes[i];
  if (dtype == "bfloat16") return body(bfloat16());
  if (dtype == "float32") return body(float());
  return FAILURE;
}

}  // namespace mindmodel
