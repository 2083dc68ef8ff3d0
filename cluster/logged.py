"""The LoggedModel of a model artifact, one whoever tells of it: what MLflow's pages of models show.

MLflow holds no weights: they lie in the store, under the address. It gets the file by which it knows a model, with what goes
in and comes out (its signature) and its size; the fields it was made with, its numbers and a description; and, as inputs and
outputs of the runs, which models it was made from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.origins import KEY, Origins

if TYPE_CHECKING:
    from mlflow.models import Model as Described

FIRST = frozenset({"winnow.recipe"})  # tags that say who told of the model first
NOTE, OURS = "mlflow.note.content", "|"  # a description, and how one begins that is ours
FILE, LONGEST = "MLmodel", 6000


class Model(NamedTuple):
    """A model artifact. ``parents`` are the keys of what it was made from; ``config`` reads the model's config.json, and is
    asked of a model that is new here."""

    name: str
    key: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, Any] = {}
    parents: tuple[str, ...] = ()
    config: Callable[[], str] = str


def tell(origins: Origins, run: str, step: int, model: Model, ids: Mapping[str, str]) -> tuple[str, set[str]]:
    """Have MLflow know the model, made in ``run``. ``ids`` are those of LoggedModels by key. What comes back is its id, and the
    names of the numbers that it has already."""
    from mlflow.entities import LoggedModelStatus

    client, known = origins.client, origins.model(model.key)
    if known is None:
        params = {name: str(value)[:LONGEST] for name, value in model.params.items()}
        told = {"source_run_id": run, "tags": {**model.tags, KEY: model.key}, "params": params, "model_type": "winnow"}
        known = client.create_logged_model(origins.experiment, name=model.name, **told)
    elif new := {tag: value for tag, value in model.tags.items() if _is_news(tag, value, known.tags)}:
        client.set_logged_model_tags(known.model_id, new)
    if known.status != LoggedModelStatus.READY:
        _file(client, known, model)
        _tie(client, run, step, known.model_id, [ids[key] for key in model.parents if key in ids])
        client.finalize_logged_model(known.model_id, LoggedModelStatus.READY)
    return known.model_id, {metric.key for metric in known.metrics or ()}


def _is_news(tag: str, value: str, known: Mapping[str, str]) -> bool:
    """Who told of it first stays, and so does a description that somebody wrote."""
    foreign = tag == NOTE and not known.get(NOTE, OURS).startswith(OURS)
    return tag not in FIRST and not foreign and known.get(tag) != value


def _file(client: Any, known: Any, model: Model) -> None:
    with tempfile.TemporaryDirectory() as directory:
        described(known, model).save(str(Path(directory) / FILE))
        client.log_model_artifacts(known.model_id, directory)


def described(known: Any, model: Model) -> Described:
    """What MLflow reads as a model's schema and size. Sizes of a batch, and of a vocabulary that the config hides, are open."""
    import numpy as np
    from mlflow.models import Model as Described
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    config = json.loads(model.config() or "{}")
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or -1
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("int64"), (-1, -1), "input_ids")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, vocabulary), "logits")]),
    )
    size = model.metrics.get("bytes")
    return Described(
        artifact_path=known.artifact_location,
        run_id=known.source_run_id,
        model_id=known.model_id,
        model_uuid=known.model_id,
        signature=signature,
        metadata={name: value for name, value in model.tags.items() if name != NOTE},
        model_size_bytes=int(size) if size is not None else None,
    )


def _tie(client: Any, run: str, step: int, model: str, parents: list[str]) -> None:
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    if parents:
        client.log_inputs(run, models=[LoggedModelInput(parent) for parent in parents])
    client.log_outputs(run, [LoggedModelOutput(model, step)])
