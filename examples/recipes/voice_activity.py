"""Voice activity as it streams: a frame of 32 ms comes, and the model says whether it is speech.

The shape of small models for this: a spectrum of the frame, two LSTM layers, one number. Here the
sound is noise in which "speech", a tone of changing pitch, comes and goes; the model learns it on
whole sequences and then hears it frame by frame. `FastLSTM.step` is what is compared with calls of
nn.LSTM of one step.
"""

from __future__ import annotations

import math
import sys
import time

import torch
from torch import nn

import fastlstm
from examples.recipes.common import Outcome, by_turns, main
from fastlstm import FastLSTM

LIBRARY, WHAT = "", "voice activity, frame by frame"
RATE, FRAME, BANDS = 16000, 512, 64  # 512 samples are 32 ms


def sound(frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (frames, FRAME), and whether there is speech in each frame (frames,)."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.rand(frames, generator=generator) < 0.05
    speech = turns.cumsum(0) % 2 == 1
    t = torch.arange(frames * FRAME) / RATE
    pitch = 140 + 40 * torch.sin(2 * math.pi * 1.5 * t)
    phase = 2 * math.pi * (pitch / RATE).cumsum(0)
    voice = sum(torch.sin(k * phase) / k for k in range(1, 6)).view(frames, FRAME)
    noise = torch.randn(frames, FRAME, generator=generator)
    return 0.3 * noise + 0.2 * voice * speech[:, None], speech


class Detector(nn.Module):
    """Speech or not for each frame, from its spectrum in bands."""

    def __init__(self, H: int) -> None:
        super().__init__()
        self.lstm = FastLSTM(BANDS, H, num_layers=2, batch_first=True)
        self.out = nn.Linear(H, 1)

    def spectrum(self, samples):
        power = torch.fft.rfft(samples * torch.hann_window(FRAME)).abs()[..., 1:].square()
        return power.unflatten(-1, (BANDS, -1)).mean(-1).add(1e-3).log()

    def forward(self, samples):
        return self.out(self.lstm(self.spectrum(samples))[0])[..., 0]

    def hear(self, frame, state):
        """One frame (1, FRAME) as it comes, and the state of the last one."""
        y, state = self.lstm.step(self.spectrum(frame), state)
        return self.out(y)[..., 0], state


class PlainDetector(Detector):
    """The same on an nn.LSTM: a frame is a sequence of one step."""

    def hear(self, frame, state):
        y, state = self.lstm(self.spectrum(frame)[:, None], state)
        return self.out(y[:, 0])[..., 0], state


def learned(H: int, updates: int) -> Detector:
    torch.manual_seed(0)
    model = Detector(H)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for k in range(updates):
        heard = [sound(60, 10 * k + row) for row in range(8)]
        scores = model(torch.stack([samples for samples, _ in heard]))
        target = torch.stack([speech for _, speech in heard]).float()
        loss = nn.functional.binary_cross_entropy_with_logits(scores, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def run(smoke: bool, rounds: int, H: int = 64) -> Outcome:
    fast = learned(H, 1 if smoke else 25)
    plain = PlainDetector(H)
    plain.lstm = fast.lstm.to_torch()
    plain.out = fast.out
    samples, speech = sound(20 if smoke else 300, 12345)

    def stream(model):
        def listen():
            state, found = None, []
            with torch.inference_mode():
                for frame in samples:
                    score, state = model.hear(frame[None], state)
                    found.append(score)
            return torch.cat(found)

        return listen

    outcome = by_turns(stream(plain), stream(fast), rounds)
    right = ((outcome.results[1] > 0) == speech).float().mean()
    start = time.perf_counter()
    stream(fast)()
    each = (time.perf_counter() - start) / len(samples)
    print(f"H = {H}: {right:.0%} of the frames right, {each * 1e6:.0f} us for each of 32000 us")
    return outcome


if __name__ == "__main__":
    print(f"fastlstm {fastlstm.__version__}")
    sys.exit(main(run, WHAT))
