// VPDPBUSD on a machine that has AVX2 alone, for test builds, as emulated_avx512.h. Included by that, and by the kernels
// of AVX-VNNI.

namespace emulated {

// sum + the products of a lane's four unsigned bytes of a and signed ones of b, exactly; the sum may wrap.
FASTLSTM_INLINE __m256i dpbusd_avx_epi32(__m256i sum, __m256i a, __m256i b) {
  const __m256i bytes = _mm256_set1_epi16(0xff);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, bytes), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

}  // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::dpbusd_avx_epi32
