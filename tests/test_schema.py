"""The documents on disk are read back as they were written, refuse what they do not know; `schemas/` describes them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from curate import __version__, layout, schema
from curate.errors import DataError
from curate.schema import (
    FORMAT,
    ChannelsRecord,
    CheckpointRecipe,
    CheckRecord,
    CommitRecord,
    DistilledFrom,
    Distilling,
    Document,
    DualRecord,
    ExportRecord,
    GenotypeRecord,
    KeptRecord,
    ManifestRecipe,
    Part,
    PrunedUnit,
    ReportedManifest,
    ReportedOverlap,
    ReportedWindow,
    ReportRecord,
    ScorerRecord,
    Sealed,
    StoreHeader,
    StoreReference,
    TrainingState,
    VerifiedPath,
    VerifyFinding,
    VerifyRecord,
)

ROOT = Path(__file__).parents[1]
DOCUMENTS: dict[str, Document] = {
    "store-header": StoreHeader(
        patch=480,
        step=240,
        created_by="curate 0.1.0",
        distilled=Distilling(source="ab", manifest="cd", options={"space": "é", "rates": [1, 0.1], "seed": 0}, code=1),
    ),
    "commit-record": CommitRecord(
        unit=7,
        fingerprint="0123456789abcdef",
        parts=[
            Part(path="shards/000007.tar", bytes=2**40, xxh3="ab"),
            Part(path="tables/images/000007.parquet", bytes=0, xxh3="", rows=0),
        ],
    ),
    "scorer-record": ScorerRecord(
        scorer="my_lab.edges",
        label='my_lab.edges:name=é "x"',
        columns=["mean", "max"],
        identity={"k": 3, "share": 0.1, "weights": None, "deep": {"list": [1, True, "ü\n"]}},
        fingerprint="0123456789abcdef",
    ),
    "check-record": CheckRecord(
        check="leaks", label="Set5", version=2, identity={"tests": [["baby.png", "ff"]]}, fingerprint="0123456789abcdef"
    ),
    "export-record": ExportRecord(target="basicsr", scale=None, windows=0, digest="ff"),
    "manifest-recipe": ManifestRecipe(
        store=StoreReference(url="../stores/x y", shards=3, digest="ff"),
        strategy="refined:drop_top=0.1",
        options={"drop_top": 0.1},
        by=None,
        keep=1 / 3,
        where="name LIKE '%é\n'",
        counts={"patches": 2**40, "candidates": 0},
        scorers={"srcnn:scale=3": "0123456789abcdef"},
        versions={"curate": "0.1.0"},
        origin="distilled",
        distilled_from=DistilledFrom(
            store=StoreReference(url="../store", shards=1, digest="ab"),
            manifest="cd",
            patches=9,
            strategy="asc",
            options={},
            by="sobel",
            keep=0.5,
            unit="pixels",
            where=None,
            origin="selected",
        ),
    ),
    "training-state": TrainingState(identity={"rate": 1e-3, "init": None}, step=1000, best={"psnr": 30.5}),
    "report-record": ReportRecord(
        store={"digest": "ff"},
        manifests=[
            ReportedManifest(
                name="é",
                by=None,
                patches=3,
                images=2,
                pixels=2**40,
                top_tenth=0.5,
                windows={"sobel": ReportedWindow(candidates=9, chosen=3, first=1, last=4, gaps=1, low=-1e-9, high=0.5)},
                sources={"photos": 3},
                sizes={"below 0.05 Mpx": 3},
                digest="ff",
                recipe={"keep": 0.5},
                command="curate select",
            )
        ],
        agreement={"a": {"a": 1.0, "b": None}},
        overlaps=[ReportedOverlap(a="a", b="b", both=1, left=2, entered=0, jaccard=1 / 3, rank_correlation=None)],
        refused={"truncated": 1},
        duplicates=0,
        leaks=0,
        flagged=0,
        commands=[],
    ),
    "verify-record": VerifyRecord(
        deep=True,
        whole=False,
        checked=[VerifiedPath(path="é", kind="store", files=3, bytes=2**40)],
        findings=[VerifyFinding(kind="damaged", path="é/a", problem="cut", images=["a.png"], manifests={"m": 3})],
    ),
    "genotype-record": GenotypeRecord(
        operations=["conv_1x1", "é"], inputs=[[2, 1], []], search={"manifest": None, "options": {"rate": 3e-4}}
    ),
    "channels-record": ChannelsRecord(
        units=[PrunedUnit(name="body.é", maps=16, left=12)], identity={"ratio": 0.3}, versions={"curate": "0.1.0"}
    ),
    "dual-record": DualRecord(arch="edsr:scale=2", network="ff", weights="ee"),
    "kept-record": KeptRecord(
        units=[PrunedUnit(name="body.é", maps=3, left=2)], kept=[[0, 2]], identity={"criterion": "l1"}, versions={}
    ),
    "checkpoint-recipe": CheckpointRecipe(arch="fsrcnn:scale=2", weights="ff", training={"seed": 0, "losses": [0.5]}),
}


def refusal(kind: type[Document], text: str | bytes, where: object = "store.json") -> str:
    """The line with which a document is refused, without the words that every such line begins with."""
    with pytest.raises(DataError) as refused:
        schema.parse(kind, text, where)
    message = str(refused.value)
    assert message.isprintable() and refused.value.exit_code == 1
    start = f"{where} is not a valid {kind.__name__}: "
    assert message.startswith(start)
    return message.removeprefix(start)


def changed(document: Document, **values: Any) -> str:
    """The document's JSON with other values, or more of them."""
    return json.dumps(json.loads(schema.dump(document)) | values)


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_is_read_back_as_it_was_written(name: str, indent: int | None) -> None:
    document = DOCUMENTS[name]
    data = schema.dump(document, indent)
    assert schema.parse(type(document), data, "x") == document
    assert schema.parse(type(document), data.decode(), "x") == document
    assert schema.dump(schema.parse(type(document), data, "x"), indent) == data
    content = json.loads(data)
    assert content["format"] == FORMAT and list(content) == sorted(content)
    assert (b"\n" in data) == (indent is not None)


def test_the_same_document_is_the_same_bytes() -> None:
    first = StoreHeader(patch=480, step=240, created_by="é")
    again = StoreHeader.model_validate({"created_by": "é", "step": 240, "patch": 480})
    assert schema.dump(first) == schema.dump(again)
    content = '"created_by": "é", "format": 1, "packed": null, "patch": 480, "step": 240}'
    checksum = xxhash.xxh3_64_hexdigest(f"{{{content}".encode())
    assert schema.dump(first) == f'{{"checksum": "{checksum}", {content}'.encode()


@pytest.mark.parametrize("name", [name for name, document in DOCUMENTS.items() if isinstance(document, Sealed)])
@pytest.mark.parametrize("indent", [None, 2])
def test_no_bit_of_a_sealed_document_changes_unnoticed(name: str, indent: int | None) -> None:
    """Not even of its spaces."""
    document = DOCUMENTS[name]
    data = schema.dump(document, indent)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            schema.parse(type(document), bytes(changed), "x")


@pytest.mark.parametrize("name", [name for name, document in DOCUMENTS.items() if isinstance(document, Sealed)])
def test_a_document_older_than_its_checksum_is_read(name: str) -> None:
    content = json.loads(schema.dump(DOCUMENTS[name]))
    del content["checksum"]
    assert schema.parse(type(DOCUMENTS[name]), json.dumps(content), "x") == DOCUMENTS[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_unknown_key_is_refused(name: str) -> None:
    document = DOCUMENTS[name]
    text = changed(document, colour="red")
    assert refusal(type(document), text) == "colour: Extra inputs are not permitted"


@pytest.mark.parametrize(
    ("name", "place", "key"),
    [("commit-record", ("parts", 0), "parts.0.colour"), ("manifest-recipe", ("store",), "store.colour")],
)
def test_an_unknown_key_deeper_down_is_refused(name: str, place: tuple[Any, ...], key: str) -> None:
    content = json.loads(schema.dump(DOCUMENTS[name]))
    inner = content
    for step in place:
        inner = inner[step]
    inner["colour"] = "red"
    reason = refusal(type(DOCUMENTS[name]), json.dumps(content))
    assert reason == f"{key}: Extra inputs are not permitted"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_newer_format_is_refused_and_says_so_whatever_else_is_new(name: str) -> None:
    document = DOCUMENTS[name]
    expected = f"format 2 is not one that curate {__version__} reads (it reads 1); update curate"
    assert refusal(type(document), changed(document, format=2)) == expected
    assert refusal(type(document), changed(document, format=2, colour="red")) == expected
    assert refusal(type(document), '{"format": 2}') == expected
    newer = f"{expected} to 99.1.0, which wrote it, or newer"
    assert refusal(type(document), changed(document, format=2, written_by="curate 99.1.0")) == newer


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("store-header", {"created_by": "curate 99.1.0"}),
        ("manifest-recipe", {"versions": {"curate": "99.1.0", "python": "100.0"}}),
        ("checkpoint-recipe", {"training": {"versions": {"curate": "99.1.0", "torch": "100.0"}}}),
    ],
)
def test_a_newer_format_says_who_reads_it_where_it_says_who_wrote_it(name: str, values: dict[str, Any]) -> None:
    text = changed(DOCUMENTS[name], format=2, **values)
    assert refusal(type(DOCUMENTS[name]), text).endswith("update curate to 99.1.0, which wrote it, or newer")


@pytest.mark.parametrize(
    "writer", [None, 1, [], {}, "", "somebody", "curate 0.0.1", f"curate {__version__}", "0" * 5000]
)
def test_a_newer_format_of_an_older_or_unknown_writer_names_none(writer: object) -> None:
    text = changed(DOCUMENTS["store-header"], format=2, created_by=writer, versions=writer)
    assert refusal(StoreHeader, text).endswith("(it reads 1); update curate")


@pytest.mark.parametrize(
    ("name", "newer"), [("store-header", ["distilled"]), ("manifest-recipe", ["origin", "distilled_from"])]
)
def test_newer_keys_are_not_written_where_they_say_nothing(name: str, newer: list[str]) -> None:
    document = DOCUMENTS[name]
    plain = {key: value for key, value in json.loads(schema.dump(document)).items() if key not in (*newer, "checksum")}
    older = schema.parse(type(document), json.dumps(plain), name)
    assert json.loads(schema.dump(older, sealed=False)) == plain == older.model_dump(mode="json")
    # A document without a checksum is what curate writes, byte for byte, as it was before there were these keys.
    assert schema.is_as_written(older, json.dumps(plain, ensure_ascii=False, sort_keys=True).encode())


def test_what_a_distillation_is_of_tells_it_from_every_other() -> None:
    made = Distilling(source="ab", manifest="cd", ldm="ef", options={"rates": (1, 2), "seed": 0}, code=1)
    read = Distilling.model_validate_json(made.model_dump_json())
    assert read.options["rates"] == [1, 2] and read.fingerprint == made.fingerprint
    others = [
        made.model_copy(update=changed)
        for changed in ({"source": "x"}, {"manifest": "x"}, {"ldm": None}, {"options": {"seed": 0}}, {"code": 2})
    ]
    assert len({each.fingerprint for each in (made, *others)}) == 6
    assert made.flat() == {"store": "ab", "manifest": "cd", "ldm": "ef", "code": 1, "rates": (1, 2), "seed": 0}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_without_a_default_is_needed(name: str) -> None:
    document = DOCUMENTS[name]
    needed = [key for key, field in type(document).model_fields.items() if field.is_required()]
    # Later than the first files of format 1, which do without.
    added = {
        "store-header": {"packed", "distilled"},
        "scorer-record": {"vector"},
        "export-record": {"version", "lr"},
        "manifest-recipe": {"unit", "checks", "packed_from", "origin", "distilled_from"},
        "training-state": {"tensors"},
        "genotype-record": {"search"},  # of one that is written by hand
    }
    optional = {"format", "checksum"} | added.get(name, set())
    assert needed == [key for key in type(document).model_fields if key not in optional]
    for key in needed:
        content = json.loads(schema.dump(document))
        del content[key]
        assert refusal(type(document), json.dumps(content)) == f"{key}: Field required"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the document: Invalid JSON"),
        ("{", "the document: Invalid JSON"),
        (b"\xff\xfe\x00", "the document: Invalid JSON"),
        ("null", "the document: Input should be an object"),
        ("[]", "the document: Input should be an object"),
        ("[" * 300, "the document: Invalid JSON"),
        ('{"patch": 1, "step": 1, "created_by": "x"} more', "the document: Invalid JSON"),
        (changed(DOCUMENTS["store-header"], patch=0), "patch: Input should be greater than 0"),
        (changed(DOCUMENTS["store-header"], step=-1), "step: Input should be greater than 0"),
        (changed(DOCUMENTS["store-header"], step=1.5), "step: Input should be a valid integer"),
        (changed(DOCUMENTS["store-header"], patch=None), "patch: Input should be a valid integer"),
        (changed(DOCUMENTS["store-header"], created_by=1), "created_by: Input should be a valid string"),
        (changed(DOCUMENTS["store-header"], format="1"), "format: Input should be 1"),
        (changed(DOCUMENTS["store-header"], **{"a\n\x1b[31m": 1}), r"a\n\x1b[31m: Extra inputs"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(text: str | bytes, reason: str) -> None:
    assert refusal(StoreHeader, text).startswith(reason)


@pytest.mark.parametrize("values", [{"unit": -1}, {"parts": [{"path": "x", "bytes": -1, "xxh3": ""}]}])
def test_counts_are_not_negative(values: dict[str, Any]) -> None:
    assert "greater than or equal to 0" in refusal(CommitRecord, changed(DOCUMENTS["commit-record"], **values))


def test_the_refusal_names_the_file_on_one_line() -> None:
    with pytest.raises(DataError) as refused:
        schema.parse(StoreHeader, "", "a\x1b[31m\nb")
    assert str(refused.value).startswith(r"a\x1b[31m\nb is not a valid StoreHeader")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_frozen(name: str) -> None:
    with pytest.raises(ValueError, match="frozen"):
        DOCUMENTS[name].format = 1


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_score_table_has_the_id_and_a_float_column_a_score() -> None:
    assert layout.scores_schema(("mean", "max")) == pa.schema(
        [pa.field("patch_id", pa.string(), False), pa.field("mean", pa.float32()), pa.field("max", pa.float32())]
    )


def test_a_manifest_has_the_columns_of_design_md() -> None:
    assert layout.MANIFEST.names == [
        *("rank", "patch_id", "image_id", "y", "x", "size", "score", "weight", "shard"),
    ]
    assert [field.name for field in layout.MANIFEST if field.nullable] == ["score"]
    assert all(layout.MANIFEST.field(name) == layout.PATCHES.field(name) for name in layout.PATCHES.names)


# --- schemas/ ---------------------------------------------------------------------------------------------------------


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curate.schema", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_schemas_in_the_repository_are_those_of_the_code() -> None:
    result = check("--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_what_was_written_is_up_to_date_and_written_again_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    assert schema.main(["--write", str(folder)]) == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {f"{name}.json" for name in (*DOCUMENTS, "tables")}
    assert schema.main(["--check", str(folder)]) == 0
    assert schema.main(["--write", str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.parametrize("name", [*DOCUMENTS, "tables"])
@pytest.mark.parametrize("drift", ["changed", "gone"])
def test_drift_is_found_and_named_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, drift: str
) -> None:
    schema.main(["--write", str(tmp_path)])
    path = tmp_path / f"{name}.json"
    if drift == "changed":
        path.write_text(path.read_text("utf-8").replace('"type": "', '"type": "old_', 1), "utf-8")
    else:
        path.unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert schema.main(["--check", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"schemas differ from the code: {name}.json; run python -m curate.schema --write\n"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_code_drifting_from_the_files_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.main(["--write", str(tmp_path)])
    monkeypatch.setattr(layout, "PATCHES", layout.PATCHES.append(pa.field("area", pa.int32())))
    assert schema.main(["--check", str(tmp_path)]) == 1


def test_check_ends_with_exit_code_one(tmp_path: Path) -> None:
    result = check("--check", tmp_path)
    assert result.returncode == 1 and "store-header.json" in result.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_json_schema_has_every_key_of_the_document_and_no_other(name: str) -> None:
    described = json.loads(schema.json_schemas()[f"{name}.json"])
    assert described["additionalProperties"] is False
    assert set(described["properties"]) == set(json.loads(schema.dump(DOCUMENTS[name])))
    assert described["properties"]["format"]["const"] == FORMAT


def test_the_tables_are_described_column_by_column() -> None:
    described = json.loads(schema.json_schemas()["tables.json"])
    tables = {"images": layout.IMAGES, "cells": layout.CELLS, "patches": layout.PATCHES, "manifest": layout.MANIFEST}
    tables |= {"duplicates": layout.DUPLICATES, "leaks": layout.LEAKS, "examined": layout.EXAMINED}
    tables |= {"retried": layout.RETRIED}
    assert described == {
        name: [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in table]
        for name, table in tables.items()
    }
