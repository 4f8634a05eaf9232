// Factors of large float32 products in panels for AMX tiles (tile_matrix_product.h): 16 lines of up to kSlab numbers,
// split and packed tile by tile, 2 bytes for each number and part. Included inside the namespace of the AMX kernels,
// after tiles.h and parts.h.
//
// Tiles read denormal numbers as zeros, and parts of infinities mean nothing. So each panel stores the range of its
// numbers, by which two panels know which of their sums may be wrong.

struct alignas(64) PanelHead {
  float largest, least;  // magnitudes; least of those that are not zero
};

constexpr int64_t kPanelLines = 16, kSlab = 1024;

inline int64_t panels_of(int64_t lines) { return (lines + kPanelLines - 1) / kPanelLines; }

// The depth in slabs, as even as whole tiles allow.
struct Slabs {
  int64_t depth, size, count;

  explicit Slabs(int64_t total) : depth(total) {
    const int64_t wanted = (total + kSlab - 1) / kSlab, even = (total + wanted - 1) / wanted;
    size = (even + kTileDepth - 1) / kTileDepth * kTileDepth;
    count = (total + size - 1) / size;
  }
  int64_t begin(int64_t slab) const { return slab * size; }
  int64_t numbers(int64_t slab) const { return std::min(size, depth - begin(slab)); }
  int64_t blocks() const { return size / kTileDepth; }
  // A panel of a slab: its head, then [block][part][tile].
  int64_t panel_bytes(int parts) const {
    return sizeof(PanelHead) + blocks() * parts * kTileElements * sizeof(BFloat16);
  }
};

template <int Parts, bool Right>
void pack_panel(const Factor& f, int64_t panel, int64_t k0, int64_t numbers, char* out) {
  const int64_t first = panel * kPanelLines, lines = std::min(kPanelLines, f.lines - first);
  const float* from = f.at<float>(first, k0);
  auto* tile = reinterpret_cast<BFloat16*>(out + sizeof(PanelHead));
  Magnitudes seen;
  for (int64_t k = 0; k < numbers; k += kTileDepth, tile += Parts * kTileElements) {
    const int64_t count = std::min(kTileDepth, numbers - k);
    if (f.depth_stride == 1) {
      pack_lines<Parts, Right>(from + k, f.line_stride, lines, count, tile, kTileElements, seen);
    } else {
      pack_numbers<Parts, Right>(from + k * f.depth_stride, f.depth_stride, lines, count, tile, kTileElements, seen);
    }
  }
  *reinterpret_cast<PanelHead*>(out) = {seen.largest(), seen.least()};
}

template <int Parts>
void pack_slab(const Factor& right, const Slabs& slabs, int64_t slab, char* packed, const Threads& threads) {
  const int64_t numbers = slabs.numbers(slab);
  share_out(threads, threads.count, panels_of(right.lines), right.lines * numbers, [&](int64_t panel) {
    pack_panel<Parts, true>(right, panel, slabs.begin(slab), numbers, packed + panel * slabs.panel_bytes(Parts));
  });
}

// A right factor packed whole.
template <int Parts>
int64_t packed_bytes(const Factor& right, int64_t depth) {
  const Slabs slabs(depth);
  return slabs.count * panels_of(right.lines) * slabs.panel_bytes(Parts);
}

template <int Parts>
void pack_whole(const Factor& right, int64_t depth, void* packed, const Threads& threads) {
  const Slabs slabs(depth);
  const int64_t bytes = panels_of(right.lines) * slabs.panel_bytes(Parts);
  for (int64_t c = 0; c < slabs.count; ++c)
    pack_slab<Parts>(right, slabs, c, static_cast<char*>(packed) + c * bytes, threads);
}

// Which sums of two panels are made again. Parts below 2^-126 are dropped, of numbers below 2^-103, and of products
// that small. An error of 2^-126 for each term does not matter in a sum above 2^-90.
struct Doubt {
  Vec<float> below;
  __mmask16 zeros;  // whether zero sums are made again too

  Doubt(const PanelHead& left, const PanelHead& right) {
    constexpr float kWhole = 0x1p-103f, kSafe = 0x1p-90f;
    const bool left_lost = left.least < kWhole, right_lost = right.least < kWhole;
    const float factor = std::max({1.f, left_lost ? right.largest : 0.f, right_lost ? left.largest : 0.f});
    const float product = left.largest * right.largest;
    const bool tiny = product < kSafe && left.largest > 0 && right.largest > 0;
    below = splat(kSafe * factor);
    zeros = left_lost || right_lost || tiny ? 0xffff : 0;
  }
};
