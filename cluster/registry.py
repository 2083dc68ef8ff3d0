"""MLflow's model registry: a chosen model becomes a version with an alias, by which whoever serves it finds it."""

from __future__ import annotations

from cluster.tracking import EXPERIMENT, connect


def promote(uri: str, address: str, key: str, name: str, alias: str) -> int:
    """Let ``alias`` of the registered model ``name`` mean this artifact; its version. A model that is registered already keeps
    its version. Raises ValueError where no run told MLflow of the artifact."""
    import mlflow

    client = connect(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    of_artifact = f"tags.`winnow.key` = '{key}'"
    models = client.search_logged_models([found.experiment_id], of_artifact, max_results=1) if found else []
    if not models:
        raise ValueError(f"{address}: MLflow knows no such model; run its recipe again, which tells it")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((one for one in versions if one.tags.get("winnow.key") == key), None)
    if version is None:
        tags, (model,) = {"winnow.address": address, "winnow.key": key}, models
        mlflow.set_tracking_uri(uri)  # a database asks the process's own MLflow what models:/ means
        source = {"source": f"models:/{model.model_id}", "run_id": model.source_run_id, "model_id": model.model_id}
        version = client.create_model_version(name, **source, tags=tags, await_creation_for=0)
    client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)
