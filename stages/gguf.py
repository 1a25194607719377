"""gguf: export the text part of the VLM, load it back, and compare it tensor by tensor."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from leverlab.config.gguf import GgufParams
from leverlab.config.vlm import VlmSource
from leverlab.errors import LeverlabError
from leverlab.export.gguf import compare, export_text
from leverlab.files import write_text
from leverlab.stage import Stage, run_stage


def body(stage: Stage) -> None:
    """Write one file a kind and the comparison; fail when a value is further off than its type explains.

    Files are written in the state folder, so that those that were finished before a kill are not written again.
    """
    params, source = stage.section("gguf", GgufParams), stage.section("vlm", VlmSource).source
    checkpoint = Path(source)
    if not checkpoint.is_dir():
        raise LeverlabError(
            f"gguf exports a local checkpoint folder, and vlm.source = '{source}' is not one; fetch it (hf download "
            f"{source} --local-dir …) and set vlm.source to the folder"
        )
    summary = []
    for kind in params.kinds:
        path = stage.state_dir / f"text-{kind}.gguf"
        if not path.exists():
            export_text(checkpoint, path, kind)
        tensors = compare(checkpoint, path)
        summary.append(
            {
                "file": path.name,
                "kind": kind,
                "bytes": path.stat().st_size,
                "tensors": len(tensors),
                "max_abs_error": max(tensor.max_abs_error for tensor in tensors),
                "ok": all(tensor.values_beyond == 0 for tensor in tensors),
                "worst": [asdict(tensor) for tensor in sorted(tensors, key=lambda tensor: -tensor.max_abs_error)[:3]],
            }
        )
    write_text(stage.out("reports/gguf.json"), json.dumps({"files": summary}, indent=2) + "\n")
    wrong = [str(file["file"]) for file in summary if not file["ok"]]
    if wrong:
        raise LeverlabError(f"{wrong} differ from the checkpoint by more than their types explain; the export is wrong")
    stage.out("models/gguf").mkdir()
    for file in summary:
        shutil.move(stage.state_dir / str(file["file"]), stage.out("models/gguf"))
    stage.say(", ".join(f"{file['file']} ({file['bytes']} bytes)" for file in summary))


if __name__ == "__main__":
    run_stage("gguf", body)
