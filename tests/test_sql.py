"""SQL reads the views and nothing else, writes nothing anywhere, says what is wrong in one line, and streams."""

import csv
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import files, sql
from curate.errors import CurateError, UsageError
from curate.selection import select
from curate.store import Store

SECRET = pa.table({"secret": ["hunter2"]})  # a query that gives an answer with this word in it has got out
PATCHES = 12
FORMATS = ("csv", "json", "parquet")
VIEWS = ("duplicates", "flags", "images", "leaks", "patches", "scores")
Ask = Callable[[str], pa.Table]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Store]) -> Path:
    """A folder with `store`, its manifest `half.parquet`, and files that are none of a query's business."""
    folder = tmp_path_factory.mktemp("place")
    values = [float(i) for i in range(PATCHES)]
    store = write_store(folder / "store", scores={"sobel": values, "srcnn:scale=3": values[::-1]})
    select(store, "des", by="sobel").save(folder / "half.parquet")
    pq.write_table(SECRET, folder / "secret.parquet")
    (folder / "secret.csv").write_text("secret\nhunter2\n")
    (folder / "secret.json").write_text('[{"secret": "hunter2"}]')
    connection = duckdb.connect(folder / "secret.duckdb")
    connection.execute("CREATE TABLE secret AS SELECT 'hunter2' AS secret")
    connection.close()
    (folder / "link.parquet").symlink_to(folder / "secret.parquet")
    (folder / ".tmp").mkdir()  # where DuckDB would put what does not fit into memory
    (folder / ".tmp" / "secret.csv").write_text("secret\nhunter2\n")
    return folder


@pytest.fixture(scope="module")
def connection(place: Path) -> duckdb.DuckDBPyConnection:
    """One for all queries, as `Store.query` makes it: whatever it was asked, it answers the next query."""
    store, half = Store.open(place / "store"), place / "half.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return store.connect({"half": half})


@pytest.fixture
def ask(place: Path, connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A function that asks it; {patches}, {half}, {place} in a query are paths."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("CURATE_SECRET", "hunter2")

    def answer(query: str) -> pa.Table:
        names = {"patches": place / "store/tables/patches/000000.parquet", "half": place / "half.parquet"}
        for name, path in {**names, "place": place}.items():
            query = query.replace("{" + name + "}", str(path))
        return sql.reader(connection, query).read_all()

    return answer


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def line(refused: pytest.ExceptionInfo[UsageError]) -> str:
    assert str(refused.value).isprintable() and refused.value.exit_code == 2
    return str(refused.value)


# --- what it can do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select count(*) as n from images", [{"n": 3}]),
        ("select count(*) as n from patches", [{"n": PATCHES}]),
        ("select count(*) as n from scores", [{"n": PATCHES}]),
        ("select count(*) as n from half", [{"n": PATCHES // 2}]),
        ("select count(*) as n from scores join half using (patch_id) where sobel = score", [{"n": PATCHES // 2}]),
        ('select sum(sobel) = sum("srcnn:scale=3") as same from scores', [{"same": True}]),
        ("SELECT split, count(*) AS n FROM images GROUP BY ALL ORDER BY n LIMIT 1", [{"split": "val", "n": 1}]),
        ("from images select name order by name limit 1;", [{"name": "0.png"}]),
        ("with x as (select max(sobel) m from scores) select m from x", [{"m": 11.0}]),
        ("with recursive r as (select 1 i union all select i + 1 from r where i < 3) from r limit 1", [{"i": 1}]),
        ("(select 1 as a) union all (select 2) order by a", [{"a": 1}, {"a": 2}]),
        ("values (1), (2)", [{"col0": 1}, {"col0": 2}]),
        ("select distinct shard from patches order by 1 desc", [{"shard": 2}, {"shard": 1}, {"shard": 0}]),
        ("select * from range(2)", [{"range": 0}, {"range": 1}]),
        ("from RANGE(1)", [{"range": 0}]),
        ("select unnest([1, 2]) as a", [{"a": 1}, {"a": 2}]),
        ("select u.a from (select [1, 2] as l) t, unnest(t.l) u(a)", [{"a": 1}, {"a": 2}]),
        ("/* a comment */ select 1 as a -- and another", [{"a": 1}]),
        ("select 1 as é; -- and ;\n/* /* ; */ */ ;", [{"é": 1}]),
        ("select 'copy (select 1) to ''x''; drop' as a", [{"a": "copy (select 1) to 'x'; drop"}]),
        ('select 1 as "copy", 2 as "COPY TO"', [{"copy": 1, "COPY TO": 2}]),
        ("show tables", [{"name": name} for name in ("duplicates", "flags", "half", *VIEWS[2:])]),
        ("pivot images on split in ('train') using count(*) group by status", [{"status": "ok", "train": 2}]),
    ],
)  # fmt: skip
def test_a_query_sees_the_views_and_the_manifests(ask: Ask, query: str, expected: list[dict[str, Any]]) -> None:
    assert ask(query).to_pylist() == expected


@pytest.mark.parametrize("query", ["describe scores", "summarize scores"])
def test_a_view_can_be_described(ask: Ask, query: str) -> None:
    columns = ["patch_id", "image_id", "y", "x", "size", "shard", "sobel", "srcnn:scale=3"]
    assert ask(query)["column_name"].to_pylist() == columns


def test_columns_of_one_name_are_told_apart(ask: Ask) -> None:
    answer = ask("select 1 as a, 2 as a, 3 as A")
    assert answer.schema.names == ["a", "a_1", "A_2"] and answer.to_pylist() == [{"a": 1, "a_1": 2, "A_2": 3}]


def test_a_store_answers_with_the_manifests_that_are_named(place: Path) -> None:
    store = Store.open(place / "store")
    query = "select patch_id, score from chosen order by rank"
    chosen = pq.read_table(place / "half.parquet").sort_by("rank").select(["patch_id", "score"]).to_pylist()
    assert store.query(query, {"chosen": place / "half.parquet"}).to_pylist() == chosen
    assert store.stream(query, {"chosen": place / "half.parquet"}).read_all().to_pylist() == chosen
    with pytest.raises(UsageError, match="there are: duplicates, flags, images, leaks, patches, scores"):
        store.query(query)
    with pytest.raises(UsageError, match="Cannot access file"):
        store.query(f"from '{place}/half.parquet'")


def test_a_score_that_is_no_number_is_found(tmp_path: Path, write_store: Callable[..., Store]) -> None:
    store = write_store(tmp_path / "store", (3, 2), {"sobel": [0.5, math.nan, 1.0, None, math.nan]})
    assert store.query("select count(*) as n from scores where isnan(sobel)").to_pylist() == [{"n": 2}]
    assert store.query("select count(*) as n from scores where sobel = 'nan'").to_pylist() == [{"n": 2}]
    assert math.isnan(store.query("select max(sobel) as m from scores where shard = 0").to_pylist()[0]["m"])


# --- what it cannot do ------------------------------------------------------------------------------------------------

NO_SELECT = """
copy images to '{place}/new.csv'
copy images to '{patches}' (format parquet)
copy (select 9 as a) to '{half}' (format parquet, use_tmp_file false)
copy images from '{place}/secret.csv'
explain select 1
explain analyze select 1
explain analyze copy (select 9 as a) to '{half}' (format parquet, use_tmp_file false)
attach '{place}/secret.duckdb' as x
attach '{place}/new.duckdb' as x
attach '{half}' as x
detach memory
use memory
export database '{place}/new'
import database '{place}/new'
install httpfs
load httpfs
load '{place}/secret.duckdb'
force install httpfs from 'http://127.0.0.1:1'
set memory_limit = '1GB'
set enable_external_access = true
set lock_configuration = false
set allowed_directories = ['{place}']
set temp_directory = '{place}/new'
set variable x = 1
reset memory_limit
pragma version
pragma database_list
pragma enable_profiling
pragma table_info('images')
call pragma_version()
call enable_logging(storage = 'file', storage_path = '{place}/new')
create table t as select 1
create temp table t as select 1
create or replace view images as select 1
create macro f() as 1
create secret s (type s3)
create sequence s
create type t as enum ('a')
create schema s
drop view images
alter view images rename to x
comment on view images is 'x'
insert into images select * from images
insert into images values (1)
update images set name = 'x'
delete from images
truncate images
merge into images using images b on true when matched then delete
begin
commit
checkpoint
vacuum
analyze
prepare p as select 1
execute p
deallocate p
select 1; select 2
select 1; copy images to '{place}/new.csv'
select 1; drop view images; select 2
"""
HIDDEN_WRITE = """
with x as (copy (select 9 as a) to '{half}' (format parquet, use_tmp_file false)) from x
with x as (copy (select 9 as a) to '{half}' (format csv, use_tmp_file false)) select 1
with y as (select 1), x as materialized (copy (select 9 a) to '{patches}' (format parquet, use_tmp_file false)) from y
(with x as (copy (select 9 as a) to '{half}' (format csv, use_tmp_file false)) from x)
select * from (with x as (copy (select 9 as a) to '{half}' (format csv, use_tmp_file false)) from x)
select (with x as (copy (select 9 as a) to '{half}' (format csv, use_tmp_file false)) select count(*) from x)
with a as (with x as (copy (select 9 as a) to '{half}' (format csv, use_tmp_file false)) from x) from a
select 1 where exists (with x as (copy images to '{half}' (format csv, use_tmp_file false)) from x)
with x as (copy images to '{place}/new.csv') from x
with x as (insert into images values (1) returning *) from x
with x as (update images set name = 'x' returning *) from x
with x as (delete from images returning *) from x
select * from query('with x as (copy (select 9 as a) to ''{half}'' (use_tmp_file false)) from x')
select * from query('sel' || 'ect 1')
select * from json_execute_serialized_sql(json_serialize_sql('with x as (copy (select 9 as a) to ''{half}'' (format csv, use_tmp_file false)) from x'))
select * from "JSON_EXECUTE_SERIALIZED_SQL"(json_serialize_sql('select 1'))
select * from system.main.json_execute_serialized_sql(json_serialize_sql('select 1'))
"""  # noqa: E501
OTHER_FILES = """
select * from '{place}/secret.csv'
select * from '{place}/secret.parquet'
select * from 'secret.csv'
select * from '.tmp/secret.csv'
select * from '{place}/link.parquet'
select * from '{place}/*.parquet'
select * from '{half}/../secret.parquet'
select * from 'http://127.0.0.1:1/x.csv'
select * from 's3://bucket/x.parquet'
select * from read_text('/proc/self/environ')
select * from read_csv('{place}/secret.csv')
select * from read_csv('.tmp/secret.csv')
select * from read_csv('/dev/stdin')
select * from Read_CSV('{place}/secret.csv')
select * from "read_csv"('{place}/secret.csv')
select * from system.main.read_csv('{place}/secret.csv')
select * from read_csv_auto('{place}/secret.csv')
select * from read_json('{place}/secret.json')
select * from read_ndjson_objects('{place}/secret.json')
select * from read_text('{place}/secret.csv')
select * from read_blob('{place}/secret.csv')
select * from read_parquet('{place}/secret.parquet')
select * from read_parquet(['{half}', '{place}/secret.parquet'], union_by_name = true)
select * from parquet_scan('{place}/link.parquet')
select * from parquet_metadata('{place}/secret.parquet')
select * from parquet_schema('{place}/secret.parquet')
select * from parquet_kv_metadata('{place}/secret.parquet')
select * from read_duckdb('{place}/secret.duckdb', table_name = 'secret')
select * from sniff_csv('{place}/secret.csv')
select * from glob('{place}/*')
select * from glob('/etc/*')
select (select secret from read_csv('{place}/secret.csv'))
select 1 where 'hunter2' in (select secret from read_csv('{place}/secret.csv'))
with x as (select * from read_csv('{place}/secret.csv')) from x
from images, lateral (select * from read_csv('{place}/secret.csv'))
describe select * from read_csv('{place}/secret.csv')
summarize '{place}/secret.csv'
summarize select * from read_csv('{place}/secret.csv')
"""
OTHER_DOORS = """
select getenv('CURATE_SECRET')
select * from '/proc/self/environ'
from SECRET
select * from SECRET
select * from place
select * from ask
select * from python_arrow_scan(1, 2, 3)
select * from pandas_scan(1)
select * from query_table('images')
select * from duckdb_settings()
select * from duckdb_secrets()
select * from duckdb_extensions()
select * from which_secret('x', 's3')
select * from enable_logging(storage = 'file', storage_path = '{place}/new')
select * from enable_profiling()
select * from checkpoint()
select * from force_checkpoint()
select * from load_aws_credentials()
select * from sql_auto_complete('sel')
select * from create_external_resource('x')
select nextval('s')
"""


def queries(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.parametrize("query", [*queries(NO_SELECT), "", ";", "-- nothing", "/* nothing */ ; ;"])
def test_what_is_not_one_select_is_refused(ask: Ask, place: Path, query: str) -> None:
    before = tree(place)
    with pytest.raises(UsageError, match="should be one SELECT; found ") as refused:
        ask(query)
    assert len(line(refused)) < 1000
    assert tree(place) == before


@pytest.mark.parametrize("query", queries(HIDDEN_WRITE))
def test_a_select_that_writes_is_refused(ask: Ask, place: Path, query: str) -> None:
    before = tree(place)
    with pytest.raises(UsageError, match=r"a query can only read; found|is not for queries here") as refused:
        ask(query)
    assert line(refused)
    assert tree(place) == before


@pytest.mark.parametrize("query", queries(OTHER_FILES))
def test_other_files_are_out_of_reach(ask: Ask, place: Path, query: str) -> None:
    before = tree(place)
    with pytest.raises(UsageError, match=r"Cannot access file|is not for queries here") as refused:
        ask(query)
    assert "secret\nhunter2" not in line(refused)
    assert tree(place) == before


@pytest.mark.parametrize("query", queries(OTHER_DOORS))
def test_the_environment_and_the_program_are_out_of_reach(ask: Ask, place: Path, query: str) -> None:
    before = tree(place)
    with pytest.raises(UsageError) as refused:
        ask(query)
    assert "hunter2" not in line(refused)
    assert tree(place) == before


def test_duckdb_itself_lets_no_other_file_through(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beneath `check`: the settings alone keep a connection from every file but the one it was given."""
    monkeypatch.chdir(place)
    half = place / "half.parquet"
    connection = sql.connect({"half": sql.parquet([half])}, [half])
    assert connection.execute("SELECT count(*) FROM half").fetchall() == [(PATCHES // 2,)]
    for name in (".tmp/secret.csv", "secret.csv", f"{place}/secret.parquet", f"{place}/store/store.json"):
        with pytest.raises(duckdb.PermissionException):
            connection.execute(f"SELECT * FROM read_text('{name}')")
    for statement in ("SET temp_directory='new'", "SET enable_external_access=true", "SET lock_configuration=false"):
        with pytest.raises(duckdb.Error, match=r"locked|cannot|Cannot"):
            connection.execute(statement)
    for statement in (
        f"COPY half TO '{place}/new.csv'",
        f"ATTACH '{place}/new.duckdb'",
        "INSTALL httpfs",
        "FROM SECRET",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(statement)
    assert not list(place.glob("new*"))


# --- one clear line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("selekt 1", ["SQL: Parser Error", 'near "selekt"', "selekt 1"]),
        ("select", ["SQL: Parser Error"]),
        ("select sobbel from scores", ["SQL: Binder Error", '"sobbel"', '"sobel"']),
        ("select name from scores", ["SQL: Binder Error", '"name"', '; the columns of a view: curate sql STORE "DESC']),
        ("select s.name from scores s", ['"s"', "the columns of a view"]),
        ("select scores.name from scores", ['"name"', "the columns of a view"]),
        ("select * from pictures", ["pictures", "there are: duplicates, flags, half, images, leaks, patches, scores"]),
        ("select * from s.images", ["SQL: Catalog Error"]),
        ("select foo(1)", ["foo", "does not exist"]),
        ("select 'a'::int", ["SQL: Conversion Error", "'a'"]),
        ("select error('multi\nline \x1b[31m')", [r"SQL: Invalid Input Error: multi"]),
        ("select ?", ["SQL: "]),
        ("copy\nimages to 'x'", [r"found COPY: 'copy\nimages to 'x''"]),
        ("select * from glob('x')", ["table function 'glob'", "there are: generate_series, range, unnest"]),
        ("with x as (copy images to 'x') from x", ["a query can only read; found COPY"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_what_there_is(ask: Ask, query: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        ask(query)
    message = line(refused)
    assert [part for part in parts if part not in message] == []


NESTED = {
    "queries": ("select * from ", "(select * from ", "range(1)", ")"),
    "brackets": ("select ", "(", "1", ")"),
    "signs": ("select ", "- ", "1", ""),
    "conditions": ("select ", "not ", "true", ""),
    "lists": ("select ", "[", "1", "]"),
    "cases": ("select ", "case when true then ", "1", " end"),
}


@pytest.mark.parametrize("depth", [150, 600, 5000])
@pytest.mark.parametrize("what", NESTED)
def test_a_deep_query_is_answered_or_refused_in_one_line(ask: Ask, what: str, depth: int) -> None:
    start, before, inside, after = NESTED[what]
    try:
        assert ask(start + before * depth + inside + after * depth).num_rows == 1
    except UsageError as refused:
        assert any(part in str(refused) for part in ("depth", "nested too deeply", "Recursion level"))
        assert str(refused).isprintable()


def test_views_that_cannot_be_made_are_refused_in_one_line(place: Path) -> None:
    half = sql.parquet([place / "half.parquet"])
    for views, part in [
        ({"half": half, "HALF": half}, 'View with name "HALF" already exists'),
        ({"text": sql.parquet([place / "secret.csv"])}, "secret.csv"),
    ]:
        with pytest.raises(UsageError, match=r"^SQL: ") as refused:
            sql.connect(views, [])
        assert part in line(refused)


# --- files of any name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a[1]", "a*", "a?", "[!b]", "**", "it's", 'a"b', "split=train", "été ü", "{a,b}", "a\\b", "a%20b", "~a", "-a"],
)
def test_a_file_of_any_name_is_itself_alone(tmp_path: Path, name: str) -> None:
    for folder in (name, "a1", "ab", "c"):  # the last three are what a pattern would have found
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"a": [folder]}), tmp_path / folder / "1.parquet")
    file = tmp_path / name / "1.parquet"
    views = {'v "1"': sql.parquet([file]), "named": sql.parquet([file], "a, filename", filename=True)}
    lists = sql.Lists()
    views["listed"] = lists.parquet([file, str(file)], filename=True)
    connection = sql.connect(views, [file], lists=lists)
    assert sql.reader(connection, 'from "v ""1"""').read_all().to_pylist() == [{"a": name}]
    assert sql.reader(connection, "from named").read_all().to_pylist() == [{"a": name, "filename": str(file)}]
    assert sql.reader(connection, "from listed").read_all().to_pylist() == [{"a": name, "filename": str(file)}] * 2
    with pytest.raises(UsageError, match="Cannot access file"):
        sql.reader(connection, f"from '{tmp_path}/c/1.parquet'")


def test_a_table_in_memory_is_a_view_too() -> None:
    connection = sql.connect({"mine": pa.table({"a": [1, 2]})}, [])
    assert sql.reader(connection, "select sum(a) as s from mine").read_all().to_pylist() == [{"s": 3}]


@pytest.mark.parametrize(("name", "quoted"), [("a", '"a"'), ('a"b', '"a""b"'), ("srcnn:scale=3", '"srcnn:scale=3"')])
def test_identifiers_are_quoted(name: str, quoted: str) -> None:
    assert sql.identifier(name) == quoted
    assert duckdb.sql(f"SELECT 1 AS {quoted}").columns == [name]


# --- writing answers --------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"i": 1, "f": 0.1, "t": 'comma, "quote"\nline', "l": [1, None], "s": {"a": 1.5, "b": "é,"}, "b": True},
    {"i": -(2**63), "f": 1e-300, "t": "日本 é \U0001f600", "l": [], "s": {"a": None, "b": None}, "b": False},
    {"i": None, "f": None, "t": None, "l": None, "s": None, "b": None},
    {"i": 0, "f": -0.0, "t": "null", "l": [2**60], "s": {"a": -1.0, "b": ""}, "b": None},
]
TYPES = pa.schema(
    [
        ("i", pa.int64()),
        ("f", pa.float64()),
        ("t", pa.string()),
        ("l", pa.list_(pa.int64())),
        ("s", pa.struct([("a", pa.float64()), ("b", pa.string())])),
        ("b", pa.bool_()),
    ]
)


def written(query: str, form: sql.Format, table: pa.Table | None = None) -> bytes:
    output = io.BytesIO()
    connection = sql.connect({} if table is None else {"t": table}, [])
    rows = sql.write(sql.reader(connection, query), output, form)
    assert rows == sql.reader(connection, query).read_all().num_rows
    return output.getvalue()


def test_parquet_holds_the_answer_as_it_is() -> None:
    table = pa.Table.from_pylist(ROWS, TYPES)
    assert pq.read_table(io.BytesIO(written("from t", "parquet", table))).equals(table)


def test_json_holds_the_answer_as_it_is() -> None:
    data = written("from t", "json", pa.Table.from_pylist(ROWS, TYPES))
    assert json.loads(data) == ROWS
    assert "é" in data.decode() and len(data.decode().splitlines()) == len(ROWS) + 2  # an object a line


def test_csv_holds_the_answer_with_nested_values_as_json() -> None:
    data = written("from t", "csv", pa.Table.from_pylist(ROWS, TYPES))
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert list(rows[0]) == TYPES.names and len(rows) == len(ROWS)
    for found, row in zip(rows, ROWS, strict=True):
        for name in ("i", "f", "t", "b"):
            assert found[name] == ("" if row[name] is None else str(row[name]))
        for name in ("l", "s"):
            assert (json.loads(found[name]) if found[name] else None) == row[name]
    assert b"\r" not in data


def test_csv_is_read_back_by_duckdb(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, TYPES).select(["i", "f", "t"])
    (tmp_path / "answer.csv").write_bytes(written("from t", "csv", table))
    types = "columns={'i': 'BIGINT', 'f': 'DOUBLE', 't': 'VARCHAR'}"
    again = duckdb.sql(f"FROM read_csv('{tmp_path}/answer.csv', header=true, {types})").fetchall()
    assert again == [tuple(row.values()) for row in table.to_pylist()]


NOT_FINITE = "select 'nan'::float as a, 'inf'::double as b, ['-inf'::float, 1] as l, {'k': 'nan'::double} as s"


def test_what_is_not_finite_is_null_in_json_however_deep() -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    rows = json.loads(written(NOT_FINITE, "json"), parse_constant=no_constant)
    assert rows == [{"a": None, "b": None, "l": [None, 1.0], "s": {"k": None}}]


def test_what_is_not_finite_is_itself_in_csv_and_parquet() -> None:
    (row,) = csv.DictReader(io.StringIO(written(NOT_FINITE, "csv").decode()))
    assert math.isnan(float(row["a"])) and float(row["b"]) == math.inf and json.loads(row["l"]) == [None, 1.0]
    table = pq.read_table(io.BytesIO(written(NOT_FINITE, "parquet")))
    assert math.isnan(table["a"][0].as_py()) and table["l"][0].as_py() == [-math.inf, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("date '2024-02-29'", "2024-02-29"),
        ("timestamp '2024-02-29 01:02:03.5'", "2024-02-29 01:02:03.500000"),
        ("'2024-02-29 01:02:03.123456789'::timestamp_ns", "2024-02-29 01:02:03.123456789"),
        ("date '12345-01-01'", "12345-01-01"),
        ("1.50::decimal(5, 2)", "1.50"),
        ("170141183460469231731687303715884105727::hugeint", "170141183460469231731687303715884105727"),
    ],
)
def test_values_that_json_does_not_know_are_text(value: str, text: str) -> None:
    assert json.loads(written(f"select {value} as a", "json")) == [{"a": text}]
    assert written(f"select {value} as a", "csv").decode() == f"a\n{text}\n"
    names, (row,), more = sql.head(sql.connect({}, []), f"select {value} as a", 5)
    assert names == ["a"] and str(row[0]) == text and not more


def test_what_parquet_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="Parquet cannot hold this answer, CAST it to VARCHAR") as refused:
        written("select interval '1' month as a", "parquet")
    assert line(refused)


@pytest.mark.parametrize("form", FORMATS)
def test_an_answer_without_rows_keeps_its_columns(form: sql.Format) -> None:
    data = written("select 1 as a, 'x' as b where false", form)
    if form == "parquet":
        assert pq.read_table(io.BytesIO(data)).schema.names == ["a", "b"]
    else:
        assert data == {"csv": b"a,b\n", "json": b"[]\n"}[form]


@pytest.mark.parametrize("form", FORMATS)
def test_columns_of_one_name_are_all_written(form: sql.Format) -> None:
    data = written("select 1 as a, 2 as a", form)
    if form == "csv":
        assert data == b"a,a_1\n1,2\n"
    else:
        rows = json.loads(data) if form == "json" else pq.read_table(io.BytesIO(data)).to_pylist()
        assert rows == [{"a": 1, "a_1": 2}]


# --- streaming --------------------------------------------------------------------------------------------------------

MILLION = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_million_rows_stream_to_a_file_in_order(tmp_path: Path, form: sql.Format) -> None:
    path = tmp_path / f"answer.{form}"
    query = f"select range as i from range({MILLION}) order by i desc"
    files.publish(path, lambda output: sql.write(sql.reader(sql.connect({}, []), query), output, form))
    if form == "parquet":
        table = pq.read_table(path)
        assert table.num_rows == MILLION and table["i"].to_pylist() == list(range(MILLION - 1, -1, -1))
    else:
        rows = path.read_bytes().splitlines()
        rows = rows[1:] if form == "csv" else [row.rstrip(b",") for row in rows[1:-1]]
        assert len(rows) == MILLION
        ends = [b"999999", b"0"] if form == "csv" else [b'{"i": 999999}', b'{"i": 0}']
        assert [rows[0], rows[-1]] == ends


def test_the_first_rows_come_before_the_last_are_made() -> None:
    """An answer that would never end, and that no memory holds, begins at once."""
    _, rows, more = sql.head(sql.connect({}, []), f"select range as i from range({10**15})", 3)
    assert rows == [(0,), (1,), (2,)] and more


def test_batches_are_small_and_cover_the_answer() -> None:
    sizes = [batch.num_rows for batch in sql.reader(sql.connect({}, []), f"from range({MILLION})")]
    assert sum(sizes) == MILLION and max(sizes) <= 65_536 and len(sizes) >= 16


@pytest.mark.parametrize("form", FORMATS)
def test_few_batches_are_in_memory_while_an_answer_is_written(form: sql.Format) -> None:
    fields = pa.schema([("i", pa.int64()), ("t", pa.string())])
    made: list[weakref.ref[pa.RecordBatch]] = []
    most = 0
    output = io.BytesIO()
    sizes = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal most
        for start in range(0, 40_000, 1000):
            numbers = range(start, start + 1000)
            batch = pa.record_batch([pa.array(numbers), pa.array([f"row {i}" for i in numbers])], schema=fields)
            made.append(weakref.ref(batch))
            most = max(most, sum(reference() is not None for reference in made))
            sizes.append(output.tell())
            yield batch

    assert sql.write(pa.RecordBatchReader.from_batches(fields, batches()), output, form) == 40_000
    assert most <= 3
    assert all(later > earlier for earlier, later in itertools.pairwise(sizes))  # each is written at once


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 1000])
def test_head_is_the_first_rows_and_whether_there_are_more(limit: int) -> None:
    query = "select range as i, 'x' as t from range(2)"
    for more, columns in (("", ()), (", date '2024-02-29' as d", ("2024-02-29",))):  # without Arrow, and by way of it
        names, rows, is_cut = sql.head(sql.connect({}, []), query.replace(" from", more + " from"), limit)
        assert names == ["i", "t", *("d" for _ in columns)]
        assert (rows, is_cut) == ([(0, "x", *columns), (1, "x", *columns)][:limit], limit < 2)


PLAIN = (
    "select NULL::int as n, 'nan'::float as f, 0.1::float as s, 0.1 + 0.2::double as d, (-128)::tinyint as t,"
    " 65535::usmallint as u, 18446744073709551615::ubigint as b, true as y, 'é\n' as v, 7::smallint as m,"
    " 2::uinteger as o"
)


def test_head_is_the_same_without_arrow_as_by_way_of_it() -> None:
    arrow = sql.reader(sql.connect({}, []), PLAIN).read_all()
    names, (row,), _ = sql.head(sql.connect({}, []), PLAIN, 1)
    assert names == arrow.column_names
    assert repr(row) == repr(tuple(column[0].as_py() for column in arrow.columns))
    assert {str(kind) for kind in sql.connect({}, []).sql(PLAIN).types} <= sql._PLAIN


def test_columns_of_one_name_are_all_in_the_head() -> None:
    assert sql.head(sql.connect({}, []), "select 1 as a, 2 as a", 1) == (["a", "a_1"], [(1, 2)], False)


LATE = "select case when range = 199_999 then error('late')::int else 1 end as a from range(200_000)"


@pytest.mark.parametrize("form", FORMATS)
def test_an_answer_that_fails_on_the_way_leaves_no_file(tmp_path: Path, form: sql.Format) -> None:
    (tmp_path / "old").write_bytes(b"mine")
    for name in ("new", "old"):
        with pytest.raises(UsageError, match=r"^SQL: .*late") as refused:
            answer = sql.reader(sql.connect({}, []), LATE)
            files.publish(tmp_path / name, lambda output, a=answer: sql.write(a, output, form))  # type: ignore[misc]
        assert line(refused)
    assert tree(tmp_path) == {"old": b"mine"}


def test_an_answer_that_fails_on_the_way_is_refused_however_it_is_read() -> None:
    for read in (lambda answer: answer.read_all(), list):
        with pytest.raises(UsageError, match=r"^SQL: .*late") as refused:
            read(sql.reader(sql.connect({}, []), LATE))
        assert line(refused)
    for query in (LATE, LATE.replace("as a", "as a, date '2024-02-29' as d")):
        with pytest.raises(UsageError, match=r"^SQL: .*late") as refused:
            sql.head(sql.connect({}, []), query, MILLION)
        assert line(refused)


def test_a_script_is_cut_into_statements_by_duckdb() -> None:
    connection = sql.connect({}, [])
    script = "select ';' as a; -- ;\n/* ; */ copy x to 'y';;\nselect $$;$$ as \"b;\""
    cut = sql.statements(connection, script)
    assert len(cut) == 3 and "".join("".join(cut).split()) == "".join(script.split())
    assert [sql.head(connection, cut[i], 1)[:2] for i in (0, 2)] == [(["a"], [(";",)]), (["b;"], [(";",)])]
    assert sql.statements(connection, " ; -- nothing") == []
    for wrong in ("select 1; selekt 2", "select '", "select '\udce9'", "\0" * 10_000):
        with pytest.raises(UsageError, match=r"^SQL") as refused:
            sql.statements(connection, wrong)
        assert len(line(refused)) < 6000


def test_an_error_of_the_output_is_not_taken_for_one_of_the_query() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    for form in FORMATS:
        with pytest.raises(OSError, match="No space left"):
            sql.write(sql.reader(sql.connect({}, []), "select 1 as a"), Full(), form)


def test_a_question_is_answered_without_numpy_and_arrow(write_store: Callable[..., Store], tmp_path: Path) -> None:
    """Together they take as long to import as all the rest of a short answer."""
    store = write_store(tmp_path / "store", scores={"sobel": [0.5] * 12})
    code = (
        "import sys; from curate.cli import app\n"
        "app(['sql', sys.argv[1], 'select patch_id, sobel from scores order by sobel'], standalone_mode=False)\n"
        "assert not {'numpy', 'pyarrow', 'torch'} & sys.modules.keys(), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1 + 12


def test_what_the_disk_does_is_no_mistake_of_the_query(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="SQL: IO Error: No files found") as gone:
        sql.connect({"a": sql.parquet([tmp_path / "vanished.parquet"])}, [])
    full = sql.query_error(duckdb.OutOfMemoryException("Out of Memory Error: failed to offload data block\nmore"))
    through_arrow = sql.query_error(OSError("Invalid: IO Error: Could not read"))
    assert str(full).endswith("data block; allow more memory, or make room where it spills to (TMPDIR)")
    for error in (gone.value, full, through_arrow):
        assert error.exit_code == 1 and str(error).isprintable()
    assert sql.query_error(duckdb.BinderException("Binder Error: no such column")).exit_code == 2


def test_text_that_is_not_utf8_is_refused(place: Path, tmp_path: Path) -> None:
    """As a name of a file of another encoding is, or an argument."""
    store = Store.open(place / "store")
    for query in ("select '\udce9'", 'select 1 as "\udce9"'):
        with pytest.raises(UsageError, match=r"SQL takes UTF-8 alone, found .*udce9"):
            store.query(query)
    with pytest.raises(UsageError, match="SQL takes UTF-8 alone"):
        select(store, "random", where="name = '\udce9'")
    shutil.copytree(place / "store", tmp_path / "\udce9")
    with pytest.raises(UsageError, match="SQL takes UTF-8 alone"):
        Store.open(tmp_path / "\udce9").query("select 1")


def test_a_watched_connection_tells_how_far_a_query_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_WATCH_SECONDS", 0.01)  # a query of some tenths of a second is enough then
    shares: list[float] = []
    connection = sql.connect({}, [], watched=True)
    query = "select count(*) from range(6000) a, range(6000) b where (a.range + b.range) % 7 = 3"
    with sql.watching(connection, shares.append):
        connection.sql(query).fetchall()
    assert shares and all(0 <= share <= 1 for share in shares) and shares == sorted(shares)


def test_a_watched_connection_is_as_closed_as_any(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    connection = sql.connect({}, [], watched=True)
    for query in (f"from '{tmp_path / 'secret.csv'}'", "set threads=1"):
        with pytest.raises(duckdb.Error):
            connection.execute(query)


def test_watching_ends_with_the_query_that_fails() -> None:
    connection = sql.connect({}, [], watched=True)
    before = threading.active_count()
    with pytest.raises(duckdb.Error), sql.watching(connection, lambda share: None):
        connection.sql("select nothing")
    assert threading.active_count() == before
