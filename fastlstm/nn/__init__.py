"""FastLSTM and FastLSTMCell: torch.nn's contract, and what stands between it and the stack."""
