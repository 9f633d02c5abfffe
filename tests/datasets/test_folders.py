"""Folders in MNIST's idx format and in CIFAR's binary one: read as written, and one clear line for a damaged file."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

import zoo.datasets
from zoo.errors import DataError

RNG = np.random.default_rng(0)
NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def idx(array):
    """The bytes of an idx file, as http://yann.lecun.com/exdb/mnist describes it."""
    kinds = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, kinds[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def mnist(folder, rows=(40, 20), zipped=False):
    folder.mkdir(exist_ok=True)
    made = {}
    for prefix, n in zip(("train", "t10k"), rows, strict=True):
        images = RNG.integers(0, 256, (n, 5, 4)).astype(np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        made[prefix] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return made


def cifar(folder, hundred=False, names=True):
    """Two training batches, a test batch; with CIFAR-100 the coarse label comes first."""
    folder.mkdir(exist_ok=True)
    made = {}
    parts = {"train": ["train.bin"], "test": ["test.bin"]}
    if not hundred:
        parts = {"train": ["data_batch_1.bin", "data_batch_2.bin"], "test": ["test_batch.bin"]}
    for part, files in parts.items():
        made[part] = []
        for file in files:
            images = RNG.integers(0, 256, (200 if hundred else 30, 3, 32, 32)).astype(np.uint8)
            labels = (np.arange(len(images)) % (100 if hundred else 10)).astype(np.uint8)
            head = [np.full_like(labels, 7), labels] if hundred else [labels]
            (folder / file).write_bytes(np.c_[*head, images.reshape(len(images), -1)].astype(np.uint8).tobytes())
            made[part].append((images, labels))
    if names:
        known = [f"thing {i:02d}" for i in range(100)] if hundred else NAMES
        name = "fine_label_names.txt" if hundred else "batches.meta.txt"
        (folder / name).write_text("\n".join(known) + "\n\n")
    return {part: tuple(map(np.concatenate, zip(*pieces, strict=True))) for part, pieces in made.items()}


def refused(match, folder):
    with pytest.raises(DataError, match=match) as info:
        zoo.datasets.read(folder)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path, zipped):
    made = mnist(tmp_path / "images", zipped=zipped)
    data = zoo.datasets.read(tmp_path / "images", validation=0)
    assert (data.name, data.task, data.extra["image_shape"]) == ("images", "classification", (1, 5, 4))
    assert data.target.categories == tuple("0123456789")
    for batch, prefix in ((data.train, "train"), (data.test, "t10k")):
        images, labels = made[prefix]
        assert torch.equal(batch["x"], torch.from_numpy(images.reshape(len(images), -1) / np.float32(255)))
        assert batch["y"].tolist() == labels.tolist()
    again = zoo.datasets.encode(data, tmp_path / "images")
    assert torch.equal(again["x"], torch.cat([data.train["x"], data.test["x"]]))


def test_mnist_without_test_files_is_split(tmp_path):
    mnist(tmp_path)
    for path in tmp_path.glob("t10k-*"):
        path.unlink()
    data = zoo.datasets.read(tmp_path, test=10, validation=10)
    assert (data.num_data, len(data.test["y"]), len(data.validation["y"])) == (20, 10, 10)


def test_idx_of_other_number_types(tmp_path):
    mnist(tmp_path)
    images = RNG.random((40, 5, 4)).astype(np.float32)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images[:20]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(40, dtype=np.int32) % 3))
    data = zoo.datasets.read(tmp_path, validation=0)
    assert torch.equal(data.train["x"], torch.from_numpy(images.reshape(40, -1)))
    assert data.train["y"].tolist() == [i % 3 for i in range(40)]


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("names", [False, True])
def test_cifar(tmp_path, hundred, names):
    made = cifar(tmp_path / "c", hundred, names)
    data = zoo.datasets.read(tmp_path / "c", validation=0)
    assert data.extra["image_shape"] == (3, 32, 32)
    assert data.extra["num_classes"] == (100 if hundred else 10)
    assert [c.name for c in data.columns[:2]] == ["0,0,0", "0,0,1"]
    assert data.columns[-1].name == "2,31,31"
    for batch, part in ((data.train, "train"), (data.test, "test")):
        images, labels = made[part]
        assert torch.equal(batch["x"].reshape(-1, 3, 32, 32), torch.from_numpy(images / np.float32(255)))
        text = [data.target.categories[code] for code in batch["y"]]
        known = [f"thing {i:02d}" for i in range(100)] if hundred else NAMES
        assert text == [known[i] if names else str(i) for i in labels]


def test_batches_are_read_in_order(tmp_path):
    cifar(tmp_path, names=False)
    record = (tmp_path / "data_batch_1.bin").read_bytes()[:3073]
    for i in (10, 3):
        (tmp_path / f"data_batch_{i}.bin").write_bytes((record[:1] + bytes([i]) * 3072) * 2)
    data = zoo.datasets.read(tmp_path, validation=0)
    assert (data.train["x"][-4:, 0] * 255).round().tolist() == [3, 3, 10, 10]


def test_damaged_idx_files(tmp_path):
    mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for content, match in (
        (whole[:-1], "'.*train-images-idx3-ubyte' is truncated: 815 bytes, but its header means 816"),
        (whole + b"x", "longer than it says: 817 bytes"),
        (whole[:9], "truncated within its header"),
        (b"", "not in idx format: it begins with nothing"),
        (b"GIF8" + whole, "not in idx format: it begins with 47 49 46 38"),
        (idx(np.zeros(3, np.uint8)), "has 1 dimensions; 3 were expected"),
        (idx(np.zeros((39, 5, 4), np.uint8)), "39 images and .* 40 labels"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "truncated"),
    ):
        path.write_bytes(content)
        refused(match, tmp_path)
    path.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    refused("not a whole gzip file", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    refused("lacks the file train-labels-idx", tmp_path)


def test_damaged_cifar_files(tmp_path):
    cifar(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    whole = path.read_bytes()
    for content, match in (
        (whole[:-5], "data_batch_2.bin' is 92185 bytes long, no multiple of a record's 3073; it is truncated"),
        (b"", "is 0 bytes long"),
        (whole[:3073] + b"\x0b" + whole[3074:], "record 1 has the label 11; with 10 classes"),
    ):
        path.write_bytes(content)
        refused(match, tmp_path)
    path.write_bytes(whole)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    refused("names 2 classes; 10 were expected", tmp_path)


@pytest.mark.parametrize("files", [("data_batch_1", "batches.meta"), ("train", "test", "meta")])
def test_the_pickled_version_is_never_opened(tmp_path, files):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    for file in files:
        (tmp_path / file).write_bytes(pickle.dumps(Bomb()))
    refused(r"a pickle, and reading a pickle runs the code in it; get the binary version \(cifar-10-binary", tmp_path)
    refused("is a pickle, which is never read", tmp_path / files[0])


def test_other_folders(tmp_path):
    refused("holds no data that can be read; allowed: MNIST's idx files", tmp_path)
