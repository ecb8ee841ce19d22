"""`pg_catalog`: what Postgres's tools ask of a database before they ask for data.

Its tables are made for each query from `Database.tables()`, and read by a DuckDB of their own that can reach nothing
else (`information_schema.py`). There they lie under their own names, which shadow DuckDB's own imitation of them;
`information_schema` is another schema beside them, with Postgres's names of types. What we have none of (indexes,
constraints, triggers, …) is an empty table.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from dataplane.tsdb.protocols import information_schema
from dataplane.tsdb.protocols.lexer import Kind, Token, quoted_name, text
from dataplane.tsdb.protocols.postgres_macros import FUNCTIONS, Said, macros, with_needs
from dataplane.tsdb.protocols.postgres_settings import SCHEMA
from dataplane.tsdb.protocols.postgres_types import ARRAYS, NAMES, OF_COLUMN, SIZES, Oid
from dataplane.tsdb.protocols.select import CATALOG, CATALOG_PREFIX, QUERY_TOKENS_MAX
from dataplane.tsdb.schema.tables import ColumnType, TableSchema
from providers.base.errors import Invalid

_INFORMATION = "__information"
"""The schema of its views."""
_FIRST_OID = 16_384
_PG_CATALOG, _INFORMATION_OID, _PUBLIC = 11, 13_000, 2_200
_OWNER = 10

_TABLES: dict[str, str] = {
    "pg_namespace": "oid:i nspname:s nspowner:i nspacl:S",
    "pg_class": "oid:i relname:s relnamespace:i reltype:i reloftype:i relowner:i relam:i relfilenode:i reltablespace:i "
    "relpages:i reltuples:f reltoastrelid:i relhasindex:b relisshared:b relpersistence:s relkind:s relnatts:i "
    "relchecks:i relhasrules:b relhastriggers:b relhassubclass:b relrowsecurity:b relforcerowsecurity:b "
    "relispopulated:b relreplident:s relispartition:b relacl:S reloptions:S relpartbound:s",
    "pg_attribute": "attrelid:i attname:s atttypid:i attstattarget:i attlen:i attnum:i attndims:i atttypmod:i "
    "attbyval:b attalign:s attstorage:s attcompression:s attnotnull:b atthasdef:b atthasmissing:b attidentity:s "
    "attgenerated:s attisdropped:b attislocal:b attinhcount:i attcollation:i attacl:S attoptions:S attfdwoptions:S",
    "pg_type": "oid:i typname:s typnamespace:i typowner:i typlen:i typbyval:b typtype:s typcategory:s "
    "typispreferred:b typisdefined:b typdelim:s typrelid:i typelem:i typarray:i typinput:s typoutput:s "
    "typreceive:s typsend:s typnotnull:b typbasetype:i typtypmod:i typndims:i typcollation:i typdefault:s",
    "pg_database": "oid:i datname:s datdba:i encoding:i datlocprovider:s datistemplate:b datallowconn:b "
    "datconnlimit:i dattablespace:i datcollate:s datctype:s daticulocale:s daticurules:s datacl:S",
    "pg_roles": "oid:i rolname:s rolsuper:b rolinherit:b rolcreaterole:b rolcreatedb:b rolcanlogin:b "
    "rolreplication:b rolconnlimit:i rolvaliduntil:s rolbypassrls:b rolconfig:S",
    "pg_user": "usename:s usesysid:i usecreatedb:b usesuper:b",
    "pg_tables": "schemaname:s tablename:s tableowner:s tablespace:s hasindexes:b hasrules:b hastriggers:b",
    "pg_settings": "name:s setting:s unit:s category:s short_desc:s context:s vartype:s source:s",
    "pg_am": "oid:i amname:s amhandler:s amtype:s",
    # Empty, all of these.
    "pg_attrdef": "oid:i adrelid:i adnum:i adbin:s",
    "pg_auth_members": "roleid:i member:i grantor:i admin_option:b",
    "pg_collation": "oid:i collname:s collnamespace:i collprovider:s collencoding:i",
    "pg_constraint": "oid:i conname:s connamespace:i contype:s condeferrable:b condeferred:b convalidated:b "
    "conrelid:i contypid:i conindid:i conparentid:i confrelid:i confupdtype:s confdeltype:s confmatchtype:s conkey:I "
    "confkey:I conbin:s",
    "pg_depend": "classid:i objid:i objsubid:i refclassid:i refobjid:i refobjsubid:i deptype:s",
    "pg_description": "objoid:i classoid:i objsubid:i description:s",
    "pg_enum": "oid:i enumtypid:i enumsortorder:f enumlabel:s",
    "pg_extension": "oid:i extname:s extowner:i extnamespace:i extversion:s",
    "pg_foreign_server": "oid:i srvname:s srvowner:i srvfdw:i",
    "pg_foreign_table": "ftrelid:i ftserver:i ftoptions:S",
    "pg_index": "indexrelid:i indrelid:i indnatts:i indnkeyatts:i indisunique:b indisprimary:b indisexclusion:b "
    "indimmediate:b indisclustered:b indisvalid:b indisready:b indislive:b indisreplident:b indkey:I indcollation:I "
    "indclass:I indoption:I indexprs:s indpred:s",
    "pg_indexes": "schemaname:s tablename:s indexname:s tablespace:s indexdef:s",
    "pg_inherits": "inhrelid:i inhparent:i inhseqno:i inhdetachpending:b",
    "pg_language": "oid:i lanname:s",
    "pg_matviews": "schemaname:s matviewname:s matviewowner:s definition:s",
    "pg_partitioned_table": "partrelid:i partstrat:s",
    "pg_policy": "oid:i polname:s polrelid:i polcmd:s polpermissive:b polroles:I polqual:s polwithcheck:s",
    "pg_proc": "oid:i proname:s pronamespace:i proowner:i prolang:i prokind:s prorettype:i proargtypes:I proretset:b",
    "pg_publication": "oid:i pubname:s puballtables:b",
    "pg_publication_namespace": "oid:i pnpubid:i pnnspid:i",
    "pg_publication_rel": "oid:i prpubid:i prrelid:i prqual:s prattrs:I",
    "pg_range": "rngtypid:i rngsubtype:i rngmultitypid:i",
    "pg_rewrite": "oid:i rulename:s ev_class:i ev_type:s ev_enabled:s is_instead:b",
    "pg_sequence": "seqrelid:i seqtypid:i seqstart:i seqincrement:i seqmax:i seqmin:i seqcache:i seqcycle:b",
    "pg_shdescription": "objoid:i classoid:i description:s",
    "pg_statistic_ext": "oid:i stxrelid:i stxname:s stxnamespace:i stxkeys:I stxkind:S stxstattarget:i",
    "pg_tablespace": "oid:i spcname:s spcowner:i spcacl:S",
    "pg_trigger": "oid:i tgrelid:i tgname:s tgfoid:i tgenabled:s tgisinternal:b tgconstraint:i "
    "tgparentid:i tgdeferrable:b",
    "pg_views": "schemaname:s viewname:s viewowner:s definition:s",
}
"""Columns and their types: i whole, f float, s text, b boolean, I and S lists."""
_ARROW = {
    "i": pa.int64(),
    "f": pa.float64(),
    "s": pa.string(),
    "b": pa.bool_(),
    "I": pa.list_(pa.int64()),
    "S": pa.list_(pa.string()),
}
_CATEGORIES: dict[str, tuple[Oid, ...]] = {
    "N": (Oid.INT2, Oid.INT4, Oid.INT8, Oid.FLOAT4, Oid.FLOAT8, Oid.NUMERIC, Oid.OID),
    "S": (Oid.TEXT, Oid.VARCHAR, Oid.BPCHAR, Oid.NAME),
    "D": (Oid.DATE, Oid.TIME, Oid.TIMESTAMP, Oid.TIMESTAMPTZ),
    "B": (Oid.BOOL,),
    "T": (Oid.INTERVAL,),
}
_KEYWORDS = {
    "CURRENT_USER": "user",
    "SESSION_USER": "user",
    "CURRENT_ROLE": "user",
    "USER": "user",
    "CURRENT_CATALOG": "database",
    "CURRENT_SCHEMA": "schema",
}

Row = dict[str, Any]


def concerns(statement: Sequence[Token], tables: Sequence[TableSchema]) -> bool:
    """Whether a query (without its `pg_catalog.`) is of the catalog: by a table's name, or by a function that looks
    into it."""
    own = {schema.name.lower() for schema in tables}
    for at, token in enumerate(statement):
        if token.kind not in (Kind.WORD, Kind.NAME):
            continue
        name, after = token.text.lower(), statement[at + 1].text if at + 1 < len(statement) else ""
        if name == CATALOG and after == ".":
            return True
        if name in FUNCTIONS and after == "(":
            return True
        if name in _TABLES and name not in own and at and statement[at - 1].text.upper() in ("FROM", "JOIN", ","):
            return True
    return False


async def ask(statement: Sequence[Token], said: Said, tables: Sequence[TableSchema]) -> pa.Table:
    """The answer of such a query. `said`: what its connection's functions say.

    Raises:
        Invalid: it is no good SELECT of the catalog, or takes too much time or memory.
    """
    if len(statement) > QUERY_TOKENS_MAX:
        raise Invalid(f"a SELECT of {len(statement)} words is longer than {QUERY_TOKENS_MAX}")
    words = _translated(statement, said)
    named = with_needs({token.text.lower() for token in words})
    views = "".join(
        f"CREATE VIEW {_INFORMATION}.{name} AS SELECT * FROM {quoted_name(CATALOG_PREFIX + name)};"
        for name in information_schema.TABLE_NAMES
        if name in named
    )
    schema = f"CREATE SCHEMA {_INFORMATION};" if _INFORMATION in named else ""
    prelude = f"{schema}{views if schema else ''}{macros(said, named)}"
    return await information_schema.ask(lambda: _made(said, tables, named), text(words), prelude=prelude)


def _translated(statement: Sequence[Token], said: Said) -> list[Token]:
    """In DuckDB's words."""
    found: list[Token] = []
    at = 0
    while at < len(statement):
        token = statement[at]
        upper = token.text.upper() if token.kind is Kind.WORD else ""
        after = [one.text for one in statement[at + 1 : at + 4]]
        if upper == "OPERATOR" and after[:1] == ["("] and after[2:] == [")"]:
            found.append(statement[at + 2])
            at += 4
        elif upper == "COLLATE" and after[:1] and after[0].lower() in ("default", "c", "posix"):
            at += 2
        elif token.kind in (Kind.WORD, Kind.NAME) and token.text.lower() == CATALOG and after[:1] == ["."]:
            found.append(token._replace(kind=Kind.WORD, text=_INFORMATION))
            at += 1
        elif upper in _KEYWORDS and after[:1] not in (["("], ["."]) and (not found or found[-1].text != "."):
            value = {"user": said.user, "database": said.database, "schema": SCHEMA}[_KEYWORDS[upper]]
            found.append(token._replace(kind=Kind.STRING, text=value))
            at += 1
        else:
            found.append(token)
            at += 1
    return found


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _made(said: Said, schemas: Sequence[TableSchema], named: Collection[str]) -> dict[str, pa.Table]:
    """The tables that are named."""
    rows: dict[str, list[Row]] = {name: [] for name in _TABLES}
    for oid, name in ((_PG_CATALOG, "pg_catalog"), (_PUBLIC, SCHEMA), (_INFORMATION_OID, CATALOG)):
        rows["pg_namespace"].append({"oid": oid, "nspname": name, "nspowner": _OWNER})
    rows["pg_database"].append(_database(said))
    role = {"oid": _OWNER, "rolname": said.user, "rolsuper": False, "rolinherit": True, "rolcreaterole": False}
    rows["pg_roles"].append(
        {**role, "rolcreatedb": False, "rolcanlogin": True, "rolreplication": False, "rolconnlimit": -1}
    )
    rows["pg_user"].append({"usename": said.user, "usesysid": _OWNER, "usecreatedb": False, "usesuper": False})
    rows["pg_settings"] += [{"name": name, "setting": value} for name, value in sorted(said.settings.items())]
    rows["pg_am"].append({"oid": 2, "amname": "heap", "amhandler": "heap_tableam_handler", "amtype": "t"})
    arrays = {element: oid for oid, element in ARRAYS.items()}
    rows["pg_type"] += [_type(oid, arrays.get(oid, 0)) for oid in Oid]
    rows["pg_type"] += [_array(oid, element) for oid, element in ARRAYS.items()]
    taken: set[int] = set()
    for schema in schemas:
        oid = _FIRST_OID + zlib.crc32(schema.name.encode()) % ((1 << 31) - (1 << 20))
        while oid in taken:
            oid += 1
        taken.add(oid)
        rows["pg_class"].append(_class(oid, schema))
        rows["pg_attribute"] += [_attribute(oid, schema, place) for place in range(len(schema.columns))]
        rows["pg_tables"].append(
            {"schemaname": SCHEMA, "tablename": schema.name, "tableowner": said.user, "hasindexes": False}
        )
    made = {
        name: pa.Table.from_pylist(rows[name], schema=_arrow(columns))
        for name, columns in _TABLES.items()
        if name in named
    }
    if _INFORMATION in named:
        for name, table in information_schema.catalog(SCHEMA, schemas).items():
            if name in named:
                made[CATALOG_PREFIX + name] = _in_postgres_words(name, table, said, schemas)
    return made


def _arrow(columns: str) -> pa.Schema:
    return pa.schema([(name, _ARROW[kind]) for name, _, kind in (one.partition(":") for one in columns.split())])


def _database(said: Said) -> Row:
    return {
        "oid": 5,
        "datname": said.database,
        "datdba": _OWNER,
        "encoding": 6,
        "datlocprovider": "c",
        "datistemplate": False,
        "datallowconn": True,
        "datconnlimit": -1,
        "datcollate": "C",
        "datctype": "C",
    }


def _type(oid: Oid, array: int) -> Row:
    name = oid.name.lower()
    category = next((letter for letter, oids in _CATEGORIES.items() if oid in oids), "U")
    return {
        "oid": int(oid),
        "typname": name,
        "typnamespace": _PG_CATALOG,
        "typowner": _OWNER,
        "typlen": SIZES.get(oid, -1),
        "typbyval": 0 < SIZES.get(oid, -1) <= 8,
        "typtype": "b",
        "typcategory": category,
        "typispreferred": oid in (Oid.TEXT, Oid.FLOAT8, Oid.TIMESTAMPTZ),
        "typisdefined": True,
        "typdelim": ",",
        "typrelid": 0,
        "typelem": 0,
        "typarray": array,
        "typinput": f"{name}in",
        "typoutput": f"{name}out",
        "typreceive": f"{name}recv",
        "typsend": f"{name}send",
        "typnotnull": False,
        "typbasetype": 0,
        "typtypmod": -1,
        "typndims": 0,
        "typcollation": 100 if category == "S" else 0,
    }


def _array(oid: int, element: Oid) -> Row:
    changed = {"oid": oid, "typname": f"_{element.name.lower()}", "typlen": -1, "typbyval": False, "typcategory": "A"}
    functions = {"typinput": "array_in", "typoutput": "array_out", "typreceive": "array_recv", "typsend": "array_send"}
    return {**_type(element, 0), **changed, **functions, "typelem": int(element)}


def _class(oid: int, schema: TableSchema) -> Row:
    no = dict.fromkeys(
        (
            "relhasindex",
            "relisshared",
            "relhasrules",
            "relhastriggers",
            "relhassubclass",
            "relrowsecurity",
            "relforcerowsecurity",
            "relispartition",
        ),
        False,
    )
    nothing = dict.fromkeys(("reltype", "reloftype", "reltablespace", "relpages", "reltoastrelid", "relchecks"), 0)
    return {
        **no,
        **nothing,
        "oid": oid,
        "relname": schema.name,
        "relnamespace": _PUBLIC,
        "relowner": _OWNER,
        "relam": 2,
        "relfilenode": oid,
        "reltuples": -1.0,  # not counted
        "relpersistence": "p",
        "relkind": "r",
        "relnatts": len(schema.columns),
        "relispopulated": True,
        "relreplident": "d",
    }


def _attribute(oid: int, schema: TableSchema, place: int) -> Row:
    column = schema.columns[place]
    kind = OF_COLUMN[column.type]
    return {
        "attrelid": oid,
        "attname": column.name,
        "atttypid": int(kind),
        "attstattarget": -1,
        "attlen": SIZES.get(kind, -1),
        "attnum": place + 1,
        "attndims": 0,
        "atttypmod": _modifier(column.type),
        "attbyval": 0 < SIZES.get(kind, -1) <= 8,
        "attalign": "i",
        "attstorage": "p",
        "attcompression": "",
        "attnotnull": not column.nullable,
        "atthasdef": False,
        "atthasmissing": False,
        "attidentity": "",
        "attgenerated": "",
        "attisdropped": False,
        "attislocal": True,
        "attinhcount": 0,
        "attcollation": 0,
    }


def _modifier(kind: ColumnType) -> int:
    return {"s": 0, "ms": 3}.get(kind.unit, 6) if kind.is_timestamp else -1


def _in_postgres_words(name: str, table: pa.Table, said: Said, schemas: Sequence[TableSchema]) -> pa.Table:
    """A table of `information_schema` with the database's and the types' names of Postgres."""
    for catalog in ("table_catalog", "catalog_name", "constraint_catalog"):
        if catalog in table.column_names:
            at = table.column_names.index(catalog)
            table = table.set_column(at, catalog, pa.array([said.database] * len(table), pa.string()))
    if name == "columns":
        kinds = [OF_COLUMN[column.type] for schema in schemas for column in schema.columns]
        at = table.column_names.index("data_type")
        table = table.set_column(at, "data_type", pa.array([NAMES[kind] for kind in kinds], pa.string()))
        table = table.append_column("udt_name", pa.array([kind.name.lower() for kind in kinds], pa.string()))
        table = table.append_column("udt_schema", pa.array(["pg_catalog"] * len(kinds), pa.string()))
    return table
