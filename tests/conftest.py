"""What tests of several folders use."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quiet_dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DVC keeps its caches and settings of this machine out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield
