"""Data sets survive storage; the fingerprint tells equal from different data."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo.datasets
from zoo.errors import ArtifactError, DataError
from zoo.types import Column, Dataset


def graph():
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    mask = torch.tensor([True, False, True])
    return Dataset(
        name="graph",
        task="link_prediction",
        train={"edges": edges, "mask": mask, "weight": torch.tensor(2.5, dtype=torch.float64)},
        test={"edges": edges, "mask": ~mask, "weight": torch.tensor(0.5, dtype=torch.float64)},
        whole=frozenset({"edges", "weight"}),
        target=Column(name="mask"),
        dims={"mask": ("node",)},
        coords={"node": ("a", "b", "c")},
        extra={"image_shape": (1, 2), "nested": {"deep": (1, (2, 3))}, "none": None},
    )


def same(a, b):
    for field in dataclasses.fields(Dataset):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name in ("train", "validation", "test"):
            assert (left is None) == (right is None)
            assert left is None or left.keys() == right.keys()
            assert left is None or all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)
        else:
            assert left == right, field.name


@pytest.mark.parametrize("data", [graph(), zoo.datasets.load("german_credit"), zoo.datasets.load("eight_schools")])
def test_round_trip_through_files(data, tmp_path):
    tensors, meta = zoo.datasets.pack(data)
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(json.dumps(meta))
    back = zoo.datasets.unpack(load_file(tmp_path / "a.safetensors"), json.loads((tmp_path / "a.json").read_text()))
    same(data, back)
    assert zoo.datasets.fingerprint(back) == zoo.datasets.fingerprint(data)


def test_unpack_ignores_tensors_of_others():
    tensors, meta = zoo.datasets.pack(graph())
    same(graph(), zoo.datasets.unpack({**tensors, "param.loc": torch.zeros(2)}, meta))


@pytest.mark.parametrize("field", ["name", "splits", "columns", "extra", "origin"])
def test_damaged_meta_is_refused(field):
    tensors, meta = zoo.datasets.pack(graph())
    del meta[field]
    with pytest.raises(ArtifactError, match="damaged"):
        zoo.datasets.unpack(tensors, meta)


def test_missing_tensors_are_refused():
    tensors, meta = zoo.datasets.pack(graph())
    with pytest.raises(ArtifactError, match="no entries"):
        zoo.datasets.unpack({k: v for k, v in tensors.items() if not k.startswith("data.test")}, meta)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(DataError, match="cannot be stored"):
        zoo.datasets.pack(dataclasses.replace(graph(), extra={"tensor": torch.zeros(1)}))


def changed(data, **entries):
    return dataclasses.replace(data, train={**data.train, **entries})


def test_fingerprint_sees_every_change():
    data = graph()
    edges = data.train["edges"]
    variants = [
        data,
        changed(data, edges=edges.flip(0)),
        changed(data, edges=edges.reshape(3, 2)),
        changed(data, edges=edges.to(torch.int32)),
        changed(data, other=edges),
        dataclasses.replace(data, test=None),
        dataclasses.replace(data, test=None, validation=data.test),
    ]
    assert len({zoo.datasets.fingerprint(v) for v in variants}) == len(variants)


def test_fingerprint_ignores_memory_layout_and_labels():
    data = graph()
    strided = data.train["edges"].t().contiguous().t()
    assert not strided.is_contiguous()
    assert zoo.datasets.fingerprint(changed(data, edges=strided)) == zoo.datasets.fingerprint(data)
    assert zoo.datasets.fingerprint(dataclasses.replace(data, name="other")) == zoo.datasets.fingerprint(data)
