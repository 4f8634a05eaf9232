"""Which digit is it? Images of 8 x 8 pixels, read row by row (many-to-one, ten classes).

Data: the handwritten digits that ship with scikit-learn, 1797 images.
Model: a 4-layer LSTM with 50 hidden units, a Linear on its last output, softmax cross-entropy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from examples.common import (
    FAST,
    PLAIN,
    MissingPackage,
    Result,
    Settings,
    seeded,
    shuffled_batches,
    side_by_side,
    with_int8,
)
from fastlstm import FastLSTM

EPOCHS, BATCH, LEARNING_RATE = 40, 64, 0.2


class DigitLSTM(nn.Module):
    def __init__(self, lstm=nn.LSTM, **options):
        super().__init__()
        self.lstm = lstm(8, 50, num_layers=4, batch_first=True, **options)
        self.head = nn.Linear(50, 10)

    def forward(self, images):  # (N, T=8, I=8) -> (N, 10)
        output, _ = self.lstm(images)
        return self.head(output[:, -1])


def run(settings: Settings) -> Result:
    def swapped():  # the one line: FastLSTM where nn.LSTM was
        return DigitLSTM(FastLSTM, backend=settings.backend)

    models = {PLAIN: seeded(settings.seed, DigitLSTM), FAST: seeded(settings.seed, swapped)}
    title = "Handwritten digits, row by row: LSTM(8, 50, num_layers=4) + Linear"
    return train("digits", title, models, EPOCHS, draw_digits, settings)


def train(name, title, models, epochs, draw, settings) -> Result:
    """Trains both models on the digits; draw(ax, images, labels, predicted) paints the panel."""
    train_set, (images, labels) = load(settings.seed)
    limit = 3 if settings.smoke else None
    batches = shuffled_batches(train_set, BATCH, settings.scaled(epochs), settings.seed, limit)
    comparison = side_by_side(name, models, batches, loss, learning_rate=LEARNING_RATE, seed=settings.seed)
    predicted = {key: predict(model, images) for key, model in models.items()}
    losses = []
    if settings.int8:

        def minus_points(model):
            return -100 * accuracy(predict(model, images), labels)

        losses = with_int8(models[FAST], minus_points, "accuracy in %", 0.2, "points")
    differing = int((predicted[PLAIN] != predicted[FAST]).sum())
    return Result(
        name=name,
        title=title,
        comparison=comparison,
        score_name="test accuracy",
        score_format="{:.2%}".format,
        scores={key: accuracy(read, labels) for key, read in predicted.items()},
        draw=lambda ax: draw(ax, images, labels, predicted[FAST]),
        notes=[
            f"{differing} of {len(labels)} test images are read differently by the two",
            *map(str, losses),
        ],
        losses_of_int8=losses,
    )


def load(seed: int):
    """((train images, labels), (test images, labels)): float (N, 8, 8) in [-1, 1], int64 (N,)."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingPackage("digits", "scikit-learn") from None
    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        data.images / 8 - 1, data.target, test_size=0.25, random_state=seed, stratify=data.target
    )
    images = [torch.tensor(x, dtype=torch.get_default_dtype()) for x in (train_x, test_x)]
    labels = [torch.tensor(y, dtype=torch.int64) for y in (train_y, test_y)]
    return (images[0], labels[0]), (images[1], labels[1])


def loss(model: nn.Module, batch) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images).softmax(-1).argmax(-1)


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    return (predicted == labels).double().mean().item()


def draw_digits(ax, images, labels, predicted, rows: int = 4, columns: int = 12) -> None:
    """The misread images first, then others; a misread one shows "predicted, not true" in red."""
    order = (predicted != labels).double().argsort(descending=True, stable=True)
    wall = torch.full((rows * 13, columns * 12), -1.0)
    for place, index in enumerate(order[: rows * columns].tolist()):
        top, left = place // columns * 13, place % columns * 12
        wall[top + 1 : top + 9, left + 2 : left + 10] = images[index]
        read, true = int(predicted[index]), int(labels[index])
        caption, color = (f"{read}", "0.25") if read == true else (f"{read}, not {true}", "crimson")
        ax.text(left + 5.5, top + 10.5, caption, ha="center", va="center", fontsize=7, color=color)
    ax.imshow(wall.numpy(), cmap="Greys", interpolation="nearest")
    ax.set_title("FastLSTM's reading of test images, its mistakes first")
    ax.set_axis_off()
