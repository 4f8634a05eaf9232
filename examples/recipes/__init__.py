"""Libraries that use nn.LSTM, with FastLSTM instead: a program for each, on synthetic data."""
