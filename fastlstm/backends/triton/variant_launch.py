"""Host code of the variants, as launch.py: for each step it launches a product and a row kernel,
and with a projection another product and row kernel.
"""

import torch
import triton
from torch import Tensor

from ...precision import accumulation_dtype
from ...reference.variant import EPSILON
from ...reference.zoneout_masks import threshold
from . import variant_backward_kernels, variant_forward_kernels, variant_rows
from .launch import FUSED, _choice, _copy, _factor, _plain, _rounded, _row, _tiles, launcher


class _Plan:
    """The configuration of a pass, and its launches."""

    def __init__(self, which, h0, c0, projected, tf32):
        D, N, P = h0.shape
        self.config, self.precision = _choice(which, h0, c0, projected, tf32, "step")
        self.D, self.N = D, N
        self.rows = N, D, 1  # a compiled kernel takes three dimensions
        self.block = triton.next_power_of_2(max(c0.shape[-1], P))

    def product(self, state, weight, out, K, *, transposed):
        """Launches of out (D, N, units) = state (D, N, K) times the weights (D, units, K), or
        transposed (D, K, units); rows of state and weights are padded."""
        c, units = self.config, out.shape[-1]
        strides = (weight.shape[-1], 1) if transposed else (1, weight.shape[-1])
        grid = _tiles(self.N, c.block_n), _tiles(units, c.block_h), self.D
        sizes = units, K, state.shape[-1], weight[0].numel(), *strides
        blocks = c.block_n, c.block_h, c.block_k, self.precision
        options = {"num_warps": c.num_warps, "num_stages": c.num_stages, **FUSED}
        kernel = variant_rows.lstm_variant_kernel_product
        return launcher(kernel, grid, (state, weight, out, self.N), (*sizes, *blocks), options)

    def row_kernel(self, kernel, before, after):
        """Launches of a row kernel as a function of the step."""
        warps = min(max(self.block // 256, 1), 8)
        return launcher(kernel, self.rows, before, after, {"num_warps": warps, **FUSED})


def forward(
    gates_x: Tensor, h0, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c, bias_c, lengths,
    reset_mask, seed, zoneout_h, zoneout_c, stream, first_step, save_tape, save_cells, tf32,
):  # fmt: skip
    """See `fastlstm.backends.triton.variant_forward`."""
    T, N, D, H4 = gates_x.shape
    H, P, dtype = H4 // 4, h0.shape[-1], h0.dtype
    wide = accumulation_dtype(dtype)
    with torch.cuda.device_of(h0):
        output = h0.new_empty((T, N, D * P))
        cells = h0.new_empty((T, N, D, H), dtype=wide) if save_tape or save_cells else None
        gates = h0.new_empty((T, N, D, H4)) if save_tape else None
        h_state, c_state = _copy(h0, h0, dtype), _copy(c0, c0, wide)
        if T and N:
            plan = _Plan("forward", h0, c0, weight_hr is not None, tf32)
            gates_x, weight_hh, weight_hr, h_mask, norm_hh, norm_c, bias_c = _plain(
                gates_x, weight_hh, weight_hr, h_mask, norm_hh, norm_c, bias_c
            )
            lengths, reset_mask = _plain(lengths, reset_mask)
            weight_hh, weight_hr = (_factor(w, plan.precision) for w in (weight_hh, weight_hr))
            state = h0.new_zeros((D, N, _row(P, dtype)))
            first = h0 if h_mask is None else (h0 * h_mask).to(dtype)
            state[..., :P] = _rounded(first, plan.precision)
            products = h0.new_empty((D, N, H4), dtype=wide)
            hidden = None if weight_hr is None else h0.new_zeros((D, N, _row(H, dtype)))
            place = stream, first_step
            of_h = zoneout_h, threshold(zoneout_h)
            multiply = plan.product(state, weight_hh, products, P, transposed=False)
            cell = plan.row_kernel(
                variant_forward_kernels.lstm_variant_kernel_cell,
                (
                    gates_x, products, lengths, reset_mask, norm_hh, norm_c, bias_c, h_mask, seed,
                    h_state, state, c_state, hidden, output, cells, gates, *place,
                ),
                (
                    T, N, D, H, P, _row(H, dtype), _row(P, dtype), plan.block, zoneout_h, zoneout_c,
                    threshold(zoneout_h), threshold(zoneout_c), EPSILON, plan.precision,
                ),
            )  # fmt: skip
            if hidden is not None:
                projected = h0.new_empty((D, N, P), dtype=wide)
                project = plan.product(hidden, weight_hr, projected, H, transposed=False)
                emit = plan.row_kernel(
                    variant_forward_kernels.lstm_variant_kernel_emit,
                    (
                        projected, lengths, reset_mask, h_mask, seed, h_state, state, output,
                        *place,
                    ),
                    (T, N, D, P, _row(P, dtype), plan.block, *of_h, plan.precision),
                )  # fmt: skip
            for s in range(T):
                multiply()
                cell(s)
                if hidden is not None:
                    project()
                    emit(s)
        return (
            output,
            h_state,
            c_state.to(c0.dtype),
            h0.new_empty((0,), dtype=wide) if cells is None else cells,
            h0.new_empty((0,)) if gates is None else gates,
        )


def loop(
    doutput, dh_n, dc_n, dcells, h0: Tensor, c0: Tensor, weight_hh, weight_hr, h_mask, norm_hh,
    norm_c, bias_c, cells, gates: Tensor, candidates, product_hat, product_scale, cell_hat,
    cell_scale, lengths, reset_mask, seed, zoneout_h, zoneout_c, stream, first_step, wide_gates,
    tf32,
):  # fmt: skip
    """See `fastlstm.backends.triton.variant_loop`."""
    T, N, D, H4 = gates.shape
    H, P, dtype, of_states = H4 // 4, h0.shape[-1], h0.dtype, c0.dtype
    wide = accumulation_dtype(dtype)
    normed = norm_hh is not None
    with torch.cuda.device_of(h0):
        gates_dtype = wide if wide_gates else dtype
        dgates_x = h0.new_empty((T, N, D, H4), dtype=gates_dtype)
        dproducts = h0.new_empty((T, N, D, H4) if normed else (0,), dtype=gates_dtype)
        dshown = h0.new_empty((T, N, D, H) if normed else (0,), dtype=wide)
        projected = weight_hr is not None
        dhidden = h0.new_empty((T, N, D, P) if projected else (0,), dtype=wide)
        dh0, dc_state = _copy(dh_n, h0, of_states), _copy(dc_n, c0, wide)
        if T and N:
            plan = _Plan("backward", h0, c0, projected, tf32)
            doutput, dh_n, dcells, c0, weight_hh, weight_hr = _plain(doutput, dh_n, dcells, c0, weight_hh, weight_hr)
            h_mask, norm_hh, norm_c, bias_c = _plain(h_mask, norm_hh, norm_c, bias_c)
            cells, gates, *prepared = _plain(cells, gates, candidates, product_hat, product_scale, cell_hat, cell_scale)
            lengths, reset_mask = _plain(lengths, reset_mask)
            weight_hh, weight_hr = (_factor(w, plan.precision) for w in (weight_hh, weight_hr))
            state = h0.new_zeros((D, N, _row(H4, dtype)))
            kept = h0.new_zeros((D, N, P), dtype=wide)
            sums = h0.new_empty((D, N, P), dtype=wide)
            unprojected = h0.new_empty((D, N, H), dtype=wide) if projected else None
            place = stream, first_step
            of_h = zoneout_h, threshold(zoneout_h)
            multiply = plan.product(state, weight_hh, sums, H4, transposed=True)
            kernels = variant_backward_kernels
            cell = plan.row_kernel(
                kernels.lstm_variant_kernel_cell_backward,
                (
                    doutput, dh_n, dcells, c0, norm_hh, norm_c, bias_c, h_mask, seed, cells, gates,
                    *prepared, lengths, reset_mask, sums, kept, unprojected, dc_state, state,
                    dgates_x, dproducts, dshown, *place,
                ),
                (
                    T, N, D, H, P, _row(H4, dtype), plan.block, zoneout_h, zoneout_c,
                    threshold(zoneout_h), threshold(zoneout_c), plan.precision,
                ),
            )  # fmt: skip
            if projected:
                arrived = h0.new_zeros((D, N, _row(P, dtype)))
                arrive = plan.row_kernel(
                    kernels.lstm_variant_kernel_arrive,
                    (
                        doutput, dh_n, lengths, reset_mask, h_mask, seed, sums, kept, arrived,
                        dhidden, *place,
                    ),
                    (T, N, D, P, _row(P, dtype), plan.block, *of_h, plan.precision),
                )  # fmt: skip
                unproject = plan.product(arrived, weight_hr, unprojected, P, transposed=True)
            for s in range(T):
                multiply()
                if projected:
                    arrive(s)
                    unproject()
                cell(s)
            multiply()
            sizes = T, N, P, plan.block
            initial = kernels.lstm_variant_kernel_initial
            plan.row_kernel(initial, (dh_n, lengths, h_mask, sums, kept, dh0), sizes)()
        return dgates_x, dh0, dc_state.to(of_states), dhidden, dproducts, dshown
