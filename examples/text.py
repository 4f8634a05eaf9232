"""What is the next character? A model of Python's own documentation (many-to-many).

Data: the docstrings of a fixed list of standard modules, so the text is real, needs no download
and is the same for everyone with the same Python version.
Model: Embedding, LSTM(batch_first=True) with h0 and c0 given, Linear, log_softmax; nll_loss.
Each batch continues the text of the one before, so its h0 and c0 are the last batch's h and c.
Then the model writes, one step at a time with the state carried along.
"""

from __future__ import annotations

import importlib
import inspect
import math
import string
import textwrap
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from examples.common import FAST, PLAIN, Result, Settings, seeded, side_by_side, with_int8
from fastlstm import FastLSTM

EPOCHS, BATCH, WINDOW, LEARNING_RATE = 2, 32, 64, 2.0
PROMPT, WRITTEN, TEMPERATURE = "Return the ", 600, 0.6
MODULES = (
    "argparse", "calendar", "collections", "configparser", "contextlib", "csv", "datetime",
    "decimal", "difflib", "fractions", "functools", "heapq", "inspect", "itertools", "json",
    "logging", "os", "pathlib", "pickle", "random", "re", "shutil", "socket", "statistics",
    "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "traceback",
    "unittest", "uuid", "warnings", "zipfile",
)  # fmt: skip


class TextLSTM(nn.Module):
    def __init__(self, symbols, lstm=nn.LSTM, **options):
        super().__init__()
        self.embedding = nn.Embedding(symbols, 64)
        self.lstm = lstm(64, 256, batch_first=True, **options)
        self.head = nn.Linear(256, symbols)

    def start(self, N):
        weight = self.head.weight
        return weight.new_zeros(1, N, 256), weight.new_zeros(1, N, 256)

    def forward(self, tokens, state):  # (N, T), (h0, c0) -> (N, T, symbols), (h_n, c_n)
        output, state = self.lstm(self.embedding(tokens), state)
        return F.log_softmax(self.head(output), dim=-1), state

    def step(self, token, state):  # (N,), (h, c) -> (N, symbols), (h, c)
        x = self.embedding(token)
        if isinstance(self.lstm, FastLSTM):
            y, state = self.lstm.step(x, state)
        else:
            y, state = self.lstm(x.unsqueeze(1), state)
            y = y.squeeze(1)
        return F.log_softmax(self.head(y), dim=-1), state


def run(settings: Settings) -> Result:
    text = corpus(limit=30_000 if settings.smoke else 200_000)
    alphabet = sorted(set(text))
    tokens = torch.tensor([alphabet.index(character) for character in text])
    cut = len(tokens) * 9 // 10
    train, test = tokens[:cut], tokens[cut:]

    symbols = len(alphabet)

    def swapped():  # the one line: FastLSTM where nn.LSTM was
        return TextLSTM(symbols, FastLSTM, backend=settings.backend)

    models = {
        PLAIN: seeded(settings.seed, lambda: TextLSTM(symbols)),
        FAST: seeded(settings.seed, swapped),
    }
    epoch = consecutive_batches(train, limit=3 if settings.smoke else None)
    batches = epoch * settings.scaled(EPOCHS)
    comparison = side_by_side("text", models, batches, carried_loss(), learning_rate=LEARNING_RATE, seed=settings.seed)

    length = 20 if settings.smoke else WRITTEN
    written, seconds = {}, {}
    for name, model in models.items():
        start = time.perf_counter()
        written[name] = write(model, alphabet, length, settings.seed)
        seconds[name] = time.perf_counter() - start
    losses = []
    if settings.int8:

        def nats(model):
            return math.log(perplexity(model, test))

        losses = with_int8(models[FAST], nats, "nats a character", 0.01, "nats")
    same = common_prefix(written[PLAIN], written[FAST])
    return Result(
        name="text",
        title="Python's documentation, next character: Embedding + LSTM(64, 256) + log_softmax",
        comparison=comparison,
        score_name="test perplexity",
        score_format="{:.3f}".format,
        scores={name: perplexity(model, test) for name, model in models.items()},
        baseline=("symbols (blind guess)", float(symbols)),
        draw=lambda ax: draw_text(ax, written[FAST]),
        notes=[
            f"{len(text)} characters of docstrings, {symbols} symbols",
            f"writing {length} characters step by step: {PLAIN} {seconds[PLAIN]:.3f} s, "
            f"{FAST}.step {seconds[FAST]:.3f} s; the first {same} are equal",
            "FastLSTM step by step against one call over the whole sequence: largest "
            f"|difference| {step_difference(models[FAST], test[:100]):.1e}",
            *map(str, losses),
        ],
        losses_of_int8=losses,
    )


def corpus(limit: int) -> str:
    """At most `limit` printable ASCII characters of MODULES' docstrings, in a fixed order."""
    docs: dict[str, None] = {}  # a dict keeps the order and drops repeats
    for name in MODULES:
        for doc in docstrings(importlib.import_module(name)):
            docs[inspect.cleandoc(doc)] = None
    text = "\n\n".join(docs)
    text = "".join(character for character in text if character in string.printable)[:limit]
    if len(text) < 30_000:
        raise RuntimeError(
            f"found {len(text)} characters of docstrings, expected at least 30000; "
            "run Python without -OO, which strips them"
        )
    return text


def docstrings(module) -> Iterator[str]:
    """Of the module, of its own classes and functions, and of the classes' methods."""
    if module.__doc__:
        yield module.__doc__
    for _, member in sorted(vars(module).items()):
        own = getattr(member, "__module__", None) == module.__name__
        if not own or not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        methods = sorted(vars(member).items()) if inspect.isclass(member) else []
        for documented in (member, *(method for _, method in methods)):
            routine = inspect.isroutine(documented) or isinstance(documented, property)
            if (routine or documented is member) and isinstance(documented.__doc__, str):
                yield documented.__doc__


def consecutive_batches(tokens: torch.Tensor, limit: int | None) -> list[tuple]:
    """One epoch as (inputs, targets, first): inputs and targets (BATCH, WINDOW), int64.

    The text is cut into BATCH long rows, and every batch takes the next WINDOW characters of
    each: row n of a batch goes on where row n of the batch before it stopped.
    """
    length = (len(tokens) - 1) // BATCH
    inputs = tokens[: BATCH * length].view(BATCH, length)
    targets = tokens[1 : BATCH * length + 1].view(BATCH, length)
    starts = range(0, length - WINDOW + 1, WINDOW)[:limit]
    return [(inputs[:, t : t + WINDOW], targets[:, t : t + WINDOW], t == 0) for t in starts]


def carried_loss():
    """A loss that gives each model, as h0 and c0, the h and c of its own previous batch."""
    states = {}

    def loss(model: nn.Module, batch) -> torch.Tensor:
        inputs, targets, first = batch
        state = model.start(len(inputs)) if first else states[model]
        log_probs, (h, c) = model(inputs, state)
        states[model] = h.detach(), c.detach()  # gradients stop at the batch's edge
        return F.nll_loss(log_probs.flatten(0, 1), targets.flatten())

    return loss


@torch.no_grad()
def perplexity(model: nn.Module, tokens: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of a character: blind guessing has len(alphabet)."""
    log_probs, _ = model(tokens[None, :-1], model.start(1))
    return math.exp(F.nll_loss(log_probs[0], tokens[1:]))


@torch.no_grad()
def write(model: nn.Module, alphabet: list[str], length: int, seed: int) -> str:
    """PROMPT and `length` characters drawn from the model, one step of the LSTM for each."""
    generator = torch.Generator().manual_seed(seed)
    state = model.start(1)
    for character in PROMPT:
        log_probs, state = model.step(torch.tensor([alphabet.index(character)]), state)
    text = PROMPT
    for _ in range(length):
        probabilities = (log_probs / TEMPERATURE).softmax(-1)
        token = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        text += alphabet[token]
        log_probs, state = model.step(token, state)
    return text


@torch.no_grad()
def step_difference(model: nn.Module, tokens: torch.Tensor) -> float:
    """Largest |difference| of the log-probabilities: step by step, and in one call."""
    whole, _ = model(tokens[None], model.start(1))
    state = model.start(1)
    steps = []
    for token in tokens:
        log_probs, state = model.step(token[None], state)
        steps.append(log_probs)
    return (whole[0] - torch.cat(steps)).abs().max().item()


def common_prefix(a: str, b: str) -> int:
    """How many characters a and b share from the start, PROMPT not counted."""
    equal = [x == y for x, y in zip(a, b, strict=True)]
    return [*equal, False].index(False) - len(PROMPT)


def draw_text(ax, text: str) -> None:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 72) or [""]]
    shown = "\n".join(lines[:13]).replace("$", r"\$")  # matplotlib would read $ as mathematics
    ax.text(0.02, 0.96, shown, transform=ax.transAxes, va="top", family="monospace", fontsize=9)
    ax.set_title(f"Written by FastLSTM, one step() a character, after “{PROMPT.strip()}”")
    ax.set_xticks([])
    ax.set_yticks([])
