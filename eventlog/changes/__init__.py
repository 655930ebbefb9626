"""The neutral change model: changes, schemas, codecs, folding, snapshots. No kind of source."""
