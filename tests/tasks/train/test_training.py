"""What the training stages promise around the loop: batches, budgets, teachers, and the type a model is stored in."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.context import Context, Execution
from tasks.data.tokenizer import CHAT_TEMPLATE, load_tokenizer, train_tokenizer
from tasks.formats.mask import Mask, load_masks
from tasks.machine import make_engine
from tasks.models.files.checkpoint import load_model, save_model
from tasks.models.files.layout import MASKS
from tasks.models.find.linears import find_linears
from tasks.pretrain import Pretrain
from tasks.recover import Recover
from tasks.train import compiled
from tasks.train.cost import micro_batch
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

SIZES = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TRAINING = {"tokens": 640, "length": 16, "batch": 4}  # ten dense steps


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    data_zoo.write_tokens(directory, "train", data_zoo.periodic(16 * 50))
    train_tokenizer([data_zoo.text(0)], 260).save_pretrained(directory / "tokenizer")
    return directory


def pretrain(**fields) -> Pretrain:
    architecture = {**SIZES, **fields.pop("architecture", {})}
    return Pretrain.model_validate({"model": {"architecture": architecture}, **TRAINING, **fields})


def context(data: Path, tmp_path: Path, name: str = "out", inputs: dict[str, Path] | None = None, **execution) -> Context:
    execution = Execution(**execution)
    made = Context({"data": data, **(inputs or {})}, tmp_path / name, tmp_path / f"{name}-scratch", execution)
    made.make_engine = partial(make_engine, execution)
    return made


def pruned(directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A zoo model with half of every matrix dead."""
    model, masks = zoo.model("llama", dtype=dtype, vocab_size=300), {}
    for name, linear in find_linears(model).items():
        keep = torch.rand(linear.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        model.get_parameter(name).data.mul_(keep)
        masks[name] = Mask.of(keep, "unstructured", 0.4)
    model.config.dtype = dtype
    save_model(model.state_dict(), model.config, directory, masks)
    return directory


def recover(**fields) -> Recover:
    return Recover.model_validate({**TRAINING, "method": {"masked": {"ce": 1, "kl": 0}}, **fields})


@pytest.mark.parametrize(
    ("wanted", "ranks", "expected"), [(None, 1, 12), (8, 1, 6), (5, 1, 4), (8, 2, 6), (4, 4, 3), (1, 1, 1)]
)
def test_the_micro_batch_divides_the_ranks_share(wanted, ranks, expected):
    assert micro_batch(12, Execution(ranks=ranks, micro_batch=wanted)) == expected


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="batch 4 does not divide among 3 ranks"):
        pretrain().run(context(data, tmp_path, ranks=3))


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_layers_left_out_at_random_are_refused_where_their_gradients_would_be_waited_for(engine, data, tmp_path):
    stage = pretrain(architecture={"model_type": "biogpt", "layerdrop": 0.5})
    if engine == "torch":
        stage.run(context(data, tmp_path))
        assert (tmp_path / "out" / "config.json").exists()
        return
    with pytest.raises(ValueError, match=r"layerdrop 0\.5 in its config.*set layerdrop to 0, or engine to torch"):
        stage.run(context(data, tmp_path, engine=engine))


def test_tokens_are_a_budget_in_dense_steps():
    assert pretrain().dense_steps == pretrain().steps == 10
    assert pretrain(tokens=1).dense_steps == 1
    assert pretrain(method={"gradual": {"sparsity": 0.8, "interval": 1}}, tokens=64_000).steps == pytest.approx(2_506, abs=3)


def test_a_sparse_run_costs_what_the_dense_run_costs_and_sees_more(data, tmp_path):
    dense = pretrain(tokens=6_400).run(context(data, tmp_path, "dense"))
    sparse = pretrain(tokens=6_400, method={"gradual": {"interval": 1}}).run(context(data, tmp_path, "sparse"))
    assert dense["training_tokens"] == 6_400 < sparse["training_tokens"]
    budget = dense["average_parameters"] * dense["training_tokens"]
    assert sparse["average_parameters"] * sparse["training_tokens"] == pytest.approx(budget, rel=0.02)
    assert dense["prunable_parameters"] == dense["average_parameters"] == sparse["prunable_parameters"]
    assert load_masks(tmp_path / "sparse" / MASKS).keys() == find_linears(load_model(tmp_path / "sparse")).keys()


def test_a_teacher_is_paid_for(data, tmp_path):
    student = pruned(tmp_path / "in")
    inputs = {"model": student, "teacher": zoo.save("llama", tmp_path / "teacher", vocab_size=300)}
    alone = recover().run(context(data, tmp_path, "alone", inputs))
    taught = recover(method="masked").run(context(data, tmp_path, "taught", inputs))
    assert taught["training_flops"] > alone["training_flops"] > 0


def test_an_objective_is_minimised_under_any_regime_and_what_is_not_named_changes_no_key(data, tmp_path):
    inputs = {"model": pruned(tmp_path / "in"), "teacher": zoo.save("llama", tmp_path / "teacher", vocab_size=300)}
    recover(method="static", objective="square_head").run(context(data, tmp_path, "static", inputs))
    named = {"distillation": {"ce": 0.33, "kl": 0.67, "temperature": 2.0}}
    for name, stage in (("own", recover(method="masked")), ("named", recover(method="masked", objective=named))):
        stage.run(context(data, tmp_path, name, inputs))
    assert (tmp_path / "own" / "model.safetensors").read_bytes() == (tmp_path / "named" / "model.safetensors").read_bytes()
    assert "objective" not in recover().parameters() and "teacher" in recover(method="static", objective="square_head").roles()
    assert "teacher" not in recover(method="masked", objective="cross_entropy").roles()


@pytest.mark.parametrize(("dtype", "stored"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_model_is_stored_in_the_type_the_recipe_names_and_trained_in_float32(dtype, stored, data, tmp_path):
    pretrain(architecture={"dtype": dtype}).run(context(data, tmp_path))
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {stored}
    assert load_model(tmp_path / "out").dtype == stored


def test_recovering_keeps_the_type_the_model_came_in(data, tmp_path):
    recover().run(context(data, tmp_path, inputs={"model": pruned(tmp_path / "in", torch.bfloat16)}))
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_recovering_changes_live_weights_only(data, tmp_path):
    inputs = {"model": pruned(tmp_path / "in")}
    recover().run(context(data, tmp_path, inputs=inputs))
    before, after = load_model(inputs["model"]), load_model(tmp_path / "out")
    for name, mask in load_masks(tmp_path / "out" / MASKS).items():
        weight = after.get_parameter(name)
        assert not weight[~mask.keep].any() and (weight != before.get_parameter(name))[mask.keep].float().mean() > 0.9


def test_a_trained_model_carries_its_tokenizer_and_the_end_of_text(data, tmp_path):
    pretrain().run(context(data, tmp_path))
    assert (tmp_path / "out" / "tokenizer.json").exists()
    config = load_model(tmp_path / "out").config
    assert config.vocab_size == 260 and config.eos_token_id == config.bos_token_id is not None


@pytest.mark.parametrize("own", [None, "{{ messages[0].content }}"])
def test_a_model_that_learned_to_talk_takes_the_template_along_and_keeps_its_tokenizer(own, data, tmp_path):
    """Whoever runs it asks it by that template; without one, or by another, it has never seen the like of what it is asked."""
    source, taught = pruned(tmp_path / "model"), tmp_path / "data"
    tokenizer = load_tokenizer(data / "tokenizer")
    tokenizer.chat_template = own
    tokenizer.save_pretrained(source)
    shutil.copytree(data, taught)
    recover().run(context(taught, tmp_path, inputs={"model": source}))
    files = {file.name: file.read_bytes() for file in source.glob("*token*")}
    assert load_tokenizer(tmp_path / "out").chat_template == own  # of plain text nothing is learned about chats
    (taught / CHAT_TEMPLATE).write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    recover().run(context(taught, tmp_path, "talks", inputs={"model": source}))
    asked = load_tokenizer(tmp_path / "talks").apply_chat_template([{"role": "user", "content": "wheat?"}], tokenize=False)
    assert asked == "<user>wheat?"
    assert all((tmp_path / "talks" / name).read_bytes() == content for name, content in files.items())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(data, tmp_path):
    states = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        pretrain(seed=seed).run(context(data, tmp_path, name))
        states.append((tmp_path / name / "model.safetensors").read_bytes())
    assert states[0] == states[1] != states[2]


def test_the_token_that_pads_elsewhere_learns_as_any_other(data, tmp_path):
    model = zoo.model("llama", vocab_size=300, pad_token_id=0, tie_word_embeddings=False)
    save_model(model.state_dict(), model.config, tmp_path / "in")
    recover(weight_decay=0.0).run(context(data, tmp_path, inputs={"model": tmp_path / "in"}))
    after = load_model(tmp_path / "out").get_input_embeddings().weight
    assert not after[0].equal(model.get_input_embeddings().weight[0])  # the end of text, which every text here ends with


def test_with_compiled_layers_a_stage_writes_what_it_writes_without(data, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    for name, compile in (("plain", False), ("fast", True)):
        pretrain(method="gradual").run(context(data, tmp_path, name, compile=compile))
    plain, fast = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("plain", "fast"))
    assert plain == fast
