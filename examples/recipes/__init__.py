"""Libraries that use nn.LSTM, with FastLSTM instead: a program for each, on synthetic data.

Each is a module with `LIBRARY`, the distribution that it is for (empty where torch is enough),
`WHAT` it does, and `run(smoke, rounds)`, which returns a `common.Outcome`.
"""

RECIPES = (
    "darts_forecast",
    "neuralforecast_lstm",
    "forecasting_tft",
    "speech_tagger",
    "voice_activity",
    "atari_ppo",
)
