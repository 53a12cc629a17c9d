// float32 and bfloat16, and the functions of them that compilers do not vectorise by themselves.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mindmodel {

struct bfloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the sizes must be equal");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }

// To nearest, ties to even. A NaN stays one, also when only its low bits are set.
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded)};
}

// The value of type T nearest to x.
template <class T>
inline float rounded(float x) { return to_float(from_float<T>(x)); }

// e^x for x <= 87, relative error below 2e-7; zero below -87, before results would be subnormal and slow.
// Branch-free, so that loops around it are vectorised. Coefficients: Cephes' expf.
inline float fast_exp(float x) {
  const float to_integer = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float bounded = x < -87.f ? -87.f : x;
  const float shifted = bounded * 1.44269504f + to_integer;
  const float n = shifted - to_integer;
  const float f = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * f + 1.3981999507e-3f;
  y = y * f + 8.3334519073e-3f;
  y = y * f + 4.1665795894e-2f;
  y = y * f + 1.6666665459e-1f;
  y = y * f + 5.0000001201e-1f;
  y = y * (f * f) + f + 1.f;
  const float power = bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + (127u << 23));
  return x < -87.f ? 0.f : y * power;
}

// 1 / (1 + e^-x), accurate at both ends.
inline float sigmoid(float x) {
  const float e = fast_exp(-std::fabs(x)), p = 1.f / (1.f + e);
  return x < 0.f ? e * p : p;
}

// The largest of `start` and x[count]; lane by lane, since not every compiler vectorises a maximum that may meet a NaN.
inline float largest(float start, const float *x, int64_t count) {
  constexpr int WIDTH = 32;
  float best[WIDTH];
  for (float &lane : best) lane = start;
  int64_t j = 0;
  for (; j + WIDTH <= count; j += WIDTH)
    for (int lane = 0; lane < WIDTH; lane++) best[lane] = x[j + lane] > best[lane] ? x[j + lane] : best[lane];
  for (; j < count; j++) best[0] = x[j] > best[0] ? x[j] : best[0];
  for (float lane : best) start = lane > start ? lane : start;
  return start;
}

}  // namespace mindmodel
