"""``winnow doctor -p`` knocks at every service of a profile, and is not content with a profile that reads well."""

from __future__ import annotations

import pytest
import yaml

from flows.doctor import examine

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def profile(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")

    def write(**fields):
        path = tmp_path / "there.yaml"
        path.write_text(yaml.safe_dump(fields))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"ray": {"address": f"http://{NOWHERE}"}}, "ray.address"),
        ({"prefect": {"api_url": f"http://{NOWHERE}/api"}}, "prefect.api_url"),
        ({"mlflow": {"tracking_uri": f"http://{NOWHERE}"}}, "mlflow.tracking_uri"),
        ({"mlflow": {"tracking_uri": f"postgresql://me:hidden@{NOWHERE}/x"}}, "mlflow.tracking_uri"),
        ({"store": "s3://bucket/runs"}, "store"),
    ],
)
def test_a_service_at_which_nothing_listens_is_wrong_in_one_line(profile, fields, check):
    (found,) = [finding for finding in examine(profile(**fields)) if finding.check == check]
    assert not found.ok and NOWHERE in found.text and "does not answer" in found.text
    assert "\n" not in found.text and "hidden" not in found.text


def test_a_profile_without_services_of_its_own_is_asked_for_its_store_alone(profile, tmp_path):
    *_, understood, store = examine(profile(store=str(tmp_path / "store"), scratch=str(tmp_path / "scratch")))
    assert understood.ok and store == ("store", True, f"{tmp_path / 'store'} is writable")


def test_a_profile_that_cannot_be_read_is_not_asked_for_more(profile):
    *_, last = examine(profile(ray={"adress": "x"}))
    assert last.check.startswith("profile ") and not last.ok and "adress" in last.text
