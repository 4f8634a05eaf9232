"""torch's own classes, bound at import: programs may replace `torch.nn.LSTM` by FastLSTM for other
libraries, but this package needs torch's. And `super()` for methods that were copied to other
classes.
"""

from torch import nn

LSTM = nn.LSTM
LSTMCell = nn.LSTMCell
RNNBase = nn.RNNBase


def above(cls: type, module: nn.Module, name: str):
    """`super(cls, module)` for the method `name` of `cls`, also if `module` is not a `cls`: some
    libraries copy the methods of nn.LSTM to a class with another base, where a zero-argument
    super() would fail.
    """
    if not isinstance(module, cls):
        method = vars(cls)[name]
        cls = next(c for c in type(module).__mro__ if vars(c).get(name) is method)
    return super(cls, module)
