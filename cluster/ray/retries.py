"""What a group of ranks does after one of them failed: start again, unless the failure would come back every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.ray.targets import Mistake, TargetFailed

Tell = Callable[[str], None]
Seen = Callable[[int], str]  # of a rank that is gone: where it was last seen


def nowhere(rank: int) -> str:
    return "where nobody saw it"


def said_of(rank: int, error: BaseException, seen: Seen) -> str:
    """One line: which rank failed where, of what, and what to change where nothing was raised."""
    if isinstance(error, TargetFailed):
        return f"rank {rank} failed {seen(rank)}: {next(filter(None, map(str.strip, str(error).splitlines())), '')}"
    return (
        f"rank {rank} died {seen(rank)} ({type(error).__name__}); where the kernel killed it for want of memory, lower "
        "micro_batch in the profile"
    )


def stop_at_mistakes(tell: Tell, seen: Seen = nowhere) -> Any:
    """Ray Train would try a typing error `max_failures` times; an error in its controller ends the run at once. Others are
    told of, from there."""
    from ray.train import UserCallback

    class StopAtMistakes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank, error in sorted(worker_exceptions.items()):
                if isinstance(error, Mistake):
                    raise Mistake(f"rank {rank}: {error}")
            if worker_exceptions:
                tell(f"{said_of(*culprit(worker_exceptions), seen)}; the group is started again")

    return StopAtMistakes()


def culprit(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """Of several ranks the one that did not merely lose its peer."""
    lost = ("closed by peer", "Connection reset")
    return min(failures.items(), key=lambda item: (any(word in str(item[1]) for word in lost), item[0]))
