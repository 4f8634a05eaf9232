"""The elementwise LSTM cell in Triton, forward and backward, for all kernels.

All tiles are [rows, units] in the accumulation dtype (float32 or float64). The equations are in
`fastlstm.reference.lstm`. exp is taken of numbers <= 0 only, so it cannot overflow; NaN propagates,
and infinities give the limits. No libdevice and no inline assembly: the same source runs on CUDA,
on HIP and in Triton's interpreter.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); absolute error about 1e-7 in float32."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """tanh(x); in float32 an absolute error of about 1e-7, near 0 a relative one of that size."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    y = tl.where(x >= 0, y, -y)
    if x.dtype == tl.float32:
        # Cancellation in 1 - e for small x, where four terms of the Taylor series are exact to a
        # rounding.
        s = x * x
        series = x + x * s * (-1.0 / 3.0 + s * (2.0 / 15.0 - s * (17.0 / 315.0)))
        y = tl.where(s < 0.04, series, y)
    return y


@triton.jit
def cell_forward(i, f, g, o, c):
    """One step from the gates before activation and the previous c: the gates after activation, the
    new c, and o * tanh(c), which is h, or with a projection h before it."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def cell_backward(dh, dc, i, f, g, o, c, c_in):
    """The gradients of the four gates before activation and of c_in, the previous c. dh: the total
    gradient of o * tanh(c). dc: that of c from elsewhere. i, f, g, o: the gates after activation.
    """
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c_in * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return di, df, dg, do, dc * f
