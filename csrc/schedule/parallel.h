// Threads for loops over independent pieces of work. Which thread takes a piece never changes its result.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace fdpo {

// Calls body() on up to `threads` threads at once, the caller among them.
//
// The threads are those of the OpenMP runtime that torch has loaded: they are awake already, and a second pool would
// fight with them for the cores. libgomp and LLVM's runtime both have this entry; without it threads are started.
template <class Body>
void on_threads(int threads, Body& body) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (threads <= 1) {
    body();
  } else if (parallel) {
    parallel([](void* data) { (*static_cast<Body*>(data))(); }, &body, unsigned(threads), 0);
  } else {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&body] { body(); });
    body();
  }
}

// Calls body(i) once for each i in [0, count); a thread that is done takes the next one.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  auto take = [&] {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  };
  on_threads(int(std::min<int64_t>(count, threads)), take);
}

}  // namespace fdpo
