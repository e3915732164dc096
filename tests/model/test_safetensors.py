"""Our safetensors reader against the format's own library, against hostile headers and a fuzzer."""

import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ossia.errors import CheckpointError
from ossia.model.safetensors import SafetensorsFile, dtype_name, read_header

safetensors = pytest.importorskip("safetensors")
numpy_io = pytest.importorskip("safetensors.numpy")

ARRAYS = {
    "bf16": np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "f32": np.linspace(-1, 1, 5, dtype=np.float32),
    "f16": np.array([[1.5]], np.float16),
    "u8": np.arange(7, dtype=np.uint8),  # makes what follows it unaligned
    "f64": np.array([1e300, -0.0]),
    "i64": np.array([-(2**62)]),
    "i32": np.array([2**30, -1], np.int32),
    "i8": np.array([-128], np.int8),
    "bool": np.array([True, False]),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "a name: \u2192 /x": np.array([1], np.uint8),
}


def build(header, data=b"", pad=b""):
    """A file of this header, written by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) + len(pad)) + text + pad + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "m.safetensors"
        path.write_bytes(data)
        return path

    return write


def saved_by_the_library(path, arrays=ARRAYS, metadata=None):
    numpy_io.save_file(arrays, path, metadata)
    return path


@pytest.mark.parametrize("use_mmap", [True, False])
def test_reads_what_the_library_writes(tmp_path, use_mmap):
    path = saved_by_the_library(tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(path, use_mmap=use_mmap)
    assert file.header.metadata == {"format": "pt"}
    assert set(file.tensors) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        array = file.array(name)
        assert array.dtype == expected.dtype
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, expected)
        assert file.tensors[name].nbytes == expected.nbytes


@pytest.mark.parametrize("pad", range(9))
def test_any_alignment(write, pad):
    values = np.arange(10, dtype=np.float32)
    header = {"w": entry("F32", [10], 0, 40), "v": entry("BF16", [2], 40, 44)}
    path = write(build(header, values.tobytes() + b"\x80\x3f\x00\x40", b" " * pad))
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.array("w"), values)
    assert file.array("v").astype(np.float32).tolist() == [1, 2]
    assert safetensors.safe_open(path, "np").get_tensor("w").tolist() == values.tolist()


def test_arrays_are_views_that_outlive_their_reader(tmp_path):
    path = saved_by_the_library(tmp_path / "m.safetensors", {"w": np.ones(1 << 20, np.float32)})
    file = SafetensorsFile(path)
    tracemalloc.start()
    array = file.array("w")
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()
    assert np.shares_memory(array, file.array("w"))
    del file
    assert array.sum() == 1 << 20


def test_a_file_truncated_later_is_an_error_without_mmap(tmp_path):
    path = saved_by_the_library(tmp_path / "m.safetensors", {"w": np.ones(9, np.float32)})
    file = SafetensorsFile(path, use_mmap=False)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: the file was truncated within"):
        file.array("w")


def test_types_that_numpy_lacks_can_be_inspected(write):
    path = write(build({"w": entry("F4", [2, 3], 0, 3)}, b"abc"))
    file = SafetensorsFile(path)
    assert file.tensors["w"].shape == (2, 3)
    with pytest.raises(CheckpointError, match='tensor "w" is F4, which numpy cannot hold'):
        file.array("w")
    with pytest.raises(CheckpointError, match='there is no tensor "x"'):
        file.array("x")


def test_dtype_names():
    assert dtype_name(np.dtype(ml_dtypes.bfloat16)) == "BF16"
    assert dtype_name(np.dtype(np.uint8)) == "U8"
    assert dtype_name(np.dtype(np.complex128)) is None


F32 = entry("F32", [1], 0, 4)

HOSTILE = [
    (b"", "got one of 0 bytes"),
    (b"1234567", "got one of 7 bytes"),
    (b"\x00" * 8, "got no JSON"),
    (b"\xff" * 8, "header would have 18446744073709551615 bytes"),
    (struct.pack("<Q", 3) + b"{}", "header would have 3 bytes and the file has 10"),
    (struct.pack("<Q", 17 << 20) + b"{}" + b" " * (17 << 20), "at most 16 MiB"),
    (build(b"not json"), "got no JSON"),
    (build(b"{"), "expected a JSON object, but"),
    (build(b'{"a": \xff}'), "UTF-8"),
    (build(b" {}"), "got no JSON"),
    (build(b"[]"), "got no JSON"),
    (build(b'{"a":' + b"[" * 10**6), "nested too deeply"),
    (build(b'{"w": 1, "w": 2}'), 'the key "w" is given twice'),
    (build(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), 'the key "dtype" is given twice'),
    (build({"__metadata__": {"a": 1}}), "must map names to strings"),
    (build({"__metadata__": []}), "must map names to strings"),
    (build({"w": None}), 'tensor "w": expected dtype, shape and data_offsets, got null'),
    (build({"w": {"dtype": "F32"}}), 'tensor "w": expected dtype, shape and data_offsets'),
    (build({"w": F32 | {"more": 1}}, b"1234"), 'tensor "w": expected dtype, shape and'),
    (build({"w": F32 | {"dtype": "F33"}}, b"1234"), 'expected a dtype such as .* got "F33"'),
    (build({"w": F32 | {"dtype": []}}, b"1234"), r"expected a dtype such as .* got \[\]"),
    (build({"w": F32 | {"shape": 1}}, b"1234"), "expected a shape of"),
    (build({"w": F32 | {"shape": [-1]}}, b"1234"), r"expected a shape of .* got \[-1\]"),
    (build({"w": F32 | {"shape": [1.0]}}, b"1234"), r"expected a shape of .* got \[1.0\]"),
    (build({"w": F32 | {"shape": [True]}}, b"1234"), r"expected a shape of .* got \[true\]"),
    (build({"w": F32 | {"shape": [1] * 33}}, b"1234"), "expected a shape of at most 32"),
    (build({"w": F32 | {"shape": [2**70]}}, b"1234"), "expected a shape of"),
    (build({"w": entry("F32", [2**40, 2**40], 0, 4)}, b"1234"), "fits a memory"),
    (build({"w": entry("F32", [0, 2**61, 2**61], 0, 0)}), "fits a memory"),
    (build({"w": F32 | {"data_offsets": [0]}}, b"1234"), "expected data_offsets"),
    (build({"w": F32 | {"data_offsets": [4, 0]}}, b"1234"), "expected data_offsets"),
    (build({"w": F32 | {"data_offsets": [False, 4]}}, b"1234"), "expected data_offsets"),
    (build({"w": F32 | {"data_offsets": {}}}, b"1234"), "expected data_offsets"),
    (build({"w": entry("F32", [2], 0, 4)}, b"1234"), r"F32 \[2\] has 8 bytes, but its offsets"),
    (build({"w": entry("F4", [3], 0, 1)}, b"1"), "does not fill whole bytes"),
    (build({"w": F32}, b"123"), 'tensor "w" ends at byte .* truncated'),
    (build({"w": F32}, b"12345"), '1 bytes behind tensor "w" belong to no tensor'),
    (build({}, b"1"), "1 bytes behind the header belong to no tensor"),
    (build({"w": entry("F32", [1], 1, 5)}, b"12345"), "starts 1 bytes behind the end of the head"),
    (
        build({"w": F32, "v": entry("F32", [1], 2, 6)}, b"123456"),
        'tensor "v" overlaps tensor "w"',
    ),
    (build({"w": F32, "v": F32}, b"1234"), 'overlaps tensor "w"'),
    (
        build({"w": F32, "v": entry("F32", [1], 5, 9)}, b"123456789"),
        'tensor "v" starts 1 bytes behind the end of tensor "w"',
    ),
]


@pytest.mark.parametrize(("data", "says"), HOSTILE, ids=[says for _, says in HOSTILE])
def test_refuses(write, data, says):
    path = write(data)
    with pytest.raises(CheckpointError, match=says) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


# The library takes up to 100 MB of header, leading blanks, further keys, any number of dimensions,
# the last of two equal keys, and empty tensors of unthinkable shape.
OURS_ALONE = (
    "at most 16 MiB",
    "twice",
    "got no JSON",
    "at most 32",
    "fits a memory",
    'tensor "w": expected dtype, shape and',
)
REFUSED_BY_BOTH = [(data, says) for data, says in HOSTILE if not says.endswith(OURS_ALONE)]


@pytest.mark.parametrize(
    ("data", "says"), REFUSED_BY_BOTH, ids=[says for _, says in REFUSED_BY_BOTH]
)
def test_the_library_refuses_it_too(write, data, says):
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(write(data), "np")


def test_names_every_problem(write):
    header = {
        "a": entry("F32", [2], 0, 4),
        "b": entry("X", [1], 4, 8),
        "c": entry("F32", [1], 8, 12),
        "d": entry("F32", [1], 10, 14),
        "e": entry("F32", [1], 14, 18),
    }
    problems = read_header(write(build(header, b"1" * 16))).problems
    assert [problem.split('"')[1] for problem in problems] == ["a", "b", "d", "e"]


def test_an_absent_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        SafetensorsFile(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory"):
        SafetensorsFile(tmp_path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", "U8", "F4", "BOOL", 2**63, 2**64, -1, 4, 8]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner)
    ),
    max_leaves=12,
)
sizes = st.integers(0, 40) | st.sampled_from([2**31, 2**61, 2**62, 2**63, 2**64, -1])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "BOOL", "I64"]),
        "shape": st.lists(sizes, max_size=4),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)
headers = st.dictionaries(
    st.sampled_from(["w", "v", "u", "__metadata__", ""]) | st.text(max_size=3),
    entries | json_values,
    max_size=5,
)


def opens_or_refuses(path):
    """Never anything else, and never more memory than the file is long."""
    tracemalloc.start()
    try:
        for use_mmap in (True, False):
            try:
                file = SafetensorsFile(path, use_mmap=use_mmap)
                for name, info in file.tensors.items():
                    try:
                        assert file.array(name).nbytes == info.nbytes
                    except CheckpointError as refusal:
                        assert "numpy cannot hold" in str(refusal)
            except CheckpointError as refusal:
                assert str(refusal).startswith(f"{path}: ")
                str(refusal).encode()  # no lone surrogates
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


fuzzed = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(data=st.binary(max_size=200))
@fuzzed
def test_random_bytes(write, data):
    opens_or_refuses(write(data))


@given(header=headers, data=st.binary(max_size=64))
@example(header={"w": entry("F32", [0, 2**61], 0, 0)}, data=b"")
@example(header={"\ud800": {}}, data=b"")
@fuzzed
def test_random_headers(write, header, data):
    opens_or_refuses(write(build(json.dumps(header).encode(), data)))


@given(text=st.binary(max_size=120), data=st.binary(max_size=16))
@fuzzed
def test_random_header_bytes(write, text, data):
    opens_or_refuses(write(build(b'{"w":' + text, data)))


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 200),
)
@fuzzed
def test_mutated_files(tmp_path, flips, cut):
    path = saved_by_the_library(tmp_path / "m.safetensors", metadata={"a": "b"})
    data = bytearray(path.read_bytes())
    for at, value in flips:
        data[at % min(len(data), 900)] = value
    path.write_bytes(data[: len(data) - cut])
    opens_or_refuses(path)
