// The LSTM cell, forward and backward, once for every compiled backend.
//
// V is a number or a vector of numbers in the accumulation type; M gives `sigmoid(V)` and `tanh(V)`. Gates are i, f, g,
// o; the equations are in fastlstm/reference/lstm.py. Included inside its user's namespace, so that it is compiled for
// the user's instruction set.
#pragma once

#include "core/inline.h"

template <class V>
struct Gates {
  V i, f, g, o;
};

template <class V>
struct CellState {
  V c, h;
};

// Activates `gates` in place (pre-activations in, activated gates out) and returns c.
template <class M, class V>
FASTLSTM_INLINE V lstm_cell_state(Gates<V>& gates, const V& c_in) {
  gates.i = M::sigmoid(gates.i);
  gates.f = M::sigmoid(gates.f);
  gates.g = M::tanh(gates.g);
  gates.o = M::sigmoid(gates.o);
  return gates.f * c_in + gates.i * gates.g;
}

// h before any projection, from the activated output gate and c.
template <class M, class V>
FASTLSTM_INLINE V lstm_cell_hidden(const V& o, const V& c) {
  return o * M::tanh(c);
}

// Both: activates `gates` in place and returns c and h.
template <class M, class V>
FASTLSTM_INLINE CellState<V> lstm_cell_forward(Gates<V>& gates, const V& c_in) {
  CellState<V> out;
  out.c = lstm_cell_state<M>(gates, c_in);
  out.h = lstm_cell_hidden<M>(gates.o, out.c);
  return out;
}

template <class V>
struct CellGradient {
  Gates<V> gates;  // of the pre-activations
  V c_in;
};

// The gradients of one step. `gates` are activated; c_in is the cell state that entered; dh is the gradient of h before
// any projection; dc is the gradient of c from the later step and from the returned cell sequence.
template <class V>
FASTLSTM_INLINE CellGradient<V> lstm_cell_backward(const Gates<V>& gates, const V& tanh_c, const V& c_in, const V& dh,
                                                   const V& dc) {
  const V dc_all = dc + dh * gates.o * (1 - tanh_c * tanh_c);
  CellGradient<V> d;
  d.gates.i = dc_all * gates.g * gates.i * (1 - gates.i);
  d.gates.f = dc_all * c_in * gates.f * (1 - gates.f);
  d.gates.g = dc_all * gates.i * (1 - gates.g * gates.g);
  d.gates.o = dh * tanh_c * gates.o * (1 - gates.o);
  d.c_in = dc_all * gates.f;
  return d;
}
