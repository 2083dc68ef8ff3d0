"""A recipe becomes a graph: every role finds the ancestor that is meant, or the recipe is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.plan import check
from flows.recipe import load_recipe
from tasks.methods import names
from tests.flows.recipes import BASE, HUB, recipe
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

ROOT = Path(__file__).resolve().parents[2]
PREPARE, PRETRAIN, PRUNE, RECOVER, QUANTIZE = BASE["stages"]


def parents(*stages, **header) -> dict[str, dict[str, str]]:
    """Parents by node, without the evaluations."""
    return {node.id: node.parents for node in recipe(*stages, **header).nodes if not node.measures}


def test_a_chain_needs_no_wiring():
    assert parents() == {
        "prepare": {},
        "pretrain": {"data": "prepare"},
        "prune": {"data": "prepare", "model": "pretrain"},
        "recover": {"data": "prepare", "model": "prune", "teacher": "pretrain"},
        "quantize": {"data": "prepare", "model": "recover"},
    }


def test_every_model_is_measured_speed_apart_from_the_rest():
    nodes = {node.id: node for node in recipe().nodes if node.measures}
    models = ("pretrain", "prune", "recover", "quantize")
    assert list(nodes) == [f"{id}.{kind}" for id in models for kind in ("size", "speed")]
    assert nodes["prune.size"].parents == {"model": "prune", "data": "prepare"}
    assert nodes["prune.speed"].measures == "prune"
    assert [nodes[id].stage.exclusive for id in ("prune.size", "prune.speed")] == [False, True]


def test_a_comparison_finds_its_reference_and_leaves_out_a_model_that_has_none():
    def compared(which, **header):
        found = recipe(evaluate={"divergence": {"reference": which}}, **header).nodes
        return {node.measures: node.parents["reference"] for node in found if node.measures}

    models = ("prune", "recover", "quantize")
    assert compared("dense") == dict.fromkeys(models, "pretrain")
    assert compared("parent") == dict(zip(models, ("pretrain", "prune", "recover"), strict=True))
    again = [PREPARE, PRETRAIN, PRUNE, RECOVER, {"id": "prune2", **PRUNE}]
    assert recipe(*again, evaluate=["divergence"]).node("prune2.divergence").parents["reference"] == "pretrain"


def test_the_reference_of_what_was_made_from_a_users_checkpoint_is_that_checkpoint():
    found = recipe(PREPARE, PRUNE, RECOVER, model={"checkpoint": "/some/model"}, evaluate=["divergence"])
    for id in ("prune", "recover"):
        node = found.node(f"{id}.divergence")
        assert node.stage.reference.checkpoint.path == "/some/model" and "reference" not in node.parents


def test_a_comparison_that_no_model_has_a_reference_for_is_refused():
    with pytest.raises(
        ValueError,
        match="^recipe.evaluate: divergence compares a model with the dense one that it came from, "
        "and no model of this recipe has one; leave it out$",
    ):
        recipe(PREPARE, PRETRAIN, evaluate=["size", "divergence"])


def test_a_contrast_takes_what_another_evaluator_reports_of_a_model_and_of_its_reference(tmp_path):
    (tmp_path / "copa.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    asked = {"tasks": {"files": {"copa": str(tmp_path / "copa.jsonl")}}}
    found = recipe(PREPARE, PRETRAIN, PRUNE, RECOVER, evaluate={**asked, "flips": {}})
    assert [node.id for node in found.nodes if node.id.endswith(".flips")] == ["prune.flips", "recover.flips"]
    assert found.node("recover.flips").parents == {"ours": "recover.tasks", "theirs": "pretrain.tasks"}
    assert found.node("recover.flips").stage.exclusive  # in the end, when both reports are there
    with pytest.raises(ValueError, match="^recipe.evaluate: flips compares what tasks reports; list that too$"):
        recipe(PREPARE, PRETRAIN, PRUNE, evaluate=["flips"])
    with pytest.raises(ValueError, match="no model of this recipe has one; leave it out, or put load: {} before the stage"):
        recipe(PREPARE, PRUNE, model={"checkpoint": "/some/model"}, evaluate={**asked, "flips": {}})
    loaded = recipe(PREPARE, {"load": {}}, PRUNE, model={"checkpoint": "/some/model"}, evaluate={**asked, "flips": {}})
    assert loaded.node("prune.flips").parents["theirs"] == "load.tasks"


def test_a_listed_evaluation_names_its_reference_itself():
    other = {"id": "other", "from": "prepare", **PRETRAIN}
    listed = {"from": {"model": "prune", "reference": "other"}, "evaluate": {"method": "divergence"}}
    found = recipe(PREPARE, other, {"from": "prepare", **PRETRAIN}, PRUNE, listed, evaluate=[])
    assert found.node("evaluate").parents == {"data": "prepare", "model": "prune", "reference": "other"}


def reading(**fields):
    return {"recover": {"tokens": 10_000, "objective": {"top_k": {"precomputed": True}}, **fields}}


def test_students_read_the_nearest_logits_or_those_they_name_and_need_no_teacher():
    chain = [PREPARE, PRETRAIN, {"teach": {}}, PRUNE, {**reading(), "grid": {"seed": [0, 1]}}]
    found = parents(*chain)
    assert found["teach"] == {"data": "prepare", "model": "pretrain"} and found["prune"] == found["teach"]
    read = {"data": "prepare", "model": "prune", "logits": "teach"}
    assert found["recover-seed0"] == found["recover-seed1"] == read
    named = [*chain[:2], PRUNE, {"id": "told", "from": "pretrain", "teach": {}}]
    assert parents(*named, {"from": {"model": "prune", "logits": "told"}, **reading()})["recover"] == {**read, "logits": "told"}
    assert parents(*chain[:4], RECOVER)["recover"] == {"data": "prepare", "model": "prune", "teacher": "pretrain"}


@pytest.mark.parametrize(
    ("teach", "recover", "said"),
    [
        ({"k": 32}, {}, "k 64 is not that of the logits of teach, 32; set one to the other"),
        ({"temperature": 1}, {}, "temperature 2 is not that of the logits of teach, 1; set one to the other"),
        ({"length": 128}, {}, "length 256 is not that of the logits of teach, 128; set one to the other"),
        ({"tokens": 10_000}, {"seed": 1}, "seed 1 sees other tokens first than seed 0 of teach; leave tokens out of teach"),
        ({"tokens": 8_000}, {}, "it sees 8,192 tokens, and the logits of teach are of 8,000; raise tokens of teach"),
    ],
)
def test_logits_of_anything_but_what_a_student_sees_are_refused(teach, recover, said):
    with pytest.raises(ValueError, match=f"^recipe.recover: {said}"):
        recipe(PREPARE, PRETRAIN, {"teach": teach}, PRUNE, reading(**recover))


def test_logits_of_another_text_are_refused():
    other = {"id": "other", **PREPARE}
    stages = [PREPARE, other, {"from": "prepare", **PRETRAIN}, {"teach": {}}, PRUNE]
    origin = {"data": "other", "model": "prune", "logits": "teach"}
    with pytest.raises(
        ValueError, match="^recipe.recover: it reads other, and the logits of teach are of prepare; take them of"
    ):
        recipe(*stages, {"from": origin, **reading()})


RECOVERED = {**RECOVER, "grid": {"seed": [0, 1]}}
SOUP = {"id": "soup", "merge": {}}


def test_a_stage_of_several_models_takes_a_gathered_grid_a_list_or_a_named_list_in_order():
    expected = {"models_0": "recover-seed0", "models_1": "recover-seed1"}
    chain = [PREPARE, PRETRAIN, PRUNE, RECOVERED]
    assert parents(*chain, {**SOUP, "gather": True})["soup"] == expected
    for origin in (["recover-seed0", "recover-seed1"], {"models": ["recover-seed0", "recover-seed1"]}):
        assert parents(*chain, {**SOUP, "from": origin})["soup"] == expected
    assert parents(*chain, {**SOUP, "gather": True}, QUANTIZE)["quantize"] == {"data": "prepare", "model": "soup"}
    again = [*chain, {**SOUP, "gather": True}, {"id": "prune2", **PRUNE}, {"id": "recover2", **RECOVER}]
    assert parents(*again)["recover2"] == {"data": "prepare", "model": "prune2", "teacher": "soup"}


def test_a_soup_of_branches_with_what_stands_on_none_is_asked_to_say_so():
    plain = {"id": "plain", "from": "prune", **RECOVER}
    both = ["recover", "plain"]
    for origin in (both, {"models": both}):
        with pytest.raises(
            ValueError, match=r"^recipe.stages\[5\].merge: each branch of seed would be taken with the same plain; "
        ):
            recipe(PREPARE, PRETRAIN, PRUNE, RECOVERED, plain, {**SOUP, "from": origin})
    chain, all_three = [PREPARE, PRETRAIN, PRUNE, RECOVERED, plain], ["recover-seed0", "recover-seed1", "plain"]
    for entry in ({"from": both, "gather": True}, {"from": all_three}):
        assert list(parents(*chain, {**SOUP, **entry})["soup"].values()) == all_three
    twice = [
        PREPARE,
        PRETRAIN,
        PRUNE,
        RECOVERED,
        {"id": "again", "from": "prune", **RECOVERED},
        {**SOUP, "from": ["recover", "again"]},
    ]
    assert parents(*twice)["soup-seed1"] == {"models_0": "recover-seed1", "models_1": "again-seed1"}


CE, CHECKPOINT = {"tokens": 10, "objective": "cross_entropy"}, {"checkpoint": "/some/model"}
HELD = {"id": "held", "evaluate": {"method": "perplexity"}}


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (
            {"from": {"model": "prune", "teacher": "pretrain"}, "recover": CE},
            "from.teacher is used for nothing, as cross_entropy",
        ),
        ({"recover": {**CE, "teacher": CHECKPOINT}}, "recover: teacher is used for nothing, as cross_entropy needs no teacher"),
        ({"recover": {"tokens": 10, "method": "static", "teacher": CHECKPOINT}}, "teacher is used for nothing"),
        (
            {"from": {"model": "prune", "teacher": "pretrain"}, "recover": {"tokens": 10, "teacher": CHECKPOINT}},
            "from.teacher and the field teacher both say what the teacher is; leave one of them out",
        ),
        ({"from": {"model": "prune", "reference": "pretrain"}, **HELD}, "from.reference is used for nothing, as perplexity"),
        (
            {"evaluate": {"method": "size", "reference": CHECKPOINT}},
            "evaluate: reference is used for nothing, as size needs no",
        ),
        (
            {"from": {"model": "prune"}, "quantize": {"method": "gptq", "model": CHECKPOINT}},
            "from.model and the field model both say what the model is",
        ),
        (
            {"id": "p", "from": {"tokenizer": "prepare"}, **PREPARE},
            "from.tokenizer is used for nothing, as prepare needs no tokenizer",
        ),
    ],
)
def test_a_role_that_is_filled_for_nothing_or_twice_is_refused(entry, complaint):
    with pytest.raises(ValueError, match=rf"^recipe.stages\[3\].*{complaint}"):
        recipe(PREPARE, PRETRAIN, PRUNE, entry)


def test_a_soup_is_compared_with_what_its_models_came_from():
    found = recipe(PREPARE, PRETRAIN, PRUNE, RECOVERED, {**SOUP, "gather": True}, evaluate={"divergence": {}})
    assert found.node("soup.divergence").parents == {"model": "soup", "data": "prepare", "reference": "pretrain"}
    check(found)


def test_without_evaluators_nothing_is_measured():
    assert not any(node.measures for node in recipe(evaluate=[]).nodes)


def test_a_fork_goes_on_from_where_it_says():
    found = parents(PREPARE, PRETRAIN, PRUNE, {"id": "other", "from": "pretrain", **PRUNE}, {"id": "last", **RECOVER})
    assert found["other"] == {"data": "prepare", "model": "pretrain"}
    assert found["last"] == {"data": "prepare", "model": "other", "teacher": "pretrain"}


def test_the_nearest_ancestor_fills_a_role_not_the_latest_stage():
    fork, back = {"id": "fork", "from": "pretrain", **PRUNE}, {"id": "back", "from": "prune", **QUANTIZE}
    found = parents(PREPARE, PRETRAIN, PRUNE, fork, back)
    assert found["back"]["model"] == "prune"


def test_a_list_of_origins_gives_each_role_its_nearest():
    other = {"id": "texts", "from": [], "prepare": {"corpus": HUB, "tokenizer": {"train": 400}}}
    one, two = {"from": ["pretrain", "texts"], **PRUNE}, {"id": "b", "from": ["texts", "pretrain"], **PRUNE}
    found = parents(PREPARE, PRETRAIN, other, one, two)
    assert found["prune"] == found["b"] == {"data": "texts", "model": "pretrain"}


def test_roles_can_be_named():
    named = {"from": {"model": "prune", "teacher": "second", "data": "prepare"}, **RECOVER}
    found = parents(PREPARE, PRETRAIN, {"id": "second", "from": "prepare", **PRETRAIN}, {"from": "pretrain", **PRUNE}, named)
    assert found["recover"] == {"data": "prepare", "model": "prune", "teacher": "second"}


def test_the_teacher_is_what_went_into_the_last_pruning():
    found = parents(PREPARE, PRETRAIN, PRUNE, RECOVER, {"id": "prune2", **PRUNE}, {"id": "recover2", **RECOVER})
    assert found["recover2"] == {"data": "prepare", "model": "prune2", "teacher": "recover"}


def test_where_the_method_itself_prunes_the_model_teaches_itself():
    found = parents(PREPARE, PRETRAIN, {"recover": {"tokens": 10, "method": "ast"}})
    assert found["recover"] == {"data": "prepare", "model": "pretrain", "teacher": "pretrain"}
    pruned = parents(PREPARE, PRETRAIN, PRUNE, {"recover": {"tokens": 10, "method": "ast"}})
    assert pruned["recover"] == {"data": "prepare", "model": "prune", "teacher": "pretrain"}


def test_who_learns_without_a_teacher_has_none():
    alone = {"recover": {"tokens": 10, "method": {"masked": {"ce": 1, "kl": 0}}}}
    assert "teacher" not in parents(PREPARE, PRETRAIN, PRUNE, alone)["recover"]
    assert parents(PREPARE, PRETRAIN, alone)["recover"] == {"data": "prepare", "model": "pretrain"}
    taught = {"recover": {"tokens": 10, "method": "static", "objective": "distillation"}}
    assert parents(PREPARE, PRETRAIN, PRUNE, taught)["recover"]["teacher"] == "pretrain"


def test_a_users_checkpoint_is_pruned_and_teaches():
    found = recipe(PREPARE, PRUNE, RECOVER, model={"checkpoint": "/some/model"})
    pruned, recovered = found.node("prune"), found.node("recover")
    assert pruned.parents == {"data": "prepare"} and pruned.stage.model.checkpoint.path == "/some/model"
    assert recovered.parents == {"data": "prepare", "model": "prune"}
    assert recovered.stage.teacher.checkpoint.path == "/some/model" and recovered.stage.model is None


def test_a_stages_own_checkpoint_counts_more_than_what_is_upstream():
    own = {"prune": {**PRUNE["prune"], "model": {"checkpoint": "/some/model"}}}
    assert parents(PREPARE, PRETRAIN, own)["prune"] == {"data": "prepare"}


def test_the_seed_of_the_recipe_is_every_stages_unless_it_has_its_own():
    nodes = recipe(PREPARE, {"pretrain": {**PRETRAIN["pretrain"], "seed": 3}}, PRUNE, seed=7).nodes
    assert {node.id: node.stage.seed for node in nodes if not node.measures} == {"prepare": 7, "pretrain": 3, "prune": 7}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"prepare": "stdlib"}], r"recipe.stages\[0\].prepare: fields are needed, got 'stdlib'"),
        ([PREPARE, {"from": 5, **PRETRAIN}], r"stages\[1\].from: an id, a list of ids, or {role: id} is needed, got 5"),
        ([PREPARE, {"from": None, **PRETRAIN}], "from: an id, a list of ids"),
        ([PREPARE, {"from": {"dta": "prepare"}, **PRETRAIN}], "from: no role 'dta'; choose one of data"),
        ([PREPARE, {"from": {"model": "prepare"}, **PRUNE}], "prune: model needs model, and prepare makes tokens"),
        ([PREPARE, PRETRAIN, {"from": "pretrain.size", **PRUNE}], "no earlier stage 'pretrain.size'"),
        ([PREPARE, {"id": "a.b", **PRETRAIN}], "id: 'a.b' is no name"),
        ([PREPARE, {"id": "Ünï", **PRETRAIN}], "is no name; use lower-case letters"),
        ([PREPARE, {**PRETRAIN, **PRUNE}], "name exactly one stage"),
        (
            [PREPARE, PRETRAIN, {**PRUNE, "grid": {"seed": [0, 1]}}, {**RECOVER, "gather": True}],
            r"stages\[3\].gather: recover takes one model and not a list; choose merge",
        ),
        ([PREPARE, PRETRAIN, PRUNE, SOUP], r"merge: models are two or more; put gather: true after a grid, or name them with"),
        ([PREPARE, PRETRAIN, {**SOUP, "from": {"models": ["pretrain", "prepare"]}}], "models needs models, and prepare ma"),
        ([PREPARE, PRETRAIN, {**SOUP, "from": {"models": ["pretrain", "x"]}}], "from: no earlier stage 'x'; choose one of"),
        (
            [PREPARE, PRETRAIN, {**PRUNE, "grid": {"seed": [0, 1]}}, {**SOUP, "gather": True}],
            "recipe.soup: prune-seed0 and prune-seed1 were pruned apart, so their masks differ; gather what one pruned",
        ),
        ([PREPARE, PRETRAIN, RECOVER], r"no teacher \(model\) upstream; name it with from"),
        ([PREPARE, PRETRAIN, {"evaluate": {"method": "divergence"}}], r"no reference \(model\) upstream; name it with from"),
        ([PRETRAIN], r"no data \(tokens\) upstream; put a prepare stage before it"),
        ([PREPARE, {"pretrain": {"tokens": 10, "seed": -1}}], "pretrain.seed: input should be greater than or equal to 0"),
        ([PREPARE, {"pretrain": {"tokens": 10, "seed": 2**32}}], "pretrain.seed: input should be less than 4294967296"),
        ([PREPARE, {"pretrain": {"tokens": 10, "batch": True}}], "pretrain.batch: input should be a number, got True"),
        (
            [PREPARE, {"pretrain": {"tokens": 10, "method": {"gradual": {"sparsity": 0.5, "interval": True}}}}],
            "gradual.interval: input should be a number, got True",
        ),
    ],
)
def test_what_cannot_be_wired_is_refused_in_one_line(stages, message):
    with pytest.raises(ValueError, match=message) as refused:
        recipe(*stages)
    assert "\n" not in str(refused.value)


TIED = "tie_word_embeddings"


def forked(*grids: dict) -> list[dict]:
    """A model pruned once and recovered along grids, gathered."""
    return [PREPARE, PRETRAIN, PRUNE, *({**RECOVER, "grid": grid} for grid in grids), {**SOUP, "gather": True}]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [PREPARE, PRETRAIN, PRUNE, RECOVER, {**SOUP, "from": {"models": ["recover", "recover"]}}],
            "recover is named twice; name each model once",
        ),
        (
            [PREPARE, PRETRAIN, PRUNE, RECOVER, {**SOUP, "from": ["recover", "prune"]}],
            "recover was made from prune; gather models that were each trained from the same one",
        ),
        (
            [PREPARE, {**PRETRAIN, "grid": {"seed": [0, 1]}}, {**SOUP, "gather": True}],
            "pretrain-seed0 and pretrain-seed1 come from no common model; gather what one model was trained to",
        ),
        (
            [
                PREPARE,
                {**PRETRAIN, "grid": {"model.architecture.tie_word_embeddings": [True, False]}},
                {**SOUP, "gather": True},
            ],
            "come from no common model",
        ),
        (forked({"method": ["masked", "dense"]}), "recover-masked and recover-dense are not under one mask, since their"),
        (forked({"method": ["masked", "set"]}), "recover-masked and recover-set are not under one mask, since their methods"),
    ],
)
def test_models_that_were_not_trained_from_one_under_one_mask_are_not_merged(stages, message):
    with pytest.raises(ValueError, match=f"^recipe.soup: .*{message}") as refused:
        recipe(*stages, evaluate=[])
    assert "\n" not in str(refused.value)


def test_masks_drawn_by_another_seed_are_told_apart_where_none_came():
    start = {"model": {"checkpoint": "s3://bucket/model"}}
    twins = {"pretrain": {**PRETRAIN["pretrain"], "method": "static"}}
    recipe(PREPARE, {**twins, "grid": {"seed": [0, 1]}}, {**SOUP, "gather": True}, evaluate=[], **start)  # it may have masks
    start = {"model": {"checkpoint": "/no/masks/here"}}
    recipe(PREPARE, {**twins, "grid": {"learning_rate": [1e-3, 2e-3]}}, {**SOUP, "gather": True}, evaluate=[], **start)
    with pytest.raises(ValueError, match="^recipe.soup: pretrain-seed0 and pretrain-seed1 are not under one mask"):
        recipe(PREPARE, {**twins, "grid": {"seed": [0, 1]}}, {**SOUP, "gather": True}, evaluate=[], **start)


def test_what_was_trained_from_one_model_under_one_mask_is_merged():
    for grid in ({"seed": [0, 1]}, {"method": ["masked", "lora"]}, {"method": ["static", "masked"]}):
        recipe(*forked(grid), evaluate=[])
    recipe(PREPARE, PRETRAIN, PRUNE, {**RECOVER, "grid": {"seed": [0, 1], "method": ["dense"]}}, {**SOUP, "gather": True})


@pytest.mark.parametrize("pattern", ["2:4", "channel"])
def test_what_moves_single_weights_is_refused_on_masks_of_another_pattern(pattern):
    prune = {"prune": {"method": "wanda", "pattern": pattern, **({} if pattern == "2:4" else {"sparsity": 0.5})}}
    moved, held = ({"recover": {"tokens": 10_000, "method": method}} for method in ("set", "masked"))
    with pytest.raises(ValueError, match=f"^recipe.recover: set moves single weights, which breaks the pattern {pattern} of"):
        check(recipe(PREPARE, PRETRAIN, prune, moved))
    with pytest.raises(ValueError, match="^recipe.again: set moves single weights"):
        check(recipe(PREPARE, PRETRAIN, prune, held, {"id": "again", **moved}))
    check(recipe(PREPARE, PRETRAIN, {"prune": {"method": "wanda", "sparsity": 0.5}}, moved))
    dropped = {"recover": {"tokens": 10_000, "method": "dense"}}
    check(recipe(PREPARE, PRETRAIN, prune, dropped, {"id": "again", **moved}))


def test_a_recipe_is_a_file_a_shipped_name_or_text(tmp_path):
    import yaml

    text = yaml.safe_dump(BASE)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(text).nodes == load_recipe(str(tmp_path / "mine.yaml")).nodes == recipe().nodes
    assert load_recipe("quickstart").name == "quickstart"
    with pytest.raises(ValueError, match="recipe nosuch: no such file; choose one of .*quickstart"):
        load_recipe("nosuch")
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match=f"recipe {place}: it is no plain file; choose one of .*quickstart"):
            load_recipe(str(place))


@pytest.mark.parametrize("name", names("transforms"))
def test_the_iso_sparsity_of_a_transform_is_a_number_in_the_fields(name):
    model = {**BASE["model"], "transform": {name: {"sparsity": 0.5}}}
    pretrain = {"pretrain": {"method": {"gradual": {"sparsity": "iso"}}, "tokens": 10_000}}
    stage = recipe(PREPARE, pretrain, model=model).node("pretrain").stage
    assert stage.method.sparsity == pytest.approx(stage.model.iso_sparsity(300, stage.length), abs=1e-6)
    assert 0 < stage.method.sparsity < 1 and stage.model_dump(mode="json")["model"]["transform"].keys() == {name}


@pytest.mark.parametrize("path", sorted((ROOT / "flows" / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_accepted(path, tmp_path, monkeypatch):
    data_zoo.write_tokenizer(tmp_path / "build" / "smollm2")  # what ``make real-model`` makes, in small
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048}
    zoo.save("llama", tmp_path / "build" / "smollm2", **sizes)
    monkeypatch.chdir(tmp_path)
    check(load_recipe(str(path)))


@pytest.mark.parametrize("stage", [RECOVER, QUANTIZE, {"prune": {"method": "magnitude", "sparsity": 0.6}}])
def test_weights_that_are_codes_are_changed_by_no_stage_and_may_teach(stage):
    with pytest.raises(
        ValueError, match=r"^recipe.late: \w+ changes weights, and those of quantize are codes already; put late "
    ):
        recipe(*BASE["stages"], {"id": "late", **stage})
    assert parents(*BASE["stages"], {"id": "late", "from": "recover", **QUANTIZE})["late"]["model"] == "recover"
    taught = {"id": "late", "from": {"model": "prune", "teacher": "quantize"}, **RECOVER}
    assert parents(*BASE["stages"], taught)["late"]["teacher"] == "quantize"
