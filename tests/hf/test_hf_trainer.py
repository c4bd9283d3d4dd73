"""A forward-only Trainer takes the steps of zograd, and is a Trainer in everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

import zograd as zo
from tests.hf.helpers import Forward, arguments, digest, llama, losses, rows
from zograd.hf import forward_only
from zograd.llm.loop import DivergenceError

OWN = ("method", "lr", "zo", "callbacks", "compute_loss_func", "eval_dataset")


def trained(folder: Path, model: nn.Module | None = None, *, data: Any = None, **settings: Any) -> Any:
    """A trainer after its training. Settings that are no `TrainingArguments` go to the trainer."""
    own = {k: settings.pop(k) for k in OWN if k in settings}
    trainer = Forward(
        model=llama() if model is None else model, args=arguments(folder, **settings),
        train_dataset=rows() if data is None else data, **own,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("method", "lr"),
    [
        ("residual", 1e-3),
        ("zo_sgd", "auto"),
        ("fzoo", 1e-3),
        ("zo_adam", 1e-3),
        ("agzo", 1e-3),
        (None, None),
    ],
)
def test_it_trains_and_logs(tmp_path: Path, method: str | None, lr: float | None) -> None:
    trainer = trained(tmp_path, method=method, lr=lr, max_steps=20, lr_scheduler_type="constant")
    found = losses(trainer)
    assert len(found) == 10
    assert found[-1] < found[0]
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert all({"learning_rate", "evaluations"} <= line.keys() for line in lines)
    assert all(("mu" in line) == (method not in ("residual", None)) for line in lines)
    assert all("grad_norm" not in line for line in lines)
    assert lines[-1]["evaluations"] == trainer._zo.run.evaluations >= 20


def test_the_steps_are_those_of_the_optimizer_in_a_loop(tmp_path: Path) -> None:
    """Same seed, same batches, same rates: the same weights to the last bit."""
    data = rows(1) * 4  # in any order, the same batch
    trainer = trained(
        tmp_path, method=zo.methods.fzoo(lr=1e-3, n=2), data=data, max_steps=3, lr_scheduler_type="linear"
    )
    model = llama().eval()
    opt = zo.ZOOptimizer(model.named_parameters(), zo.methods.fzoo(lr=1e-3, n=2), seed=3)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1 - k / 3)
    for record in trainer._zo.records:
        ids = torch.stack([row["input_ids"] for row in data])
        opt.step(lambda ids=ids: model(input_ids=ids, labels=ids).loss)
        schedule.step()
        assert opt.last is not None
        assert opt.last.losses == record.losses
    assert digest(model) == digest(trainer.model)


def test_micro_batches_are_one_batch(tmp_path: Path) -> None:
    """The mean over 2 x 4 rows is that over 8 rows, at each point."""
    data = rows(8)
    one = trained(tmp_path, method="fzoo", lr=1e-3, data=data, per_device_train_batch_size=8, max_steps=4)
    two = trained(
        tmp_path, method="fzoo", lr=1e-3, data=data, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        max_steps=4,
    )  # fmt: skip
    assert one._zo.run.evaluations == two._zo.run.evaluations
    for a, b in zip(one._zo.records, two._zo.records, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)


class Net(nn.Module):
    """A model that knows nothing of transformers: its loss is the mean over a micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.out(self.drop(self.norm(x))).squeeze(-1) - labels) ** 2).mean()}


def numbers(n: int = 8) -> list[dict[str, torch.Tensor]]:
    draws = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) + 3
    return [{"x": x, "labels": torch.tensor(1.0)} for x in draws]


def test_micro_batches_of_a_mean_loss_are_averaged(tmp_path: Path) -> None:
    found = []
    for size, every in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        trainer = trained(
            tmp_path, Net(), method="zo_sgd", lr=1e-3, data=numbers(), per_device_train_batch_size=size,
            gradient_accumulation_steps=every, max_steps=2,
        )  # fmt: skip
        found.append([record.loss for record in trainer._zo.records])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("method", ["fzoo", "residual"])
def test_nothing_requires_grad_in_training_and_everything_is_as_before_afterwards(tmp_path: Path, method: str) -> None:
    seen: list[bool] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            seen.append(any(p.requires_grad or p.grad is not None for p in model.parameters()))

    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    cache = model.config.use_cache = getattr(arguments(tmp_path), "use_cache", True)  # what the Trainer makes of it
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    weights = model.model.embed_tokens.weight.clone()
    trained(tmp_path, model, method=method, lr=1e-3, callbacks=[Look()])
    assert seen == [False] * 6
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert not any(p.grad is not None for p in model.parameters())
    assert torch.equal(model.model.embed_tokens.weight, weights)  # the user froze it
    assert model.config.use_cache == cache


def test_a_model_in_which_nothing_requires_grad_is_trained_as_a_whole(tmp_path: Path) -> None:
    trainer = trained(tmp_path, llama().requires_grad_(False), method="fzoo", lr=1e-3)
    assert len(trainer._zo.store.leaves) == len(list(trainer.model.parameters()))


def test_dropout_is_off_and_buffers_stay(tmp_path: Path) -> None:
    """Each evaluation of a batch at a point has the same value; batch norm does not average perturbed points."""

    torch.manual_seed(0)
    model = Net()
    means = model.norm.running_mean.clone()
    trainer = trained(
        tmp_path, model, method="zo_sgd", lr=1e-2, data=numbers(), per_device_train_batch_size=8, max_steps=3
    )
    assert torch.equal(model.norm.running_mean, means)
    assert not model.drop.training
    assert trainer._zo.records[0].losses[0] != trainer._zo.records[0].losses[1]


@pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")
def test_evaluation_metrics_best_model_and_rotation(tmp_path: Path) -> None:
    def accuracy(prediction: Any) -> dict[str, float]:
        hits = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": float(np.mean(hits))}

    args = arguments(
        tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer = Forward(
        model=llama(), args=args, train_dataset=rows(), eval_dataset=rows(8, seed=2), compute_metrics=accuracy,
        method="residual", lr=1e-3,
    )  # fmt: skip
    trainer.train()
    evaluated = [line for line in trainer.state.log_history if "eval_accuracy" in line]
    assert len(evaluated) == 3
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["checkpoint-6"]
    plain = transformers.Trainer(model=trainer.model, args=args, eval_dataset=rows(8, seed=2))
    assert plain.evaluate()["eval_loss"] == pytest.approx(evaluated[-1]["eval_loss"], rel=1e-6)


def test_a_loss_that_takes_its_labels_out_of_the_batch(tmp_path: Path) -> None:
    """Label smoothing pops the labels, at each of the evaluations of a step."""
    trainer = trained(tmp_path, method="fzoo", lr=1e-3, label_smoothing_factor=0.1)
    assert all(np.isfinite(losses(trainer)))


@pytest.mark.parametrize("method", ["zo_sgd", "residual"])
def test_a_metric_as_the_loss(tmp_path: Path, method: str) -> None:
    """A number without a derivative trains by values, and is refused by methods that need a derivative."""

    def errors(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> float:
        probabilities = outputs["logits"][:, :-1].softmax(-1)
        return 1 - probabilities.gather(-1, labels[:, 1:, None]).mean().item()

    if method == "residual":
        model = llama()
        before = digest(model)
        with pytest.raises(TypeError, match=r"no derivative in the hidden states .* such as 'zo_sgd'"):
            trained(tmp_path, model, method=method, lr=1e-3, compute_loss_func=errors)
        assert digest(model) == before
        return
    trainer = trained(tmp_path, method=method, lr=1e-1, compute_loss_func=errors)
    assert all(0 < loss < 1 for loss in losses(trainer))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    for method in ("fzoo", "residual"):
        plain = trained(tmp_path, method=method, lr=1e-3)
        saving = trained(tmp_path, method=method, lr=1e-3, gradient_checkpointing=True)
        assert digest(plain.model) == digest(saving.model)


def test_tied_weights_move_once(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    trainer = trained(tmp_path, model, method="fzoo", lr=1e-3)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(leaf.tensor is model.lm_head.weight for leaf in trainer._zo.store.leaves) == 1


def test_weight_decay_leaves_out_gains_and_biases(tmp_path: Path) -> None:
    trainer = trained(tmp_path, method="fzoo", lr=1e-3, weight_decay=0.1)
    decays = {leaf.name: trainer._zo.records[0].rates[leaf.group].weight_decay for leaf in trainer._zo.store.leaves}
    assert decays["model.layers.0.mlp.up_proj.weight"] == 0.1
    assert decays["model.norm.weight"] == 0.0


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "constant_with_warmup"])
@pytest.mark.parametrize("lr", [1e-3, "auto"])
def test_schedules_of_the_arguments_are_followed(tmp_path: Path, kind: str, lr: Any) -> None:
    trainer = trained(
        tmp_path, method="zo_sgd", lr=lr, lr_scheduler_type=kind, warmup_steps=2, max_steps=8, logging_steps=1,
    )  # fmt: skip
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0 if lr == "auto" else lr)
    expected = transformers.get_scheduler(kind, probe, num_warmup_steps=2, num_training_steps=8).lr_lambdas[0]
    rates = [record.rates[0].lr for record in trainer._zo.records]
    shown = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert shown == pytest.approx(rates)
    if lr != "auto":
        assert rates == pytest.approx([1e-3 * expected(k) for k in range(8)])
    else:
        assert rates[0] == 0.0  # the warm-up
        level = [rate / expected(k) for k, rate in enumerate(rates) if expected(k)]
        assert all(0.2 < a / level[0] < 5 for a in level)


def test_a_schedule_of_the_method_stays(tmp_path: Path) -> None:
    method = zo.methods.zo_sgd(lr=zo.schedules.linear(1e-3, 10))
    trainer = trained(tmp_path, method=method, lr_scheduler_type="cosine")
    assert [r.rates[0].lr for r in trainer._zo.records] == pytest.approx([1e-3 * (1 - k / 10) for k in range(6)])


def test_a_schedule_that_follows_a_metric_needs_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the scheduler is ReduceLROnPlateau, .* pass lr=NUMBER"):
        trained(
            tmp_path, method="zo_sgd", lr="auto", lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps",
            eval_dataset=rows(4),
        )  # fmt: skip


def test_a_loss_that_is_nan_ends_the_training_and_moves_nothing(tmp_path: Path) -> None:
    model = llama()
    before = digest(model)
    with pytest.raises(DivergenceError, match="10 steps in a row had a non-finite loss"):
        trained(
            tmp_path, model, method="zo_sgd", lr=1e-3, max_steps=20,
            compute_loss_func=lambda *a, **k: torch.tensor(float("nan")),
        )  # fmt: skip
    assert digest(model) == before


def test_a_loss_that_is_the_same_everywhere_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="the same value everywhere"):
        trained(
            tmp_path, method="zo_sgd", lr=1e-3, max_steps=20, compute_loss_func=lambda *a, **k: torch.tensor(1.0),
        )  # fmt: skip


def test_a_loss_that_raises_changes_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def fails(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("the data are broken")
        return outputs["logits"].mean()

    model = llama()
    before = digest(model)
    with pytest.raises(RuntimeError, match="the data are broken"):
        trained(tmp_path, model, method="zo_sgd", lr=1e-3, compute_loss_func=fails)
    assert digest(model) == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_classifier_with_a_norm_behind_the_sum(tmp_path: Path, capfd: Any) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    )
    data = [row | {"labels": row["input_ids"][0] % 2} for row in rows()]
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = trained(tmp_path, model, data=data)
    line = capfd.readouterr().err
    assert "by backprop, lr 0.0036 (for 1 blocks" in line
    assert "because block 0 of BertForSequenceClassification does not add" in line
    assert all(np.isfinite(losses(trainer)))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"classifier.weight", "bert.pooler.dense.weight"} < moved
    assert all(name.startswith(("classifier", "bert.pooler", "bert.encoder.layer.1.")) for name in moved)


def test_a_classifier_of_text_is_trained_with_its_head(tmp_path: Path) -> None:
    """Whether the last token is below 4."""
    model = LlamaForSequenceClassification(llama().config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = [row | {"labels": (row["input_ids"][-1] < 4).long()} for row in rows(32)]
    trainer = trained(
        tmp_path, model, data=data, max_steps=30, per_device_train_batch_size=32, lr_scheduler_type="constant", lr=3e-3
    )
    assert losses(trainer)[-1] < 0.5 < losses(trainer)[0]
    stay = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert stay == {"model.embed_tokens.weight"}


# ---- what is refused, and what is said ---------------------------------------------------------------------------


def test_the_optimizer_in_a_plain_trainer_is_told_of_forward_only(tmp_path: Path) -> None:
    model, forwards = llama(), []
    model.register_forward_hook(lambda *_: forwards.append(0))
    opt = zo.ZOOptimizer(model.parameters(), "zo_sgd")
    trainer = transformers.Trainer(model=model, args=arguments(tmp_path), train_dataset=rows(), optimizers=(opt, None))
    with pytest.raises(TypeError, match=r"zograd\.hf\.forward_only\(Trainer\)"):
        trainer.train()
    assert not forwards  # before the first forward
    with pytest.raises(TypeError, match=r"opt\.step\(lambda.*zograd\.hf\.forward_only\(Trainer\)"):
        opt.step()


def test_an_optimizer_is_refused(tmp_path: Path) -> None:
    model = llama()
    for opt in (zo.ZOOptimizer(model.parameters(), "zo_sgd"), torch.optim.SGD(model.parameters(), lr=0.1)):
        with pytest.raises(ValueError, match=f"its own optimizer .* got {type(opt).__name__}; leave optimizers out"):
            Forward(model=model, args=arguments(tmp_path), train_dataset=rows(), optimizers=(opt, None))


def test_what_is_no_trainer_is_refused() -> None:
    for given in (TrainingArguments, "SFTTrainer", None):
        with pytest.raises(TypeError, match=r"forward_only takes a class derived from transformers\.Trainer"):
            forward_only(given)

    class Online(transformers.Trainer):
        def _generate_and_score_completions(self) -> None: ...

    with pytest.raises(TypeError, match="generates its training data"):
        forward_only(Online)
    assert forward_only(Forward) is Forward


def test_a_training_step_of_the_user_is_named(tmp_path: Path) -> None:
    class Mine(transformers.Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            raise AssertionError

    with pytest.warns(UserWarning, match=r"Mine\.training_step is not called"):
        forward_only(Mine)(model=llama(), args=arguments(tmp_path), train_dataset=rows()).train()


def test_two_names_of_one_setting(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="two names of one setting"):
        Forward(model=llama(), args=arguments(tmp_path), method="zo_sgd", zo="fzoo")
    assert trained(tmp_path, zo=zo.methods.mezo(lr=1e-3))._zo.method.name == "mezo"


def test_arguments_without_a_use_are_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"max_grad_norm=0\.3 \(there is no gradient to clip\)") as caught:
        trainer = trained(tmp_path, method="fzoo", lr=1e-3, max_grad_norm=0.3, adam_beta2=0.95)
    assert "adam_beta2=0.95 (a method has its own settings)" in str(caught[0].message)
    assert all(np.isfinite(losses(trainer)))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_the_arguments_of_the_caller_stay(tmp_path: Path) -> None:
    args = arguments(tmp_path, gradient_checkpointing=True)
    Forward(model=llama(), args=args, train_dataset=rows())
    assert args.gradient_checkpointing is True
    assert args.max_grad_norm == 1.0


@pytest.mark.parametrize("method", ["backprop", "residual"])
def test_blocks_that_do_not_fit_are_refused_before_training(tmp_path: Path, method: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no list of blocks\. Use method='zo_sgd'"):
        trained(tmp_path, model, method=method, data=[{"x": torch.zeros(2)}])


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("DeepSpeed", {"is_deepspeed_enabled": True}),
        ("FSDP", {"is_fsdp_enabled": True}),
        ("DataParallel", {"n_gpu": 2}),
        ("torch_compile", {"torch_compile": True}),
    ],
)
def test_engines_that_shard_or_copy_the_model_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, settings: dict[str, Any]
) -> None:
    """As the Trainer tells of them, when it has set its engine up."""
    set_up = transformers.Trainer.create_accelerator_and_postprocess

    def engaged(self: Any) -> None:
        set_up(self)
        for name, value in settings.items():
            on = self.args if name in ("n_gpu", "torch_compile") else self
            setattr(on, "_n_gpu" if name == "n_gpu" else name, value)

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", engaged)
    monkeypatch.setattr(transformers.Trainer, "_wrap_model", lambda self, model, **_: model)
    with pytest.raises(ValueError, match=rf"^forward_only does not go with {engine}: [^.]*$"):
        Forward(model=llama(), args=arguments(tmp_path), train_dataset=rows())


def test_a_learning_rate_that_is_set_later_is_taken(tmp_path: Path) -> None:
    """A search over hyperparameters sets the arguments of each trial after the trainer was made."""
    trainer = Forward(
        model_init=lambda trial=None: llama(),
        args=arguments(tmp_path, lr_scheduler_type="constant", max_steps=2),
        train_dataset=rows(),
    )
    for rate in (3e-3, 1e-3):
        trainer.args.learning_rate = rate
        trainer.train()
        assert [line["learning_rate"] for line in trainer.state.log_history if "loss" in line] == [rate]
        assert f"lr {rate:.3g} (learning_rate of TrainingArguments)" in trainer._chosen().line(trainer.model)


@pytest.mark.parametrize(
    ("method", "remedy"), [(zo.methods.fzoo, r"call it: method=zograd\.methods\.fzoo\(\)"), (3, "write method='fzoo'")]
)
def test_what_is_no_method_is_said_when_the_trainer_is_made(tmp_path: Path, method: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=remedy):
        Forward(model=llama(), args=arguments(tmp_path), train_dataset=rows(), method=method)
    with pytest.raises(TypeError, match=r"Run takes a Method, such as zograd\.methods\.fzoo"):
        zo.Run(zo.Store(dict(llama().named_parameters())), method)
