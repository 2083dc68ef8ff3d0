"""What we refuse and what a library chokes on are both ValueErrors, and are told apart by who raised them."""

import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from tasks import methods
from tasks.calibrate.parallel import side_by_side
from tasks.data.corpora import build_corpus
from tasks.formats.pattern import parse_pattern
from tasks.job import produce
from tasks.models.files.checkpoint import validate
from tasks.refusal import disk_full, refused


def caught(act) -> BaseException:
    with pytest.raises(Exception) as error:  # noqa: B017 - whatever comes
        act()
    return error.value


REFUSALS = {
    "a raise": lambda: parse_pattern("hexagonal"),
    "a shelf": lambda: methods.build("pruners", "wonda"),
    "a field": lambda: methods.build("pruners", {"wanda": {"alpah": 1}}),
    "pydantic": lambda: build_corpus({"files": {"paths": []}}),
    "our validator": lambda: build_corpus({"sequence": {"A": "stdlib", "b": "stdlib"}}),
    "a thread": lambda: ThreadPoolExecutor(1).submit(parse_pattern, "hexagonal").result(),
}


@pytest.mark.parametrize("act", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_we_refuse_is_a_refusal(act):
    assert refused(caught(act))


class Outside(BaseModel):
    number: int


def broadcast(name: str = "") -> np.ndarray:
    return np.ones(3) + np.ones(4)


LIBRARIES = {
    "numpy, in C": broadcast,
    "numpy, in Python": lambda: np.stack([np.ones(3), np.ones(4)]),
    "torch, in C": lambda: torch.tensor([[1], [1, 2]]),
    "torch, in Python": lambda: torch.nn.functional.cross_entropy(torch.ones(3, 4), torch.ones(2, dtype=torch.int64)),
    "torch, an option": lambda: torch.optim.AdamW([torch.ones(1, requires_grad=True)], lr=-1),
    "transformers": lambda: __import__("transformers").AutoConfig.for_model("nosuch"),
    "json": lambda: json.loads("{"),
    "python": lambda: int("x"),
    "zip": lambda: list(zip([1], [], strict=True)),
    "pydantic, of others": lambda: Outside(number="x"),
    "another type": lambda: math.exp(1e9),
}


@pytest.mark.parametrize("act", LIBRARIES.values(), ids=LIBRARIES.keys())
def test_what_a_library_chokes_on_is_a_fault(act):
    assert not refused(caught(act))


def test_a_name_put_to_a_librarys_error_does_not_make_it_a_refusal():
    matrices = {"a": torch.ones(1), "b": torch.ones(1)}
    assert not refused(caught(lambda: side_by_side(broadcast, matrices, {})))


IN_OUR_FILE = """
import sys
import numpy, torch
sys.argv = ["winnow", "plan", sys.argv[1]]
from flows import cli, plan
plan.prepare = lambda *given, **named: numpy.ones(3) + numpy.ones(4)
cli.main()
"""


def test_the_command_keeps_the_trace_of_a_librarys_error(tmp_path):
    done = subprocess.run([sys.executable, "-c", IN_OUR_FILE, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "could not be broadcast" in done.stderr and "Traceback" in done.stderr


def test_a_config_that_is_no_json_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    error = caught(lambda: validate(tmp_path))
    assert refused(error) and str(error).startswith(f"{tmp_path / 'config.json'}: malformed JSON")


def test_a_full_disk_is_told_whoever_met_it(tmp_path):
    def met(write):
        with pytest.raises(Exception) as caught:
            write()
        return disk_full(caught.value)

    def unbuffered():
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    assert met(unbuffered) == ""
    assert met(lambda: shutil.copyfile(__file__, "/dev/full")) in ("", " (/dev/full)")
    assert disk_full(OSError(28, "disk full: 5 bytes needed, 3 free", "/store/x")) == " (/store/x: 5 bytes needed, 3 free)"
    assert disk_full(RuntimeError("I/O error: No space left on device (os error 28)")) == ""  # as safetensors says it
    assert disk_full(FileNotFoundError(2, "No such file", "x")) is None and disk_full(ValueError("full")) is None


def test_a_stage_that_meets_a_full_disk_names_the_places_and_the_way_on(tmp_path, monkeypatch):
    def full(work, tell):
        raise OSError(28, "No space left on device", "/scratch/x")

    told = []
    monkeypatch.setattr("tasks.job._produce", full)
    with pytest.raises(OSError, match=r"^no space left on the disk of .*/S or of T \(/scratch/x\); free some and run"):
        artifact = {"stage": "prune", "version": 1, "label": "wanda", "params": {}, "parents": {}}
        produce({"scratch": str(tmp_path / "S"), "store": "T", "artifact": artifact}, told.append)
    assert [(event.shared, event.final) for event in told] == [(True, False)]


def test_a_limit_on_the_size_of_files_is_a_disk_that_is_full_and_says_so(tmp_path):
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from tasks.refusal import disk_full\n"
        "file = open(sys.argv[1], 'wb', buffering=0)\n"
        "try:\n    file.write(bytes(1000)) and file.write(b'0')\n"
        "except OSError as error:\n    print(disk_full(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(files may not be so large there: ulimit -f, or the file system's own limit)"


def test_what_is_taken_out_of_the_store_while_a_stage_reads_it_is_named_with_the_way_on(tmp_path, monkeypatch):
    lost, told = tmp_path / "T" / "prepare" / "x" / "tokenizer.json", []
    monkeypatch.setattr("tasks.job._produce", lambda work, tell: lost.read_bytes())
    artifact = {"stage": "prune", "version": 1, "label": "wanda", "params": {}, "parents": {}}
    work = {"scratch": str(tmp_path / "S"), "store": str(tmp_path / "T"), "artifact": artifact}
    with pytest.raises(FileNotFoundError, match=r"^/.*/T/prepare/x/tokenizer.json is gone: .*; run the same command to go on$"):
        produce(work, told.append)
    assert [(event.shared, event.final) for event in told] == [(True, False)]
    with pytest.raises(FileNotFoundError, match="No such file"):  # elsewhere it is no matter of the store
        produce({**work, "store": str(tmp_path / "U")}, told.append)
