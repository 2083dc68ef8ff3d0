"""A sample of the zoo, and that what judges it finds a fault of every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.zoo.keeper import CHECKS, COLUMNS, Cell, Row, judge, open_zoo, stages, treat
from tests.zoo.members import MEMBERS
from tests.zoo.table import MEANINGS, failures, page

TIED = "llama_tied"
# plain and tied, Conv1D, experts with a float32 buffer and MLA, stacked experts, layers of two kinds with a scalar, and a head
# that is no plain linear
SAMPLE = (TIED, "gpt2", "deepseek_v3", "gpt_oss", "gemma4", "falcon")
WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("zoo")
    open_zoo(made)
    return made


@pytest.fixture(scope="module")
def rows(root) -> dict[str, Row]:
    return {row.name: row for row in treat(root, SAMPLE)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_member_goes_through_every_stage_and_plain_transformers_finds_nothing_wrong(rows, name):
    row = rows[name]
    assert failures([row]) == []
    assert row.cells["quantized"].state == ("ok" if MEMBERS[name].packs else "refused")
    assert all(row.cells[check].state == "ok" for check in CHECKS)


def edit(home: Path, change: Callable[[dict], None]) -> None:
    """Change the tensors of the file that holds WEIGHT."""
    for path in (home / "exports" / "half").glob("model*.safetensors"):
        if WEIGHT in (tensors := load_file(path)):
            change(tensors)
            save_file(tensors, path, {"format": "pt"})
            return
    raise AssertionError(f"no {WEIGHT}")


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_live_weight(home: Path) -> None:
    edit(home, lambda tensors: tensors[WEIGHT].view(-1)[int(tensors[WEIGHT].view(-1).nonzero()[0])].mul_(1.5))


def revive_dead_weight(home: Path) -> None:
    edit(home, lambda tensors: tensors[WEIGHT].view(-1)[int((tensors[WEIGHT].view(-1) == 0).nonzero()[0])].fill_(1.0))


def lay_masks_beside_the_weights(home: Path) -> None:
    mask = load_file(home / "masks.safetensors")[f"half:{WEIGHT}"]
    save_file({WEIGHT: mask}, home / "exports" / "half" / "masks.safetensors")


def lose_a_stop_token(home: Path) -> None:
    edit_json(home / "exports" / "half" / "generation_config.json", eos_token_id=7)


def untie(home: Path) -> None:
    edit_json(home / "exports" / "half" / "config.json", tie_word_embeddings=False)


def record_another_perplexity(home: Path) -> None:
    recorded = json.loads((home / "case.json").read_text())["perplexity"]
    edit_json(home / "case.json", perplexity={name: value * 1.0001 for name, value in recorded.items()})


def move_a_mask_bit(home: Path) -> None:
    masks = load_file(home / "masks.safetensors")
    masks[f"half:{WEIGHT}"].view(-1)[0] ^= 1
    save_file(masks, home / "masks.safetensors")


FAULTS = {
    "load": lambda home: edit(home, lambda tensors: tensors.pop(WEIGHT)),
    "names": lay_masks_beside_the_weights,
    "bytes": change_live_weight,
    "companions": lose_a_stop_token,
    "ties": untie,
    "groups": revive_dead_weight,
    "logits": change_live_weight,
    "perplexity": record_another_perplexity,
    "masks": move_a_mask_bit,
}


@pytest.mark.slow
def test_the_judge_finds_a_fault_of_every_kind(root, rows):
    assert failures([rows[TIED]]) == [], "a fault shows only where there was none before"
    homes = [root / "faults" / check for check in CHECKS]
    for home in homes:
        shutil.copytree(root / "members" / TIED, home)
        masked = json.loads((home / "case.json").read_text())["masked"]
        edit_json(home / "case.json", exports=["half"], masked={"half": masked["half"]})
        FAULTS[home.name](home)
    found = dict(zip(CHECKS, judge(root, homes), strict=True))
    assert not [check for check in CHECKS if not found[check][check]["half"]]


def test_quantization_is_refused_before_anything_runs_or_works():
    crash = {"quantized": "AttributeError: weight"}
    assert stages(packs=False, failures={}, refusal="recipe.quantized: no format")["quantized"].state == "refused"
    assert stages(packs=True, failures={}, refusal="")["quantized"].state == "ok"
    for failed in (
        stages(packs=True, failures={}, refusal="recipe.quantized: no format"),
        stages(packs=False, failures={}, refusal="recipe.quantized: no format\nTraceback"),
        stages(packs=False, failures=crash, refusal=""),
        stages(packs=True, failures=crash, refusal=""),
    ):
        assert failed["quantized"].state == "FAILED"


def test_the_page_has_a_row_for_every_member_and_says_what_every_column_means():
    rows = [Row("good", {"pruned": Cell("ok")}), Row("bad", {"pruned": Cell("FAILED", "no such weight")})]
    text = page(rows)
    assert "| good | - | ok |" in text and "- bad, pruned, FAILED: no such weight" in text
    assert failures(rows) == ["bad, pruned: no such weight"] and [row.failed for row in rows] == [False, True]
    assert MEANINGS.keys() == set(COLUMNS)
