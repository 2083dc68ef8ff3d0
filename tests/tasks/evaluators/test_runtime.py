"""What is measured is there, times are what the clock says, and every form computes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.evaluators import Candidate
from tasks.evaluators.runtime import Runtime
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

SMALL = {
    "batches": [1, 2],
    "contexts": [8, 16],
    "new": 2,
    "repeats": 1,
    "columns": [1, 4],
    "sparsities": [0.5, 0.9],
    "block": 4,
    "group": 4,
    "rounds": 1,
}


def candidate(folder, pattern: str | None = None, architecture: str = "llama") -> Candidate:
    sizes = {"hidden_size": 32, "intermediate_size": 64} if architecture == "llama" else {}
    model = zoo.model(architecture, **sizes)
    masks = zoo.prune(model, pattern) if pattern else {}
    save_model(model.state_dict(), model.config, folder / "model", masks)
    data_zoo.write_tokens(folder / "data", "heldout", np.arange(100) % zoo.VOCABULARY)
    return Candidate(folder / "model", folder / "data", report=folder / "report")


@pytest.mark.parametrize("pattern", ["2:4", "block:4", "group:4", "channel"])
def test_a_pruned_model_has_every_number_and_every_form_computes_the_same(pattern, tmp_path):
    threads = torch.get_num_threads()
    found = build("evaluators", {"runtime": SMALL}).measure(candidate(tmp_path, pattern))
    forms = [f"{form}_n{n}" for form in ("csr", "bsr4", "gather4", "sliced") for n in (1, 4)]
    assert found.keys() == {
        *(f"prefill_speed.b{batch}_c{context}" for batch in (1, 2) for context in (8, 16)),
        *(f"decode_speed.b{batch}" for batch in (1, 2)),
        *(f"time_to_first_token.c{context}" for context in (8, 16)),
        *(f"break_even_sparsity.{form}" for form in forms),
        *(f"own_speedup.n{n}" for n in (1, 4)),
        "runtime_peak_memory_bytes",
        "kernel_error",
    }
    assert all(value > 0 for name, value in found.items() if name != "kernel_error") and found["kernel_error"] < 1e-4
    assert torch.get_num_threads() == threads
    text = (tmp_path / "report" / "runtime.md").read_text()
    assert "The model's own zeros" in text and text.count("| own |") == 2 * 2 * 4  # masked and its form, per shape


def test_a_dense_model_has_no_zeros_of_its_own_and_what_does_not_divide_is_said(tmp_path):
    measured = candidate(tmp_path, architecture="gpt2")
    found = build("evaluators", {"runtime": {**SMALL, "block": 7}}).measure(measured)
    assert not [name for name in found if name.startswith(("own_speedup", "break_even_sparsity.bsr7"))]
    text = (tmp_path / "report" / "runtime.md").read_text()
    assert "own zeros" not in text and "not measured: pattern block:7 needs an input width divisible by 7" in text


def test_speeds_are_tokens_over_medians(tmp_path, monkeypatch):
    measured = candidate(tmp_path)
    monkeypatch.setattr(Runtime, "_median", lambda self, candidate, tokens, decoding: (tokens.shape[1] / 10, 0.5))
    found = build("evaluators", {"runtime": SMALL})._model(measured)
    assert found["prefill_speed.b2_c16"] == pytest.approx(2 * 16 / 1.6)
    assert found["time_to_first_token.c8"] == 0.8 and found["decode_speed.b2"] == 2 * 2 / 0.5


def test_decoding_goes_on_from_the_prompt(tmp_path):
    """Each step sees one token more than the one before."""
    measured, seen = candidate(tmp_path), []
    method = build("evaluators", {"runtime": SMALL})
    measured.model.register_forward_pre_hook(
        lambda module, args, fields: seen.append(tuple(fields["input_ids"].shape)), with_kwargs=True
    )
    with torch.inference_mode():
        method._median(measured, method._prompt(measured, 2, 8), decoding=True)
    assert seen == [(2, 8), (2, 1), (2, 1)] * 2  # a round to warm up, and one


def test_what_is_too_long_or_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^runtime.contexts up to 512 and runtime.new 16 are more than .* 64 positions$"):
        build("evaluators", "runtime").check_positions(64)
    with pytest.raises(ValueError, match="batches has a value twice"):
        build("evaluators", {"runtime": {"batches": [1, 1]}})
    with pytest.raises(ValueError, match="less than one prompt of 128 tokens"):
        build("evaluators", "runtime")._prompt(candidate(tmp_path), 1, 128)
