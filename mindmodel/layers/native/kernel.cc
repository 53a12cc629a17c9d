#include "kernel.h"

#include <omp.h>

#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>

namespace {

std::mutex one_at_a_time;
int threads = 0;

std::string lower(const char *text) {
  std::string result = text;
  for (char &c : result) c = c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
  return result;
}

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

bool is_float32(const char *dtype) { return lower(dtype).find("float32") != std::string::npos; }
bool is_bfloat16(const char *dtype) { return lower(dtype).find("bfloat16") != std::string::npos; }

}  // namespace mindmodel
