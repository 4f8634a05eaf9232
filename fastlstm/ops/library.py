"""The namespace `fastlstm::` of torch ops, and helpers to define them."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

library = torch.library.Library("fastlstm", "DEF")

below_autograd = torch._C._AutoDispatchBelowAutograd

_unwrap_if_dead = torch._C._functorch.unwrap_if_dead


def plain_apply(function: type[torch.autograd.Function]) -> Callable:
    """`function.apply` for calls outside torch.func's transforms: the frame of Python that this
    leaves out is a tenth of a short call's forward. Its tensors are to be `unwrapped`."""
    return super(torch.autograd.Function, function).apply


def unwrapped(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Without the wrapper that a tensor keeps when it outlives the transform that it was made in."""
    return [None if t is None else _unwrap_if_dead(t) for t in tensors]


def outside_autocast(function):
    """`function` without autocast: a backward that is called under autocast would else have the
    products in it cast."""

    @functools.wraps(function)
    def run(*args):
        if not torch._C._is_any_autocast_enabled():  # cheaper than to enter the guard
            return function(*args)
        with torch._C._DisableAutocast():
            return function(*args)

    return run


def on_one_device(*tensors: Tensor | None) -> bool:
    return len({t.device for t in tensors if t is not None}) <= 1


def check_one_device(*tensors: Tensor | None) -> None:
    """For fake kernels, which torch also runs if only some arguments are on the meta device."""
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise RuntimeError(f"fastlstm: arguments on {' and '.join(devices)}, expected one device")


def op(name: str):
    """The only overload of `fastlstm::<name>`, so that a call does not choose among overloads."""
    return getattr(torch.ops.fastlstm, name).default


class _Kept:
    """In a Library's place: keeps the kernel that is registered."""

    kernel: Callable

    def impl(self, name: str, kernel: Callable, *key, **options) -> None:
        self.kernel = kernel


def register_autograd_later(name: str, backward: Callable, setup_context: Callable | None = None) -> None:
    """torch.library.register_autograd for `fastlstm::<name>`, but what it makes, two classes for
    each op, is made at the op's first call: most programs never call most of the ops."""

    @functools.cache
    def kernel() -> Callable:
        kept = _Kept()
        torch.library.register_autograd(f"fastlstm::{name}", backward, setup_context=setup_context, lib=kept)
        return kept.kernel

    library.impl(
        name,
        lambda keyset, *args, **options: kernel()(keyset, *args, **options),
        "Autograd",
        with_keyset=True,
    )
