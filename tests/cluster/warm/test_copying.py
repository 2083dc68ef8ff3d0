"""A copy of the warm process is the asker's own: its environment, its output, its end; and it never runs what is old."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.warm import asking, copying
from cluster.warm.copying import command

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sys, time
BEGUN = os.environ.get("COLOUR")
def seen(name): return [os.environ.get(name), "BEFORE", os.getcwd()]
def stay(): time.sleep(60)
if __name__ == "__main__":
    print(os.environ.get("COLOUR"), os.getpid(), "json" in sys.argv, flush=True)
    wait = os.environ.get("WAIT")
    if wait: time.sleep(float(wait))
    sys.exit(int(os.environ.get("CODE", "0")))
"""


class Place:
    """A warm process that has imported one small module, and whoever asks it."""

    def __init__(self, directory: Path) -> None:
        self.socket, self.log, self.module = directory / "warm.sock", directory / "log", directory / "errand.py"
        self.module.write_text(PROGRAM)
        self.variables = {**os.environ, "PYTHONPATH": f"{directory}:{ROOT}", asking.VARIABLE: str(self.socket), "COLOUR": "old"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(self.socket, ["errand"]), cwd=ROOT, env=self.variables, stdout=log, stderr=subprocess.STDOUT
            )
        self.wait_for(1)

    def wait_for(self, times: int) -> None:
        deadline = time.monotonic() + 60
        while self.log.read_text().count("warm after") < times:
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        line = [*asking.alone(), "-m", "errand"]
        return subprocess.Popen(line, env={**self.variables, **variables}, stdout=subprocess.PIPE, text=True)

    def run(self, **variables: str) -> tuple[int, list[str], bool]:
        """Exit code, the words it said, and whether a copy said them."""
        asker = self.start(**variables)
        out, _ = asker.communicate(timeout=60)
        return asker.returncode, out.split(), int(out.split()[1]) != asker.pid


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.process.kill()
    place.process.wait()


def test_a_copy_has_the_askers_environment_and_nothing_of_an_earlier_one(place: Place, monkeypatch) -> None:
    assert [place.run(COLOUR="red", CODE="3")[0], *place.run(COLOUR="blue")[1:]][0] == 3
    code, words, copied = place.run()
    assert (code, words[0], copied) == (0, "old", True)
    monkeypatch.setenv(asking.VARIABLE, str(place.socket))
    environment = {**place.variables, "SECRET": "mine"}
    assert asking.call("errand:seen", ["SECRET"], environment) == (True, ["mine", "BEFORE", os.getcwd()])
    assert asking.call("errand:seen", ["SECRET"], place.variables)[1][0] is None


def test_what_has_changed_on_the_disk_is_never_run_as_it_was(place: Place, monkeypatch) -> None:
    place.module.write_text(PROGRAM.replace("BEFORE", "AFTER"))
    monkeypatch.setenv(asking.VARIABLE, str(place.socket))
    assert asking.call("errand:seen", ["X"], place.variables) == (False, None)  # who asks starts by itself
    place.wait_for(2)
    assert asking.call("errand:seen", ["X"], place.variables)[1][1] == "AFTER"


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "7"}, {"PYTHONPATH": "/elsewhere"}, {"DS_ACCELERATOR": "other"}])
def test_who_has_what_libraries_read_while_imported_is_refused(place: Place, monkeypatch, variables: dict[str, str]) -> None:
    monkeypatch.setenv(asking.VARIABLE, str(place.socket))
    assert asking.call("errand:seen", ["X"], {**place.variables, **variables}) == (False, None)


def test_without_a_warm_process_a_module_runs_as_ever(place: Place) -> None:
    assert place.run(**{asking.VARIABLE: "/nowhere"})[2] is False
    assert place.run(**{asking.VARIABLE: ""})[2] is False
    place.process.kill()
    place.process.wait()
    assert place.run(CODE="4")[::2] == (4, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_copy_ends_with_its_asker_and_as_its_asker_is_told(place: Place, number: int) -> None:
    asker = place.start(WAIT="60")
    copy = psutil.Process(int(asker.stdout.readline().split()[1]))
    asker.send_signal(number)
    assert asker.wait(10) == -number
    with suppress(psutil.NoSuchProcess):
        copy.wait(10)
    assert not copy.is_running()


def test_a_copy_that_is_killed_takes_its_asker_with_it(place: Place) -> None:
    asker = place.start(WAIT="60")
    psutil.Process(int(asker.stdout.readline().split()[1])).kill()
    assert asker.wait(10) == -signal.SIGKILL


def test_copies_outlive_the_warm_process(place: Place) -> None:
    asker = place.start(WAIT="1", CODE="5")
    asker.stdout.readline()
    place.process.kill()
    assert asker.wait(10) == 5


def test_the_asking_side_imports_next_to_nothing() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cluster.warm.asking; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90


def test_a_folder_whose_name_begins_like_that_of_the_checkout_is_none_of_ours(tmp_path: Path, monkeypatch) -> None:
    ours, beside = tmp_path / "winnow", tmp_path / "winnow-old"
    for folder, name in ((ours, "errand_of_ours"), (beside, "errand_beside")):
        folder.mkdir()
        (folder / f"{name}.py").write_text("")
        monkeypatch.syspath_prepend(folder)
        importlib.import_module(name)
    monkeypatch.setattr(copying, "CHECKOUT", str(ours))
    folders = {file for file in copying.imported() if Path(file).is_dir()}
    assert folders == {str(ours)}
