"""The SQL behind cdc.postgres.schema.catalog; search_path is pg_catalog (D9)."""

# Nothing here waits for a lock: it is asked every few seconds, also while a table is altered.
# Of a partitioned table every partition must have an identity for its updates to pass; what
# decides about the key that readers see is the root's own. Stored generated columns can be
# published from 18 on, virtual ones never; so a table under REPLICA IDENTITY FULL that has one of
# these cannot be updated once it is published.
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
           ) as has_key,
           c.relreplident = 'f' and not exists (
               select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v'
           ) as full_fits
      from pg_class c where c.relkind in ('r', 'p')
)
select c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
       c.relreplident::text, coalesce(k.has_key, false),
       (c.relreplident <> 'f' or coalesce(k.full_fits, false)) and not exists (
           select from above b join pg_class l on l.oid = b.leaf join identity li on li.oid = l.oid
            where b.parent = c.oid and l.relkind = 'r'
              and not (li.has_key or li.full_fits)
       ),
       array(select parent::int8 from above where leaf = c.oid order by height),
       coalesce((select array_agg(a.attname::text order by a.attnum) from pg_attribute a
                  where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                    and (a.attgenerated = '' or (a.attgenerated = 's'
                        and current_setting('server_version_num')::int >= 180000))), '{}'),
       case when c.relkind = 'p' then
           (select sum(l.reltuples) filter (where l.reltuples >= 0)
              from above b join pg_class l on l.oid = b.leaf and l.relkind = 'r'
             where b.parent = c.oid)
       else nullif(c.reltuples, -1) end
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join identity k on k.oid = c.oid
 where c.relkind in ('r', 'p', 'f', 'v', 'm')
   and n.nspname not in ('information_schema') and n.nspname !~ '^pg_'
"""

RELATION = """
select n.nspname, c.relname, c.relreplident::text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s
"""

# A table's own file, or those of its partitions. No function of the server that locks what it looks
# at: that would wait behind a long ALTER TABLE.
_LEAVES = """
with recursive tree as (
    select oid, relkind, relfilenode from pg_class where oid = %(oid)s
    union all
    select c.oid, c.relkind, c.relfilenode from tree join pg_inherits i on i.inhparent = tree.oid
      join pg_class c on c.oid = i.inhrelid where c.relispartition
), leaf as (
    select oid, relfilenode from tree where relkind = 'r'
)
"""

STORAGE = _LEAVES + "select oid::int8, relfilenode::int8 from leaf"

# A partitioned table has no fast defaults itself, its partitions have. An int2vector counts from 0;
# what an index only includes comes behind its keys.
COLUMNS = (
    _LEAVES
    + """
, missing as (
    select a.attname,
           array_agg(distinct a.attmissingval::text) filter (where a.atthasmissing) as texts,
           bool_and(a.atthasmissing) as all_leaves
      from leaf join pg_attribute a on a.attrelid = leaf.oid
     where a.attnum > 0 and not a.attisdropped group by a.attname
)
select a.attnum, a.attname, a.atttypid::int8, a.atttypmod,
       exists (
           select from pg_index i join pg_class c on c.oid = i.indrelid
            where i.indrelid = a.attrelid and i.indisvalid
              and a.attnum = any((i.indkey::int2[])[:i.indnkeyatts - 1]) and (
                (c.relreplident = 'd' and i.indisprimary and i.indimmediate)
                or (c.relreplident = 'i' and i.indisreplident)
            )
       ),
       a.attgenerated::text, a.attisdropped, a.atthasdef or a.attidentity <> '',
       coalesce(m.texts, '{}'), coalesce(m.all_leaves, false), a.xmin::text::int8,
       exists (
           select from pg_index i where i.indrelid = a.attrelid and i.indisprimary
              and i.indisvalid and i.indimmediate
              and a.attnum = any((i.indkey::int2[])[:i.indnkeyatts - 1])
       )
  from pg_attribute a left join missing m on m.attname = a.attname and not a.attisdropped
 where a.attrelid = %(oid)s and a.attnum > 0
 order by a.attnum
"""
)

SENT = """
select r.prrelid is not null, {list}, {generated}
  from pg_publication p
  left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = %(oid)s
 where p.pubname = any(%(names)s)
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
       t.typbasetype::int8, t.typtypmod, coalesce(e.oid, 0)::int8, t.typdelim::text
  from used join pg_type t on t.oid = used.oid join pg_namespace n on n.oid = t.typnamespace
  left join pg_type e on e.oid = t.typelem and e.typarray = t.oid
 order by t.oid
"""
