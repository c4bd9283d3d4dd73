"""The scorer's logits are the model's own, whatever its head does; a model that is not causal is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zograd.core.vector import Noise, Vector
from zograd.hub import Example, Task
from zograd.lens.branches import Branches
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.loading import ModelError
from zograd.llm.restore import replay
from zograd.llm.scoring import head as heads
from zograd.llm.scoring.loss import causal_losses
from zograd.llm.scoring.prefix import first_trained_block
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.noise import Kind
from zograd.stores import Store

EXAMPLES = [Example(f"{'very ' * k}good {'maybe ' * (k // 2)}It was", k % 2) for k in range(1, 9)]
SINGLE, SEVERAL = (" terrible", " great"), (" very bad", " no great yes")


def task(words: tuple[str, ...], kind: str = "classification") -> Task:
    return Task("toy", "{text} It was", words, {"train": EXAMPLES}, "made", "none", kind=kind)


def family(name: str, vocabulary: int, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A random model of 2 blocks of one family of transformers; biases, too."""
    import transformers as t

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    grouped = {**sizes, "num_key_value_heads": 2}
    gpt: dict[str, Any] = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
    opt: dict[str, Any] = {"ffn_dim": 64, "word_embed_proj_dim": 16}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    state = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "lm_head_multiplier": 0.25}
    mamba = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaConfig(**grouped),
        "granite": lambda: t.GraniteConfig(**grouped, logits_scaling=8.0),
        "granitemoe": lambda: t.GraniteMoeConfig(**grouped, **experts, logits_scaling=8.0),
        "cohere": lambda: t.CohereConfig(**grouped, logit_scale=0.0625),
        "cohere2": lambda: t.Cohere2Config(**grouped, logit_scale=0.0625),
        "gemma2": lambda: t.Gemma2Config(**grouped, head_dim=8, final_logit_softcapping=3.0),
        "gemma3": lambda: t.Gemma3TextConfig(**grouped, head_dim=8, **more),
        "recurrentgemma": lambda: t.RecurrentGemmaConfig(
            **{k: v for k, v in grouped.items() if k != "max_position_embeddings"}, lru_width=32, logits_soft_cap=3.0
        ),
        "phi": lambda: t.PhiConfig(**grouped),
        "gpt2": lambda: t.GPT2Config(**gpt),
        "gptj": lambda: t.GPTJConfig(**gpt, rotary_dim=8),
        "opt": lambda: t.OPTConfig(**{k: v for k, v in sizes.items() if k != "intermediate_size"}, **opt),
        "bart": lambda: t.BartConfig(
            vocab_size=vocabulary, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
            max_position_embeddings=96,
        ),
        "falcon_h1": lambda: t.FalconH1Config(**grouped, **state),
        "mamba": lambda: t.MambaConfig(**mamba),
        "bloom": lambda: t.BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4),
        "olmo": lambda: t.OlmoConfig(**grouped),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "bert": lambda: t.BertConfig(**sizes, **more),
        "roberta": lambda: t.RobertaConfig(**sizes, **more),
        "xlnet": lambda: t.XLNetConfig(vocab_size=vocabulary, d_model=32, n_layer=2, n_head=4, d_inner=64),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = t.AutoModelForCausalLM.from_config(configs[name]())
        for p in model.parameters():
            p.data += 0.05 * torch.randn(p.shape)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return loading.load(str(tiny_model), dtype="float32")[1]


FAMILIES = [
    "llama", "granite", "granitemoe", "cohere", "cohere2", "gemma2", "gemma3", "recurrentgemma", "phi", "gpt2", "gptj",
    "opt", "bart", "falcon_h1", "mamba", "bloom", "olmo", "qwen2",
]  # fmt: skip
OWN_WAY = {"granite", "granitemoe", "cohere", "cohere2", "recurrentgemma", "falcon_h1"}


def own(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """The model's own logits, [tokens, vocabulary]."""
    found: torch.Tensor = model(input_ids=torch.tensor([tokenizer.encode(text)]), use_cache=False).logits[0].float()
    return found


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_scores_and_losses_are_those_of_the_models_own_logits(tokenizer: Any, name: str) -> None:
    """Label words of one token and of several, completions, and losses over the vocabulary."""
    model = family(name, len(tokenizer))
    scorer = Scorer(model, tokenizer, task(SINGLE))
    assert heads.linear_head(model) == (name not in OWN_WAY)
    ids = [tokenizer.encode(word)[0] for word in SINGLE]
    for e, row in zip(EXAMPLES, scorer.scores(EXAMPLES), strict=True):
        torch.testing.assert_close(row, own(model, tokenizer, e.prompt)[-1, ids], rtol=1e-4, atol=1e-4)

    def likelihood(prompt: str, word: str) -> torch.Tensor:
        first, tail = len(tokenizer.encode(prompt)), torch.tensor(tokenizer.encode(word))
        return -F.cross_entropy(own(model, tokenizer, prompt + word)[first - 1 : -1], tail)

    for e, row in zip(EXAMPLES, Scorer(model, tokenizer, task(SEVERAL)).scores(EXAMPLES), strict=True):
        expected = torch.stack([likelihood(e.prompt, word) for word in SEVERAL])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    completions = [Example(e.prompt, -1, SEVERAL[k % 2]) for k, e in enumerate(EXAMPLES)]
    losses = Scorer(model, tokenizer, task((), "completion")).losses(completions)
    expected = -torch.stack([likelihood(e.prompt, e.completion) for e in completions])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    text = torch.tensor([tokenizer.encode(EXAMPLES[-1].prompt)])
    expected = F.cross_entropy(own(model, tokenizer, EXAMPLES[-1].prompt)[:-1], text[0, 1:])
    heads._paths.clear()  # as if no logits of this model had been asked for before
    torch.testing.assert_close(causal_losses(model, text)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2", "phi", "mamba"])
@pytest.mark.parametrize("words", [SINGLE, SEVERAL], ids=["single", "several"])
@torch.no_grad()
def test_at_points_alone_and_together(tokenizer: Any, name: str, words: tuple[str, ...]) -> None:
    """Under a lens the own forward reads the perturbed head; in branches each has its rows."""
    model = family(name, len(tokenizer))
    scorer = Scorer(model, tokenizer, task(words))
    before = scorer.scores(EXAMPLES)
    store = Store(loading.select(model, "lm_head|embed" if name != "mamba" else "backbone.embeddings"))
    z = Vector(((Noise(Kind.NORMAL, 7), 0.05),))
    expected = []
    for point in (z, -z):
        with store.at(point):
            expected.append(scorer.scores(EXAMPLES))
            if words is SINGLE:
                ids = [tokenizer.encode(word)[0] for word in words]
                logits = torch.stack([own(model, tokenizer, e.prompt)[-1, ids] for e in EXAMPLES])
                torch.testing.assert_close(expected[-1], logits, rtol=1e-4, atol=1e-4)
    assert float((expected[0] - before).abs().max()) > 1e-3
    with Branches(store, [z, -z]):
        torch.testing.assert_close(scorer.scores(EXAMPLES, 2), torch.cat(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_loss_that_is_first_asked_for_at_a_point_finds_the_models_way(tokenizer: Any) -> None:
    """The model is looked at with its weights as they are, also inside of a lens and of branches."""
    model = family("granite", len(tokenizer))
    ids = torch.tensor([tokenizer.encode(EXAMPLES[-1].prompt)])
    store = Store(loading.select(model, "full"))
    z = Vector(((Noise(Kind.NORMAL, 7), 0.02),))
    with Branches(store, [z, -z]):
        found = causal_losses(model, ids, copies=2)
    for point, value in ((z, found[0]), (-z, found[1])):
        with store.at(point):
            torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, value, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_few_logits_of_the_models_own_forward_are_in_memory(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("granite", len(tokenizer))
    scorer = Scorer(model, tokenizer, task(SEVERAL))
    whole = scorer.scores(EXAMPLES, 2)
    sizes: list[int] = []
    forward = heads.own_logits

    def measured(base: Any, hidden: torch.Tensor) -> torch.Tensor:
        found = forward(base, hidden)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(heads, "own_logits", measured)
    monkeypatch.setattr(heads, "OWN", 4 * len(tokenizer))
    torch.testing.assert_close(scorer.scores(EXAMPLES, 2), whole)
    assert len(sizes) > 8
    assert max(sizes) <= 4 * len(tokenizer)


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2", "phi", "mamba", "falcon_h1"])
@torch.no_grad()
def test_in_bfloat16(tokenizer: Any, name: str) -> None:
    """Among them models whose hidden states stay in float32 (Mamba)."""
    model = family(name, len(tokenizer), torch.bfloat16)
    ids = [tokenizer.encode(word)[0] for word in SINGLE]
    for e, row in zip(EXAMPLES, Scorer(model, tokenizer, task(SINGLE)).scores(EXAMPLES), strict=True):
        logits = own(model, tokenizer, e.prompt)[-1]
        torch.testing.assert_close(row, logits[ids], rtol=0, atol=0.05 * float(logits.std()))


# ---- models that are not causal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "more"),
    [("bert", {}), ("roberta", {}), ("xlnet", {}), ("gemma3", {"use_bidirectional_attention": True})],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_model_that_sees_later_tokens_is_refused(
    tokenizer: Any, name: str, more: dict[str, Any], dtype: torch.dtype
) -> None:
    model = family(name, len(tokenizer), dtype, **more)
    with pytest.raises(ModelError, match=r"is not a causal language model .* depend on later tokens .* bidirectional"):
        Scorer(model, tokenizer, task(SINGLE))


@pytest.mark.parametrize("name", ["bert", "roberta"])
@torch.no_grad()
def test_an_encoder_as_a_decoder_is_scored_by_its_own_head(tokenizer: Any, name: str) -> None:
    model = family(name, len(tokenizer), is_decoder=True)
    scores = Scorer(model, tokenizer, task(SINGLE)).scores(EXAMPLES)
    ids = [tokenizer.encode(word)[0] for word in SINGLE]
    expected = torch.stack([own(model, tokenizer, e.prompt)[-1, ids] for e in EXAMPLES])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


# ---- adapters on the head and on embeddings ------------------------------------------------------------------------


def adapted(tokenizer: Any, targets: tuple[str, ...], *, tied: bool = False) -> Any:
    model = family("llama", len(tokenizer))
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    return loading.attach_lora(model, loading.LoraSpec(r=2, targets=targets), seed=0)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_proj"])
@pytest.mark.parametrize("words", [SINGLE, SEVERAL], ids=["single", "several"])
@torch.no_grad()
def test_adapters_act_in_training_as_they_are_merged(
    tokenizer: Any, target: str, words: tuple[str, ...], cache: bool
) -> None:
    module = adapted(tokenizer, (target,))
    chosen = loading.select(module, "lora")
    scorer = Scorer(module, tokenizer, task(words), trained=list(chosen.values()), cache_prefix=cache)
    scorer.remember(EXAMPLES)
    before = scorer.losses(EXAMPLES)
    for p in chosen.values():
        p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    after = scorer.losses(EXAMPLES)
    assert float((after - before).abs().max()) > 1e-3
    merged = Scorer(module.merge_and_unload(), tokenizer, task(words)).losses(EXAMPLES)
    torch.testing.assert_close(after, merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_weight_that_head_and_embedding_share_is_refused(tokenizer: Any, target: str) -> None:
    with pytest.raises(ModelError, match=rf"'model.embed_tokens' and 'lm_head' share .* leave {target} out of --lora"):
        adapted(tokenizer, ("q_proj", target), tied=True)
    adapted(tokenizer, ("q_proj",), tied=True)


@pytest.mark.filterwarnings("ignore:points are evaluated one at a time")  # peft turns the matrix of an embedding
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"]], ids=str)
def test_a_saved_run_with_such_adapters_scores_as_the_run(tokenizer: Any, tmp_path: Path, targets: list[str]) -> None:
    model = family("llama", len(tokenizer))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    s = TrainSettings.model_validate(
        {"model": str(tmp_path / "base"), "task": "mr", "method": "zo_sgd", "train": "lora", "lora_targets": targets,
         "steps": 20, "lr": 3e-3, "batch_size": 8, "train_examples": 32, "eval_examples": 16, "dtype": "float32"}
    )  # fmt: skip
    result = train(s, tmp_path / "run", quiet=True)
    assert abs(result["eval_loss_after"] - result["eval_loss_before"]) > 1e-4
    replay(tmp_path / "run", None, tmp_path / "saved")
    saved = evaluate(str(tmp_path / "saved"), "mr", None, split="validation", examples=16, dtype="float32")
    assert saved["loss"] == pytest.approx(result["eval_loss_after"], rel=1e-5)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["trained"]


def test_what_lies_before_the_blocks_is_no_norm_after_them(tokenizer: Any) -> None:
    """BLOOM's norm of the embeddings is a sibling of the last norm: if it is trained, no block is frozen."""
    model = family("bloom", len(tokenizer))
    before = list(loading.select(model, "word_embeddings_layernorm").values())
    after = list(loading.select(model, "ln_f").values())
    assert first_trained_block(model, before) == 0
    assert first_trained_block(model, after) == 1


@torch.no_grad()
def test_a_block_that_mixes_tokens_in_two_ways_is_not_cut_to_one_position(tokenizer: Any) -> None:
    """Falcon-H1 has attention and a state-space part in parallel: storing the attention alone would lose the other."""
    model = family("falcon_h1", len(tokenizer))
    chosen = list(loading.select(model, r"layers\.1\.feed_forward").values())
    cached = Scorer(model, tokenizer, task(SINGLE), trained=chosen, cache_prefix=True)
    plain = Scorer(model, tokenizer, task(SINGLE))
    cached.remember(EXAMPLES)
    torch.testing.assert_close(cached.scores(EXAMPLES), plain.scores(EXAMPLES), rtol=1e-4, atol=1e-4)
