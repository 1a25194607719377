"""What tests of several folders use."""

from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# files of tests/stages whose tests need the two cold runs of the profile `tiny`
COLD_RUNS = (
    "blast_radius",
    "contract_full_disk",
    "kill_and_resume",
    "reads_of_files",
    "same_bytes_again",
    "tiny_pipeline",
)


class Scheduling(LoadScopeScheduling):
    """What is dear to make is made once: the tests of a file stay in one process, and so do all that need cold runs."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "cold runs" if file in {f"tests/stages/test_{name}.py" for name in COLD_RUNS} else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Tell the plugin that runs tests in several processes which belong together."""
    return Scheduling(config, log)


@pytest.fixture(scope="module")
def quiet_dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DVC keeps its caches and settings of this machine out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield
