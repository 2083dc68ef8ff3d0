"""What infra/ holds is what its tools take, agrees with itself and with the lock file, and has no secret in it.

No engine and no cluster is here: compose and Kubernetes files are checked against their schemas, the Dockerfile by its linter.
Of KubeRay's resources no schema can be installed: the pods in them are checked as pods, the fields around them by a list.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from cluster.profile import CHECKOUT, Profile, load_profile

INFRA = CHECKOUT / "infra"
MANIFESTS = sorted(INFRA.glob("kubernetes/*.yaml"))
LOCK = dict(line.split("==") for line in (INFRA / "requirements.lock").read_text().split())
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit"}


def documents(*kinds: str) -> list[dict[str, Any]]:
    found = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
    return [document for document in found if not kinds or document["kind"] in kinds]


def clusters() -> list[dict[str, Any]]:
    """The specs of Ray clusters, standing or of a job."""
    return [found["spec"].get("rayClusterSpec", found["spec"]) for found in documents("RayCluster", "RayJob")]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> Iterator[dict[str, Any]]:
    for cluster in clusters():
        yield from (group["template"] for group in groups(cluster))
    yield from (found["spec"]["template"] for found in documents("Deployment", "StatefulSet"))


def compose() -> dict[str, Any]:
    """The file with its variables filled in, by their defaults where they have some: as compose itself reads it."""
    text = (INFRA / "compose.yaml").read_text()
    return yaml.safe_load(
        re.sub(r"\$\{\w+(?::-(\w*)|:\?[^}]*)?\}", lambda found: "given" if found[1] is None else found[1], text)
    )


def test_the_compose_file_is_one_by_its_specification():
    PyCompose.from_json(json.dumps(compose())).validate()  # its own reader knows no merge keys


def test_every_service_that_is_waited_for_or_spoken_to_is_one_of_the_file():
    services = compose()["services"]
    waited = {name for service in services.values() for name in service.get("depends_on", [])}
    spoken = set(re.findall(r"(?:://(?:[^/@\s]*@)?|address=)([a-z][a-z0-9-]+)[:/]", (INFRA / "compose.yaml").read_text()))
    assert waited <= services.keys() and spoken - {"winnow"} <= services.keys()
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))


@pytest.mark.parametrize("manifest", documents(), ids=lambda found: f"{found['kind']}-{found['metadata'].get('name', '')}")
def test_a_manifest_is_one_by_the_schemas_of_kubernetes(manifest):
    if manifest["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        return
    for cluster in [manifest["spec"].get("rayClusterSpec", manifest["spec"])]:
        assert cluster.keys() <= CLUSTER and all(group.keys() <= GROUP for group in groups(cluster))
        assert cluster["authOptions"] == {"mode": "token", "secretName": "winnow-ray"}
        for group in groups(cluster):
            metadata = {"name": "pod", **group["template"]["metadata"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group["template"]["spec"]}
            kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    if manifest["kind"] == "RayJob":
        assert manifest["spec"].keys() <= JOB | {"rayClusterSpec"}


def test_no_pod_is_root_or_holds_what_it_does_not_ask_for():
    for pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert "memory" in container["resources"]["limits"]


def test_whoever_is_let_in_is_there():
    """Every label that a policy or a service selects is some pod's."""
    labels = {(name, value) for pod in pods() for name, value in pod["metadata"]["labels"].items()}
    policies = [policy["spec"] for policy in documents("NetworkPolicy")]
    chosen = [policy["podSelector"] for policy in policies]
    chosen += [
        peer.get("podSelector", {}) for policy in policies for rule in policy.get("ingress", []) for peer in rule["from"]
    ]
    selected = {pair for one in chosen for pair in one.get("matchLabels", {}).items()}
    selected |= {pair for service in documents("Service") for pair in service["spec"]["selector"].items()}
    assert {pair for pair in selected if not pair[0].startswith("ray.io/")} <= labels
    covered = {policy["podSelector"].get("matchLabels", {}).get("app") for policy in policies}
    assert {pod["metadata"]["labels"]["app"] for pod in pods()} - {"worker"} <= covered and None in covered


def test_versions_are_those_of_the_lock_file():
    assert {cluster["rayVersion"] for cluster in clusters()} == {LOCK["ray"]}
    docker = (INFRA / "docker" / "Dockerfile").read_text()
    assert "-r infra/requirements.lock" in docker and not re.search(r"pip install [\"']?[a-z-]+==", docker)
    images = {service["image"] for service in compose()["services"].values()}
    images |= {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    assert all(":" in image and not image.endswith(":latest") for image in images)
    assert len({image for image in images if image.startswith("postgres:")}) == 1


def test_a_profile_reaches_the_same_services_wherever_it_is_used():
    profile = load_profile("cluster")
    wanted = {
        str(address).split("/")[2] for address in (profile.ray.address, profile.prefect.api_url, profile.mlflow.tracking_uri)
    }
    ports = {f"{found['metadata']['name']}:{port['port']}" for found in documents("Service") for port in found["spec"]["ports"]}
    assert wanted <= ports and {address.split(":")[0] for address in wanted} <= compose()["services"].keys()
    (once,) = (yaml.safe_load(text) for found in documents("ConfigMap") for text in found["data"].values())
    job = Profile.model_validate(once)
    assert (job.store, job.scratch, job.prefect, job.mlflow) == (
        profile.store,
        profile.scratch,
        profile.prefect,
        profile.mlflow,
    )


def test_the_cluster_profile_explains_every_field_of_its_own():
    text = (INFRA / "profiles" / "cluster.yaml").read_text()
    assert set(Profile.model_fields) == set(yaml.safe_load(text))


def test_the_policy_lets_the_store_do_what_it_does_and_delete_nothing():
    policy = json.loads((INFRA / "s3-policy.json").read_text())
    allowed = {
        action
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    needs = {
        "get_object": {"s3:GetObject"},
        "head_object": {"s3:GetObject"},
        "download_file": {"s3:GetObject"},
        "put_object": {"s3:PutObject"},
        "upload_file": {"s3:PutObject", "s3:AbortMultipartUpload"},
        "get_paginator": {"s3:ListBucket"},
        "abort_multipart_upload": {"s3:AbortMultipartUpload"},
        "delete_object": set(),  # `winnow discard` is for whoever holds another key
    }
    calls = set(re.findall(r"self\.client\.(\w+)\(", (CHECKOUT / "cluster" / "store" / "bucket.py").read_text()))
    assert set().union(*(needs[call] for call in calls)) == allowed
    assert {"winnow/runs/*", "winnow/mlflow/*"} == {name.split(":::")[1] for name in policy["Statement"][1]["Resource"]}


def test_secrets_are_asked_for_and_never_given():
    for path in (INFRA / "compose.yaml", INFRA / "profiles" / "cluster.yaml", *MANIFESTS):
        for line in path.read_text().splitlines():
            if found := re.search(r"(?:PASSWORD|SECRET\w*|TOKEN|AUTH_STRING)\"?: *\"?(\S+)", line.partition("#")[0]):
                assert found[1].startswith("${"), f"{path.name}: {line}"
    assert not documents("Secret")


def test_the_linter_has_nothing_to_say_of_the_dockerfile():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, INFRA / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
