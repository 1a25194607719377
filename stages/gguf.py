"""gguf: export the VLM, prove that nothing was lost on the way, and compare llama.cpp's answers with transformers'."""

import json
import shutil
from pathlib import Path
from typing import Any

from leverlab.config.gguf import MMPROJ, GgufParams, Kind, RuntimeParams, text_file
from leverlab.config.vlm import VlmAnswers
from leverlab.deploy.llama_cpp import LlamaCpp, LlamaCppError, Settings
from leverlab.deploy.parity import as_record, compare_prompts, parity_prompts, references
from leverlab.errors import LeverlabError
from leverlab.export.gguf import compare, export_text, export_vision
from leverlab.export.vision_part import image_limits
from leverlab.files import write_text
from leverlab.records import read_examples
from leverlab.stage import Stage, run_stage
from leverlab.vlm.model import checkpoint_folder, load_vlm


def body(stage: Stage) -> None:
    """Write one file a kind, the vision part's file, and what was measured; fail when an export is not exact.

    Files are written in the state folder, so that those that were finished before a kill are not written again. A
    runtime that is missing, dies or hangs is told in the file's record and keeps the gates red; it fails nothing.
    """
    params, vlm = stage.section("gguf", GgufParams), stage.section("vlm", VlmAnswers)
    checkpoint = checkpoint_folder(vlm.source)
    files = {kind: stage.state_dir / text_file(kind) for kind in params.kinds}
    mmproj = stage.state_dir / MMPROJ
    for kind, path in files.items():
        if not path.exists():
            export_text(checkpoint, path, kind)
    if not mmproj.exists():
        export_vision(checkpoint, mmproj)
    record = {path.name: _contents(checkpoint, path, "text") for path in files.values()}
    record[MMPROJ] = _contents(checkpoint, mmproj, "vision")
    wrong = [name for name, file in record.items() if file["values_beyond"]]
    if wrong:
        raise LeverlabError(f"{wrong} differ from the checkpoint by more than their types explain; the export is wrong")
    parity = _parity(stage, params, vlm, files, mmproj)
    write_text(stage.out("reports/gguf.json"), json.dumps({"files": record, "parity": parity}, indent=2) + "\n")
    stage.out("models/gguf").mkdir()
    for path in (*files.values(), mmproj):
        shutil.copyfile(path, stage.out(f"models/gguf/{path.name}"))  # not moved: a kill before the end would lose it
    stage.say(", ".join(f"{name} ({file['bytes']:,} bytes)" for name, file in record.items()))


def _contents(checkpoint: Path, path: Path, part: Any) -> dict[str, Any]:
    """Return how the file's values compare with the checkpoint's."""
    tensors = compare(checkpoint, path, part)
    return {
        "bytes": path.stat().st_size,
        "tensors": len(tensors),
        "max_abs_error": max(tensor.max_abs_error for tensor in tensors),
        "values_beyond": sum(tensor.values_beyond for tensor in tensors),
    }


def _parity(
    stage: Stage, params: GgufParams, vlm: VlmAnswers, files: dict[Kind, Path], mmproj: Path
) -> dict[str, dict[str, Any]]:
    """Return by kind the parity of each set of prompts, or the error that kept it from being measured."""
    images, runtime = image_limits(checkpoint_folder(vlm.source)), stage.section("runtime", RuntimeParams)
    pool = read_examples(stage.dep("data/prepared") / "pool.parquet")
    prompts = parity_prompts(pool, images.smallest_square, params.parity.prompts, params.parity.seed)
    stage.say(f"answering {len(prompts)} prompts with transformers in float32")
    expected = references(load_vlm(vlm.source, "float32"), prompts, vlm.max_new_tokens)
    settings = Settings(images, runtime.context, runtime.threads, runtime.seconds, exact_cache=True)
    found: dict[str, dict[str, Any]] = {}
    for kind, path in files.items():
        try:
            with LlamaCpp(path, mmproj, settings) as model:
                parity = compare_prompts(model, prompts, expected, vlm.max_new_tokens, params.parity.likeliest)
            found[kind] = {name: as_record(figures) for name, figures in parity.items()}
        except LlamaCppError as error:
            found[kind] = {"error": str(error).replace(f"{stage.state_dir}/", "")}
            stage.say(f"NOT MEASURED: {kind}: {error}")
    return found


if __name__ == "__main__":
    run_stage("gguf", body)
