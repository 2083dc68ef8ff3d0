"""The command refuses what is no MLflow in one line, before it listens; who only reads makes no database."""

from __future__ import annotations

import pytest

from tests.cluster.test_reach import stranger as stranger
from tests.flows.command import winnow


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("htp://team", "--mlflow: should start with one of http://, https://, sqlite:///, postgresql"),
        ("", "--mlflow: should start with one of http://, https://, sqlite:///, postgresql"),
        ("http://me:hidden@team", "--mlflow: should hold no login; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD do"),
        ("http://127.0.0.1:9", "--mlflow http://127.0.0.1:9 does not answer: "),
        ("postgresql://me:hidden@127.0.0.1:9/x", "--mlflow postgresql://127.0.0.1:9/x does not answer: "),
        ("sqlite:///{here}/nosuch.db", "--mlflow: there is no database {here}/nosuch.db; a run makes it, or mend the address"),
        ("{stranger}", "it answers 404 where an MLflow has /api/2.0/mlflow/experiments/get-by-name; mend the address"),
    ],
)
def test_an_mlflow_that_is_misspelt_away_or_none_is_refused(given, told, tmp_path, monkeypatch, capsys, stranger):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    names = {"here": tmp_path, "stranger": stranger}
    assert winnow("dashboard", "--mlflow", given.format(**names)) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and told.format(**names) in err and "hidden" not in err and not out
    assert not (tmp_path / "nosuch.db").exists()
