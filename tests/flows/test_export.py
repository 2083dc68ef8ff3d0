"""What is handed on is a plain Hugging Face directory with a card that says how it was made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cluster.store.owners import owned
from flows.export import HALF, export_model, rebuild_model
from tasks.formats import read_sparse
from tasks.formats.mask import BrokenMask
from tasks.models.files import names
from tasks.models.files.checkpoint import load_model
from tasks.models.files.promises import check_masks
from tests.flows.command import winnow
from tests.tasks.models.files.test_compact import require_equal
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

ELSEWHERE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
print(model(**tokenizer("wheat", return_tensors="pt")).logits.shape[-1])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workshop, its pruned model, and an evaluation of it."""
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    data = shop.data()
    dense = shop.make("pretrain", {"model": LLAMA, **TRAINING, "tokens": 512}, data=data)
    pruned = shop.make("prune", {"method": "magnitude", "pattern": "2:4", **CALIBRATION}, data=data, model=dense)
    measured = shop.make("evaluate", {"method": "size"}, data=data, model=pruned)
    return shop, [data, dense, pruned], measured


def test_the_directory_holds_the_models_files_and_nothing_of_the_pipelines(made, tmp_path):
    shop, (_, _, pruned), _ = made
    export_model(shop.store, pruned, tmp_path / "out")
    found = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    own = {name for name in pruned.files if not name.startswith(("report/", "model", "names.json"))}
    assert found == own | {"README.md", "model.safetensors"}
    assert {"config.json", "tokenizer.json", "masks/masks.safetensors"} <= found


def test_what_takes_long_is_said_while_it_is_done(made, tmp_path):
    shop, (_, _, pruned), _ = made
    said: list[str] = []
    export_model(shop.store, pruned, tmp_path / "compact", compact=True, say=said.append)
    assert said == [
        "writing the plain directory",
        "coding sparse weights",
        "rebuilding the plain directory from them",
        "reading it back with plain transformers",
    ]


def test_others_may_read_all_that_is_handed_on(made, tmp_path):
    """As any new file of whoever runs it, also what the reader in the compact form writes."""
    shop, (_, _, pruned), _ = made
    export_model(shop.store, pruned, tmp_path / "out")
    export_model(shop.store, pruned, tmp_path / "compact", compact=True)
    rebuild_model(tmp_path / "compact", tmp_path / "again")
    read_sparse.rebuild(tmp_path / "compact", tmp_path / "compact")
    (tmp_path / "new").touch()
    modes = {path: path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).parts[0] for path in modes} == {"out", "compact", "again", "new"}
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}


def test_a_full_disk_is_named_and_nothing_is_left_on_it(made, tmp_path):
    """A file system of its own, which only root may mount."""
    shop, (_, _, pruned), _ = made
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        for compact in (False, True):
            with pytest.raises(OSError, match=rf"^no space left on the disk of {disk}/out.*; free some, or choose another dir"):
                export_model(shop.store, pruned, disk / "out", compact=compact)
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from flows import export
with export._whole(Path(sys.argv[1])) as scratch:
    (scratch / "plain").mkdir()
    (scratch / "plain" / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_no_reason_to_refuse_the_next(made, tmp_path):
    """Whoever looked saw an empty directory, since what lay in it is hidden."""
    shop, (_, _, pruned), _ = made
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "out" / HALF / "plain").exists()
    export_model(shop.store, pruned, tmp_path / "out")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_directory_that_an_export_writes_is_refused_and_left_alone(made, tmp_path):
    shop, (_, _, pruned), _ = made
    with owned(half := tmp_path / "out" / HALF):
        half.mkdir()
        with pytest.raises(ValueError, match=f"{half} is of an export that may go on; wait, remove it, or choose"):
            export_model(shop.store, pruned, tmp_path / "out")
        assert half.exists()


@pytest.mark.slow
def test_it_loads_where_winnow_is_not(made, tmp_path):
    shop, (_, _, pruned), _ = made
    export_model(shop.store, pruned, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        check=True,
    )
    assert done.stdout.strip() == "300"


def test_the_card_tells_lineage_measures_and_parameters(made, tmp_path):
    shop, chain, measured = made
    export_model(shop.store, chain[-1], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    places = [card.index(f"{number}. `{record.address}`") for number, record in enumerate(chain, 1)]
    assert places == sorted(places)
    for name in (*chain[-1].metrics, *measured.metrics):
        assert f"| {name} |" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert json.loads(card.split("```json")[1].split("```")[0]) == chain[-1].params


def test_the_card_tells_of_the_objective_that_was_minimised_alone(made, tmp_path):
    shop, (data, dense, pruned), _ = made
    recovered = {"method": "masked", **TRAINING, "tokens": 512}
    for name, more in (("own", {}), ("other", {"objective": {"reverse_kl": {"kl": 0.5}}})):
        model = shop.make("recover", {**recovered, **more}, data=data, model=pruned, teacher=dense)
        export_model(shop.store, model, tmp_path / name)
        told = json.loads((tmp_path / name / "README.md").read_text().split("```json")[1].split("```")[0])
        said = {field for field in ("ce", "kl", "temperature") if field in told["method"]["masked"]}
        assert said == ({"ce", "kl", "temperature"} if name == "own" else set())
        assert told.get("objective") == model.params.get("objective")
    assert told["objective"]["reverse_kl"]["kl"] == 0.5


def test_the_card_speaks_of_masks_where_there_are_and_of_what_quantized_weights_need(made, tmp_path):
    shop, (data, dense, pruned), _ = made
    gptq = {"method": {"round_to_nearest": {"group_size": 32}}, **CALIBRATION}
    cards = {}
    for record in (dense, pruned, shop.make("quantize", gptq, data=data, model=pruned)):
        out = tmp_path / record.stage
        export_model(shop.store, record, out)
        cards[record.stage] = (out / "README.md").read_text()
        assert ("masks/masks.safetensors" in cards[record.stage]) == (out / "masks" / "masks.safetensors").exists()
    assert "masks/masks" not in cards["pretrain"] and "`masks/masks.safetensors` holds" in cards["prune"]
    assert "compressed-tensors" not in cards["prune"]
    assert "from_pretrained`, with `compressed-tensors` installed (`pip install compressed-tensors`)" in cards["quantize"]


def test_the_card_says_of_zeros_codes_and_runtimes_what_is_so_of_this_model(made, tmp_path):
    shop, (data, dense, pruned), _ = made

    def card(record):
        export_model(shop.store, record, tmp_path / record.key)
        return (tmp_path / record.key / "README.md").read_text()

    def quantized(scheme, model=dense, **fields):
        method = {"round_to_nearest": {"scheme": scheme}}
        return card(shop.make("quantize", {"method": method, **fields, **CALIBRATION}, data=data, model=model))

    plain, sparse, both = card(dense), card(pruned), quantized({"W4A16": {"group_size": 32}}, pruned)
    assert "tags: [winnow]" in plain and "tags: [winnow, sparse]" in sparse and "tags: [winnow, sparse, quantized]" in both
    assert "Zeros in a matrix" not in plain and "Quantized weights" not in plain + sparse
    assert "Zeros in a matrix" in sparse and "Zeros in a matrix" in both and "Quantized weights decode" in both
    for served in (plain, sparse, both, quantized("FP8_DYNAMIC"), quantized("W8A8", kv_cache="FP8")):
        assert "vLLM reads the same directory: `vllm serve DIR`." in served
    assert "for 3-bit weights depends on" in quantized({"W3A16": {"group_size": 32}})
    assert "for 4-bit weights depends on" in quantized({"W4A8": {"group_size": 32}}), "with inputs of 8 bits"
    assert "for zero points and a cache of integers depends on" in quantized({"W8A8": {"symmetric": False}}, kv_cache="INT8")


def test_the_card_tells_what_was_before_and_what_a_weight_costs(made, tmp_path):
    shop, (_, dense, pruned), size = made
    export_model(shop.store, pruned, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| metric | value | `{dense.address}` | what it is |" in card
    assert "| sparsity | 0.5 | 0 | dead share of the prunable weights, from the masks (share) |" in card
    assert "| bits per prunable weight | 33." in card and "32.000 values, 1." in card  # float32, and a mask file
    assert "`vllm serve DIR`" in card and "they make this model no faster, and no smaller either" in card
    told = re.search(r"^\| bytes \| (\d+,\d+) \|", card, re.M)
    assert told and int(told[1].replace(",", "")) == size.metrics["bytes"]


def test_a_compact_export_is_smaller_says_how_to_use_it_and_gives_the_plain_one_back(made, tmp_path, capsys, monkeypatch):
    shop, (_, _, pruned), _ = made
    plain, compact, again = (str(tmp_path / name) for name in ("plain", "compact", "again"))
    monkeypatch.setattr("flows.cli.model_of", lambda artifact, profile: (pruned, shop.store))
    assert winnow("export", pruned.address, plain) == winnow("export", pruned.address, compact, "--compact") == 0
    assert winnow("export", "--rebuild", compact, again) == 0
    require_equal(tmp_path / "plain", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == (tmp_path / "plain" / "README.md").read_text()
    found = {path.relative_to(compact).as_posix() for path in (tmp_path / "compact").rglob("*") if path.is_file()}
    assert {"sparse/model.safetensors", "sparse/index.json", "read_sparse.py", "config.json", "tokenizer.json"} <= found
    assert not found & {"model.safetensors", "masks/masks.safetensors"}
    card = (tmp_path / "compact" / "README.md").read_text()
    assert "`python read_sparse.py` in this directory" in card and "16.000 values, 0." in card
    assert "they make this model smaller, not faster" in card
    capsys.readouterr()
    assert winnow("export", "--rebuild", compact, str(tmp_path / "third"), "--compact") == 2
    assert winnow("export", "--rebuild", plain, str(tmp_path / "third")) == 2
    refused = capsys.readouterr().err.splitlines()
    assert "give one of them" in refused[0] and "is no compact model: it has no sparse/index.json" in refused[1]
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("compact", [False, True])
def test_what_does_not_read_back_leaves_nothing_behind(made, tmp_path, monkeypatch, compact):
    shop, (_, _, pruned), _ = made
    write = names.write_shards

    def broken(files, directory, **bounds):
        write(files, directory, **bounds)
        state = load_file(directory / "model.safetensors")
        state["model.layers.0.mlp.up_proj.weight"][0] = 1.0
        save_file(state, directory / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(names, "write_shards", broken)
    with pytest.raises(BrokenMask, match=r"up_proj.weight is broken: 16 dead weights are not zero as transformers loads them"):
        export_model(shop.store, pruned, tmp_path / "out", compact)
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenMask):
        export_model(shop.store, pruned, tmp_path / "empty", compact)
    assert list((tmp_path / "empty").iterdir()) == []


def test_everything_that_a_source_has_beside_its_weights_reaches_the_export(made, tmp_path):
    """Through pruning and quantization, plain and compact: generation config, chat templates, processors, licence."""
    shop, (data, dense, _), _ = made
    source = tmp_path / "source"
    export_model(shop.store, dense, source)
    beside = {
        "generation_config.json": '{"eos_token_id": 1, "temperature": 0.6, "do_sample": true}',
        "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "additional_chat_templates/tools.jinja": "{{ tools }}",
        "preprocessor_config.json": '{"image_processor_type": "CLIPImageProcessor"}',
        "processor_config.json": '{"processor_class": "LlavaProcessor"}',
        "video_preprocessor_config.json": "{}",
        "LICENSE": "anyone may",
    }
    for name, text in beside.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    model = {"checkpoint": str(source)}
    pruned = shop.make("prune", {"method": "magnitude", "pattern": "2:4", "model": model, **CALIBRATION}, data=data)
    rounded = {"method": {"round_to_nearest": {"group_size": 32}}, **CALIBRATION}
    packed = shop.make("quantize", rounded, data=data, model=pruned)
    for record, compact in ((pruned, False), (packed, False), (packed, True)):
        out = tmp_path / f"{record.stage}-{compact}"
        export_model(shop.store, record, out, compact)
        assert {name: (out / name).read_text() for name in beside} == beside
        tokenizer = [file.name for file in source.glob("tokenizer*")]
        assert tokenizer and all((out / name).read_bytes() == (source / name).read_bytes() for name in tokenizer)


def test_neither_a_damaged_record_elsewhere_nor_a_lost_ancestor_holds_up_an_export(made, tmp_path, capsys):
    shop, (data, dense, pruned), measured = made
    fields = {"method": "magnitude", "sparsity": 0.3, **CALIBRATION}
    other = shop.make("prune", fields, data=data, model=dense)
    strange = shop.make("evaluate", {"method": "size"}, data=data, model=other)
    (shop.store.root / strange.address / "record.json").write_text("{")
    parent = shop.store.root / dense.address
    parent.rename(tmp_path / "lost")
    try:
        export_model(shop.store, pruned, tmp_path / "out")
    finally:
        (tmp_path / "lost").rename(parent)
        shop.store.discard(strange.address)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{dense.address}` (its record cannot be read any more)" in card and f"`{pruned.address}`" in card
    assert all(f"| {name} |" in card for name in measured.metrics)
    (line,) = capsys.readouterr().err.splitlines()
    assert strange.address in line and "left out" in line


def test_what_is_no_model_and_a_directory_in_use_are_refused(made, tmp_path):
    shop, (data, _, pruned), _ = made
    with pytest.raises(ValueError, match=f"{data.address} is no model; choose one of the artifacts of"):
        export_model(shop.store, data, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ValueError, match="is there already; choose a new directory"):
        export_model(shop.store, pruned, tmp_path / "used")
    with pytest.raises(ValueError, match="is there already; choose a new directory"):
        export_model(shop.store, pruned, tmp_path / "used" / "file")


def test_a_model_that_plain_transformers_would_load_wrong_is_not_exported(made, tmp_path):
    shop, (data, _, _), _ = made
    fields = {**TRAINING, "tokens": 512}
    parallel, wide = (
        shop.make("pretrain", {"model": {**LLAMA, "transform": name}, **fields}, data=data) for name in ("parallel", "wide")
    )
    with pytest.raises(ValueError, match=f"{parallel.address} has the surgery transform, which plain"):
        export_model(shop.store, parallel, tmp_path / "parallel")
    assert not (tmp_path / "parallel").exists()
    export_model(shop.store, wide, tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["hidden_size"] == 64


def test_a_model_of_narrower_networks_is_filled_up_to_what_plain_transformers_loads(made, tmp_path):
    shop, (data, dense, _), _ = made
    fields = {"method": "cfsp", "pattern": "channel", "sparsity": 0.3, **CALIBRATION}
    small = shop.make("prune", fields, data=data, model=dense)
    sparse = shop.make("prune", {"method": "magnitude", "sparsity": 0.5, **CALIBRATION}, data=data, model=small)
    tokens = torch.arange(16)[None]
    for record in (small, sparse):
        export_model(shop.store, record, tmp_path / record.key)
        assert "channels of zeros fill them up" in (tmp_path / record.key / "README.md").read_text()
        with torch.inference_mode():
            stock = AutoModelForCausalLM.from_pretrained(tmp_path / record.key)(tokens).logits
            torch.testing.assert_close(stock, load_model(shop.path(record))(tokens).logits, rtol=0, atol=1e-5)
    check_masks(tmp_path / sparse.key)
