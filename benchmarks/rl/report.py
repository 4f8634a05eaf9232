"""Tables of what was measured."""

from __future__ import annotations

from benchmarks.common.programs import interval
from benchmarks.common.tables import Table, threads_text

KIND = "rl"
TITLE = "Recurrent PPO"
MEANING = (
    "Seconds are sums over the rollouts. A ratio is the median over rollouts, in each of which all "
    "took a turn; in brackets the median's 95 % interval."
)
WORDS = {"update": "updates", "training": "whole training"}


def tables(result: dict) -> list[Table]:
    """Seconds of all rounds by contender, and the ratios to the first of them."""
    lines, ratios = [], []
    for row in result["rows"]:
        names = list(row["times"])
        seconds = [f"{row['total_s'][name]:.2f}" for name in names]
        found = [row["ratios"][name] for name in names[1:]]
        bounds = map(interval, found)
        same = "yes" if all(row["same_rewards"].values()) else "no"
        lines.append([f"{WORDS[row['part']]}, H = {row['H']}", *seconds, *bounds, same])
        ratios.append(found[-1]["ratio"])
    header = ["", *(f"{name}, s" for name in names)]
    header += [f"{name}, ratio" for name in names[1:]] + ["same rewards"]
    row = result["rows"][0]
    title = (
        f"RecurrentPPO, CartPole without velocities, {row['n_envs']} environments x "
        f"{row['n_steps']} steps, {row['times'][names[0]]['samples']} rollouts, "
        f"{threads_text(row['threads'])}"
    )
    return [(title, header, lines, ratios)]
