// AMX tiles behind a thin interface: eight tiles of 16 rows of 64 bytes, products of bfloat16 pairs summed in float32,
// and of bytes summed in 32-bit integers.
// Included inside the namespace of the AMX kernels.
//
// Where there is no AMX, tests run the same kernels on an emulation of the instructions in plain vector code. It
// follows the pseudo-code of TDPBF16PS in Intel's Software Developer's Manual: even and odd elements are summed apart
// with fused multiply-adds, denormal operands and results are zeros, rounding is to nearest even.

class Tiles {
 public:
  static bool emulated;  // set once, before the first use

  ~Tiles() {
    if (configured_ && !emulated) __asm__ volatile("tilerelease" ::: "memory");
  }

  // Tiles 0, 1 and 4 get `first` rows, tiles 2, 3 and 5 `second` rows, tiles 6 and 7 all 16.
  void configure(int first, int second) {
    const auto a = static_cast<uint8_t>(first), b = static_cast<uint8_t>(second);
    configure({{a, a, b, b, a, b, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64}});
  }

  // Rows of each tile and bytes of its rows, both 0 where it is not used.
  struct Shapes {
    uint8_t rows[8], bytes[8];
  };

  void configure(const Shapes& shapes) {
    if (configured_ && __builtin_memcmp(&shapes, &shapes_, sizeof(shapes)) == 0) return;
    configured_ = true;
    shapes_ = shapes;
    if (emulated) return;
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.rows[t] = shapes.rows[t];
      config.bytes[t] = shapes.bytes[t];
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }

  template <int T>
  FASTLSTM_INLINE void zero() {
    if (emulated) return emulate_zero(T);
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }

  template <int T>
  FASTLSTM_INLINE void load(const void* from, int64_t stride_bytes) {
    if (emulated) return emulate_load(T, from, stride_bytes);
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(T) : "memory");
  }

  template <int T>
  FASTLSTM_INLINE void store(void* to, int64_t stride_bytes) {
    if (emulated) return emulate_store(T, to, stride_bytes);
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(T) : "memory");
  }

  // Tile C [rows of A, 16] float32 += A [rows, 32] bfloat16 times B, whose row r holds rows 2r and 2r + 1 of a matrix
  // in pairs.
  template <int C, int A, int B>
  FASTLSTM_INLINE void multiply() {
    if (emulated) return emulate_multiply(C, A, B);
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

  // Tile C [rows of A, 16] of 32-bit integers += A [rows, 64 bytes] times B, whose row r holds the rows 4r to 4r + 3 of
  // a matrix in groups of four; all bytes signed.
  template <int C, int A, int B>
  FASTLSTM_INLINE void multiply_bytes() {
    if (emulated) return emulate_multiply_bytes(C, A, B);
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  using Bits = VectorOf<float>::bits;

  static Vec<float> flushed(Vec<float> x) {
    const Bits bits = bit_cast<Bits>(x), magnitude = bits & 0x7fffffffu;
    return bit_cast<Vec<float>>(magnitude < 0x00800000u ? bits & 0x80000000u : bits);
  }

  // The even (odd = 0) or odd numbers of a row of pairs.
  static Vec<float> number(Bits pairs, int odd) {
    return flushed(bit_cast<Vec<float>>(odd ? pairs & 0xffff0000u : pairs << 16));
  }

  __attribute__((noinline)) void emulate_zero(int t) { __builtin_memset(tiles()[t], 0, sizeof(tiles()[t])); }

  __attribute__((noinline)) void emulate_load(int t, const void* from, int64_t stride) {
    emulate_zero(t);
    for (int r = 0; r < shapes_.rows[t]; ++r) {
      __builtin_memcpy(tiles()[t][r], static_cast<const char*>(from) + r * stride, shapes_.bytes[t]);
    }
  }

  __attribute__((noinline)) void emulate_store(int t, void* to, int64_t stride) {
    for (int r = 0; r < shapes_.rows[t]; ++r) {
      __builtin_memcpy(static_cast<char*>(to) + r * stride, tiles()[t][r], shapes_.bytes[t]);
    }
  }

  __attribute__((noinline)) void emulate_multiply_bytes(int c, int a, int b) {
    const auto byte = [](uint32_t four, int j) { return static_cast<int32_t>(static_cast<int8_t>(four >> 8 * j)); };
    for (int r = 0; r < shapes_.rows[a]; ++r) {
      for (int k = 0; k < shapes_.bytes[a] / 4; ++k) {
        for (int u = 0; u < 16; ++u) {
          for (int j = 0; j < 4; ++j) {
            tiles()[c][r][u] += static_cast<uint32_t>(byte(tiles()[a][r][k], j) * byte(tiles()[b][k][u], j));
          }
        }
      }
    }
  }

  __attribute__((noinline)) void emulate_multiply(int c, int a, int b) {
    for (int r = 0; r < shapes_.rows[a]; ++r) {
      Vec<float> sums[2] = {};
      for (int k = 0; k < 16; ++k) {
        for (int odd = 0; odd < 2; ++odd) {
          const Vec<float> x = number(Bits{} + tiles()[a][r][k], odd), y = number(load_raw<Bits>(tiles()[b][k]), odd);
          sums[odd] = flushed(bit_cast<Vec<float>>(
              _mm512_fmadd_ps(bit_cast<__m512>(x), bit_cast<__m512>(y), bit_cast<__m512>(sums[odd]))));
        }
      }
      store_raw(tiles()[c][r], flushed(flushed(load_raw<Vec<float>>(tiles()[c][r])) + flushed(sums[0] + sums[1])));
    }
  }

  using Tile = uint32_t[16][16];
  static Tile* tiles() {
    static thread_local Tile kept[8];
    return kept;
  }

  bool configured_ = false;
  Shapes shapes_{};
};

bool Tiles::emulated = false;
