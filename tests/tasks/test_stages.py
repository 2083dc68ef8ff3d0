"""Every stage in this process, on a corpus of forty small files: each publishes once, and no mask is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cluster.ray.events import Event, Failed, Metrics, Note, parse_event
from cluster.store.artifacts import CorruptArtifact
from tasks.calibrate.essential import Trials
from tasks.context import Context, Execution
from tasks.formats.mask import BrokenMask, Mask, load_masks, save_masks
from tasks.metrics import METRICS
from tasks.models.files.checkpoint import load_model, save_model
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_masks, require_subset
from tasks.prune import Prune
from tasks.recover import Recover
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

EVALUATORS = {
    "perplexity": {"length": 32},
    "pattern": {},
    "size": {},
    "speed": {"prompt": 16, "new": 4, "repeats": 1},
    "multiple_choice": {"items": 8, "choices": 2},
}
PRUNE = {"method": "wanda", "pattern": "2:4", **CALIBRATION}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def chain(shop) -> dict:
    """The records of a whole life, by stage."""
    made = {"prepare": (data := shop.data())}
    sparse = {"gradual": {"sparsity": 0.3, "interval": 2}}
    made["pretrain"] = shop.make("pretrain", {"model": LLAMA, "method": sparse, "learning_rate": 4e-3, **TRAINING}, data=data)
    made["prune"] = shop.make("prune", PRUNE, data=data, model=made["pretrain"])
    made["recover"] = shop.make("recover", TRAINING, data=data, model=made["prune"], teacher=made["pretrain"])
    gptq = {"method": {"gptq": {"group_size": 32}}, **CALIBRATION}
    made["quantize"] = shop.make("quantize", gptq, data=data, model=made["recover"])
    return made


@pytest.fixture(scope="module")
def measured(shop, chain) -> dict[str, dict[str, float]]:
    """What is measured of every model."""
    return {name: shop.measure(EVALUATORS, data=chain["prepare"], model=chain[name]) for name in list(chain)[1:]}


def events(text: str) -> list[Event]:
    return [event for line in text.splitlines() if (event := parse_event(line))]


def test_every_stage_publishes_and_names_its_numbers_by_the_vocabulary(chain):
    assert [record.stage for record in chain.values()] == list(chain)
    for record in chain.values():
        assert record.metrics and set(record.metrics) <= set(METRICS)


def test_every_point_of_every_curve_is_named_by_the_vocabulary(shop, chain):
    for name in ("pretrain", "recover"):
        lines = (shop.path(chain[name]) / "report" / "history.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        assert [point["step"] for point in points] == list(range(1, len(points) + 1))
        assert set().union(*(point["metrics"] for point in points)) <= set(METRICS)
        assert points[-1]["metrics"]["tokens"] == chain[name].metrics["training_tokens"]


def test_a_second_time_nothing_is_done(shop, chain, capsys, monkeypatch):
    monkeypatch.setattr("tasks.prune.Prune.run", lambda *given: pytest.fail("it ran again"))
    again = shop.make("prune", PRUNE, data=chain["prepare"], model=chain["pretrain"])
    assert again == chain["prune"] and capsys.readouterr().out == ""


def test_masks_are_kept_from_pruning_to_integers(shop, chain, measured):
    pretrained, pruned, recovered, quantized = (
        load_masks(shop.path(chain[name]) / MASKS) for name in ("pretrain", "prune", "recover", "quantize")
    )
    require_subset(pruned, pretrained)
    for name, mask in pruned.items():
        assert mask.pattern == "2:4"
        assert torch.equal(mask.packed, recovered[name].packed) and torch.equal(mask.packed, quantized[name].packed)
    sparsity = chain["prune"].metrics["sparsity"]  # above 2:4's half, where pretraining had left fewer than two of four
    assert 0.5 <= sparsity == chain["recover"].metrics["sparsity"] == chain["quantize"].metrics["sparsity"] < 0.6
    assert check_masks(shop.path(chain["quantize"])).keys() == pruned.keys()
    assert all(measured[name]["pattern_holds"] == 1 for name in ("prune", "recover", "quantize"))


def test_each_stage_did_what_it_is_for(chain, measured):
    assert measured["pretrain"]["perplexity"] < chain["prepare"].metrics["unigram_perplexity"]
    assert measured["recover"]["perplexity"] < measured["prune"]["perplexity"]
    assert measured["quantize"]["bytes"] < 0.75 * measured["recover"]["bytes"]
    assert len({model["parameters"] for model in measured.values()}) == 1
    live = {name: model["live_parameters"] for name, model in measured.items()}
    assert live["prune"] == live["recover"] == live["quantize"] < live["pretrain"]


def test_the_splits_are_of_different_documents(shop, chain):
    """What calibrates is neither trained on nor measured on."""
    from tasks.data.tokens import Tokens

    directory, seen = shop.path(chain["prepare"]), {}
    for split in ("train", "calibration", "heldout"):
        tokens = Tokens(directory, split)
        seen[split] = {tokens.sequence(number, 32).tobytes() for number in range(tokens.sequences(32))}
    assert not seen["calibration"] & (seen["train"] | seen["heldout"]) and not seen["train"] & seen["heldout"]


def spoilt(monkeypatch, spoil) -> None:
    """Let something happen to the model after recovery wrote it."""
    run = Recover.run

    def run_and_spoil(stage, context):
        metrics = run(stage, context)
        spoil(context.output)
        return metrics

    monkeypatch.setattr(Recover, "run", run_and_spoil)


def revive_weight(directory) -> None:
    masks, state = load_masks(directory / MASKS), load_file(directory / "model.safetensors")
    name = next(iter(masks))
    state[name][tuple((~masks[name].keep).nonzero()[0].tolist())] = 1e-3
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def revive_bit(directory) -> None:
    masks = load_masks(directory / MASKS)
    name = next(iter(masks))
    keep = masks[name].keep
    keep[tuple((~keep).nonzero()[0].tolist())] = True
    save_masks({**masks, name: Mask.of(keep, "unstructured", 0.4)}, directory / MASKS)


def lose_mask(directory) -> None:
    masks = load_masks(directory / MASKS)
    save_masks(dict(list(masks.items())[1:]), directory / MASKS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (revive_weight, "1 dead weights are not zero"),
        (revive_bit, "1 dead weights were revived"),
        (lose_mask, "the mask was lost"),
    ],
)
def test_a_model_that_lost_one_bit_of_a_mask_is_never_published(shop, chain, spoil, message, monkeypatch, capsys):
    spoilt(monkeypatch, spoil)
    fields = {**TRAINING, "tokens": 512, "method": {"masked": {"ce": 1, "kl": 0}}}
    before = shop.store.addresses()
    with pytest.raises(BrokenMask, match=message):
        shop.make("recover", fields, data=chain["prepare"], model=chain["prune"])
    assert shop.store.addresses() == before
    failed = events(capsys.readouterr().out)[-1]
    assert isinstance(failed, Failed) and failed.final and message in failed.message


def test_a_stage_that_meets_a_damaged_parent_keeps_it_aside_and_runs_once_it_is_made_again(tmp_path, capsys):
    shop = Workshop(tmp_path)
    data = shop.data()
    model = shop.make("pretrain", {"model": LLAMA, **TRAINING, "tokens": 512}, data=data)
    tokens = shop.store.root / data.address / "calibration-00000.npy"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match=r"calibration-00000\.npy: expected .* is kept aside as"):
        shop.make("prune", PRUNE, data=data, model=model)
    failed = events(capsys.readouterr().out)[-1]
    assert isinstance(failed, Failed) and failed.aside == data.address and data.address in failed.message
    assert shop.data().files == data.files
    assert shop.make("prune", PRUNE, data=data, model=model).parents["data"] == data.key


def test_training_that_blows_up_fails_for_good_and_publishes_nothing(shop, chain, capsys):
    fields = {**TRAINING, "model": LLAMA, "learning_rate": 1e30, "gradient_clipping": 1e30, "warmup": 0}
    with pytest.raises(FloatingPointError):
        shop.make("pretrain", fields, data=chain["prepare"])
    assert events(capsys.readouterr().out)[-1].final


def test_a_rank_that_is_not_the_first_tells_nothing_and_publishes_nothing(shop, chain, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("tasks.prune.Prune.run", lambda stage, context: context.log({"loss": 1.0}, 1) or {})
    before = shop.store.addresses()
    with pytest.raises(ValueError, match="is not published"):
        shop.make("prune", {**PRUNE, "seed": 5}, data=chain["prepare"], model=chain["pretrain"])
    assert capsys.readouterr().out == "" and shop.store.addresses() == before
    assert not list((shop.root / "scratch" / "prune").rglob("history.jsonl"))


def test_curves_survive_a_line_that_an_attempt_did_not_finish(tmp_path):
    from tasks.history import History

    history = History(tmp_path / "history.jsonl", "a/b", lambda event: None)
    history.report(Metrics(1, {"loss": 2.0}))
    whole = history.path.read_text()
    history.path.write_text(whole + whole[: len(whole) // 2] + "\n" + whole.replace('"step": 1', '"step": 2'))
    history.write(tmp_path / "settled.jsonl")
    assert [json.loads(line)["step"] for line in (tmp_path / "settled.jsonl").read_text().splitlines()] == [1, 2]


@pytest.fixture(scope="module")
def users(shop, chain, tmp_path_factory):
    """A user's own checkpoint: weights, config and tokenizer in a directory Winnow did not make."""
    from tasks.data.tokenizer import load_tokenizer

    directory, model = tmp_path_factory.mktemp("user"), zoo.model("llama", vocab_size=300)
    save_model(model.state_dict(), model.config, directory, tokenizer=load_tokenizer(shop.path(chain["prepare"]) / "tokenizer"))
    return directory


def test_a_life_can_begin_with_a_users_checkpoint(shop, users):
    """Its tokenizer prepares the data, it is pruned, and it teaches its pruned self."""
    source = {"checkpoint": str(users)}
    data = shop.data(tokenizer={"checkpoint": str(users)})
    pruned = shop.make("prune", {**PRUNE, "model": source}, data=data)
    recovered = shop.make("recover", {**TRAINING, "teacher": source}, data=data, model=pruned)
    assert pruned.metrics["sparsity"] == recovered.metrics["sparsity"] == 0.5
    first = (shop.path(recovered) / "report" / "history.jsonl").read_text().splitlines()[0]
    assert {"kl", "loss"} <= json.loads(first)["metrics"].keys()
    assert (shop.path(recovered) / "tokenizer.json").exists()


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "gpt_oss"])
def test_what_cannot_be_packed_is_refused_when_the_stage_starts_and_not_after_it(shop, chain, architecture, tmp_path):
    """The plan may not have seen the model, on S3 say."""
    source = {"checkpoint": str(zoo.save(architecture, tmp_path, vocab_size=300))}
    with pytest.raises(ValueError, match="compressed-tensors packs nn.Linear only, and .*layers.0|h.0"):
        shop.make("quantize", {"method": {"gptq": {"group_size": 8}}, **CALIBRATION, "model": source}, data=chain["prepare"])
    assert not list((shop.root / "scratch").rglob("walk"))


def test_vocabularies_and_positions_are_compared_when_a_stage_starts(shop, chain, tmp_path):
    small, wide = (zoo.save("llama", tmp_path / str(size), layers=1, vocab_size=size) for size in (64, 320))
    with pytest.raises(ValueError, match="the tokenizer's largest id is 299, and the model's embedding has 64 rows"):
        shop.make("prune", {**PRUNE, "model": {"checkpoint": str(small)}}, data=chain["prepare"])
    with pytest.raises(ValueError, match="the teacher tells the odds of 320 tokens, the model of 300"):
        fields = {**TRAINING, "teacher": {"checkpoint": str(wide)}}
        shop.make("recover", fields, data=chain["prepare"], model=chain["prune"])
    for length, evaluator in ((129, {"perplexity": {"length": 129}}), (125, {"speed": {"prompt": 125, "new": 4}})):
        with pytest.raises(ValueError, match=f"{length} .*more than the model's 128 positions"):
            shop.make("evaluate", {"method": evaluator}, data=chain["prepare"], model=chain["prune"])


def test_ids_of_another_tokenizer_are_told_when_a_stage_starts_though_there_are_as_many(shop, chain, tmp_path):
    pattern = str(tmp_path / "*.txt")
    for number in range(40):
        (tmp_path / f"{number:02d}.txt").write_text(data_zoo.text(number)[::-1])
    other = shop.data(corpus={"files": {"paths": [pattern]}})
    pretrain = {"model": LLAMA, **TRAINING, "tokens": 512}
    made = shop.make("pretrain", pretrain, data=other)
    with pytest.raises(ValueError, match="^the tokenizers of data and model differ .id [0-9]+ is '.*' and '.*'.; prepare data"):
        shop.make("recover", TRAINING, data=other, model=chain["prune"], teacher=chain["pretrain"])
    with pytest.raises(ValueError, match="^the tokenizers of data and teacher differ .id .*; learn from a teacher with the"):
        shop.make("recover", TRAINING, data=chain["prepare"], model=chain["prune"], teacher=made)
    with pytest.raises(ValueError, match="^the tokenizers of data and reference differ .id .*; compare with a model that has"):
        divergence = {"method": {"divergence": {"length": 32}}}
        shop.make("evaluate", divergence, data=chain["prepare"], model=chain["prune"], reference=made)
    with pytest.raises(ValueError, match="^the tokenizers of models_0 and models_1 differ .id .*; merge models of one"):
        shop.make("merge", {}, models_0=chain["pretrain"], models_1=made)


def test_a_tokenizer_whose_ids_have_holes_makes_data_and_a_model_with_a_row_for_each(shop, tmp_path):
    data = shop.data(tokenizer={"checkpoint": str(data_zoo.write_tokenizer(tmp_path, holes=11))})
    made = shop.make("pretrain", {"model": LLAMA, **TRAINING, "tokens": 512}, data=data)
    assert data.metrics["vocabulary"] == 300 and int(np.load(shop.path(data) / "train-00000.npy").max()) == 310
    assert load_model(shop.path(made)).config.vocab_size == 311


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_transposed_and_expert_matrices_are_pruned_and_recovered(shop, chain, architecture, tmp_path):
    source = {"checkpoint": str(zoo.save(architecture, tmp_path, vocab_size=300))}
    pruned = shop.make("prune", {**PRUNE, "model": source}, data=chain["prepare"])
    fields = {**TRAINING, "tokens": 512, "teacher": source}
    recovered = shop.make("recover", fields, data=chain["prepare"], model=pruned)
    assert pruned.metrics["sparsity"] == recovered.metrics["sparsity"] == 0.5


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_transposed_and_expert_matrices_are_pretrained_sparse(shop, chain, architecture, scope):
    sizes = zoo.config(architecture).to_diff_dict()
    names = (
        "n_embd",
        "n_layer",
        "n_head",
        "n_positions",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "num_local_experts",
        "max_position_embeddings",
    )
    model = {"architecture": {"model_type": architecture, **{name: sizes[name] for name in names if name in sizes}}}
    method = {"gradual": {"sparsity": 0.6, "interval": 2, "scope": scope}}
    made = shop.make("pretrain", {"model": model, "method": method, **TRAINING, "tokens": 2_560}, data=chain["prepare"])
    assert made.metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert load_model(shop.path(made)).config.vocab_size == 300


def made_with(shop, chain, **fields):
    record = shop.make("prune", {**CALIBRATION, **fields}, data=chain["prepare"], model=chain["pretrain"])
    return record, shop.path(record)


def test_experts_that_no_token_reached_are_told_in_the_run_the_numbers_the_table_and_the_card(shop, chain, tmp_path, capsys):
    from rich.console import Console

    from flows.card import model_card
    from flows.display import models_table
    from tasks.models.files.bits import bits_of

    model = zoo.model("mixtral", vocab_size=300)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data.zero_()  # every token goes to the same two experts of four
    save_model(model.state_dict(), model.config, tmp_path)
    pruned = shop.make("prune", {**PRUNE, "model": {"checkpoint": str(tmp_path)}, "unseen": "dense"}, data=chain["prepare"])
    notes = [event.text for event in events(capsys.readouterr().out) if isinstance(event, Note)]
    assert notes[0] == "8 of 24 matrices got no calibration token and were left dense; more sequences reach more of them"
    assert "50.00% of" in notes[1] and pruned.metrics["unseen_matrices"] == 8 and pruned.metrics["sparsity"] < 0.5
    table = Console(record=True, width=100)
    table.print(models_table([{**pruned.metrics, "stage": "prune", "address": pruned.address}], None, 100))
    assert "unseen matrices" in table.export_text()
    fields = {**TRAINING, "tokens": 256, "method": "static"}
    recovered = shop.make("recover", fields, data=chain["prepare"], model=pruned)
    bits = bits_of(tmp_path)
    assert f"reached 8 matrices (experts) in `{pruned.address}`" in model_card(shop.store, recovered, tmp_path, bits, [])


def test_a_share_that_a_pattern_cannot_give_is_told_and_one_that_takes_nothing_is_refused(shop, chain, users, capsys):
    fields = {"method": "heads", "pattern": "channel", "model": {"checkpoint": str(users)}, **CALIBRATION}
    shop.make("prune", {**fields, "sparsity": 0.4}, data=chain["prepare"])
    notes = [event.text for event in events(capsys.readouterr().out) if isinstance(event, Note)]
    assert notes == ["40.00% of 2,048 weights were to go, and 25.00% are dead"]
    with pytest.raises(ValueError, match="sparsity 0.2 takes nothing: it is less than one unit of pattern channel"):
        shop.make("prune", {**fields, "sparsity": 0.2}, data=chain["prepare"])
    assert not [record for record in shop.store.records("prune") if record.params.get("sparsity") == 0.2]


@pytest.mark.parametrize("sparsity", [0.6, 0.33])
def test_the_share_given_is_the_share_asked_for_to_a_weight_a_matrix(shop, chain, sparsity, capsys):
    source = {"architecture": {**LLAMA["architecture"], "hidden_size": 24, "intermediate_size": 37}}
    narrow = shop.make("pretrain", {"model": source, **TRAINING, "tokens": 256}, data=chain["prepare"])
    pruned = shop.make("prune", {**CALIBRATION, "method": "wanda", "sparsity": sparsity}, data=chain["prepare"], model=narrow)
    masks = load_masks(shop.path(pruned) / MASKS).values()
    assert all(mask.numel - mask.live == int(mask.numel * sparsity + 1e-9) for mask in masks)
    assert not [event for event in events(capsys.readouterr().out) if isinstance(event, Note)]


def test_every_stage_tells_its_own_peak_of_memory(shop, chain):
    assert all(chain[name].metrics["peak_memory_bytes"] > 0 for name in ("pretrain", "prune", "recover", "quantize"))
    assert np.ones(400 << 20, dtype=np.uint8)[::4096].all(), "something large ran in this process before"
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    again = shop.make("prune", {**PRUNE, "seed": 9}, data=chain["prepare"], model=chain["pretrain"])
    assert again.metrics["peak_memory_bytes"] < before + (200 << 20)


def test_an_allocators_table_is_an_artifact_that_can_be_fed_back(shop, chain):
    owl, directory = made_with(shop, chain, method="sparsegpt", sparsity=0.6, allocator={"owl": {"outlier": 2}})
    table = yaml.safe_load((directory / "report" / "allocation.yaml").read_text())
    assert len(set(table.values())) > 1 and owl.metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    back, again = made_with(shop, chain, method="sparsegpt", sparsity=0.6, allocator={"table": {"sparsities": table}})
    assert back.key != owl.key and (again / MASKS).read_bytes() == (directory / MASKS).read_bytes()
    rows = json.loads((again / "report" / "walk.json").read_text())
    assert len(rows) == 2 and all(note["damping"] == 0.01 for note in rows[0]["notes"].values())
    assert all(row["error"] > 0 and row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)


def test_a_global_ranking_is_made_by_its_allocator(shop, chain):
    record, directory = made_with(shop, chain, method={"magnitude": {"scope": "global"}}, sparsity=0.5)
    sparsities = json.loads((directory / "report" / "sparsity.json").read_text())
    assert record.metrics["sparsity"] == pytest.approx(0.5, abs=1e-4) and len(set(sparsities.values())) > 1


def test_a_model_made_smaller_goes_through_the_rest_of_its_life(shop, tmp_path, chain):
    source = {"checkpoint": str(zoo.save("llama", tmp_path, vocab_size=300))}
    fields = {"model": source, **CALIBRATION}
    cfsp = {"method": {"cfsp": {"multiple": 4}}, "pattern": "channel", "sparsity": 0.3}
    small = shop.make("prune", {**fields, **cfsp}, data=chain["prepare"])
    sparse = shop.make("prune", {**PRUNE, "method": {"dsnot": {}}}, data=chain["prepare"], model=small)
    recovered = shop.make("recover", {**TRAINING, "tokens": 512, "teacher": source}, data=chain["prepare"], model=sparse)
    measured = shop.measure(EVALUATORS, data=chain["prepare"], model=recovered)
    dense = sum(parameter.numel() for parameter in zoo.model("llama", vocab_size=300).parameters())
    assert measured["parameters"] < dense and measured["pattern_holds"] == 1


def test_essential_sparsity_is_looked_for_within_the_stage(shop, chain):
    record, directory = made_with(shop, chain, method={"magnitude": {"scope": "global"}}, sparsity="essential")
    curve = json.loads((directory / "report" / "essential.json").read_text())
    (*within, last), dense = curve["perplexity"], curve["perplexity"][0][1]
    assert all(perplexity <= 1.01 * dense for _, perplexity in within) and last[1] > 1.01 * dense
    assert record.metrics["sparsity"] == pytest.approx(within[-1][0], abs=1e-4)
    assert curve["essential_sparsity"] == within[-1][0]


@pytest.mark.parametrize("method", ["random", {"dsnot": {"initial": "random"}}, {"cfsp": {"criterion": "random"}}])
def test_what_draws_by_lot_draws_by_the_seed_of_its_stage(method):
    def seeds(**fields):
        stage = Prune(method=method, sparsity=0.5, pattern="channel" if "cfsp" in method else "unstructured", **fields)
        return [found.seed for found in (stage.method, getattr(stage.method, "initial", None)) if hasattr(found, "seed")]

    assert seeds(seed=3) == [3] and seeds() == [0]
    assert Prune(method={"random": {"seed": 5}}, sparsity=0.5, seed=3).method.seed == 5


def test_sparsity_is_that_of_all_prunable_weights(shop, chain, tmp_path):
    source = {"checkpoint": str(zoo.save("llama", tmp_path, vocab_size=300))}
    fields = {"model": source, "method": "heads", "pattern": "channel", "sparsity": 0.5, **CALIBRATION}
    record = shop.make("prune", fields, data=chain["prepare"])
    measured = shop.make("evaluate", {"method": "pattern"}, data=chain["prepare"], model=record).metrics
    assert record.metrics["sparsity"] == pytest.approx(measured["zero_weights"], abs=1e-3)
    assert 0.1 < record.metrics["sparsity"] < 0.3, "the attention is a part of the block"


@pytest.fixture
def bench_of_one(tmp_path):
    """Contexts of a tiny model and its calibration text, all with one scratch folder."""
    zoo.save("llama", tmp_path / "model")
    (tmp_path / "data").mkdir()
    tokens = np.random.default_rng(0).integers(3, 64, 4096).astype(np.uint16)
    np.save(tmp_path / "data" / "calibration-00000.npy", tokens)

    def context(output):
        (tmp_path / output).mkdir()
        inputs = {"data": tmp_path / "data", "model": tmp_path / "model"}
        return Context(inputs, tmp_path / output, tmp_path / "scratch", Execution())

    return context


TINY = {"sequences": 4, "length": 16, "batch": 4}


def test_a_table_is_made_anew_for_another_allocator_and_refuses_what_was_begun_with_the_first(bench_of_one, tmp_path):
    def stage(spread):
        return Prune(method="magnitude", sparsity=0.5, allocator={"owl": {"outlier": 2, "spread": spread}}, **TINY)

    first = bench_of_one("first")
    stage(0.05).run(first)
    with pytest.raises(ValueError, match="was begun with another config; remove that folder"):
        stage(0.2).run(bench_of_one("second"))
    shutil.rmtree(tmp_path / "scratch" / "walk-0.5" / "parts")
    third = bench_of_one("third")
    stage(0.2).run(third)
    tables = [yaml.safe_load((at.output / "report" / "allocation.yaml").read_text()) for at in (first, third)]
    assert tables[0] != tables[1]


def test_the_search_keeps_no_more_than_two_of_the_models_it_tried(bench_of_one, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.calibrate.essential.TOLERANCE", 1e9)
    kept = []
    monkeypatch.setattr(Trials, "loss", count_walks(tmp_path / "scratch", kept, Trials.loss))
    search = Prune(method="magnitude", sparsity="essential", **TINY)
    assert search.passes == 60 and Prune(method="magnitude", sparsity=0.5).passes == 2
    metrics = search.run(bench_of_one("out"))
    assert metrics["essential_sparsity"] == 0.95 and len(kept) == 20 and max(kept) == 2


def count_walks(scratch, kept, loss):
    def counted(*arguments):
        value = loss(*arguments)
        kept.append(len(list(scratch.glob("walk-*"))))
        return value

    return counted
