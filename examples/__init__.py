"""Four small programs on real data, each trained with torch.nn.LSTM and with FastLSTM.

``python -m examples`` runs them all; see README.md in this folder.
"""
