"""`forward_only(TrainerClass)`: a Trainer whose training step is a step of zograd."""

from __future__ import annotations

import inspect
import sys
import warnings
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zograd.core.method import Method
from zograd.core.records import Records
from zograd.core.schedules import Schedule
from zograd.core.tape import Tape
from zograd.distributed import Peers
from zograd.errors import needs
from zograd.estimators import FromBlocks
from zograd.hf import arguments, checkpoints
from zograd.hf.choosing import OF_ARGUMENTS, Choice, choose, far, trainable
from zograd.hf.losses import Losses, StepLoss, as_tensor, by_values, fixed_mode, from_blocks
from zograd.hf.marks import Marks
from zograd.hf.optimizer import TrainerOptimizer
from zograd.llm.loop import DivergenceError
from zograd.llm.parts import without_cache
from zograd.runs.errors import RunError
from zograd.runs.memory import few_kernels

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

OWN = ("training_step", "create_optimizer", "create_scheduler")
"""Methods of a Trainer that `ForwardOnly` replaces, and does not call."""

MAX_FAILURES = 10
"""Steps in a row that were refused or changed nothing, after which training ends with an error."""


@cache
def forward_only(trainer_class: type[Any]) -> type[Any]:
    """A class like `trainer_class` that trains from evaluations of `compute_loss`, or block by block.

    trainer_class: `transformers.Trainer`, or a class derived from it, such as SFTTrainer, DPOTrainer, KTOTrainer and
        RewardTrainer of TRL. Its `compute_loss`, collators, callbacks, evaluations, logging and checkpoints stay.

    The class takes three more keywords:

    method: a name of `zograd.methods`, a `Method`, or None. None takes `residual` for the last four blocks, where they
        add to the stream of hidden states, `backprop(recompute=True)` for lower ones, `backprop` on the last block and
        the head where they do not add (BERT), and `zo_sgd` with lr="auto" where there are no blocks; one line on stderr
        says why. `zo` is another name for it.
    lr: a number or "auto", in place of the method's. Without it, a method by name takes `learning_rate` of
        `TrainingArguments` if that differs from the default of its class, otherwise lr="auto", or the menu's rate where
        none can be measured.

    A step evaluates the mean of `compute_loss` over the micro-batches of `gradient_accumulation_steps` (and over
    processes) at each point of the method, under `no_grad`, in eval mode: dropout is off. The weights are not written
    for an evaluation. Trained is what requires grad when `train` is called, or everything where nothing does. Logs have
    also `mu` and `evaluations`. `lr_scheduler_type` and `warmup_steps` multiply the rate, also a measured one; a
    `Method` with a schedule of its own keeps that. Gradient checkpointing and `max_grad_norm` are off; arguments
    without a use are named in a warning.

    A checkpoint has what that of a Trainer has, with the state of the method in optimizer.pt, and `tape.zo`: about 100
    bytes a step. `resume_from_checkpoint` continues to the same bits.

    Costs a step: `method.evaluations` times `compute_loss`. Memory: that of evaluation, and what the method keeps.

    Raises TypeError for a class that is no Trainer, or one that generates its training data (GRPO). The class raises
    ValueError for settings that do not fit, RunError for a checkpoint of another training, and DivergenceError after
    10 steps in a row that were refused, or changed nothing at a loss other than 0.

        Trainer = zo.hf.forward_only(transformers.Trainer)
        trainer = Trainer(model=model, args=args, train_dataset=data, method="fzoo", lr=1e-3)
        trainer.train()
    """
    try:
        from transformers import Trainer as base
    except ImportError as e:
        raise needs("forward_only", "transformers", "llm") from e
    if not (isinstance(trainer_class, type) and issubclass(trainer_class, base)):
        raise TypeError(
            f"forward_only takes a class derived from transformers.Trainer, and got {trainer_class!r}; write "
            f"forward_only(Trainer)(model=..., args=...)"
        )
    if hasattr(trainer_class, "_generate_and_score_completions"):
        raise TypeError(
            f"{trainer_class.__name__} generates its training data, and its loss has the same value at every point; "
            f"forward_only trains with a loss on given data (Trainer, SFTTrainer, DPOTrainer, KTOTrainer, "
            f"RewardTrainer)"
        )
    if issubclass(trainer_class, ForwardOnly):
        return trainer_class
    for name in OWN:
        owner = next(c for c in trainer_class.__mro__ if name in vars(c))
        if owner.__module__.partition(".")[0] not in ("transformers", "trl"):
            warnings.warn(
                f"{owner.__name__}.{name} is not called: forward_only has its own. What belongs to the loss goes into "
                f"compute_loss",
                stacklevel=2,
            )
    return type(f"ForwardOnly{trainer_class.__name__}", (ForwardOnly, trainer_class), {})


class ForwardOnly(Trainer):  # type: ignore[misc]  # stands in front of a Trainer
    """What `forward_only` puts in front of a Trainer."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *args: Any,
        method: str | Method[Any] | None = None,
        lr: float | str | None = None,
        zo: str | Method[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if method is not None and zo is not None:
            raise TypeError("method and zo are two names of one setting; give one of them")
        few_kernels()
        check_method(zo if method is None else method)
        given = inspect.signature(super().__init__).bind_partial(*args, **kwargs)
        refuse_optimizers(given.arguments)
        asked = given.arguments.get("args")
        if "args" in given.arguments:
            given.arguments["args"] = arguments.settled(asked)
        self._method, self._lr = zo if method is None else method, lr
        self._learning_rate = arguments.learning_rate(asked)
        self._useless = arguments.useless(asked)
        self._choice: Choice | None = None
        self._zo: TrainerOptimizer | None = None
        self._held: list[Any] = []
        self._marks = Marks()
        self._asked: frozenset[int] = frozenset()
        self._resumed_lr: float | None = None
        self._losses: Losses | None = None
        self._tape: Tape | None = None
        self._about: dict[str, Any] = {}
        super().__init__(*given.args, **given.kwargs)
        arguments.switch_off(self.args)
        self._rate_seen = self.args.learning_rate
        self._peers = Peers(dist.group.WORLD if self.args.world_size > 1 else None)
        refuse_engines(self)

    # ---- before the first step -----------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """As in the Trainer, without a loss scaler and without DDP: there are no gradients to scale or to exchange."""
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = None
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer. Afterwards the parameters require grad as before."""
        self._losses = self._resumed_lr = None
        self._tape, training = None, getattr(self.model, "training", True)
        try:
            return super().train(*args, **kwargs)
        except BaseException:
            if self.model is not None:
                self.model.train(training)
            raise
        finally:
            self._held = []
            self._marks.restore()

    def _chosen(self) -> Choice:
        """The method and what it trains, chosen once for a model, its tensors that require grad, and a learning rate.

        A rate that the arguments got since then is one that was set: a search over hyperparameters sets it so.
        """
        if self.args.learning_rate != self._rate_seen:
            self._rate_seen, self._choice = self.args.learning_rate, None
            self._learning_rate = float(self._rate_seen)
        tensors = trainable(self.model)
        asked = self._asked if self._marks.are_off else frozenset(map(id, tensors.values()))
        if self._choice is None or asked != self._asked:
            self._asked = asked
            self._choice = choose(self.model, tensors, self._method, self._lr, self._learning_rate)
        return self._choice

    def call_model_init(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer; the new model gets a choice of its own."""
        self._choice = self._zo = None
        return super().call_model_init(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The optimizer that the Trainer holds; a new one where other tensors are to be trained than before."""
        choice, self._held = self._chosen(), []
        if self._zo is not None and {id(t) for t in choice.tensors.values()} != self._zo.given:
            self.optimizer, self._tape = None, None
        if self.optimizer is None:
            if choice.method.estimator.watches and self._peers.world > 1:
                raise ValueError(
                    f"method={choice.method.name!r} looks at what enters layers, which differs from process to "
                    f"process, and here are {self._peers.world}; use one process, or 'lozo'"
                )
            self._announce(choice)
            self._equalise()
            self._about = (
                checkpoints.header(self.model, choice.tensors, choice.method, self.args.seed, self.args.weight_decay)
                if self._tape is None
                else self._tape.header
            )
            undecayed = set(choice.tensors) - set(self.get_decay_parameter_names(self.model))
            self.optimizer = self._zo = TrainerOptimizer(
                choice.tensors, choice.method, seed=self.args.seed, weight_decay=self.args.weight_decay,
                undecayed=sorted(undecayed), model=self.model, parts=choice.parts,
            )  # fmt: skip
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of `lr_scheduler_type`, which multiplies a measured rate too; a method's own schedule stays."""
        assert self._zo is not None
        controller = self._zo.method.controller
        if self.lr_scheduler is None and isinstance(controller, Schedule) and not is_constant(controller):
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
            self._created_lr_scheduler = True
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if controller.measures:
            shapes = getattr(scheduler, "lr_lambdas", None)
            if shapes is None:
                raise ValueError(
                    f"the scheduler is {type(scheduler).__name__}, and a measured learning rate takes the shape of a "
                    f"LambdaLR, as those of lr_scheduler_type='linear' and others of the step are; choose one of them, "
                    f"or pass lr=NUMBER"
                )
            self._zo.follow(shapes[0])
        return scheduler

    def _announce(self, choice: Choice) -> None:
        """One line: what is trained, how and why; and warnings of what the arguments ask for in vain."""
        if not self.is_world_process_zero():
            return
        print(f"zograd: {choice.line(self.model)}", file=sys.stderr)
        if self._useless:
            warnings.warn(f"these TrainingArguments have no use here: {'; '.join(self._useless)}", stacklevel=2)
        if self._learning_rate is not None and choice.rate != OF_ARGUMENTS:
            warnings.warn(
                f"learning_rate={self._learning_rate:g} of TrainingArguments is not used: the method has a rate of its "
                f"own; pass lr={self._learning_rate:g} to use it",
                stacklevel=2,
            )
        if choice.rate == OF_ARGUMENTS and (warning := far(choice.method)) is not None:
            warnings.warn(warning, stacklevel=2)

    def _equalise(self) -> None:
        """The weights and buffers of rank 0 in all processes, as DDP does when it wraps a model."""
        if self._peers.world > 1:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                dist.broadcast(tensor.data, src=0)

    # ---- a step --------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Hold a micro-batch; with the last one of a step, take the step. Returns its loss, and 0 before."""
        assert self._zo is not None
        assert self._zo.run is not None
        self._marks.off(self.model, self._asked)
        if getattr(self.model, "_require_grads_hook", None) is not None:  # of gradient checkpointing
            self.model.disable_input_require_grads()
        fixed_mode(self, self.accelerator.unwrap_model(model))
        self._held.append(self._prepare_inputs(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._held = self._held, []
        loss, source = StepLoss(self, model, batches, num_items_in_batch), self._zo.source
        oracle = (
            by_values(loss, self._peers, self._zo.store)
            if source is None
            else from_blocks(source, loss, self.accelerator.autocast, self._peers)
        )
        try:
            with without_cache(self.model):
                value = self._zo.step_by(oracle)
        finally:
            loss.settle()
            if source is not None:
                source.end()
        if self._zo.last is not None:
            self._peers.remember(self._zo.last)
        self._watch()
        return as_tensor(value, self.args.device)

    def _watch(self) -> None:
        """Raise DivergenceError after `MAX_FAILURES` steps of one kind in a row; warn once of a loss that has risen."""
        assert self._zo is not None
        run, last = self._zo.run, self._zo.last
        assert run is not None
        assert last is not None
        lr = last.rates[0].lr
        self._losses = self._losses or Losses(last.loss)
        if (level := self._losses.risen(last.loss)) is not None:
            warnings.warn(
                f"the loss rose from {self._losses.first:.4g} in the first step to {level:.4g} in the last "
                f"{Losses.LAST}: the steps are too large; start again with a smaller lr, such as lr={0.1 * lr:.1g} "
                f"(now {lr:.2g})",
                stacklevel=3,
            )
        if run.refused_in_a_row >= MAX_FAILURES:
            raise DivergenceError(
                f"{run.refused_in_a_row} steps in a row had a non-finite loss (the last {last.loss} at step "
                f"{last.step}): lower lr (now {lr:g}), or look for examples without a target"
            )
        if run.flat_in_a_row >= MAX_FAILURES and last.loss == 0.0:  # there may be nothing left to lower
            if not self._losses.told_of_zero:
                warnings.warn(
                    f"the loss was 0 at every point of {run.flat_in_a_row} steps in a row, so nothing moves: where it "
                    f"is the best that there is, end the training here; otherwise look at what it is computed from",
                    stacklevel=3,
                )
            self._losses.told_of_zero = True
        elif run.flat_in_a_row >= MAX_FAILURES:
            raise DivergenceError(
                f"the loss was {last.loss:g} at every point of {run.flat_in_a_row} steps in a row: no trained weight "
                f"changes it. The loss may have the same value everywhere, the model may have saturated (lower lr, now "
                f"{lr:g}), or mu={last.mu:g} is too small for these weights"
            )

    def _get_learning_rate(self) -> float:
        """The rate of the last step, for the log; before it, the scheduler's."""
        if self._zo is not None and self._zo.last is not None:
            return self._zo.last.rates[0].lr
        return float(super()._get_learning_rate())

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """None: there is no gradient."""
        return None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with `mu` and `evaluations` beside the loss."""
        if self._zo is not None and self._zo.run is not None and ("loss" in logs or "train_loss" in logs):
            logs["evaluations"] = self._zo.run.evaluations
            if "loss" in logs and self._zo.last is not None and not isinstance(self._zo.method.estimator, FromBlocks):
                logs["mu"] = self._zo.last.mu
        super().log(logs, *args, **kwargs)

    # ---- on the disk ---------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the tape of all steps beside the weights."""
        super().save_model(output_dir, *args, **kwargs)
        if self._zo is not None and self.args.should_save:
            checkpoints.save_tape(Path(output_dir or self.args.output_dir), self._about, self._zo.records)

    def _load_best_model(self) -> None:
        """As in the Trainer; the tape ends where these weights stand, and a next training begins from them."""
        super()._load_best_model()
        if self._zo is not None and self.state.best_model_checkpoint is not None:
            self._zo.records = Records(checkpoints.read_tape(Path(self.state.best_model_checkpoint)).records)
            self.optimizer = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, once the tape of the checkpoint was found to fit. Raises RunError and TapeError."""
        tape, choice = checkpoints.read_tape(Path(resume_from_checkpoint)), self._chosen()
        checkpoints.check_fits(tape, choice.method, choice.tensors, self.args.seed, self.args.weight_decay)
        if len(choice.tensors) < len(list(self.model.parameters())) and not isinstance(self.model, _pretrained()):
            checkpoints.check_frozen(tape, self.model, choice.tensors)
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._tape = tape

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in the Trainer. Raises RunError where the state of the method is missing, or belongs to another step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self._tape is None:
            return
        assert self._zo is not None
        assert self._zo.run is not None
        if self._zo.run.step_number != self._tape.steps:
            raise RunError(
                f"{checkpoint} has a tape of {self._tape.steps} steps and the state of a method after "
                f"{self._zo.run.step_number}: its optimizer.pt is missing (save_only_model=True?) or of another "
                f"checkpoint"
            )
        self._zo.records = Records(self._tape.records)
        self._about = self._tape.header
        self._resumed_lr = self._zo.resumed_lr
        if self._resumed_lr is not None and self.is_world_process_zero():
            warnings.warn(
                f"the learning rate is that of {checkpoint}, {self._resumed_lr:g}, as in every Trainer, and not "
                f"{self._zo.defaults['lr']:g}; start without resume_from_checkpoint for another one",
                stacklevel=2,
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the method and the identity of the tape at the end."""
        super().create_model_card(*args, **kwargs)
        card = Path(self.args.output_dir) / "README.md"
        if self._zo is None or self._zo.run is None or not (self.is_world_process_zero() and card.exists()):
            return
        text = checkpoints.describe(
            card.read_text(encoding="utf-8"), self._about,
            self._chosen().line(self.model, self._resumed_lr), self._zo.run.evaluations, Path(self.args.output_dir),
        )  # fmt: skip
        card.write_text(text, encoding="utf-8")


def _pretrained() -> type[Any]:
    from transformers import PreTrainedModel

    return PreTrainedModel  # type: ignore[no-any-return]


def check_method(method: Any) -> None:
    """Raise TypeError for what is no name and no `Method`; of a function of the menu, it says to call it."""
    if method is None or isinstance(method, str | Method):
        return
    name = getattr(method, "__name__", None)
    remedy = f"call it: method=zograd.methods.{name}()" if callable(method) else "write method='fzoo', or leave it out"
    raise TypeError(f"method is {method!r}, and expected is a name of the menu or a zograd.Method; {remedy}")


def is_constant(schedule: Schedule) -> bool:
    """Whether a schedule has the same value at every step."""
    return schedule.shape == "constant" and not schedule.warmup


def refuse_optimizers(given: dict[str, Any]) -> None:
    """Raise ValueError for an optimizer or a scheduler that was passed: the method is the optimizer."""
    passed = [*(given.get("optimizers") or ()), given.get("optimizer_cls_and_kwargs")]
    if any(value is not None for value in passed):
        kind = next(value for value in passed if value is not None)
        raise ValueError(
            f"forward_only makes its own optimizer and scheduler, and got {type(kind).__name__}; leave optimizers out, "
            f"and pass method=... and lr=... (a ZOOptimizer has its method in the attribute `method`)"
        )


def refuse_engines(trainer: Any) -> None:
    """Raise ValueError for engines that shard or copy the model in ways that evaluations do not know."""
    for engine, on, remedy in (
        (
            "DeepSpeed",
            trainer.is_deepspeed_enabled,
            "it shards gradients and optimizer states, of which there are none, and its third stage the weights, which "
            "ZOOptimizer takes from fully_shard",
        ),
        (
            "FSDP",
            trainer.is_fsdp_enabled,
            "the model has to fit one process here, and ZOOptimizer takes one that fully_shard has split",
        ),
        ("DataParallel", trainer.args.n_gpu > 1, "it copies the weights for each forward; start with torchrun"),
        ("torch_compile", trainer.args.torch_compile, "leave it out in this release"),
    ):
        if on:
            raise ValueError(f"forward_only does not go with {engine}: {remedy}")
