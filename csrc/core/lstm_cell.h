// The LSTM cell, forward and backward, once for every compiled backend.
//
// V is a number or a vector of numbers in the accumulation type; M gives `sigmoid(V)` and `tanh(V)`. Gates i, f, g, o;
// the equations stand in fastlstm/reference/lstm.py. Included inside the namespace of its user, so that it is compiled
// for that user's instruction set.
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

// Activates `gates` in place (pre-activations in, activated gates out) and gives c.
template <class M, class V>
FASTLSTM_INLINE V lstm_cell_state(Gates<V>& gates, const V& c_in) {
  gates.i = M::sigmoid(gates.i);
  gates.f = M::sigmoid(gates.f);
  gates.g = M::tanh(gates.g);
  gates.o = M::sigmoid(gates.o);
  return gates.f * c_in + gates.i * gates.g;
}

// h, before any projection, of the activated output gate.
template <class M, class V>
FASTLSTM_INLINE V lstm_cell_hidden(const V& o, const V& c) {
  return o * M::tanh(c);
}

// Both in one.
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

// From the activated gates, tanh(c) and c_in of the step, the gradient dh of (unprojected) h, and dc, what arrived at c
// from elsewhere: the later step and the returned cell sequence.
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
