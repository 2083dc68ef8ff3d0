"""A grid stands for one stage per combination, later stages follow every branch, and nothing else of a recipe changes."""

import pytest

from flows.sweep import NAMED, Sweep
from tasks.methods import SHELVES, load, names, of
from tasks.models.source import ModelSource
from tasks.stage import STAGES, stage_class
from tests.flows.recipes import recipe

HUB = {"hub": {"dataset": "d", "revision": 40 * "a", "documents_at_most": 5}}
PREPARE = {"prepare": {"corpus": HUB, "tokenizer": {"train": 300}}}


def expand(*entries, model=None):
    sweep = Sweep(model)
    return [entry for number, entry in enumerate(entries) for entry in sweep.expand(entry, f"stages[{number}]")]


def test_without_a_grid_entries_stay_as_they_are():
    entries = [PREPARE, {"id": "a", "prune": {"method": "wanda"}}, {"from": "a", "quantize": None}]
    assert [entry.document for entry in expand(*entries)] == entries


def test_every_combination_is_a_stage_of_its_own_named_by_its_labels():
    made = expand({"pretrain": {"method": "static", "tokens": 9}, "grid": {"seed": [0, 1], "method.sparsity": {"half": 0.5}}})
    assert [entry.document for entry in made] == [
        {"id": f"pretrain-seed{seed}-half", "pretrain": {"method": {"static": {"sparsity": 0.5}}, "tokens": 9, "seed": seed}}
        for seed in (0, 1)
    ]
    assert made[1].branch == {"seed": "seed1", "method.sparsity": "half"} and made[1].base == "pretrain"


def test_later_stages_follow_each_branch_and_may_split_further():
    made = expand(
        PREPARE,
        {"pretrain": {"tokens": 9}, "grid": {"seed": [0, 1]}},
        {"prune": {"sparsity": 0.5}, "grid": {"method": ["wanda"]}},
        {"id": "q", "quantize": {}},
        {"id": "other", "from": {"data": "prepare", "model": "pretrain"}, "recover": {"tokens": 9}},
    )
    links = {entry.document["id"]: entry.document["from"] for entry in made if "from" in entry.document}
    assert links == {
        "pretrain-seed0": "prepare",
        "pretrain-seed1": "prepare",
        "prune-seed0-wanda": "pretrain-seed0",
        "prune-seed1-wanda": "pretrain-seed1",
        "q-seed0-wanda": "prune-seed0-wanda",
        "q-seed1-wanda": "prune-seed1-wanda",
        "other-seed0": {"data": "prepare", "model": "pretrain-seed0"},
        "other-seed1": {"data": "prepare", "model": "pretrain-seed1"},
    }


SWEPT = (
    {"prune": {"sparsity": 0.5}, "grid": {"method": ["wanda", "magnitude"]}},
    {"recover": {"tokens": 9}, "grid": {"seed": [0, 1]}},
)


def gathered(entry, *more):
    return {made.document["id"]: made.document["from"] for made in expand(*SWEPT, *more, entry) if made.base == entry["id"]}


def test_what_gathers_takes_all_branches_together_or_those_that_differ_in_some_axes():
    ends = [f"recover-{method}-seed{seed}" for method in ("wanda", "magnitude") for seed in (0, 1)]
    assert gathered({"id": "all", "merge": {}, "gather": True}) == {"all": ends}
    assert gathered({"id": "soup", "merge": {}, "gather": ["seed"]}) == {"soup-wanda": ends[:2], "soup-magnitude": ends[2:]}
    assert gathered({"id": "soup", "merge": {}, "gather": ["method"]}) == {"soup-seed0": ends[::2], "soup-seed1": ends[1::2]}


def test_what_gathers_may_name_more_stages_and_is_followed_like_any_other():
    plain = {"id": "plain", "from": "prune", "recover": {"tokens": 5}}
    soup = {"id": "soup", "from": ["recover", "plain"], "merge": {}, "gather": ["seed"]}
    made = expand(*SWEPT, plain, soup, {"quantize": {}})
    assert {entry.document["id"]: entry.document["from"] for entry in made[-4:]} == {
        "soup-wanda": ["recover-wanda-seed0", "recover-wanda-seed1", "plain-wanda"],
        "soup-magnitude": ["recover-magnitude-seed0", "recover-magnitude-seed1", "plain-magnitude"],
        "quantize-wanda": "soup-wanda",
        "quantize-magnitude": "soup-magnitude",
    }


def test_a_case_sets_several_fields_and_a_model_axis_edits_a_copy_of_the_recipes_model():
    model = {"architecture": {"model_type": "llama", "hidden_size": 64}}
    case = {"small": {"model.architecture.hidden_size": 32, "tokens": 5}, "same": {}}
    made = expand({"pretrain": {"tokens": 9}, "grid": {"case": case}}, model=model)
    assert made[0].document["pretrain"] == {"tokens": 5, "model": {"architecture": {"model_type": "llama", "hidden_size": 32}}}
    assert made[1].document["pretrain"] == {"tokens": 9} and model["architecture"]["hidden_size"] == 64


def test_a_methods_field_is_set_whichever_method_it_is():
    made = expand({"pretrain": {}, "grid": {"method": {"a": "rigl", "b": {"set": {"interval": 5}}}, "method.sparsity": [0.9]}})
    assert [entry.document["pretrain"]["method"] for entry in made] == [
        {"rigl": {"sparsity": 0.9}},
        {"set": {"interval": 5, "sparsity": 0.9}},
    ]


def test_so_are_fields_of_objectives_and_of_methods_within_methods():
    stage = {"recover": {"objective": "distillation", "method": {"static": {"allocator": "erk"}}}}
    made = expand(
        {**stage, "grid": {"objective.temperature": [3], "method.allocator.power": [2], "method.static.sparsity": [0.5]}}
    )
    assert made[0].document["recover"] == {
        "objective": {"distillation": {"temperature": 3}},
        "method": {"static": {"allocator": {"erk": {"power": 2}}, "sparsity": 0.5}},
    }


def test_every_field_that_holds_a_method_is_one_whose_fields_a_grid_sets():
    fields = [stage_class(name).model_fields for name in STAGES]
    fields += [load(shelf, name).model_fields for shelf in SHELVES if shelf != "surgeries" for name in names(shelf)]
    held = {
        name
        for each in [*fields, ModelSource.model_fields]
        for name, info in each.items()
        if any(isinstance(m, of) for m in info.metadata)
    }
    assert held == set(NAMED)


def test_a_method_is_set_before_its_fields_whichever_comes_first_in_the_grid():
    grid = {"method.sparsity": [0.9], "case": {"a": {"method.interval": 5, "method": "rigl"}}}
    assert expand({"pretrain": {}, "grid": grid})[0].document["pretrain"] == {
        "method": {"rigl": {"sparsity": 0.9, "interval": 5}}
    }


def test_in_a_recipe_branches_share_what_comes_before_them():
    made = recipe(
        PREPARE,
        {"pretrain": {"method": "dense", "tokens": 10_000}, "grid": {"seed": [0, 1]}},
        {"recover": {"method": {"masked": {"ce": 1, "kl": 0}}, "tokens": 9}},
    )
    parents = {node.id: node.parents for node in made.nodes if not node.measures}
    assert parents["recover-seed1"] == {"data": "prepare", "model": "pretrain-seed1"}
    assert [made.node(f"pretrain-seed{seed}").stage.seed for seed in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1], r"recipe.stages\[0\].grid: {field: \[values\]} is needed"),
        ({"seed": 3}, r"recipe.stages\[0\].grid.seed: a list of values, or values by label, is needed, got 3"),
        ({"seed": []}, "a list of values"),
        ({"seed": [1, 1]}, "'seed1' stands for two values"),
        ({"corpus": [["x"]]}, "is no label; give values by label"),
        ({"method.rank": [1, 2]}, r"stages\[0\].grid.method.rank: name the method first, as in pretrain: {method: NAME}$"),
        (
            {"case": {"a": {"objective.ce": 1}}},
            r"grid.objective.ce: name the objective first, as in pretrain: {objective: NAME}$",
        ),
        ({"method.": [1]}, r"stages\[0\].grid: 'method.' is no field; an axis is a field of the stage, as seed or method.sp"),
        ({"": [1]}, "grid: '' is no field"),
        ({3: ["a"]}, "grid: 3 is no field"),
        ({"method": [{"rigl": 5}], "method.sparsity": [0.5]}, "grid.method.sparsity: method has no fields, got 5"),
        ({"case": {"a": 1}}, r"recipe.stages\[0\].grid.case: {label: {field: value}} is needed, got 1"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(grid, message):
    with pytest.raises(ValueError, match=message):
        expand({"pretrain": {}, "grid": grid})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"gather": ["sed"]}, r"stages\[2\].gather: true, or some axes out of \[method, seed\], is needed, got \['sed'\]"),
        ({"gather": []}, r"true, or some axes out of \[method, seed\], is needed, got \[\]"),
        ({"gather": True, "from": {"models": "recover"}}, r"from: what is gathered is an id or a list of ids, got {'models'"),
        ({"gather": True, "from": "data"}, r"gather: no grid comes before it; name what it takes with from: \[ID, ID\]"),
    ],
)
def test_what_cannot_be_gathered_is_refused_in_one_line(entry, message):
    with pytest.raises(ValueError, match=message):
        expand(*SWEPT, {"merge": {}, **entry})


def test_a_field_that_a_grid_invents_is_refused_like_any_other():
    with pytest.raises(ValueError, match=r"recipe.stages\[1\].pretrain.tokns: no such field"):
        recipe(PREPARE, {"pretrain": {"method": "dense", "tokens": 10}, "grid": {"tokns": [1]}})


@pytest.mark.parametrize(
    "origin", [[["prune"]], {"model": {"x": "prune"}}, [{"model": "prune"}], {"models": {"a": "prune"}}, 3, None]
)
@pytest.mark.parametrize("more", [{}, {"gather": True}])
def test_an_origin_of_no_known_form_is_refused_in_one_line(origin, more):
    with pytest.raises(ValueError, match=r"^recipe.stages\[2\].from: an id, a list of ids, or {role: id} is needed, got "):
        expand(*SWEPT, {"merge": {}, "from": origin, **more})


@pytest.mark.parametrize("entry", [{"id": "x"}, {"prune": {}, "recover": {}}, {"prune": "wanda"}])
def test_an_entry_that_is_no_stage_is_refused_as_well_with_a_grid(entry):
    for more in ({}, {"grid": {"seed": [1]}}):
        with pytest.raises(ValueError, match="name exactly one stage|fields are needed, got 'wanda'"):
            recipe(PREPARE, {**entry, **more})
