"""Keys follow exactly what is computed; the plan says what is there, what will run, and why."""

from __future__ import annotations

import copy
import json

import pytest

from cluster.profile import Profile, load_profile
from cluster.store.local import LocalStore
from flows.forecast import forecast
from flows.plan import doubts, prepare
from flows.recipe import parse_recipe
from tests.flows.command import winnow
from tests.flows.recipes import BASE, plan, publish, recipe
from tests.tasks import data_zoo

CHAIN = ("prepare", "pretrain", "prune", "recover", "quantize")


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def edited(position: int, **fields) -> list[dict]:
    """BASE's stages with fields of one changed."""
    stages = copy.deepcopy(BASE["stages"])
    ((_, own),) = stages[position].items()
    own.update(fields)
    return stages


def keys(plan) -> dict[str, str]:
    return {step.id: step.artifact.key for step in plan.steps}


def moved(store, *stages, **header) -> set[str]:
    """Which of BASE's nodes get another key; evaluations apart."""
    before, after = keys(plan(store)), keys(plan(store, *stages, **header))
    return {id for id in CHAIN if before[id] != after[id]}


@pytest.mark.parametrize("position", range(5))
def test_a_field_changes_its_stage_and_what_follows_and_nothing_before(position, store):
    changes = [{"heldout": 0.1}, {"tokens": 20_000}, {"length": 128}, {"weight_decay": 0.0}, {"sequences": 64}]
    assert moved(store, *edited(position, **changes[position])) == set(CHAIN[position:])


def test_a_methods_name_and_fields_are_in_the_key(store):
    assert moved(store, *edited(2, method="magnitude")) == set(CHAIN[2:])
    assert moved(store, *edited(2, method="random")) == set(CHAIN[2:])
    methods = ("magnitude", "random", {"random": {"seed": 1}})
    assert len({keys(plan(store, *edited(2, method=method)))["prune"] for method in methods}) == 3


def test_writing_a_default_out_changes_no_key(store):
    assert moved(store, *edited(1, batch=32, method={"dense": {}}), description="said at length") == set()


def test_a_field_of_one_evaluator_changes_the_keys_of_that_one_alone(store):
    def measured(length: int) -> dict[str, str]:
        return keys(plan(store, evaluate={"size": {}, "perplexity": {"length": length}, "divergence": {}, "speed": {}}))

    before, after = measured(64), measured(128)
    assert {id for id in before if before[id] != after[id]} == {f"{id}.perplexity" for id in CHAIN[1:]}


def test_the_key_of_a_gathered_stage_covers_its_parents_in_order(store):
    grid = {"id": "r", **BASE["stages"][3], "grid": {"seed": [0, 1, 2]}}

    def soup(*origins: str) -> str:
        return keys(plan(store, *BASE["stages"][:3], grid, {"from": list(origins), "merge": {}}))["merge"]

    assert len({soup("r-seed0", "r-seed1"), soup("r-seed1", "r-seed0"), soup("r-seed0", "r-seed2")}) == 3


def test_the_name_of_a_recipe_and_the_ids_of_stages_are_no_part_of_a_key(store):
    renamed = [{"id": "trained", **stage} if "pretrain" in stage else stage for stage in BASE["stages"]]
    assert keys(plan(store, *renamed, name="other"))["quantize"] == keys(plan(store))["quantize"]


def test_the_seed_is_in_every_key(store):
    assert moved(store, seed=1) == set(CHAIN)


def test_changed_text_changes_the_key_of_what_is_prepared_from_it(store, tmp_path):
    texts = edited(0, corpus={"files": {"paths": [data_zoo.write_texts(tmp_path / "texts", 20)]}})
    first = keys(plan(store, *texts))
    assert keys(plan(store, *texts)) == first
    (tmp_path / "texts" / "000.txt").write_text("changed")
    assert not set(keys(plan(store, *texts)).values()) & set(first.values())


def test_no_profile_changes_a_key(tmp_path, monkeypatch):
    import yaml

    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    here = {"store": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")}
    there = Profile(
        name="there",
        zero=3,
        ranks=4,
        precision="bfloat16",
        device="cpu",
        micro_batch=1,
        logits_bytes=1,
        compile=True,
        recompute="layer",
        offload="optimizer",
        retries=0,
        max_failures=0,
        checkpoint_every_seconds=1,
        stages={"default": {"cpus": 2}},
        **here,
    )
    profiles = (load_profile("local"), Profile(**here), there, Profile(engine="torch", zero=0, **here))
    first, *others = (keys(prepare(str(tmp_path / "recipe.yaml"), profile)[0]) for profile in profiles)
    assert all(other == first for other in others)


def test_one_damaged_record_is_a_reason_to_run_and_no_obstacle(store, tmp_path):
    first = plan(store)
    for step in first.steps[:6]:
        publish(store, step, tmp_path / step.id)
    record = store.root / first.by_id["pretrain"].artifact.address / "record.json"
    record.write_text(record.read_text()[:50])
    again = plan(store)
    assert [step.id for step in again.steps[:6] if not step.cached] == ["pretrain"]
    damaged = again.by_id["pretrain"]
    assert damaged.damaged and damaged.reason.startswith(f"damaged: {record}: not a record")
    assert [step.id for step in again.steps if step.damaged] == ["pretrain"] and record.exists()
    other = plan(store, *edited(1, tokens=20_000)).by_id["pretrain"]
    assert (other.damaged, other.reason) == (False, "never run")


def test_what_is_published_is_cached_and_the_rest_says_why_not(store, tmp_path):
    first = plan(store)
    assert first.by_id["prepare"].reason == "never run" and first.by_id["prune"].reason == "after prepare, pretrain"
    for step in first.steps[:2]:
        publish(store, step, tmp_path / step.id)
    again = plan(store)
    assert [step.id for step in again.steps if step.cached] == ["prepare", "pretrain"]
    assert again.by_id["prune"].reason == "never run" and again.by_id["recover"].reason == "after prune"


def test_the_reason_names_the_field_that_differs_from_the_nearest_record(store, tmp_path):
    for step in plan(store).steps[:2]:
        publish(store, step, tmp_path / step.id)
    record = plan(store).by_id["pretrain"].record
    changed = plan(store, *edited(1, learning_rate=0.5, batch=16))
    assert changed.by_id["pretrain"].reason == f"batch, learning_rate differ from {record.address}"


def test_the_reason_says_that_a_text_holds_something_else(store, tmp_path):
    pattern = data_zoo.write_texts(tmp_path / "texts", 30)
    stages = [{"prepare": {"corpus": pattern, "tokenizer": {"train": 300}}}]
    record = publish(store, plan(store, stages=stages, evaluate={}).steps[0], tmp_path / "prepare")
    (tmp_path / "texts" / "000.txt").write_text("another text")
    assert plan(store, stages=stages, evaluate={}).steps[0].reason == f"what corpus holds differs from {record.address}"


def test_an_evaluator_never_run_is_not_compared_with_another(store, tmp_path):
    first = {"evaluate": {"size": {}}}
    for id in ("prepare", "pretrain", "pretrain.size"):
        publish(store, plan(store, **first).by_id[id], tmp_path / id)
    assert plan(store, evaluate=["perplexity"]).by_id["pretrain.perplexity"].reason == "never run"


def test_a_job_is_a_stage_and_the_evaluations_of_its_model_and_the_last_measures_time(store, tmp_path, monkeypatch):
    speeds = [f"{id}.speed" for id in CHAIN[1:]]
    jobs = [[step.id for step in job] for job in plan(store).jobs()]
    assert jobs == [["prepare"], *[[id, f"{id}.size"] for id in CHAIN[1:]], speeds]
    monkeypatch.setattr("flows.plan.TOGETHER", 3)
    assert [[step.id for step in job] for job in plan(store).jobs()][-2:] == [speeds[:3], speeds[3:]]
    for step in plan(store).steps[:2]:  # prepare and pretrain
        publish(store, step, tmp_path / step.id)
    assert [[step.id for step in job] for job in plan(store).jobs()][0] == ["pretrain.size"]


def test_an_evaluation_that_needs_more_than_its_model_stands_on_waits_for_it_in_a_job_of_its_own(store, tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    evaluate = {"size": {}, "tasks": {"files": {"asked": str(tmp_path / "asked.jsonl")}}, "flips": {}}
    stages = [BASE["stages"][0], {"load": {}}, {"prune": {"method": "magnitude", "sparsity": 0.5}}]
    checkpoint = {"checkpoint": {"hub": "some/model", "revision": "a" * 40}}
    made = plan(store, *stages, model=checkpoint, evaluate=evaluate)
    jobs = [[step.id for step in job] for job in made.jobs()]
    for step in made.steps:
        (job,) = [job for job in jobs if step.id in job]
        begun = {job[0], *(made.by_id[job[0]].node.parents.values())}
        awaited = set(step.node.parents.values()) - set(job) - begun
        assert not awaited, f"{step.id} would be read of {awaited} in {job}"
    assert jobs[1] == ["load"] and ["prune", "prune.size", "prune.tasks"] in jobs and ["prune.flips"] in jobs


def test_when_everything_is_there_nothing_is_due(store, tmp_path):
    for step in plan(store).steps:
        publish(store, step, tmp_path / step.id)
    assert plan(store).due == [] and plan(store).jobs() == []


def test_the_forecast_is_what_training_then_counts():
    from tasks.models.accounting import shape_of_config

    methods = ("dense", {"gradual": {"sparsity": 0.8, "interval": 1}})
    recipes = [recipe(*edited(1, tokens=8_192_000, method=method)) for method in methods]
    one, other = (forecast(made, made.node("pretrain")) for made in recipes)
    shape = shape_of_config(recipes[0].node("pretrain").stage.model.architecture.config(300))
    assert one["tokens"] == 8_192_000 and one["flops"] == shape.training_flops(8_192_000, 256)
    assert other["tokens"] == pytest.approx(2.506 * one["tokens"], rel=0.01)
    assert other["flops"] == pytest.approx(shape.training_flops(other["tokens"], 256, 0.3991), rel=0.01)
    assert one["disk_bytes"] == 4 * shape.parameters and forecast(recipes[0], recipes[0].node("prepare")) == {}
    assert forecast(recipes[0], recipes[0].node("prune"))["tokens"] == 128 * 256


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({"method": {"gptq": {"group_size": 64}}}, 4 + 16 / 64),
        ({"method": {"gptq": {"scheme": {"W4A16_ASYM": {"group_size": 32}}}}}, 4 + (16 + 4) / 32),
        ({"method": {"round_to_nearest": {"scheme": {"W4A8": {"group_size": 64}}}}}, 8 + 16 / 64),
        ({"method": "gptq", "precision": {"budget": 5, "choices": ["W4A16", "W8A16"]}}, 5),
        ({"method": {"gptq": {"group_size": 64, "schemes": {"k_proj": "W8A16"}}}}, 32),
    ],
)
def test_the_disk_of_a_quantized_model_is_that_of_its_codes_and_scales(fields, bits):
    from tasks.models.accounting import shape_of_config

    made = recipe(*BASE["stages"][:3], {"quantize": fields})
    shape = shape_of_config(made.node("pretrain").stage.model.architecture.config(300))
    expected = shape.prunable * bits / 8 + 4 * (shape.parameters - shape.prunable)
    assert forecast(made, made.node("quantize"))["disk_bytes"] == pytest.approx(expected)


def test_the_forecast_of_written_logits_is_a_forward_pass_and_their_bytes_where_the_tokens_are_known():
    from tasks.models.accounting import shape_of_config

    made = recipe(*BASE["stages"][:2], {"teach": {"k": 64, "tokens": 10_240}}, {"id": "all", "teach": {}})
    shape = shape_of_config(made.node("pretrain").stage.model.architecture.config(300))
    told = forecast(made, made.node("teach"))
    # of the 255 predicted tokens of each row 64 ids and log-probabilities of two bytes each, and one of the rest
    assert told == {"tokens": 10_240, "flops": 10_240 * shape.forward_flops(256), "disk_bytes": 40 * 255 * (64 * 4 + 2)}
    assert forecast(made, made.node("all")) == {}


def test_a_merged_model_takes_the_disk_of_one_that_goes_into_it():
    grid = {"id": "r", **BASE["stages"][3], "grid": {"seed": [0, 1, 2]}}
    made = recipe(*BASE["stages"][:3], grid, {"merge": {}, "gather": True})
    one, merged = (forecast(made, made.node(id)) for id in ("r-seed0", "merge"))
    assert merged == {"disk_bytes": one["disk_bytes"]}


def test_the_text_of_a_recipe_is_kept():
    assert parse_recipe(BASE, "as written").text == "as written"


def test_the_forecast_tells_the_sparsity_a_transform_needs_and_that_it_then_costs_what_dense_costs():
    models = {name: {**BASE["model"], "transform": {name: {"sparsity": 0.5}}} for name in ("wide", "parallel")}
    static = edited(1, method={"static": {"sparsity": "iso", "budget": "tokens"}})
    made = {name: recipe(*static, model=model) for name, model in models.items()} | {"dense": recipe()}
    costs = {name: forecast(found, found.node("pretrain")) for name, found in made.items()}
    assert "iso_sparsity" not in costs["dense"] and costs["parallel"]["iso_sparsity"] == 0.5 < costs["wide"]["iso_sparsity"] < 1
    assert [costs[name]["tokens"] for name in models] == 2 * [costs["dense"]["tokens"]]
    assert [costs[name]["flops"] for name in models] == pytest.approx(2 * [costs["dense"]["flops"]], rel=1e-4)
    assert costs["dense"]["disk_bytes"] < min(costs["wide"]["disk_bytes"], costs["parallel"]["disk_bytes"])


SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LARGE = {"model_type": "llama", "vocab_size": 128_256, **SIZES}


def where(**fields) -> Profile:
    return Profile.model_validate({"name": "lab", "micro_batch": 8, "zero": 1, **fields})


def test_on_a_named_card_the_plan_tells_memory_speed_and_hours_also_of_a_checkpoint(tmp_path):
    from tests.tasks import models_zoo as zoo

    begun = recipe(BASE["stages"][0], *BASE["stages"][2:], model={"checkpoint": str(zoo.save("llama", tmp_path / "in"))})
    told = {node.id: forecast(begun, node, where(card="H100")) for node in begun.nodes}
    assert told["recover"].keys() >= {"tokens", "flops", "memory_bytes", "disk_bytes", "tokens_per_second", "hours"}
    assert told["recover"]["hours"] == pytest.approx(told["recover"]["tokens"] / told["recover"]["tokens_per_second"] / 3600)
    weights = sum(path.stat().st_size for path in (tmp_path / "in").glob("*.safetensors"))
    assert 0.9 * weights < told["prune"]["disk_bytes"] < weights and told["prune"]["tokens"] == 128 * 256
    there = forecast(begun, begun.node("recover"), where())
    assert "hours" not in there and there["memory_bytes"] > 0


def test_what_cannot_fit_the_card_is_refused_with_what_to_change():
    from flows.forecast import check_room

    made = recipe(model={"architecture": LARGE})
    check_room(made, made.nodes, where())  # no card is named
    with pytest.raises(
        ValueError, match=r"^recipe\.pretrain: a step takes about \d+ GiB .* 'lab' has cards \(H100\) of 79 GiB"
    ) as told:
        check_room(made, made.nodes, where(card="H100"))
    said = "set engine to deepspeed, zero to 1, offload to optimizer, recompute to layer and micro_batch to 8 in the profile"
    assert str(told.value).endswith(f"; {said}") and "\n" not in str(told.value)
    advised = {"engine": "deepspeed", "zero": 1, "offload": "optimizer", "recompute": "layer", "micro_batch": 8}
    check_room(made, [made.node("pretrain")], where(card="H100", **advised))
    check_room(made, made.nodes, where(card="H200", ranks=4, zero=3, recompute="layer", micro_batch=1))


def test_ranks_that_cannot_share_a_step_are_refused_with_how_many_can():
    from flows.forecast import check_ranks

    made = recipe(model={"architecture": LARGE})
    batch = made.node("pretrain").stage.batch
    check_ranks(made, made.nodes, where(ranks=batch))
    with pytest.raises(
        ValueError, match=rf"^recipe\.pretrain: batch {batch} does not divide among {2 * batch} ranks; choose {batch} "
    ):
        check_ranks(made, made.nodes, where(ranks=2 * batch, card="H100"))
    with pytest.raises(ValueError, match=r"^recipe\.recover: batch \d+ does not divide among 3 ranks; choose 2 ranks"):
        check_ranks(made, made.nodes, where(stages={"recover": {"ranks": 3}}))
    with pytest.raises(
        ValueError, match=r"^recipe\.pretrain: engine torch runs on one rank, not on 2; choose engine deepspeed"
    ):
        check_ranks(made, made.nodes, where(engine="torch", ranks=2))
    check_ranks(made, made.nodes, where(engine="torch", ranks=2).under(1))
    told = forecast(made, made.node("pretrain"), where(ranks=2 * batch, card="H100"))  # of a stage that is cached
    assert told["tokens"] and not told.keys() & {"memory_bytes", "hours"}


@pytest.mark.parametrize("zero", [2, 3])
def test_a_forecast_is_of_compiled_layers_where_training_compiles_them(zero):
    from flows.forecast import machine

    made = recipe(model={"architecture": LARGE})
    assert machine(made, made.node("pretrain"), where(zero=zero, ranks=2, card="H100")).execution.compile
    assert not machine(made, made.node("pretrain"), where(zero=zero, ranks=2)).execution.compile
    assert not machine(made, made.node("pretrain"), where(zero=zero, card="H100", compile=False)).execution.compile


def test_a_card_is_one_that_the_forecast_knows():
    from typing import get_args

    from tasks.train.cards import CARDS

    (names, _) = get_args(Profile.model_fields["card"].annotation)
    assert set(get_args(names)) == set(CARDS)
    with pytest.raises(ValueError, match="card is H100 but device is cpu; leave one of them out"):
        where(card="H100", device="cpu")


@pytest.mark.parametrize(
    ("quantize", "told"),
    [
        ({"method": {"round_to_nearest": {"bits": 4, "group_size": 32}}}, ""),
        ({"method": {"round_to_nearest": {"scheme": {"W4A16": {"group_size": 32}}}}}, ""),  # the same in other words
        ({"method": {"round_to_nearest": {"bits": 3, "group_size": 64}}}, "bits is 3, not 4, group_size is 64, not 32"),
        ({"method": {"round_to_nearest": {"scheme": "FP8_DYNAMIC"}}}, "bits is 8, not 4, group_size is None, not 32, type is"),
        ({"method": {"round_to_nearest": {"bits": 4, "group_size": 32, "range": "mse"}}}, "range is mse"),
        ({"method": {"gptq": {"bits": 4, "group_size": 32}}}, "gptq rounds"),
        ({"method": "round_to_nearest", "precision": {"budget": 4.5}}, "precision chooses a scheme for each matrix"),
    ],
)
def test_a_rounding_other_than_the_one_that_was_trained_for_is_told(quantize, told, tmp_path):
    recover = {"tokens": 10_000, "fake_quantize": {"round_to_nearest": {"bits": 4, "group_size": 32}}}
    made = plan(LocalStore(tmp_path / "store"), *BASE["stages"][:3], {"recover": recover}, {"quantize": quantize})
    meant = ", but recover trained for round_to_nearest as its fake_quantize says; what is stored is not what was trained"
    assert len(found := doubts(made)) == bool(told)
    assert all(line.startswith(f"recipe.quantize: {told}") and line.endswith(meant) for line in found)


def test_a_budget_of_less_than_a_step_is_told(tmp_path):
    recover = {"tokens": 10, "length": 16, "batch": 4}
    found = doubts(plan(LocalStore(tmp_path / "store"), *BASE["stages"][:3], {"recover": recover}))
    assert found == ["recipe.recover: tokens 10 are less than one step of 4 sequences of 16, which it takes"]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"gptq": {"scheme": {"W4A8": {"group_size": 64}}}}, ["4-bit weights will take 8 bits: compressed-tensors"]),
        ({"gptq": {"scheme": {"W4A16": {"group_size": 64}}}}, []),
        ({"gptq": {"scheme": "W8A8"}}, []),
        ({"gptq": {"group_size": 64, "schemes": {"k_proj": "W8A16"}}}, ["vLLM makes one matrix of q_proj, k_proj, v_proj"]),
        (
            {"gptq": {"group_size": 64, "schemes": {"1.self_attn.v_proj": "W8A16"}}},
            ["vLLM makes one matrix of 1.self_attn.q_proj, 1.self_attn.k_proj, 1.self_attn.v_proj, and refuses"],
        ),
        ({"gptq": {"group_size": 64, "schemes": {"self_attn": "W8A16"}}}, []),
        ({"gptq": {"group_size": 64, "schemes": {"up_proj": "W8A8"}}}, ["vLLM makes one matrix of gate_proj, up_proj, and"]),
        ({"gptq": {"group_size": 64, "schemes": dict.fromkeys(("q_proj", "k_proj", "v_proj", "down_proj"), "W8A8")}}, []),
    ],
)
def test_schemes_that_take_more_room_than_they_say_or_that_no_runtime_fuses_are_told(method, told, tmp_path):
    found = doubts(plan(LocalStore(tmp_path / "store"), *BASE["stages"][:3], {"quantize": {"method": method}}))
    assert len(found) == len(told)
    assert all(line.startswith(f"recipe.quantize: {said}") for line, said in zip(found, told, strict=True))


def test_a_rounding_that_nothing_was_trained_for_is_no_doubt(tmp_path):
    assert doubts(plan(LocalStore(tmp_path / "store"))) == []


def test_a_store_that_cannot_be_written_can_be_planned_with_and_a_run_is_told_of_it(tmp_path, capsys):
    (tmp_path / "profile.yaml").write_text(json.dumps({"store": "/proc/winnow", "scratch": str(tmp_path / "scratch")}))
    given = ("quickstart", "-p", str(tmp_path / "profile.yaml"))
    assert winnow("plan", *given) == 0
    told, refused = capsys.readouterr(), "the store /proc/winnow is not writable: No such file or directory"
    assert "0 cached" in told.out and f"note: {refused}; to run this" in told.err
    assert winnow("run", *given, "--here") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"winnow: {refused}"
