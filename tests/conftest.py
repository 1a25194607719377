"""What tests of several folders use."""

from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what is dear to make stay in one process: those of a file, and all that run stages."""
    for item in items:
        folder = Path(item.nodeid.partition("::")[0])
        item.add_marker(pytest.mark.xdist_group("stages" if "stages" in folder.parts else folder.as_posix()))


@pytest.fixture(scope="module")
def quiet_dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DVC keeps its caches and settings of this machine out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield
