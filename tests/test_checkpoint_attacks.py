"""Files that are no saved models, by accident or on purpose: all are refused, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import fcdense as fc
from fcdense import checkpoint
from fcdense.errors import FormatError

ROOT = Path(__file__).resolve().parent.parent
X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
nn = fc.nn


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Dense(4, "relu"), nn.BatchNorm(), nn.Dense(3))
    model(X)
    return fc.save(tmp_path / "model.safetensors", model, {"names": ["a", "b"]})


def pack(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def unpack(content: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def description(content: bytes) -> dict:
    return json.loads(unpack(content)[0]["__metadata__"]["fcdense"])


def with_description(content: bytes, changed: object) -> bytes:
    header, body = unpack(content)
    header["__metadata__"]["fcdense"] = changed if isinstance(changed, str) else json.dumps(changed)
    return pack(header, body)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        fc.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_file_that_is_cut_off_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for size in [*range(0, 40), *range(40, len(content), 37), *range(len(content) - 8, len(content))]:
        refused(saved, content[:size])


OTHER_KINDS = {
    "text": b"A sad tale's best for winter.\n" * 20,
    "pickle": pickle.dumps({"layers.0.kernel": np.ones(3)}),
    "zip": b"PK\x03\x04" + bytes(400),
    "zeros": bytes(1000),
    "header 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "header of 4 GB": struct.pack("<Q", 1 << 32) + b"{}",
    "header over the limit": struct.pack("<Q", checkpoint.MAX_HEADER + 1) + b" " * 100,
    "not UTF-8": pack(b'{"__metadata__": {"fcdense": "\xff\xfe"}}'),
    "UTF-16": pack('{"__metadata__": {"fcdense": "{}"}}'.encode("utf-16")),
    "no JSON": pack(b"{"),
    "a list": pack([]),
    "no metadata": pack({}),
    "metadata no table": pack({"__metadata__": "fcdense"}),
    "metadata no text": pack({"__metadata__": {"fcdense": 1}}),
    "another's": pack({"__metadata__": {"format": "pt"}}),
    "description no JSON": pack({"__metadata__": {"fcdense": "{'version': 1}"}}),
    "description a list": pack({"__metadata__": {"fcdense": "[]"}}),
    "description with a lone surrogate": pack(b'{"__metadata__": {"fcdense": "\\ud800"}}'),
    "no version": pack({"__metadata__": {"fcdense": "{}"}}),
    "deep header": pack(b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep description": pack({"__metadata__": {"fcdense": "[" * 200_000}}),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_files_of_other_kinds_are_refused(kind, tmp_path):
    refused(tmp_path / "m", OTHER_KINDS[kind])


def test_an_npz_archive_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", x=X)
    refused(tmp_path / "m", (tmp_path / "m.npz").read_bytes())


def test_another_safetensors_file_is_refused_with_its_cure(tmp_path):
    from safetensors.numpy import save

    message = refused(tmp_path / "m", save({"w": X}, metadata={"format": "np"}))
    assert "not a model of fcdense; read its arrays with safetensors" in message


def test_folders_and_devices_are_refused(tmp_path):
    with pytest.raises(FormatError, match="folder"):
        fc.load(tmp_path)
    with pytest.raises(FormatError, match="device"):
        fc.load(os.devnull)
    with pytest.raises(FileNotFoundError, match="nothing"):
        fc.load(tmp_path / "nothing")


def changed_header(change) -> object:
    def apply(content: bytes) -> bytes:
        header, body = unpack(content)
        return pack(header, change(header, body) or body)

    return apply


def move(header, body):
    header["layers.2.bias"]["data_offsets"] = header["layers.0.bias"]["data_offsets"]


def entry(**fields):
    return changed_header(lambda header, body: header["layers.0.kernel"].update(fields))


def duplicate(content: bytes) -> bytes:
    header, body = unpack(content)
    text = json.dumps(header)
    pair = json.dumps(header["layers.0.bias"])
    return pack((text[:-1] + f', "layers.0.bias": {pair}}}').encode(), body)


TENSOR_ATTACKS = {
    "extra bytes": lambda content: content + b"\0",
    "overlapping offsets": changed_header(move),
    "a hole": changed_header(lambda header, body: body + bytes(4)),
    "duplicate key": duplicate,
    "wrong dtype, same size": entry(dtype="I32"),
    "unknown dtype": entry(dtype="F31"),
    "dtype without NumPy": entry(dtype="BF16", shape=[48]),
    "wider dtype": entry(dtype="F64", shape=[12]),
    "complex": entry(dtype="C64", shape=[12]),
    "other shape": entry(shape=[4, 6]),
    "shape overflow": entry(shape=[1 << 40, 1 << 40]),
    "shape overflow of nothing": entry(shape=[0, 1 << 62]),
    "negative shape": entry(shape=[-6, -4]),
    "fractional shape": entry(shape=[6.0, 4.0]),
    "backward offsets": entry(data_offsets=[96, 0]),
    "far offsets": entry(data_offsets=[1 << 62, (1 << 62) + 96]),
    "no offsets": changed_header(lambda header, body: header["layers.0.kernel"].pop("data_offsets") and None),
    "missing tensor": changed_header(lambda header, body: header.pop("layers.2.bias") and None),
    "renamed tensor": changed_header(lambda header, body: header.update(w=header.pop("layers.0.bias"))),
    "additional tensor": changed_header(
        lambda header, body: (
            header.update(w={"dtype": "U8", "shape": [2], "data_offsets": [len(body), len(body) + 2]}) or body + b"\0\0"
        )
    ),
}


@pytest.mark.parametrize("attack", TENSOR_ATTACKS)
def test_tensors_that_do_not_fit_are_refused(attack, saved):
    refused(saved, TENSOR_ATTACKS[attack](saved.read_bytes()))


def dense(**changes) -> object:
    return lambda d: d["architecture"]["layers"][0].update(changes)


def bomb(depth: int) -> dict:
    found: dict = {"class": "ReLU"}
    for _ in range(depth):
        found = {"class": "Sequential", "layers": [found]}
    return found


def activation(**changes) -> object:
    return lambda d: d["architecture"]["layers"][0]["activation"].update(changes)


ARCHITECTURE_ATTACKS = {
    "newer version": lambda d: d.update(version=2),
    "version 0": lambda d: d.update(version=0),
    "version text": lambda d: d.update(version="1"),
    "version true": lambda d: d.update(version=True),
    "no architecture": lambda d: d.pop("architecture"),
    "architecture a list": lambda d: d.update(architecture=[]),
    "extra a list": lambda d: d.update(extra=[]),
    "no extra": lambda d: d.pop("extra"),
    "unknown class": dense(**{"class": "os.system"}),
    "class a number": dense(**{"class": 7}),
    "class a method": dense(**{"class": "__init__"}),
    "class of a base": dense(**{"class": "FeatureLayer"}),
    "unknown argument": dense(color="red"),
    "missing argument": lambda d: d["architecture"]["layers"][0].pop("units"),
    "units huge": dense(units=10**12),
    "units beyond int64": dense(units=10**30),
    "units 0": dense(units=0),
    "units a list": dense(units=[4]),
    "features huge": dense(in_features=10**12),
    "units and features huge": dense(units=10**12, in_features=10**12),
    "dtype object": dense(dtype="object"),
    "dtype a dict": dense(dtype={}),
    "dtype of the tensors differs": dense(dtype="float64"),
    "initializer unknown": dense(kernel_initializer={"name": "exec"}),
    "initializer huge": dense(kernel_initializer={"name": "glorot_uniform", "gain": 10**400}),
    "initializer a list": dense(kernel_initializer=[1]),
    "regularizer unknown": dense(kernel_regularizer={"name": "__class__"}),
    "regularizer a number": dense(kernel_regularizer=3),
    "constraint hostile": dense(kernel_constraint={"name": "max_norm", "limit": "1", "axis": {}}),
    "use_bias a word": dense(use_bias="yes"),
    "activation none": dense(activation=None),
    "activation name a list": activation(name=[]),
    "activation empty": activation(function={}),
    "activation of nothing": activation(function={"name": "f", "inputs": 1, "scalars": 0, "nodes": [], "outputs": []}),
    "activation unknown operation": activation(
        function={"name": "f", "inputs": 1, "scalars": 0, "nodes": [["array", 0], ["__import__", 0]], "outputs": [1]}
    ),
    "activation forward reference": activation(
        function={"name": "f", "inputs": 1, "scalars": 0, "nodes": [["negative", 0]], "outputs": [0]}
    ),
    "activation of two arrays": activation(
        function={"name": "f", "inputs": 2, "scalars": 0, "nodes": [["array", 1]], "outputs": [0]}
    ),
    "activation of 10**9 arrays": activation(
        function={"name": "f", "inputs": 10**9, "scalars": 10**9, "nodes": [["array", 0]], "outputs": [0]}
    ),
    "activation with a huge integer": activation(
        function={"name": "f", "inputs": 1, "scalars": 0, "nodes": [["const", 10**400]], "outputs": [0]}
    ),
    "row activation unknown": dense(activation={"rows": "relu"}),
    "shared with what is not there": lambda d: d["architecture"]["layers"].append({"class": "shared", "layer": 99}),
    "shared with itself": lambda d: d["architecture"]["layers"].append({"class": "shared", "layer": 0}),
    "deep nesting": lambda d: d.update(architecture=bomb(150)),
    "too many layers": lambda d: d["architecture"]["layers"].append(d["architecture"]["layers"][0]),
    "no layers": lambda d: d["architecture"].update(layers=[]),
    "layers a number": lambda d: d["architecture"].update(layers=3),
    "momentum infinite": lambda d: d["architecture"]["layers"][1].update(momentum=float("inf")),
    "eps NaN": lambda d: d["architecture"]["layers"][1].update(eps=float("nan")),
    "spectral norm of a relu": lambda d: d["architecture"]["layers"].append(
        {"class": "SpectralNorm", "layer": {"class": "ReLU"}, "n_iterations": 1, "eps": 1e-12}
    ),
}


@pytest.mark.parametrize("attack", ARCHITECTURE_ATTACKS)
def test_hostile_architectures_are_refused(attack, saved):
    content = saved.read_bytes()
    changed = description(content)
    ARCHITECTURE_ATTACKS[attack](changed)
    started = time.perf_counter()
    message = refused(saved, with_description(content, changed))
    assert time.perf_counter() - started < 2.0
    if attack == "newer version":
        assert "a newer one may read it" in message
    if attack == "unknown class":
        assert "os.system" in message


def test_names_in_a_file_are_never_code(saved):
    """The name of an activation stands in generated source and messages; here it would end the process."""
    content = saved.read_bytes()
    changed = description(content)
    name = "x):\n import os\n os.abort()\ndef f(x"
    changed["architecture"]["layers"][0]["activation"]["name"] = name
    changed["architecture"]["layers"][0]["activation"]["function"]["name"] = name
    expected = fc.load(saved)(X).numpy().tobytes()
    saved.write_bytes(with_description(content, changed))
    assert fc.load(saved)(X).numpy().tobytes() == expected


def test_very_deep_nesting_is_refused(saved):
    content = saved.read_bytes()
    deep = '{"class":"Sequential","layers":[' * 50_000 + "]}" * 50_000
    refused(saved, with_description(content, f'{{"version": 1, "architecture": {deep}, "extra": {{}}}}'))


def test_nothing_is_allocated_for_sizes_that_no_tensor_has(saved):
    """A layer of 10^9 x 4 float32 would take 16 GB."""
    content = saved.read_bytes()
    changed = description(content)
    changed["architecture"]["layers"][0] |= {"in_features": 10**9}
    saved.write_bytes(with_description(content, changed))
    code = f"""
        import resource
        import fcdense as fc
        import numpy, safetensors.numpy
        fc.nn.Sequential(fc.nn.Dense(2))
        limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            fc.load({str(saved)!r})
        except fc.errors.FormatError as error:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 50_000  # KiB


def places(node: object, path: tuple = ()) -> list[tuple]:
    """The path of every value inside of JSON data, except for the whole."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]


WRONG = (None, True, -1, 1.5, 10**400, "", "relu", [], [[]], {}, {"class": "shared", "layer": 0}, float("inf"))


def test_any_value_of_the_description_may_be_wrong(saved):
    """Where another value has a meaning, the model may load; otherwise it is refused, never anything else."""
    content = saved.read_bytes()
    refusals = 0
    for *path, last in places(description(content)):
        for wrong in WRONG:
            changed = description(content)
            node = changed
            for key in path:
                node = node[key]
            node[last] = wrong
            saved.write_bytes(with_description(content, changed))
            try:
                fc.load(saved)
            except FormatError:
                refusals += 1
    assert refusals > 1000


@pytest.mark.parametrize("seed", range(4))
def test_files_with_changed_bytes_never_do_anything_else(seed, saved):
    """A byte changed in the numbers gives other numbers, elsewhere a `FormatError`; never anything but that."""
    content = saved.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    generator = np.random.default_rng(seed)
    for position in generator.integers(0, header, 60):
        changed = bytearray(content)
        changed[position] = generator.integers(0, 256)
        saved.write_bytes(changed)
        try:
            found = fc.load(saved)
        except FormatError:
            continue
        assert isinstance(found, nn.Sequential)
