"""What plain transformers does not find to be our model, in a process of its own, is refused with what differed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.formats.mask import BrokenMask, Mask, load_masks, save_masks
from tasks.models.export import export_compressed
from tasks.models.files.checkpoint import load_extras, load_model, save_model
from tasks.models.files.gate import READER, Seen, require_readable_elsewhere, windows
from tasks.models.files.layout import MASKS
from tests.tasks import models_zoo as zoo
from tests.tasks.models.files.test_quantized import quantized

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A packed 2:4 model, and what the model that it was made from looks like."""
    directory = tmp_path_factory.mktemp("gate")
    READER.start()
    source, method = quantized(directory)
    export_compressed(source, load_extras(source), method.scheme_of, directory / "packed")
    model = load_model(source)
    return directory / "packed", Seen.of(model, windows(None, model))


@pytest.fixture
def packed(made, tmp_path):
    """A copy of it to spoil."""
    shutil.copytree(made[0], tmp_path / "packed")
    return tmp_path / "packed"


def rewrite(directory, change) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def test_a_sound_export_is_the_same_model_there(made):
    assert require_readable_elsewhere(*made) == 0


def test_other_codes_are_other_logits(made, packed):
    def spoil(state):
        state[f"{UP}_packed"].bitwise_xor_(0x11111111 & (state[f"{UP}_packed"] ^ 0x88888888))

    rewrite(packed, spoil)
    with pytest.raises(ValueError, match=r"packed does not read back: its logits differ by up to [\d.]+$"):
        require_readable_elsewhere(packed, made[1])


def test_a_model_that_computes_no_numbers_is_said_to_be_so_and_not_its_export(made, tmp_path):
    """float16 ends at 65504."""
    model = zoo.model("llama", dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e4)
        model.model.layers[1].mlp.down_proj.weight.mul_(1e4)
    save_model(model.state_dict(), model.config, tmp_path)
    with pytest.raises(ValueError, match="^the model that the export in .* computes NaN or infinity .* in float16; "):
        require_readable_elsewhere(tmp_path, Seen.of(model, windows(None, model)))


def test_a_file_cut_short_and_a_tensor_left_out_do_not_load(made, packed):
    whole = (packed / "model.safetensors").read_bytes()
    (packed / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated: \d+ bytes where \d+ are needed"):
        require_readable_elsewhere(packed, made[1])
    shutil.move(packed / MASKS, packed / "aside.safetensors")  # without masks it is transformers who finds it
    with pytest.raises(ValueError, match=f"^plain transformers cannot load the export in {packed}: SafetensorError") as refused:
        require_readable_elsewhere(packed, made[1])
    assert "\n" not in str(refused.value)
    (packed / "model.safetensors").write_bytes(whole)
    rewrite(packed, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(ValueError, match="cannot load the export in .*: missing keys model.norm.weight"):
        require_readable_elsewhere(packed, made[1])


def test_masks_are_counted_on_the_weights_as_they_were_loaded(made, packed):
    masks = load_masks(packed / MASKS)
    keep = masks[UP].keep
    rows = keep.view(-1, 4)
    rows[:] = ~rows  # a mask that keeps its own promise, and not the weights
    save_masks({**masks, UP: Mask.of(keep, "2:4", 0.5)}, packed / MASKS)
    with pytest.raises(BrokenMask, match=rf"{UP} is broken: \d+ dead weights are not zero as transformers loads them"):
        require_readable_elsewhere(packed, made[1])
    save_masks({**masks, UP: Mask.of(torch.ones_like(keep), "2:4", 0.5)}, packed / MASKS)
    with pytest.raises(BrokenMask, match="pattern 2:4 at sparsity 0.5 does not hold"):
        require_readable_elsewhere(packed, made[1])
    save_masks({"model.absent.weight": masks[UP]}, packed / MASKS)
    with pytest.raises(BrokenMask, match="as transformers loads it has no such weight"):
        require_readable_elsewhere(packed, made[1])


def test_another_perplexity_is_told_with_both(made):
    directory, seen = made
    other = replace(seen, loss=seen.loss + 0.01)
    told = rf"perplexity on held-out text is {math.exp(seen.loss):.4g}, .* from {math.exp(other.loss):.4g}$"
    with pytest.raises(ValueError, match=told):
        require_readable_elsewhere(directory, other)


def test_another_vocabulary_is_told(made, packed):
    config = json.loads((packed / "config.json").read_text())
    seen = replace(made[1], logits_TV=made[1].logits_TV[:, :-1])
    with pytest.raises(ValueError, match=rf"its logits are \[\d+, {config['vocab_size']}\], not"):
        require_readable_elsewhere(packed, seen)


def test_a_reader_that_ends_just_as_it_is_asked_is_started_again(made):
    """It ends by its alarm after a minute without a question; so it did between being looked at and being asked."""
    READER.start()
    process, looked = READER._process, iter([None])
    os.kill(process.pid, signal.SIGALRM)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    process.poll = lambda: next(looked, process.returncode)
    assert require_readable_elsewhere(*made) == 0
    assert READER._process is not process


def test_a_killed_process_leaves_nothing_of_the_gate_behind(made, tmp_path):
    """Nor does a full disk of temporary files stop it: what the reader is given is in no file."""
    torch.save(made[1], tmp_path / "seen")
    (tmp_path / "given").mkdir()
    script = (
        "import os, sys, signal, torch; from pathlib import Path; from tasks.models.files import gate\n"
        "gate.READER.ask = lambda *asked: os.kill(os.getpid(), signal.SIGKILL)\n"
        "gate.require_readable_elsewhere(Path(sys.argv[1]), torch.load(sys.argv[2], weights_only=False))"
    )
    command = [sys.executable, "-c", script, str(made[0]), str(tmp_path / "seen")]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path / "given")}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "given").iterdir() if path.name.startswith("winnow-")] == []


def test_a_reader_that_was_stopped_ends_with_who_asked(made):
    READER.start()
    READER._process.send_signal(signal.SIGSTOP)
    process, begun = READER._process, time.monotonic()
    READER.stop()
    assert process.returncode == -signal.SIGKILL and time.monotonic() - begun < 30


def test_a_reader_that_is_killed_while_it_answers_is_told_of_in_one_line(made):
    """Its trace said that it said nothing."""
    READER.start()
    READER._process.send_signal(signal.SIGSTOP)  # what it is asked lies in its pipe
    killing = threading.Timer(0.5, READER._process.kill)
    killing.start()
    with pytest.raises(OSError, match="^the process that reads an export back was killed, as Linux does where memory runs out"):
        require_readable_elsewhere(*made)
    killing.join()
    assert require_readable_elsewhere(*made) == 0
