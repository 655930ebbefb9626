"""Split events: where the key and the value of each record lie, before any value is decoded (D3).

::

    data     ..k8{"user":7}...x...      the records as they were stored, msgpack
               ^ ^                      keys: their text; a nothing without one
                                        values: msgpack, a nil included
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTexts:
    """Records of a payload, split; all arrays have one element for each.

    `keys` and `values` lie over the same data. `tombstone`: a key without a value. `odd`: the
    record is not of the form that events are written in, and whatever else is said of it means
    nothing; a decoder may be able to read it.
    """

    keys: Texts
    values: Texts
    tombstone: npt.NDArray[np.bool_]
    odd: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.odd)
