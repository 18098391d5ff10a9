// Splits a range over threads. The split never changes a result: every element is computed from its own index.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace fdpo {

// Calls body(begin, end) on disjoint pieces of [0, count), none smaller than `grain`, on up to `threads` threads.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t pieces = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, std::max(threads, 1));
  std::vector<std::jthread> others;
  for (int64_t piece = 1; piece < pieces; ++piece)
    others.emplace_back([&, piece] { body(count * piece / pieces, count * (piece + 1) / pieces); });
  body(0, count / pieces);
}

}  // namespace fdpo
