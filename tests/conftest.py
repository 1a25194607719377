"""What tests of several folders use."""

from collections.abc import Iterator
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# files of tests/stages whose tests share cold runs of the profile `tiny`, as long as the others together
COLD_RUNS = {
    "tests/stages/test_blast_radius.py": "cold runs",
    "tests/stages/test_reads_of_files.py": "cold runs",
    "tests/stages/test_same_bytes_again.py": "cold runs",
    "tests/stages/test_tiny_pipeline.py": "cold runs",
    "tests/stages/test_instruction_sets.py": "cold runs",
    "tests/stages/test_remote.py": "cold runs",
    "tests/stages/test_kill_and_resume.py": "kills",
}


CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


class Scheduling(LoadScopeScheduling):
    """What is dear to make is made once: the tests of a file stay in one process, and so do those on cold runs."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return COLD_RUNS.get(file, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Tell the plugin that runs tests in several processes which belong together."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, so that no process is left alone with it at the end."""
    order = [*COLD_RUNS]
    items.sort(key=lambda item: order.index(file) if (file := item.nodeid.partition("::")[0]) in order else len(order))


@pytest.fixture(scope="module")
def quiet_dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DVC keeps its caches and settings of this machine out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, for tests that are marked `browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser
        browser.close()
