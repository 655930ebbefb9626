"""The SQL behind cdc.postgres.schema.observation; search_path is pg_catalog (D9).

No function of the server is called that locks a user's table: a look at the catalog must not wait
behind a long ALTER TABLE, nor have others wait behind it.
"""

TREE = """
with recursive tree as (
    select c.oid as root, c.oid, 0::oid as parent, null::xid as attached
      from pg_class c where c.oid = any(%(oids)s::oid[]) and c.relkind in ('r', 'p')
    union all
    select t.root, i.inhrelid, i.inhparent, i.xmin
      from tree t join pg_inherits i on i.inhparent = t.oid
      join pg_class c on c.oid = i.inhrelid and c.relispartition and c.relkind in ('r', 'p')
)
select t.root::int8, t.oid::int8, t.parent::int8, c.relkind::text, c.relfilenode::int8,
       coalesce(t.attached::text::int8, 0),
       coalesce((select a.xmin::text::int8 from pg_attribute a
                  where a.attrelid = c.oid and a.attnum = -1), 0),
       n.nspname, c.relname, c.relpersistence::text, c.relreplident::text,
       exists (
           select from pg_index i where i.indrelid = c.oid and i.indisvalid and (
               (c.relreplident = 'd' and i.indisprimary and i.indimmediate)
               or (c.relreplident = 'i' and i.indisreplident)
           )
       )
  from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
 order by 1, 2
"""
"""Of what made a table, its system columns tell: their rows are never written again."""

ATTRIBUTES = """
select a.attrelid::int8, a.attnum, a.attname, a.atttypid::int8, a.atttypmod, a.attisdropped,
       a.xmin::text::int8, a.atthasmissing, a.attgenerated::text, coalesce(d.oid, 0)::int8
  from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = any(%(oids)s::oid[]) and a.attnum > 0
 order by 1, 2
"""

TYPES = """
with recursive used as (
    select unnest(%(types)s::oid[]) as oid
    union
    select next.oid from used join pg_type t on t.oid = used.oid cross join lateral (
        select t.typbasetype union all select t.typelem
        union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
        union all select a.atttypid from pg_attribute a
                   where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    ) as next (oid)
     where next.oid <> 0
)
select t.oid::int8, t.typtype::text, t.typbasetype::int8,
       array(select distinct next.oid::int8 from (
           select t.typbasetype union all select t.typelem
           union all select r.rngsubtype from pg_range r
                      where t.oid in (r.rngtypid, r.rngmultitypid)
           union all select a.atttypid from pg_attribute a
                      where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
       ) as next (oid) where next.oid <> 0)
  from used join pg_type t on t.oid = used.oid
"""

ENUMS = """
select enumtypid::int8, oid::int8, enumlabel from pg_enum
 where enumtypid = any(%(types)s::oid[]) order by 1, 2
"""

COMPOSITES = """
select t.oid::int8, a.attnum, a.atttypid::int8, a.atttypmod
  from pg_type t join pg_attribute a on a.attrelid = t.typrelid
 where t.oid = any(%(types)s::oid[]) and a.attnum > 0 and not a.attisdropped
 order by 1, 2
"""

# Where in its statement each part of the condition stood says nothing about it.
SENT = """
select r.prrelid::int8,
       hashtextextended(regexp_replace(r.prqual::text, ':location -?[0-9]+', '', 'g'), 0)::text,
       r.prattrs::int2[]
  from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
 where r.prrelid = any(%(oids)s::oid[]) and p.pubname = any(%(names)s)
 order by p.pubname
"""

NAME = """
select (parse_ident(schema))[1], (parse_ident(name))[1]
  from pg_identify_object('pg_class'::regclass, %s::oid, 0)
"""
"""The name that a relation has now, whatever the snapshot shows."""
