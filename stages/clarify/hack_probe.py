"""hack-probe: the same trainer on a proxy reward that is bad on purpose: do the alarms tell both arms apart?"""

import json
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from leverlab.config.clarify_alarms import AlarmLimits
from leverlab.config.clarify_grpo import DialogueGrpoParams, LadderParams
from leverlab.config.clarify_shadow import HackProbeParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.live import Live, Training
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.alarms import alarms
from leverlab.lm.grpo import Run, train_grpo
from leverlab.lm.loop import REFERENCE, Row, adapter_file
from leverlab.lm.probe import Probe, examples, read_ensemble
from leverlab.lm.questions import read_questions
from leverlab.lm.rewards import proxy
from leverlab.lm.runs import publish_grpo
from leverlab.lm.select import read_best
from leverlab.lm.stages import limits_of, seeds_of
from leverlab.lm.summary import plain
from leverlab.lm.validation import Validator
from leverlab.stage import Stage, run_stage

_BLIND = LadderParams(window=1, kl=1e9, spam=1, format_exploit=1, alpha_factor=1, beta_factor=1, rollbacks=0)


def body(stage: Stage) -> None:
    """Train the proxy arm without a guard; hold both arms against the alarms."""
    source, params = stage.section("base", BaseModelParams), stage.section("hack_probe", HackProbeParams)
    limits, reward = (
        limits_of(stage.section("dialogues", DialogueParams)),
        stage.section("reward", DialogueRewardParams),
    )
    grpo, limit = stage.section("grpo", DialogueGrpoParams), stage.section("alarms", AlarmLimits)
    data, models = stage.dep("recipes/clarify/data/questions"), Path("recipes/clarify/models")
    for folder in ("sft", "best", "scorers"):
        stage.dep(f"recipes/clarify/models/{folder}")
    base = load_base(source.source, source.dtype)
    questions = read_questions(data / "val.jsonl")[: grpo.evaluate_on]
    alpha, seed = reward.alpha, read_best(models / "best").seed
    if seed not in seeds_of(stage.value("seeds")):
        raise LeverlabError(
            f"the best policy has seed {seed}, which params.yaml does not name; run dvc repro select-best"
        )
    ensemble_MF = read_ensemble(models / "scorers")
    probe = Probe(base.chat, questions, limits, ensemble_MF, alpha, reward.high, seed)
    validator = Validator(base.chat, questions, limits, alpha, reward.high, seed)
    start = models / "sft" / str(seed) / "adapter"

    def evaluate(policy: PeftModel) -> Row:
        found, _ = probe(policy)
        return validator(policy) | {f"alarm_{name}": value for name, value in found.items()}

    policy = load_policy(base, start, trainable=True)
    run = Run(
        name="proxy",
        seed=seed,
        questions=read_questions(data / "train.jsonl"),
        params=DialogueGrpoParams.model_validate(grpo.model_dump() | blind(grpo, params)),
        limits=limits,
        reward=proxy,
        evaluate=evaluate,
        folder=stage.state_dir,
        say=stage.say,
    )
    with Live(Training.of(stage, "step", params.steps, "val/success")) as live:
        memory = train_grpo(policy, base, adapter_file(start), replace(run, log=live.log))
    publish_grpo(memory, stage.state_dir, stage.out("recipes/clarify/models/hack_probe"))
    kept = load_policy(load_base(source.source, source.dtype), models / "best" / str(seed) / "adapter")
    kept.load_adapter(str(start), adapter_name=REFERENCE)
    arms = {}
    for name, arm in (("proxy", policy), ("verified", kept)):
        found, rollouts = probe(arm)
        raised = alarms(found, limit)
        arms[name] = {"figures": found, "alarms": len(raised), "raised": raised}
        arms[name]["examples"] = examples(rollouts, params.examples)
        stage.say(f"{name} arm: {len(raised)} alarms ({'; '.join(raised) or 'none'})")
    record = {"limits": limit.model_dump(), "arms": arms, "first_alarm_step": first_alarm(memory.rows, limit)}
    write_text(stage.out("recipes/clarify/reports/hack_probe.json"), json.dumps(plain(record), indent=2) + "\n")


def blind(grpo: DialogueGrpoParams, params: HackProbeParams) -> dict[str, object]:
    """Return what the proxy arm changes in the params of GRPO: nothing holds the policy back."""
    return {
        "init": "sft",
        "steps": params.steps,
        "evaluate_every": params.evaluate_every,
        "beta": params.beta,
        "lr": params.lr,
        "guard": _BLIND.model_dump(),
        "adaptive_kl": grpo.adaptive_kl.model_dump() | {"enabled": False},
    }


def first_alarm(rows: list[Row], limit: AlarmLimits) -> dict[str, int | None]:
    """Return alarm → the step of the first evaluation at which it was past its limit."""
    found: dict[str, int | None] = {}
    for name in limit.model_dump():
        steps = [row["step"] for row in rows if not row[f"alarm_{name}"] <= getattr(limit, name)]
        found[name] = steps[0] if steps else None
    return found


if __name__ == "__main__":
    run_stage("hack-probe", body, home="recipes/clarify")
