"""Libraries that use nn.LSTM, with FastLSTM in its place: a program for each, on made-up data.

Each is a module with `LIBRARY`, the distribution that it is for (empty where torch is enough),
`WHAT` it does, and `run(smoke, rounds)`, which gives a `common.Outcome`.
"""

RECIPES = (
    "darts_forecast",
    "neuralforecast_lstm",
    "forecasting_tft",
    "speech_tagger",
    "voice_activity",
    "atari_ppo",
)
