"""A run that is not what its deployment or its schedule said is refused."""

from __future__ import annotations

from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import CreatedBy, FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from flows.registration import version_of
from flows.schedules import MARKED, check_run
from tests.flows.recipes import BASE

TEXT, OTHER = yaml.safe_dump(BASE), yaml.safe_dump({**BASE, "name": "other"})
LATER = yaml.safe_dump({**BASE, "seed": 1})
OWN = {"recipe": TEXT, "profile": "local", "overrides": []}


def check(parameters: dict, slug: str | None = None, own: dict = OWN, version: str | None = None) -> None:
    deployment = DeploymentResponse(name="tiny", flow_id=uuid4(), parameters=own, tags=["winnow", "recipe:tiny"])
    by = CreatedBy(id=uuid4(), type="SCHEDULE", display_value=slug) if slug else None
    check_run(deployment, FlowRun(flow_id=uuid4(), parameters=parameters, created_by=by, deployment_version=version))


def test_what_a_form_or_a_schedule_said_is_run():
    check({**OWN, "fields": {"prune": {"sparsity": 0.5}}})
    check(OWN, slug="winnow")
    check(OWN, slug="CronSchedule")
    check({**OWN, "overrides": ["seed=1"]}, slug=f"{MARKED}abc")


def test_a_run_that_waited_while_its_recipe_was_deployed_anew_is_run():
    check(OWN, own={**OWN, "recipe": LATER})
    check(OWN, "winnow", own={**OWN, "recipe": LATER}, version=version_of(TEXT))


@pytest.mark.parametrize("slug", [None, "winnow"])
def test_another_recipe_is_refused_whoever_asks(slug):
    with pytest.raises(ValueError, match="recipe other: deployment tiny runs tiny and nothing else"):
        check({**OWN, "recipe": OTHER}, slug)


@pytest.mark.parametrize("version", [None, version_of(TEXT)])
def test_a_schedule_runs_no_other_text_of_the_same_name(version):
    with pytest.raises(ValueError, match="deployment tiny: its schedule was given a recipe of its own; set fields"):
        check({**OWN, "recipe": LATER}, "CronSchedule", version=version)


def test_a_run_without_a_recipe_is_refused():
    with pytest.raises(ValueError, match="deployment tiny has no recipe"):
        check({"profile": "local"}, own={"profile": "local"})


def test_a_schedule_that_lost_its_parameters_is_refused():
    with pytest.raises(ValueError, match="its schedule lost its parameters"):
        check(OWN, f"{MARKED}abc")
