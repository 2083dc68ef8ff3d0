"""Where a model comes from is said before anything is loaded: its config, its widths, its fingerprint."""

from __future__ import annotations

import shutil

import pytest
from pydantic import ValidationError

from tasks.models.checkpoint import Checkpoint
from tasks.models.source import Architecture, ModelSource
from tests.tasks import models_zoo as zoo


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return zoo.save("llama", tmp_path_factory.mktemp("model"))


def test_an_architecture_takes_the_tokenizers_size_unless_told(saved):
    assert Architecture(model_type="llama").config(300).vocab_size == 300
    assert Architecture(model_type="llama", vocab_size=512).config(300).vocab_size == 512
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens, more than the model's vocab_size 200"):
        Architecture(model_type="llama", vocab_size=200).config(300)


def test_overrides_reach_the_config_under_either_name():
    assert Architecture(model_type="llama", hidden_size=96).config().hidden_size == 96
    assert Architecture(model_type="gpt2", n_embd=96).config().hidden_size == 96


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "no causal language model type 'lama'"),
        ({"model_type": "llama", "hiden": 1}, "no config field 'hiden'"),
        ({"model_type": "llama", "num_attention_heads": 3, "hidden_size": 64}, "model type llama: "),
    ],
)
def test_what_transformers_does_not_know_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as refused:
        Architecture(**fields).config()
    assert "\n" not in str(refused.value)


def test_widths_are_told_by_name_from_config_or_checkpoint(saved):
    assert ModelSource(checkpoint=str(saved)).widths() == {"hidden_size": 32, "intermediate_size": 48}
    gpt2 = ModelSource(architecture={"model_type": "gpt2", "n_embd": 96})
    assert gpt2.widths() == {"hidden_size": 96}


def test_a_checkpoint_is_fingerprinted_by_name_and_content_and_not_by_place(saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    first = Checkpoint(path=str(saved)).fingerprint()
    assert Checkpoint(path=str(copy)).fingerprint() == first
    (copy / "config.json").rename(copy / "other.json")
    assert Checkpoint(path=str(copy)).fingerprint() != first
    (copy / "other.json").rename(copy / "config.json")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert Checkpoint(path=str(copy)).fingerprint() != first


def test_a_hub_model_is_its_id_and_revision():
    fingerprint = Checkpoint(hub="a/b", revision=40 * "1").fingerprint()
    assert fingerprint != Checkpoint(hub="a/b", revision=40 * "2").fingerprint()
    assert ModelSource(checkpoint={"hub": "a/b", "revision": 40 * "1"}).widths() == {}


def test_a_local_checkpoint_is_used_where_it_lies(saved, tmp_path):
    assert Checkpoint.model_validate(str(saved)).fetch(tmp_path) == saved


@pytest.mark.parametrize("spec", [{}, {"path": "x", "hub": "y", "revision": 40 * "a"}, {"hub": "y"}])
def test_a_checkpoint_lies_in_exactly_one_place(spec):
    with pytest.raises(ValidationError):
        Checkpoint.model_validate(spec)


@pytest.mark.parametrize("spec", [{}, {"checkpoint": "x", "architecture": {"model_type": "llama"}}])
def test_a_source_is_of_exactly_one_kind(spec):
    with pytest.raises(ValidationError, match="either architecture or checkpoint"):
        ModelSource.model_validate(spec)
