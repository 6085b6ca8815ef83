"""A spec builds what it says or is refused in one line; spec_of says it again; nothing is imported unasked."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate import plugins
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.srcnn import Srcnn
from curate.errors import UsageError, listed
from curate.inspection import info
from curate.manifest import Manifest
from curate.scorers.sobel import Sobel
from curate.selection import select
from curate.store import Store
from curate.strategies import Picks
from curate.strategies.asc import Asc
from curate.strategies.random import Random
from curate.strategies.refined import Refined

KINDS: tuple[plugins.Kind, ...] = ("scorers", "strategies", "archs")
ALL = [(kind, name) for kind in KINDS for name in plugins.names(kind)]

THERE = {kind: listed(plugins.names(kind)) for kind in KINDS}

Lab = Callable[..., str]

_numbers = itertools.count()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A function that writes a module of the user's own and returns its dotted name: `lab(text, file="edges")`."""
    package = f"lab_{next(_numbers)}"  # a new one each time: what was imported stays in sys.modules
    (tmp_path / "path" / package).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "path")

    def write(body: str, file: str = "edges") -> str:
        path = tmp_path / "path" / package / f"{file}.py"
        path.write_text(f"from dataclasses import dataclass\n{body}\n", "utf-8")
        return f"{package}.{file}"

    return write


def refusal(kind: plugins.Kind, spec: str, **more: Any) -> str:
    """The line with which a spec is refused."""
    with pytest.raises(UsageError) as refused:
        plugins.parse(kind, spec, **more)
    message = str(refused.value)
    assert message.isprintable() and refused.value.exit_code == 2
    return message


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_files_of_the_folder(kind: plugins.Kind) -> None:
    folder = Path(plugins.__file__).parent / kind
    files = sorted(path.stem for path in folder.iterdir() if path.suffix == ".py")
    assert plugins.names(kind) == [name for name in files if name.isidentifier() and name[0] != "_"]


def test_what_is_there_is_there() -> None:
    assert {"srcnn", "sobel"} <= set(plugins.names("scorers"))
    assert {"asc", "des", "refined", "random"} <= set(plugins.names("strategies"))
    assert {"srcnn", "fsrcnn"} <= set(plugins.names("archs"))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_bare_name_builds_with_the_defaults(kind: plugins.Kind, name: str) -> None:
    plugin = plugins.parse(kind, name)
    assert type(plugin).__name__.lower() == name.replace("_", "")
    assert plugin == type(plugin)()
    assert plugins.spec_of(plugin) == name


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_plugin_is_frozen(kind: plugins.Kind, name: str) -> None:
    plugin = plugins.parse(kind, name)
    with pytest.raises(AttributeError):
        plugin.anything = 1
    assert hash(plugin) == hash(plugins.parse(kind, name))


def test_describing_imports_none_of_them() -> None:
    code = (
        "import sys; from curate import plugins\n"
        "lines = [plugins.describe(kind) for kind in ('scorers', 'strategies', 'archs')]\n"
        "assert all(line for kind in lines for line in kind.values())\n"
        "loaded = [name for name in sys.modules if name.startswith(('curate.scorers', 'curate.str', 'curate.archs'))]\n"
        "assert loaded == [], loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("strategies", "refined", Refined()),
        ("strategies", "refined:", Refined()),
        ("strategies", "refined:drop_top=0.1", Refined(drop_top=0.1)),
        ("strategies", "refined:drop_top=0", Refined(drop_top=0.0)),
        ("strategies", "refined: drop_top = 1e-3 ,", Refined(drop_top=0.001)),
        ("strategies", "random:seed=3", Random(seed=3)),
        ("strategies", "curate.strategies.random:seed=3", Random(seed=3)),
        ("archs", "srcnn:scale=3,kernel=9-1-5", Srcnn(scale=3, kernel="9-1-5")),
        ("archs", "fsrcnn:m=1,s=4,d=8", Fsrcnn(d=8, s=4, m=1)),
        ("scorers", "sobel", Sobel()),
    ],
)
def test_a_spec_builds_what_it_says(kind: plugins.Kind, spec: str, expected: object) -> None:
    found = plugins.parse(kind, spec)
    assert found == expected and type(found) is type(expected)
    assert [type(value) for value in vars(found).values()] == [type(value) for value in vars(expected).values()]


@pytest.mark.parametrize(
    ("kind", "spec", "parts"),
    [
        ("scorers", "sobbel", ["no 'sobbel' in curate.scorers", f"there are: {THERE['scorers']}"]),
        ("scorers", "srcn", [f"there are: {THERE['scorers']}; did you mean 'srcnn'?"]),
        ("scorers", "sobel,srcnn", ["separate scorers by spaces: sobel srcnn"]),
        ("strategies", "refine", ["did you mean 'refined'?"]),
        ("archs", "fsrcn:scale=2", ["did you mean 'fsrcnn'?"]),
        ("archs", "fsrcnn:scael=2", ["it has: config, d, m, s, scale; did you mean 'scale'?"]),
        ("strategies", "refined:drop_top=2.5 %", ["should be a valid number (2.5 % is 0.025), not '2.5 %'"]),
        ("strategies", "srcnn", ["no 'srcnn' in curate.strategies", THERE["strategies"]]),
        ("archs", "", ["no '' in curate.archs", THERE["archs"]]),
        ("archs", " srcnn", ["no ' srcnn'"]),
        ("archs", "SRCNN", ["no 'SRCNN'"]),
        ("archs", "../srcnn", ["no '../srcnn'"]),
        ("archs", "__init__", ["no '__init__'"]),
        ("archs", ".srcnn", ["no '.srcnn'"]),
        ("archs", "srcnn.", ["no 'srcnn.'"]),
        ("archs", "a..b", ["no 'a..b'"]),
        ("archs", "a\nb\x1b[31m", [r"no 'a\nb\x1b[31m'"]),
        ("strategies", "refined:drop=0.1", ["strategy 'refined' has no option 'drop'", "it has: drop_top"]),
        ("strategies", "refined:a=1,b=2", ["no option 'a, b'", "drop_top"]),
        ("strategies", "asc:x=1", ["no option 'x'", "it has: nothing"]),
        ("strategies", "random:needs_score=True", ["no option 'needs_score'", "it has: seed"]),
        ("strategies", "refined:__class__=1", ["no option '__class__'"]),
        ("strategies", "refined:drop_top", ["'drop_top' should be option=value"]),
        ("strategies", "refined:=1", ["'=1' should be option=value"]),
        ("strategies", "refined:drop_top=", ["option 'drop_top'", "valid number", "not ''"]),
        ("strategies", "refined:drop_top=much", ["option 'drop_top'", "valid number", "not 'much'"]),
        ("strategies", "refined:drop_top=0.1,drop_top=0.2", ["option 'drop_top' is given twice"]),
        ("strategies", "random:seed=1.5", ["option 'seed'", "valid integer", "not '1.5'"]),
        ("strategies", "random:seed=1e3", ["option 'seed'", "not '1e3'"]),
        ("strategies", "random:seed=1;2", ["option 'seed'", "not '1;2'"]),
        ("strategies", "random:seed=\x1b", [r"not '\x1b'"]),
        ("strategies", "random:seed=-1", ["strategy 'random': seed should be 0 or more, found -1"]),
        ("archs", "srcnn:scale=two", ["arch 'srcnn': option 'scale'", "not 'two'"]),
        ("strategies", "no_such_lab.edges", ["no module 'no_such_lab.edges'", THERE["strategies"]]),
        ("strategies", "curate.no_such", ["no module 'curate.no_such'"]),
        ("strategies", "json.no.such", ["no module 'json.no.such'"]),
        ("strategies", "os.path", ["should define one frozen dataclass of options; it defines: nothing"]),
    ],
)
def test_a_spec_that_is_none_is_refused_with_what_there_is(kind: plugins.Kind, spec: str, parts: list[str]) -> None:
    message = refusal(kind, spec)
    assert [part for part in parts if part not in message] == []


def test_options_beside_the_spec_are_options_of_the_spec() -> None:
    assert plugins.parse("strategies", "refined", drop_top=0.25) == Refined(drop_top=0.25)
    assert "has no option 'drop_top'; it has: nothing" in refusal("strategies", "des", drop_top=0.25)
    assert "option 'drop_top' is given twice" in refusal("strategies", "refined:drop_top=0.1", drop_top=0.25)
    assert "not 'much'" in refusal("strategies", "refined", drop_top="much")


@pytest.mark.parametrize(
    ("spec", "given"),
    [
        ("refined", {}),
        ("refined:", {}),
        ("refined:drop_top=0.1", {"drop_top": "0.1"}),
        ("no_such.plugin: a = 1 ,b=x=y:z,", {"a": "1", "b": "x=y:z"}),
        ("a:b=", {"b": ""}),
    ],
)
def test_what_a_spec_gives_is_read_without_its_plugin(spec: str, given: dict[str, str]) -> None:
    assert plugins.given_in(spec) == given


# --- modules of the user's own ----------------------------------------------------------------------------------------

EDGES = """
from curate.strategies import Picks, Strategy
from pathlib import Path
from typing import Literal

@dataclass(frozen=True)
class Edges(Strategy):
    k: int = 3
    share: float = 0.5
    wide: bool = False
    border: Literal["same", "zero"] = "same"
    weights: Path | None = None
    most: int | None = None

    def __post_init__(self):
        if self.k < 1:
            raise ValueError("k should be 1 or more,\\nfound " + str(self.k))

    def select(self, candidates, budget):
        return Picks.equal(__import__("numpy").arange(budget))
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {}),
        ("k=5", {"k": 5}),
        ("wide=true", {"wide": True}),
        ("wide=no,k=7", {"wide": False, "k": 7}),
        ("share=.25", {"share": 0.25}),
        ("border=zero", {"border": "zero"}),
        ("weights=some/where=x.npz", {"weights": Path("some/where=x.npz")}),
        ("most=2", {"most": 2}),
    ],
)
def test_a_dotted_name_is_a_module_of_the_users_own(lab: Lab, options: str, expected: dict[str, object]) -> None:
    name = lab(EDGES)
    plugin = plugins.parse("strategies", f"{name}:{options}")
    defaults = {"k": 3, "share": 0.5, "wide": False, "border": "same", "weights": None, "most": None}
    assert vars(plugin) == defaults | expected
    assert type(plugin).__module__ == name


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("size=3", ["has no option 'size'", "it has: border, k, most, share, weights, wide"]),
        ("k=x", ["option 'k' ", "valid integer", "not 'x'"]),
        ("k=0", [r"k should be 1 or more,\nfound 0"]),
        ("wide=maybe", ["option 'wide' ", "valid boolean", "not 'maybe'"]),
        ("border=open", ["option 'border' ", "'same' or 'zero'", "not 'open'"]),
        ("most=all", ["option 'most' ", "valid integer", "not 'all'"]),
    ],
)
def test_its_options_are_checked_as_curates_own(lab: Lab, options: str, parts: list[str]) -> None:
    message = refusal("strategies", f"{lab(EDGES)}:{options}")
    assert [part for part in parts if part not in message] == []


def test_a_module_in_the_current_folder_is_found_and_those_on_the_path_come_first(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_here(package: str, body: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "edges.py").write_text(f"from dataclasses import dataclass\n{body}", "utf-8")

    on_path, also_on_path, here = lab(EDGES), lab(EDGES, "second"), f"here_{next(_numbers)}"
    write_here(on_path.partition(".")[0], "raise AssertionError('imported')")
    write_here(here, EDGES)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert plugins.parse("strategies", f"{also_on_path}:k=2").k == 2
    assert str(tmp_path) not in sys.path  # it was not needed
    assert plugins.parse("strategies", f"{here}.edges:k=4").k == 4
    assert plugins.parse("strategies", f"{on_path}:k=3").k == 3
    assert "should define one frozen dataclass" in refusal("strategies", "json.decoder")


@pytest.mark.parametrize(
    ("file", "body", "found"),
    [
        (
            "two_ways",
            "@dataclass(frozen=True)\nclass TwoWays: a: int = 1\n@dataclass\nclass Helper: b: int = 2",
            "TwoWays",
        ),
        ("anything", "@dataclass(frozen=True)\nclass Only: a: int = 1", "Only"),
        ("a1", "from curate.strategies.asc import Asc\n@dataclass(frozen=True)\nclass Mine: a: int = 1", "Mine"),
    ],
)
def test_the_dataclass_is_the_one_named_as_the_file_or_the_only_one(lab: Lab, file: str, body: str, found: str) -> None:
    assert type(plugins.parse("strategies", lab(body, file))).__name__ == found


@pytest.mark.parametrize(
    ("body", "defines"),
    [
        ("class Edges: pass", "nothing"),
        ("from curate.strategies.asc import Asc", "nothing"),
        ("@dataclass\nclass A: pass\n@dataclass\nclass B: pass", "A, B"),
        ("@dataclass\nclass Edges: pass\n@dataclass\nclass EDGES: pass", "EDGES, Edges"),
    ],
)
def test_a_module_without_one_is_refused(lab: Lab, body: str, defines: str) -> None:
    name = lab(body)
    assert refusal("strategies", name) == (
        f"{name} should define one frozen dataclass of options; it defines: {defines}"
    )


def test_a_missing_option_without_default_is_named(lab: Lab) -> None:
    assert "option 'k' Field required" in refusal("strategies", lab("@dataclass(frozen=True)\nclass Edges: k: int"))


def test_selection_takes_a_strategy_of_the_users_own_and_refuses_what_is_none(
    lab: Lab, tmp_path: Path, write_store: Callable[..., Store]
) -> None:
    store = write_store(tmp_path / "store", scores={"sobel": [float(i) for i in range(12)]})
    spec = lab(EDGES) + ":k=2"
    chosen = select(store, spec)
    assert chosen.recipe.strategy == spec and chosen.recipe.options["k"] == 2 and len(chosen) == 6
    other = lab("@dataclass(frozen=True)\nclass Other: k: int = 1", "other")
    with pytest.raises(UsageError, match="is not a strategy") as refused:
        select(store, other)
    assert other in str(refused.value)
    with pytest.raises(UsageError, match="is not a strategy"):
        select(store, Picks.equal)  # type: ignore[arg-type]


# --- round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "spec"),
    [
        (Asc(), "asc"),
        (Refined(), "refined"),
        (Refined(drop_top=0.05), "refined"),
        (Refined(drop_top=0), "refined:drop_top=0"),
        (Refined(drop_top=1 / 3), "refined:drop_top=0.3333333333333333"),
        (Refined(drop_top=1e-300), "refined:drop_top=1e-300"),
        (Random(seed=2**80), f"random:seed={2**80}"),
        (Srcnn(scale=3, kernel="9-1-5"), "srcnn:scale=3,kernel=9-1-5"),
        (Sobel(), "sobel"),
    ],
)
def test_spec_of_is_the_shortest_spec_that_builds_it_again(plugin: object, spec: str) -> None:
    kind: Any = type(plugin).__module__.split(".")[1]
    assert plugins.spec_of(plugin) == spec
    assert plugins.parse(kind, spec) == plugin


@pytest.mark.parametrize(
    "options",
    ["", "k=5", "wide=True", "share=0.1", "border=zero,most=4", "weights=a b/c=d.npz", "k=1,wide=True,share=2.0"],
)
def test_spec_of_a_users_module_builds_it_again(lab: Lab, options: str) -> None:
    name = lab(EDGES)
    spec = f"{name}:{options}" if options else name
    plugin = plugins.parse("strategies", spec)
    again = plugins.parse("strategies", plugins.spec_of(plugin))
    assert again == plugin
    assert sorted(plugins.spec_of(plugin).partition(":")[2].split(",")) == sorted(options.split(","))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_options_are_all_there_in_order_and_fit_into_json(kind: plugins.Kind, name: str) -> None:
    plugin = plugins.parse(kind, name)
    options = plugins.options_of(plugin)
    assert list(options) == list(vars(plugin))
    assert json.loads(json.dumps(options)) == options


def test_options_that_json_does_not_know_are_text(lab: Lab) -> None:
    plugin = plugins.parse("strategies", lab(EDGES) + ":weights=a/b.npz")
    expected = {"k": 3, "share": 0.5, "wide": False, "border": "same", "weights": "a/b.npz", "most": None}
    assert plugins.options_of(plugin) == expected


# --- nothing is imported because data says so -------------------------------------------------------------------------


def test_nothing_is_imported_because_a_store_or_a_manifest_names_it(
    lab: Lab, tmp_path: Path, write_store: Callable[..., Store]
) -> None:
    touched = tmp_path / "imported"
    evil = lab(f"from pathlib import Path\nPath({str(touched)!r}).touch()\n{EDGES}", "evil")
    store = write_store(tmp_path / "store", scores={evil: [float(i) for i in range(12)]})
    made = select(store, "refined", by=evil, where=f'"{evil}" > 3')
    forged = Manifest(made.table, made.recipe.model_copy(update={"strategy": f"{evil}:k=1"}))
    path = forged.save(tmp_path / "some.parquet").path
    assert path is not None

    loaded = Manifest.load(path)
    assert loaded.recipe.strategy == f"{evil}:k=1"
    loaded.verify(loaded.store())
    assert evil in loaded.describe() and evil in json.dumps(info(path)) and evil in json.dumps(info(store.path))
    assert isinstance(store.query("from scores join chosen using (patch_id)", {"chosen": path}), pa.Table)
    assert not touched.exists() and evil not in sys.modules

    plugins.parse("strategies", evil)  # but asked for by name it is
    assert touched.exists()


def test_a_spec_of_other_bytes_than_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match=r"udcff.* is not a spec: it should be UTF-8"):
        plugins.parse("strategies", 'ensemble:by="srcnn\udcff"+sobel')
