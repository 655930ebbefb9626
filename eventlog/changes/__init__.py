"""The neutral change model: changes, schemas, codecs, folding. No kind of source."""
