"""The schema of results files, which are checked before they are written."""

from __future__ import annotations

import json
from pathlib import Path

SCHEMA = 2

_CASE_KEYS = {"T": int, "N": int, "I": int, "H": int, "L": int, "D": int, "P": int, "variant": str}
_ROW_KEYS = _CASE_KEYS | {"dtype": str, "mode": str, "threads": int, "device": str, "status": str}
_SPEED_KEYS = {
    "baseline": str,
    "candidate": str,
    "checked_T": int,
    "budget_used": float,
    "times": dict,
    "ratio": float,
    "low": float,
    "high": float,
    "floor_s": float,
    "floor_kind": str,
    "floor_share": float,
}
_MEMORY_KEYS = {"growth_bytes": dict, "samples": int, "candidate": str, "ratio": float}
_TIME_KEYS = {
    "samples": int,
    "min_s": float,
    "q25_s": float,
    "median_s": float,
    "q75_s": float,
    "max_s": float,
}
_GPU_ROW_KEYS = _CASE_KEYS | {
    "part": str,
    "dtype": str,
    "mode": str,
    "device": str,
    "status": str,
    "times": dict,
    "ratios": dict,
    "notes": dict,
    "peak_bytes": dict,
}
_GPU_KEYS = {"baseline": str, "checked_T": int, "floor_s": float, "floor_share": dict}
_RATIO_KEYS = {"of": str, "ratio": float, "low": float, "high": float}
_ERROR_ROW_KEYS = {"backend": str, "where": str, "isa": str, "kind": str, "status": str}
_PRODUCT_ROW_KEYS = {"M": int, "N": int, "K": int, "order": str, "dtype": str, "threads": int}
_PRODUCT_ROW_KEYS |= {"status": str}
_PRODUCT_KEYS = {"times": dict, "gflops": dict, "shares": dict, "notes": dict, "peak_gflops": float}
_PEER_KEYS = {"times": dict, "ratios": dict, "notes": dict, "budget_used": dict}
_RL_ROW_KEYS = {"part": str, "H": int, "n_envs": int, "n_steps": int, "threads": int, "status": str}
_RL_KEYS = {
    "times": dict,
    "total_s": dict,
    "ratios": dict,
    "mean_reward": dict,
    "same_rewards": dict,
}
_RECIPE_ROW_KEYS = {"recipe": str, "what": str, "library": str, "version": str, "threads": int}
_RECIPE_ROW_KEYS |= {"status": str}
_KINDS = {
    "speed": (_ROW_KEYS, _SPEED_KEYS),
    "memory": (_ROW_KEYS, _MEMORY_KEYS),
    "gpu": (_GPU_ROW_KEYS, _GPU_KEYS),
    "products": (_PRODUCT_ROW_KEYS, _PRODUCT_KEYS),
    "peers": (_ROW_KEYS, _PEER_KEYS),
    "rl": (_RL_ROW_KEYS, _RL_KEYS),
    "recipes": (_RECIPE_ROW_KEYS, {"times": dict, "ratios": dict, "apart": float}),
    "errors": (_ERROR_ROW_KEYS, {"results": float, "worst": dict}),
}
_TOP_KEYS = {
    "schema": int,
    "kind": str,
    "machine": dict,
    "settings": dict,
    "rates": dict,
    "rows": list,
    "summary": list,
}


def require(block: object, keys: dict[str, type], where: str) -> None:
    """Raises ValueError with ``where`` and the key unless the dict ``block`` has every key with a
    value of its type.
    """
    if not isinstance(block, dict):
        raise ValueError(f"{where}: got {type(block).__name__}, expected an object")
    for key, kind in keys.items():
        if key not in block:
            raise ValueError(f"{where}: no {key!r}")
        accepted = (int, float) if kind is float else kind
        if not isinstance(block[key], accepted):
            raise ValueError(f"{where}: {key!r} is {block[key]!r}, expected {kind.__name__}")


def validate(result: object) -> None:
    """Raises ValueError unless ``result`` is a results file of schema 2 and of a known kind."""
    require(result, _TOP_KEYS, "results")
    if result["schema"] != SCHEMA or result["kind"] not in _KINDS:
        raise ValueError(
            f"results: schema {result['schema']!r}, kind {result['kind']!r}, "
            f"expected {SCHEMA} and one of {', '.join(_KINDS)}"
        )
    require(
        result["machine"],
        {"cpu": str, "flags": list, "cores": int, "torch": str, "commit": str},
        "machine",
    )
    for index, row in enumerate(result["rows"]):
        where = f"rows[{index}]"
        always, keys = _KINDS[result["kind"]]
        require(row, always, where)
        if row["status"] == "failed":
            require(row, {"error": str}, where)
        elif row["status"] == "ok":
            require(row, keys, where)
            for peer, times in row.get("times", {}).items():
                require(times, _TIME_KEYS, f"{where}.times[{peer}]")
            for peer, ratio in row.get("ratios", {}).items():
                require(ratio, _RATIO_KEYS, f"{where}.ratios[{peer}]")
        else:
            raise ValueError(f"{where}: status {row['status']!r}, expected ok or failed")


def write(result: dict, path: Path) -> None:
    """Validates ``result`` and writes it to ``path`` as JSON; creates the folder."""
    validate(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
