"""A description in MLflow fits into MLflow, whatever was measured, and begins with what matters."""

from __future__ import annotations

from flows.note import ROOM, of_stage


def test_a_stage_stands_beside_the_model_it_came_from():
    text = of_stage("prune", {"perplexity": 70.0, "sparsity": 0.5}, "pretrain", {"perplexity": 64.0}, "prune/wanda-ab", {})
    assert text.splitlines()[0] == "|  | pretrain (before) | **prune** |"
    assert "| perplexity | 64.00 | 70.00 |" in text and "| sparsity |  | 50.0% |" in text and text.endswith("`prune/wanda-ab`")


def test_of_a_thousand_tasks_as_many_stand_there_as_fit_and_the_whole_comes_first():
    numbers = {f"accuracy.task{number}": 0.5 for number in range(1000)} | {"accuracy": 0.5}
    text = of_stage("prune", numbers, "", {}, "prune/wanda-ab", {"run of pretrain": "#/x"})
    assert ROOM * 0.8 < len(text) <= ROOM and "| accuracy | 50.0% |" in text and text.endswith("`prune/wanda-ab`")
