"""Every kind of bad input is one line that names the field and the choices, before anything starts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.profile import load_profile
from flows.launch import launch
from flows.plan import prepare

GOOD = {
    "name": "good",
    "model": {"architecture": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                               "num_attention_heads": 2, "num_key_value_heads": 2}},
    "evaluate": {"size": {}},
    "stages": [
        {"prepare": {"corpus": "stdlib", "tokenizer": {"train": 300}}},
        {"pretrain": {"method": "dense", "tokens": 1000}},
        {"prune": {"method": "wanda", "pattern": "2:4"}},
        {"recover": {"tokens": 1000}},
        {"quantize": {"method": {"gptq": {"group_size": 64}}}},
    ],
}


def edited(path: str, value: object) -> dict:
    """GOOD with one place changed; path parts are keys or list positions, '!' deletes."""
    recipe = copy.deepcopy(GOOD)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = recipe
    for part in way:
        place = place[part]
    if value == "!":
        del place[last]
    else:
        place[last] = value
    return recipe


TABLE = [
    ("stages/1", {"pretrian": {}}, "no stage 'pretrian'; choose one of prepare, pretrain, prune"),
    ("stages/2/prune/method", "wonda", "no method 'wonda' in tasks.pruners; choose one of cfsp, dsnot, heads, magnitude"),
    ("stages/2/prune/method", {"wanda": {"alpah": 1}}, "wanda.alpah: no such field"),
    ("stages/2/prune/sparsty", 0.5, "recipe.stages[2].prune.sparsty: no such field; choose one of"),
    ("stages/2/prune", {"method": "wanda", "sparsity": 1.0}, "recipe.stages[2].prune.sparsity: input should be less than 1"),
    ("stages/2/prune", {"method": "wanda", "sparsity": -0.1}, "sparsity: input should be greater than or equal to 0"),
    ("stages/2/prune", {"method": "wanda"}, "sparsity is needed with pattern unstructured"),
    ("stages/2/prune/sparsity", 0.7, "pattern 2:4 means sparsity 0.5, which contradicts 0.7"),
    ("stages/2/prune/pattern", "4:4", "0 < N < M"),
    ("stages/2/prune/pattern", "hexagonal", "no pattern 'hexagonal'; choose one of unstructured"),
    ("stages/2/prune/pattern", "3:7", "divisible by 7"),
    ("stages/2/prune/method", "cfsp", "cfsp cannot keep pattern 2:4; choose one of channel"),
    ("stages/2/prune", {"method": "dsnot", "pattern": "block:4", "sparsity": 0.5}, "dsnot cannot keep pattern block:4"),
    ("stages/2/prune", {"method": "sparsegpt", "pattern": "neuron", "sparsity": 0.5}, "sparsegpt cannot keep pattern neuron"),
    ("stages/2/prune/method", {"dsnot": {"initial": "wonda"}}, "no method 'wonda' in tasks.pruners"),
    ("stages/2/prune/method", {"magnitude": {"scope": "global"}}, "scope global ranks single weights of the whole model"),
    ("stages/2/prune/method", {"magnitude": {"scope": "column"}}, "scope: input should be 'row', 'layer' or 'global'"),
    ("stages/2/prune", {"method": {"wanda": {"adaptive": True}}, "pattern": "unstructured:row", "sparsity": 0.5},
     "adaptive moves sparsity between rows"),
    ("stages/2/prune", {"method": {"magnitude": {"scope": "global"}}, "pattern": "unstructured:row", "sparsity": 0.5},
     "scope global ranks single weights of the whole model"),
    ("stages/2/prune/allocator", {"sensitivity": {"pruner": "heads"}}, "heads cannot keep pattern unstructured"),
    ("stages/2/prune/allocator", "owl", "pattern 2:4 fixes the sparsity of every matrix, and allocator owl would vary it"),
    ("stages/2/prune/allocator", "olw", "no method 'olw' in tasks.allocators; choose one of cfsp, erk, magnitude, owl"),
    ("stages/2/prune/allocator", {"table": {"sparsities": {"mlp": 2}}}, "the sparsity of 'mlp' must be in [0, 1), got 2"),
    ("stages/2/prune/sparsity", "essential", "sparsity essential is looked for, and pattern 2:4 fixes it"),
    ("stages/2/prune", {"method": "wanda", "sparsity": "essential", "allocator": {"table": {"sparsities": {"mlp": 0.5}}}},
     "sparsity essential is looked for, and allocator table fixes it"),
    ("stages/2", {"from": "prepare", "prune": {"method": "wanda", "sparsity": 0.5}},
     "recipe.stages[2].prune: an architecture has no weights; put a pretrain stage before it"),
    ("stages/2/prune", {"method": "magnitude", "pattern": "block:5", "sparsity": 0.5}, "divisible by 5"),
    ("stages/2/prune", {"method": {"dsnot": {"initial": "dsnot"}}, "sparsity": 0.5}, "dsnot refines a mask itself"),
    ("stages/3", {"id": "again", "prune": {"method": "heads", "pattern": "channel", "sparsity": 0.5}},
     "recipe.again: heads takes no model with masks, and an earlier prune leaves some; prune with heads first"),
    ("stages/2/prune", {"method": "cfsp", "pattern": "channel", "sparsity": 0.5},
     "recipe.quantize: no quantized format has feed-forward networks of different widths; prune with cfsp: {shrink: false}"),
    ("stages/2/prune/sparsity", "half", "input should be a number or essential, got 'half'"),
    ("stages/4/quantize/method", {"gptq": {"group_size": 48}}, "group_size 48 does not divide the input width 64"),
    ("stages/4/quantize/method", {"gptq": {"symmetric": False, "group_size": 64}}, "does not read packed asymmetric weights"),
    ("stages/4/quantize/method", {"gptq": {"bits": 17}}, "gptq.bits: input should be less than or equal to 8"),
    ("stages/1/pretrain/tokens", 0, "recipe.stages[1].pretrain.tokens: input should be greater than 0"),
    ("stages/1/pretrain/tokens", -5, "tokens: input should be greater than 0"),
    ("stages/1/pretrain/learning_rate", float("inf"), "pretrain.learning_rate: input should be a finite number"),
    ("stages/2/prune", {"method": "wanda", "sparsity": float("nan")}, "input should be a finite number, got nan"),
    ("stages/1/pretrain/batch", 0, "pretrain.batch: input should be greater than 0"),
    ("stages/1/pretrain/length", 4096, "length 4096 is more than the model's 2048 positions"),
    ("stages/1/pretrain/method", {"gradual": {"sparsity": 1.5}}, "gradual.sparsity: input should be less than 1"),
    ("stages/1/pretrain/method", {"gradual": {"start": 0.8, "end": 0.2}}, "start must come before end"),
    ("stages/0/prepare/corpus", {"stdlib": {"only": ["nosuch"]}}, "corpus stdlib: no package or module 'nosuch'"),
    ("stages/0/prepare/corpus", {"sequence": {"one": "stdlib"}}, "at least 2 items"),
    ("stages/0/prepare/corpus", {"sequence": {"A": "stdlib", "b": "stdlib"}}, "task 'A' is no name"),
    ("stages/0/prepare/tokenizer", "earlier", "no tokenizer (tokens) upstream; put the prepare stage that trains it before"),
    ("stages/1/pretrain/method", "sparcl", "sparcl learns a sequence of corpora, and corpus is one"),
    ("stages/1/grid", {"method.sparsty": [0.5]}, "no such field"),
    ("claims", [{"says": "x", "stage": "pretrain", "order": ["a", "b"]}], "recipe.claims[0].order: no group 'a'"),
    ("stages/3/recover/method", {"masked": {"ce": 0, "kl": 0}}, "ce and kl are both 0"),
    ("stages/0/prepare/corpus", "nosuch", "no corpus 'nosuch'; choose one of stdlib, files, hub"),
    ("stages/0/prepare/corpus", {"files": {"paths": ["/nosuch/*.txt"]}}, "corpus file /nosuch/*.txt: does not exist"),
    ("stages/0/prepare/corpus", {"hub": {"dataset": "x"}}, "revision: field required"),
    ("stages/0/prepare/tokenizer", {}, "a tokenizer names either train"),
    ("stages/0/prepare/tokenizer", {"train": 10}, "tokenizer.train: input should be greater than or equal to 257"),
    ("stages/0/prepare/heldout", 0.9, "prepare.heldout: input should be less than 0.5"),
    ("model/architecture/vocab_size", 200, "the tokenizer has 300 tokens, more than the model's vocab_size 200"),
    ("model/architecture/model_type", "lama", "no causal language model type 'lama'"),
    ("model/architecture/hiden_size", 64, "model type llama has no config field 'hiden_size'"),
    ("model", {"checkpoint": "/nosuch"}, "no model directory /nosuch"),
    ("model", {"checkpoint": {"hub": "a/b"}}, "a hub checkpoint needs a revision"),
    ("model", {}, "a model names either architecture or checkpoint"),
    ("model", "!", "pretrain.model"),
    ("model/transform", "narrow", "no method 'narrow' in tasks.transforms; choose one of doped, factorized, parallel, wide"),
    ("model/transform", {"wide": {"sparsity": 1}}, "recipe.model.transform: wide.sparsity: input should be less than 1"),
    ("model/transform", {"wide": {"sparsity": -0.1}}, "wide.sparsity: input should be greater than or equal to 0"),
    ("model/transform", {"wide": {"sparsty": 0.5}}, "wide.sparsty: no such field; choose one of sparsity"),
    ("model/transform", {"parallel": {"activation": "tanh"}}, "parallel.activation: input should be 'relu' or 'identity'"),
    ("stages/1/pretrain/method", {"gradual": {"sparsity": "iso"}},
     "recipe.stages[1].pretrain.method.gradual.sparsity: iso needs a model with a transform; give a number"),
    ("model", {"checkpoint": "/nosuch", "transform": "wide"}, "a transform needs an architecture"),
    ("model", {"architecture": {"model_type": "mixtral"}, "transform": "doped"}, "is a fused stack of experts; choose wide"),
    ("model", {"architecture": GOOD["model"]["architecture"], "transform": {"wide": {"sparsity": 0.99}}},
     "transform wide: what stays dense at sparsity 0.99 alone costs more than the dense model"),
    ("evaluate", ["nosuch"], "no method 'nosuch' in tasks.evaluators; choose one of"),
    ("name", "Bad Name", "recipe.name"),
    ("seed", -1, "recipe.seed: input should be greater than or equal to 0"),
    ("stages", [], "recipe.stages"),
    ("stages/3", {"id": "prune", "recover": {"tokens": 10}}, "recipe.stages[3].id: 'prune' is taken"),
    ("stages/3", {"from": "nowhere", "recover": {"tokens": 10}}, "no earlier stage 'nowhere'; choose one of"),
    ("stages/0", {"prune": {"method": "wanda", "pattern": "2:4"}}, "tokens) upstream; put a prepare stage before it"),
]


REGIMES = [
    ("static", {"sparsity": 1.0}, "static.sparsity: input should be less than 1"),
    ("static", {"allocator": "erkk"}, "no method 'erkk' in tasks.allocators; choose one of"),
    ("static", {"budget": "steps"}, "static.budget: input should be 'compute' or 'tokens'"),
    ("rigl", {"interval": 0}, "rigl.interval: input should be greater than 0"),
    ("rigl", {"fraction": 1.5}, "rigl.fraction: input should be less than or equal to 1"),
    ("set", {"end": 0}, "set.end: input should be greater than 0"),
    ("dsl", {"final_fraction": -1}, "dsl.final_fraction: input should be greater than or equal to 0"),
    ("gradual", {"schedule": "linear"}, "gradual.schedule: input should be 'exponential', 'cubic' or 'one_shot'"),
    ("ste", {"pattern": "unstructured"}, "pattern is N:M (like 2:4) in this method, got unstructured"),
    ("ste", {"pattern": "4:2"}, "0 < N < M"),
    ("sr_ste", {"pattern": "3:7"}, "pattern 3:7 needs an input width divisible by 7"),
    ("sr_ste", {"decay": -1}, "sr_ste.decay: input should be greater than or equal to 0"),
    ("sr_ste", {"decay": float("inf")}, "sr_ste.decay: input should be a finite number"),
    ("mdgf_exponential", {"rate": float("inf")}, "mdgf_exponential.rate: input should be a finite number"),
    ("ste", {"location": "head"}, "ste.location: input should be 'ffn' or 'all'"),
    ("mdgf_linear", {"dense": 0.6, "hard": 0.5}, "dense and hard must leave room between them"),
    ("mdgf_exponential", {"backward": "none"}, "mdgf_exponential.backward: input should be 'ste' or 'decay'"),
    ("mdgf_exponential", {"rate": 0}, "mdgf_exponential.rate: input should be greater than 0"),
    ("sdgf_geometric", {"pattern": "2:16"}, "first frame 16:128 of pattern 2:16 needs an input width divisible by 128"),
    ("fst", {"refresh": 0}, "fst.refresh: input should be greater than 0"),
    ("fst", {"dense": 1}, "fst.dense: input should be less than 1"),
    ("s_ste", {"mvue": "maybe"}, "s_ste.mvue: input should be a valid boolean"),
    ("sparcl", {"removed": 1}, "sparcl.removed: input should be less than 1"),
    ("sparcl", {"replay": 0}, "sparcl.replay: input should be greater than 0"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    return tmp_path


def refusal(recipe: dict, home: Path) -> str:
    path = home / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError) as refused:
        prepare(str(path), load_profile("local"))
    return str(refused.value)


def test_the_good_recipe_is_accepted(home: Path) -> None:
    (home / "recipe.yaml").write_text(yaml.safe_dump(GOOD))
    plan, _ = prepare(str(home / "recipe.yaml"), load_profile("local"))
    assert [step.id for step in plan.due][:3] == ["prepare", "pretrain", "pretrain.evaluate"]


@pytest.mark.parametrize(("path", "value", "expected"), TABLE, ids=[f"{path}={value}"[:60] for path, value, _ in TABLE])
def test_a_bad_field_is_refused_in_one_line(path: str, value: object, expected: str, home: Path) -> None:
    message = refusal(edited(path, value), home)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(("method", "fields", "expected"), REGIMES, ids=[f"{name}={fields}" for name, fields, _ in REGIMES])
def test_a_bad_field_of_a_regime_is_refused_in_one_line(method: str, fields: dict, expected: str, home: Path) -> None:
    message = refusal(edited("stages/1/pretrain/method", {method: fields}), home)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8 (byte 0)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: malformed JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl, line 1: no text field 'text'; it has body"),
        ("a.parquet", b"nonsense", "not a Parquet file"),
        ("a.jsonl", b"", "corpus is too small: 0 documents with text"),
        ("a.txt", b"one document", "corpus is too small: 1 documents with text"),
        ("a.csv", b"x", "unknown kind; choose one of .txt, .jsonl, .parquet"),
        ("a.parquet.gz", b"x", "unknown kind; choose one of .txt, .jsonl, .parquet"),
        ("a.txt.7z", b"x", "unknown kind; choose one of .txt, .jsonl, .parquet"),
        ("a.txt", "text".encode("utf-16"), "a.txt: not UTF-8 (byte 0); it looks like UTF-16"),
        ("a.txt", b"\x1f\x8b\x08\x00", "a.txt: not UTF-8 (byte 1); it looks like gzip"),
        ("a.txt", b"\xef\xbb\xbfplain\r\nlat\xe9", "a.txt: not UTF-8 (byte 13)"),
        ("a.jsonl", b'{"text": "x"}\r\n{"text": "\xe9"}\n', "a.jsonl, line 2: not UTF-8 (byte 25 of the file)"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "\xe9"}\n', "a.jsonl, line 1: not UTF-8 (byte 13 of the file)"),
        ("a.jsonl", b'{"text": "x"}\n\n[1]\n', "a.jsonl, line 3: a JSON object is needed in each line, got [1]"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', "a.jsonl, line 2: field 'text' is null; nulls: skip"),
        ("a.jsonl", b'{"text": ["x"]}\n', "a.jsonl, line 1: no text field 'text'; it is ['x']"),
        ("a.jsonl", b'{"text": 7}\n', "a.jsonl, line 1: no text field 'text'; it is 7"),
        ("a.jsonl", b"{}\n", "a.jsonl, line 1: no text field 'text'; it has none"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "a.jsonl, line 1: field 'text' has half of a character (\\ud83d)"),
        ("a.jsonl", b'{"text": %s}\n' % (b"1" * 5000), "a.jsonl, line 1: malformed JSON (Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: malformed JSON (maximum recursion depth"),
        ("a.jsonl.gz", b'{"text": "x"}\n', "a.jsonl.gz: damaged or not packed as its name says"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.txt: is a git-lfs pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.parquet: is a git-lfs pointer"),
    ],
)
def test_a_bad_corpus_file_is_named_with_its_line(name: str, content: bytes, expected: str, home: Path) -> None:
    (home / name).write_bytes(content)
    message = refusal(edited("stages/0/prepare/corpus", {"files": {"paths": [str(home / name)]}}), home)
    assert expected in message
    assert str(home / name) in message or "too small" in message


def corpus_refusal(home: Path, path: str, **fields: object) -> str:
    message = refusal(edited("stages/0/prepare/corpus", {"files": {"paths": [path], **fields}}), home)
    assert "\n" not in message
    return message


def test_a_parquet_column_that_holds_no_text_is_refused_by_its_schema(home: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"body": ["x"], "ids": [7], "tokens": [["x"]], "parts": [{"x": "y"}], "raw": [b"\xff"], "void": [None]}
    parquet.write_table(pyarrow.table(columns), home / "a.parquet")
    kinds = {"ids": "int64", "tokens": "list<", "parts": "struct<x: string>", "void": "null"}
    for field, kind in kinds.items():
        message = corpus_refusal(home, str(home / "a.parquet"), field=field)
        assert f"a.parquet: field '{field}' is {kind}" in message and message.endswith(", no text; choose one of body, raw")
    message = corpus_refusal(home, str(home / "a.parquet"), field="raw")
    assert message.endswith("a.parquet, row 0: field 'raw' is not UTF-8 (byte 0 of it)")


def test_a_damaged_parquet_file_is_refused_with_its_row(home: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [f"document {number} " * 40 for number in range(3000)]
    parquet.write_table(pyarrow.table({"text": texts}), home / "a.parquet", row_group_size=1000, use_dictionary=False)
    content = bytearray((home / "a.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    (home / "a.parquet").write_bytes(content)
    assert "a.parquet, from row 1000 on: not a Parquet file, or a damaged one" in corpus_refusal(home, str(home / "a.parquet"))


def test_a_path_that_is_no_file_is_refused_with_what_to_write(home: Path) -> None:
    (home / "folder").mkdir()
    (home / "link.txt").symlink_to(home / "gone.txt")
    os.mkfifo(home / "pipe.txt")
    assert corpus_refusal(home, str(home / "folder")).endswith(
        f"corpus file {home}/folder: is a folder; write which of its files, like {home}/folder/**/*.jsonl"
    )
    assert f"link.txt: is a link to {home}/gone.txt, which does not exist" in corpus_refusal(home, str(home / "link.txt"))
    assert corpus_refusal(home, str(home / "pipe.txt")).endswith("pipe.txt: is no regular file")
    assert corpus_refusal(home, str(home / "*.nothing")).endswith("*.nothing: does not exist")
    assert "s3:///a.txt: no S3 address" in corpus_refusal(home, "s3:///a.txt")
    assert "nulls: input should be 'refuse' or 'skip'" in corpus_refusal(home, str(home / "folder"), nulls="keep")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no model in"),
        ({"config.json": json.dumps({"model_type": "llama"}), "pytorch_model.bin": ""}, "no safetensors weights, only pickled"),
        ({"config.json": json.dumps({"model_type": "llama"})}, "no safetensors weights"),
        ({"config.json": json.dumps({"model_type": "llama", "auto_map": {}}), "model.safetensors": ""}, "brings its own code"),
    ],
)
def test_a_bad_checkpoint_is_refused(files: dict[str, str], expected: str, home: Path) -> None:
    directory = home / "checkpoint"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(content)
    assert expected in refusal(edited("model", {"checkpoint": str(directory)}), home)


PROFILES = [
    ("ranks: 0", "ranks"),
    ("zero: 4", "zero"),
    ("engine: megatron", "engine"),
    ("ranks: 1\nranks: 2", "'ranks' is given twice"),
    ("name: !!python/object:os.system x", "tag"),
    ("a: &a [x]\nb: *a", "anchors and aliases"),
    ("nosuch: 1", "no field 'nosuch'; choose one of"),
    ("checkpoint_every_seconds: .inf", "checkpoint_every_seconds: should be a finite number"),
    ("device: cuda", "no usable GPU"),
    ("store: /proc/nosuch", "store"),
]


@pytest.mark.parametrize(("text", "expected"), PROFILES)
def test_a_bad_profile_is_refused_in_one_line(text: str, expected: str, home: Path) -> None:
    (home / "profile.yaml").write_text(text)
    (home / "recipe.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises((ValueError, OSError)) as refused:
        prepare(str(home / "recipe.yaml"), load_profile(home / "profile.yaml"))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_exits_with_2_and_one_line_and_starts_nothing(home: Path) -> None:
    (home / "recipe.yaml").write_text(yaml.safe_dump(edited("stages/2/prune/method", "wonda")))
    command = [sys.executable, "-X", "importtime", "-m", "flows.cli", "run", str(home / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WINNOW_HOME": str(home)}, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("winnow: recipe.stages[2].prune.method: no method 'wonda'")
    assert not imported & {"torch._C", "ray", "prefect", "mlflow", "transformers"}
    assert not (home / "services.json").exists()


def test_a_service_that_is_not_there_is_one_line_before_anything_starts(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (home / "recipe.yaml").write_text(yaml.safe_dump(GOOD))
    (home / "profile.yaml").write_text("mlflow: {tracking_uri: 'http://127.0.0.1:9'}")
    with pytest.raises(ConnectionError, match="^mlflow.tracking_uri http://127.0.0.1:9 does not answer: .*mend the address$"):
        launch(str(home / "recipe.yaml"), str(home / "profile.yaml"), Console(quiet=True), quiet=True, here=False)
    assert not (home / "home" / "services.json").exists()


def test_help_needs_no_heavy_import() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flows.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"torch", "torch._C", "ray", "prefect", "mlflow", "transformers", "deepspeed", "pydantic", "numpy", "scipy"}
    assert not imported & heavy


@pytest.mark.parametrize(("given", "iso"), [(0.75, None), (0.5, "0.75"), (0, "0.75")])
def test_a_sparsity_that_does_not_pay_for_the_transform_is_refused_with_the_one_that_does(given, iso, home: Path) -> None:
    recipe = edited("model/transform", {"parallel": {"sparsity": 0.75}})
    recipe["stages"] = [recipe["stages"][0], {"pretrain": {"method": {"gradual": {"sparsity": given}}, "tokens": 1000}}]
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if iso is None:
        assert prepare(str(home / "recipe.yaml"), load_profile("local"))[0].due
        return
    message = refusal(recipe, home)
    assert message == (f"recipe.pretrain: method.gradual.sparsity: {given:g} does not make the model cost what it costs dense; "
                       f"with transform parallel choose {iso}")
