"""What keeps a log in order: checking, retention, backup, compacting, repair.

Each reads or writes whole logs; nothing on the path of an append or a read imports it.
"""
