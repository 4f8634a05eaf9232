// Which tile serves which sizes. Unmeasured so far: the choice follows a count of bytes and products.
#pragma once

#include <algorithm>

#include "cuda/costs.h"
#include "cuda/launch.h"
#include "cuda/product/product.h"

namespace fastlstm::cuda {

// Few rows: narrow unit tiles, so that as many multiprocessors as possible read the weights.
template <int kGates>
using NarrowTile = Tile<1, 1, 4, 1, kGates, 4>;
// Tens of rows, and sizes between the others.
template <int kGates>
using MediumTile = Tile<2, 2, 1, 2, kGates == 4 ? 4 : 2, 3>;
// A large matrix product.
using LargeTile = Tile<4, 2, 1, 2, 8, 3>;

enum class TileSize { kNarrow, kMedium, kLarge };

// float64 is for checks, and has only the narrow tile. If a slab takes several products, these take most of the time,
// and the large tile saves little of it.
template <class Policy>
constexpr TileSize kLargest = sizeof(typename Policy::Acc) > 4 ? TileSize::kNarrow
                              : Policy::kProductsASlab > 1     ? TileSize::kMedium
                                                               : TileSize::kLarge;

struct TileChoice {
  TileSize size;
  int64_t clocks;  // predicted for a step, its launch included
};

// Predicted clocks of a block's products for `slabs` slabs along K: of the tensor cores, or of the schedulers if
// numbers are split first.
template <class Policy, class Tile>
constexpr int64_t product_clocks(int64_t slabs) {
  constexpr int64_t kWarps = Tile::kThreads / 32, kTurns = (kWarps + costs::kSchedulers - 1) / costs::kSchedulers;
  constexpr int64_t kM = Tile::kTilesM, kN = Tile::kTilesN, kProducts = kM * kN * Policy::kProductsASlab;
  constexpr int64_t kSlots =
      kProducts + (kM + kN) + (2 * kM + kN) * Policy::kStateSlots / 2 + (Policy::kApart ? kM * kN * 8 : 0);
  return kTurns * std::max(kProducts * costs::kMma, kSlots) * slabs / Tile::kWarpsK;
}

// Every block reads its rows and columns of the factors once. A launch takes as long as the busiest multiprocessor
// reads or multiplies (the whole tile, however many rows there are), or as the cache needs to serve all of them, plus a
// constant time. The least wins, the smaller tile on a tie.
template <class Policy, int kGates>
TileChoice choose_tile(int64_t rows, int64_t units, int64_t k, int64_t D, const DeviceFacts& device) {
  const int multiprocessors = device.multiprocessors;
  constexpr int kLargeBytes = LargeTile::kStages * (LargeTile::kRows + LargeTile::kColumns) * kStride;
  const auto choice = [&](TileSize size, auto tile) {
    using Tile = decltype(tile);
    constexpr int64_t kUnits = Tile::kColumns / kGates;
    const int64_t row_tiles = (rows + Tile::kRows - 1) / Tile::kRows, unit_tiles = (units + kUnits - 1) / kUnits;
    const int64_t rounds = (row_tiles * unit_tiles * D + multiprocessors - 1) / multiprocessors;
    const int64_t lines = std::min<int64_t>(rows, Tile::kRows) + kGates * std::min<int64_t>(units, kUnits);
    const int64_t bytes = k * static_cast<int64_t>(sizeof(typename Policy::IO));
    const int64_t read = lines * bytes / costs::kCacheBytesPerClock;
    const int64_t together = row_tiles * unit_tiles * D * lines * bytes / costs::kCacheBytesPerClockTogether;
    const int64_t multiplied =
        kLargest<Policy> == TileSize::kNarrow ? 0 : product_clocks<Policy, Tile>(bytes / Policy::kSlabBytes);
    return TileChoice{size, costs::kLaunch + std::max(rounds * std::max(read, multiplied), together)};
  };
  const TileChoice narrow = choice(TileSize::kNarrow, NarrowTile<kGates>{}),
                   medium = choice(TileSize::kMedium, MediumTile<kGates>{}),
                   large = choice(TileSize::kLarge, LargeTile{});
  const bool only_medium = kLargest<Policy> != TileSize::kLarge || kLargeBytes > device.shared_bytes;
  const TileChoice wider = only_medium || medium.clocks <= large.clocks ? medium : large;
  return kLargest<Policy> == TileSize::kNarrow || narrow.clocks <= wider.clocks ? narrow : wider;
}

// visit(value of the tile's type).
template <class Policy, int kGates, class Visit>
void visit_tile(TileSize size, const Visit& visit) {
  if constexpr (kLargest<Policy> == TileSize::kLarge) {
    if (size == TileSize::kLarge) return visit(LargeTile{});
  }
  if constexpr (kLargest<Policy> != TileSize::kNarrow) {
    if (size == TileSize::kMedium) return visit(MediumTile<kGates>{});
  }
  visit(NarrowTile<kGates>{});
}

// Blocks: row tiles (of which there may be millions), unit tiles, directions.
inline dim3 tile_grid(int64_t rows, int tile_rows, int64_t units, int tile_units, int64_t D) {
  return dim3(static_cast<unsigned>((rows + tile_rows - 1) / tile_rows),
              static_cast<unsigned>((units + tile_units - 1) / tile_units), static_cast<unsigned>(D));
}

}  // namespace fastlstm::cuda
