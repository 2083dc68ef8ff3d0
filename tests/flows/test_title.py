"""A name that somebody typed stays; one that Prefect made up gives way to the recipe's."""

from __future__ import annotations

import pytest

from flows.title import made_up, title


@pytest.mark.parametrize("typed", ["my-first-try", "first-try", "typed by me", "beta-2", "quickstart", "wanda-2:4", "alpha"])
def test_what_was_typed_stays(typed):
    assert title(typed, "recipe") == typed


@pytest.mark.parametrize("name", [None, "", "zeta4-andromedae-cluster", "omega-canis-majoris", "phi12-aquilae"])
def test_what_the_form_filled_in_gives_way(name):
    assert title(name, "recipe") == "recipe"


def test_what_the_server_makes_up_gives_way():
    from prefect.utilities.names import generate_slug

    assert all(made_up(generate_slug(2)) for _ in range(300))
