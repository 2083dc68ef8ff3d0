"""Workers on the other ranks: what is said arrives as it was, a walk gets the masks it gets in one process, and a failure there
is a line here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.deepspeed import others
from cluster.deepspeed.others import helped, serve, start_on_ranks
from cluster.ray.targets import Mistake
from tasks.formats.mask import load_masks
from tasks.models.files.layout import MASKS
from tests.cluster.deepspeed.test_engine import ranks
from tests.cluster.test_packing import SENT, the_same
from tests.tasks import models_zoo as zoo
from tests.tasks.calibrate.test_data_parallel import walked

HERE = "tests.cluster.deepspeed.test_others"


class Echo:
    """Says what it was sent; ``fails`` in being made, or when it is asked to."""

    def __init__(self, payload: dict) -> None:
        if "fails" in payload:
            raise FileNotFoundError(payload["fails"])
        self.payload = payload

    def say(self, *values: object) -> tuple:
        return self.payload["number"], *values

    def fail(self) -> None:
        raise ValueError("no such block")


def check_said() -> None:
    """Four workers on two ranks, asked in one order and read in another."""
    workers = start_on_ranks(f"{HERE}:Echo", [{"number": number} for number in range(4)])
    asked = [worker.call("say", SENT, [SENT["one"], SENT["one"]]) for worker in workers]
    for number, answer in reversed(list(enumerate(asked))):
        told, sent, (first, second) = answer.result()
        assert told == number and first is second
        assert the_same(sent, SENT)


def check_failures() -> None:
    well, broken = start_on_ranks(f"{HERE}:Echo", [{"number": 0}, {"fails": "model.safetensors"}])
    with pytest.raises(Mistake, match="^rank 1: ValueError: no such block$"):
        well.call("fail").result()
    with pytest.raises(RuntimeError, match="^rank 2: FileNotFoundError: model.safetensors$"):
        broken.call("say").result()
    assert well.call("say").result() == (0,)


def check_walks(source: Path, output: Path) -> None:
    for workers in (2, 4):  # the fourth lives where the second does
        dealt = iter(range(workers))

        def start(payload: dict, dealt=dealt):
            return others._helping[next(dealt) % 2].make("tasks.calibrate.worker:CalibrationWorker", payload)

        walked(source, output / f"ranks-{workers}", workers, "sparsegpt", start)


@pytest.mark.slow
def test_two_other_ranks_serve_the_first(tmp_path):
    source = zoo.save("llama", tmp_path / "in")
    assert ranks(3, str(source), str(tmp_path), environment={}, module=HERE)[0].splitlines()[-1] == "served"
    for workers in (2, 4):
        _, masks, _ = walked(source, tmp_path / f"near-{workers}", workers, "sparsegpt")
        there = load_masks(tmp_path / f"ranks-{workers}" / MASKS)
        assert there.keys() == masks.keys()
        assert all(there[name].packed.equal(mask.packed) for name, mask in masks.items())


if __name__ == "__main__":
    import os

    from cluster.deepspeed.rank import leave

    for _ in range(2):  # a recipe has several stages that need help
        if os.environ["RANK"] == "0":
            with helped("cpu"):
                check_said()
                check_failures()
                check_walks(Path(sys.argv[1]), Path(sys.argv[2]))
            print("served")
        else:
            serve("cpu")
    leave(0)
