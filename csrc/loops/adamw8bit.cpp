// The loop of the optimizer, a block at a time.
//
// Two passes, the second while everything is in the first-level cache: states are decoded, moved and kept as floats
// until the block's largest magnitudes are known; then they are coded.
#include "loops/loops.h"
#include "parameter.h"
#include "simd/convert.h"
#include "simd/half.h"
#include "simd/random_bits.h"

namespace fdpo::FDPO_ISA {
namespace {

struct alignas(64) Values {
  float at[kStateBlock];
  operator float*() { return at; }
  operator const float*() const { return at; }
};
constexpr uint32_t kSign = 0x80000000u;
constexpr float kSmallestNormal = 0x1p-126f, kLargest = 0x1.fffffep127f;
constexpr int64_t kAhead = 3;   // blocks
constexpr uint8_t kZero = 127;  // the code of m = 0

// SEGMENTS_PER_BIT and LOWEST of fdpo_fast/optim/codebook.py, which has the formulas.
constexpr uint16_t kSegmentsPerBit = 154;
constexpr float kLowest = 0x1.8p-21f;

// A map's values, by rank.
struct Line {
  Table offset, slope;
  explicit Line(const Map& map) : offset(table(map.offset)), slope(table(map.slope)) {}

  F32 operator()(F32 rank) const {
    const U32 exponent = (U32)rank >> 23;
    return look_up(offset, exponent) + look_up(slope, exponent) * rank;
  }
};

// The ranks, before truncation, of values between 0 and 1.
struct Ranks {
  Table threshold, start, rise, last;
  explicit Ranks(const Map& map)
      : threshold(table(map.threshold)), start(table(map.start)), rise(table(map.rise)), last(table(map.last)) {}

  F32 operator()(F32 x) const {
    const U32 before = multiply_high((U32)larger(x, F32{} + kLowest) >> 16, kSegmentsPerBit);
    const U32 segment = add_where_not_less(before, x, look_up(threshold, before));
    return smaller(look_up(last, segment), look_up(start, segment) + look_up(rise, segment) * x);
  }
};

// A block's states as floats, until its largest magnitudes are known.
struct States {
  Values m, v;
  float most_m, most_v;
};

// The factor that brings a block's states into [-1, 1].
float normalise(float& absmax) {
  if (absmax < kSmallestNormal) return absmax = 0;  // its reciprocal overflows; eps outweighs such states by far
  return 1 / absmax;
}

// Codes of states and back. One that is not a number is coded as zero.
struct Coder {
  const Maps& maps;

  // use(i, to_m * m, to_v * v) of the elements i .. i + kFloats
  template <class Use>
  void decode(const uint8_t* m, const uint8_t* v, float to_m, float to_v, Use use) const {
    const Line line_m(maps.m), line_v(maps.v);
    for (int64_t i = 0; i < kStateBlock; i += kFloats) {
      const F32 rank = __builtin_convertvector(load_bytes(m + i) - kZero, F32);
      const F32 magnitude = line_m((F32)((U32)rank & ~kSign) + 0.5f);
      const F32 above = __builtin_convertvector(load_bytes(v + i) + 1, F32);
      use(i, (F32)((U32)magnitude | ((U32)rank & kSign)) * to_m, line_v(above) * to_v);
    }
  }

  // `between(i)` is called ahead of the elements i .. i + kRegister.
  template <class Between>
  void encode(States& states, uint8_t* m, uint8_t* v, float& absmax_m, float& absmax_v, Between between) const {
    absmax_m = states.most_m;
    absmax_v = states.most_v;
    const float to_m = normalise(absmax_m), to_v = normalise(absmax_v);
    const Ranks rank_m(maps.m), rank_v(maps.v);
    for (int64_t i = 0; i < kStateBlock; i += kRegister) {
      between(i);
      I32 signs[4], ranks_m[4], ranks_v[4];
      for (int k = 0; k < 4; ++k) {
        const int64_t at = i + k * kFloats;
        signs[k] = (I32)(load<F32>(states.m + at) * to_m);
        ranks_m[k] = __builtin_convertvector(rank_m((F32)((U32)signs[k] & ~kSign)), I32);
        ranks_v[k] = __builtin_convertvector(rank_v(load<F32>(states.v + at) * to_v), I32);
      }
      const U8 rank = pack(ranks_m);
      const U8 below = rank > kZero ? U8{} + kZero : rank;  // -1 has no code
      store(m + i, pack_signs(signs) < 0 ? kZero - below : kZero + rank);
      store(v + i, pack(ranks_v));
    }
  }
};

// Other than bfloat16.
Floats floats(const char* from, Dtype dtype, Values& buffer) {
  if (dtype == Dtype::float32) return {reinterpret_cast<const float*>(from)};
  widen_all<from_float16>(reinterpret_cast<const uint16_t*>(from), buffer, kStateBlock);
  return {buffer};
}

// Where a block's elements lie.
struct Place {
  char *data, *grad;
  char *m, *v;
  float *absmax_m, *absmax_v;
  uint16_t* copy;
  int8_t* low;
};

int64_t width(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

Place place(const Parameter& parameter, int64_t block) {
  const int64_t first = block * kStateBlock, coded = parameter.absmax_m != nullptr, state_width = coded ? 1 : 4;
  return {static_cast<char*>(parameter.data) + first * width(parameter.dtype),
          static_cast<char*>(const_cast<void*>(parameter.grad)) + first * width(parameter.grad_dtype),
          static_cast<char*>(parameter.m) + first * state_width,
          static_cast<char*>(parameter.v) + first * state_width,
          parameter.absmax_m + coded * block,
          parameter.absmax_v + coded * block,
          parameter.copy ? parameter.copy + first : nullptr,
          parameter.low ? parameter.low + first : nullptr};
}

class Stepper {
 public:
  Stepper(const Maps& maps, const Parameter& parameter) : coder_{maps}, parameter_(parameter) {}

  // Moves a parameter's block, and leaves its new states in `states` where they are to be coded.
  void move(const Place& at, int64_t block, States& states) const {
    Values buffer;
    if (parameter_.grad_dtype == Dtype::bfloat16)
      move_by(Halves{reinterpret_cast<const uint16_t*>(at.grad)}, at, block, states);
    else move_by(floats(at.grad, parameter_.grad_dtype, buffer), at, block, states);
  }

  // Codes a block that was moved. Meanwhile asks for one that will be: of so many streams the hardware fetches too
  // little ahead, and a block's lines all at once are more than it can wait for.
  void code(const Place& at, States& states, const Place& ahead) const {
    if (!coded()) return;
    const int64_t wide = width(parameter_.dtype), grad_wide = width(parameter_.grad_dtype);
    coder_.encode(states, codes(at.m), codes(at.v), *at.absmax_m, *at.absmax_v, [&](int64_t i) {
      prefetch(ahead.data + i * wide, kRegister * wide);
      prefetch(ahead.grad + i * grad_wide, kRegister * grad_wide);
      prefetch(ahead.m + i, kRegister);
      prefetch(ahead.v + i, kRegister);
      if (ahead.low) prefetch(reinterpret_cast<const char*>(ahead.low) + i, kRegister);
    });
  }

 private:
  // Reads and writes the parameter in its dtype.
  template <class Grad>
  void move_by(Grad grad, const Place& at, int64_t block, States& states) const {
    auto* floats_at = reinterpret_cast<float*>(at.data);
    auto* halves_at = reinterpret_cast<uint16_t*>(at.data);
    if (at.low) return move_24_bits(grad, at, block, states);
    uint16_t bits[kStateBlock];
    const Rule& rule = *parameter_.rule;
    if (rule.stochastic && parameter_.dtype != Dtype::float32)
      random_bits(rule.seed, parameter_.index, rule.step, rule.first + uint64_t(block * kStateBlock), bits);
    auto random = [&](int64_t i) { return widen(load<U16>(bits + i)); };
    if (parameter_.dtype == Dtype::float32) {
      move_from(Floats{floats_at}, grad, at, states, [=](int64_t i, F32 p) { store(floats_at + i, p); });
      if (at.copy) narrow_all<to_bfloat16>(floats_at, at.copy, kStateBlock);
    } else if (parameter_.dtype == Dtype::float16) {
      Values values;
      const Floats p = floats(at.data, parameter_.dtype, values);
      if (rule.stochastic)
        move_from(p, grad, at, states, [&](int64_t i, F32 p) { store(halves_at + i, to_float16(p, random(i))); });
      else move_from(p, grad, at, states, [=](int64_t i, F32 p) { store(halves_at + i, to_float16(p)); });
    } else if (rule.stochastic) {
      move_from(Halves{halves_at}, grad, at, states,
                [&](int64_t i, F32 p) { store(halves_at + i, to_bfloat16(p, random(i))); });
    } else {
      move_from(Halves{halves_at}, grad, at, states, [=](int64_t i, F32 p) { store(halves_at + i, to_bfloat16(p)); });
    }
  }

  // The same of a bfloat16 parameter with a low byte.
  template <class Grad>
  void move_24_bits(Grad grad, const Place& at, int64_t block, States& states) const {
    auto* halves_at = reinterpret_cast<uint16_t*>(at.data);
    const HalvesAndBytes p{halves_at, at.low};
    auto put = [=](int64_t i, U32 word) {
      store(halves_at + i, bfloat16_of_24(word));
      store_second_bytes(at.low + i, word);
    };
    const Rule& rule = *parameter_.rule;
    if (!rule.stochastic) return move_from(p, grad, at, states, [=](int64_t i, F32 p) { put(i, to_24_bits(p)); });
    uint16_t bits[kStateBlock / 2];
    const uint64_t first = (rule.first + uint64_t(block * kStateBlock)) / 2;  // half-words
    random_bits(rule.seed, parameter_.index, rule.step, first, bits);
    const auto* bytes = reinterpret_cast<const uint8_t*>(bits);
    move_from(p, grad, at, states, [=](int64_t i, F32 p) { put(i, to_24_bits(p, (U32)load_bytes(bytes + i))); });
  }

  template <class Data, class Grad, class Put>
  void move_from(Data data, Grad grad, const Place& at, States& states, Put put) const {
    const AdamW rates = parameter_.rule->rates;
    float* ms = coded() ? states.m : reinterpret_cast<float*>(at.m);
    float* vs = coded() ? states.v : reinterpret_cast<float*>(at.v);
    F32 most_m{}, most_v{};
    auto step = [&](int64_t i, F32 kept_m, F32 kept_v) {
      const F32 g = grad.at(i);
      F32 m = kept_m + rates.one_minus_beta1 * g, v = kept_v + rates.one_minus_beta2 * g * g;
      const F32 p = data.at(i);
      put(i, p - (rates.decay * p + rates.step_size * m / (square_root(v) + rates.eps)));
      // what float32 cannot hold is forgotten: other codes of its block would be lost, and 0 times it is no number
      const U32 held = (U32)(v <= F32{} + kLargest);
      m = (F32)((U32)m & held);
      v = (F32)((U32)v & held);
      store(ms + i, m);
      store(vs + i, v);
      most_m = larger((F32)((U32)m & ~kSign), most_m);
      most_v = larger(v, most_v);
    };
    if (coded()) {
      coder_.decode(codes(at.m), codes(at.v), *at.absmax_m * rates.beta1, *at.absmax_v * rates.beta2, step);
      states.most_m = highest(most_m);
      states.most_v = highest(most_v);
    } else {
      for (int64_t i = 0; i < kStateBlock; i += kFloats)
        step(i, rates.beta1 * load<F32>(ms + i), rates.beta2 * load<F32>(vs + i));
    }
  }

  static uint8_t* codes(char* address) { return reinterpret_cast<uint8_t*>(address); }
  bool coded() const { return parameter_.absmax_m; }

  Coder coder_;
  const Parameter& parameter_;
};

// Elements of a last block in a room as large as a whole one, zeros behind them.
class Room {
 public:
  template <class T>
  Room(T*& address, int64_t size) : home_(reinterpret_cast<char*>(address)), size_(size) {
    if (!home_) return;
    std::memcpy(bytes_, home_, size);
    address = reinterpret_cast<T*>(bytes_);
  }
  void leave() const {
    if (home_) std::memcpy(home_, bytes_, size_);
  }

 private:
  alignas(64) char bytes_[kStateBlock * sizeof(float)] = {};
  char* home_;
  int64_t size_;
};

void step_part(const Stepper& stepper, const Parameter& parameter, int64_t block) {
  const int64_t count = parameter.count - block * kStateBlock, state_size = parameter.absmax_m ? count : 4 * count;
  Place at = place(parameter, block);
  const Room data(at.data, count * width(parameter.dtype)), grad(at.grad, count * width(parameter.grad_dtype)),
      m(at.m, state_size), v(at.v, state_size), copy(at.copy, count * 2), low(at.low, count);
  // the code 0 is not the value 0: what stands behind the last element could be the largest
  if (parameter.absmax_m) std::memset(at.m + count, kZero, kStateBlock - count);
  States states;
  stepper.move(at, block, states);
  stepper.code(at, states, at);
  data.leave(), m.leave(), v.leave(), copy.leave(), low.leave();
}

}  // namespace

void step_blocks(const Maps& maps, const Parameter& parameter, int64_t first, int64_t end) {
  const Stepper stepper(maps, parameter);
  const int64_t whole = end < parameter.count / kStateBlock ? end : parameter.count / kStateBlock;
  // A block is coded behind the next one's move: the latency of its largest magnitudes is not waited for.
  States states[2];
  for (int64_t block = first; block <= whole; ++block) {
    if (block < whole) stepper.move(place(parameter, block), block, states[block % 2]);
    const int64_t ahead = block + kAhead < whole ? block + kAhead : first;
    if (block > first) stepper.code(place(parameter, block - 1), states[(block - 1) % 2], place(parameter, ahead));
  }
  if (whole < end) step_part(stepper, parameter, whole);
}

}  // namespace fdpo::FDPO_ISA
