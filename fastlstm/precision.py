"""What torch's settings say about float32 on a GPU."""

import torch


def allows_tf32() -> bool:
    """Whether an LSTM's float32 products may round their factors to tf32.

    `torch.backends.cudnn.rnn.fp32_precision` decides, or what it inherits from, as it does for
    `torch.nn.LSTM`; the older `torch.backends.cudnn.allow_tf32` sets it. torch's default is yes.
    """
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"
