"""A claim is judged on the differences of equal seeds, and says when they are noise."""

import pytest
from rich.console import Console

from flows.claims import Claim
from flows.display import claims_table
from tests.flows.recipes import recipe
from tests.flows.test_sweep import PREPARE


def models(metric="perplexity", **groups):
    return [
        {"base": "pretrain", "branch": {"method": name, "seed": f"seed{seed}"}, metric: value}
        for name, values in groups.items()
        for seed, value in enumerate(values)
    ]


def judge(order, found, **fields):
    return Claim(says="so", stage="pretrain", order=order, **fields).judge(found)


def test_lower_is_better_for_perplexity_and_higher_for_accuracy():
    assert judge(["a", "b"], models(a=[1, 2, 3], b=[2, 3, 4]))["holds"]
    assert not judge(["b", "a"], models(a=[1, 2, 3], b=[2, 3, 4]))["holds"]
    assert judge(["b", "a"], models("task_accuracy", a=[0.1], b=[0.2]), metric="task_accuracy")["holds"]


def test_seeds_are_paired_so_a_small_steady_difference_is_clear():
    steady = judge(["a", "b"], models(a=[10, 20, 30], b=[11, 21, 31.1]))
    assert steady["clear"] and steady["verdict"] == "holds"
    noisy = judge(["a", "b"], models(a=[10, 20, 30], b=[9, 22, 30]))
    assert not noisy["clear"] and noisy["verdict"] == "holds, within noise"
    assert judge(["b", "a"], models(a=[10, 20, 30], b=[11, 21, 31.1]))["verdict"] == "does not hold"


def test_a_chain_holds_where_every_link_does():
    found = models(a=[1, 1], b=[2, 2], c=[1.5, 1.5])
    assert [pair["holds"] for pair in judge(["a", "b", "c"], found)["pairs"]] == [True, False]


def test_near_the_best_of_several_within_a_slack():
    found = models(ours=[101, 101], x=[100, 100], y=[120, 120])
    assert not judge(["ours", ["x", "y"]], found)["holds"]
    assert judge(["ours", ["x", "y"]], found, slack=0.02)["holds"]


def test_one_seed_is_never_clear():
    found = judge(["a", "b"], models(a=[1], b=[2]))
    assert found["holds"] and not found["clear"] and found["pairs"][0]["error"] is None


def test_models_of_several_stages_are_compared():
    found = models(a=[1, 1]) + [{**model, "base": "prune"} for model in models(b=[2, 2])]
    claim = Claim(says="so", stage=["pretrain", "prune"], order=["a", "b"])
    assert (
        claim.judge(found)["holds"]
        and not Claim(says="so", stage=["prune", "pretrain"], order=["b", "a"]).judge(found)["holds"]
    )
    claim.check([(model["base"], model["branch"]) for model in found], "claims[0]")
    both = [(stage, {"method": "a"}) for stage in ("pretrain", "prune")]
    with pytest.raises(ValueError, match="several of its stages have a group 'a'; name them apart"):
        claim.check([*both, ("prune", {"method": "b"})], "claims[0]")


def test_stages_without_a_grid_are_compared_by_their_ids():
    found = [
        {"base": "pretrain", "branch": {}, "perplexity": 20.0},
        {"base": "prune", "branch": {"seed": "seed0"}, "perplexity": 30.0},
        {"base": "prune", "branch": {"seed": "seed1"}, "perplexity": 31.0},
    ]
    claim = Claim(says="pruning costs", stage=["pretrain", "prune"], order=["pretrain", "prune"])
    claim.check([(model["base"], model["branch"]) for model in found], "claims[0]")
    assert claim.judge(found)["holds"] and claim.judge(found)["groups"]["prune"]["mean"] == 30.5
    with pytest.raises(ValueError, match=r"no group 'dense'; choose some of pretrain, prune$"):
        claim.model_copy(update={"order": ["dense", "prune"]}).check([("pretrain", {}), ("prune", {})], "claims[0]")


def test_one_seed_tells_nothing_of_noise(capsys):
    judged = judge(["a", "b"], models(a=[1.0], b=[2.0]))
    assert judged["verdict"] == "holds, by one seed"
    Console(width=200).print(claims_table([judged]))
    told = capsys.readouterr().out
    assert "a 1 " in told and "b 2 " in told and "± 0" not in told and "holds, by one seed" in told


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"stage": ["pretrain", "nosuch"], "order": ["a", "b"]}, r"recipe.claims\[0\].stage: no stage 'nosuch' makes a model"),
        ({"stage": "nosuch", "order": ["a", "b"]}, r"recipe.claims\[0\].stage: no stage 'nosuch' makes a model; choose"),
        ({"stage": "pretrain", "order": ["dense", "rigl"]}, r"recipe.claims\[0\].order: no group 'rigl'; choose some of dense"),
        ({"stage": "pretrain", "order": ["dense"]}, r"recipe.claims\[0\].order"),
        ({"stage": "pretrain", "order": ["dense", "dense"], "metric": "x"}, r"recipe.claims\[0\].metric: no metric 'x'"),
    ],
)
def test_a_claim_about_nothing_is_refused_before_any_work(claim, message):
    grid = {"pretrain": {"tokens": 10_000}, "grid": {"method": ["dense"], "seed": [0, 1]}}
    with pytest.raises(ValueError, match=message):
        recipe(PREPARE, grid, claims=[{"says": "so", **claim}])


def test_a_group_without_seeds_stands_against_every_seed_of_another():
    found = models(a=[1, 3]) + [{"base": "pretrain", "branch": {"method": "b"}, "perplexity": 2.5}]
    (pair,) = judge(["a", "b"], found)["pairs"]
    assert pair["holds"] and pair["difference"] == pytest.approx(-0.5) and pair["error"] == pytest.approx(1.0)
    assert not judge(["b", "a"], found)["holds"]


def test_a_member_may_be_a_mean_at_each_seed():
    found = models(a=[2, 5], b=[1, 4], c=[3, 7])
    judged = judge(["a", {"mean": ["b", "c"]}], found)
    assert judged["holds"] and judged["groups"]["mean of b, c"]["values"] == {"seed0": 2, "seed1": 5.5}
    assert not judge([{"mean": ["b", "c"]}, "a"], found)["holds"]
    with pytest.raises(ValueError, match="no group 'd'"):
        claim = Claim(says="so", stage="pretrain", order=["a", {"mean": ["b", "d"]}])
        claim.check([(model["base"], model["branch"]) for model in found], "claims[0]")
