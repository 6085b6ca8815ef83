"""Candidates fit what was typed, are accepted by what they are for, and come from any store without harm."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from curate import cli, completion, degrade, plugins, storage
from curate.errors import UsageError, listed
from curate.store import Store

Tab = Callable[..., dict[str, str]]


@pytest.fixture
def tab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tab:
    """`tab("score", "store", "sr")`: what fish is told of `curate score store sr` -> candidate -> help."""

    def press(*words: str) -> dict[str, str]:
        line = shlex.join(["curate", *words]) if words[-1] else f"{shlex.join(['curate', *words[:-1]])} "
        for name, value in {
            "_CURATE_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_TYPER_COMPLETE_ARGS": line,
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(sys.modules, "rich", sys.modules.get("rich"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        assert end.value.code == 0 and said.err == ""
        return dict(row.split("\t") for row in said.out.splitlines() if row)

    return press


@pytest.fixture
def store(tmp_path: Path, write_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store called `store` in the current folder, with three scores."""
    monkeypatch.chdir(tmp_path)
    half = [0.5] * 12
    return write_store(tmp_path / "store", scores={"sobel": half, "srcnn": half, "srcnn:scale=3": half})


def context(store: str | None = None) -> typer.Context:
    """As Typer makes it, of a command whose store is this one."""
    made = typer.main.get_command(cli.app).make_context("curate", ["sql"], resilient_parsing=True)
    made.params["store"] = store
    return made  # type: ignore[return-value]


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# ---- specs


def test_names_come_with_their_lines(tab: Tab) -> None:
    assert tab("score", "store", "sr") == {"srcnn": plugins.describe("scorers")["srcnn"]}
    assert tab("score", "store", "") == plugins.describe("scorers")
    assert tab("select", "store", "") == plugins.describe("strategies")
    for verb in (("train", "m.parquet"), ("eval", "run", "Set5"), ("info", "run")):
        assert tab(*verb, "--arch", "") == plugins.describe("archs")


def test_options_come_with_the_comment_behind_them_and_their_default(tab: Tab) -> None:
    found = tab("score", "store", "srcnn:")
    assert list(found) == ["srcnn:scale=", "srcnn:kernel=", "srcnn:weights=", "srcnn:precision="]
    assert found["srcnn:scale="] == "2, 3 or 4 [2]"
    assert tab("score", "store", "srcnn:we") == {"srcnn:weights=": found["srcnn:weights="]}


def test_values_that_a_type_lists(tab: Tab) -> None:
    assert list(tab("score", "store", "srcnn:precision=")) == [f"srcnn:precision={v}" for v in ("auto", "bf16", "fp32")]
    assert list(tab("score", "store", "srcnn:kernel=9-1")) == ["srcnn:kernel=9-1-5"]
    assert tab("score", "store", "srcnn:scale=") == tab("score", "store", "srcnn:weights=") == {}


def test_a_word_that_is_whole_says_how_it_may_go_on(tab: Tab) -> None:
    assert list(tab("score", "store", "srcnn")) == ["srcnn", "srcnn:"]
    assert list(tab("score", "store", "sobel")) == ["sobel"]  # no options
    assert list(tab("score", "store", "srcnn:precision=bf16")) == ["srcnn:precision=bf16", "srcnn:precision=bf16,"]
    assert list(tab("score", "store", "srcnn:scale=3,kernel=9-1-5,weights=w,precision=bf16")) == [
        "srcnn:scale=3,kernel=9-1-5,weights=w,precision=bf16"
    ]


def test_what_is_given_is_not_offered_again(tab: Tab) -> None:
    assert "srcnn" not in tab("score", "store", "srcnn", "")
    assert "srcnn" in tab("score", "store", "srcnn:scale=3", "")
    assert list(tab("score", "store", "srcnn:scale=3,kernel=9-5-5,")) == [
        "srcnn:scale=3,kernel=9-5-5,weights=",
        "srcnn:scale=3,kernel=9-5-5,precision=",
    ]
    assert tab("score", "store", "srcnn:scale=3,sc") == {}


def test_a_comma_between_quotes_ends_no_option() -> None:
    head = 'ensemble:by="srcnn:scale=3,kernel=9-1-5"+sobel,'
    assert [word for word, _ in completion.strategies(head)] == [f"{head}weights=", f"{head}drop_top="]
    assert completion.strategies('ensemble:by="srcnn:scale=3,') == []


def test_nothing_is_offered_for_what_is_not_there(tab: Tab) -> None:
    for spec in ("nothing", "nothing:", "my_lab.edges:", "srcnn:nothing", "srcnn:nothing=", "srcnn:,", ":", "=", ","):
        found = tab("score", "store", spec)
        assert list(found) == (["srcnn:,scale=", *list(found)[1:]] if spec == "srcnn:," else []), spec


@pytest.mark.parametrize("kind", ["scorers", "strategies", "archs"])
def test_what_is_offered_is_taken(kind: plugins.Kind) -> None:
    """Every option of every plugin with each of its listed values, or its default, builds: no name is wrong."""
    offers = {"strategies": completion.strategies, "archs": completion.archs}
    offer = offers.get(kind, lambda text: completion.scorers(context(), text))
    for name in plugins.names(kind):
        defaults = plugins.options_of(plugins.parse(kind, name))
        options = [head.removeprefix(f"{name}:").removesuffix("=") for head, _ in offer(f"{name}:")]
        assert options == list(defaults)
        for option in options:
            head = f"{name}:{option}="
            values = [spec for spec, _ in offer(head)]
            for spec in values or ([] if defaults[option] in (None, "") else [f"{head}{defaults[option]}"]):
                assert spec.startswith(head)
                assert str(plugins.options_of(plugins.parse(kind, spec))[option]) == spec.removeprefix(head)


def test_degradations_are_those_of_train(tab: Tab) -> None:
    with pytest.raises(UsageError) as refused:
        degrade.parse("nothing", 2)
    assert str(refused.value).endswith(f"there are: {', '.join(tab('train', 'm', '--degrade', ''))}")
    for name, line in tab("train", "m", "--degrade", "").items():
        assert line
        with pytest.raises(UsageError) as refused:
            degrade.parse(f"{name}:nothing=1", 4)
        options = [word.removeprefix(f"{name}:")[:-1] for word, _ in completion.degradations(f"{name}:")]
        assert str(refused.value).endswith(f"it has: {listed(options)}")


def test_the_last_step_of_a_chain_is_completed() -> None:
    assert [word for word, _ in completion.degradations("blur:sigma=0.2:4+n")] == ["blur:sigma=0.2:4+noise"]
    assert ("noise+jpeg:quality=", "libjpeg's, 1 to 100 [30:95]") in completion.degradations("noise+jpeg:")
    assert "second_order:jpeg.quality=" in dict(completion.degradations("second_order:jpeg."))


def test_choices_and_devices(tab: Tab) -> None:
    assert list(tab("train", "m", "--device", "")) == ["auto", "cpu", "cuda"]
    for verb, option, values in (
        ("score", "--engine", ["local", "ray"]),
        ("select", "--unit", ["patches", "pixels"]),
        ("eval", "--protocol", ["y", "luma", "rgb"]),
        ("sql", "--format", ["table", "csv", "json", "parquet"]),
        ("train", "--optimizer", ["adam", "adamw", "soap"]),
    ):
        assert list(tab(verb, option, "")) == values
    assert "basicsr" in tab("export", "m", "out", "--to", "")


def test_a_group_s_own_command_is_completed_without_its_name(tab: Tab) -> None:
    assert tab("drc", "").keys() == {"compress", "slim"}
    for words in (("run", "half.parquet", "--num"), ("compress", "run", "half.parquet", "--num")):
        assert tab("drc", *words).keys() == {"--numbers"}, words
    assert tab("drc", "--ratio", "0.3", "run", "half.parquet", "--stage", "p").keys() == {"prune"}
    assert tab("drc", "slim", "run", "--con").keys() == {"--config"}


def test_paths_are_left_to_the_shell(tab: Tab) -> None:
    for words in (("score", ""), ("train", ""), ("eval", ""), ("sql", ""), ("train", "m", "-o", "")):
        assert tab(*words) == {}


# ---- columns


def test_scores_of_the_store_named_before(tab: Tab, store: Store) -> None:
    expected = ["sobel", "srcnn", "srcnn:scale=3"]
    assert list(tab("select", "store", "des", "--by", "")) == expected
    assert list(tab("select", "store", "--by", "sr")) == expected[1:]
    assert list(tab("select", "store", "des", "--by=sr")) == ["--by=srcnn", "--by=srcnn:scale=3"]
    assert expected == list(store.score_columns())


def test_a_home_folder_and_a_variable_in_the_path(tab: Tab, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells hand them over as they were typed."""
    monkeypatch.setenv("HOME", str(store.path.parent))
    monkeypatch.setenv("DATA", str(store.path))
    assert tab("select", "~/store", "des", "--by", "so") == tab("select", "$DATA", "des", "--by", "so") != {}
    assert tab("select", "~nobody-of-this-name/store", "des", "--by", "so") == {}


def test_vectors_are_no_scores(tab: Tab, store: Store) -> None:
    found = store.score_sets()[0].record
    vector = found.model_copy(update={"label": "embedding", "vector": True, "fingerprint": "f" * 16})
    store.add_score_set(vector)
    assert "embedding" not in tab("select", "store", "des", "--by", "")
    assert tab("sql", "store", "select em")["select embedding"] == "a vector"


def test_names_in_sql(tab: Tab, store: Store) -> None:
    assert set(tab("sql", "store", "select avg(so")) == {"select avg(sobel", "select avg(source"}
    assert list(tab("sql", "store", 'select "sr')) == ['select "srcnn:scale=3"']
    assert list(tab("sql", "store", 'select "srcnn:scale=3", sob')) == ['select "srcnn:scale=3", sobel']
    assert list(tab("sql", "store", "select name FROM im")) == ["select name FROM images"]
    assert set(tab("sql", "store", "-m", "some/half.parquet", "from ")) == {
        f"from {name}" for name in ("images", "patches", "scores", "duplicates", "leaks", "flags", "half")
    }
    assert set(tab("select", "store", "des", "--where", "hei")) == {"height"}
    assert {"y >= shard", 'y >= "srcnn:scale=3"'} <= set(tab("select", "store", "des", "--where", "y >= "))


def test_where_no_name_can_stand_in_sql_none_is_offered(tab: Tab, store: Store) -> None:
    for text in ("split = 'so", "sobel > 0.5", "avg(sobel)", '"srcnn"', "a = 'it''s so"):
        assert tab("sql", "store", text) == {}, text
    assert tab("sql", "store", "split = 'so' and so") != {}


def test_a_query_of_several_lines(tab: Tab, store: Store) -> None:
    assert [word for word, _ in completion.query(context("store"), "select\n  sob")] == ["select\n  sobel"]


# ---- stores of strangers


def damage(store: Store) -> Iterator[str]:
    """Ways in which a store is none, each done to it."""
    records = sorted(store.path.glob("tables/scores/*/scorer.json"))
    for data in (b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"scorer": 1}', b"null"):
        records[0].write_bytes(data)
        yield f"a record of {data[:10]!r}"
    records[0].unlink()
    records[0].mkdir()
    (store.path / "store.json").write_bytes(b"\x00")
    yield "a header that is none"
    (store.path / "store.json").unlink()
    yield "no header"
    (store.path / "store.json").mkdir()
    yield "a folder for a header"


def test_a_damaged_store_has_no_columns_and_no_traceback(tab: Tab, store: Store, tmp_path: Path) -> None:
    for what in damage(store):
        before = tree(tmp_path)
        assert tab("select", "store", "des", "--by", "") == {}, what
        assert tab("sql", "store", "select ") == {}, what
        assert tree(tmp_path) == before
    for missing in ("nothing", "", "store/store.json", "/", "\udcff", "a\nb", "s" * 5000):
        assert completion.columns(missing) == {}
    assert completion.columns(None) == {}


def test_a_whole_store_is_not_written_to(tab: Tab, store: Store, tmp_path: Path) -> None:
    before = tree(tmp_path)
    tab("select", "store", "des", "--by", "")
    tab("sql", "store", "select ")
    assert tree(tmp_path) == before


def test_names_that_a_shell_could_take_for_commands_are_left_out(tab: Tab, store: Store) -> None:
    hostile = ["$(touch pwned)", "`x`", "a;b", "a b", "a'b", 'a"b', "a\\b", "a\nb", "\x1b[31m", "a|b", "é$", "-\t"]
    record = store.score_sets()[0].record
    for number, label in enumerate([*hostile, "loss:checkpoint=models/a-b_2.pth"]):
        store.add_score_set(record.model_copy(update={"label": label, "fingerprint": f"{number:016x}"[::-1]}))
    expected = ["loss:checkpoint=models/a-b_2.pth", "sobel", "srcnn", "srcnn:scale=3"]
    assert list(tab("select", "store", "des", "--by", "")) == expected
    offered = set(tab("sql", "store", "select "))
    assert 'select "loss:checkpoint=models/a-b_2.pth"' in offered
    assert not any(label in word for label in hostile for word in offered if label != "a b")


def test_nothing_is_fetched(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    def far(*_: object) -> None:
        raise AssertionError("looked at what is far")

    monkeypatch.setattr(storage, "file_system", far)
    monkeypatch.setattr(Store, "open", far)
    for url in ("s3://bucket/store", "s3:/bucket/store", "memory://x", "https://example.org/s", "s3://key:secret@b/s"):
        assert tab("select", url, "des", "--by", "") == {}
        assert tab("sql", url, "select ") == {}


def test_without_torch_and_without_plugins_imported() -> None:
    code = """
import sys
from curate import completion
for text in ("", "srcnn:", "srcnn:scale=2,", "cluster:scale="):
    completion.archs(text), completion.strategies(text), completion.degradations(text)
completion.columns("nothing")
heavy = {"torch", "numpy", "pyarrow", "rich.console"} & sys.modules.keys()
assert not heavy and not [name for name in sys.modules if name.startswith("curate.strategies.")], heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
