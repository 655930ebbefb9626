"""Whole columns of stored texts turned to Arrow at once, by arithmetic on words of characters (D3).

::

    Texts ─▶ windows ─▶ digits ─▶ integers, decimals, times     numbers at fixed places
      ├────▶ gather ──▶ strings, floats, hex_bytes              bytes copied together
      └────▶ gather ──▶ exact                                   what the others did not take
"""
