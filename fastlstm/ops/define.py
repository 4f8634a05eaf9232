"""`define_op`: an op of the namespace `fastlstm::`, declared by a NamedTuple of its arguments and
one of its results.

The fields' names and types give the schema. The op's kernel, its fake kernel, its derivative and
its vmap rule are functions of these NamedTuples, so that none of them refers to an argument by its
position. Between torch and the op they are plain tuples.
"""

import functools
import operator
import types
import typing
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import lists
from .library import (
    below_autograd,
    check_one_device,
    library,
    on_one_device,
    op,
    outside_autocast,
    register_autograd_later,
)

_KINDS = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[Tensor] | None: "Tensor[]?",
    list[bool]: "bool[]",
    list[bool] | None: "bool[]?",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
}


@functools.cache
def _kinds(fields: type) -> types.MappingProxyType[str, str]:
    """The schema's type of each field of a NamedTuple. Of its annotations as they stand:
    typing.get_type_hints takes ten times as long, and all ops are defined at the import."""
    return types.MappingProxyType({n: _KINDS[kind] for n, kind in fields.__annotations__.items()})


def _listed(fields: type) -> list[bool]:
    """Which fields are lists of tensors."""
    return [kind == "Tensor[]" for kind in _kinds(fields).values()]


def schema(name: str, arguments: type | None, results: type, **more: type) -> str:
    """The schema of an op.

    Args:
        arguments: a NamedTuple type, whose defaults are the op's, or None for no arguments.
        results: a NamedTuple type, or the type of a single result. more: names and types of further
        arguments.
    """

    def text(kinds, defaults) -> str:
        return ", ".join(
            f"{kind} {field}={defaults[field]}" if field in defaults else f"{kind} {field}"
            for field, kind in kinds.items()
        )

    given = {} if arguments is None else dict(_kinds(arguments))
    given |= {field: _KINDS[kind] for field, kind in more.items()}
    made = _KINDS[results] if results in _KINDS else f"({text(_kinds(results), {})})"
    return f"{name}({text(given, getattr(arguments, '_field_defaults', {}))}) -> {made}"


def declare(name: str, arguments: type | None, results: type, **more: type) -> None:
    """Defines an op's schema alone, for kernels that are registered elsewhere; see `schema`."""
    library.define(schema(name, arguments, results, **more))


class _Saved:
    """Saves a call's tape for its derivative.

    `tape` is a NamedTuple type; each of its fields has the name of an argument or a result of the
    op, or of a property of `arguments`.
    """

    def __init__(self, arguments: type, results: type | None, tape: type) -> None:
        self.tape = tape
        kinds = _kinds(tape)
        sources = [*arguments._fields, *(getattr(results, "_fields", ()))]
        self.properties = [name for name in kinds if name not in sources]
        sources += self.properties
        self.arguments = arguments

        def named(*wanted) -> list[str]:
            return [name for name, kind in kinds.items() if kind in wanted]

        def take(names: list[str], among: list[str]):
            places = [among.index(name) for name in names]
            if len(places) > 1:
                return operator.itemgetter(*places)
            return lambda values: tuple(values[k] for k in places)

        tensors, of_lists = named("Tensor", "Tensor?"), named("Tensor[]")
        others = [name for name in kinds if name not in (*tensors, *of_lists)]
        self.count = len(tensors)
        self.tensors, self.lists = take(tensors, sources), take(of_lists, sources)
        self.others = take(others, sources)
        self.in_order = take(list(kinds), [*tensors, *of_lists, *others])
        self.any_lists = bool(of_lists)

    def keep(self, ctx, inputs: Sequence, output: Sequence) -> None:
        values = *inputs, *output
        if self.properties:
            call = self.arguments(*inputs)
            values += tuple(getattr(call, name) for name in self.properties)
        tensors = self.tensors(values)
        if self.any_lists:
            entries = self.lists(values)
            tensors += tuple(t for of_list in entries for t in of_list)
            ctx.lengths = [len(of_list) for of_list in entries]
        ctx.save_for_backward(*tensors)
        ctx.others = self.others(values)
        ctx.set_materialize_grads(False)

    def kept(self, ctx):
        """The tape."""
        tensors, of_lists = ctx.saved_tensors, ()
        if self.any_lists:
            tensors, rest = tensors[: self.count], tensors[self.count :]
            of_lists = lists.unflatten(rest, ctx.lengths)
        return self.tape._make(self.in_order((*tensors, *of_lists, *ctx.others)))


def _through_plain(arguments: type, results: type, plain: Callable):
    """keep, kept and derive (`Op`) of a backward op: autograd through `plain`, the same function of
    the arguments in plain torch, which can be differentiated again."""
    saved, listed, listed_results = (
        _Saved(arguments, None, arguments),
        _listed(arguments),
        _listed(results),
    )

    def keep(ctx, inputs, output):
        saved.keep(ctx, inputs, ())

    @outside_autocast
    def derive(ctx, needs, *grads):
        create_graph = torch.is_grad_enabled()
        flat, lengths = lists.flatten(saved.kept(ctx), listed)
        needed, _ = lists.flatten(needs, listed)
        with torch.enable_grad():
            # New views as leaves: autograd.grad must not go further, to what made the tensors.
            leaves = [v.view_as(v) if isinstance(v, Tensor) and v.requires_grad else v for v in flat]
            made, _ = lists.flatten(plain(arguments(*lists.unflatten(leaves, lengths))), listed_results)
            given, _ = lists.flatten(grads, listed_results)
            wanted = [k for k, need in enumerate(needed) if need and leaves[k] is not None]
            pairs = [(r, g) for r, g in zip(made, given, strict=True) if g is not None and r.requires_grad]
            found = [None] * len(wanted)
            if pairs and wanted:
                found = torch.autograd.grad(
                    [r for r, _ in pairs],
                    [leaves[k] for k in wanted],
                    [g for _, g in pairs],
                    create_graph=create_graph,
                    allow_unused=True,
                )
        by_place = dict(zip(wanted, found, strict=True))
        return lists.unflatten([by_place.get(k) for k in range(len(flat))], lengths)

    return keep, saved.kept, derive


def _through_tape(
    name: str,
    arguments: type,
    results: type,
    tape: type,
    gradients: Callable,
    constants: Sequence[str],
):
    """keep, kept and derive (`Op`) of an op with a tape; see `define_op`."""
    saved = _Saved(arguments, results, tape)
    switch = arguments._fields.index("save_tape") if "save_tape" in arguments._fields else None

    def keep(ctx, inputs, output):
        saved.keep(ctx, inputs, output)
        if constants:
            made = results(*output)
            ctx.mark_non_differentiable(*(getattr(made, name) for name in constants))
        ctx.has_tape = switch is None or inputs[switch]

    @outside_autocast
    def derive(ctx, needs, *grads):
        if not ctx.has_tape:
            raise RuntimeError(
                f"fastlstm::{name} was called with save_tape=False, so it cannot be "
                "differentiated; call it with save_tape=True"
            )
        return tuple(gradients(saved.kept(ctx), results(*grads), arguments(*needs)))

    return keep, saved.kept, derive


class Op(typing.NamedTuple):
    """A defined op: its overload and the NamedTuple types of its arguments and results.

    Its derivative, None where it has none: keep(ctx, arguments, results) saves the tape, as torch's
    setup_context; kept(ctx) gives it back; derive(ctx, needs, *gradients of the results) gives the
    gradients of the arguments, None for those for which `needs` is False.
    """

    overload: Callable
    arguments: type
    results: type
    keep: Callable | None
    kept: Callable | None
    derive: Callable | None

    @property
    def call(self) -> Callable:
        """What a call of `overload` comes to, without its frame of Python."""
        return self.overload._op

    def backward(self, ctx, *grads) -> tuple:
        """The derivative with the signature of autograd.Function.backward."""
        return self.derive(ctx, ctx.needs_input_grad, *grads)


def define_op(
    name: str,
    arguments: type,
    results: type,
    *,
    fake: Callable,
    run: Callable | None = None,
    tape: type | None = None,
    gradients: Callable | None = None,
    constants: Sequence[str] = (),
    plain: Callable | None = None,
    vmap: Callable | None = None,
    or_nothing: bool = False,
) -> Op:
    """Defines the op `fastlstm::<name>`.

    Args:
        arguments, results: see `schema`.
        fake: arguments -> uninitialised results; called with all arguments on one device.
        run: arguments -> results, outside autocast, on devices for which no kernel is registered.
        tape, gradients: the derivative. `tape` is the NamedTuple type of what it needs (`_Saved`).
        gradients(tape, grads, needs) returns the gradients of the arguments as `arguments`; grads
        are those of the results, as `results`, None where zero; needs has a bool for each argument.
        constants: names of the results that have no derivative.
        plain: instead of tape and gradients, for a backward op: arguments -> results in plain
        torch, through which autograd differentiates.
        vmap: (overload, info, in_dims, arguments) -> results and their dims, as for
        torch.library.register_vmap, with in_dims as `arguments`.
        or_nothing: the op returns a list of its results, which is empty where its arguments do not
        fit each other (also where only their devices differ); and, without `run`, on devices for
        which no kernel is registered.
    """
    declare(name, arguments, list[Tensor] if or_nothing else results)
    overload = op(name)

    def plainly(made):
        if or_nothing:
            return list(made)
        # Not a NamedTuple: torch.compile rebuilds a tuple from its elements as the same type.
        return tuple(made) if isinstance(made, tuple) else made

    def given(args) -> list[Tensor]:
        entries = (a if isinstance(a, (list, tuple)) else (a,) for a in args)
        return [t for of_entry in entries for t in of_entry if isinstance(t, Tensor)]

    def run_fake(*args):
        tensors = given(args)
        if or_nothing and not on_one_device(*tensors):
            return []
        check_one_device(*tensors)
        return plainly(fake(arguments(*args)))

    @outside_autocast
    def run_elsewhere(*args):
        if or_nothing and (run is None or not on_one_device(*given(args))):
            return []
        return plainly(run(arguments(*args)))

    torch.library.register_fake(f"fastlstm::{name}", run_fake, lib=library)
    if run is not None or or_nothing:
        library.impl(name, run_elsewhere, "CompositeExplicitAutograd")
    derivative = None, None, None
    if gradients is not None:
        derivative = _through_tape(name, arguments, results, tape, gradients, constants)
    elif plain is not None:
        derivative = _through_plain(arguments, results, plain)
    defined = Op(overload, arguments, results, *derivative)
    if defined.derive is not None:
        register_autograd_later(name, defined.backward, defined.keep)
    if vmap is not None:
        torch.library.register_vmap(
            overload,
            lambda info, in_dims, *args: vmap(overload, info, arguments(*in_dims), arguments(*args)),
            lib=library,
        )
    return defined


def as_function(defined: Op):
    """`defined.overload` and its derivative as an autograd.Function, for calls outside compilation
    and transforms; returns a function of the op's arguments.

    register_autograd's node reads the schema at each call, once for every argument: about 0.2 ms
    for 18 arguments, which is as long as a short sequence takes.
    """
    overload, keep, derive = defined.overload, defined.keep, defined.derive
    listed, listed_results = _listed(defined.arguments), _listed(defined.results)

    if True in (*listed, *listed_results):

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, lengths, *flat):
                args = lists.unflatten(flat, lengths["arguments"])
                with below_autograd():
                    results = overload(*args)
                keep(ctx, args, results)
                flat_results, lengths["results"] = lists.flatten(results, listed_results)
                ctx.lengths_of = lengths
                return tuple(flat_results)

            @staticmethod
            def backward(ctx, *grads):
                needs = lists.unflatten(ctx.needs_input_grad[1:], ctx.lengths_of["arguments"])
                found = derive(ctx, needs, *lists.unflatten(grads, ctx.lengths_of["results"]))
                return None, *lists.flatten(found, listed)[0]

        def apply(*args):
            flat, of_arguments = lists.flatten(args, listed)
            lengths = {"arguments": of_arguments}
            return lists.unflatten(Function.apply(lengths, *flat), lengths["results"])

    else:

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                with below_autograd():
                    results = overload(*args)
                keep(ctx, args, results)
                return results

            @staticmethod
            def backward(ctx, *grads):
                return derive(ctx, ctx.needs_input_grad, *grads)

        apply = Function.apply

    # The node's name in autograd graphs and messages, such as "LstmLayerBackward".
    name = "".join(part.title() for part in overload.name().split("::")[1].split(".")[0].split("_"))
    Function._backward_cls.__name__ = name.removesuffix("Forward") + "Backward"
    return apply
