"""What stands beside the files of a bundle for its users: README.md, and a Modelfile for Ollama."""

from dataclasses import dataclass
from itertools import takewhile

from leverlab.config.gguf import kind_of
from leverlab.deploy.bundle import VLM_ENCODER, BundleInfo
from leverlab.markdown import inline
from leverlab.records import Example
from leverlab.vlm.prompt import PromptFormat

README, MODELFILE = "README.md", "Modelfile"
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"  # runtimes put these around an image themselves


@dataclass(frozen=True)
class Markers:
    """What a turn-wise chat template writes: `head` once, `user` before a question, `assistant` before its answer and
    `end` behind it, `generation` behind the question that is to be answered."""

    head: str
    user: str
    assistant: str
    end: str
    generation: str


def markers(form: PromptFormat) -> Markers:
    """Return the markers of a chat template."""
    first, second = (Example(name, b"", "", f"§{name}?", "", (f"§{name}!",)) for name in ("one", "two"))
    text = form.render_prompt([first], second).replace(_IMAGE, "")
    before, rest = text.split(first.question)
    assistant, rest = rest.split(first.answer)
    between, generation = rest.split(second.question)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(before), reversed(between), strict=False))
    user = "".join(sign for sign, _ in alike)[::-1]
    return Markers(before.removesuffix(user), user, assistant, between.removesuffix(user), generation)


def modelfile(info: BundleInfo, text: str, form: PromptFormat) -> str:
    """Return a Modelfile for the text file `text`: Ollama's template in place of the chat template."""
    parts = markers(form)
    template = (
        f'{parts.head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{parts.user}{{{{ .Content }}}}'
        f'{{{{ else if eq .Role "assistant" }}}}{parts.assistant}{{{{ .Content }}}}{parts.end}{{{{ end }}}}'
        f"{{{{ end }}}}{parts.generation}"
    )
    return "\n".join(
        [
            f"FROM ./{text}",
            f"FROM ./{info.mmproj}",
            f'TEMPLATE """{template}"""',
            "PARAMETER temperature 0",
            f"PARAMETER num_ctx {info.context}",
            f"PARAMETER num_predict {info.max_new_tokens}",
            "",
        ]
    )


def readme(info: BundleInfo, text: str) -> str:
    """Return the bundle's README.md; its commands use the text file `text`."""
    fewest, most = info.images.tokens
    files = "\n".join(f"| `{name}` | {file.bytes:,} | `{file.sha256[:16]}` |" for name, file in info.files.items())
    gates = "\n".join(
        f"| {inline(gate['name'])} | | | off |"
        if "off" in gate
        else f"| {inline(gate['name'])} | {inline(gate['metric'])} | {gate['value']} | "
        f"{'pass' if gate['passed'] else '**fail**'} |"
        for gate in info.gates
    )
    return f"""# A demo selector and the model that answers

Given an image and a question, the selector ({info.method}, seed {info.seed}, epoch {info.epoch}; validation accuracy
{info.val_accuracy:.3f}) picks up to {info.shots} demos from `pool.parquet`, and the model answers after them.

{_picking(info, kind_of(text))}
## llama.cpp

```bash
llama-server -m {text} --mmproj {info.mmproj} --image-min-tokens {fewest} --image-max-tokens {most} \\
  -c {info.context} --jinja --port 8080
leverlab select --bundle . --image q.png --question "Which number?" --json \\
  | jq '{{messages, temperature: 0, max_tokens: {info.max_new_tokens}}}' \\
  | curl -s http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d @-
```

The limits of an image's tokens are not in the files: without these options llama.cpp resizes small images.

## Ollama

`ollama create answers -f Modelfile`. Ollama has no option for the fewest tokens of an image; give it images of at least
8 tokens, or use llama.cpp.

## Files

| file | bytes | SHA-256 |
|---|---:|---|
{files}

## Gates of the pipeline

| gate | metric | value | |
|---|---|---:|---|
{gates}

`bundle.json` has the whole digests, the params of every stage, and what the selector was trained on.
"""


def _picking(info: BundleInfo, kind: str) -> str:
    """Return how to pick demos for new questions, where the bundle can make their features."""
    if info.encoder != VLM_ENCODER:
        encoder = inline(info.encoder)
        return f"""New questions have no features here: the selector reads those of {encoder}, which these files do
not hold.
"""
    return f"""```bash
leverlab select --bundle . --image q.png --question "Which number?" --shots {info.shots}            # demos and prompt
leverlab select --bundle . --image q.png --question "Which number?" --answer --engine {kind}  # and the answer
leverlab predict questions.parquet --bundle . --out answers.parquet                    # many; goes on after a stop
```

Picking demos needs neither torch nor transformers. Of {info.compared_picks} picks on validation questions,
{info.equal_picks} are those of the pipeline when features are made from these files.
"""
