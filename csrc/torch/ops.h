// The CPU's ops that bindings.cpp registers. Shapes and meanings are in fastlstm/ops/ and fastlstm/reference/lstm.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fastlstm {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

using ForwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // output, h_n, c_n, cells, gates
using BackwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;         // dgates_x, dh0, dc0, dhidden
using Int8Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;             // output, h_n, c_n, cells
using CellGradientResults =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // dx, dh_in, dc_in, dgates, unprojected
// dx, dh0, dc0, dweight_ih, dweight_hh, dbias, dweight_hr
using LayerBackwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ForwardResults lstm_layer_forward(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh,
                                  OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
                                  OptionalTensor weight_ih_reverse, OptionalTensor weight_hh_reverse,
                                  OptionalTensor bias_ih_reverse, OptionalTensor bias_hh_reverse,
                                  OptionalTensor weight_hr_reverse, OptionalTensor lengths, OptionalTensor reset_mask,
                                  bool wide_products, bool save_tape, bool save_cells);

LayerBackwardResults lstm_layer_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                         OptionalTensor dcells, Tensor x, Tensor h0, Tensor c0, Tensor weight_ih,
                                         Tensor weight_hh, OptionalTensor weight_hr, OptionalTensor weight_ih_reverse,
                                         OptionalTensor weight_hh_reverse, OptionalTensor weight_hr_reverse,
                                         Tensor output, Tensor cells, Tensor gates, OptionalTensor lengths,
                                         OptionalTensor reset_mask, bool wide_products, bool need_dx,
                                         bool need_dweights);

// h_n, c_n; nothing where the arguments do not fit each other.
std::vector<Tensor> lstm_cell(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
                              OptionalTensor bias_hh);

// h_n, c_n, cells, gates; nothing where the arguments do not fit each other.
std::vector<Tensor> lstm_cell_training_forward(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh,
                                               OptionalTensor bias_ih, OptionalTensor bias_hh,
                                               OptionalTensor weight_hr);

CellGradientResults lstm_cell_training_backward(OptionalTensor dh, OptionalTensor dc, Tensor c, Tensor cells,
                                                Tensor gates, Tensor weight_ih, Tensor weight_hh,
                                                OptionalTensor weight_hr, bool need_dx, bool need_dh, bool need_dc);

// The gradients of weight_ih, weight_hh, both biases and weight_hr that `needs` asks for, summed over steps.
std::vector<Tensor> lstm_cell_weight_gradients(std::vector<Tensor> dgates, std::vector<Tensor> x, std::vector<Tensor> h,
                                               std::vector<Tensor> dh, std::vector<Tensor> unprojected,
                                               std::vector<bool> needs);

// left [rows, depth] @ right [depth, columns], float32, plus the addend if there is one, by the kernels' own product
// for numbers of these parts (cpu/matrix_product.h). `packed`: the right factor packed by cpu_packed.
Tensor cpu_product(Tensor left, Tensor right, OptionalTensor addend, int64_t left_parts, int64_t right_parts,
                   OptionalTensor packed);
Tensor cpu_packed(Tensor right, int64_t parts);

// y, h_n, c_n; nothing where the arguments do not fit each other.
std::vector<Tensor> lstm_step(Tensor x, Tensor h, Tensor c, std::vector<Tensor> weights);

// output, h_n, c_n; with save_cells the last layer's cells; where `needs` asks for gradients, of each layer from the
// lowest with one to give: its input before dropout, except the first layer's, cells, gates; and with own_output the
// output again. Nothing where the arguments do not fit each other. fastlstm/stack/whole.py has the shapes.
std::vector<Tensor> lstm_stack_forward(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                       OptionalTensor lengths, OptionalTensor reset_mask,
                                       std::optional<std::vector<Tensor>> noise, int64_t layers, bool bidirectional,
                                       bool batch_first, bool wide_products, bool save_cells, bool own_output,
                                       std::optional<std::vector<bool>> needs);

// The gradients that `needs` asks for, in its order.
std::vector<Tensor> lstm_stack_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                        OptionalTensor dcells, OptionalTensor x, OptionalTensor h0, OptionalTensor c0,
                                        std::vector<Tensor> matrices, Tensor output, std::vector<Tensor> tape,
                                        OptionalTensor lengths, OptionalTensor reset_mask,
                                        std::optional<std::vector<Tensor>> noise, int64_t layers, bool bidirectional,
                                        bool batch_first, bool wide_products, std::vector<bool> needs);

Int8Results int8_stack(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights, int64_t layers,
                       bool bidirectional, bool batch_first, OptionalTensor lengths, OptionalTensor reset_mask,
                       bool weight_only, bool return_cells);

// output, h_n, c_n, of a cell h_n, c_n; nothing where the arguments do not fit each other.
std::vector<Tensor> int8_call(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                              int64_t inputs, int64_t layers, bool bidirectional, bool batch_first, bool weight_only,
                              bool step, bool cell);

}  // namespace fastlstm
