"""Loading a world by name."""

from leverlab.errors import LeverlabError
from leverlab.worlds.digits import digits_world
from leverlab.worlds.folder import folder_world
from leverlab.worlds.vqa import okvqa_world, vqav2_world
from leverlab.worlds.world import World, check_world

_FROM_SOURCE = {"okvqa": okvqa_world, "vqav2": vqav2_world, "folder": folder_world}


def load_world(
    world: str, source: str | None, pool: int, train: int, val: int, test: int, label_noise: float, seed: int
) -> World:
    """Return the checked world 'digits', 'okvqa', 'vqav2' or 'folder' with splits of exactly the given sizes.

    Raises `LeverlabError` for an unknown world, a source that is missing or makes no sense, `label_noise` for a world
    whose answers it cannot change, too few rows, or rows that break a promise of `check_world`.
    """
    if world == "digits":
        if source is not None:
            raise LeverlabError(f"data.source = '{source}', but world 'digits' needs none; set it to null")
        loaded = digits_world(pool, train, val, test, label_noise, seed)
    elif world in _FROM_SOURCE:
        if source is None:
            raise LeverlabError(f"world '{world}' needs data.source: a folder or a hub id")
        if label_noise:
            raise LeverlabError(
                f"data.label_noise = {label_noise}, but only world 'digits' can make wrong answers; set it to 0"
            )
        loaded = _FROM_SOURCE[world](source, pool, train, val, test, seed)
    else:
        raise LeverlabError(f"data.world = '{world}' is not known; use one of {['digits', *_FROM_SOURCE]}")
    check_world(loaded)
    return loaded
