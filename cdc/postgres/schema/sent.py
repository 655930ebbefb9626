"""What publications send of which tables, by the catalog alone.

The server's view `pg_publication_tables` opens every table of a publication, and so waits behind a
long ALTER TABLE of any of them. Of a publication that names its tables one by one, and sends
partitions as their root, the catalog's rows say the same: ours are of this kind. For others the
view is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated

_LISTS_VERSION = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A table that a publication sends.

    `columns` are the names of those that it sends, None where all are (before 15); `listed`: it has
    a list of them. `where` is the SQL condition of the rows, None for all.
    """

    relation: int
    columns: tuple[str, ...] | None
    listed: bool
    where: str | None


_NAMED = """
select p.pubviaroot and not p.puballtables {schemas}
  from pg_publication p where p.pubname = %(name)s
"""

_NO_SCHEMAS = "and not exists (select from pg_publication_namespace s where s.pnpubid = p.oid)"

# As JSON where columns of a catalog differ between versions.
_MEMBERS = """
with recursive member as (
    select r.prrelid as oid, {attributes} as attributes, {condition} as condition,
           coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false) as generated
      from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
     where p.pubname = %(name)s
), above as (
    select m.oid as leaf, i.inhparent as parent
      from member m join pg_class c on c.oid = m.oid and c.relispartition
      join pg_inherits i on i.inhrelid = m.oid
    union
    select a.leaf, i.inhparent
      from above a join pg_class c on c.oid = a.parent and c.relispartition
      join pg_inherits i on i.inhrelid = a.parent
)
select m.oid::int8, {names}, m.attributes is not null,
       case when m.condition is not null then pg_get_expr(m.condition, m.oid) end
  from member m join pg_class c on c.oid = m.oid
 where not exists (
     select from above a where a.leaf = m.oid and a.parent in (select oid from member)
 )
   and (%(oid)s::oid is null or m.oid = %(oid)s::oid)
"""

_NAMES = """
array(select a.attname::text from pg_attribute a
       where a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped
         and case when m.attributes is not null then a.attnum = any(m.attributes)
                  else a.attgenerated = '' or (a.attgenerated = 's' and m.generated) end
       order by a.attnum)
"""

_VIEW = """
select c.oid::int8, {details}
  from pg_publication_tables p join pg_namespace n on n.nspname = p.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
  join pg_publication b on b.pubname = p.pubname
  left join pg_publication_rel r on r.prpubid = b.oid and r.prrelid = c.oid
 where p.pubname = %(name)s and (%(oid)s::oid is null or c.oid = %(oid)s::oid)
"""


def sent_by(conn: Connection, name: str, *, oid: int | None = None) -> list[Sent]:
    """The tables that a publication sends; of `oid` alone where it is given."""
    wanted = {"name": name, "oid": oid}
    with translated(f"reading what publication {name!r} sends"):
        head = conn.execute(_named(conn.info.server_version), wanted).fetchone()
        by_name = head is not None and head[0]
        query = (_members if by_name else _view)(conn.info.server_version)
        rows = conn.execute(query, wanted).fetchall()
    return [
        Sent(
            relation=relation,
            columns=None if columns is None else tuple(columns),
            listed=listed,
            where=where,
        )
        for relation, columns, listed, where in rows
    ]


def sent_of(conn: Connection, names: Sequence[str], oid: int) -> list[Sent]:
    """What each of these publications sends of one table."""
    return [found for name in names for found in sent_by(conn, name, oid=oid)]


def _named(version: int) -> bytes:
    return _NAMED.format(schemas=_NO_SCHEMAS if version >= _LISTS_VERSION else "").encode()


def _members(version: int) -> bytes:
    lists = version >= _LISTS_VERSION
    return _MEMBERS.format(
        attributes="r.prattrs::int2[]" if lists else "null::int2[]",
        condition="r.prqual" if lists else "null::pg_node_tree",
        names=_NAMES if lists else "null::text[]",
    ).encode()


def _view(version: int) -> bytes:
    lists = version >= _LISTS_VERSION
    details = "p.attnames::text[], r.prattrs is not null, p.rowfilter"
    return _VIEW.format(details=details if lists else "null::text[], false, null::text").encode()
