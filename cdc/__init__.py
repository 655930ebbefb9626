"""The capture daemon: streams a source's changes into an event log.

What every kind of source shares is here; Postgres is in `cdc.postgres`.
"""

from cdc.driver import Lag, Running, SourceDriver
from cdc.options import Event, Options, Outcome
from cdc.source import Source

__all__ = ["Event", "Lag", "Options", "Outcome", "Running", "Source", "SourceDriver"]
