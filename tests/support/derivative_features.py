"""What of the table of features the shared tests of derivatives, compilation and export show: for
each feature, tests that hold it, on a backend and a device."""

import autograd_cases
import transform_cases
import vmap_cases
from stack_problems import Problem

# Everything at once, and small: CUDA's kernels run on the CPU for it.
FULL = Problem(D=2, L=2, P=1, lengths=True, resets=True, cells=True, T=2, H=2)


def func(*place):
    for transform in ("grad", "vjp", "jacrev"):
        transform_cases.test_first_derivatives(transform, FULL, *place)


def forward_mode(*place):
    for transform in ("jvp", "jacfwd"):
        transform_cases.test_first_derivatives(transform, FULL, *place)
    transform_cases.test_forward_mode_of_autograd(*place)


def second_order(*place):
    for transform in transform_cases.SECOND:
        transform_cases.test_second_derivatives(transform, FULL, *place)


def over_inputs(*place):
    for in_dims in vmap_cases.IN_DIMS[1:3]:
        vmap_cases.test_vmap_over_inputs_is_one_call(in_dims, *place)


def per_sample(*place):
    vmap_cases.test_per_sample_gradients(FULL, *place)


def recomputed(*place):
    for use_reentrant in (False, True):
        autograd_cases.test_checkpoint(use_reentrant, *place)


def hooked(*place):
    autograd_cases.test_hooks_see_what_they_see_of_nn_lstm(*place)
    autograd_cases.test_saved_tensors_may_be_moved_away(*place)
    autograd_cases.test_anomaly_mode(*place)


CHECKS = {
    "func": func,
    "forward mode": forward_mode,
    "hessian": second_order,
    "vmap": over_inputs,
    "samples": per_sample,
    "ensembles": vmap_cases.test_ensembles,
    "recompute": recomputed,
    "hooks": hooked,
}
