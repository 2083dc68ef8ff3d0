"""The atlas has a row for every matrix, and its summary is of the rows."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tasks.models.find.linears import find_linears
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo


def candidate(folder, architecture: str = "llama", pattern: str | None = None) -> Candidate:
    model = zoo.model(architecture)
    masks = zoo.prune(model, pattern) if pattern else {}
    save_model(model.state_dict(), model.config, folder / "model", masks)
    data_zoo.write_tokens(folder / "data", "heldout", np.random.default_rng(0).integers(0, zoo.VOCABULARY, 64))
    return Candidate(folder / "model", folder / "data", report=folder / "report")


def measure(candidate: Candidate) -> tuple[dict[str, float], list[dict[str, str]]]:
    found = build("evaluators", {"atlas": {"length": 16, "tokens": 32}}).measure(candidate)
    with (candidate.report / "atlas.csv").open() as table:
        return found, list(csv.DictReader(table))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_it_has_a_row_for_every_matrix_whatever_its_storage(architecture, tmp_path):
    measured = candidate(tmp_path, architecture, "2:4")
    found, rows = measure(measured)
    linears = find_linears(measured.model)
    assert [row["matrix"] for row in rows] == [name for linear in linears.values() for name in linear.matrices]
    for row in rows:
        shape = linears[row["matrix"].partition("[")[0]].shape
        assert (int(row["outputs"]), int(row["inputs"])) == shape[-2:] and row["zeros"] == "0.5"
        assert row["pattern"] == "2:4" and row["pattern_holds"] == "1"
        assert (row["input_rms"] == "") == ("[" in row["matrix"])  # inside fused experts nothing is observed
    assert found["least_zeros"] == found["most_zeros"] == 0.5 and found["broken_matrices"] == 0


def test_of_a_dense_model_nothing_is_promised_and_the_summary_is_of_the_rows(tmp_path):
    found, rows = measure(candidate(tmp_path))
    assert {row["pattern_holds"] for row in rows} == {""} and found["broken_matrices"] == 0
    ranks = [float(row["effective_rank"]) for row in rows]
    assert found["effective_rank"] == pytest.approx(sum(ranks) / len(ranks)) and min(ranks) == found["lowest_effective_rank"]
    assert found["input_outlier"] == pytest.approx(max(float(row["input_outlier"]) for row in rows))


def test_one_weight_that_came_alive_breaks_its_matrix_and_no_other(tmp_path):
    measured = candidate(tmp_path, pattern="2:4")
    file = tmp_path / "model" / "model.safetensors"
    state, name = load_file(file), next(iter(find_linears(measured.model)))
    row, column = (state[name] == 0).nonzero()[0].tolist()
    state[name][row, column] = 1.0
    save_file(state, file, {"format": "pt"})
    found, rows = measure(Candidate(measured.directory, measured.data, report=measured.report))
    assert [row["matrix"] for row in rows if row["pattern_holds"] == "0"] == [name] and found["broken_matrices"] == 1


def test_inputs_are_those_of_the_model_by_hand(tmp_path):
    measured = candidate(tmp_path)
    tokens = torch.from_numpy(np.load(tmp_path / "data" / "heldout-00000.npy").astype(int)[:32]).view(2, 16)
    with torch.inference_mode():
        normed = measured.model.model.layers[0].input_layernorm(measured.model.model.embed_tokens(tokens))
    _, rows = measure(measured)
    first = next(row for row in rows if row["matrix"].endswith("0.self_attn.q_proj.weight"))
    assert float(first["input_rms"]) == pytest.approx(float(normed.square().mean().sqrt()), rel=1e-5)
    assert float(first["input_largest"]) == pytest.approx(float(normed.abs().max()), rel=1e-5)


def test_windows_longer_than_the_positions_are_refused():
    with pytest.raises(ValueError, match="^atlas.length 256 is more than the model's 64 positions$"):
        build("evaluators", "atlas").check_positions(64)
