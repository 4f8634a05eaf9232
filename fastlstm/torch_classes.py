"""torch's own classes, bound once: programs put FastLSTM in the place of `torch.nn.LSTM` for
libraries that they do not own, and what is meant here is still torch's. And how a method of ours
reaches the one it extends.
"""

from torch import nn

LSTM = nn.LSTM
LSTMCell = nn.LSTMCell
RNNBase = nn.RNNBase


def above(cls: type, module: nn.Module, name: str):
    """`super(cls, module)` for the method `name` of `cls`, also where `module` is no `cls`: some
    libraries make a class of another base and copy the methods of nn.LSTM onto it, and a
    zero-argument super() would look for the class it stands in.
    """
    if not isinstance(module, cls):
        method = vars(cls)[name]
        cls = next(c for c in type(module).__mro__ if vars(c).get(name) is method)
    return super(cls, module)
