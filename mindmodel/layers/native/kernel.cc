#include "kernel.h"

#include <omp.h>

#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>

namespace {

std::mutex one_at_a_time;
int threads = 0;

}  // namespace

// The number of threads of the kernels; by default as many as there are processors.
extern "C" void mindmodel_set_threads(int count) {
  std::lock_guard<std::mutex> lock(one_at_a_time);
  threads = count;
}

namespace mindmodel {

int num_threads() { return threads > 0 ? threads : omp_get_num_procs(); }

float *Buffer::floats(Index count) {
  if (count > count_) {
    std::free(data_);
    data_ = nullptr;
    count_ = 0;
    data_ = static_cast<float *>(std::aligned_alloc(64, static_cast<size_t>(round_up(count, 16)) * sizeof(float)));
    if (data_ == nullptr) throw std::bad_alloc();
    count_ = count;
  }
  return data_;
}

Index Arguments::num_elements(int i) const {
  Index count = 1;
  for (int axis = 0; axis < ndims[i]; axis++) count *= shapes[i][axis];
  return count;
}

int run(int (*kernel)(const Arguments &), const Arguments &args) {
  std::lock_guard<std::mutex> lock(one_at_a_time);
  try {
    return kernel(args);
  } catch (const std::exception &) {
    return FAILURE;
  }
}

}  // namespace mindmodel
