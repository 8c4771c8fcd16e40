// Lanes of several cells are made side by side, since each step of a generator waits for the one
// before it; digits, limits and sums are plain loops over integers that fit the cache.
#include "faults.hpp"

#include <algorithm>
#include <cstring>

namespace latewood {
namespace LATEWOOD_ISA {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lanes are cut from the low end of words");

namespace {

using Wide = unsigned __int128;

constexpr std::uint64_t multiplier = 0xda942042e4dd58b5ULL;
constexpr int chunk = 1024, lanes_per_word = 4;
constexpr int words_per_chunk = chunk / lanes_per_word + 1;

// NumPy's PCG64DXSM: the output is a hash of the state before it steps.
struct Generator {
  Wide state, increment;

  std::uint64_t next() {
    std::uint64_t high = std::uint64_t(state >> 64);
    const std::uint64_t low = std::uint64_t(state) | 1;
    high ^= high >> 32;
    high *= multiplier;
    high ^= high >> 48;
    high *= low;
    state = state * multiplier + increment;
    return high;
  }

  // Steps `distance` times at once: x -> a x + c is applied to itself by doubling.
  void skip(std::uint64_t distance) {
    Wide factor = 1, term = 0, a = multiplier, c = increment;
    for (; distance; distance >>= 1) {
      if (distance & 1) {
        factor *= a;
        term = term * a + c;
      }
      c = (a + 1) * c;
      a *= a;
    }
    state = factor * state + term;
  }
};

// The lanes of one cell from some place on, a chunk after the other.
struct Lanes {
  Generator generator;
  std::uint16_t lanes[lanes_per_word * words_per_chunk];
  int offset;

  void start(const FaultStream &stream, std::uint64_t lane) {
    generator.state = (Wide(stream.state_high) << 64) | stream.state_low;
    generator.increment = (Wide(stream.increment_high) << 64) | stream.increment_low;
    generator.skip(lane / lanes_per_word);
    offset = int(lane % lanes_per_word);
    // The word that a chunk ends in may be the one that the next begins with.
    put(words_per_chunk - 1, generator.next());
  }

  void put(int place, std::uint64_t word) {
    std::memcpy(lanes + lanes_per_word * place, &word, sizeof word);
  }

  void carry() {
    std::memcpy(lanes, lanes + lanes_per_word * (words_per_chunk - 1), sizeof(std::uint64_t));
  }

  const std::uint16_t *begin() const { return lanes + offset; }
};

template <int side_by_side>
inline void fill_together(Lanes *lanes) {
  Generator generators[side_by_side];
  for (int s = 0; s < side_by_side; ++s) {
    generators[s] = lanes[s].generator;
    lanes[s].carry();
  }
  for (int w = 1; w < words_per_chunk; ++w)
    for (int s = 0; s < side_by_side; ++s) lanes[s].put(w, generators[s].next());
  for (int s = 0; s < side_by_side; ++s) lanes[s].generator = generators[s];
}

inline void fill(Lanes *lanes, int count) {
  int c = 0;
  for (; c + 4 <= count; c += 4) fill_together<4>(lanes + c);
  for (; c + 2 <= count; c += 2) fill_together<2>(lanes + c);
  for (; c < count; ++c) fill_together<1>(lanes + c);
}

inline std::int32_t number_of(std::int32_t code, int source, std::int32_t offset,
                              std::int32_t mask) {
  if (source == 0) return code > 0 ? code : 0;
  if (source == 1) return code < 0 ? -code : 0;
  return (code + offset) & mask;
}

template <int source>
inline void add_cell(const std::int32_t *__restrict codes, const std::uint16_t *__restrict lanes,
                     std::int32_t *__restrict read, int count, const FaultCells &cells, int c,
                     const FaultLimits &limits) {
  const std::int32_t low = limits.low, high = limits.high, mask = cells.digit_mask;
  const std::int32_t offset = cells.offset, number_mask = cells.number_mask;
  const std::int32_t shift = cells.shift[c], sign = cells.sign[c], stuck = cells.stuck[c];
  for (int i = 0; i < count; ++i) {
    const std::int32_t lane = lanes[i];
    const std::int32_t digit = (number_of(codes[i], source, offset, number_mask) >> shift) & mask;
    const std::int32_t level = lane < low ? 0 : lane >= high ? stuck : digit;
    read[i] += sign * (level << shift);
  }
}

}  // namespace

void faults_read_drawn(const std::int32_t *codes, std::int32_t *read, std::int64_t n,
                       std::int64_t begin, std::int64_t count, const FaultCells &cells,
                       const FaultLimits &limits, const FaultStream &stream) {
  Lanes lanes[most_fault_cells];
  for (int c = 0; c < cells.count; ++c) lanes[c].start(stream, std::uint64_t(c * n + begin));
  for (std::int64_t done = 0; done < count; done += chunk) {
    const int size = int(std::min<std::int64_t>(chunk, count - done));
    const std::int32_t *from = codes + begin + done;
    std::int32_t *to = read + begin + done;
    fill(lanes, cells.count);
    for (int i = 0; i < size; ++i) to[i] = -cells.offset;
    for (int c = 0; c < cells.count; ++c) {
      const std::uint16_t *drawn = lanes[c].begin();
      if (cells.source[c] == 0) add_cell<0>(from, drawn, to, size, cells, c, limits);
      else if (cells.source[c] == 1) add_cell<1>(from, drawn, to, size, cells, c, limits);
      else add_cell<2>(from, drawn, to, size, cells, c, limits);
    }
  }
}

void faults_draw_states(std::uint8_t *states, std::int64_t begin, std::int64_t count,
                        const FaultLimits &limits, const FaultStream &stream) {
  // Four stretches at once, as four cells would be.
  constexpr int stretches = 4;
  Lanes lanes[stretches];
  const std::int64_t length = (count + stretches - 1) / stretches;
  std::int64_t sizes[stretches];
  for (int s = 0; s < stretches; ++s) {
    const std::int64_t at = std::min(count, s * length);
    sizes[s] = std::min(length, count - at);
    lanes[s].start(stream, std::uint64_t(begin + at));
  }
  const std::int32_t low = limits.low, high = limits.high;
  for (std::int64_t done = 0; done < length; done += chunk) {
    fill_together<stretches>(lanes);
    for (int s = 0; s < stretches; ++s) {
      const int size = int(std::max<std::int64_t>(0, std::min<std::int64_t>(chunk, sizes[s] - done)));
      std::uint8_t *to = states + begin + s * length + done;
      const std::uint16_t *drawn = lanes[s].begin();
      for (int i = 0; i < size; ++i)
        to[i] = std::uint8_t(drawn[i] < low ? 1 : drawn[i] >= high ? 2 : 0);
    }
  }
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
