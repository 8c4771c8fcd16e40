// 256 bits at a time, for the innermost loops of products of codes: one register of AVX2, two of
// NEON. LATEWOOD_VECTORS says whether there are any; without them the loops are plain C++.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#define LATEWOOD_VECTORS "AVX2"
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>
#define LATEWOOD_VECTORS "NEON"
#endif

#if defined(LATEWOOD_VECTORS)

#define LATEWOOD_UNROLL _Pragma("GCC unroll 8")
#define LATEWOOD_INLINE inline __attribute__((always_inline))

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

#if defined(__AVX2__)

using Vector = __m256i;
using Floats = __m256;
using ShiftCount = __m128i;

LATEWOOD_INLINE Vector zeros() { return _mm256_setzero_si256(); }
LATEWOOD_INLINE Vector every_32(std::int32_t value) { return _mm256_set1_epi32(value); }
LATEWOOD_INLINE Vector load(const void *from) {
  return _mm256_loadu_si256(static_cast<const __m256i *>(from));
}
LATEWOOD_INLINE Vector load_aligned(const void *from) {
  return _mm256_load_si256(static_cast<const __m256i *>(from));
}
LATEWOOD_INLINE void store_aligned(void *to, Vector value) {
  _mm256_store_si256(static_cast<__m256i *>(to), value);
}

// The same 16 bytes in both halves, and what indices find there: 0 with the highest bit set.
LATEWOOD_INLINE Vector load_table(const void *from) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(from)));
}
LATEWOOD_INLINE Vector look_up(Vector table, Vector index) {
  return _mm256_shuffle_epi8(table, index);
}

LATEWOOD_INLINE Vector add_8(Vector a, Vector b) { return _mm256_add_epi8(a, b); }
LATEWOOD_INLINE Vector add_16(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
LATEWOOD_INLINE Vector add_32(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
LATEWOOD_INLINE Vector subtract_32(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
LATEWOOD_INLINE Vector multiply_32(Vector a, Vector b) { return _mm256_mullo_epi32(a, b); }

// In place: compilers otherwise move every accumulator once a step.
LATEWOOD_INLINE void add_to_8(Vector &sum, Vector value) {
  asm("vpaddb %1,%0,%0" : "+x"(sum) : "x"(value));
}
LATEWOOD_INLINE void add_to_16(Vector &sum, Vector value) {
  asm("vpaddw %1,%0,%0" : "+x"(sum) : "x"(value));
}
LATEWOOD_INLINE void add_to_32(Vector &sum, Vector value) {
  asm("vpaddd %1,%0,%0" : "+x"(sum) : "x"(value));
}

// The bytes of even and of odd places as 16 bits.
LATEWOOD_INLINE Vector even_unsigned(Vector bytes) {
  return _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
}
LATEWOOD_INLINE Vector odd_unsigned(Vector bytes) { return _mm256_srli_epi16(bytes, 8); }
LATEWOOD_INLINE Vector even_signed(Vector bytes) {
  return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}
LATEWOOD_INLINE Vector odd_signed(Vector bytes) { return _mm256_srai_epi16(bytes, 8); }
LATEWOOD_INLINE Vector shift_left_16(Vector value, int count) {
  return _mm256_slli_epi16(value, count);
}
LATEWOOD_INLINE ShiftCount shift_count(int count) { return _mm_cvtsi32_si128(count); }
LATEWOOD_INLINE Vector shift_left_32(Vector value, ShiftCount count) {
  return _mm256_sll_epi32(value, count);
}

// The first or last eight of 16 bits as 32 bits.
LATEWOOD_INLINE Vector first_unsigned(Vector value) {
  return _mm256_cvtepu16_epi32(_mm256_castsi256_si128(value));
}
LATEWOOD_INLINE Vector last_unsigned(Vector value) {
  return _mm256_cvtepu16_epi32(_mm256_extracti128_si256(value, 1));
}
LATEWOOD_INLINE Vector first_signed(Vector value) {
  return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(value));
}
LATEWOOD_INLINE Vector last_signed(Vector value) {
  return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(value, 1));
}

// 16 bits of both in turn, of the lower or upper quarter of each half.
LATEWOOD_INLINE Vector interleave_lower(Vector a, Vector b) { return _mm256_unpacklo_epi16(a, b); }
LATEWOOD_INLINE Vector interleave_upper(Vector a, Vector b) { return _mm256_unpackhi_epi16(a, b); }

// Sums of two neighbouring products, which have to fit; of unsigned bytes times signed ones, and of
// signed 16 bits. Sums of two neighbours.
LATEWOOD_INLINE Vector multiply_bytes(Vector a, Vector b) { return _mm256_maddubs_epi16(a, b); }
LATEWOOD_INLINE Vector multiply_words(Vector a, Vector b) { return _mm256_madd_epi16(a, b); }
LATEWOOD_INLINE Vector add_neighbours(Vector value) {
  return _mm256_madd_epi16(value, _mm256_set1_epi16(1));
}

LATEWOOD_INLINE Floats zero_floats() { return _mm256_setzero_ps(); }
LATEWOOD_INLINE Floats every_float(const float *value) { return _mm256_broadcast_ss(value); }
LATEWOOD_INLINE Floats load_floats(const float *from) { return _mm256_loadu_ps(from); }
LATEWOOD_INLINE void store_floats(float *to, Floats value) { _mm256_storeu_ps(to, value); }
// Both roundings.
LATEWOOD_INLINE Floats add_product(Floats sum, Floats a, Floats b) {
  return _mm256_add_ps(sum, _mm256_mul_ps(a, b));
}

#else

struct Vector {
  uint8x16_t low, high;
};
struct Floats {
  float32x4_t low, high;
};
using ShiftCount = int32x4_t;

// Both halves from numbers of any size.
template <typename T>
LATEWOOD_INLINE Vector joined(T low, T high) {
  return {uint8x16_t(low), uint8x16_t(high)};
}

LATEWOOD_INLINE Vector zeros() { return joined(vdupq_n_u8(0), vdupq_n_u8(0)); }
LATEWOOD_INLINE Vector every_32(std::int32_t value) {
  return joined(vdupq_n_s32(value), vdupq_n_s32(value));
}
LATEWOOD_INLINE Vector load(const void *from) {
  const std::uint8_t *const bytes = static_cast<const std::uint8_t *>(from);
  return joined(vld1q_u8(bytes), vld1q_u8(bytes + 16));
}
LATEWOOD_INLINE Vector load_aligned(const void *from) { return load(from); }
LATEWOOD_INLINE void store_aligned(void *to, Vector value) {
  vst1q_u8(static_cast<std::uint8_t *>(to), value.low);
  vst1q_u8(static_cast<std::uint8_t *>(to) + 16, value.high);
}

LATEWOOD_INLINE Vector load_table(const void *from) {
  const uint8x16_t table = vld1q_u8(static_cast<const std::uint8_t *>(from));
  return joined(table, table);
}
LATEWOOD_INLINE Vector look_up(Vector table, Vector index) {
  return joined(vqtbl1q_u8(table.low, index.low), vqtbl1q_u8(table.high, index.high));
}

LATEWOOD_INLINE Vector add_8(Vector a, Vector b) {
  return joined(vaddq_u8(a.low, b.low), vaddq_u8(a.high, b.high));
}
LATEWOOD_INLINE Vector add_16(Vector a, Vector b) {
  return joined(vaddq_u16(uint16x8_t(a.low), uint16x8_t(b.low)),
                vaddq_u16(uint16x8_t(a.high), uint16x8_t(b.high)));
}
LATEWOOD_INLINE Vector add_32(Vector a, Vector b) {
  return joined(vaddq_u32(uint32x4_t(a.low), uint32x4_t(b.low)),
                vaddq_u32(uint32x4_t(a.high), uint32x4_t(b.high)));
}
LATEWOOD_INLINE Vector subtract_32(Vector a, Vector b) {
  return joined(vsubq_u32(uint32x4_t(a.low), uint32x4_t(b.low)),
                vsubq_u32(uint32x4_t(a.high), uint32x4_t(b.high)));
}
LATEWOOD_INLINE Vector multiply_32(Vector a, Vector b) {
  return joined(vmulq_u32(uint32x4_t(a.low), uint32x4_t(b.low)),
                vmulq_u32(uint32x4_t(a.high), uint32x4_t(b.high)));
}
LATEWOOD_INLINE void add_to_8(Vector &sum, Vector value) { sum = add_8(sum, value); }
LATEWOOD_INLINE void add_to_16(Vector &sum, Vector value) { sum = add_16(sum, value); }
LATEWOOD_INLINE void add_to_32(Vector &sum, Vector value) { sum = add_32(sum, value); }

LATEWOOD_INLINE Vector shift_left_16(Vector value, int count) {
  const int16x8_t by = vdupq_n_s16(std::int16_t(count));
  return joined(vshlq_u16(uint16x8_t(value.low), by), vshlq_u16(uint16x8_t(value.high), by));
}
LATEWOOD_INLINE ShiftCount shift_count(int count) { return vdupq_n_s32(count); }
LATEWOOD_INLINE Vector shift_left_32(Vector value, ShiftCount count) {
  return joined(vshlq_u32(uint32x4_t(value.low), count), vshlq_u32(uint32x4_t(value.high), count));
}
LATEWOOD_INLINE Vector even_unsigned(Vector bytes) {
  const uint16x8_t low = vdupq_n_u16(0xff);
  return joined(vandq_u16(uint16x8_t(bytes.low), low), vandq_u16(uint16x8_t(bytes.high), low));
}
LATEWOOD_INLINE Vector odd_unsigned(Vector bytes) {
  return joined(vshrq_n_u16(uint16x8_t(bytes.low), 8), vshrq_n_u16(uint16x8_t(bytes.high), 8));
}
LATEWOOD_INLINE Vector odd_signed(Vector bytes) {
  return joined(vshrq_n_s16(int16x8_t(bytes.low), 8), vshrq_n_s16(int16x8_t(bytes.high), 8));
}
LATEWOOD_INLINE Vector even_signed(Vector bytes) {
  return odd_signed(shift_left_16(bytes, 8));
}

LATEWOOD_INLINE Vector first_unsigned(Vector value) {
  const uint16x8_t eight = uint16x8_t(value.low);
  return joined(vmovl_u16(vget_low_u16(eight)), vmovl_high_u16(eight));
}
LATEWOOD_INLINE Vector last_unsigned(Vector value) { return first_unsigned({value.high, value.high}); }
LATEWOOD_INLINE Vector first_signed(Vector value) {
  const int16x8_t eight = int16x8_t(value.low);
  return joined(vmovl_s16(vget_low_s16(eight)), vmovl_high_s16(eight));
}
LATEWOOD_INLINE Vector last_signed(Vector value) { return first_signed({value.high, value.high}); }
LATEWOOD_INLINE Vector interleave_lower(Vector a, Vector b) {
  return joined(vzip1q_u16(uint16x8_t(a.low), uint16x8_t(b.low)),
                vzip1q_u16(uint16x8_t(a.high), uint16x8_t(b.high)));
}
LATEWOOD_INLINE Vector interleave_upper(Vector a, Vector b) {
  return joined(vzip2q_u16(uint16x8_t(a.low), uint16x8_t(b.low)),
                vzip2q_u16(uint16x8_t(a.high), uint16x8_t(b.high)));
}

// A product of an unsigned byte and a signed one fits into 16 signed bits.
LATEWOOD_INLINE int16x8_t multiply_bytes(uint8x16_t a, int8x16_t b) {
  return vpaddq_s16(
      vmulq_s16(int16x8_t(vmovl_u8(vget_low_u8(a))), vmovl_s8(vget_low_s8(b))),
      vmulq_s16(int16x8_t(vmovl_high_u8(a)), vmovl_high_s8(b)));
}
LATEWOOD_INLINE Vector multiply_bytes(Vector a, Vector b) {
  return joined(multiply_bytes(a.low, int8x16_t(b.low)), multiply_bytes(a.high, int8x16_t(b.high)));
}
LATEWOOD_INLINE int32x4_t multiply_words(int16x8_t a, int16x8_t b) {
  return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
LATEWOOD_INLINE Vector multiply_words(Vector a, Vector b) {
  return joined(multiply_words(int16x8_t(a.low), int16x8_t(b.low)),
                multiply_words(int16x8_t(a.high), int16x8_t(b.high)));
}
LATEWOOD_INLINE Vector add_neighbours(Vector value) {
  return joined(vpaddlq_s16(int16x8_t(value.low)), vpaddlq_s16(int16x8_t(value.high)));
}

LATEWOOD_INLINE Floats zero_floats() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
LATEWOOD_INLINE Floats every_float(const float *value) {
  return {vdupq_n_f32(*value), vdupq_n_f32(*value)};
}
LATEWOOD_INLINE Floats load_floats(const float *from) {
  return {vld1q_f32(from), vld1q_f32(from + 4)};
}
LATEWOOD_INLINE void store_floats(float *to, Floats value) {
  vst1q_f32(to, value.low);
  vst1q_f32(to + 4, value.high);
}
LATEWOOD_INLINE Floats add_product(Floats sum, Floats a, Floats b) {
  return {vaddq_f32(sum.low, vmulq_f32(a.low, b.low)),
          vaddq_f32(sum.high, vmulq_f32(a.high, b.high))};
}

#endif

}  // namespace
}  // namespace LATEWOOD_ISA
}  // namespace latewood

#endif
