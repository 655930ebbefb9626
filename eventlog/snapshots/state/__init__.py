"""The state of a table as of a cut, by whole columns and in bounded memory (D15).

::

    log ──steps──▶ live pass: which offsets hold the latest version of a row     (span, live)
     │                │  a bit for each offset, and where unchanged values stand
     └──steps──▶ row pass: those rows, moved to the columns at the cut           (row_pass)
                      │  batches in the order of their offsets                   (batches)
                      └──▶ Arrow, stored texts, checkpoints                      (checkpoint)

`eventlog.changes.fold.TableFold` says row by row what the state is; here it is found by sorting the
keys of many records at once, and values are touched only where a row is live.
"""
