"""The words of messages: what was meant, and how many there are."""

import pytest

from curate.errors import counted, meant, short

NAMES = ("sobel", "srcnn", "entropy")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("srcn", "; did you mean 'srcnn'?"),
        ("sobell", "; did you mean 'sobel'?"),
        ("entropie", "; did you mean 'entropy'?"),
        ("quality", ""),
        ("", ""),
    ],
)
def test_what_was_meant_is_the_nearest_name_or_none(name: str, expected: str) -> None:
    assert meant(name, NAMES) == expected and meant(name, ()) == ""


def test_what_was_meant_is_one_line() -> None:
    assert meant("a\nb", ["a\nbc"]) == r"; did you mean 'a\nbc'?"


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "patch", "2 patches"),
        (1, "patch", "1 patch"),
        (3, "class", "3 classes"),
    ],
)
def test_one_is_not_many(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected


def test_long_names_lose_their_middle() -> None:
    assert short("abcdefghij", 10) == "abcdefghij"
    assert short("abcdefghijk", 5) == "ab…jk"
    assert short("a\nb\x1b", 20) == "a\\nb\\x1b"
