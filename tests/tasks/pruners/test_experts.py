"""Experts: those that add least to the tokens routed to them go, and tokens that took none of them are answered as before."""

from __future__ import annotations

import json

import pytest
import torch

from tasks.calibrate.routed import experts_of, weighted_norms
from tasks.calibrate.whole import Whole
from tasks.methods import build
from tasks.models.files.checkpoint import load_model, save_model, skeleton
from tasks.pruners.experts import best
from tests.contracts.test_resizers import BATCHES, shrunk
from tests.tasks import models_zoo as zoo


def test_what_an_expert_adds_by_hand():
    """The mean over its tokens of the gate's weight times the length of its own answer, worked out token by token."""
    model = zoo.model("mixtral", layers=1)
    whole, block, seen = Whole(model, BATCHES[:1]), model.model.layers[0].mlp, []
    handle = block.experts.register_forward_pre_hook(lambda module, given: seen.append(given))
    found = weighted_norms(whole, experts_of(whole))[0]
    handle.remove()
    hidden_ND, chosen_NK, weights_NK = seen[0]
    for expert in range(4):
        each = []
        for hidden_D, chosen, weights in zip(hidden_ND, chosen_NK.tolist(), weights_NK.tolist(), strict=True):
            if expert in chosen:
                gate, up = (block.experts.gate_up_proj[expert] @ hidden_D).chunk(2)
                answer_D = block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                each.append(weights[chosen.index(expert)] * answer_D.norm().item())
        assert found[expert].item() == pytest.approx(sum(each) / max(1, len(each)), rel=1e-4)


def test_an_expert_that_gives_nothing_goes_first(tmp_path):
    model = zoo.model("mixtral")
    for layer, expert in zip(model.model.layers, (2, 0), strict=True):
        layer.mlp.experts.down_proj.data[expert] = 0
    save_model(model.state_dict(), model.config, tmp_path / "in")
    shrunk(tmp_path / "in", tmp_path / "out", "experts", 0.25)
    told = json.loads((tmp_path / "out" / "report" / "experts.json").read_text())["router_weighted_norm"]
    assert told["0"][2] == told["1"][0] == 0
    before, after = load_model(tmp_path / "in").model.layers, load_model(tmp_path / "out").model.layers
    for index, kept in enumerate(([0, 1, 3], [1, 2, 3])):
        assert after[index].mlp.experts.down_proj.equal(before[index].mlp.experts.down_proj[kept])
        assert after[index].mlp.gate.weight.equal(before[index].mlp.gate.weight[kept])


def test_tokens_that_took_none_of_those_that_went_are_answered_as_before(tmp_path):
    source = zoo.save("mixtral", tmp_path / "in", layers=1)
    shrunk(source, tmp_path / "out", "experts", 0.25)
    before, after, seen = load_model(source), load_model(tmp_path / "out"), []
    scores = json.loads((tmp_path / "out" / "report" / "experts.json").read_text())["router_weighted_norm"]["0"]
    gone = min(range(4), key=scores.__getitem__)
    before.model.layers[0].mlp.experts.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    with torch.no_grad():
        told, said = (model(BATCHES[0].tokens, use_cache=False).logits.flatten(0, 1) for model in (before, after))
    spared = ~(seen[0] == gone).any(-1)
    assert 0 < spared.sum() < len(spared)
    torch.testing.assert_close(said[spared], told[spared], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(said[~spared], told[~spared], atol=1e-3)


def test_fewer_than_a_token_takes_and_a_model_without_are_refused(tmp_path):
    method = build("pruners", "experts")
    with pytest.raises(ValueError, match="sparsity 0.75 leaves 1 experts, and each token takes 2; choose at most 0.5"):
        method.check_model(skeleton(zoo.save("mixtral", tmp_path / "mixtral")), 0.75)
    with pytest.raises(ValueError, match="unsupported: the model has no experts; choose depth or width"):
        method.check_model(skeleton(zoo.save("llama", tmp_path / "llama")), 0.5)


def test_each_group_that_a_router_chooses_among_keeps_as_many_of_its_own():
    scores = torch.tensor([9.0, 8, 7, 6, 1, 2, 3, 4])
    assert best(scores, 4, 1).tolist() == [0, 1, 2, 3]
    assert best(scores, 4, 2).tolist() == [0, 1, 6, 7]  # the best four would make two groups of one
    assert best(scores, 4, 4).tolist() == [0, 2, 5, 7]


@pytest.mark.parametrize("architecture", ["deepseek_v3", "glm4_moe"])
def test_of_a_router_with_groups_tokens_that_took_none_of_those_that_went_are_answered_as_before(architecture, tmp_path):
    source = zoo.save(architecture, tmp_path / "in", n_routed_experts=8)
    shrunk(source, tmp_path / "out", "experts", 0.25)
    before, after = load_model(source), load_model(tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "report" / "experts.json").read_text())["router_weighted_norm"]["1"]
    kept = best(torch.tensor(scores), 6, 2)
    assert (kept < 4).sum() == 3 and after.model.layers[1].mlp.gate.weight.equal(before.model.layers[1].mlp.gate.weight[kept])
    chosen = {}
    for model, name in ((before, "before"), (after, "after")):
        model.model.layers[1].mlp.experts.register_forward_pre_hook(
            lambda module, given, name=name: chosen.update({name: given[1]})
        )
        with torch.no_grad():
            model(BATCHES[0].tokens, use_cache=False)
    spared = torch.isin(chosen["before"], kept).all(-1)
    assert 0 < spared.sum() < len(spared)
    same = kept[chosen["after"]][spared].sort(-1).values == chosen["before"][spared].sort(-1).values
    assert same.float().mean() > 0.9  # a group counts by its best two, of which one may have gone


def test_groups_bound_how_many_experts_may_go(tmp_path):
    skeletons = {
        groups: skeleton(zoo.save("deepseek_v3", tmp_path / str(groups), n_routed_experts=8, n_group=groups))
        for groups in (2, 4)
    }
    method = build("pruners", "experts")
    with pytest.raises(
        ValueError, match="leaves 2 experts, and a router that chooses 1 of 2 groups needs 4; choose at most 0.5"
    ):
        method.check_model(skeletons[2], 0.75)
    with pytest.raises(
        ValueError, match="unsupported: of 8 experts a router that chooses 1 of 4 groups needs 8; choose depth or"
    ):
        method.check_model(skeletons[4], 0.5)
