// Numbers and names that Python has too: fdpo_fast/ops/constants.py says what they mean, and compares them at import.
#pragma once

#include <cstdint>

namespace fdpo {

constexpr double kExpCap = 20;
constexpr int64_t kStateBlock = 256;

enum class Dtype : int { float32, bfloat16, float16 };
constexpr const char* kDtypes[] = {"float32", "bfloat16", "float16"};

enum class Stream : uint32_t { noise, timestep, caption, rounding, geometry };
constexpr const char* kStreams[] = {"noise", "timestep", "caption", "rounding", "geometry"};

enum class Stat : int {
  error_w,
  error_l,
  ref_error_w,
  ref_error_l,
  log_ratio_w,
  log_ratio_l,
  margin,
  clipped,
  loser_scale,
  coefficient_w,
  coefficient_l
};
constexpr const char* kStats[] = {"error_w", "error_l", "ref_error_w", "ref_error_l",   "log_ratio_w",  "log_ratio_l",
                                  "margin",  "clipped", "loser_scale", "coefficient_w", "coefficient_l"};

}  // namespace fdpo
