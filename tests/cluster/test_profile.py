"""A profile or a YAML file is right, or it is refused in one line that names the place and the choices."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster import profile as profiles
from cluster.documents import DocumentError, load_yaml, parse_yaml
from cluster.profile import PROFILES, Profile, cores, load_profile


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(profiles, "Path", _NoDevices)


class _NoDevices(type(profiles.Path())):
    def glob(self, pattern):
        return iter(())


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_shipped_profile_loads(name):
    assert load_profile(name).name == name


def test_local_profile_gives_training_all_cores_and_others_one():
    profile = load_profile("local")
    assert (profile.resources("pretrain").cpus, profile.resources("pretrain").threads) == (cores(), cores())
    assert (profile.resources("prune").cpus, profile.resources("prune").ranks) == (1, 1)


def test_all_cores_are_shared_out_between_ranks(tmp_path):
    profile = load_profile(write(tmp_path, "ranks: 2\nstages: {pretrain: {cpus: all}, prune: {ranks: 1, cpus: 3}}"))
    assert profile.resources("pretrain").cpus == max(1, cores() // 2)
    resolved = {"cpus": 3, "gpus": 0, "memory": None, "ranks": 1, "threads": 3, "workers": 1}
    assert profile.resources("prune").model_dump() == resolved


def test_relative_places_begin_where_the_profile_is_read_and_stay_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = "store: made\nscratch: ~/scratch\nmlflow: {tracking_uri: 'sqlite:///runs.db'}"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    profile = load_profile(write(tmp_path, text))
    monkeypatch.chdir("/")
    assert profile.store == str(tmp_path / "made") and profile.scratch == str(tmp_path / "me" / "scratch")
    assert profile.mlflow.tracking_uri == f"sqlite:///{tmp_path}/runs.db"


def test_defaults_lie_under_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    assert Profile().store == str(tmp_path / "home" / "store")
    assert Profile().scratch == str(tmp_path / "home" / "scratch")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ranks: 0", "ranks: should be greater than or equal to 1, got 0"),
        ("zero: 4", "zero: should be 0, 1, 2 or 3, got 4"),
        ("engine: megatron", "engine: should be 'torch' or 'deepspeed', got 'megatron'"),
        ("precision: fp8", "precision: should be 'auto', 'float32' or 'bfloat16'"),
        ("device: tpu", "device: should be 'auto', 'cpu' or 'cuda'"),
        ("compile: sometimes", "compile: should be true, false or 'auto', got 'sometimes'"),
        ("micro_batch: many", "micro_batch: should be a valid integer"),
        ("retries: -1", "retries: should be greater"),
        ("checkpoint_every_seconds: 0", "checkpoint_every_seconds: should be greater than 0"),
        (
            "sparsity: 0.5",
            "no field 'sparsity'; choose one of activation_bytes, card, checkpoint_every_seconds, compile",
        ),
        ("ray: {adress: x}", "no field 'ray.adress'; choose one of address"),
        ("ray: {address: 'ray://head:10001'}", "ray.address: "),
        ("prefect: {api_url: 'http://me:secret@host/api'}", "prefect.api_url: "),
        ("mlflow: {tracking_uri: ./mlruns}", "mlflow.tracking_uri: should start with one of http://"),
        ("mlflow: {tracking_uri: 'http://me:hidden@x'}", "mlflow.tracking_uri: should hold no login; MLFLOW_TRACKING_USERNAME"),
        ("store: gs://bucket", "store: should be a local path or s3://bucket/prefix"),
        ("store: 's3://'", "store: should be a local path or s3://bucket/prefix"),
        ("scratch: s3://bucket", "scratch: should be a local path, got"),
        ("stages: {prune: {cpus: 0}}", "stages.prune.cpus"),
        ("stages: {prune: {cpus: some}}", "should be a number above 0 or 'all'"),
        ("stages: {prune: {gpu: 1}}", "no field 'stages.prune.gpu'"),
        ("device: cpu\nstages: {prune: {gpus: 1}}", "stages.prune.gpus is 1 but device is cpu"),
        ("device: cpu\ncard: H100", "card is H100 but device is cpu; leave one of them out"),
        ("engine: torch\nzero: 3", "zero is 3 but engine is torch, which shares nothing out; leave one of them out"),
        ("zero: 0\noffload: optimizer", "offload is optimizer but engine is deepspeed and zero is 0; set engine to deepspeed"),
        ("zero: true", "zero: should be 0, 1, 2 or 3, got True"),
        ("offload: true", "offload: should be 'none' or 'optimizer', got True"),
        ("recompute: false", "recompute: should be 'none', 'selective', 'layer' or 'auto', got False"),
        ("micro_batch: yes", "micro_batch: should be no true or false, got True"),
        ("stages: {prune: {ranks: true}}", "stages.prune.ranks: should be no true or false, got True"),
        ("card: V100", "card: should be 'A100', 'H100' or 'H200'"),
        ("ray: {address: 'http://a:8265'}\nstages: {speed: {cpus: all}}", "stages.speed.cpus: all is this machine's cores"),
    ],
)
def test_a_bad_value_is_one_line_with_field_and_choices(tmp_path, text, complaint):
    with pytest.raises(DocumentError) as caught:
        load_profile(write(tmp_path, text))
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("mine.yaml: ") and "\n" not in str(caught.value)


def test_fields_that_do_not_go_together_are_what_the_line_begins_with(tmp_path):
    for text, said in (("device: cpu\ncard: H100", "card is H100 but"), ("engine: torch\nzero: 3", "zero is 3 but")):
        with pytest.raises(DocumentError, match=f"^mine.yaml: {said}"):
            load_profile(write(tmp_path, text))


def test_a_run_whose_ranks_are_there_has_so_many_of_every_stage():
    given = Profile(ranks=2, stages={"pretrain": {"ranks": 4, "cpus": 3}}).under(3)
    assert [given.resources(stage).ranks for stage in ("pretrain", "recover")] == [3, 3]
    assert given.resources("pretrain").cpus == 3


def test_an_unknown_profile_is_answered_with_the_known_ones():
    with pytest.raises(DocumentError, match=r"no profile 'moon'; choose one of .*local"):
        load_profile("moon")


def test_a_profile_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Profile().ranks = 2


def test_a_gpu_asked_for_and_absent_is_refused(no_gpu):
    with pytest.raises(ValueError, match=r"profile 'a': device: cuda was asked for, but this machine has no usable GPU"):
        Profile(name="a", device="cuda").check_device()
    with pytest.raises(ValueError, match="gpus"):
        Profile(stages={"prune": {"gpus": 1}}).check_device()
    Profile(device="cuda", ray={"address": "http://gpu-cluster:8265"}).check_device()
    Profile(device="auto").check_device()


def test_checking_imports_nothing_heavy():
    code = "from cluster.profile import load_profile as l; l('local').check_device(); import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "mlflow", "prefect", "deepspeed", "transformers"} & set(modules)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\na: 2", 2, "key 'a' is given twice"),
        ("a: &x [1]\nb: 2", 1, "anchors and aliases"),
        ("a: 1\nb: *x", 2, "anchors and aliases"),
        ("a: !!python/object/apply:os.system ['true']", 1, "tag 'tag:yaml.org,2002:python"),
        ("a: !!str 1", 1, "tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: 1\n<<: {b: 2}\n", None, None),
        ("a:\n  b: [1, 2", 2, "expected ',' or ']'"),
        ("- 1\n- 2", 1, "found a list"),
        ("1: one", 1, "key 1 is not a string"),
        ("a: {b: 1, b: 2}", 1, "key 'b' is given twice"),
        ("a: \x00", 1, ""),
        ("a: 1\n---\nb: 2", 2, ""),
        ("[" * 5000, 1, ""),
    ],
)
def test_yaml_that_is_too_clever_is_refused_with_its_line(tmp_path, text, line, what):
    path = write(tmp_path, text)
    if line is None:
        assert load_yaml(path) == {"a": 1, "<<": {"b": 2}}  # merging is off, so the key means itself
        return
    with pytest.raises(DocumentError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}: ") and what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_and_an_endless_file_cost_nothing(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(DocumentError, match="anchors"):
        parse_yaml(bomb, "bomb")
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000_000)
    with pytest.raises(DocumentError, match="larger than"):
        load_yaml(path)
    with pytest.raises(DocumentError, match="No such file"):
        load_yaml(tmp_path / "absent.yaml")


def test_plain_yaml_is_plain(tmp_path):
    assert load_yaml(write(tmp_path, "")) == {}
    assert parse_yaml("a: 1e-3\nb: [yes, 2024-01-01, 0.5]\nc: 1.0e-3", "x")["c"] == 0.001


def test_numbers_are_those_of_yaml_1_2():
    read = parse_yaml("a: 2:4\nb: 1e-3\nc: 600_000\nd: -4.5E+2\ne: 0\nf: 010\ng: .5\nh: 1:8", "mine.yaml")
    assert read == {"a": "2:4", "b": 0.001, "c": 600_000, "d": -450.0, "e": 0, "f": "010", "g": 0.5, "h": "1:8"}
