// Work that threads of one parallel region share out, phase after phase, without barriers.
#pragma once

#include <atomic>
#include <thread>

#include "kernel.h"

namespace mindmodel {

// Tells the processor that this thread waits for another.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A phase is over when its pieces are done, not when all threads have arrived: a thread that the system has not let run
// yet, or has stopped between two pieces, holds nobody up. OpenMP's barriers wait for it, and sleep under
// OMP_WAIT_POLICY=PASSIVE, which costs more than the phases of a small model.
class Phase {
 public:
  // work(i) for i below `count`, shared with the threads that call this on the same phase; returns when all are done.
  // A piece may read whatever earlier phases wrote.
  template <class Work>
  void share(Index count, Work work) {
    for (Index i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) {
      work(i);
      done_.fetch_add(1, std::memory_order_acq_rel);
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++) {
      if (spins < MAX_SPINS)
        relax();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int MAX_SPINS = 2000;

  alignas(64) std::atomic<Index> next_{0};
  alignas(64) std::atomic<Index> done_{0};
};

}  // namespace mindmodel
