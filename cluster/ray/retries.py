"""What a group of ranks does after one of them failed: start again, unless the failure would come back every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.ray.targets import Mistake

Tell = Callable[[str], None]


def stop_at_mistakes(tell: Tell) -> Any:
    """Ray Train would try a typing error `max_failures` times; an error in its controller ends the run at once. Others are
    told of, from there."""
    from ray.train import UserCallback

    class StopAtMistakes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank, error in sorted(worker_exceptions.items()):
                if isinstance(error, Mistake):
                    raise Mistake(f"rank {rank}: {error}")
            if failed := sorted(worker_exceptions):
                tell(
                    f"rank {failed[0]} of the group failed, it is started again: {type(worker_exceptions[failed[0]]).__name__}"
                )

    return StopAtMistakes()
