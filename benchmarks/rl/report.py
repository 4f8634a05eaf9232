"""Tables of what was measured."""

from __future__ import annotations

from benchmarks.common.tables import Table, markdown_table, threads_text

WORDS = {"update": "updates", "training": "whole training"}


def tables(result: dict) -> list[Table]:
    """Seconds of all rounds by contender, and the ratios to the first of them."""
    lines, ratios = [], []
    for row in result["rows"]:
        names = list(row["times"])
        seconds = [f"{row['total_s'][name]:.2f}" for name in names]
        found = [row["ratios"][name] for name in names[1:]]
        bounds = [f"{r['ratio']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in found]
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


def head(result: dict) -> list[str]:
    made = result["machine"]
    return [
        f"{made['cpu']}, {made['cores']} cores, torch {made['torch']}, sb3-contrib "
        f"{made['sb3_contrib']}, commit {made['commit']}, {result['settings']['date']}",
        "Seconds are sums over the rollouts. A ratio is the median over rollouts, in each of which "
        "all took a turn; in brackets the median's 95 % interval.",
    ]


def markdown(result: dict) -> str:
    return "\n\n".join(["# Recurrent PPO", *head(result), *map(markdown_table, tables(result))]) + "\n"
