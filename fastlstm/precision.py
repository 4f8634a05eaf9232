"""What torch's settings say about float32 products."""

import torch


def allows_tf32() -> bool:
    """Whether an LSTM's float32 products may round their factors to tf32.

    `torch.backends.cudnn.rnn.fp32_precision` decides, or what it inherits from, as it does for
    `torch.nn.LSTM`; the older `torch.backends.cudnn.allow_tf32` sets it. torch's default is yes.
    """
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def cpu_parts() -> int:
    """How many bfloat16 numbers the CPU's kernels may take for a float32 one in products on AMX:
    three are all of it, two are its first 16 bits ("tf32"; "high"), one its first 8 ("bf16";
    "medium").

    `torch.backends.mkldnn.rnn.fp32_precision` decides where it, or what it inherits from, is set,
    as it does for `torch.nn.LSTM`; else `torch.backends.mkldnn.matmul.fp32_precision`, which
    `torch.set_float32_matmul_precision` sets. torch's default is all of it.
    """
    setting = torch.backends.mkldnn.rnn.fp32_precision
    if setting == "none":
        setting = torch.backends.mkldnn.matmul.fp32_precision
    return {"tf32": 2, "bf16": 1}.get(setting, 3)
