"""The part of DVCLive 3 that trackers use, in its layout: plots/metrics/<name>.tsv and metrics.json."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any


class Live:
    def __init__(self, dir: str, resume: bool, report: str | None, save_dvc_exp: bool, dvcyaml: str | None):
        assert (resume, report, save_dvc_exp, dvcyaml) == (False, None, False, None)
        self._folder, self.summary, self.step = Path(dir), dict[str, Any](), 0
        shutil.rmtree(self._folder / "plots" / "metrics", ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def log_metric(self, name: str, val: float) -> None:
        path = self._folder / "plots" / "metrics" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            if fresh:
                writer.writerow(["step", path.stem])
            writer.writerow([self.step, val])
        self.summary[name] = val

    def make_summary(self) -> None:
        (self._folder / "metrics.json").write_text(json.dumps(self.summary | {"step": self.step}))

    def end(self) -> None:
        self.make_summary()
