"""Vocabularies, ids and positions of whoever takes part in a stage are compared at the plan, each model built once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tasks.models.facts
from flows.facts import examine
from tests.flows.recipes import HUB, SIZES, recipe
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

CALIBRATION = {"length": 32}
PRUNE = {"prune": {"method": "wanda", "pattern": "2:4", **CALIBRATION}}
LLAMA = {"architecture": {"model_type": "llama", **SIZES}}


def tokens(tokenizer: dict) -> dict:
    return {"prepare": {"corpus": HUB, "tokenizer": tokenizer}}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A checkpoint of 64 tokens and 64 positions."""
    return zoo.save("llama", tmp_path_factory.mktemp("small"), layers=1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """One of 320 tokens and 64 positions."""
    return zoo.save("llama", tmp_path_factory.mktemp("wide"), layers=1, vocab_size=320)


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Path:
    """A tokenizer of 300 tokens, one of which has id 310."""
    return data_zoo.write_tokenizer(tmp_path_factory.mktemp("holed"), holes=11)


def refusal(*stages: dict, **header) -> str:
    with pytest.raises(ValueError) as refused:
        examine(recipe(*stages, **{"evaluate": {}, **header}))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "stage",
    [
        {"pretrain": {"tokens": 1000, **CALIBRATION}},
        PRUNE,
        {"quantize": {"method": "round_to_nearest", **CALIBRATION}},
        {"recover": {"method": {"masked": {"kl": 0}}, "tokens": 1000, **CALIBRATION}},
    ],
    ids=lambda stage: next(iter(stage)),
)
def test_every_stage_compares_the_tokenizers_ids_with_the_models_embedding(stage, small):
    message = refusal(tokens({"train": 300}), stage, model={"checkpoint": str(small)})
    assert message == (
        f"recipe.{next(iter(stage))}: the tokenizer's largest id is 299, and the model's embedding has 64 rows; "
        "take the model's own tokenizer"
    )


def test_the_largest_id_counts_and_not_how_many_there_are(holed, wide, tmp_path):
    prepare = tokens({"checkpoint": str(holed)})
    fits = zoo.save("llama", tmp_path / "311", layers=1, vocab_size=311)
    short = zoo.save("llama", tmp_path / "310", layers=1, vocab_size=310)
    examine(recipe(prepare, PRUNE, model={"checkpoint": str(fits)}, evaluate={}))
    message = refusal(prepare, PRUNE, model={"checkpoint": str(short)})
    assert message.startswith("recipe.prune: the tokenizer's largest id is 310, and the model's embedding has 310 rows")
    sizes = {**SIZES, "vocab_size": 310}
    assert "the tokenizer has 311 tokens, more than the model's vocab_size 310" in refusal(
        prepare, {"pretrain": {"tokens": 1000}}, model={"architecture": {"model_type": "llama", **sizes}}
    )


def test_data_of_another_tokenizer_downstream_are_compared_with_the_model_as_it_began():
    stages = [tokens({"train": 300}), {"pretrain": {"tokens": 1000}}, {"id": "more", **tokens({"train": 400})}]
    message = refusal(*stages, {"from": {"model": "pretrain", "data": "more"}, **PRUNE}, model=LLAMA)
    assert message.startswith("recipe.prune: the tokenizer's largest id is 399, and the model's embedding has 300 rows")


def test_teacher_and_student_are_compared(small, wide):
    def taught(teacher: Path, length: int = 32) -> list[dict]:
        recover = {"recover": {"teacher": {"checkpoint": str(teacher)}, "tokens": 1000, "length": length}}
        return [tokens({"train": 300}), {"pretrain": {"tokens": 1000}}, recover]

    assert "largest id is 299, and the teacher's embedding has 64 rows" in refusal(*taught(small), model=LLAMA)
    assert "the teacher tells the odds of 320 tokens, the model of 300" in refusal(*taught(wide), model=LLAMA)
    assert "length 65 is more than the teacher's 64 positions" in refusal(*taught(wide, 65), model=LLAMA)
    sizes = {**SIZES, "vocab_size": 320}
    examine(recipe(*taught(wide), model={"architecture": {"model_type": "llama", **sizes}}, evaluate={}))


def test_an_objective_that_compares_blocks_wants_a_teacher_of_the_models_shape(wide):
    recover = {
        "recover": {
            "method": "static",
            "objective": "square_head",
            "teacher": {"checkpoint": str(wide)},
            "tokens": 1000,
            **CALIBRATION,
        }
    }
    sizes = {**SIZES, "vocab_size": 320, "num_hidden_layers": 3}
    stages = [tokens({"train": 300}), {"pretrain": {"tokens": 1000}}, recover]
    message = refusal(*stages, model={"architecture": {"model_type": "llama", **sizes}})
    assert message.startswith("recipe.recover: square_head compares block by block, and the teacher has 1 blocks of width")


def test_evaluations_are_compared_too(small):
    prepare = tokens({"checkpoint": {"hub": "a/b", "revision": "c" * 40}})
    message = refusal(prepare, PRUNE, model={"checkpoint": str(small)}, evaluate={"perplexity": {"length": 65}})
    assert message == "recipe.prune.perplexity: perplexity.length 65 is more than the model's 64 positions"


def test_what_lies_elsewhere_is_left_to_the_stage():
    elsewhere = {"hub": "a/b", "revision": "c" * 40}
    examine(recipe(tokens({"checkpoint": elsewhere}), PRUNE, model={"checkpoint": elsewhere}))
    pretrain = {"pretrain": {"tokens": 1000}}
    recover = {"recover": {"teacher": {"checkpoint": elsewhere}, "tokens": 1000, **CALIBRATION}}
    examine(recipe(tokens({"checkpoint": elsewhere}), pretrain, recover, model=LLAMA))


def test_a_method_looks_at_every_matrix_of_the_model_before_anything_runs(tmp_path):
    """Widths that stand in no field of a config by name: those of low ranks, and of heads wider than the model."""
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 18}
    message = refusal(
        tokens({"train": 300}),
        {"pretrain": {"tokens": 1000}},
        {"prune": {"method": "magnitude", "pattern": "4:8"}},
        model={"architecture": {"model_type": "qwen3", **sizes}},
    )
    assert message.startswith("recipe.prune: ") and message.endswith("(model.layers.0.self_attn.o_proj.weight)")


def test_each_model_and_tokenizer_is_looked_at_once(monkeypatch, small):
    looked, facts = [], tasks.models.facts.facts_of
    monkeypatch.setattr("flows.facts.facts_of", lambda source, ids: looked.append(ids) or facts(source, ids))
    grid = {"grid": {"method.sparsity": [0.5, 0.6, 0.7]}, "pretrain": {"method": "static", "tokens": 1000}}
    examine(recipe(tokens({"train": 300}), grid, {"prune": {"method": "wanda", "pattern": "2:4"}}, model=LLAMA))
    assert looked == [300]


TWO = [
    {"id": "one", **tokens({"train": 300})},
    {"pretrain": {"tokens": 1000}},
    {"id": "two", "prepare": {"corpus": {"hub": {**HUB["hub"], "dataset": "other/text"}}, "tokenizer": {"train": 300}}},
    {"id": "other", "from": "two", "pretrain": {"tokens": 1000}},
]
LEARNED = "differ (they are learned from different texts)"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"from": {"model": "pretrain", "data": "two"}, **PRUNE},
            f"recipe.prune: the tokenizers of data and model {LEARNED}; prepare data with the model's own: tokenizer: earlier",
        ),
        (
            {"from": {"model": "pretrain", "data": "one", "teacher": "other"}, "recover": {"tokens": 1000, **CALIBRATION}},
            f"recipe.recover: the tokenizers of data and teacher {LEARNED}; learn from a teacher with the model's tokenizer",
        ),
        (
            {"from": {"model": "pretrain", "data": "one", "reference": "other"}, "evaluate": {"method": "divergence"}},
            f"recipe.evaluate: the tokenizers of data and reference {LEARNED}; compare with a model that has the model's",
        ),
    ],
    ids=["data", "teacher", "reference"],
)
def test_tokenizers_of_one_size_that_are_learned_from_different_texts_are_told_apart(stage, message):
    assert refusal(*TWO, stage, model=LLAMA).startswith(message)


def test_tokenizers_that_are_learned_from_one_text_are_one_whatever_is_held_out():
    def held(dataset: str) -> dict:
        roles = {"train": HUB, "heldout": {"hub": {**HUB["hub"], "dataset": dataset}}}
        return {"id": dataset[:1], "prepare": {"corpus": roles, "tokenizer": {"train": 300}}}

    examine(recipe(held("x/y"), {"pretrain": {"tokens": 1000}}, held("z/y"), PRUNE, model=LLAMA, evaluate={}))
    later = {"prepare": {"corpus": "stdlib", "tokenizer": "earlier"}}
    examine(recipe(held("x/y"), {"pretrain": {"tokens": 1000}}, later, PRUNE, model=LLAMA, evaluate={}))


def test_a_checkpoints_own_tokenizer_is_compared_with_that_of_the_data_token_by_token(tmp_path):
    """One may know ids that the other does not."""
    mine, other = (data_zoo.write_tokenizer(tmp_path / name) for name in ("mine", "other"))
    zoo.save("llama", mine, layers=1, vocab_size=320)
    examine(recipe(tokens({"checkpoint": str(other)}), PRUNE, model={"checkpoint": str(mine)}, evaluate={}))
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] = {token: (571 - id if id > 270 else id) for token, id in content["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(content))
    message = refusal(tokens({"checkpoint": str(other)}), PRUNE, model={"checkpoint": str(mine)})
    assert message.startswith("recipe.prune: the tokenizers of data and model differ (id 272 is ")
    added = json.loads((mine / "tokenizer.json").read_text())
    added["added_tokens"].append({**added["added_tokens"][0], "id": 300, "content": "<pad>"})
    (other / "tokenizer.json").write_text(json.dumps(added))
    examine(recipe(tokens({"checkpoint": str(other)}), PRUNE, model={"checkpoint": str(mine)}, evaluate={}))
