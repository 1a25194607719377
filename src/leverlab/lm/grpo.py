"""GRPO on whole dialogues: TRL's `GRPOTrainer` with rollouts, questions and advantages of our own.

The one place that knows TRL's experimental interface for rollouts (`rollout_func`, `env_mask`). What differs from the
textbook: the questions of a batch are drawn where its dialogues begin, not in the loader, which is one batch ahead of
what it should know; advantages come from `group_advantages`, and groups without spread are left out of the mean.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl.import_utils import is_vllm_available
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from leverlab.config.clarify_grpo import DialogueGrpoParams
from leverlab.config.grpo import AdaptiveKlParams
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.adapters import Base, save_adapter
from leverlab.lm.checkpoints import MarkWhole, resume_point
from leverlab.lm.loop import REFERENCE, Memory, Row, adapter_weights, check_finite, react, set_adapter_weights
from leverlab.lm.questions import Question
from leverlab.lm.rewards import Reward, RewardFunction, rewarded, sound
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.lm.turn_rollouts import roll_out_by_turns, vllm_engine
from leverlab.rl.advantages import group_advantages
from leverlab.rl.kl import adapt_beta
from leverlab.rl.sampling import epoch_order, practice_weights, prioritised_batches

Evaluate = Callable[[PeftModel], Row]  # figures of a policy on validation questions


@dataclass(frozen=True)
class Run:
    """One run of GRPO: everything but the models.

    name: of the policy, in its records. folder: where checkpoints, records and adapters of evaluations go.
    log: gets the row of each step, and that of each evaluation with 'val/' as the prefix of its names.
    """

    name: str
    seed: int
    questions: Sequence[Question]
    params: DialogueGrpoParams
    limits: Limits
    reward: RewardFunction
    evaluate: Evaluate
    folder: Path
    say: Callable[[str], None]
    log: Callable[[Row, str], None] = lambda row, prefix: None


def train_grpo(policy: PeftModel, base: Base, reference: Mapping[str, torch.Tensor], run: Run) -> Memory:
    """Train `policy` in place, from where a killed run was; return what the run remembers.

    reference: the weights of the adapter to whose policy the KL is measured. `run.folder` gets `rollouts/` (records, a
    file a batch) and `steps/<step>/` (the adapter at each evaluation). On CPU a killed run ends bit-identical, unless
    vLLM draws. Each of several processes (torchrun) calls this, with a policy of its own; all of them end with the same
    weights and memory, and one writes. Raises `LeverlabError` for a reward or a loss that is no number, for questions
    that the processes cannot share, and when vLLM is not there.
    """
    with grpo_config(run, run.params.beta).main_process_first(local=False):  # which removes what a kill left half
        checkpoint = resume_point(run.folder / "checkpoints")
    memory = Memory(run.params.beta)
    good = adapter_weights(policy)
    if checkpoint is not None:
        memory, good = Memory.load(Path(checkpoint))
    trainer = DialogueTrainer(policy, base, reference, run, memory, good)
    if checkpoint is None:
        trainer.loop.evaluate(0)
    if not memory.stopped and (not memory.steps or memory.steps[-1]["step"] < run.params.steps):
        trainer.train(resume_from_checkpoint=checkpoint)
    elif checkpoint is not None:
        trainer._load_from_checkpoint(checkpoint)
    trainer.accelerator.wait_for_everyone()  # all files are there
    trainer.policy.eval()
    return memory


class DialogueTrainer(GRPOTrainer):
    """`GRPOTrainer` whose completions are dialogues."""

    def __init__(
        self,
        policy: PeftModel,
        base: Base,
        reference: Mapping[str, torch.Tensor],
        run: Run,
        memory: Memory,
        good: dict[str, torch.Tensor],
    ):
        """Take the parts; see `train_grpo`."""
        self.run, self.memory, self.chat = run, memory, base.chat
        self._scored: list[Reward] = []
        if len(run.questions) < run.params.questions:
            raise LeverlabError(
                f"there are {len(run.questions)} questions to train on, fewer than grpo.questions = "
                f"{run.params.questions} of one step; lower it"
            )
        super().__init__(
            model=policy,
            reward_funcs=[self._pay],
            args=grpo_config(run, memory.beta),
            # what stands in it does not matter: `_roll_out` draws the questions
            train_dataset=Dataset.from_dict({"prompt": ["-"] * run.params.questions}),
            processing_class=base.chat.tokenizer,
            rollout_func=lambda prompts, _: self._roll_out(len(prompts)),
        )
        self.remove_callback(PrinterCallback)
        set_adapter_weights(self.policy, reference, REFERENCE)
        self.loop = LoopCallback(self, base, good)
        self.add_callback(self.loop)
        self.add_callback(MarkWhole())

    @property
    def policy(self) -> PeftModel:
        """The policy, out of all wrappers."""
        return self.accelerator.unwrap_model(self.model)

    def alpha(self, step: int) -> float:
        """Return the cost of a needless ask at an optimiser step."""
        return self.run.params.alpha.at(min(1.0, step / self.run.params.steps)) * self.memory.alpha_factor

    def questions_of(self, batch: int) -> list[Question]:
        """Return the questions of a batch of dialogues, for all processes: a function of seed and memory alone.

        An epoch leaves out what does not fill a batch.
        """
        run, params = self.run, self.run.params
        epoch, place = divmod(batch, len(run.questions) // params.questions)
        order = epoch_order(len(run.questions), run.seed, epoch)
        weights_N = practice_weights(
            [self.memory.success.get(question.id) for question in run.questions], params.priority.failure_factor
        )
        drawn = prioritised_batches(order, weights_N, params.questions, params.priority.share, run.seed, epoch)[place]
        return [run.questions[n] for n in drawn]

    def _roll_out(self, count: int) -> dict[str, Any]:
        """Return `count` dialogues of this process in TRL's words."""
        run, step = self.run, self.state.global_step
        rank, group = self.accelerator.process_index, run.params.group
        share = count // group
        mine = self.questions_of(step // run.params.updates)[rank * share : (rank + 1) * share]
        vllm = run.params.generation == "vllm"
        self.policy.eval()
        if vllm:  # which TRL has given the weights of this step
            rollouts = roll_out_by_turns(vllm_engine(self.vllm_generation), self.chat, mine, group, run.limits)
        else:
            generator = torch.Generator(self.policy.device).manual_seed(_mixed(run.seed, step, rank))
            rollouts = roll_out(self.policy, self.chat, mine, group, run.limits, run.params.temperature, generator)
        self.policy.train()
        return {
            "prompt_ids": [one.prompt for one in rollouts],
            "completion_ids": [one.completion for one in rollouts],
            # vLLM's differ from the policy's own, for which TRL corrects
            "logprobs": [one.logps for one in rollouts] if vllm else None,
            "env_mask": [[int(own) for own in one.own] for one in rollouts],
            "rollout": rollouts,
        }

    def _pay(self, rollout: list[Rollout], **_: Any) -> list[float | None]:
        """Return the rewards of dialogues, and keep them with their terms."""
        run, step, alpha = self.run, self.state.global_step, self.alpha(self.state.global_step)
        self._scored = [run.reward(one, alpha) for one in rollout]
        for one, paid in zip(rollout, self._scored, strict=True):
            if not math.isfinite(paid.total):
                raise LeverlabError(
                    f"the reward of a dialogue on question '{one.dialogue.question.id}' at step {step} is {paid.total} "
                    f"(terms {dict(paid.terms)}); mend the reward: nothing can be learnt from it"
                )
        records = [
            rewarded(one, paid, run.name, run.seed, step, run.params.temperature, alpha)
            for one, paid in zip(rollout, self._scored, strict=True)
        ]
        everyone = gather_object(records)
        by_question: dict[str, list[bool]] = {}
        for name, good in gather_object([(one.dialogue.question.id, sound(one.dialogue)) for one in rollout]):
            by_question.setdefault(name, []).append(good)
        self.memory.success.update({name: sum(right) / len(right) for name, right in sorted(by_question.items())})
        if self.accelerator.is_main_process:
            lines = "".join(f"{record.model_dump_json()}\n" for record in everyone)
            write_text(run.folder / "rollouts" / f"{step:06d}.jsonl", lines)
        return [paid.total for paid in self._scored]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Return TRL's batch with our advantages: mean over the groups of all processes that have spread, the others
        count nothing."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        totals = torch.tensor([paid.total for paid in self._scored], dtype=torch.float64)
        rewards_BG = totals.view(-1, self.run.params.group)
        advantages_BG, live_B = group_advantages(rewards_BG, self.run.params.advantage)
        spread = gather_object(live_B.tolist())
        if any(spread):
            advantages_BG = advantages_BG * (len(spread) / sum(spread))
        output["advantages"] = advantages_BG.flatten().to(output["advantages"])
        terms = gather_object([dict(paid.terms) for paid in self._scored])
        for name in terms[0]:
            self._metrics["train"][f"terms/{name}"].append(_mean([of_one[name] for of_one in terms]))
        self._metrics["train"]["flat_groups"].append(1 - sum(spread) / len(spread))
        self._metrics["train"]["alpha"].append(self.alpha(self.state.global_step))
        self._metrics["train"]["beta"].append(float(self.beta))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the row of a step, without what was measured with a clock."""
        super().log(logs, start_time)
        if "loss" in logs:
            row = {"step": self.state.global_step} | {
                name: logs[source] for name, source in STEP_COLUMNS.items() if logs.get(source) is not None
            }
            row |= {name: value for name, value in logs.items() if name.startswith("terms/")}
            check_finite(row, f"grpo@{self.run.seed}", "grpo.lr")
            self.memory.steps.append(row)
            if self.accelerator.is_main_process:
                self.run.log(row, "")


# column of a step's row → TRL's name
STEP_COLUMNS = {
    "loss": "loss",
    "lr": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "clipfrac": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "tokens": "completions/mean_length",
    "flat_groups": "flat_groups",
    "alpha": "alpha",
    "beta": "beta",
}


class LoopCallback(TrainerCallback):
    """Evaluates, lets the guard react, and saves what the run remembers."""

    def __init__(self, trainer: DialogueTrainer, base: Base, good: dict[str, torch.Tensor]):
        """Take the parts; `good` are the adapter's weights at the last good evaluation."""
        self.trainer, self.base, self.good = trainer, base, good

    def evaluate(self, step: int) -> str:
        """Evaluate the policy, and do what the guard decides; return its action."""
        trainer, memory, run = self.trainer, self.trainer.memory, self.trainer.run
        policy = trainer.policy
        main = trainer.accelerator.is_main_process
        policy.eval()
        # one process for all: where figures differ in the last digit, so may what the guard decides
        found = broadcast_object_list([run.evaluate(policy) if main else {}])[0]
        policy.train()
        row = {"step": step, "beta": float(trainer.beta), "alpha": trainer.alpha(step)} | found
        event = react([*memory.rows, row | {"action": "none", "sound": True}], run.params.guard)
        memory.rows.append(row | {"action": event.action, "guard": event.guard, "sound": event.sound})
        if main:
            save_adapter(policy, self.base, run.folder / "steps" / str(step))
            run.say(describe(memory.rows[-1], run.params.steps))
            run.log(memory.rows[-1], "val/")
        if event.action == "alpha":
            memory.alpha_factor *= run.params.guard.alpha_factor
        elif event.action == "back":
            set_adapter_weights(policy, self.good)
            if trainer.optimizer is not None:
                trainer.optimizer.state.clear()
            trainer.beta = memory.beta = trainer.beta * run.params.guard.beta_factor
        elif event.sound:
            self.good = adapter_weights(policy)
            if run.params.adaptive_kl.enabled and step > 0:
                trainer.beta = memory.beta = adapted(trainer.beta, row["kl"], run.params.adaptive_kl)
        return event.action

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate on the grid; the checkpoint that follows holds what came of it."""
        params = self.trainer.run.params
        if state.global_step % params.evaluate_every == 0 or state.global_step == params.steps:
            control.should_save = True
            if self.evaluate(state.global_step) == "stop":
                control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the memory beside the checkpoint, to which every process has added its part by then."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            self.trainer.memory.save(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.good)


def adapted(beta: float, kl: float, adaptive: AdaptiveKlParams) -> float:
    """Return the KL weight after an evaluation; one that the guard has raised beyond the bounds comes back to them."""
    within = min(max(beta, adaptive.minimum), adaptive.maximum)
    low, high, factor = adaptive.low, adaptive.high, adaptive.factor
    return adapt_beta(within, kl, low, high, factor, adaptive.minimum, adaptive.maximum)


def grpo_config(run: Run, beta: float) -> GRPOConfig:
    """Return TRL's settings: on CPU plain float32, on a GPU bfloat16. Raises `LeverlabError` as `train_grpo`."""
    params, cuda = run.params, torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate
    if params.questions % processes:
        raise LeverlabError(
            f"grpo.questions = {params.questions} cannot be shared by {processes} processes; make it a multiple"
        )
    vllm = params.generation == "vllm"
    if vllm and not is_vllm_available():
        raise LeverlabError(
            "grpo.generation is 'vllm', which is not installed; install it (pip install trl[vllm]; it wants a GPU), or "
            "set grpo.generation=cache"
        )
    return GRPOConfig(
        output_dir=str(run.folder / "checkpoints"),
        seed=run.seed,
        data_seed=run.seed,
        max_steps=params.steps,
        per_device_train_batch_size=params.questions * params.group // processes,
        num_generations=params.group,
        steps_per_generation=1,
        num_iterations=params.updates,
        max_completion_length=run.limits.turns * run.limits.tokens,
        use_vllm=vllm,
        vllm_mode="colocate",
        generation_kwargs={"max_tokens": run.limits.tokens} if vllm else None,  # of one turn, which vLLM is asked for
        temperature=params.temperature,
        learning_rate=params.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(params.warmup * params.steps),
        max_grad_norm=params.grad_clip,
        weight_decay=0.0,
        beta=beta,
        epsilon=params.clip_epsilon,
        loss_type="dapo",  # every token of the policy weighs the same, in whichever dialogue and process
        scale_rewards="none",  # `group_advantages` does it
        mask_truncated_completions=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the last loss that was a number instead
        save_strategy="no",  # the evaluations save
        save_total_limit=2,
        ignore_data_skip=True,
        use_cpu=not cuda,
        bf16=cuda,
        gradient_checkpointing=cuda,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
    )


def describe(row: Row, steps: int) -> str:
    """Return an evaluation in one line."""
    figures = ", ".join(f"{name} {row[name]:.3f}" for name in ("success", "need_success", "over_clarification", "kl"))
    return f"step {row['step']} of {steps}: {figures}" + (f"; {row['guard']}" if row["guard"] else "")


def _mixed(*numbers: int) -> int:
    """Return one seed for several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
