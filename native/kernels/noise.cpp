// Noise is drawn into a buffer that stays in the first cache, and drawn again for the gradients, so
// that nothing of a tensor's size is kept between the two passes.
#include "noise.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace latewood {
namespace LATEWOOD_ISA {

namespace {

// Two of them lie in each word, the low one first.
using Half [[gnu::may_alias]] = std::int16_t;

constexpr int counters = 16, lanes = 16;
constexpr std::int64_t stretch = 16 * noise_group;
constexpr std::int64_t tile_places = 2 * noise_group, tile_channels = 64;

// A counter in each 64-bit lane, of which the low half counts: products then need no shuffles, which
// compilers make most of the work.
#if defined(__AVX512F__)
using Lanes [[gnu::vector_size(64)]] = std::uint64_t;
inline Lanes times(Lanes a, Lanes b) { return Lanes(_mm512_mul_epu32(__m512i(a), __m512i(b))); }
#elif defined(__AVX2__)
using Lanes [[gnu::vector_size(32)]] = std::uint64_t;
inline Lanes times(Lanes a, Lanes b) { return Lanes(_mm256_mul_epu32(__m256i(a), __m256i(b))); }
#elif defined(__SSE2__)
using Lanes [[gnu::vector_size(16)]] = std::uint64_t;
inline Lanes times(Lanes a, Lanes b) { return Lanes(_mm_mul_epu32(__m128i(a), __m128i(b))); }
#else
using Lanes = std::uint64_t;
inline Lanes times(Lanes a, Lanes b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
#endif
constexpr int lane_count = int(sizeof(Lanes) / sizeof(std::uint64_t));

inline Lanes filled(std::uint64_t number) { return Lanes{} + number; }

struct Counters {
  Lanes c0, c1, c2, c3;

  inline void round(Lanes k0, Lanes k1) {
    const Lanes first = times(c0, filled(0xD2511F53u)), second = times(c2, filled(0xCD9E8D57u));
    c0 = (second >> 32) ^ c1 ^ k0;
    c2 = (first >> 32) ^ c3 ^ k1;
    c1 = second;
    c3 = first;
  }
};

// Philox 4x32-10 (Salmon et al. 2011) of 16 counters. Word w of counter k becomes word 16 w + k, so
// that vectors of counters are stored as they are.
inline void draw_group(std::uint64_t group, const std::uint32_t key[2], std::uint32_t *words) {
  Lanes places;
  const std::uint64_t twice[8] = {0, 2, 4, 6, 8, 10, 12, 14};
  __builtin_memcpy(&places, twice, sizeof places);
  const Lanes high = filled(group >> 28);
  for (int block = 0; block < counters; block += 2 * lane_count) {
    const Lanes low = filled((group << 4) + std::uint64_t(block)) + places;
    Counters even{low, high, Lanes{}, Lanes{}}, odd{low + 1, high, Lanes{}, Lanes{}};
    std::uint32_t k0 = key[0], k1 = key[1];
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const Lanes first = filled(k0), second = filled(k1);
      even.round(first, second);
      odd.round(first, second);
    }
    const auto store = [&](int word, Lanes a, Lanes b) {
      const Lanes both = (a & 0xFFFFFFFFu) | (b << 32);
      __builtin_memcpy(words + word * counters + block, &both, sizeof both);
    };
    store(0, even.c0, odd.c0);
    store(1, even.c1, odd.c1);
    store(2, even.c2, odd.c2);
    store(3, even.c3, odd.c3);
  }
}

// The noise of places [begin, end), at most `stretch` and one group more of them.
struct Drawn {
  alignas(64) std::uint32_t words[(stretch + noise_group) / 2];

  const Half *at(const std::uint32_t key[2], std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin / noise_group, last = (end + noise_group - 1) / noise_group;
    for (std::int64_t group = first; group < last; ++group)
      draw_group(std::uint64_t(group), key, words + (group - first) * noise_group / 2);
    return reinterpret_cast<const Half *>(words) + begin % noise_group;
  }
};

// Exact: 16 bits, in the middle of 65536 equal cells of [-1, 1].
inline float number(Half half) { return float(half) * 0x1p-15f + 0x1p-16f; }

// What is clipped leaves room for the noise.
struct Bounds {
  float low, high;

  Bounds(const NoiseRange &range, float width) : low(range.low + width), high(range.high - width) {}
  float operator()(float value) const { return value < low ? low : value > high ? high : value; }
  bool below(float value) const { return value < low; }
  bool above(float value) const { return !below(value) & (value > high); }
};

// A run of one channel.
template <bool clip>
void add_to_run(const float *__restrict values, const Half *__restrict halves,
                float *__restrict noisy, std::int64_t n, float width, const NoiseRange &range) {
  const Bounds bounds(range, width);
  for (std::int64_t i = 0; i < n; ++i)
    noisy[i] = (clip ? bounds(values[i]) : values[i]) + width * number(halves[i]);
}

// One element of each of several channels.
template <bool clip>
void add_to_row(const float *__restrict values, const Half *__restrict halves,
                float *__restrict noisy, std::int64_t n, const float *__restrict width,
                const NoiseRange &range) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Bounds bounds(range, width[i]);
    noisy[i] = (clip ? bounds(values[i]) : values[i]) + width[i] * number(halves[i]);
  }
}

// How an element moves with the width: with its noise, or with the bound that it lies on too. Sums
// instead of branches, which would keep loops from being vectorised.
template <bool clip>
inline float slope(const Bounds &bounds, float value, Half half) {
  return number(half) + (clip ? float(int(bounds.below(value)) - int(bounds.above(value))) : 0.0f);
}

template <bool clip>
inline float kept(const Bounds &bounds, float value, float gradient) {
  if (!clip) return gradient;
  // By its bits: a load behind a condition is not vectorised.
  std::int32_t bits;
  __builtin_memcpy(&bits, &gradient, sizeof bits);
  bits &= int((value < bounds.low) | (value > bounds.high)) - 1;
  __builtin_memcpy(&gradient, &bits, sizeof bits);
  return gradient;
}

// Sums in interleaved lanes: a fixed order that vectors can follow.
template <bool clip>
double back_through_run(const float *__restrict values, const float *__restrict gradient,
                        const Half *__restrict halves, float *__restrict values_gradient,
                        std::int64_t n, float width, const NoiseRange &range) {
  const Bounds bounds(range, width);
  float sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) {
      const std::int64_t k = i + lane;
      sums[lane] += gradient[k] * slope<clip>(bounds, clip ? values[k] : 0.0f, halves[k]);
    }
  double total = 0;
  for (; i < n; ++i)
    total += double(gradient[i] * slope<clip>(bounds, clip ? values[i] : 0.0f, halves[i]));
  if (n >= lanes)
    for (int lane = 0; lane < lanes; ++lane) total += double(sums[lane]);
  if (values_gradient)
    for (std::int64_t k = 0; k < n; ++k)
      values_gradient[k] = kept<clip>(bounds, clip ? values[k] : 0.0f, gradient[k]);
  return total;
}

template <bool clip>
void back_through_row(const float *__restrict values, const float *__restrict gradient,
                      const Half *__restrict halves, float *__restrict values_gradient,
                      std::int64_t n, const float *__restrict width, const NoiseRange &range,
                      double *__restrict sums) {
  constexpr int piece = 64;
  float products[piece];
  for (std::int64_t start = 0; start < n; start += piece) {
    const int count = int(n - start < piece ? n - start : piece);
    for (int k = 0; k < count; ++k) {
      const std::int64_t i = start + k;
      const Bounds bounds(range, width[i]);
      const float value = clip ? values[i] : 0.0f;
      products[k] = gradient[i] * slope<clip>(bounds, value, halves[i]);
    }
    for (int k = 0; k < count; ++k) sums[start + k] += double(products[k]);
    if (values_gradient)
      for (int k = 0; k < count; ++k) {
        const std::int64_t i = start + k;
        const Bounds bounds(range, width[i]);
        values_gradient[i] = kept<clip>(bounds, clip ? values[i] : 0.0f, gradient[i]);
      }
  }
}

// Calls run(start, halves, n, channel) for every run of one channel, or row(...) of the same for
// every row of channels, that makes up [begin, end) of the memory's elements.
template <typename Run, typename Row>
void walk(const NoiseLayout &layout, std::int64_t begin, std::int64_t end, const Run &run,
          const Row &row) {
  Drawn drawn;
  const std::int64_t inner = layout.inner, channels = layout.channels;
  if (!layout.channels_last) {
    for (std::int64_t i = begin, next; i < end; i = next) {
      // Up to the border of a group, so that none is drawn twice.
      next = (i / noise_group) * noise_group + stretch;
      if (next > end) next = end;
      const Half *halves = drawn.at(layout.key, i, next);
      std::int64_t channel = i / inner % channels, border = (i / inner + 1) * inner;
      for (std::int64_t k = i; k < next;) {
        if (inner == 1) {
          const std::int64_t n = next - k < channels - channel ? next - k : channels - channel;
          row(k, halves + (k - i), n, channel);
          k += n;
          channel = 0;
          continue;
        }
        const std::int64_t stop = border < next ? border : next;
        run(k, halves + (k - i), stop - k, channel);
        k = stop;
        border += inner;
        if (++channel == channels) channel = 0;
      }
    }
    return;
  }
  Half turned[tile_places * tile_channels];
  for (std::int64_t item = begin; item < end; item += channels * inner)
    for (std::int64_t place = 0; place < inner; place += tile_places)
      for (std::int64_t channel = 0; channel < channels; channel += tile_channels) {
        const std::int64_t places = inner - place < tile_places ? inner - place : tile_places;
        const std::int64_t width =
            channels - channel < tile_channels ? channels - channel : tile_channels;
        for (std::int64_t c = 0; c < width; ++c) {
          const std::int64_t first = item + (channel + c) * inner + place;
          const Half *halves = drawn.at(layout.key, first, first + places);
          for (std::int64_t p = 0; p < places; ++p) turned[p * tile_channels + c] = halves[p];
        }
        for (std::int64_t p = 0; p < places; ++p)
          row(item + (place + p) * channels + channel, turned + p * tile_channels, width, channel);
      }
}

template <bool clip>
void forward(const NoiseLayout &layout, const NoiseRange &range, const float *values, float *noisy,
             std::int64_t begin, std::int64_t end) {
  walk(
      layout, begin, end,
      [&](std::int64_t start, const Half *halves, std::int64_t n, std::int64_t channel) {
        add_to_run<clip>(values + start, halves, noisy + start, n, range.width[channel], range);
      },
      [&](std::int64_t start, const Half *halves, std::int64_t n, std::int64_t channel) {
        add_to_row<clip>(values + start, halves, noisy + start, n, range.width + channel, range);
      });
}

template <bool clip>
void backward(const NoiseLayout &layout, const NoiseRange &range, const float *values,
              const float *gradient, float *values_gradient, double *sums, std::int64_t begin,
              std::int64_t end) {
  const auto at = [](auto *tensor, std::int64_t start) { return tensor ? tensor + start : tensor; };
  walk(
      layout, begin, end,
      [&](std::int64_t start, const Half *halves, std::int64_t n, std::int64_t channel) {
        sums[channel] += back_through_run<clip>(at(values, start), gradient + start, halves,
                                                at(values_gradient, start), n,
                                                range.width[channel], range);
      },
      [&](std::int64_t start, const Half *halves, std::int64_t n, std::int64_t channel) {
        back_through_row<clip>(at(values, start), gradient + start, halves,
                               at(values_gradient, start), n, range.width + channel, range,
                               sums + channel);
      });
}

}  // namespace

void noise_draw(const std::uint32_t key[2], std::int64_t begin, std::int64_t end, float *noise) {
  Drawn drawn;
  for (std::int64_t i = begin, next; i < end; i = next) {
    next = i + stretch < end ? i + stretch : end;
    const Half *halves = drawn.at(key, i, next);
    for (std::int64_t k = i; k < next; ++k) noise[k] = number(halves[k - i]);
  }
}

void noise_forward(const NoiseLayout &layout, const NoiseRange &range, const float *values,
                   float *noisy, std::int64_t begin, std::int64_t end) {
  (range.clips ? forward<true> : forward<false>)(layout, range, values, noisy, begin, end);
}

void noise_backward(const NoiseLayout &layout, const NoiseRange &range, const float *values,
                    const float *gradient, float *values_gradient, double *sums,
                    std::int64_t begin, std::int64_t end) {
  (range.clips ? backward<true> : backward<false>)(layout, range, values, gradient, values_gradient,
                                                 sums, begin, end);
}

// Sums 32 interleaved lanes in float over short stretches, and those in double.
NoiseExtent noise_extent(const float *values, std::int64_t begin, std::int64_t end) {
  constexpr int wide = 32;
  constexpr std::int64_t length = 1024;
  float least[wide], largest[wide];
  for (int lane = 0; lane < wide; ++lane) least[lane] = largest[lane] = values[begin];
  double total = 0;
  for (std::int64_t start = begin; start < end; start += length) {
    const std::int64_t stop = end - start < length ? end : start + length;
    float squares[wide] = {};
    const auto look = [&](std::int64_t i, int lane) {
      const float value = values[i];
      squares[lane] += value * value;
      least[lane] = value < least[lane] ? value : least[lane];
      largest[lane] = value > largest[lane] ? value : largest[lane];
    };
    std::int64_t i = start;
    for (; i + wide <= stop; i += wide)
      for (int lane = 0; lane < wide; ++lane) look(i + lane, lane);
    for (int lane = 0; i < stop; ++i, ++lane) look(i, lane);
    for (int lane = 0; lane < wide; ++lane) total += double(squares[lane]);
  }
  for (int lane = 1; lane < wide; ++lane) {
    least[0] = least[lane] < least[0] ? least[lane] : least[0];
    largest[0] = largest[lane] > largest[0] ? largest[lane] : largest[0];
  }
  // No sum of squares but that of a NaN is one.
  if (total != total) least[0] = largest[0] = float(total);
  return {total, least[0], largest[0]};
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
