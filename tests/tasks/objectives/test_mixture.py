"""A mixture is the weighted sum of its objectives, each measured as alone."""

import pytest

from tasks.methods import build, dump
from tests.tasks.objectives.answers import PLAIN, Fixed, cross_entropy, logits
from tests.tasks.objectives.test_square_head import states

STUDENT, TEACHER = states(0, 1, 5), states(0, 2, 3)


def measure(objective):
    return build("objectives", objective).bind(Fixed(logits(1).detach(), *TEACHER))(Fixed(logits(0), *STUDENT), PLAIN)


def test_each_part_counts_by_its_weight_and_tells_what_it_tells_alone():
    parts = {"distillation": {"ce": 0, "kl": 1}, "square_head": {"ce": 0}, "cross_entropy": {}}
    loss, metrics = measure({"mixture": {"of": parts, "weights": {"distillation": 0.5, "square_head": 2}}})
    kl, features = (measure({name: parts[name]})[0].item() for name in ("distillation", "square_head"))
    assert loss.item() == pytest.approx(0.5 * kl + 2 * features + cross_entropy(logits(0)))
    assert metrics["kl"].item() == pytest.approx(kl) and metrics["features"].item() == pytest.approx(features)
    assert metrics["loss"].item() == pytest.approx(cross_entropy(logits(0)))


def test_it_asks_for_what_any_part_asks_for_and_is_read_back_from_its_dump():
    mixture = build("objectives", {"mixture": {"of": ["square_head", "attention", "reverse_kl"]}})
    assert mixture.asks() == ("hidden_states", "attentions") and mixture.needs_teacher()
    assert build("objectives", dump(mixture)) == mixture
    alone = build("objectives", {"mixture": {"of": ["cross_entropy", "top_k"], "weights": {"top_k": 3}}})
    assert alone.asks() == () and dump(alone)["mixture"]["weights"] == {"top_k": 3.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"of": ["distillation"]}, "mixture.of: at least 2 needed"),
        ({"of": ["distillation", "distillation"]}, "mixture.of: distillation is listed twice"),
        ({"of": ["distillation", "kl"]}, "mixture.of: no method 'kl' in tasks.objectives; choose one of"),
        ({"of": ["distillation", "top_k"], "weights": {"kl": 1}}, "weights: kl is none of the mixture; choose some of dist"),
        ({"of": ["distillation", "top_k"], "weights": {"top_k": 0}}, "mixture.weights.top_k: input should be greater than 0"),
        ({"of": {"distillation": {}, "mixture": {"of": ["top_k", "reverse_kl"]}}}, "a mixture inside a mixture"),
        ({}, "mixture.of: field required"),
    ],
)
def test_a_mixture_that_says_nothing_sound_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        build("objectives", {"mixture": fields})
    assert "\n" not in str(error.value)
