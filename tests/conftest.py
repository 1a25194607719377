"""What tests of several folders use."""

from collections.abc import Iterator

import pytest


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what is dear to make stay in one process: those of a file, and all that need the cold runs."""
    for item in items:
        cold = "both" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("cold runs" if cold else item.nodeid.partition("::")[0]))


@pytest.fixture(scope="module")
def quiet_dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DVC keeps its caches and settings of this machine out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield
