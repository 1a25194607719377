"""The process that llama.cpp runs in. It is started by `leverlab.deploy.llama_cpp`, and imports nothing of leverlab.

llama.cpp ends its process (SIGABRT) on many errors, so it has one of its own. One JSON object a line comes in on
standard input and one goes out on standard output: first the settings, answered by what loading took, then requests.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Serve requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp writes its log where answers belong

    def answer(said: dict[str, Any]) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    started = time.perf_counter()
    try:
        server = _load(settings)
    except Exception as error:  # the runtime raises bare RuntimeError and more
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"load_seconds": time.perf_counter() - started})
    for line in sys.stdin:
        try:
            answer(_complete(server, json.loads(line)))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def _load(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    if settings["mmproj"]:
        params.mmproj.path = settings["mmproj"]
        params.image_min_tokens, params.image_max_tokens = settings["image_tokens"]
    params.mmproj_use_gpu, params.n_gpu_layers = False, 0
    params.n_ctx, params.n_parallel = settings["context"], 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["exact_cache"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja = True  # the chat template of the file
    params.warmup = False  # its image would be larger than any real one
    params.fit_params = False  # no guesses about memory
    params.cache_ram_mib = 0
    params.n_threads_http = 1
    params.ui = False
    params.verbosity = 1  # errors alone
    return xllamacpp.Server(params)


def _complete(server: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the greedy answer: text, token ids, the log-probabilities asked for, counts and times."""
    asked: dict[str, Any] = {
        "messages": request["messages"],
        "max_tokens": request["max_tokens"],
        "temperature": 0,
        "cache_prompt": False,  # every prompt is computed whole: the same bytes in any order
    }
    if request["top_logprobs"]:
        asked |= {"logprobs": True, "top_logprobs": request["top_logprobs"]}
    started = time.perf_counter()
    said = server.handle_chat_completions(asked)
    seconds = time.perf_counter() - started
    if isinstance(said, str | bytes):
        said = json.loads(said)
    if "choices" not in said:
        return {"error": str(said.get("error", said))}
    choice, timings = said["choices"][0], said["timings"]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return {
        "text": choice["message"]["content"],
        "prompt_tokens": said["usage"]["prompt_tokens"],
        "ids": [token["id"] for token in tokens],
        "top": [[[other["id"], other["logprob"]] for other in token["top_logprobs"]] for token in tokens],
        "seconds": seconds,
        "prompt_per_second": timings["prompt_per_second"],
        "predicted_per_second": timings["predicted_per_second"],
    }


if __name__ == "__main__":
    main()
