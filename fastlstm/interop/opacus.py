"""Support for opacus, which trains with differential privacy and needs the gradients of each sample
(row of the batch): for every form of a FastLSTM call.

opacus' own hooks see only positional tensors and the gradient of the first result. So a FastLSTM
has other hooks: they store the arguments of the call, wait for the gradients of all its results,
and compute the samples' gradients by one `vmap(grad(...))` of the call, which is one call of the
kernels for each layer. opacus gets them as one tensor with the batch first, which it scales for the
mean of the loss, sums and stores as for any module.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..nn import nested
from ..nn.lstm import FastLSTM
from ..nn.packing import packing_of
from ..nn.variant_settings import variants_of
from ..precision import autocast_dtype
from .late import when_imported

_RANDOM = "dropout", "recurrent_dropout", "weight_dropout", "zoneout"


class _Call(NamedTuple):
    """A call with rows first: x (N, T, I), lengths (N,) or None, reset_mask (N, T) or None. rows:
    for each result a function that makes it, or its gradient, (N, ...)."""

    x: Tensor
    hx: tuple[Tensor, Tensor] | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    cells: bool
    rows: Any


def _call(module, input, hx=None, *, lengths=None, reset_mask=None, return_cell_sequence=False):
    def of_states(states):
        return states if module.batch_first_states else states.transpose(0, 1)

    if isinstance(input, PackedSequence):
        packing, order = packing_of(input), input.unsorted_indices

        def rows(packed):
            padded = packing.pad(packed)
            return (padded if order is None else padded[:, order]).transpose(0, 1)

        x, lengths = rows(input.data), packing.lengths
        if lengths is not None and order is not None:
            lengths = lengths.to(order.device)[order]
    elif nested.is_nested(input):
        packing = nested.jagged_of(input)

        def rows(values):
            values = values.values() if nested.is_nested(values) else values
            return packing.pad(values).transpose(0, 1)

        x, lengths = rows(input), packing.lengths
        if reset_mask is not None and nested.is_nested(reset_mask):
            reset_mask = packing.pad(nested.mask_values(reset_mask, input)).t()
    else:
        if input.dim() != 3:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}; the gradients of samples, which opacus "
                "asks for, need a batch, (T, N, I) or (N, T, I)"
            )

        def rows(sequence):
            return sequence if module.batch_first else sequence.transpose(0, 1)

        x = rows(input)
    if reset_mask is not None and not (module.batch_first or nested.is_nested(input)):
        reset_mask = reset_mask.t()
    if lengths is not None:
        lengths = lengths.to(x.device)
    if hx is not None:
        hx = tuple(of_states(s).detach() for s in hx)
    kinds = rows, of_states, of_states, *[rows] * (return_cell_sequence + module.num_layers)
    return _Call(x.detach(), hx, lengths, reset_mask, return_cell_sequence, kinds)


class _Forward(nn.Module):
    """A module's forward without its hooks."""

    def __init__(self, module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **options):
        return self.module.forward(*args, **options)


def _trained(module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}


def _gradients_of_samples(module, call: _Call, grads, autocast) -> dict[str, Tensor]:
    """(N, ...) for each trained parameter; grads: of output, h_n, c_n and cells, (N, ...), None
    where zero."""
    forward = _Forward(module)
    parameters = {f"module.{name}": p.detach() for name, p in _trained(module).items()}

    def loss(parameters, x, hx, lengths, reset_mask, grads):
        options = {"lengths": lengths, "reset_mask": reset_mask}
        options["return_cell_sequence"] = call.cells
        results = torch.func.functional_call(forward, parameters, (x, hx), options)
        results = zip(_flat(results), grads, strict=True)
        return sum((r.to(g.dtype) * g).sum() for r, g in results if g is not None)

    def dims(value):
        return None if value is None else 0

    given = call.x, call.hx, call.lengths, call.reset_mask, tuple(grads)
    in_dims = (None, 0, dims(call.hx), dims(call.lengths), dims(call.reset_mask))
    in_dims += (tuple(map(dims, grads)),)
    with autocast():
        found = torch.func.vmap(torch.func.grad(loss), in_dims=in_dims)(parameters, *given)
    return {name.removeprefix("module."): grad for name, grad in found.items()}


def _refuse_random(module) -> None:
    drawn = {name: getattr(module, name) for name in _RANDOM[1:] if name in variants_of(module)}
    if module.dropout and module.num_layers > 1:
        drawn["dropout"] = module.dropout
    if drawn:
        names = ", ".join(f"{name}={value!r}" for name, value in drawn.items())
        raise ValueError(
            f"opacus: the gradients of samples are computed from a second call, which would draw "
            f"other masks for {names}. Set them to 0 on the FastLSTM, and put nn.Dropout between "
            "single layers"
        )


def _watch(hooks, loss_reduction: str, batch_first: bool):
    """The forward hook of a FastLSTM. hooks: opacus' object."""

    def hook(module, args, options, results):
        trained = module.training and torch.is_grad_enabled() and _trained(module)
        if not (hooks.hooks_enabled and trained):
            return
        _refuse_random(module)
        call = _call(module, *args, **options)
        wanted = autocast_dtype(call.x.device)
        device = call.x.device.type

        def autocast():
            if wanted is None:
                return contextlib.nullcontext()
            return torch.autocast(device, wanted)

        def as_opacus_has(batch: Tensor) -> Tensor:
            return batch if batch_first else batch.t()

        def take(grads):
            rest = iter(grads)
            grads = [next(rest) if differentiable else None for differentiable in with_gradient]
            grads = [g if g is None else of_kind(g) for of_kind, g in zip(call.rows, grads, strict=False)]
            with torch.enable_grad():  # off in a backward
                found = _gradients_of_samples(module, call, grads, autocast)
            side_by_side = torch.cat([g.flatten(1) for g in found.values()], 1).detach()
            hooks.capture_backprops_hook(module, None, (as_opacus_has(side_by_side),), loss_reduction, batch_first)

        results = _apart(results)
        # Outputs of layers below all trained ones have no gradient. (`take` must not refer to the
        # results: their graph refers to it.)
        flat = list(map(_tensor, _flat(results)))
        with_gradient = [r.requires_grad for r in flat]
        torch.autograd.graph.register_multi_grad_hook([r for r in flat if r.requires_grad], take)
        # opacus only needs the batch size of the activations.
        size = as_opacus_has(call.x.new_empty(call.x.shape[0], 1))
        hooks.capture_activations_hook(module, (size,), None)
        return results

    return hook


def _apart(results):
    """The results with views of the lower layers' outputs: the gradient of such an output itself
    would include that of its use in the next layer."""
    output, states, *more = results
    for k, result in enumerate(more):
        if type(result) is tuple:
            *lower, last = result
            more[k] = *(y.view_as(y) if type(y) is Tensor else y for y in lower), last
    return output, states, *more


def _flat(results) -> list:
    """output, h_n, c_n, and the optional results, layer by layer."""
    output, states, *more = results
    flat = [output, *states]
    for result in more:
        # The last layer's output is `output`.
        flat += result[:-1] if type(result) is tuple else [result]
    return flat


def _tensor(result) -> Tensor:
    return result.data if isinstance(result, PackedSequence) else result


def _by_parameter(module, _, side_by_side: Tensor) -> dict[nn.Parameter, Tensor]:
    """The grad sampler: splits (N, all trained parameters) by parameter."""
    parameters = list(_trained(module).values())
    parts = side_by_side.split([p.numel() for p in parameters], dim=1)
    return {p: part.unflatten(1, p.shape) for p, part in zip(parameters, parts, strict=True)}


def _register(grad_sample) -> None:
    grad_sample.register_grad_sampler(FastLSTM)(_by_parameter)
    # Older versions have no separate class for hooks.
    owner = getattr(grad_sample, "GradSampleHooks", grad_sample.GradSampleModule)
    add = owner.add_hooks

    def add_hooks(self, *, loss_reduction="mean", batch_first=True, force_functorch=False):
        add(
            self,
            loss_reduction=loss_reduction,
            batch_first=batch_first,
            force_functorch=force_functorch,
        )
        model = self._module
        for module in model.modules():
            if type(module) is not FastLSTM or not _trained(module):
                continue
            for handle in model.autograd_grad_sample_hooks:
                module._forward_hooks.pop(handle.id, None)
                module._backward_hooks.pop(handle.id, None)
            if force_functorch:  # then opacus calls this instead of the grad sampler
                module.ft_compute_sample_grad = lambda parameters, _, samples, m=module: [
                    _by_parameter(m, _, samples).get(p) for p in parameters
                ]
            watch = _watch(self, loss_reduction, batch_first)
            handle = module.register_forward_hook(watch, with_kwargs=True)
            model.autograd_grad_sample_hooks.append(handle)

    owner.add_hooks = add_hooks


def tell_opacus() -> None:
    when_imported("opacus.grad_sample", _register)
