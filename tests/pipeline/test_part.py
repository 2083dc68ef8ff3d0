"""A recipe made in parts, on the cluster and in one process, comes to what the whole of it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipeline import LENGTH, Home, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "part") as home:
        yield home


def test_until_on_the_cluster_then_only_in_this_process_leave_nothing_to_the_whole_run(home: Home) -> None:
    recipe = home.recipe("parts", pretrain("dense", 4), prune(), evaluate={"perplexity": {"length": LENGTH, "tokens": 1024}})

    def made(*options: str) -> list[str]:
        stages = home.winnow("run", recipe, "-p", home.profile, "--json", *options).summary["stages"]
        assert all(stage["done"] for stage in stages)
        return [stage["id"] for stage in stages if not stage["cached"]]

    refused = home.winnow("run", recipe, "-p", home.profile, "--only", "prune", code=2)
    assert refused.out == "" and "prepare, is not made yet" in refused.err
    assert made("--until", "pretrain") == ["prepare", "pretrain", "pretrain.perplexity"]
    assert made("--only", "prune", "--here") == ["prune", "prune.perplexity"]
    assert made() == []
