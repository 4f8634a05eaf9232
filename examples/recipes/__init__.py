"""Libraries that use nn.LSTM, with FastLSTM in its place: a program for each, on made-up data."""
