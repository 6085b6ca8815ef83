"""The .mat reader agrees with scipy's on what scipy writes, and answers damage with one line, in bounded memory."""

import io
import random
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from curate import matlab
from curate.errors import DataError

NAMES = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,30}", fullmatch=True)
DTYPES = [
    np.dtype(order + code) for code in ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8") for order in "<>"
]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


def saved(arrays: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.dictionaries(NAMES, ARRAYS, max_size=4), st.booleans())
def test_numbers_are_those_that_scipy_reads(arrays: dict[str, Any], compressed: bool) -> None:
    data = saved(arrays, compressed)
    expected = scipy.io.loadmat(io.BytesIO(data))
    found = matlab.read(data)
    assert found.keys() == arrays.keys()
    for name, values in found.items():
        assert values.dtype == np.float64 and values.shape == expected[name].shape
        np.testing.assert_array_equal(values, expected[name].astype(np.float64))


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_no_array_of_real_numbers_is_passed_over(compressed: bool) -> None:
    others = {
        "text": "words",
        "cells": np.array([1.0, "a"], object),
        "structure": {"a": 1.0, "b": {"c": "d"}},
        "sparse": scipy.sparse.csc_matrix(np.eye(3)),
        "imaginary": np.array([1j]),
    }
    numbers = {"first": np.arange(6.0).reshape(2, 3), "yes": np.array([[True, False]]), "last": np.ones((1, 1))}
    found = matlab.read(saved({"first": numbers["first"], **others, **numbers}, compressed))
    assert found.keys() == numbers.keys()
    assert all(np.array_equal(found[name], values) for name, values in numbers.items())


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def file_of(*elements: bytes, order: str = "<") -> bytes:
    """A .mat file by hand: of byte orders and elements that scipy does not write."""
    return (
        b"MATLAB 5.0".ljust(124)
        + struct.pack(f"{order}H", 0x0100)
        + (b"IM" if order == "<" else b"MI")
        + b"".join(elements)
    )


def matrix(dimensions: tuple[int, ...], values: bytes, kind: int = 9, order: str = "<", flags: int = 6) -> bytes:
    shape = struct.pack(f"{order}{len(dimensions)}i", *dimensions)
    header = element(6, struct.pack(f"{order}II", flags, 0), order) + element(5, shape, order) + element(1, b"w", order)
    return element(14, header + element(kind, values, order), order)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_numbers_in_fewer_bytes(order: str) -> None:
    whole = file_of(matrix((2, 2), struct.pack(f"{order}4h", 1, -2, 3, 4), kind=3, order=order), order=order)
    np.testing.assert_array_equal(matlab.read(whole)["w"], [[1, 3], [-2, 4]])
    np.testing.assert_array_equal(scipy.io.loadmat(io.BytesIO(whole))["w"], [[1, 3], [-2, 4]])


ONE = struct.pack("<d", 1.0)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not a MATLAB file"),
        (bytes(200), "not a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "v7.3 file: save it with -v7"),
        (bytes(124) + b"\0\x02IM" + bytes(600), "v7.3 file: save it with -v7"),
        (file_of(b"abc"), "3 bytes where an element should begin"),
        (file_of(element(9, ONE)), "an element of type 9 where a variable should be"),
        (file_of(struct.pack("<II", 14, 2**32 - 8)), "4294967288 bytes, of which 0 are there"),
        (file_of(struct.pack("<HHI", 14, 9, 0)), "9 bytes in an element of 4"),
        (file_of(element(14, b"")), "a variable without its values"),
        (file_of(element(14, element(6, ONE * 2))), "16 bytes of type 6 where a variable's header"),
        (file_of(matrix((1,), ONE)), "4 bytes of type 5 where a variable's header"),
        (file_of(matrix((1,) * 33, ONE)), "an array of 1x1x1"),
        (file_of(matrix((-1, -1), ONE)), "an array of -1x-1"),
        (file_of(matrix((2, 1), ONE)), "an array of 2x1 in 8 bytes"),
        (file_of(matrix((0, 2**31 - 1), b"")), "an array of 0x2147483647"),
        (file_of(matrix((2**31 - 1, 2**31 - 1, 2**31 - 1), ONE)), "in 8 bytes"),
        (file_of(matrix((1, 1), ONE, kind=14)), "an element of type 14 where numbers should be"),
        (file_of(element(15, b"no zlib")), "a compressed element cannot be decompressed"),
        (file_of(element(15, zlib.compress(element(9, ONE)))), "an element of type 9 where a variable should be"),
        (file_of(element(15, zlib.compress(b"abc"))), "3 bytes where an element should begin"),
        (file_of(element(15, zlib.compress(matrix((1, 1), ONE)[:-4]))), "bytes, of which"),
    ],
)
def test_damage_is_one_line(data: bytes, problem: str) -> None:
    with pytest.raises(DataError) as error:
        matlab.read(data)
    assert problem in str(error.value) and str(error.value).isprintable()


def peak_of_reading(data: bytes) -> int:
    tracemalloc.start()
    with pytest.raises(DataError, match=r"is damaged or cut|holds more than"):
        matlab.read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_what_is_claimed_is_not_allocated() -> None:
    claim = file_of(element(15, zlib.compress(struct.pack("<II", 14, 2**27) + bytes(1000))))
    assert peak_of_reading(claim) < 2**20
    bomb = file_of(element(15, zlib.compress(struct.pack("<II", 14, 2**29) + bytes(2**22))))
    assert peak_of_reading(bomb) < 2**20


def test_any_damage_is_a_data_error() -> None:
    rng = random.Random(5)
    whole = [saved({"weights": np.ones((9, 4)), "b": np.arange(3)}, compressed) for compressed in (False, True)]
    for _ in range(2000):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(124, len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            found = matlab.read(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        except DataError:
            continue
        assert all(values.dtype == np.float64 for values in found.values())


def test_a_signalling_nan_is_a_nan() -> None:
    assert np.isnan(matlab.read(file_of(matrix((1, 1), b"\x01\0\xa0\x7f", kind=7)))["w"]).all()
