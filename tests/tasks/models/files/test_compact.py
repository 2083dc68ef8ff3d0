"""A compact model gives the plain one back to the bit, by our code and by the program beside it; damage is one line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.formats import read_sparse
from tasks.formats.mask import load_masks
from tasks.methods import build
from tasks.models.export import export_compressed
from tasks.models.files.checkpoint import load_extras, save_model, skeleton
from tasks.models.files.compact import rebuild_plain, write_compact
from tasks.models.files.layout import INDEX, MASKS
from tasks.models.files.names import usual_names, write_as_on_hub, write_names
from tasks.models.files.promises import check_model
from tasks.models.files.shards import TensorFiles, header, write_shards
from tasks.models.stream.blocks import BlockStream
from tests.tasks import models_zoo as zoo


def pruned(directory, architecture="llama", dtype=torch.float32, pattern="2:4", sparsity=0.5, **overrides):
    """A sparse model as a plain directory, masks beside it."""
    model = zoo.model(architecture, dtype=dtype, **overrides)
    save_model(model.state_dict(), model.config, directory / "dense")
    stream = BlockStream(directory / "dense", directory / "sparse-model")
    walk(stream, zoo.batches(), build("pruners", "wanda"), sparsity=sparsity, pattern=pattern)
    return directory / "sparse-model"


def quantized(directory, method, **fields):
    source = pruned(directory, **fields)
    quantizer = build("quantizers", method)
    walk(BlockStream(source, directory / "solved"), zoo.batches(), quantizer)
    export_compressed(directory / "solved", load_extras(directory / "solved"), quantizer.scheme_of, directory / "packed")
    return directory / "packed"


def require_equal(plain, rebuilt):
    """The same tensors in the same files, to the bit, the same masks, the same companions."""
    first, second = TensorFiles(plain), TensorFiles(rebuilt)
    assert set(first) == set(second)
    for name in first:
        assert first.entry(name)["dtype"] == second.entry(name)["dtype"] and first.shape(name) == second.shape(name)
        assert first.places[name].file.name == second.places[name].file.name
        one, other = first.read([name])[name], second.read([name])[name]
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), name
    masks, others = load_masks(plain / MASKS), load_masks(rebuilt / MASKS)
    assert masks.keys() == others.keys()
    for name, mask in masks.items():
        assert torch.equal(mask.packed, others[name].packed)
        assert {**vars(mask), "packed": 0, "live": 0} == {**vars(others[name]), "packed": 0, "live": 0}
    companions = {file.name for file in plain.iterdir() if file.suffix == ".json"}
    assert companions <= {file.name for file in rebuilt.iterdir()}


def there_and_back(plain, directory):
    write_compact(plain, directory / "compact")
    (directory / "rebuilt").mkdir()
    rebuild_plain(directory / "compact", directory / "rebuilt")
    require_equal(plain, directory / "rebuilt")
    return directory / "compact"


def size(directory):
    return sum(file.stat().st_size for file in directory.glob("model*.safetensors"))


def content(directory):
    """The bytes of tensors: what files say of them is most of a model as small as these."""
    return size(directory) - sum(header(file)[2] for file in directory.glob("model*.safetensors"))


@pytest.mark.parametrize(
    ("architecture", "dtype", "pattern", "sparsity"),
    [
        ("llama", torch.bfloat16, "2:4", 0.5),
        ("gpt2", torch.float32, "2:4", 0.5),  # transposed matrices, a tied head
        ("gemma", torch.float16, "unstructured", 0.7),  # a tied head
        ("gpt_oss", torch.bfloat16, "4:8", 0.5),  # fused experts, stored transposed
        ("mixtral", torch.float32, "unstructured", 0.3),
    ],
)
def test_sparse_models_come_back_to_the_bit_and_masks_are_not_stored_twice(architecture, dtype, pattern, sparsity, tmp_path):
    plain = pruned(tmp_path, architecture, dtype, pattern, sparsity)
    compact = there_and_back(plain, tmp_path)
    check_model(tmp_path / "rebuilt")
    assert not (compact / "sparse" / "masks.safetensors").exists() and not (compact / MASKS).exists()
    assert content(compact / "sparse") < content(plain)


def test_experts_by_the_hubs_names_keep_their_masks_in_a_file(tmp_path):
    plain = pruned(tmp_path, "mixtral", pattern="unstructured")
    write_names(usual_names(skeleton(plain)), plain)
    hub = tmp_path / "hub"
    shutil.copytree(plain, hub, ignore=shutil.ignore_patterns("model*"))
    write_as_on_hub(plain, hub)
    compact = there_and_back(hub, tmp_path)
    left = load_masks(compact / "sparse" / "masks.safetensors")
    assert left and len(left) < len(load_masks(hub / MASKS))


@pytest.mark.parametrize(
    "method",
    [
        {"gptq": {"group_size": 8}},
        {"gptq": {"bits": 3, "group_size": 8}},
        {"gptq": {"group_size": 8, "symmetric": False}},
        {"round_to_nearest": {"bits": 8, "group_size": None}},
        {"gptq": {"scheme": "W8A8"}},
        {"round_to_nearest": {"scheme": "FP8_DYNAMIC"}},
        {"gptq": {"scheme": "W8A8", "schemes": {"down_proj": "UNQUANTIZED"}}},
    ],
    ids=str,
)
def test_quantized_models_come_back_to_the_bit(method, tmp_path):
    plain = quantized(tmp_path, method, dtype=torch.bfloat16)
    compact = there_and_back(plain, tmp_path)
    assert not (compact / "sparse" / "masks.safetensors").exists() and content(compact / "sparse") < content(plain)


def test_a_file_of_four_bits_under_two_of_four_has_at_most_a_twentieth_more_than_theory(tmp_path):
    """Theory: 2 bits and log2(6) / 4 a weight, a scale per group, and all else as it is."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    plain = quantized(tmp_path, {"round_to_nearest": {"group_size": 32}}, dtype=torch.bfloat16, **sizes)
    compact = there_and_back(plain, tmp_path)
    masks, files = load_masks(plain / MASKS), TensorFiles(plain)
    weights = sum(mask.numel for mask in masks.values())
    others = [name for name in files if not name.endswith("weight_packed")]
    rest = sum(math.prod(files.shape(name)) * files.read([name])[name].element_size() for name in others)
    theory = weights * (4 / 2 + math.log2(6) / 4) / 8 + rest
    assert size(compact / "sparse") <= 1.05 * theory
    assert size(compact / "sparse") + (compact / "sparse" / "index.json").stat().st_size <= 1.05 * theory


def test_shards_come_back_as_the_shards_they_were(tmp_path):
    plain = pruned(tmp_path)
    sharded = tmp_path / "sharded"
    shutil.copytree(plain, sharded, ignore=shutil.ignore_patterns("model*"))
    write_shards(TensorFiles(plain), sharded, largest=20_000)
    compact = there_and_back(sharded, tmp_path)
    assert (tmp_path / "rebuilt" / INDEX).read_text() == (sharded / INDEX).read_text()
    assert len(list((compact / "sparse").glob("model-*.safetensors"))) > 2


@pytest.mark.slow
def test_the_program_beside_it_needs_torch_and_safetensors_alone(tmp_path):
    plain = pruned(tmp_path)
    write_compact(plain, tmp_path / "compact")
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__'); assert 'transformers' not in sys.modules"
    reader = tmp_path / "compact" / "read_sparse.py"
    subprocess.run([sys.executable, "-I", "-c", code, str(reader)], check=True, cwd=tmp_path, capture_output=True)
    first, second = TensorFiles(plain), TensorFiles(tmp_path / "compact")
    assert all(torch.equal(first.read([name])[name], second.read([name])[name]) for name in first)
    asked = subprocess.run([sys.executable, "-I", str(reader), "elsewhere"], cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode == 1 and asked.stderr.startswith("read_sparse: takes no arguments, got elsewhere; it writes the")
    assert len([line for line in reader.read_text().partition('"""\n\nimport')[2].splitlines() if line.strip()]) <= 77


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compact")
    write_compact(pruned(directory), directory / "compact")
    return directory / "compact"


@pytest.mark.parametrize("pattern", ["model*.safetensors", "index.json"])
def test_any_flipped_bit_and_any_cut_is_refused_in_one_line(compact, pattern, tmp_path):
    torch.manual_seed(0)
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(compact, copy)
    file = sorted((copy / "sparse").glob(pattern))[0]
    whole = file.read_bytes()
    places = torch.randint(len(whole), (30,)).tolist()
    cut = [whole[:place] for place in places]
    flipped = [whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in places]
    for content in cut + flipped:
        file.write_bytes(content)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if file.suffix == ".json" and read(content) == read(whole):
            continue  # another kind of space
        with pytest.raises(ValueError, match=r"damaged|missing") as refused:
            rebuild_plain(copy, out)
        assert "\n" not in str(refused.value)


def read(content: bytes):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_missing_file_and_what_is_no_compact_model_are_named(compact, tmp_path):
    shutil.copytree(compact, tmp_path / "copy")
    next((tmp_path / "copy" / "sparse").glob("model*.safetensors")).unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"sparse/model.*safetensors is missing; copy the whole directory again"):
        rebuild_plain(tmp_path / "copy", tmp_path / "out")
    with pytest.raises(ValueError, match="is no compact model: it has no sparse/index.json"):
        rebuild_plain(tmp_path, tmp_path / "out")
    shutil.copytree(compact, tmp_path / "other")
    (tmp_path / "other" / "config.json").unlink()  # a directory that nothing loads was made, without a word
    with pytest.raises(ValueError, match=r"other/config.json is missing; copy the whole directory again"):
        rebuild_plain(tmp_path / "other", tmp_path / "out")


@pytest.mark.parametrize("files", [["model.safetensors"], "model.safetensors", {"../model.safetensors": 64 * "0"}])
def test_an_index_that_lists_other_than_files_of_its_folder_is_damaged(compact, files, tmp_path):
    shutil.copytree(compact, tmp_path / "copy")
    index = {"format": read_sparse.FORMAT, "files": files, "beside": []}
    (tmp_path / "copy" / "sparse" / "index.json").write_text(json.dumps(index))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"sparse/index.json is damaged: it is no index of winnow-sparse 1$"):
        rebuild_plain(tmp_path / "copy", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
