"""Postgres as a source: the wire, the session, the catalog, and the codecs of what is stored.

::

    transport ──frames──▶ assembler ──batches──▶ streaming ──plans──▶ eventlog.engine
      ▲                     │ schema_book ◀── catalog
      └── connection        └── wire, messages, builder
    capture: setup ─▶ copying ─▶ streaming, and again       pgoutput, copy_codec: reading
"""
