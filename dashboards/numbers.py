"""What a metric's name means to a reader: which direction is better, its unit, how uncertain it is, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from tasks.metrics import METRICS, Metric

# Of a model's whole line, not of one stage: what it cost to come by it.
LINE_FLOPS, LINE_SECONDS, OVER_DENSE = "line_training_flops", "line_seconds", "over_dense"
OF_A_LINE = {
    LINE_FLOPS: Metric("FLOP", "lower", "training cost of all stages that the model came from"),
    LINE_SECONDS: Metric("s", "lower", "time inside all stages that the model came from"),
    OVER_DENSE: Metric("share", "lower", "perplexity relative to the dense model of its line, less 1"),
}
UNKNOWN = Metric("1", "neither", "")
FIRST = (  # in this order wherever metrics are listed; the others follow by name
    *("perplexity", OVER_DENSE, "bits_per_byte", "accuracy", "task_accuracy", "flips", "reference_kl", "sparsity"),
    *("pattern_holds", "bytes", "bits_per_parameter", "decode_tokens_per_second", "prefill_tokens_per_second", "decode_speed"),
    *("prefill_speed", "time_to_first_token", "training_flops", LINE_FLOPS, "seconds", LINE_SECONDS),
)
COSTS = ("bytes", "time_to_first_token", "decode_tokens_per_second", LINE_FLOPS, LINE_SECONDS)
SPEEDS = ("decode_tokens_per_second", "decode_speed", "prefill_tokens_per_second", "prefill_speed")
SMALL = 0.0005  # of a share, which one decimal of a percent would write as none
INTERVAL = 1.96  # standard errors on either side: 95 %


def base(name: str) -> str:
    """The name in the vocabulary: of a text, a task or a setting the metric stands before the first dot. Some names begin with
    a group, and a slash after it."""
    return name.partition(".")[0].partition("/")[0]


@cache
def metric(name: str) -> Metric:
    return OF_A_LINE.get(name) or METRICS.get(base(name), UNKNOWN)


def better(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    return {"higher": 1, "lower": -1, "neither": 0}[metric(name).better]


def is_sound(name: str, numbers: Mapping[str, float]) -> bool:
    """Whether a number is there, and one: a model that broke has NaN, or infinity."""
    return math.isfinite(numbers.get(name, math.nan))


def rank(name: str) -> tuple[int, str]:
    """Sorts metrics: what a choice is made by comes first."""
    return (FIRST.index(base(name)) if base(name) in FIRST else len(FIRST), name)


def is_quality(name: str) -> bool:
    """Whether a model is chosen for it, and not for what it costs."""
    told = metric(name)
    costly = told.unit in ("B", "FLOP", "s", "token/s") or base(name) in COSTS or name.endswith(("_stderr", "_low", "_high"))
    return told.better != "neither" and not costly


class Interval(NamedTuple):
    """The 95 % interval of a number."""

    low: float
    high: float


def interval(name: str, numbers: Mapping[str, float]) -> Interval | None:
    """How sure a number is: by its own interval, or by its standard error; None where neither was measured."""
    head, dot, tail = name.partition(".")
    low, high = numbers.get(f"{head}_low{dot}{tail}"), numbers.get(f"{head}_high{dot}{tail}")
    if low is not None and high is not None:
        return Interval(low, high)
    error = numbers.get(f"{head}_stderr{dot}{tail}")
    if error is None or name not in numbers:
        return None
    return Interval(numbers[name] - INTERVAL * error, numbers[name] + INTERVAL * error)


def shown(name: str, value: float | None) -> str:
    """A number for people, with its unit; nothing where there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    unit = metric(name).unit
    if unit == "B":
        return scaled(value, 1000.0, ("B", "kB", "MB", "GB", "TB"))
    if unit == "share":
        return f"{100 * value:.2g} %" if 0 < abs(value) < SMALL else f"{value:.1%}".replace("%", " %")
    if unit == "s":
        return duration(value)
    if unit == "FLOP":
        return f"{value:.2e}"
    number = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:#.4g}"
    return f"{number} tok/s" if unit == "token/s" else number


def change(name: str, value: float | None, before: float | None) -> str:
    """A difference with its sign: in points for shares, in percent for all else; of what broke none."""
    if value is None or before is None or not (math.isfinite(value) and math.isfinite(before)):
        return ""
    if alike(value, before):
        return "≈"
    if metric(name).unit == "share":
        return f"{100 * (value - before):+.1f} pp"
    return f"{value / before - 1:+.1%}".replace("%", " %") if before else f"{value - before:+.4g}"


def alike(value: float, other: float) -> bool:
    """Whether a difference would be written as none."""
    return abs(value - other) <= 0.0005 * abs(other)


def sure(name: str, numbers: Mapping[str, float]) -> str:
    """A number with half of its 95 % interval, where that is known."""
    known = interval(name, numbers)
    return shown(name, numbers.get(name)) + (f" ± {margin(name, (known.high - known.low) / 2)}" if known else "")


def margin(name: str, width: float) -> str:
    """What stands after ±: two digits say enough where no unit has its own form."""
    plain = metric(name).unit not in ("B", "share", "s", "FLOP", "token/s") and math.isfinite(width)
    return f"{width:.2g}" if plain and abs(width) < 100 else shown(name, width)


def deviation(group: Mapping[str, Any], name: str = "") -> str:
    """What stands after the mean of a claim's group: how its seeds deviate, in the form of a metric if one is named; nothing of
    a single seed."""
    if len(group["values"]) < 2:
        return ""
    return f" ± {margin(name, group['std']) if name else format(group['std'], '.2g')}"


def scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < step:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.2f} {unit}"
        value /= step
    return f"{value:.2f} {units[-1]}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def title(name: str) -> str:
    """A metric as an axis or a column says it."""
    head, _, tail = name.partition(".")
    words = {
        LINE_FLOPS: "training FLOPs, whole line",
        LINE_SECONDS: "time, whole line",
        OVER_DENSE: "perplexity over dense",
        "bytes": "size on disk",
        "decode_tokens_per_second": "decoding speed",
        "prefill_tokens_per_second": "prompt speed",
        "seconds": "time",
        "training_flops": "training FLOPs",
    }.get(head, head.replace("_", " "))
    return f"{words} ({tail})" if tail else words
