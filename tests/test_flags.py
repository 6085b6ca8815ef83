"""Which image of a group is kept, and what the others' status says."""

import random
from itertools import combinations

import pyarrow as pa
import pytest

from curate import layout, sql
from curate.errors import DataError
from curate.flags import NO_VIEWS, findings, kept, nothing

WORTH = {"a": (100, 5), "b": (100, 7), "c": (400, 1), "d": (100, 7), "e": (9, 9)}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], {}),
        ([("a", "b")], {"a": "b", "b": "b"}),  # as many pixels, more bytes
        ([("b", "d")], {"b": "b", "d": "b"}),  # equals: the smaller id
        ([("a", "b"), ("e", "a"), ("c", "e")], dict.fromkeys("abce", "c")),  # a chain is one group
        ([("a", "b"), ("c", "e")], {"a": "b", "b": "b", "c": "c", "e": "c"}),
    ],
)
def test_the_worthiest_of_a_group_is_kept(pairs: list[tuple[str, str]], expected: dict[str, str]) -> None:
    assert kept(pairs, WORTH.__getitem__) == expected


def test_the_order_of_the_pairs_is_no_matter() -> None:
    draw = random.Random(0)
    items = [f"{i:03}" for i in range(60)]
    pairs = draw.sample(list(combinations(items, 2)), 50)
    worth = {item: (draw.randrange(3), draw.randrange(3)) for item in items}
    expected = kept(pairs, worth.__getitem__)
    for _ in range(5):
        draw.shuffle(pairs)
        turned = [pair if draw.random() < 0.5 else pair[::-1] for pair in pairs]
        assert kept(turned, worth.__getitem__) == expected
    assert set(expected) == {item for pair in pairs for item in pair}
    assert all(expected[keeper] == keeper for keeper in expected.values())


def image(image_id: str, name: str, side: int) -> dict[str, object]:
    row = {"image_id": image_id, "name": name, "sha256": "0", "height": side, "width": side, "status": "ok"}
    return row | {"source": "photos", "split": "train"}


def test_a_leak_is_the_graver_reason_and_names_are_one_line() -> None:
    images = pa.Table.from_pylist([image("a", "one\n.png", 10), image("b", "two.png", 20)], layout.IMAGES)
    place = {"y": 0, "x": 0, "height": 9, "width": 9, "role": "hr", "offset": 0, "size": 1, "xxh3": 1}
    cells = pa.Table.from_pylist([{"image_id": name, **place} for name in "ab"], layout.CELLS)
    pair = {"image_id": "a", "phash": 1, "twin": "b", "distance": 2, "correlation": 0.95}
    pairs = pa.Table.from_pylist([pair], layout.DUPLICATES)
    found = findings(images, cells, pairs, layout.LEAKS.empty_table())
    assert found.flags.to_pylist() == [{"image_id": "a", "reason": "near-duplicate of two.png (b)"}]
    (row,) = found.duplicates.to_pylist()
    assert (row["name"], row["twin_name"], row["kept"]) == ("one\n.png", "two.png", "b")
    numbers = dict.fromkeys(("correlation", "share", "test_share", "scale"), 1.0) | dict.fromkeys("yx", 0.0)
    leak = {"image_id": "a", "benchmark": "Set5", "test": "baby.png", "degrees": 0.0, **numbers}
    found = findings(images, cells, pairs, pa.Table.from_pylist([leak], layout.LEAKS))
    assert found.flags.to_pylist() == [{"image_id": "a", "reason": "overlaps baby.png of Set5"}]


def test_no_check_has_found_nothing() -> None:
    found = nothing()
    assert found.flags.num_rows == found.leaks.num_rows == found.duplicates.num_rows == 0
    assert found.leaks.column_names[:2] == ["image_id", "name"]


def test_the_views_of_no_check_have_the_columns_of_findings() -> None:
    connection = sql.connect(NO_VIEWS, [])
    for name, query in NO_VIEWS.items():
        found = sql.reader(connection, query).read_all()
        assert found.equals(getattr(nothing(), name)), name
    assert set(nothing().leaks.column_names) == {*layout.LEAKS.names, "name"}
    leaks = nothing().leaks.schema
    assert all(leaks.field(field.name).type == field.type for field in layout.LEAKS)


@pytest.mark.parametrize(("of_image", "of_cell"), [("c", "a"), ("a", "c")])
def test_a_check_may_not_name_an_image_that_is_not_there(of_image: str, of_cell: str) -> None:
    images = pa.Table.from_pylist([image(of_image, "one.png", 10)], layout.IMAGES)
    place = {"y": 0, "x": 0, "height": 9, "width": 9, "role": "hr", "offset": 0, "size": 1, "xxh3": 1}
    cells = pa.Table.from_pylist([{"image_id": of_cell, **place}], layout.CELLS)
    pair = {"image_id": "a", "phash": 1, "twin": "a", "distance": 0, "correlation": 1.0}
    pairs = pa.Table.from_pylist([pair], layout.DUPLICATES)
    with pytest.raises(DataError, match="its checks name image 'a', which it does not have"):
        findings(images, cells, pairs, layout.LEAKS.empty_table())
