"""What became of a request: read from the facts that name it, and from the source's state.

::

    stored ──▶ handled ──▶ its tables are in `copies` of the state ──▶ ended
                  │                                                      ▲
                  └─────── nothing to copy, or refused ──────────────────┘

A request is handled once the state's `requests` has passed it. By then the state has every copy
that it began, and the stream, sooner or later, the facts: until they name a table, every copy at
work may be its.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc.requests import Fact, Request, Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How far a request has come. `facts` are the latest of each table that it led to.

    `ended`: nothing is left to do. `told`: and the facts say so. `copying` are the relations among
    them that are being copied; `failed` says why it was not done, `hint` what mends that.
    """

    request: Request
    ended: bool
    told: bool
    facts: tuple[Fact, ...]
    copying: frozenset[int]
    failed: str | None
    hint: str


def answer(request: Request, told: Sequence[Told], state: Mapping[str, Any]) -> Answer:
    """Judge one request by the facts told so far and the state, which must not be newer."""
    latest: dict[int | str, Fact] = {}
    for item in told:
        fact = item.fact
        named = fact.table if fact.relation is None else fact.relation
        ours = fact.request == request.offset
        # A copy that was cut off goes on by itself; and another request may end what this began.
        if ours or (named in latest and (fact.request is None or fact.fact in _ENDS)):
            latest[named] = fact
    at_work = copies(state).keys()
    copying = at_work & latest.keys()
    handled = int(state.get("requests") or 0) > request.offset
    ended = handled and not (copying if latest else at_work)
    wanted = "left" if request.verb == "remove" else None
    failures = [f for f in latest.values() if f.fact in _ENDS and f.fact != wanted]
    return Answer(
        request=request,
        ended=ended,
        told=ended and not any(map(_goes_on, latest.values())),
        facts=tuple(latest.values()),
        copying=frozenset(relation for relation in at_work if relation in latest),
        failed="; ".join(map(_failure, failures)) or None,
        hint="; ".join(dict.fromkeys(fact.hint for fact in failures if fact.hint)),
    )


def copies(state: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The copies at work, by relation: each with the `rows` that it has stored so far.

    One that has not begun is empty.
    """
    return {int(relation): cursor for relation, cursor in (state.get("copies") or {}).items()}


def _failure(fact: Fact) -> str:
    if not fact.why:
        return f"{fact.table} {_ENDS[fact.fact]}"
    return fact.why if fact.table in fact.why else f"{fact.table}: {fact.why}"


def _goes_on(fact: Fact) -> bool:
    """Whether another fact follows this one. A table that was captured already is not copied."""
    return fact.fact == "copying" or (fact.fact == "joined" and fact.relation is not None)


_ENDS = {
    "refused": "was refused",
    "dropped": "is gone at the source",
    "left": "is captured no more",
}
