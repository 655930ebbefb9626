"""Looking after the tables of a source while its changes are streamed."""
