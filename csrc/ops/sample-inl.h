// Logits to the next token of a row, without a sort: most of the vocabulary is ruled out by the
// largest logit of each block of 64 tokens, the rest is cut by radix selection. Included once per
// target, after its simd header. Contract: sample.h; the plain form: src/ossia/kernels/sampling.py.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sample.h"

namespace ossia::OSSIA_TARGET {

constexpr int kNoToken = -1;
constexpr int kTokens = 64;    // of a block
constexpr int kDigits = 8192;  // of the upper 14 bits of a positive double, up to infinity
// No weight of a block exceeds that of its largest logit divided by this: exp is not monotonic in
// its last bits.
constexpr double kMargin = 1 - 0x1p-48;

inline int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
OSSIA_INLINE uint64_t BitsOfF64(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  return bits;
}
OSSIA_INLINE double F64OfBits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, 8);
  return x;
}
OSSIA_INLINE F64x8 LoadWide(const float* p) { return WidenF32(p); }
OSSIA_INLINE F64x8 LoadWide(const double* p) { return LoadF64(p); }

// -- Workspace -------------------------------------------------------------------------------

struct SampleSpace {
  int num_blocks;
  int64_t padded;      // tokens in whole blocks
  double* modified;    // [padded] logits after penalties, bias and mask
  double* weights;     // [padded]
  uint64_t* items;     // [padded]
  double* raw_maxima;  // [num_blocks, rounded up to 64] each; -inf behind the last block
  double* maxima;
  double* block_weights;  // of the maxima
  double* sums;           // of the weights of the candidates' blocks
  int32_t* blocks;        // the candidates' blocks
  double* histogram;      // [kDigits]

  // At `base`, which may be null: returns the end.
  size_t Place(void* base, int vocab) {
    num_blocks = static_cast<int>(RoundUp(vocab, kTokens) / kTokens);
    padded = static_cast<int64_t>(num_blocks) * kTokens;
    const int64_t room = RoundUp(num_blocks, kTokens);
    size_t end = 0;
    const auto take = [&](auto** p, int64_t count) {
      *p = reinterpret_cast<decltype(*p + 0)>(reinterpret_cast<uintptr_t>(base) + end);
      end += static_cast<size_t>(RoundUp(count * static_cast<int64_t>(sizeof(**p)), 64));
    };
    take(&modified, padded);
    take(&weights, padded);
    take(&items, padded);
    take(&raw_maxima, room);
    take(&maxima, room);
    take(&block_weights, room);
    take(&sums, room);
    take(&blocks, room);
    take(&histogram, kDigits);
    return end;
  }
};

inline size_t SampleWorkspaceBytes(int vocab) {
  SampleSpace space;
  return space.Place(nullptr, vocab);
}

// -- Randomness ------------------------------------------------------------------------------

// Philox4x32-10 as in philox.py: a multiple of 2^-53 in [0, 1).
inline double PhiloxUniform(uint64_t seed, uint64_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32);
  uint32_t c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t bits = (static_cast<uint64_t>(c1) << 32 | c0) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

// -- Weights ---------------------------------------------------------------------------------

// e^t for t <= 0, within 1.13 ulp: 2^n * p(r), r = t - n ln 2. Exactly 1 at 0; 0 below -708, where
// float64 would become denormal. No fma, because without hardware for it a scalar build would take
// a hundred times longer. p is 1 + r + r^2 q(r), q of degree 9 interpolating (e^r - 1 - r) / r^2 at
// the Chebyshev nodes of |r| <= ln 2 / 2: relative error 1.6e-17.
OSSIA_INLINE F64x8 ExpF64(F64x8 t) {
  const F64x8 to_whole = SetF64(0x1.8p52);  // the sum's lowest bits are the rounded number
  const F64x8 shifted = AddF64(MulF64(t, SetF64(1.4426950408889634)), to_whole);
  const F64x8 n = SubF64(shifted, to_whole);
  // The first part of ln 2 has 42 bits, so that its product with n is exact.
  const F64x8 r = SubF64(SubF64(t, MulF64(n, SetF64(0x1.62e42fefa38p-1))),
                         MulF64(n, SetF64(0x1.ef35793c7673p-45)));
  F64x8 q = SetF64(0x1.af389eea54156p-26);
  q = AddF64(MulF64(q, r), SetF64(0x1.28917c9f3a495p-22));
  q = AddF64(MulF64(q, r), SetF64(0x1.71de0db2eb873p-19));
  q = AddF64(MulF64(q, r), SetF64(0x1.a019b914881bap-16));
  q = AddF64(MulF64(q, r), SetF64(0x1.a01a01a7c2f2cp-13));
  q = AddF64(MulF64(q, r), SetF64(0x1.6c16c17889f3cp-10));
  q = AddF64(MulF64(q, r), SetF64(0x1.11111111109b5p-7));
  q = AddF64(MulF64(q, r), SetF64(0x1.5555555553d68p-5));
  q = AddF64(MulF64(q, r), SetF64(0x1.5555555555556p-3));
  q = AddF64(MulF64(q, r), SetF64(0.5));
  const F64x8 p = AddF64(SetF64(1), AddF64(r, MulF64(MulF64(r, r), q)));
  return IfLessF64(t, SetF64(-708), SetF64(0), AddExponentF64(p, shifted));
}

// The weights of 64 logits, and their sum. NaN of inf - inf counts as 0: logits of +inf share all.
template <bool kDivide, class T>
OSSIA_INLINE double BlockWeights(const T* logits, F64x8 largest, F64x8 temperature, double* out) {
  F64x8 sum = SetF64(0);
  for (int i = 0; i < kTokens; i += 8) {
    F64x8 t = MinF64(SubF64(LoadWide(logits + i), largest), SetF64(0));
    if (kDivide) t = DivF64(t, temperature);
    const F64x8 w = ExpF64(t);
    StoreF64(w, out + i);
    sum = AddF64(sum, w);
  }
  return SumLanesF64(sum);
}

// The 64 logits of a block: in place, or at the end of the row in `tail`, followed by -inf.
template <class T>
OSSIA_INLINE const T* BlockAt(const T* logits, int64_t count, int block, T* tail) {
  const int64_t first = static_cast<int64_t>(block) * kTokens;
  if (first + kTokens <= count) return logits + first;
  for (int i = 0; i < kTokens; ++i) tail[i] = first + i < count ? logits[first + i] : -INFINITY;
  return tail;
}

// Weights of the blocks that `blocks` lists (of all, where it is null), and the sum of each.
template <bool kDivide, class T>
inline void WeightsOf(const T* logits, int64_t count, const int32_t* blocks, int num_blocks,
                      double largest, double temperature, double* weights, double* sums) {
  T tail[kTokens];
  const F64x8 most = SetF64(largest), divisor = SetF64(temperature);
  for (int j = 0; j < num_blocks; ++j) {
    const T* p = BlockAt(logits, count, blocks == nullptr ? j : blocks[j], tail);
    sums[j] = BlockWeights<kDivide>(p, most, divisor, weights + static_cast<int64_t>(j) * kTokens);
  }
}

// -- Largest logits --------------------------------------------------------------------------

inline void PadMaxima(const SampleSpace& s, double* maxima) {
  const int64_t room = RoundUp(s.num_blocks, kTokens);
  for (int64_t i = s.num_blocks; i < room; ++i) maxima[i] = -INFINITY;
}

// The largest logit of each block. False if there is a NaN.
inline bool FloatMaxima(const SampleSpace& s, const float* logits, int vocab, double* maxima) {
  float tail[kTokens];
  I32x16 bits = SetI32(0);
  for (int j = 0; j < s.num_blocks; ++j) {
    const float* p = BlockAt(logits, vocab, j, tail);
    const F32x16 a = Load(p), b = Load(p + 16), c = Load(p + 32), d = Load(p + 48);
    bits = MaxI32(bits, MaxI32(MaxI32(AbsBits(a), AbsBits(b)), MaxI32(AbsBits(c), AbsBits(d))));
    maxima[j] = MaxLanes(Max(Max(a, b), Max(c, d)));
  }
  PadMaxima(s, maxima);
  return MaxLanesI32(bits) <= 0x7F800000;  // the bits of infinity
}

inline void ModifiedMaxima(const SampleSpace& s) {
  for (int j = 0; j < s.num_blocks; ++j) {
    const double* p = s.modified + static_cast<int64_t>(j) * kTokens;
    F64x8 most = LoadF64(p);
    for (int i = 8; i < kTokens; i += 8) most = MaxF64(most, LoadF64(p + i));
    s.maxima[j] = MaxLanesF64(most);
  }
  PadMaxima(s, s.maxima);
}

inline double LargestOf(const SampleSpace& s, const double* maxima) {
  double largest = -INFINITY;
  for (int j = 0; j < s.num_blocks; ++j) largest = maxima[j] > largest ? maxima[j] : largest;
  return largest;
}

template <class T>
inline int FirstEqual(const T* logits, int64_t count, const double* maxima, double largest) {
  int j = 0;
  while (maxima[j] != largest) ++j;
  int64_t i = static_cast<int64_t>(j) * kTokens;
  while (i < count - 1 && static_cast<double>(logits[i]) != largest) ++i;
  return static_cast<int>(i);
}

// -- Penalties, bias and mask ----------------------------------------------------------------

inline bool IsModified(const SampleArgs& a) {
  return a.repetition_penalty != 1 || a.presence_penalty != 0 || a.frequency_penalty != 0 ||
         a.num_biases > 0 || a.mask != nullptr;
}

// Changes single logits of s.modified; what the mask forbids stays -inf.
struct Modifier {
  const SampleArgs& a;
  double* logits;
  int32_t* counts;  // [vocab], all 0 between the steps
  bool valid;       // no NaN

  OSSIA_INLINE void Set(int32_t token, double value) {
    if (a.mask != nullptr && (a.mask[token / 32] >> (token % 32) & 1) == 0) return;
    logits[token] = value;
    valid = valid && value == value;
  }

  void Repetition(const int32_t* ids, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (counts[ids[i]]++ != 0) continue;
      const double x = logits[ids[i]];
      Set(ids[i], x > 0 ? x / a.repetition_penalty : x * a.repetition_penalty);
    }
  }

  void Forget(const int32_t* ids, int64_t n) {
    for (int64_t i = 0; i < n; ++i) counts[ids[i]] = 0;
  }

  void PresenceAndFrequency() {
    for (int64_t i = 0; i < a.num_output_ids; ++i) ++counts[a.output_ids[i]];
    for (int64_t i = 0; i < a.num_output_ids; ++i) {
      const int32_t token = a.output_ids[i];
      if (counts[token] == 0) continue;
      const double times = counts[token];
      Set(token, logits[token] - (a.presence_penalty + a.frequency_penalty * times));
      counts[token] = 0;
    }
  }
};

// Fills s.modified. False if a logit that the mask allows has become NaN.
inline bool Modify(const SampleArgs& a, const SampleSpace& s) {
  float tail[kTokens];
  const int64_t num_words = RoundUp(a.vocab, 32) / 32;
  const F64x8 never = SetF64(-INFINITY);
  for (int j = 0; j < s.num_blocks; ++j) {
    const float* p = BlockAt(a.logits, a.vocab, j, tail);
    double* out = s.modified + static_cast<int64_t>(j) * kTokens;
    for (int i = 0; i < kTokens; i += 8) {
      F64x8 x = WidenF32(p + i);
      if (a.mask != nullptr) {
        const int64_t word = 2 * static_cast<int64_t>(j) + i / 32;
        x = KeepBitsF64(x, word < num_words ? a.mask[word] >> (i % 32) & 255 : 0, never);
      }
      StoreF64(x, out + i);
    }
  }
  Modifier m = {a, s.modified, reinterpret_cast<int32_t*>(s.weights), true};
  const bool repetition = a.repetition_penalty != 1;
  const bool counted = a.presence_penalty != 0 || a.frequency_penalty != 0;
  if (repetition || counted) memset(m.counts, 0, sizeof(int32_t) * static_cast<size_t>(a.vocab));
  if (repetition) {
    m.Repetition(a.prompt_ids, a.num_prompt_ids);
    m.Repetition(a.output_ids, a.num_output_ids);
    m.Forget(a.prompt_ids, a.num_prompt_ids);
    m.Forget(a.output_ids, a.num_output_ids);
  }
  if (counted) m.PresenceAndFrequency();
  for (int64_t i = 0; i < a.num_biases; ++i) {
    m.Set(a.bias_ids[i], m.logits[a.bias_ids[i]] + a.bias_values[i]);
  }
  return m.valid;
}

// -- Selection -------------------------------------------------------------------------------

// Stay: the items above `key`, and the first `room` of the `equal` ones that equal it.
struct Cut {
  uint64_t key;
  int64_t room, equal;
};

// One round of Select: finds the digit at which the largest items reach the target, and keeps the
// items that have it, in `kept`. Returns how many. All items agree in the bits above the digit.
template <bool kWeighted>
OSSIA_INLINE int64_t SelectDigit(const char* items, int64_t count, int shift, uint64_t digits,
                                 double target, double* histogram, double* above, uint64_t* key,
                                 uint64_t* kept) {
  memset(histogram, 0, digits * sizeof(double));
  for (int64_t i = 0; i < count; ++i) {
    uint64_t item;
    memcpy(&item, items + 8 * i, 8);
    histogram[item >> shift & (digits - 1)] += kWeighted ? F64OfBits(item) : 1;
  }
  uint64_t digit = 0;
  double before = *above, reached = before;
  for (uint64_t d = digits; d-- > 0;) {
    if (histogram[d] == 0) continue;
    digit = d;
    before = reached;
    reached += histogram[d];
    if (reached >= target) break;
  }
  *above = before;
  *key |= digit << shift;
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t item;
    memcpy(&item, items + 8 * i, 8);
    kept[n] = item;
    n += item - *key < 1ull << shift;
  }
  return n;
}

// The fewest of the largest items whose number (or weight) reaches `target`; all, if none does. An
// item is the bits of a double >= 0. Radix selection from the top digit, 14 bits, down by 10 each;
// `scratch` holds as many items as there are.
template <bool kWeighted>
inline Cut Select(const void* items, int64_t count, double target, double* histogram,
                  uint64_t* scratch) {
  double above = 0;
  Cut cut = {0, 0, 0};
  count = SelectDigit<kWeighted>(static_cast<const char*>(items), count, 50, kDigits, target,
                                 histogram, &above, &cut.key, scratch);
  for (int shift = 40; shift >= 0; shift -= 10) {
    count = SelectDigit<kWeighted>(reinterpret_cast<const char*>(scratch), count, shift, 1024,
                                   target, histogram, &above, &cut.key, scratch);
  }
  cut.equal = count;
  do {
    above += kWeighted ? F64OfBits(cut.key) : 1;
    ++cut.room;
  } while (cut.room < count && above < target);
  return cut;
}

// The tokens that may still be drawn: those of some blocks, in the order of ids; 0: ruled out.
struct Candidates {
  const SampleSpace& s;
  int num_blocks;

  int64_t size() const { return static_cast<int64_t>(num_blocks) * kTokens; }
  double Total() const {
    double total = 0;
    for (int j = 0; j < num_blocks; ++j) total += s.sums[j];
    return total;
  }

  // Leave the blocks out whose largest weight is below `least`.
  void LeaveOut(double least) {
    int kept = 0;
    for (int j = 0; j < num_blocks; ++j) {
      if (s.block_weights[s.blocks[j]] < least * kMargin) continue;
      if (kept != j) {
        memcpy(s.weights + static_cast<int64_t>(kept) * kTokens,
               s.weights + static_cast<int64_t>(j) * kTokens, kTokens * sizeof(double));
        s.blocks[kept] = s.blocks[j];
        s.sums[kept] = s.sums[j];
      }
      ++kept;
    }
    num_blocks = kept;
  }

  void SetSum(int block) {
    const double* p = s.weights + static_cast<int64_t>(block) * kTokens;
    F64x8 sum = SetF64(0);
    for (int i = 0; i < kTokens; i += 8) sum = AddF64(sum, LoadF64(p + i));
    s.sums[block] = SumLanesF64(sum);
  }

  // Rule the weights below `least` out.
  void Keep(double least) {
    const F64x8 bound = SetF64(least), zero = SetF64(0);
    for (int j = 0; j < num_blocks; ++j) {
      double* p = s.weights + static_cast<int64_t>(j) * kTokens;
      F64x8 sum = zero;
      for (int i = 0; i < kTokens; i += 8) {
        const F64x8 w = LoadF64(p + i), kept = IfLessF64(w, bound, zero, w);
        StoreF64(kept, p + i);
        sum = AddF64(sum, kept);
      }
      s.sums[j] = SumLanesF64(sum);
    }
  }

  // Rule out what the cut does; of equals the lowest ids stay.
  void Keep(Cut cut) {
    const double least = F64OfBits(cut.key);
    Keep(least);
    int64_t extra = least > 0 ? cut.equal - cut.room : 0;
    for (int j = num_blocks - 1; extra > 0; --j) {
      double* p = s.weights + static_cast<int64_t>(j) * kTokens;
      for (int i = kTokens - 1; i >= 0 && extra > 0; --i) {
        if (p[i] != least) continue;
        p[i] = 0;
        --extra;
      }
      SetSum(j);
    }
  }

  // Inverse CDF in the order of ids.
  int Draw(double uniform) const {
    const double target = uniform * Total();
    double so_far = 0;
    for (int j = 0; j < num_blocks; ++j) {
      if (!(so_far + s.sums[j] > target)) {
        so_far += s.sums[j];
        continue;
      }
      // The sum in another order may fall short of the target by rounding: then the block's last.
      const double* p = s.weights + static_cast<int64_t>(j) * kTokens;
      int last = 0;
      for (int i = 0; i < kTokens; ++i) {
        if (!(p[i] > 0)) continue;
        last = i;
        so_far += p[i];
        if (so_far > target) break;
      }
      return s.blocks[j] * kTokens + last;
    }
    return kNoToken;
  }
};

// -- Draw ------------------------------------------------------------------------------------

// Lists the blocks that may hold a token that top-k and min-p let stay, with their weights.
template <bool kDivide, class T>
inline Candidates CandidatesOf(const SampleArgs& a, const SampleSpace& s, const T* logits,
                               int64_t count, const double* maxima, double largest) {
  WeightsOf<kDivide>(maxima, RoundUp(s.num_blocks, kTokens), nullptr,
                     static_cast<int>(RoundUp(s.num_blocks, kTokens) / kTokens), largest,
                     a.temperature, s.block_weights, s.sums);
  double bound = 0;
  if (a.top_k > 0 && a.top_k <= s.num_blocks) {  // so many blocks have a token as good as this
    bound =
        F64OfBits(Select<false>(s.block_weights, s.num_blocks, a.top_k, s.histogram, s.items).key);
  }
  // Top-p would count what min-p leaves out.
  if (!(a.top_p < 1) && a.min_p > bound) bound = a.min_p;
  Candidates candidates = {s, 0};
  for (int j = 0; j < s.num_blocks; ++j) {
    const double w = s.block_weights[j];
    if (w > 0 && w >= bound * kMargin) s.blocks[candidates.num_blocks++] = j;
  }
  WeightsOf<kDivide>(logits, count, s.blocks, candidates.num_blocks, largest, a.temperature,
                     s.weights, s.sums);
  return candidates;
}

template <class T>
inline int Draw(const SampleArgs& a, const SampleSpace& s, const T* logits, int64_t count,
                const double* maxima) {
  const double largest = LargestOf(s, maxima);
  if (!(largest > -INFINITY)) return kNoToken;
  if (a.temperature == 0) return FirstEqual(logits, count, maxima, largest);
  Candidates candidates = a.temperature == 1
                              ? CandidatesOf<false>(a, s, logits, count, maxima, largest)
                              : CandidatesOf<true>(a, s, logits, count, maxima, largest);
  if (a.top_k > 0 && a.top_k < a.vocab) {
    candidates.Keep(Select<false>(s.weights, candidates.size(), a.top_k, s.histogram, s.items));
  }
  if (a.top_p < 1) {
    const double total = candidates.Total();
    // All weights below this together are less than the share 1 - p.
    candidates.LeaveOut((1 - a.top_p) * total / a.vocab);
    candidates.Keep(
        Select<true>(s.weights, candidates.size(), a.top_p * total, s.histogram, s.items));
  }
  if (a.min_p > 0) candidates.Keep(a.min_p);  // the largest weight is 1
  return candidates.Draw(PhiloxUniform(a.seed, a.position));
}

// -- Log-probabilities -----------------------------------------------------------------------

struct LogSoftmax {
  double largest, log_sum;
  double operator()(double logit) const {
    return (logit == largest ? 0 : logit - largest) - log_sum;
  }
  // Items for Select: a log-probability is at most 0.
  uint64_t Key(double logit) const { return BitsOfF64(INFINITY) - BitsOfF64(0.0 - (*this)(logit)); }
};

inline LogSoftmax LogSoftmaxOf(const SampleArgs& a, const SampleSpace& s) {
  LogSoftmax f = {LargestOf(s, s.raw_maxima), 0};
  float tail[kTokens];
  double weights[kTokens], sum = 0;
  for (int j = 0; j < s.num_blocks; ++j) {
    const float* p = BlockAt(a.logits, a.vocab, j, tail);
    sum += BlockWeights<false>(p, SetF64(f.largest), SetF64(1), weights);
  }
  f.log_sum = log(sum);
  return f;
}

struct Ranked {
  int32_t* ids;
  double* values;

  bool Before(int64_t i, int64_t j) const {
    return values[i] > values[j] || (values[i] == values[j] && ids[i] < ids[j]);
  }
  void Swap(int64_t i, int64_t j) {
    const int32_t id = ids[i];
    const double value = values[i];
    ids[i] = ids[j], values[i] = values[j];
    ids[j] = id, values[j] = value;
  }
  void Sink(int64_t i, int64_t count) {
    for (int64_t child; (child = 2 * i + 1) < count; i = child) {
      if (child + 1 < count && Before(child, child + 1)) ++child;
      if (!Before(i, child)) return;
      Swap(i, child);
    }
  }
  // Heapsort: the value largest first, of equals the lowest id.
  void Sort(int64_t count) {
    for (int64_t i = count / 2; i-- > 0;) Sink(i, count);
    for (int64_t end = count - 1; end > 0; --end) {
      Swap(0, end);
      Sink(0, end);
    }
  }
};

inline void TopLogprobs(const SampleArgs& a, const SampleSpace& s, const LogSoftmax& f, int n) {
  // A block whose best is worse than the n-th best of the blocks has none of the best n tokens.
  uint64_t* keys = reinterpret_cast<uint64_t*>(s.block_weights);
  for (int j = 0; j < s.num_blocks; ++j) keys[j] = f.Key(s.raw_maxima[j]);
  const uint64_t bound =
      n <= s.num_blocks ? Select<false>(keys, s.num_blocks, n, s.histogram, s.items).key : 0;
  int num_blocks = 0;
  for (int j = 0; j < s.num_blocks; ++j) {
    if (keys[j] >= bound) s.blocks[num_blocks++] = j;
  }
  uint64_t* items = reinterpret_cast<uint64_t*>(s.weights);
  float tail[kTokens];
  for (int j = 0; j < num_blocks; ++j) {
    const float* p = BlockAt(a.logits, a.vocab, s.blocks[j], tail);
    for (int i = 0; i < kTokens; ++i) items[static_cast<int64_t>(j) * kTokens + i] = f.Key(p[i]);
  }
  const int64_t count = static_cast<int64_t>(num_blocks) * kTokens;
  Cut cut = Select<false>(items, count, n, s.histogram, s.items);
  Ranked ranked = {a.top_ids, a.top_logprob_values};
  int64_t found = 0;
  for (int64_t i = 0; i < count && found < n; ++i) {
    if (items[i] < cut.key || (items[i] == cut.key && --cut.room < 0)) continue;
    const int32_t token = s.blocks[i / kTokens] * kTokens + static_cast<int32_t>(i % kTokens);
    ranked.ids[found] = token;
    ranked.values[found++] = f(a.logits[token]);
  }
  ranked.Sort(n);
}

inline void SampleRow(const SampleArgs& a) {
  SampleSpace s;
  s.Place(a.workspace, a.vocab);
  *a.id = kNoToken;
  *a.logprob = NAN;
  if (!FloatMaxima(s, a.logits, a.vocab, s.raw_maxima)) return;
  if (!IsModified(a)) {
    *a.id = Draw(a, s, a.logits, a.vocab, s.raw_maxima);
  } else if (Modify(a, s)) {
    ModifiedMaxima(s);
    *a.id = Draw(a, s, s.modified, s.padded, s.maxima);
  }
  if (*a.id == kNoToken || a.top_logprobs < 0) return;
  const LogSoftmax f = LogSoftmaxOf(a, s);
  *a.logprob = f(a.logits[*a.id]);
  const int n = a.top_logprobs < a.vocab ? a.top_logprobs : a.vocab;
  if (n > 0) TopLogprobs(a, s, f, n);
}

}  // namespace ossia::OSSIA_TARGET
