"""The process in which llama.cpp continues tokens. It is started by `leverlab.lm.llama`.

As `leverlab.deploy.llama_worker`, but a prompt is a list of token ids, and no chat template stands between. A request
holds it as the only one of its messages: `{"prompt": ids}`.
"""

import json
import os
import sys
import time
from typing import Any

from leverlab.deploy.llama_worker import _load


def main() -> None:
    """Serve requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp writes its log where answers belong
    started, server = time.perf_counter(), None
    for line in sys.stdin:
        try:
            if server is None:  # the first line: the settings
                started = time.perf_counter()
                server = _load(json.loads(line))
                said: dict[str, Any] = {"load_seconds": time.perf_counter() - started}
            else:
                said = _complete(server, json.loads(line))
        except Exception as error:  # the runtime raises bare RuntimeError and more
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        if server is None:  # it could not load
            return


def _complete(server: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the greedy continuation: token ids, the log-probabilities asked for, counts and times."""
    (message,) = request["messages"]
    asked = {
        "prompt": message["prompt"],
        "max_tokens": request["max_tokens"],
        "temperature": 0,
        "n_probs": request["top_logprobs"],
        "cache_prompt": False,  # every prompt is computed whole: the same bytes in any order
    }
    started = time.perf_counter()
    said = server.handle_completions(asked)
    seconds = time.perf_counter() - started
    if isinstance(said, str | bytes):
        said = json.loads(said)
    if "choices" not in said:
        return {"error": str(said.get("error", said))}
    choice, timings = said["choices"][0], said["timings"]
    tokens = (choice["logprobs"] or {}).get("content") or []
    return {
        "text": choice["text"],
        "prompt_tokens": said["usage"]["prompt_tokens"],
        "ids": [token["id"] for token in tokens],
        # the token itself too: of two that are as likely as each other it may not be the one that is listed
        "top": [[[it["id"], it["logprob"]] for it in (token, *token["top_logprobs"])] for token in tokens],
        "seconds": seconds,
        "prompt_per_second": timings["prompt_per_second"],
        "predicted_per_second": timings["predicted_per_second"],
    }


if __name__ == "__main__":
    main()
