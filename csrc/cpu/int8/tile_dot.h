// Products of quantised rows with a block of 16 units on AMX tiles of bytes (TDPBSSD), signed by signed: weights lie as
// a tile wants them, 16 steps of k of one gate a load. Included inside the namespace of the AMX kernels, after tiles.h
// and vnni_dot.h.

struct TileDot : QuantisedRows {
  struct Engine {
    Tiles tiles;
    VnniDot::Engine vectors;
  };
  static constexpr int kRows = 16;

  // As PlainDot's.
  template <int G>
  static void sums(Engine& engine, int rows, const int8_t* a, int64_t stride, const ActivationRow* of,
                   const int8_t* weights, int64_t depth, int32_t* out) {
    // 16 x 64 x 64 products take four tiles 64 cycles for any number of rows, and vectors as many for each row.
    constexpr int kFewestRows = 4;
    if (rows < kFewestRows) return VnniDot::sums<G>(engine.vectors, rows, a, stride, of, weights, depth, out);
    Tiles& tiles = engine.tiles;
    const int rest = static_cast<int>(depth % 16);
    tiles.configure(shapes<G>(rows, rest));
    const auto for_gates = [](const auto& body) FASTLSTM_INLINE_LAMBDA {
      body(std::integral_constant<int, 0>{});
      if constexpr (G == 4) {
        body(std::integral_constant<int, 1>{});
        body(std::integral_constant<int, 2>{});
        body(std::integral_constant<int, 3>{});
      }
    };
    for_gates([&](auto g) FASTLSTM_INLINE_LAMBDA { tiles.zero<decltype(g)::value>(); });
    int64_t k = 0;
    for (; k + 16 <= depth; k += 16) {
      tiles.load<kRow>(a + k * kInt8Depth, stride);
      for_gates([&](auto g) FASTLSTM_INLINE_LAMBDA {
        tiles.load<kWeights>(weights + (k * G + g) * 64, G * 64);
        tiles.multiply_bytes<decltype(g)::value, kRow, kWeights>();
      });
    }
    if (rest > 0) {
      tiles.load<kLastRow>(a + k * kInt8Depth, stride);
      for_gates([&](auto g) FASTLSTM_INLINE_LAMBDA {
        tiles.load<kLastWeights>(weights + (k * G + g) * 64, G * 64);
        tiles.multiply_bytes<decltype(g)::value, kLastRow, kLastWeights>();
      });
    }
    for_gates([&](auto g) FASTLSTM_INLINE_LAMBDA { tiles.store<decltype(g)::value>(out + g * kInt8Units, G * 64); });
  }

 private:
  // Sums are in the tiles 0 to 3; the last, shorter steps of k have tiles of their own, so that nothing is read behind
  // the weights' end.
  static constexpr int kRow = 4, kWeights = 5, kLastRow = 6, kLastWeights = 7;

  template <int G>
  static Tiles::Shapes shapes(int rows, int rest) {
    Tiles::Shapes s{};
    const auto set = [&](int tile, int tile_rows, int bytes) {
      s.rows[tile] = static_cast<uint8_t>(tile_rows);
      s.bytes[tile] = static_cast<uint8_t>(bytes);
    };
    for (int g = 0; g < G; ++g) set(g, rows, 64);
    set(kRow, rows, 64);
    set(kWeights, 16, 64);
    if (rest > 0) {
      set(kLastRow, rows, rest * static_cast<int>(kInt8Depth));
      set(kLastWeights, rest, 64);
    }
    return s;
  }
};
