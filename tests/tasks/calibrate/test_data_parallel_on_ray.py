"""A walk whose sequences are dealt to Ray workers: the masks are those of the same workers in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.ray.jobs import Jobs
from cluster.servers.services import Services
from tasks.formats.mask import load_masks
from tasks.models.files.layout import MASKS
from tests.tasks import models_zoo as zoo
from tests.tasks.calibrate.test_data_parallel import walked

pytestmark = pytest.mark.slow

DRIVER = """
import sys
from pathlib import Path
from cluster.ray.workers import start_actor
from tests.tasks.calibrate.test_data_parallel import walked
source, output = map(Path, sys.argv[1:])
walked(source, output, 2, "sparsegpt", start=lambda payload: start_actor("tasks.calibrate.worker:CalibrationWorker", payload))
print("walked")
"""


def test_sequences_on_workers_give_the_masks_of_the_same_in_one_process(tmp_path):
    source = zoo.save("llama", tmp_path / "in")
    (tmp_path / "driver.py").write_text(DRIVER)
    services = Services(tmp_path / "home").start(["ray"])
    try:
        jobs = Jobs.of(services)
        command = [sys.executable, str(tmp_path / "driver.py"), str(source), str(tmp_path / "ray")]
        root = str(Path(__file__).resolve().parents[3])
        result = jobs.follow(jobs.submit("shares", command, {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}), lambda line: None)
        assert result.ok, result
    finally:
        services.stop()
    _, masks, _ = walked(source, tmp_path / "near", 2, "sparsegpt")
    on_ray = load_masks(tmp_path / "ray" / MASKS)
    assert on_ray.keys() == masks.keys()
    assert all(on_ray[name].packed.equal(mask.packed) for name, mask in masks.items())
