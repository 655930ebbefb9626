"""Transforms: named, versioned, row-wise functions, the same live and in snapshots.

::

    @eventlog.transform("delay_features", version=2)
    def delay_features(rows: pa.Table) -> pa.Table: ...

    scale = eventlog.transform("scale", version=1)(fitted_pipeline)
"""

from eventlog.snapshots.transform.definition import Transform, transform

__all__ = ["Transform", "transform"]
