"""`make mutants`: break the code in known ways, one at a time, and see whether the tests notice.

Each `Mutant` is one change of one file that is a fault, with the tests that have to fail by it. They are run on a copy
of the project: first unchanged, where they have to pass, then with each mutant, where at least one has to fail. What no
test notices is printed, and the exit code is 1.

    python tools/mutants.py            # all of them, some minutes
    python tools/mutants.py rounding   # those whose name contains a word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("src", "tests", "benchmarks", "tools", "docs", "README.md", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` (which stands there once) becomes `new`; `tests` are arguments of pytest that must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "the derivative of token losses forgets the target",
        "src/zograd/llm/scoring/loss.py",
        "part[here, targets[here] - start] -= 1.0",
        "part[here, targets[here] - start] -= 0.0",
        ("tests/llm/test_blockwise.py::test_token_losses_have_the_derivative_of_cross_entropy",),
    ),
    Mutant(
        "a head gets the derivative of the hidden states",
        "src/zograd/blockwise/calls.py",
        "zip(tail.items(), of_tail, strict=True)",
        "zip(tail.items(), of_states * len(tail), strict=False)",
        ("tests/llm/test_blockwise.py::test_the_last_norm_and_a_head_get_their_exact_gradients",),
    ),
    Mutant(
        "micro-batches are added where they are to be averaged",
        "src/zograd/hf/losses.py",
        "loss if self._is_scaled else loss / len(self.batches)",
        "loss",
        ("tests/hf/test_hf_trainer.py::test_micro_batches_of_a_mean_loss_are_averaged",),
    ),
    Mutant(
        "a resumed training begins a tape of its own",
        "src/zograd/hf/trainer.py",
        "self._zo.records = Records(self._tape.records)",
        "self._zo.records = Records()",
        ("tests/hf/test_hf_checkpoints.py::test_a_resumed_training_ends_with_the_same_bits",),
    ),
    Mutant(
        "every block is differentiated where the first one is",
        "src/zograd/blockwise/sources.py",
        "hidden = call.inputs.pop(number) if exact else self._states[k]",
        "hidden = call.inputs.pop(number) if exact else call.inputs[self.first]",
        ("tests/llm/test_blockwise.py::test_residual_feedback_is_exact_for_the_last_block_and_its_definition_below",),
    ),
    Mutant(
        "a tape that is cut keeps a step that is taken again",
        "src/zograd/core/tape.py",
        "self.path.read_bytes()[: self._ends[steps]]",
        "self.path.read_bytes()[: self._ends[min(steps + 1, self.steps)]]",
        ("tests/llm/test_blockwise.py::test_a_run_goes_on_from_its_last_state_to_the_same_bits",),
    ),
    Mutant(
        "the rounding key is taken from the domain of directions",
        "src/zograd/core/run.py",
        "self.seed, step, OfStep.ROUNDING",
        "self.seed, step, OfStep.DIRECTION",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "scores for a mask are drawn with the keys of the run",
        "src/zograd/laws/scores.py",
        "law(Draw(own, k, j,",
        "law(Draw(seed, k, j,",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "diagnostics draw with the keys of the run",
        "src/zograd/diagnostics/problem.py",
        "law(Draw(own, k, 0,",
        "law(Draw(seed, k, 0,",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "a basis vector of the same name replaces another",
        "src/zograd/core/vector.py",
        "    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):\n",
        "    if False:\n",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "the bound on conformal moves is twice as large",
        "src/zograd/spaces/orthant.py",
        "min(1.0, self.rho / size)",
        "min(1.0, 2 * self.rho / size)",
        ("tests/core/test_spaces.py::test_a_conformal_move_on_the_orthant_is_cut_to_length_rho",),
    ),
    Mutant(
        "of equal elements the l1 ball takes the last block's",
        "src/zograd/sets/balls.py",
        "abs(value) > abs(found[0]) else found",
        "abs(value) >= abs(found[0]) else found",
        ("tests/core/test_sets.py::test_of_equal_minimisers_the_documented_one_is_taken_however_the_leaf_is_cut",),
    ),
    Mutant(
        "a box takes its lower bound where the gradient is 0",
        "src/zograd/sets/box.py",
        "torch.where(g > 0, low, high, out=out)",
        "torch.where(g >= 0, low, high, out=out)",
        ("tests/core/test_sets.py::test_of_equal_minimisers_the_documented_one_is_taken_however_the_leaf_is_cut",),
    ),
    Mutant(
        "a state that is ahead of the tape is loaded",
        "src/zograd/runs/state.py",
        "not 0 <= step <= tape.steps",
        "not 0 <= step",
        ("tests/llm/test_run_folder.py::test_a_state_that_does_not_fit_is_left_aside_with_a_sentence",),
    ),
    Mutant(
        "the state of another run is loaded",
        "src/zograd/runs/state.py",
        'if about["tape"] != str(tape.checksum(step)):',
        "if False:",
        ("tests/llm/test_run_folder.py::test_a_state_that_does_not_fit_is_left_aside_with_a_sentence",),
    ),
    Mutant(
        "moves of rank one wait beyond an evaluation",
        "src/zograd/llm/loop.py",
        "for every in (LIMIT, s.eval_every) if every)",
        "for every in (LIMIT,) if every)",
        ("tests/llm/test_run_folder.py::test_a_run_whose_bits_depend_on_evaluations_keeps_them",),
    ),
    Mutant(
        "what one batch shows about the memory is forgotten in the next",
        "src/zograd/llm/oracle.py",
        "points.limit = self.limit",
        "points.limit = -1",
        ("tests/llm/test_oracle.py::test_a_limit_holds_for_later_batches_and_for_the_peers",),
    ),
    Mutant(
        "the rest of a move is dropped when a forward raises midway",
        "src/zograd/stores/deferred.py",
        "            if move.done < leaf.numel:\n",
        "            if False:\n",
        ("tests/core/test_batched.py::test_what_passing_leaves_of_a_move_is_made",),
    ),
    Mutant(
        "moves with weight decay stay pending",
        "src/zograd/stores/deferred.py",
        "or not of_signs(direction.terms[0][0]) or rate.weight_decay:",
        "or not of_signs(direction.terms[0][0]):",
        ("tests/core/test_batched.py::test_moves_with_weight_decay_do_not_ride_along",),
    ),
    Mutant(
        "a state of another dtype is accepted",
        "src/zograd/stores/store.py",
        "tensor.shape != state[name].shape or tensor.dtype != state[name].dtype",
        "tensor.shape != state[name].shape",
        ("tests/core/test_copies.py::test_a_state_of_another_dtype_is_refused_and_changes_nothing",),
    ),
    Mutant(
        "weight decay comes after the gradient in a proximal step",
        "src/zograd/rules/proximal.py",
        "here.mul_(1.0 - lr * decay).sub_(g_block, alpha=lr)",
        "here.sub_(g_block, alpha=lr).mul_(1.0 - lr * decay)",
        ("tests/core/test_proximal.py::test_weight_decay_comes_before_the_gradient_and_the_map",),
    ),
    Mutant(
        "all parts of a batch have the same dropout masks",
        "src/zograd/distributed/shared.py",
        "fold(key, part) if part else key)",
        "key)",
        ("tests/distributed/test_ranks.py::test_dropout_of_two_parts_is_that_of_different_units",),
    ),
    Mutant(
        "every epoch has the same order of examples",
        "src/zograd/llm/scoring/batches.py",
        "np.random.Philox(fold(self.seed, epoch))",
        "np.random.Philox(fold(self.seed, 0))",
        ("tests/llm/test_llm_scoring.py::test_each_epoch_has_an_order_of_its_own",),
    ),
    Mutant(
        "files that are held out are trained on too",
        "src/zograd/hub/task.py",
        "list(tables[split].records) if split in tables else []",
        'list(tables[split].records) if split in tables else [r for n in tables if n and split == "train" '
        "for r in tables[n].records]",
        ("tests/llm/test_data.py::test_files_for_evaluation_are_not_split_and_nothing_else_is_held_out",),
    ),
    Mutant(
        "a rare class is drawn with all others",
        "src/zograd/hub/task.py",
        'if draw == "stratified":',
        'if draw == "stratified" and task.drawn is None:',
        ("tests/llm/test_data.py::test_a_sample_of_an_unbalanced_file_has_each_class_by_its_share",),
    ),
    Mutant(
        "a quote in a TSV swallows lines",
        "src/zograd/hub/formats.py",
        "remedy=remedy, quoting=csv.QUOTE_NONE))",
        "remedy=remedy))",
        ("tests/hub/test_sources.py::test_a_quote_at_the_beginning_of_a_value_swallows_no_lines",),
    ),
    Mutant(
        "of several words of a class the best one counts",
        "src/zograd/llm/scoring/scorer.py",
        "found[:, words].logsumexp(1)",
        "found[:, words].amax(1)",
        ("tests/llm/test_llm_scoring.py::test_the_probabilities_of_several_words_of_a_class_are_added",),
    ),
    Mutant(
        "all of a conversation is learned",
        "src/zograd/llm/scoring/encoding.py",
        "return self.known(ids), _common(start, ids)",
        "return self.known(ids), min(1, _common(start, ids))",
        ("tests/llm/test_record_shapes.py::test_the_chat_template_writes_a_conversation",),
    ),
    Mutant(
        "a long example loses the end of its prompt",
        "src/zograd/llm/scoring/scorer.py",
        "        return shorter, self._sequences(shorter)\n",
        "        most = self.max_length\n"
        "        return example, [replace(s, ids=s.ids[:most], scored_from=most) for s in sequences]\n",
        ("tests/llm/test_truncation.py::test_the_longest_column_is_cut_as_little_as_is_needed",),
    ),
    Mutant(
        "what run.json names as a metric is imported",
        "src/zograd/llm/resume.py",
        'if ":" in code and getattr(given, name) != code:',
        "if len(code) < 0:",
        ("tests/llm/test_metrics.py::test_code_is_named_again",),
    ),
    Mutant(
        "biases and norm gains decay",
        "src/zograd/llm/loading/selection.py",
        "{name: int(p.ndim <= 1) for name, p in chosen.items()}",
        "{name: 0 for name, p in chosen.items()}",
        (
            "tests/llm/test_llm_train.py::test_biases_are_in_the_group_without_decay",
            "tests/llm/test_llm_train.py::test_weight_decay_is_on_matrices_not_on_biases_and_norms",
        ),
    ),
    Mutant(
        "a file gets its name before its contents are on the disk",
        "src/zograd/files.py",
        "    sync_file(temporary)\n    os.replace(temporary, path)\n",
        "    os.replace(temporary, path)\n    sync_file(path)\n",
        ("tests/core/test_one_writer.py::test_contents_reach_the_disk_before_the_name_and_the_name_after",),
    ),
    Mutant(
        "a file is never forced to the disk",
        "src/zograd/files.py",
        "    sync_file(temporary)\n    os.replace",
        "    os.replace",
        ("tests/core/test_one_writer.py::test_contents_reach_the_disk_before_the_name_and_the_name_after",),
    ),
    Mutant(
        "a file is written in place",
        "src/zograd/files.py",
        '        with open(temporary, "xb") as f:  # new: no link is followed\n            f.write(data)\n',
        "        path.write_bytes(data)\n        temporary.write_bytes(data)\n",
        (
            "tests/core/test_one_writer.py::test_a_write_that_fails_leaves_the_old_file_and_nothing_else",
            "tests/core/test_one_writer.py::test_a_crash_after_the_rename_leaves_the_new_file_whole",
            "tests/core/test_one_writer.py::test_contents_reach_the_disk_before_the_name_and_the_name_after",
        ),
    ),
    Mutant(
        "the tape is not forced to the disk",
        "src/zograd/core/tape.py",
        "        os.fsync(self._file.fileno())\n",
        "        pass\n",
        ("tests/core/test_one_writer.py::test_a_tape_is_forced_to_the_disk_when_asked_and_at_the_end",),
    ),
    Mutant(
        "a replay that ends at other weights than the run is saved",
        "src/zograd/llm/restore.py",
        'recorded.get("sha256") != sha256:',
        'not recorded.get("sha256"):',
        ("tests/llm/test_run_folder.py::test_a_replay_that_ends_elsewhere_than_the_run_writes_nothing",),
    ),
    Mutant(
        "scales go back to a GGUF in the order of the model's rows",
        "src/zograd/quantized/gguf_file.py",
        "scales = scales[torch.argsort(where.rows)]",
        "scales = scales[where.rows]",
        ("tests/quantized/test_packed.py::test_the_saved_file_is_the_old_one_with_new_scales",),
    ),
    Mutant(
        "a second writer cuts off what the first one wrote",
        "src/zograd/core/tape.py",
        "if not ends or ends[-1] != (self._seen.end, self._seen.crc):",
        "if False:",
        ("tests/core/test_one_writer.py::test_a_tape_that_grew_since_it_was_read_is_not_cut",),
    ),
    Mutant(
        "a method with a rate of its own goes on measuring",
        "src/zograd/core/run.py",
        "self.estimator = method.measured",
        'self.estimator = __import__("zograd").learning_rate.Measured(method.estimator)',
        ("tests/core/test_auto.py::test_a_rate_of_ones_own_drops_the_measurements",),
    ),
    Mutant(
        "training goes on when its loss has run away",
        "src/zograd/llm/loop.py",
        "if self.away_in_a_row >= s.max_failures:",
        "if False:",
        ("tests/llm/test_llm_train.py::test_a_run_that_runs_away_ends_with_a_sentence",),
    ),
    Mutant(
        "a run that made f larger is a success",
        "src/zograd/api/verdict.py",
        "    if up:\n",
        "    if False:\n",
        ("tests/core/test_success.py::test_a_runaway_is_no_success_and_a_rate_that_works_is_named",),
    ),
    Mutant(
        "forward differences are taken in noise too",
        "src/zograd/estimators/differences.py",
        "if self.n == 1 or ask.repeats > 1 else",
        "if self.n == 1 else",
        ("tests/core/test_forward_or_central.py",),
    ),
    Mutant(
        "the best point is the best without its penalty",
        "src/zograd/api/objective.py",
        "return value if self.penalty is None else value + self.penalty(x)",
        "return value",
        ("tests/api/test_penalty.py",),
    ),
    Mutant(
        "an answer counts before it is on the disk",
        "src/zograd/api/ask_tell.py",
        "            self.journal(answers)",
        "            pass",
        ("tests/serve/test_serve.py",),
    ),
    Mutant(
        "the second answer to a trial takes the place of the first",
        "src/zograd/api/trials.py",
        'return "repeated" if number in self.answers else "counted"',
        'return "counted"',
        ("tests/core/test_trials.py",),
    ),
    Mutant(
        "a body without a length may have any size",
        "src/zograd/serve/guard.py",
        "if len(body) > self.limits.body:",
        "if len(body) > 1e12:",
        ("tests/serve/test_serve.py::test_a_large_body_is_refused_before_it_is_read",),
    ),
)


def copy_of_the_project(folder: Path) -> Path:
    """The files that tests need, with the compiled loops that are built here."""
    for name in COPIED:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    return folder


def mutated(text: str, mutant: Mutant) -> str:
    """The text of the file with the fault in it. ValueError when the place is not there, or not once."""
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.file} has {text.count(mutant.old)} places that read {mutant.old!r}, "
            f"expected one; write the change for the code as it is now"
        )
    return text.replace(mutant.old, mutant.new)


def run_tests(folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """pytest on the copy, up to the first failure."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--durations=0",
               "-m", "not slow and not gpu", *tests]  # fmt: skip
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in words)]
    if not chosen:
        print(f"no mutant is named {' '.join(words)!r}; there are: " + "; ".join(m.name for m in MUTANTS))
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_project(Path(temporary))
        tests = tuple(dict.fromkeys(test for m in chosen for test in m.tests))
        done = run_tests(folder, tests)
        if done.returncode:
            print(done.stdout[-4000:])
            print("these tests fail on the code as it is, so they can tell nothing about mutants")
            return 1
        survived = []
        for m in chosen:
            file, start = folder / m.file, time.perf_counter()
            before = file.read_text(encoding="utf-8")
            file.write_text(mutated(before, m), encoding="utf-8")
            code = run_tests(folder, m.tests).returncode
            file.write_text(before, encoding="utf-8")
            noticed = code == 1  # 2 and above: no test ran
            survived += [] if noticed else [m.name]
            word = "noticed" if noticed else f"NOT NOTICED (pytest ended with {code})"
            print(f"{word:<12}{time.perf_counter() - start:>6.0f} s  {m.name}", flush=True)
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} mutants noticed" + "".join(f"\n  not: {s}" for s in survived)
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
