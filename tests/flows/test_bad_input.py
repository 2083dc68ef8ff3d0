"""Every kind of bad input is one line that names the field and the choices, before anything starts."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from cluster.profile import load_profile
from flows.launch import launch
from flows.plan import prepare

GOOD = {
    "name": "good",
    "model": {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
    },
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


def of_architecture(fields: dict) -> dict:
    """GOOD with another model, on a corpus that nobody reads."""
    recipe = edited("model/architecture", fields)
    recipe["stages"][0]["prepare"]["corpus"] = {"hub": {"dataset": "a/b", "revision": "c" * 40, "documents_at_most": 5}}
    return recipe


NEW = {"architecture": {"model_type": "llama"}}
TABLE = [
    ("name", "n" * 161, "recipe.name: string should have at most 160 characters, got 'nnn"),
    # what is empty, or says no, is not nothing: YAML's `off` is no way to leave an evaluator out
    ("evaluate/size", False, "recipe.evaluate: size: fields by name are needed, {FIELD: value}, got False"),
    ("evaluate/size", [], "recipe.evaluate: size: "),
    ("stages/2/prune/method", {"wanda": 0}, "recipe.stages[2].prune.method: wanda: "),
    ("stages/2/prune", False, "recipe.stages[2].prune: fields are needed, got False"),
    ("stages/0/prepare/corpus", {"stdlib": ""}, "recipe.stages[0].prepare.corpus: stdlib: "),
    ("stages/4", {"quantize": [], "grid": {"sequences": [8, 16]}}, "recipe.stages[4].quantize: fields are needed, got []"),
    ("stages/2/prune/pattern", "２:４", "no pattern '２:４'; choose one of unstructured"),  # another key for the same
    ("stages/2/prune/pattern", "02:4", "no pattern '02:4'; choose one of unstructured"),
    (
        "stages/3/recover/teacher",
        NEW,
        "recipe.stages[3].recover.teacher: an architecture has no weights; name a checkpoint, or",
    ),
    (
        "stages/3",
        {"evaluate": {"method": "divergence", "reference": NEW}},
        "recipe.stages[3].evaluate.reference: an architecture has no weights; name a checkpoint, or an earlier stage in from",
    ),
    ("stages/3/recover/method", {"lora": {"rank": 100}}, "recipe.recover: lora.rank 100 is more than a matrix of width 64 can"),
    (
        "stages/3/recover/method",
        {"ig_lora": {"rank": 100}},
        "recipe.recover: ig_lora.rank 100 is more than a matrix of width 64 can",
    ),
    ("stages/3/recover/method", {"pst": {"rank": 100}}, "recipe.recover: pst.rank 100 is more than a matrix of width 64 can"),
    ("stages/3/recover/method", {"dsee": {"rank": 100}}, "recipe.recover: dsee.rank 100 is more than a matrix of width 64 can"),
    (
        "stages/3/recover/method",
        {"dsee": {"residuals": 10**6}},
        "recipe.recover: dsee.residuals 1000000 are more than the 4096 weights of a matrix; choose fewer",
    ),
    (
        "stages/3/recover/method",
        {"ist": {"over": {"lora": {"rank": 100}}}},
        "recipe.recover: lora.rank 100 is more than a matrix of width 64 can",
    ),
    (
        "stages/3/recover/method",
        {"spiel": {"budget": 10**6}},
        "recipe.recover: spiel.budget 1000000 is more than the 42112 weights of 81920 that live at most; choose fewer",
    ),
    (
        "stages/3/recover/method",
        {"spiel": {"budget": 60_000}},  # pruned to 2:4 before, whatever the rows of its matrices may round
        "recipe.recover: spiel.budget 60000 is more than the 42112 weights of 81920 that live at most; choose fewer",
    ),
    (
        "stages/3/recover/method",
        {"spiel": {"density": 1e-6}},
        "recipe.recover: spiel.density 1e-06 of 81920 weights leaves no matrix a single one; choose more",
    ),
    ("stages/1/pretrain/method", "lora", "recipe.stages[1].pretrain: lora freezes the weights, and those of a new model are"),
    *(
        ("evaluate", {name: {"tokens": 8, "length": 32}}, f"{name}: tokens 8 is less than one window of length 32")
        for name in ("activation_sparsity", "atlas", "divergence", "perplexity")
    ),
    ("stages/3/recover/learning_rate", -1.0, "recover.learning_rate: input should be greater than 0, got -1.0"),
    ("stages/3/recover/betas", 0.9, "recover.betas: a list is needed, [value, ...], got 0.9"),
    (
        "stages/3/recover/objective",
        {"mixture": {"of": ["distillation"]}},
        "recover.objective: mixture.of: at least 2 needed, got 1",
    ),
    (
        "stages/3/recover/method",
        {"spiel": {"density": 0.1, "budget": 100}},
        "recover: spiel.density and spiel.budget both say how many weights change; leave one of them out",
    ),
    (
        "stages/3/recover/method",
        {"ist": {"suppressed": 1}},
        "recover.method: ist.suppressed: input should be less than 1, got 1",
    ),
    ("stages/3/recover/betas", [2, 0.9], "recover.betas[0]: input should be less than 1, got 2"),
    ("stages/1", {"pretrian": {}}, "no stage 'pretrian'; choose one of prepare, load, pretrain, teach, prune"),
    (
        "stages/2/prune/method",
        "wonda",
        "no method 'wonda' in tasks.pruners; choose one of cfsp, depth, dsnot, experts, heads",
    ),
    ("model/architecture/model_type", "mamba", "unsupported: model type mamba has state-space layers"),
    ("stages/2/prune/method", {"wanda": {"alpah": 1}}, "wanda.alpah: no such field"),
    ("model/hub", "my-llama", "recipe.model.hub: no such field; choose one of architecture, transform, checkpoint"),
    ("stages/1/id", "n" * 200, "recipe.stages[1].id: 200 characters are more than the 160 MLflow has room for"),
    ("stage", [], "recipe.stage: no such field; choose one of name, description, seed, model, evaluate, stages"),
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
    (
        "stages/2/prune",
        {"method": {"wanda": {"adaptive": True}}, "pattern": "unstructured:row", "sparsity": 0.5},
        "adaptive moves sparsity between rows",
    ),
    (
        "stages/2/prune",
        {"method": {"magnitude": {"scope": "global"}}, "pattern": "unstructured:row", "sparsity": 0.5},
        "scope global ranks single weights of the whole model",
    ),
    (
        "stages/2/prune",
        {"method": "heads", "pattern": "channel", "sparsity": 0.4},
        "recipe.prune: sparsity 0.4 takes none of 2 heads; choose at least 0.5",
    ),
    (
        "stages/2/prune",
        {"method": "magnitude", "pattern": "channel", "sparsity": 0.005},
        "takes none of 128 units of channel in intermediate_size 128",
    ),
    (
        "stages/2/prune",
        {"method": "magnitude", "pattern": "block:64", "sparsity": 0.2},
        "takes none of 4 units of block:64 in intermediate_size 128; choose at least 0.25",
    ),
    ("stages/2/prune", {"method": "cfsp", "pattern": "channel", "sparsity": 0.005}, "takes none of 128 channels of"),
    ("stages/2/prune/unseen", "sparse", "unseen: input should be 'magnitude' or 'dense'"),
    ("stages/2/prune/allocator", {"sensitivity": {"pruner": "heads"}}, "heads cannot keep pattern unstructured"),
    ("stages/2/prune/allocator", "owl", "pattern 2:4 fixes the sparsity of every matrix, and allocator owl would vary it"),
    ("stages/2/prune/allocator", "olw", "no method 'olw' in tasks.allocators; choose one of cfsp, erk, magnitude, owl"),
    ("stages/2/prune/allocator", {"table": {"sparsities": {"mlp": 2}}}, "the sparsity of 'mlp' must be in [0, 1), got 2"),
    ("stages/2/prune/sparsity", "essential", "sparsity essential is looked for, and pattern 2:4 fixes it"),
    (
        "stages/2/prune",
        {"method": "wanda", "sparsity": "essential", "allocator": {"table": {"sparsities": {"mlp": 0.5}}}},
        "sparsity essential is looked for, and allocator table fixes it",
    ),
    (
        "stages/2",
        {"from": "prepare", "prune": {"method": "wanda", "sparsity": 0.5}},
        "recipe.stages[2].prune: an architecture has no weights; put a pretrain stage before it",
    ),
    ("stages/2/prune", {"method": "magnitude", "pattern": "block:5", "sparsity": 0.5}, "divisible by 5"),
    ("stages/2/prune", {"method": {"dsnot": {"initial": "dsnot"}}, "sparsity": 0.5}, "dsnot refines a mask itself"),
    (
        "stages/3",
        {"id": "again", "prune": {"method": "heads", "pattern": "channel", "sparsity": 0.5}},
        "recipe.again: heads takes no model with masks, and an earlier prune leaves some; prune with heads first",
    ),
    (
        "stages/2/prune",
        {"method": "cfsp", "pattern": "channel", "sparsity": 0.5},
        "recipe.quantize: no quantized format has feed-forward networks of different widths; prune with cfsp: {shrink: false}",
    ),
    ("stages/2/prune/sparsity", "half", "input should be a number or essential, got 'half'"),
    (
        "stages/4/quantize/method",
        {"gptq": {"group_size": 48}},
        "group_size 48 does not divide the input width 64; write group_size: 64 (or 32, 16)",
    ),
    (
        "stages/4/quantize/method",
        {"gptq": {"symmetric": False, "group_size": 64, "schemes": {"down_proj": "W8A8"}}},
        "reads packed asymmetric weights back where all have one scheme alone; name no other beside it",
    ),
    ("stages/4/quantize/method", {"gptq": {"bits": 17}}, "gptq.bits: input should be less than or equal to 8"),
    (
        "stages/4/quantize/method",
        {"gptq": {"scheme": "W4A17"}},
        "recipe.quantize: no scheme 'W4A17' in compressed-tensors; choose one of FP8, FP8_DYNAMIC, INT8",
    ),
    (
        "stages/4/quantize/method",
        {"gptq": {"scheme": "W8A8", "schemes": {"down_proj": "NVFP4"}}},
        "recipe.quantize: gptq cannot make NVFP4: the scales of its inputs are fixed per tensor_group; choose one of FP8, ",
    ),
    (
        "stages/4/quantize/method",
        {"gptq": {"scheme": {"W4A16_ASYM": {"group_size": 64}}, "schemes": {"down_proj": "W8A8"}}},
        "reads packed asymmetric weights back where all have one scheme alone",
    ),
    ("stages/4/quantize", {"method": "joint"}, "joint prunes as well; say pattern or sparsity"),
    (
        "stages/4/quantize",
        {"method": "gptq", "precision": {"budget": 2, "choices": [{"W2A16": {"group_size": 64}}, "W8A8"]}},
        "precision.budget: the cheapest choices take 1.12 times as much; raise it",
    ),
    ("stages/4/quantize", {"method": "gptq", "precision": {}}, "precision.choices: no groups divide the input width 64 ("),
    ("stages/4/quantize", {"method": {"gptq": {"bits": 3}}, "precision": {}}, "precision chooses what gptq.bits says"),
    (
        "stages/4/quantize",
        {"method": "gptq", "precision": {"choices": ["W4A16", "W8A16", "W4A16"]}},
        "precision.choices: W4A16 is named twice; name each once",
    ),
    ("stages/4/quantize", {"method": "gptq", "precision": {"choices": ["W4A16", "NVFP4"]}}, "gptq cannot make NVFP4"),
    ("stages/4/quantize/method", {"gptq": {"scheme": {"W4A16": {"group_size": 48}}}}, "48 does not divide the input width 64"),
    ("stages/4/quantize/method", {"gptq": {"scheme": "W8A8", "schemes": {"dwn": "FP8_DYNAMIC"}}}, "no matrix has 'dwn' as a"),
    ("stages/4/quantize/method", {"gptq": {"scheme": "W8A8", "bits": 8}}, "gptq: scheme says what bits says; leave one"),
    (
        "stages/4/quantize",
        {"method": {"gptq": {"scheme": {"W4A16_ASYM": {"group_size": 64}}}}, "kv_cache": "FP8"},
        "kv_cache: transformers unpacks packed zero points at once, and rounds no cache then; choose symmetric weights",
    ),
    (
        "stages/3/recover",
        {"tokens": 1000, "method": {"ast": {"slorb": 16}}, "fake_quantize": {"round_to_nearest": {"group_size": 64}}},
        "fake_quantize: ast makes what cannot be quantized: ",
    ),
    (
        "stages/3/recover/fake_quantize",
        "gptq",
        "recover: fake_quantize: gptq rounds by calibration text; choose round_to_nearest",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_neares": {"bits": 3}},
        "recover.fake_quantize: training rounds by no 'round_to_neares'; write round_to_nearest, or {round_to_nearest: ",
    ),
    (
        "stages/3/recover/fake_quantize",
        "W4A16",
        "training rounds by no 'W4A16'; write round_to_nearest, or {round_to_nearest: {FIELD: value}} with some of the",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_nearest": {"scheme": "W4A61"}},
        "fake_quantize: no scheme 'W4A61'; choose one of UNQUANTIZED, W2A16, W3A16, W4A16, W4A16_ASYM, W5A16, W6A16, W7A16, W",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_nearest": {"range": "mse"}},
        "recover: fake_quantize: range mse is no range that training fits anew; choose minmax",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_nearest": {"bits": 3, "group_size": 48}},
        "recipe.recover: group_size 48 does not divide the input width 64",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_nearest": {"scheme": "W4A16"}},
        "group_size 128 does not divide the input width 64",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_nearest": {"scheme": "W8A8"}},
        "fake_quantize: weights alone are rounded in training, and the scheme rounds inputs too; choose one that does not",
    ),
    (
        "stages/3/recover/fake_quantize",
        {"round_to_nearest": {"scheme": "NVFP4"}},
        "round_to_nearest cannot make NVFP4: the scales of its inputs are fixed per tensor_group; choose one of ",
    ),
    ("stages/1/pretrain/tokens", 0, "recipe.stages[1].pretrain.tokens: input should be greater than 0"),
    ("stages/1/pretrain/tokens", -5, "tokens: input should be greater than 0"),
    ("stages/1/pretrain/learning_rate", float("inf"), "pretrain.learning_rate: input should be a finite number"),
    ("stages/2/prune", {"method": "wanda", "sparsity": float("nan")}, "input should be a finite number, got nan"),
    ("stages/1/pretrain/batch", 0, "pretrain.batch: input should be greater than 0"),
    ("stages/1/pretrain/length", 4096, "length 4096 is more than the model's 2048 positions"),
    ("stages/1/pretrain/method", {"gradual": {"sparsity": 1.5}}, "gradual.sparsity: input should be less than 1"),
    ("stages/1/pretrain/method", {"gradual": {"start": 0.8, "end": 0.2}}, "start must come before end"),
    ("stages/0/prepare/corpus", {"stdlib": {"only": ["nosuch"]}}, "corpus stdlib: no package or module 'nosuch'"),
    ("stages/0/prepare/corpus", {"sequence": {"one": "stdlib"}}, "at least 2 needed"),
    ("stages/0/prepare/corpus", {"sequence": {"A": "stdlib", "b": "stdlib"}}, "task 'A' is no name"),
    ("stages/0/prepare/tokenizer", "earlier", "no tokenizer (tokens) upstream; put the prepare stage that trains it before"),
    ("stages/1/pretrain/method", "sparcl", "sparcl learns a sequence of corpora, and corpus is one"),
    ("stages/1/grid", {"method.sparsty": [0.5]}, "no such field"),
    (
        "stages/1/pretrain/method",
        "masked",
        "stages[1].pretrain: masked learns from a teacher, and pretrain has none; set masked: {kl: 0}, or recover with it",
    ),
    (
        "stages/1/pretrain/objective",
        "square_head",
        "recipe.stages[1].pretrain: objective square_head learns from a teacher, and pretrain has none; choose cross_entropy, "
        "or recover with it",
    ),
    (
        "stages/3/recover",
        {"tokens": 1000, "method": {"masked": {"kl": 0}}, "objective": "cross_entropy"},
        "recipe.stages[3].recover: objective cross_entropy and masked.kl both say what is minimised; leave one of them out",
    ),
    (
        "stages/3/recover/objective",
        {"distillation": {"kl": 0}},
        "recipe.stages[3].recover.objective: distillation: kl is 0: nothing would be learned from the teacher; "
        "choose cross_entropy",
    ),
    (
        "stages/3/recover/objective",
        {"mixture": {"of": ["distillation", "top_k"], "weights": {"kl": 1}}},
        "recipe.stages[3].recover.objective: mixture: weights: kl is none of the mixture; choose some of distillation, top_k",
    ),
    ("stages/3/recover/objective", {"mixture": {"of": ["top_k"]}}, "recover.objective: mixture.of: "),
    ("stages/3/recover/objective", {"top_k": {"k": 0}}, "top_k.k: input should be greater than or equal to 1, got 0"),
    (
        "stages/3/recover/objective",
        {"reverse_kl": {"kl": 0}},
        "reverse_kl: kl is 0: nothing would be learned from the teacher; choose cross_entropy",
    ),
    (
        "stages/3/recover/objective",
        {"top_k": {"precomputed": True}},
        "recipe.stages[3].recover: no logits (logits) upstream; put a teach stage before it, of the model to learn from",
    ),
    (
        "stages/1/pretrain/objective",
        {"top_k": {"precomputed": True}},
        "objective top_k learns from a teacher, and pretrain has none; choose cross_entropy",
    ),
    (
        "stages/3/recover/objective",
        {"mixture": {"of": {"top_k": {"precomputed": True}, "attention": {}}}},
        "mixture: precomputed logits beside attention, which asks the teacher itself; leave precomputed out",
    ),
    (
        "stages/3/recover",
        {"tokens": 1000, "method": "sparcl", "objective": {"top_k": {"precomputed": True}}},
        "recover: sparcl chooses what it sees, and logits are of one text; leave precomputed out",
    ),
    ("stages/3", {"teach": {"k": 0}}, "teach.k: input should be greater than or equal to 1, got 0"),
    ("stages/3", {"teach": {"tokens": 100}}, "teach: tokens 100 are less than one sequence of length 256"),
    ("stages/3", {"teach": {"temperature": 0}}, "teach.temperature: input should be greater than 0, got 0"),
    (
        "stages/3",
        {"from": {"logits": "prune"}, "recover": {"tokens": 9}},
        "from.logits is used for nothing, as distillation needs",
    ),
    ("stages/3/recover/objective", {"hidden_states": {"distance": "l1"}}, "distance: input should be 'square' or 'cosine'"),
    ("stages/3/recover/objective", {"attention": {"blocks": "first"}}, "blocks: input should be 'all' or 'last'"),
    ("stages/1/pretrain/objective", "hidden_states", "objective hidden_states learns from a teacher, and pretrain has none"),
    ("stages/3/recover/until", {"perplexity": 0.5}, "recover.until.perplexity: input should be greater than 1, got 0.5"),
    ("stages/3/recover/until", {"loss": 2}, "recover.until.loss: no such field; choose one of perplexity, tokens"),
    ("stages/1/pretrain/until", {"perplexity": 9}, "pretrain.until: no such field"),
    (
        "stages/2/prune",
        {"method": "depth", "sparsity": 0.5, "pattern": "2:4"},
        "recipe.stages[2].prune: depth takes whole parts of a model and makes no masks; leave pattern out",
    ),
    ("stages/2/prune", {"method": "depth"}, "sparsity is needed with depth: a share above 0 and below 1 of what it takes"),
    (
        "stages/2/prune",
        {"method": "depth", "sparsity": 0.1},
        "recipe.prune: sparsity 0.1 takes none of 2 blocks; choose 0.5, which takes 1",
    ),
    ("stages/2/prune", {"method": {"depth": {"criterion": "size"}}, "sparsity": 0.5}, "should be 'influence' or 'perplexity'"),
    ("stages/2/prune", {"method": {"width": {"axes": ["rows"]}}, "sparsity": 0.5}, "width.axes[0]: input should be 'channels'"),
    ("stages/2/prune", {"method": {"mix": {"axes": ["hidden"]}}, "sparsity": 0.5}, "mix.axes[0]: input should be 'depth'"),
    (
        "stages/2/prune",
        {"method": {"mix": {"budget": "flops"}}, "sparsity": 0.5},
        "mix.budget: input should be 'parameters'",
    ),
    (
        "stages/2/prune",
        {"method": {"mix": {"levels": 1}}, "sparsity": 0.5},
        "mix.levels: input should be greater than or",
    ),
    (
        "stages/2/prune",
        {"method": {"mix": {"budget": "kv", "axes": ["depth"]}}, "sparsity": 0.9},
        "recipe.prune: sparsity 0.9 leaves less kv than any shape has; choose at most 0.5",
    ),
    ("stages/2/prune", {"method": {"width": {"axes": []}}, "sparsity": 0.5}, "width.axes: "),
    (
        "stages/2/prune",
        {"method": {"width": {"axes": ["hidden"]}}, "sparsity": 0.02},
        "recipe.prune: unsupported: llama cannot have the sizes that would be left",
    ),
    (
        "stages",
        [
            *GOOD["stages"][:2],
            {"prune": {"method": "depth", "sparsity": 0.5}},
            {"recover": {"tokens": 9, "objective": "square_head"}},
        ],
        "recipe.recover: square_head compares block by block, and the teacher has 2 blocks of width 64, the model 1 of 64",
    ),
    ("stages/0/prepare/corpus", {"completions": {"paths": ["/nosuch/*.jsonl"]}}, "corpus file /nosuch/*.jsonl: does not exist"),
    (
        "stages/0/prepare/corpus",
        {"completions": {"paths": ["a.jsonl"], "template": "x"}},
        "template writes out chats; set chat",
    ),
    (
        "stages/0/prepare/corpus",
        {"chats": {"paths": ["a.jsonl"]}},
        "recipe.stages[0].prepare: the corpus is written out by a chat template, and the tokenizer has none; give the corpus a",
    ),
    ("claims", [{"says": "x", "stage": "pretrain", "order": ["a", "b"]}], "recipe.claims[0].order: no group 'a'"),
    ("stages/3/recover/method", {"masked": {"ce": 0, "kl": 0}}, "ce and kl are both 0"),
    ("stages/0/prepare/corpus", "nosuch", "no corpus 'nosuch'; choose one of stdlib, files, hub"),
    ("stages/0/prepare/corpus", {"files": {"paths": ["/nosuch/*.txt"]}}, "corpus file /nosuch/*.txt: does not exist"),
    ("stages/0/prepare/corpus", {"train": "stdlib", "heldout": "/nosuch/*.txt"}, "corpus file /nosuch/*.txt: does not exist"),
    ("stages/0/prepare/corpus", {"train": "stdlib", "held_out": "a.txt"}, "no role 'held_out'; choose some of train,"),
    ("stages/0/prepare/corpus", {"heldout": "stdlib"}, "prepare.corpus.train: field required"),
    ("stages/0/prepare/corpus", {"train": {"sequence": {"a": "stdlib", "b": "stdlib"}}}, "corpus.train: one text is needed"),
    (
        "stages/0/prepare",
        {"corpus": {"train": "stdlib", "heldout": "stdlib"}, "heldout": 0.1, "tokenizer": {"train": 300}},
        "heldout is a share of the training text, and the corpus names a heldout text",
    ),
    (
        "stages/0/prepare",
        {"corpus": {"train": "stdlib", "heldout": "stdlib"}, "heldout": 0.05, "tokenizer": {"train": 300}},
        "recipe.stages[0].prepare: heldout is a share of the training text, and the corpus names a heldout text",
    ),
    (
        "stages/3/recover",
        {"tokens": 10, "method": {"masked": {"ce": 0.33, "kl": 0.67}}, "objective": "cross_entropy"},
        "recipe.stages[3].recover: objective cross_entropy and masked.ce both say what is minimised; leave one of them out",
    ),
    ("stages/0/prepare/corpus", {"hub": {"dataset": "x"}}, "revision: field required"),
    ("stages/0/prepare/corpus", {"hub": {"nme": "x"}}, "corpus: hub.nme: no such field; choose one of dataset, subset, split,"),
    (
        "stages/0/prepare/corpus",
        {"train": {"files": {"pths": 1}}},
        "corpus.train: files.pths: no such field; choose one of paths",
    ),
    (
        "stages/0/prepare/corpus",
        {"sequence": {"a": "stdlib", "b": {"stdlib": {"onl": 1}}}},
        "recipe.stages[0].prepare.corpus: sequence.b: stdlib.onl: no such field; choose one of only, without",
    ),
    ("stages/0/prepare/corpus", {"sequence": {"a": "nosuch", "b": "stdlib"}}, "corpus: sequence.a: no corpus 'nosuch'; choose"),
    ("stages/0/prepare/corpus", {"sequence": {"a": "stdlib"}}, "sequence: at least 2 needed, got 1"),
    ("stages/0/prepare/corpus", {"stdlib": 5}, "prepare.corpus: stdlib: fields by name are needed, {FIELD: value}, got 5"),
    ("claims", [{"sys": "x"}], "recipe.claims[0].sys: no such field; choose one of says, "),
    ("claims", [5], "recipe.claims[0]: fields by name are needed, {FIELD: value}, got 5"),
    ("model", 5, "recipe.model: fields by name are needed, {FIELD: value}, got 5"),
    (
        "stages/1",
        5,
        "recipe.stages[1]: a stage is written {NAME: {FIELD: value}}, got 5; choose one of prepare, load, pretrain,",
    ),
    ("stages/1", "pretrain", "recipe.stages[1]: a stage is written {NAME: {FIELD: value}}, got 'pretrain'; choose one of"),
    ("stages/0/prepare/tokenizer", {}, "a tokenizer names either train"),
    ("stages/0/prepare/tokenizer", {"train": 10}, "tokenizer.train: input should be greater than or equal to 257"),
    ("stages/0/prepare/heldout", 0.9, "prepare.heldout: input should be less than 0.5"),
    ("model/architecture/vocab_size", 200, "the tokenizer has 300 tokens, more than the model's vocab_size 200"),
    ("model/architecture/model_type", "lama", "no causal language model type 'lama'"),
    ("model/architecture/hiden_size", 64, "model type llama has no config field 'hiden_size'"),
    ("model", {"checkpoint": "/nosuch"}, "no model directory /nosuch"),
    (
        "model",
        {"checkpoint": {"hub": "a/b", "revision": "main"}},
        "checkpoint.revision: a commit of 40 hexadecimal digits is needed, got 'main'",
    ),
    (
        "stages/0/prepare/corpus",
        {"hub": {"dataset": "x", "revision": "v1.0", "documents_at_most": 1}},
        "corpus: hub.revision: a commit of 40 hexadecimal digits is needed, got 'v1.0'",
    ),
    ("model", {"checkpoint": {"hub": "a/b"}}, "a hub checkpoint needs a revision"),
    ("model", {}, "a model names either architecture or checkpoint"),
    ("model", "!", "pretrain.model"),
    ("model/transform", "narrow", "no method 'narrow' in tasks.transforms; choose one of doped, factorized, parallel, wide"),
    ("model/transform", {"wide": {"sparsity": 1}}, "recipe.model.transform: wide.sparsity: input should be less than 1"),
    ("model/transform", {"wide": {"sparsity": -0.1}}, "wide.sparsity: input should be greater than or equal to 0"),
    ("model/transform", {"wide": {"sparsty": 0.5}}, "wide.sparsty: no such field; choose one of sparsity"),
    ("model/transform", {"parallel": {"activation": "tanh"}}, "parallel.activation: input should be 'relu' or 'identity'"),
    (
        "stages/1/pretrain/method",
        {"gradual": {"sparsity": "iso"}},
        "recipe.stages[1].pretrain.method.gradual.sparsity: iso needs a model with a transform; give a number",
    ),
    ("model", {"checkpoint": "/nosuch", "transform": "wide"}, "a transform needs an architecture"),
    ("model", {"architecture": {"model_type": "mixtral"}, "transform": "doped"}, "is a fused stack of experts; choose wide"),
    (
        "model",
        {"architecture": GOOD["model"]["architecture"], "transform": {"wide": {"sparsity": 0.99}}},
        "transform wide: what stays dense at sparsity 0.99 alone costs more than the dense model",
    ),
    ("evaluate", ["size", "size"], "recipe.evaluate: size is listed twice; list each of tasks.evaluators once"),
    ("evaluate", 5, "recipe.evaluate: a list of names, or of {NAME: {field: value}}, is needed, got 5"),
    ("evaluate", ["nosuch"], "no method 'nosuch' in tasks.evaluators; choose one of"),
    ("name", "Bad Name", "recipe.name"),
    ("seed", -1, "recipe.seed: input should be greater than or equal to 0"),
    ("stages", [], "recipe.stages"),
    ("stages/3", {"id": "prune", "recover": {"tokens": 10}}, "recipe.stages[3].id: 'prune' is taken"),
    ("stages/3", {"from": "nowhere", "recover": {"tokens": 10}}, "no earlier stage 'nowhere'; choose one of"),
    ("stages/0", {"prune": {"method": "wanda", "pattern": "2:4"}}, "tokens) upstream; put a prepare stage before it"),
]


TINY = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
GQA = {**TINY, "num_key_value_heads": 2}
FUSED = "unsupported: compressed-tensors packs nn.Linear only, and {} is a fused stack of experts"
UNREADABLE = "unsupported: transformers cannot load a {} whose matrices are packed: its initialisation of {} finds no weights"
UNPACKABLE = [
    (
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2},
        "packs nn.Linear only, and transformer.h.0.attn.c_attn.weight is a transposed Conv1D matrix",
    ),
    ({"model_type": "mixtral", **GQA}, FUSED.format("model.layers.0.mlp.experts.gate_up_proj")),
    (
        {"model_type": "gpt_oss", **GQA, "head_dim": 32, "num_local_experts": 4},
        FUSED.format("model.layers.0.mlp.experts.gate_up_proj"),
    ),
    ({"model_type": "qwen2_moe", **GQA, "num_experts": 4}, FUSED.format("model.layers.0.mlp.experts.gate_up_proj")),
    (
        {"model_type": "granitemoe", **GQA, "num_local_experts": 4},
        FUSED.format("model.layers.0.block_sparse_moe.experts.gate_up_proj"),
    ),
    (
        {"model_type": "falcon", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
        UNREADABLE.format("FalconForCausalLM", "transformer.h.0.self_attention.query_key_value"),
    ),
    (
        {"model_type": "gpt_bigcode", "n_embd": 64, "n_layer": 1, "n_head": 2},
        UNREADABLE.format("GPTBigCodeForCausalLM", "transformer.h.0.attn"),
    ),
    ({"model_type": "nanochat", **GQA}, UNREADABLE.format("NanoChatForCausalLM", "model.layers.0.self_attn")),
]
SIZES = [
    ("llama", {"hidden_size": -7}, "model type llama: hidden_size -7: should be 1 or more"),
    ("llama", {"hidden_size": 0}, "hidden_size 0: should be 1 or more"),
    ("llama", {"hidden_size": 10**12}, "hidden_size 1000000000000: should be 16777216 or less"),
    ("llama", {"hidden_size": True}, "hidden_size True: should be a number"),
    ("llama", {"hidden_size": "64"}, "Field 'hidden_size' expected int, got str (value: '64')"),
    ("llama", {"num_attention_heads": 3}, "hidden_size 64 is no multiple of num_attention_heads 3"),
    (
        "llama",
        {"num_attention_heads": 4, "num_key_value_heads": 3},
        "num_attention_heads 4 is no multiple of num_key_value_heads 3",
    ),
    ("mistral", {"num_attention_heads": 2}, "num_attention_heads 2 is no multiple of num_key_value_heads 8"),
    ("llama", {"num_key_value_heads": 0}, "num_key_value_heads 0: should be 1 or more"),
    ("llama", {"intermediate_size": -1}, "intermediate_size -1: should be 1 or more"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers 0: should be 1 or more"),
    ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers 1000000: should be 4096 or less"),
    ("llama", {"vocab_size": 0}, "vocab_size 0: should be 1 or more"),
    ("llama", {"max_position_embeddings": -5}, "max_position_embeddings -5: should be 1 or more"),
    ("llama", {"head_dim": 3}, "head_dim 3: should be even"),
    ("llama", {"hidden_act": "nosuch"}, "model type llama cannot be built with hidden_act 'nosuch', hidden_size 64"),
    ("llama", {"pad_token_id": 10**6}, ", pad_token_id 1000000, vocab_size 300: AssertionError Padding_idx must be within num"),
    ("mixtral", {"num_local_experts": 0}, "num_local_experts 0: should be 1 or more"),
    ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok 3 is more than num_local_experts 2"),
    ("gpt2", {"n_embd": 63, "n_head": 2}, "model type gpt2: n_embd 63 is no multiple of n_head 2"),
    ("gpt2", {"n_layer": -1}, "n_layer -1: should be 1 or more"),
    ("opt", {"ffn_dim": 0}, "ffn_dim 0: should be 1 or more"),
]
LENGTHS = [
    ("stages/1/pretrain/length", 4096, "recipe.pretrain: length 4096 is more than the model's 2048 positions"),
    ("stages/2/prune/length", 4096, "recipe.prune: length 4096 is more than the model's 2048 positions"),
    ("stages/3/recover/length", 4096, "recipe.recover: length 4096 is more than the model's 2048 positions"),
    ("stages/4/quantize/length", 4096, "recipe.quantize: length 4096 is more than the model's 2048 positions"),
    (
        "evaluate",
        {"perplexity": {"length": 4096}},
        "recipe.pretrain.perplexity: perplexity.length 4096 is more than the model's 2048 positions",
    ),
    (
        "evaluate",
        {"speed": {"prompt": 2048}},
        "recipe.pretrain.speed: speed.prompt 2048 and speed.new 32 together are more than the model's 2048 positions",
    ),
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
    ("sdgf_geometric", {"pattern": "2:16"}, "first phase 16:128 of pattern 2:16 needs an input width divisible by 128"),
    ("fst", {"refresh": 0}, "fst.refresh: input should be greater than 0"),
    ("fst", {"dense": 1}, "fst.dense: input should be less than 1"),
    ("s_ste", {"mvue": "maybe"}, "s_ste.mvue: input should be a valid boolean"),
    ("ast", {"slorb": 0}, "ast.slorb: input should be greater than 0"),
    ("ast", {"slorb": 16, "dense": 0.1}, "slorb begins with the first mask, before the first step; leave dense 0.1 out"),
    ("ast", {"kl": 0, "slorb": 5}, "slorb 5 does not divide the input width 64; choose a divisor of it (model.layers.0."),
    ("spiel", {"density": 0}, "spiel.density: input should be greater than 0"),
    ("spiel", {"budget": 0}, "spiel.budget: input should be greater than 0"),
    ("spiel", {"interval": 4, "gathered": 5}, "gathered 5 is more than the 4 steps of an interval; choose at most that"),
    ("spiel_ma", {"interval": 0}, "spiel_ma.interval: input should be greater than 0"),
    ("spiel_ma", {"gathered": 2}, "spiel_ma.gathered: no such field"),
    ("spiel", {"moved": 2}, "spiel.moved: input should be less than or equal to 1"),
    ("spiel", {"schedule": "cubic"}, "spiel.schedule: input should be 'linear' or 'cosine'"),
    ("spiel", {}, "recipe.stages[1].pretrain: spiel freezes the weights, and those of a new model are"),
    ("pst", {"sparsity": 1}, "pst.sparsity: input should be less than 1"),
    ("pst", {"warmup": 0.6, "final": 0.4}, "warmup and final must leave room between them, got 0.6 and 0.4"),
    ("pst", {"still": 0.4}, "still 0.4 begins before the sparsity is the last; choose at most final 0.3"),
    ("dsee", {"residuals": 0}, "dsee.residuals: input should be greater than 0"),
    ("dsee", {"support": "greedy"}, "dsee.support: input should be 'residual', 'magnitude' or 'random'"),
    ("dsee", {"criterion": "both"}, "dsee.criterion: input should be 'weight' or 'update'"),
    ("dsee", {"prune_at": 1.5}, "dsee.prune_at: input should be less than or equal to 1"),
    ("ist", {"over": "masked"}, "masked trains no branches in every layer; choose one of dsee, ig_lora, lora, pst"),
    ("ist", {"over": "ist"}, "ist trains no branches in every layer; choose one of dsee, ig_lora, lora, pst"),
    ("ist", {"active": 0}, "ist.active: input should be greater than 0"),
    ("ist", {"rollouts": 1}, "ist.rollouts: input should be greater than 1"),
    ("ist", {"factor": 1}, "ist.factor: input should be less than 1"),
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
    assert [step.id for step in plan.due][:3] == ["prepare", "pretrain", "pretrain.size"]


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


@pytest.mark.parametrize(("path", "value", "expected"), LENGTHS, ids=[path for path, _, _ in LENGTHS])
def test_sequences_that_the_positions_do_not_allow_are_refused_whatever_reads_them(path, value, expected, home: Path) -> None:
    assert refusal(edited(path, value), home) == expected


@pytest.mark.parametrize(("kind", "sizes", "expected"), SIZES, ids=[f"{kind}-{sizes}" for kind, sizes, _ in SIZES])
def test_sizes_of_which_there_is_no_model_are_named_with_their_values(kind, sizes, expected, home: Path) -> None:
    base = {"gpt2": {}, "mistral": TINY, "opt": {}}.get(kind, GQA)
    message = refusal(of_architecture({"model_type": kind, **base, **sizes}), home)
    assert expected in message and "\n" not in message


@pytest.mark.parametrize(("architecture", "expected"), UNPACKABLE, ids=[given["model_type"] for given, _ in UNPACKABLE])
def test_what_no_reader_of_packed_weights_takes_is_refused_and_can_be_pruned(architecture, expected, home) -> None:
    recipe = of_architecture(architecture)
    message = refusal(recipe, home)
    assert message.startswith("recipe.quantize: ") and expected in message and "\n" not in message
    del recipe["stages"][4]
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert prepare(str(home / "recipe.yaml"), load_profile("local"))[0].due


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8 (byte 0)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: malformed JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl, line 1: no text field 'text'; it has body"),
        ("a.parquet", b"nonsense", "not a Parquet file"),
        ("a.jsonl", b"", "corpus is too small: 0 documents with text"),
        ("a.txt", b"one document", "1 document with text, three splits need 20; a .txt file is one document"),
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


def rewrite(file: str, **changes: object):
    """Changes fields of a JSON file."""

    def spoil(model: Path) -> None:
        (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | changes))

    return spoil


def rename(file: str, name: str):
    return lambda model: (model / file).rename(model / name)


def write(file: str, content: str):
    return lambda model: (model / file).write_text(content)


def cut(file: str, size: int):
    return lambda model: os.truncate(model / file, size)


def reindex(model: Path, **moved: str | None) -> None:
    """Say of tensors, by the end of their names, that they lie in another file, or leave them out."""
    index = json.loads((model / INDEX).read_text())
    for end, file in moved.items():
        name = next(name for name in index["weight_map"] if name.endswith(f"{end}.weight"))
        index["weight_map"] |= {name: file}
        if file is None:
            del index["weight_map"][name]
    (model / INDEX).write_text(json.dumps(index))


def store(model: Path, name: str, tensor) -> None:
    """Put another tensor into the shard that holds the one of this name; None takes it out of shard and index."""
    from safetensors.torch import load_file, save_file

    shard = model / json.loads((model / INDEX).read_text())["weight_map"][name]
    state = load_file(shard) | {name: tensor}
    if tensor is None:
        del state[name]
        reindex(model, **{name.removesuffix(".weight"): None})
    save_file(state, shard, {"format": "pt"})


def lonely(model: Path, name: str) -> None:
    """Nothing but one file that is no checkpoint of ours."""
    for file in model.iterdir():
        file.unlink()
    (model / name).write_bytes(b"GGUF")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 14240\n"
INDEX, FIRST, LAST = "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
CHECKPOINTS = {  # what is wrong with a model directory of two shards, and what is said of it
    "pointer": (write(FIRST, POINTER), f"{FIRST} is a git-lfs pointer and not the file itself; run git lfs pull"),
    "pointer-config": (write("config.json", POINTER), "config.json is a git-lfs pointer"),
    "pointer-index": (write(INDEX, POINTER), f"{INDEX} is a git-lfs pointer"),
    "html": (write(FIRST, "<html>" + 100 * "not found "), f"{FIRST} is no whole safetensors file (1006 bytes); fetch it again"),
    "empty": (write(FIRST, ""), f"{FIRST} is no whole safetensors file (0 bytes)"),
    "truncated": (cut(LAST, 9000), f"{LAST} is truncated: 9000 bytes where"),
    "cut-in-the-header": (cut(LAST, 100), f"{LAST} is no whole safetensors file (100 bytes)"),
    "longer": (lambda model: (model / LAST).open("ab").write(b"more"), f"{LAST} is longer than its header says"),
    "no-header": (lambda model: (model / LAST).write_bytes(b"\x04" + bytes(7) + b"null"), "its header cannot be read"),
    "shard-missing": (lambda model: (model / FIRST).unlink(), f"{INDEX} lists {FIRST}, which is not there; fetch it again"),
    "shard-outside": (lambda model: reindex(model, up_proj="../x"), "lists ../x, which is not there"),
    "shard-unlisted": (write("model-00003-of-00002.safetensors", ""), "does not list model-00003-of-00002.safetensors"),
    "tensor-elsewhere": (lambda model: reindex(model, **{UP[:-7]: LAST, DOWN[:-7]: LAST}), f"lacks {UP}, which the index says"),
    "tensor-unlisted": (lambda model: reindex(model, **{UP[:-7]: None}), f"{INDEX} does not list {UP}, which its files"),
    "tensor-nowhere": (lambda model: store(model, UP, None), f"{UP} is not stored (1 such names)"),
    "another-shape": (lambda model: store(model, UP, torch.zeros(4, 4)), f"{UP} is stored as [4, 4], not ["),
    "index-without-map": (write(INDEX, "{}"), "has no weight_map"),
    "index-no-json": (write(INDEX, "{"), f"{INDEX}: malformed JSON"),
    "both-layouts": (lambda model: shutil.copy(model / FIRST, model / "model.safetensors"), "holds both model.safetensors and"),
    "other-names": (rename(INDEX, "x.json"), f"has no safetensors weights, only others ({FIRST}) than"),
    "adapter": (write("adapter_config.json", "{}"), "is an adapter and no whole model; merge it into its base model"),
    "fp8": (rewrite("config.json", quantization_config={"quant_method": "fp8"}), "is quantized already (fp8); choose the"),
    "fp8-undeclared": (lambda model: store(model, UP, torch.zeros(128, 64).to(torch.float8_e4m3fn)), f"({UP}: F8_E4M3)"),
    "gptq": (rewrite("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "is quantized already (gptq)"),
    "gguf-beside": (lambda model: lonely(model, "m.gguf"), "it has no config.json; m.gguf is quantized for llama.cpp"),
    "mamba": (rewrite("config.json", model_type="mamba"), "model type mamba has state-space layers; choose a decoder"),
    "jamba": (rewrite("config.json", model_type="jamba"), "model type jamba has state-space layers"),
    "llama4": (rewrite("config.json", model_type="llama4"), "model type llama4 has experts in fused matrices"),
    "vision": (rewrite("config.json", model_type="vit"), "no causal language model type 'vit'; choose one of"),
    "encoder-decoder": (rewrite("config.json", model_type="t5"), "no causal language model type 't5'"),
    "bart": (rewrite("config.json", model_type="bart", is_encoder_decoder=True), "is an encoder-decoder; choose a model with"),
    "classifier": (rewrite("config.json", architectures=["LlamaForSequenceClassification"]), "has no language modelling head"),
    "headless": (rewrite("config.json", architectures=["LlamaModel"]), "is a LlamaModel, which has no language modelling head"),
    "dtype": (rewrite("config.json", dtype="auto"), "config.json: dtype 'auto' is no dtype of weights; choose one of float32"),
    "surgery": (rewrite("config.json", surgeries=[{"gates": {}}]), "no method 'gates' in tasks.surgeries; choose one of"),
    "surgery-field": (rewrite("config.json", surgeries=[{"narrow": {}}]), "surgeries: narrow.widths: field required"),
    "narrow": (rewrite("config.json", surgeries=[{"narrow": {"widths": [8]}}]), "narrow gives 1 widths for 2 blocks"),
    "config-list": (write("config.json", "[]"), "config.json holds a list where fields by name are needed"),
    "config-no-json": (write("config.json", "{"), "config.json: malformed JSON"),
    "heads": (rewrite("config.json", num_attention_heads=7), "cannot be built: StrictDataclassClassValidationError"),
}
LATE = ("tensor-nowhere", "another-shape", "heads", "narrow")  # told by building the model: the last check


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint of GOOD's architecture in two shards."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made = tmp_path_factory.mktemp("sharded")
    architecture = {**GOOD["model"]["architecture"], "vocab_size": 300}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
    model.save_pretrained(made, max_shard_size=model.num_parameters() * 4 * 3 // 5)
    assert {file.name for file in made.iterdir()} >= {FIRST, LAST, INDEX}
    return made


PRUNING = {**GOOD, "evaluate": [], "stages": [GOOD["stages"][0], {"prune": {"method": "magnitude", "sparsity": 0.5}}]}


def test_a_sound_checkpoint_is_accepted(sharded: Path, home: Path) -> None:
    (home / "recipe.yaml").write_text(yaml.safe_dump({**PRUNING, "model": {"checkpoint": str(sharded)}}))
    assert prepare(str(home / "recipe.yaml"), load_profile("local"))[0].due


@pytest.mark.parametrize("wrong", CHECKPOINTS)
def test_a_spoilt_checkpoint_is_refused_in_one_line_before_it_is_hashed(wrong, sharded: Path, home: Path, monkeypatch) -> None:
    spoil, expected = CHECKPOINTS[wrong]
    shutil.copytree(sharded, home / "model")
    spoil(home / "model")
    if wrong not in LATE:
        monkeypatch.setattr("tasks.data.digests.Digests.of", lambda *given: pytest.fail("a file was read whole"))
    message = refusal({**PRUNING, "model": {"checkpoint": str(home / "model")}}, home)
    assert expected in message and "\n" not in message
    assert message.startswith("recipe.prune: ") and str(home / "model") in message


def test_a_file_where_a_directory_is_wanted_is_named(sharded: Path, home: Path) -> None:
    (home / "m.gguf").write_bytes(b"GGUF")
    for file, kind in (("m.gguf", "a GGUF file"), ("recipe.yaml", "a file")):
        assert f"{home / file} is {kind}" in refusal({**PRUNING, "model": {"checkpoint": str(home / file)}}, home)


def test_a_teacher_may_be_quantized_and_is_looked_at_all_the_same(sharded: Path, home: Path) -> None:
    shutil.copytree(sharded, home / "teacher")
    rewrite("config.json", quantization_config={"quant_method": "compressed-tensors"})(home / "teacher")
    model = {"checkpoint": str(sharded)}
    taught = {"recover": {"tokens": 100, "teacher": {"checkpoint": str(home / "teacher")}}}
    recipe = {**PRUNING, "model": model, "stages": [*PRUNING["stages"], taught]}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert prepare(str(home / "recipe.yaml"), load_profile("local"))[0].due
    cut(LAST, 9000)(home / "teacher")
    assert f"recipe.recover: {home / 'teacher' / LAST} is truncated" in refusal(recipe, home)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda directory: None, "no tokenizer in"),
        (write("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer"),
        (lambda directory: directory.rmdir(), "no tokenizer directory"),
    ],
)
def test_a_checkpoint_without_a_tokenizer_is_refused_where_one_is_wanted(spoil, expected: str, home: Path) -> None:
    (home / "tokenizer").mkdir()
    spoil(home / "tokenizer")
    message = refusal(edited("stages/0/prepare/tokenizer", {"checkpoint": str(home / "tokenizer")}), home)
    assert expected in message and message.startswith("recipe.prepare: ")


def test_refusals_import_neither_torch_nor_transformers(sharded: Path, home: Path) -> None:
    """Each of them costs seconds. Asked of one process: what is said of every recipe, and what it has imported by then."""
    shutil.copytree(sharded, home / "model")
    cut(LAST, 9000)(home / "model")
    wanted = {
        "wanda.alpah": edited("stages/2/prune/method", {"wanda": {"alpah": 1}}),
        "has no config field": edited("model/architecture/hiden_size", 64),
        "no causal language model type": edited("model/architecture/model_type", "lama"),
        "state-space": edited("model/architecture", {"model_type": "mamba"}),
        "truncated": {**PRUNING, "model": {"checkpoint": str(home / "model")}},
        "the tokenizer has 300 tokens": edited("model/architecture/vocab_size", 200),
        "group_size 48 does not divide": edited("stages/4/quantize/method", {"gptq": {"group_size": 48}}),
        "is more than the model's 2048 positions": edited("stages/1/pretrain/length", 4096),
        "needs an input width divisible by 7": edited("stages/2/prune/pattern", "3:7"),
        "does not exist": edited("stages/0/prepare/corpus", {"files": {"paths": ["/nosuch/*.txt"]}}),
    }
    for number, recipe in enumerate(wanted.values()):
        (home / f"{number}.yaml").write_text(yaml.safe_dump(recipe))
    script = """if True:
        import sys
        from flows.lazy import make_lazy
        make_lazy("torch")
        from cluster.profile import load_profile
        from flows.plan import prepare
        for path in sys.argv[1:]:
            try:
                prepare(path, load_profile("local"))
            except ValueError as error:
                print(*sorted({"torch._C", "transformers", "ray", "prefect", "mlflow"} & sys.modules.keys()), error)
    """
    command = [sys.executable, "-c", script, *(str(home / f"{number}.yaml") for number in range(len(wanted)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(wanted), lines
    for line, expected in zip(lines, wanted, strict=True):
        assert expected in line and line.startswith(("recipe.", "corpus file")), line


PROFILES = [
    ("ranks: 0", "ranks"),
    ("zero: 4", "zero"),
    ("engine: megatron", "engine"),
    ("ranks: 1\nranks: 2", "'ranks' is given twice"),
    ("name: !!python/object:os.system x", "tag"),
    ("a: &a [x]\nb: *a", "anchors and aliases"),
    ("nosuch: 1", "no field 'nosuch'; choose one of"),
    (
        "stages: {prun: {cpus: 2}}",
        "profile 'profile': stages.prun: no such stage; choose one of default, prepare, load, pretrain,",
    ),
    ("checkpoint_every_seconds: .inf", "checkpoint_every_seconds: should be a finite number"),
    ("device: cuda", "no usable GPU"),
    ("store: /proc/nosuch", "store"),
]


def test_a_laptop_plans_for_the_cards_of_a_profile_and_runs_nothing_on_them(home: Path) -> None:
    (home / "profile.yaml").write_text("card: H100\nstages: {pretrain: {cpus: 1, gpus: 1}}")
    (home / "recipe.yaml").write_text(yaml.safe_dump(GOOD))
    where = load_profile(home / "profile.yaml")
    plan, _ = prepare(str(home / "recipe.yaml"), where, only_plan=True)
    assert plan.due
    with pytest.raises(ValueError, match=r"stages\.\*\.gpus was asked for, but this machine has no usable GPU; use cpu$"):
        prepare(str(home / "recipe.yaml"), where)


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
    assert message == (
        f"recipe.pretrain: method.gradual.sparsity: {given:g} does not make the model cost what it costs dense; "
        f"with transform parallel choose {iso}"
    )
