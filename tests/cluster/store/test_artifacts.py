"""The key of an artifact never lies, and a record is believed only when it proves itself."""

import enum
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from cluster.store.artifacts import Artifact, Record, differences, nearest
from cluster.store.canonical import canonical_json

PARENT = "ab" * 32


class Shade(enum.StrEnum):
    DARK = "dark"


def artifact(stage="prune", version=1, label="wanda", params=None, parents=None) -> Artifact:
    return Artifact(stage, version, label, {"sparsity": 0.5} if params is None else params, parents or {})


def record(made: Artifact | None = None, **changes) -> Record:
    made = made or artifact(parents={"model": PARENT})
    addresses = {role: f"pretrain/dense-{key[:12]}" for role, key in made.parents.items()}
    files = {"model.safetensors": {"sha256": "cd" * 32, "bytes": 7}}
    return replace(Record.of(made, files, {"perplexity": 12.5}, 3.0, addresses, {"host": "here"}), **changes)


def test_canonical_json_sorts_and_packs():
    assert canonical_json({"b": [1, 1.0, True, None], "a": "é"}) == '{"a":"é","b":[1,1.0,true,null]}'


def test_a_tuple_is_the_list_that_yaml_would_give():
    assert canonical_json({"layers": (1, (2,))}) == canonical_json({"layers": [1, [2]]})


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        Path("x"),
        b"x",
        1 + 2j,
        Shade.DARK,
        numpy.float64(0.5),
        "\ud83d",
        {3: "x"},
        {True: "x"},
        {Shade.DARK: 1},
    ],
    ids=repr,
)
def test_whatever_json_would_bend_is_refused_with_its_path(value):
    with pytest.raises(TypeError, match=r"params\.layers\[1\]\.rate"):
        canonical_json({"params": {"layers": [0, {"rate": value}]}})


def test_a_value_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(TypeError, match="nested deeper"):
        canonical_json(loop)


def test_the_key_is_the_hash_of_what_can_be_written_by_hand():
    text = '{"params":{"sparsity":0.5},"parents":{},"stage":"prune","version":1}'
    assert artifact().key == hashlib.sha256(text.encode()).hexdigest()
    assert artifact().address == f"prune/wanda-{artifact().key[:12]}"


def test_the_order_of_parameters_is_not_in_the_key():
    assert artifact(params={"a": 1, "b": {"c": 2, "d": 3}}).key == artifact(params={"b": {"d": 3, "c": 2}, "a": 1}).key


def test_the_label_is_not_in_the_key():
    assert artifact(label="wanda").key == artifact(label="mine").key


@pytest.mark.parametrize(
    "other",
    [
        {"stage": "quantize"},
        {"version": 2},
        {"params": {"sparsity": 0.6}},
        {"params": {"sparsity": 1}},
        {"parents": {"model": PARENT}},
    ],
    ids=str,
)
def test_everything_else_is_in_the_key(other):
    assert artifact(**other).key != artifact().key


def test_the_key_does_not_follow_a_dictionary_that_changes_later():
    params = {"sparsity": 0.5}
    made = artifact(params=params)
    params["sparsity"] = 0.9
    assert made.key == artifact().key


@pytest.mark.parametrize("name", ["", "..", "a/b", "Wanda", "wan-da", "wanda\n", "x" * 101, 3])
def test_a_name_that_could_leave_its_directory_is_refused(name):
    with pytest.raises(ValueError, match="stage"):
        artifact(stage=name)
    with pytest.raises(ValueError, match="label"):
        artifact(label=name)


def test_a_parent_is_a_full_key_and_a_version_a_positive_integer():
    with pytest.raises(ValueError, match="parent 'model'"):
        artifact(parents={"model": PARENT[:12]})
    for version in (0, True, "1"):
        with pytest.raises(ValueError, match="version"):
            artifact(version=version)


def test_a_record_survives_the_trip_through_json():
    before = record()
    after = Record.from_json(before.to_json())
    assert after == before and after.key == before.key and after.address == before.address


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a\\b", "a\0b", "a\nb", "record.json", "x" * 256]
)
def test_a_file_name_that_leaves_the_artifact_is_refused(name):
    text = record().to_json().replace('"model.safetensors"', json.dumps(name))
    with pytest.raises(ValueError, match="file name"):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": {"sparsity": 0.9}}, "key"),
        ({"key": "00" * 32}, "key"),
        ({"address": "prune/wanda-000000000000"}, "address"),
        ({"surprise": 1}, "surprise"),
        ({"files": {"a": {"sha256": "xyz", "bytes": 1}}}, "sha256"),
        ({"files": {"a": {"sha256": "ab" * 32, "bytes": -1}}}, "bytes"),
        ({"files": [1]}, "files"),
        ({"metrics": {"loss": "low"}}, "loss"),
        ({"metrics": 3}, "metrics"),
        ({"seconds": None}, "seconds"),
        ({"created": "yesterday"}, "created"),
        ({"parent_addresses": {}}, "parent_addresses"),
        ({"parent_addresses": {"model": "../../etc-abababababab"}}, "parent 'model'"),
        ({"parent_addresses": {"model": "pretrain/dense-000000000000"}}, "parent 'model'"),
        ({"stage": "../x"}, "stage"),
    ],
    ids=str,
)
def test_a_record_of_the_wrong_shape_names_what_is_wrong(change, named):
    text = json.dumps({**json.loads(record().to_json()), **change})
    with pytest.raises(ValueError, match=named) as caught:
        Record.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["metrics", "seconds", "created", "environment", "files", "version", "digest"])
def test_no_field_of_a_record_can_be_edited_unnoticed(field):
    fields = json.loads(record().to_json())
    others = {
        "metrics": {**fields["metrics"], "loss": 0.1},
        "seconds": 0.5,
        "created": "2020-01-01T00:00:00.000+00:00",
        "environment": {"host": "another"},
        "files": {},
        "version": 7,
        "digest": "00" * 32,
    }
    assert others[field] != fields[field]
    with pytest.raises(ValueError, match="not a record: (something in it was changed, since its digest|its fields give)"):
        Record.from_json(json.dumps({**fields, field: others[field]}))


def test_the_digest_follows_from_values_and_not_from_how_they_are_written():
    made = record(metrics={"loss": numpy.float64(0.1), "perplexity": 12.5})
    assert Record.from_json(json.dumps(dict(reversed(json.loads(made.to_json()).items())))) == made


def test_a_record_of_a_winnow_without_digests_is_read_and_known_as_such():
    made = record()
    fields = json.loads(made.to_json())
    del fields["digest"]
    old = Record.from_json(json.dumps(fields))
    assert old == made and made.sealed and not old.sealed
    assert "digest" not in json.loads(old.to_json()) and not Record.from_json(old.to_json()).sealed
    with pytest.raises(ValueError, match="digest"):
        Record.from_json(json.dumps({**fields, "digest": None}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"stage": NaN}', "[" * 100_000, "\x00"])
def test_text_that_is_no_record_is_a_value_error(text):
    with pytest.raises(ValueError, match="not a record"):
        Record.from_json(text)


def test_a_result_that_is_not_finite_is_not_recorded():
    with pytest.raises(ValueError, match="metric 'loss' is nan"):
        record(metrics={"loss": float("nan")})


def test_differences_name_the_fields_by_their_dotted_path():
    first = artifact(version=2, params={"method": {"wanda": {"sparsity": 0.5}}, "seed": 1}, parents={"model": PARENT})
    second = record(artifact(params={"method": {"wanda": {"sparsity": 0.6}}, "steps": 3}, parents={"model": "0" * 64}))
    assert differences(first, second) == [
        "params.method.wanda.sparsity",
        "params.seed",
        "params.steps",
        "parents.model",
        "version",
    ]


def test_no_differences_exactly_when_the_keys_are_equal():
    assert differences(artifact(label="mine"), record(artifact())) == []
    assert differences(artifact(params={"sparsity": 1}), record(artifact(params={"sparsity": 1.0}))) != []


def test_nearest_is_the_record_of_the_same_stage_that_differs_least():
    far = record(artifact(params={"sparsity": 0.7, "seed": 1}))
    near = record(artifact(params={"sparsity": 0.5, "seed": 1}))
    elsewhere = record(artifact(stage="quantize", params={"sparsity": 0.5, "seed": 2}))
    wanted = artifact(params={"sparsity": 0.5, "seed": 2})
    assert nearest(wanted, [far, elsewhere, near]) == (near, ["params.seed"])
    assert nearest(wanted, [elsewhere]) is None
