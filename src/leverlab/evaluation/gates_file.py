"""What gates.json has."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from leverlab.evaluation.gates import Gate


def gates_record(gates: Sequence[Gate], off: Iterable[str]) -> list[dict[str, Any]]:
    """Return the fields of each gate, a value that is not finite as None; then the names of the gates that are `off`,
    each with `"off": True`."""
    evaluated = [asdict(gate) | {"value": gate.value if math.isfinite(gate.value) else None} for gate in gates]
    return [*evaluated, *({"name": name, "off": True} for name in off)]
