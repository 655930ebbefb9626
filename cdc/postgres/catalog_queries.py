"""The SQL behind cdc.postgres.catalog; search_path is pg_catalog (D9)."""

# Of a partitioned table every partition must have an identity for its updates to pass; what
# decides about the key that readers see is the root's own.
RELATIONS = """
with recursive above as (
    select inhrelid as leaf, inhparent as parent, 1 as height
      from pg_inherits join pg_class on oid = inhrelid where relispartition
    union all
    select leaf, inhparent, height + 1
      from above join pg_inherits on inhrelid = parent
      join pg_class on oid = inhrelid where relispartition
), identity as (
    select c.oid,
           exists (
               select from pg_index i where i.indrelid = c.oid and i.indisvalid and (
                   (c.relreplident = 'd' and i.indisprimary and i.indimmediate)
                   or (c.relreplident = 'i' and i.indisreplident)
               )
           ) as has_key
      from pg_class c where c.relkind in ('r', 'p')
)
select c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
       c.relreplident::text, coalesce(k.has_key, false),
       not exists (
           select from above b join pg_class l on l.oid = b.leaf join identity li on li.oid = l.oid
            where b.parent = c.oid and l.relkind = 'r'
              and not (li.has_key or l.relreplident = 'f')
       ),
       array(select parent::int8 from above where leaf = c.oid order by height),
       coalesce((select array_agg(a.attname::text order by a.attnum) from pg_attribute a
                  where a.attrelid = c.oid and a.attnum > 0
                    and not a.attisdropped and a.attgenerated = ''), '{}'),
       case when c.relkind = 'p' then
           (select sum(l.reltuples) filter (where l.reltuples >= 0)
              from above b join pg_class l on l.oid = b.leaf and l.relkind = 'r'
             where b.parent = c.oid)
       else nullif(c.reltuples, -1) end,
       case when c.relkind = 'p' then
           coalesce((select sum(pg_table_size(b.leaf)) from above b where b.parent = c.oid), 0)
       when c.relkind = 'r' then coalesce(pg_table_size(c.oid), 0) else 0 end::int8
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join identity k on k.oid = c.oid
 where c.relkind in ('r', 'p', 'f', 'v', 'm')
   and n.nspname not in ('information_schema') and n.nspname !~ '^pg_'
"""

RELATION = """
select n.nspname, c.relname, c.relreplident::text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s
"""

COLUMNS = """
select a.attnum, a.attname, a.atttypid::int8, a.atttypmod,
       exists (
           select from pg_index i join pg_class c on c.oid = i.indrelid
            where i.indrelid = a.attrelid and a.attnum = any(i.indkey::int2[])
              and i.indisvalid and (
                (c.relreplident = 'd' and i.indisprimary and i.indimmediate)
                or (c.relreplident = 'i' and i.indisreplident)
            )
       ),
       a.attgenerated <> '', a.attmissingval::text
  from pg_attribute a
 where a.attrelid = %(oid)s and a.attnum > 0 and not a.attisdropped
 order by a.attnum
"""

# Some types have an element and are no arrays (point, name, int2vector): an array is what its
# element's own entry names as its array.
TYPES = """
with recursive used as (
    select unnest(%s::oid[]) as oid
    union
    select next.oid from used join pg_type t on t.oid = used.oid
      cross join lateral (values (t.typbasetype), (t.typelem)) as next (oid)
     where next.oid <> 0
)
select t.oid::int8, n.nspname, t.typname,
       case when e.oid is not null then 'a' else t.typtype::text end,
       t.typbasetype::int8, t.typtypmod, coalesce(e.oid, 0)::int8
  from used join pg_type t on t.oid = used.oid join pg_namespace n on n.oid = t.typnamespace
  left join pg_type e on e.oid = t.typelem and e.typarray = t.oid
 order by t.oid
"""
