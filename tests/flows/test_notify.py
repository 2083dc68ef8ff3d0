"""``winnow notify`` refuses what it cannot do in one line."""

from __future__ import annotations

import pytest

from tests.flows.command import winnow


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))


def test_a_webhook_has_an_address(monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_WEBHOOK_URL", "hooks.example.org")
    assert winnow("notify") == 2
    assert capsys.readouterr().err == "winnow: WINNOW_WEBHOOK_URL should start with http:// or https://\n"


def test_without_a_server_the_remedy_is_said(capsys):
    assert winnow("notify", "--off") == 2
    assert "start it with winnow up, or name prefect.api_url" in capsys.readouterr().err
