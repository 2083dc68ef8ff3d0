"""MLflow's model registry: a chosen model becomes a version with an alias, by which whoever serves it finds it."""

from __future__ import annotations

from cluster.reach import Plain, check_tracking, plainly, variables
from cluster.tracking import BRIEFLY, EXPERIMENT


def promote(uri: str, address: str, key: str, name: str, alias: str) -> int:
    """Let ``alias`` of the registered model ``name`` mean this artifact; its version. A model that is registered already keeps
    its version. Raises ValueError where no run told MLflow of the artifact."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    check_tracking(uri)
    with variables(BRIEFLY):
        with plainly(uri):
            plain = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client = Plain(plain, uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        of_artifact = f"tags.`winnow.key` = '{key}'"
        models = client.search_logged_models([found.experiment_id], of_artifact, max_results=1) if found else []
        if not models:
            raise ValueError(f"{address}: MLflow knows no such model; run its recipe again, which tells it")
        versions = client.search_model_versions(f"name = '{name}'")
        version = next((one for one in versions if one.tags.get("winnow.key") == key), None)
        if version is None:
            try:
                plain.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise ConnectionError(f"MLflow: {error}") from error
                client.create_registered_model(name)
            tags = {"winnow.address": address, "winnow.key": key}
            (model,) = models
            version = client.create_model_version(
                name, f"models:/{model.model_id}", model.source_run_id, tags, await_creation_for=0, model_id=model.model_id
            )
        client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)
