"""Models and updates as bytes: safetensors files in one canonical form.

What this module promises:

- The same tensors always give the same bytes, hence the same SHA-256: names in
  code-point order, a compact JSON header with sorted keys, data in name order.
- Any safetensors reader reads its output. Its input may come from any writer: only our
  output must be canonical.
- Bytes that aren't a valid safetensors file raise `MalformedBlobError`, whatever is
  wrong with them. Sizes are checked before anything is allocated or viewed, the
  header's against its expected size: reading takes time and memory in proportion.

It deliberately knows no files or object stores, no torch, and not what a tensor means.

Source: https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: The safetensors names of the types numpy knows, little-endian as in the file.
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("bool"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "U8": np.dtype("u1"),
}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}

_METADATA_KEY: Final = "__metadata__"  # not a tensor: texts by name
_PREFIX_BYTES: Final = 8  # the header's length, little-endian
VECTOR_HEADER_BYTES: Final = 4_096
"""The largest header with one tensor; ours take under 100 bytes."""
MODEL_HEADER_BYTES: Final = 2**20  # = 1,048,576
"""The same for a model: about 100 bytes a tensor."""
_MAX_HEADER_DEPTH: Final = 8  # tensors, fields, shape or offsets: three are used
#: A string, closed or not: no byte is looked at twice, whatever the text.
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_MAX_SIZE_DIGITS: Final = 19  # 2^63 - 1
_MAX_DIMENSIONS: Final = 64  # numpy's limit
_MAX_SPAN: Final = 2**48  # elements; far above any blob, far below numpy's overflow


class MalformedBlobError(ValueError):
    """The bytes aren't a valid safetensors file; bad input, never a bug of ours."""


class ManifestMismatchError(ValueError):
    """The tensors or the vector don't match the names or shapes of the manifest."""


class TensorSpec(NamedTuple):
    """One entry of a manifest.

    Attributes:
        name: The tensor's name in the model's state.
        shape: Its dimensions; empty for a scalar.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


#: The layout of a flat vector of parameters: the specs, sorted by name.
Manifest: TypeAlias = tuple[TensorSpec, ...]


def can_hold(dtype: np.dtype[Any]) -> bool:
    """Return whether a file can hold arrays of this type."""
    return dtype.newbyteorder("<") in _DTYPE_NAMES


def tensors_to_blob(
    tensors: Mapping[str, NDArray[Any]], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Write tensors in the canonical form.

    Args:
        tensors: Arrays by name, of any shape and any type in the safetensors format
            that numpy knows. Memory order and byte order don't matter.
        metadata: Texts by name; empty leaves it out of the header.

    Returns:
        A safetensors file; equal tensors and metadata give equal bytes.

    Raises:
        ValueError: A type that the format lacks, or a name it can't hold; a bug.
    """
    header: dict[str, dict[str, Any]] = {}
    if metadata:
        header[_METADATA_KEY] = dict(metadata)
    chunks: list[bytes] = []
    end = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        dtype = array.dtype.newbyteorder("<")
        if not can_hold(dtype) or name == _METADATA_KEY:
            raise ValueError(f"safetensors can't hold {name!r} of type {array.dtype}")
        data = array.astype(dtype, copy=False).tobytes(order="C")
        begin, end = end, end + len(data)
        header[name] = {
            "data_offsets": [begin, end],
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(array.shape),
        }
        chunks.append(data)
    text = json.dumps(
        header, ensure_ascii=False, separators=(",", ":"), sort_keys=True
    ).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(_PREFIX_BYTES, "little"), text, *chunks])


def tensors_from_blob(
    blob: bytes, *, max_header_bytes: int = MODEL_HEADER_BYTES
) -> dict[str, NDArray[Any]]:
    """Read a safetensors file, trusting nothing in it.

    Args:
        blob: The file, canonical or not. Its size is the caller's to limit.
        max_header_bytes: The largest header: a model's, or `VECTOR_HEADER_BYTES` where
            one tensor is expected.

    Returns:
        Arrays by name, in name order: read-only views into `blob`, not copies.

    Raises:
        MalformedBlobError: The bytes aren't a valid safetensors file, or hold a type
            that numpy lacks (BF16, the 8-bit floats).
    """
    return tensors_and_metadata_from_blob(blob, max_header_bytes=max_header_bytes)[0]


def tensors_and_metadata_from_blob(
    blob: bytes, *, max_header_bytes: int = MODEL_HEADER_BYTES
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a safetensors file and its metadata, as `tensors_from_blob` does.

    Returns:
        Arrays by name, and texts by name.

    Raises:
        MalformedBlobError: As there.
    """
    header, data = _split(blob, max_header_bytes)
    metadata = header.get(_METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_text(key + value)
        for key, value in metadata.items()
    ):
        raise MalformedBlobError(f"{_METADATA_KEY} isn't an object of texts")
    entries = {
        name: _Entry.parse(name, fields)
        for name, fields in header.items()
        if name != _METADATA_KEY
    }
    # Each byte of the data belongs to exactly one tensor: no holes, no overlaps.
    expected = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != expected:
            msg = f"data offsets leave a hole or overlap at byte {expected}"
            raise MalformedBlobError(msg)
        expected = entry.end
    if expected != len(data):
        msg = f"the header describes {expected} bytes of data, not {len(data)}"
        raise MalformedBlobError(msg)
    tensors = {name: entries[name].view(data) for name in sorted(entries)}
    return tensors, metadata


def manifest_of(tensors: Mapping[str, NDArray[Any]]) -> Manifest:
    """Describe tensors, sorted by name."""
    return tuple(
        TensorSpec(name, tuple(tensors[name].shape)) for name in sorted(tensors)
    )


def num_parameters(manifest: Manifest) -> int:
    """Length d of the flat vector that the manifest describes."""
    return sum(spec.size for spec in manifest)


def flatten(
    tensors: Mapping[str, NDArray[Any]], manifest: Manifest
) -> NDArray[np.float32]:
    """Lay tensors end to end, in manifest order.

    Args:
        tensors: float32 arrays by name.
        manifest: The names and shapes expected, no more and no fewer.

    Returns:
        shape (d,) float32, C order within each tensor.

    Raises:
        ManifestMismatchError: A tensor is missing, unexpected, of another shape or of
            another type.
    """
    found = manifest_of(tensors)
    if found != manifest:
        differing = set(found).symmetric_difference(manifest)
        msg = f"not the manifest's tensors: {sorted(differing) or 'other order'}"
        raise ManifestMismatchError(msg)
    vector = np.empty(num_parameters(manifest), dtype=np.float32)
    begin = 0
    for spec in manifest:
        array = tensors[spec.name]
        if array.dtype != np.float32:
            msg = f"tensor {spec.name!r:.100} of the manifest is {array.dtype}"
            raise ManifestMismatchError(msg)
        vector[begin : begin + spec.size] = array.reshape(-1)
        begin += spec.size
    return vector


def unflatten(
    vector: NDArray[np.float32], manifest: Manifest
) -> dict[str, NDArray[np.float32]]:
    """Undo `flatten`.

    Args:
        vector: shape (d,) float32.
        manifest: Describes d parameters.

    Returns:
        float32 arrays by name, in manifest order: views into `vector`.

    Raises:
        ManifestMismatchError: The vector isn't of shape (d,).
    """
    if vector.shape != (num_parameters(manifest),):
        msg = f"a vector of shape {vector.shape}, not ({num_parameters(manifest)},)"
        raise ManifestMismatchError(msg)
    tensors = {}
    begin = 0
    for spec in manifest:
        tensors[spec.name] = vector[begin : begin + spec.size].reshape(spec.shape)
        begin += spec.size
    return tensors


class _Entry(NamedTuple):
    """One checked entry of a header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def parse(cls, name: str, fields: object) -> "_Entry":
        if not isinstance(fields, dict) or fields.keys() != {
            "data_offsets",
            "dtype",
            "shape",
        }:
            raise MalformedBlobError(
                f"tensor {name!r:.100} doesn't have exactly dtype, shape and "
                "data_offsets"
            )
        dtype_name = fields["dtype"]
        if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
            msg = f"tensor {name!r:.100} is of a type we can't hold: {dtype_name!r:.20}"
            raise MalformedBlobError(msg)
        shape, offsets = fields["shape"], fields["data_offsets"]
        if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
            raise MalformedBlobError(f"tensor {name!r:.100} has a malformed shape")
        # Zeros don't make the other dimensions harmless: numpy multiplies those too.
        if math.prod(size or 1 for size in shape) > _MAX_SPAN:
            raise MalformedBlobError(f"tensor {name!r:.100} is too large")
        dtype = _DTYPES[dtype_name]
        num_bytes = math.prod(shape) * dtype.itemsize
        if not (_are_sizes(offsets) and offsets) or offsets[1:] != [
            offsets[0] + num_bytes
        ]:
            msg = f"tensor {name!r:.100} has data offsets that don't fit its shape"
            raise MalformedBlobError(msg)
        return cls(name, dtype, tuple(shape), offsets[0], offsets[1])

    def view(self, data: memoryview) -> NDArray[Any]:
        raw = np.frombuffer(data[self.begin : self.end], dtype=np.uint8)
        if self.dtype == np.bool_ and np.any(raw > 1):
            msg = f"tensor {self.name!r:.100} has booleans other than 0 and 1"
            raise MalformedBlobError(msg)
        array = raw.view(self.dtype).reshape(self.shape)
        return array.astype(self.dtype.newbyteorder("="), copy=False)


def _split(blob: bytes, max_header_bytes: int) -> tuple[dict[str, Any], memoryview]:
    """Separate the parsed header from the data."""
    view = memoryview(blob).toreadonly()
    length = int.from_bytes(view[:_PREFIX_BYTES], "little")
    begin = _PREFIX_BYTES + length
    if len(view) < _PREFIX_BYTES or begin > len(view):
        msg = f"no header of {length} bytes in a blob of {len(view)}"
        raise MalformedBlobError(msg)
    if length > max_header_bytes:
        msg = f"a header of {length} bytes; at most {max_header_bytes}"
        raise MalformedBlobError(msg)
    text = bytes(view[_PREFIX_BYTES:begin])
    if not text.startswith(b"{"):
        raise MalformedBlobError("the header doesn't begin with {")
    try:
        # A parser whose stack ended before its own limit would end the process.
        if compute_json_depth(text.decode("utf-8")) > _MAX_HEADER_DEPTH:
            msg = f"the header isn't JSON that nests at most {_MAX_HEADER_DEPTH} deep"
            raise MalformedBlobError(msg)  # noqa: TRY301  # it has its own words
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_parse_size,
            parse_float=str,
        )
        for name in header:
            name.encode("utf-8")  # a lone surrogate can be escaped in JSON
    except MalformedBlobError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedBlobError("the header isn't JSON in UTF-8") from error
    return header, view[begin:]


def compute_json_depth(text: str) -> int:
    """Return how deep brackets nest in a text that may be JSON, ignoring strings.

    Anything after the first invalid JSON may be counted either way: a parser ends
    there.
    """
    data = _STRING.sub("", text).encode("utf-8", "replace")
    brackets = np.frombuffer(data.translate(None, _NO_BRACKETS), dtype=np.uint8)
    is_open = (brackets == ord("[")) | (brackets == ord("{"))
    depths = np.cumsum(np.where(is_open, 1, -1))
    return max(0, int(depths.max(initial=0)))


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")  # a lone surrogate can be escaped in JSON
    except UnicodeEncodeError:
        return False
    return True


def _parse_size(text: str) -> int | str:
    # Python takes more than linear time for more digits than sizes have.
    return int(text) if len(text) <= _MAX_SIZE_DIGITS else text


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers that keep different ones of two equal keys would see two models.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MalformedBlobError("a key occurs twice in the header")
    return fields


def _refuse_constant(text: str) -> None:
    raise MalformedBlobError(f"{text} isn't JSON")


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )
