"""Data of the experiments: tiny files in each set's own format, damaged and missing ones, augmentation against plain loops."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from experiments.data import imagenet as imagenet_files
from experiments.data.augment import EpochDraws, normalised, windows
from experiments.data.base import Batches, DataError, Where
from experiments.data.sets import InMemory, open_source, shape_of
from experiments.settings import Data

torchvision = pytest.importorskip("torchvision.datasets")
RANDOM = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Three batches of five images, pickled as CIFAR-10's python version is."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        content[name] = RANDOM.integers(0, 256, (5, 3072), dtype=np.uint8), RANDOM.integers(0, 10, 5).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": content[name][0], "labels": content[name][1]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    kind = torchvision.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[n, md5(folder / n)] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "batches.meta")})
    return tmp_path, content


def test_cifar_is_read_as_written(cifar: tuple[Path, dict[str, Any]]) -> None:
    root, content = cifar
    source = open_source(Data(name="cifar10"), Where(root))
    assert isinstance(source, InMemory)
    pixels = np.concatenate([content["data_batch_1"][0], content["data_batch_2"][0]]).reshape(10, 3, 32, 32)
    assert source.images.numpy().tolist() == pixels.tolist()
    assert source.test_labels.tolist() == content["test_batch"][1]
    x, _ = next(source.test(5))
    expected = (content["test_batch"][0].reshape(5, 3, 32, 32)[:, 1] / 255 - 0.4822) / 0.1994
    np.testing.assert_allclose(x[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_missing_and_damaged_files_are_named(cifar: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, _ = cifar
    damaged = root / "cifar-10-batches-py" / "data_batch_2"
    checksum = md5(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(
        DataError, match=f"data_batch_2 in .* is damaged: its MD5 is {md5(damaged)}, expected {checksum}"
    ):
        open_source(Data(name="cifar10"), Where(root))
    damaged.unlink()
    with pytest.raises(DataError, match=f"data_batch_2 \\(MD5 {checksum}\\) is missing in .*--download.*--data-root"):
        open_source(Data(name="cifar10"), Where(root))


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.SVHN, "__init__", refuse)
    with pytest.raises(
        DataError, match=r"fetching http.* failed \(no route to host\)\. Put the files into .*svhn by hand"
    ):
        open_source(Data(name="svhn"), Where(tmp_path, download=True))


def test_svhn_is_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    (tmp_path / "svhn").mkdir()
    pixels, splits = {}, {}
    for split in ("train", "test"):
        pixels[split] = RANDOM.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
        file = tmp_path / "svhn" / f"{split}_32x32.mat"
        scipy_io.savemat(file, {"X": pixels[split], "y": np.array([[1], [10], [3], [9]], np.uint8)})
        splits[split] = ["http://nowhere", file.name, md5(file)]
    monkeypatch.setattr(torchvision.SVHN, "split_list", splits)
    source = open_source(Data(name="svhn"), Where(tmp_path))
    assert isinstance(source, InMemory)
    assert source.labels.tolist() == [1, 0, 3, 9]  # the file's 10 is the digit 0
    assert source.test_images[2, :, 5, 7].tolist() == pixels["test"][5, 7, :, 2].tolist()


def test_emnist_is_unpacked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images = {part: RANDOM.integers(0, 256, (3, 28, 28), dtype=np.uint8) for part in ("train", "test")}
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        for part, pixels in images.items():
            idx = struct.pack(">HBBIII", 0, 8, 3, 3, 28, 28) + pixels.tobytes()
            archive.writestr(f"gzip/emnist-balanced-{part}-images-idx3-ubyte.gz", gzip.compress(idx))
            labels = struct.pack(">HBBI", 0, 8, 1, 3) + bytes([46, 0, 7])
            archive.writestr(f"gzip/emnist-balanced-{part}-labels-idx1-ubyte.gz", gzip.compress(labels))
    with pytest.raises(DataError, match=r"gzip\.zip in .* is damaged"):
        open_source(Data(name="emnist"), Where(tmp_path))
    monkeypatch.setattr(torchvision.EMNIST, "md5", md5(raw / "gzip.zip"))
    for _ in range(2):  # from the archive, then from what was unpacked
        source = open_source(Data(name="emnist"), Where(tmp_path))
        assert isinstance(source, InMemory)
        assert source.images[:, 0].numpy().tolist() == images["train"].tolist()
        assert source.test_labels.tolist() == [46, 0, 7]
    (raw / "emnist-balanced-test-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read .* with --download"):
        open_source(Data(name="emnist"), Where(tmp_path))


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((260 + 40 * number, 300, 3), 60 + 120 * label, np.uint8)
                image.fromarray(pixels).save(folder / f"{name}_{number}.JPEG")
    return tmp_path


def test_imagenet_from_a_folder(imagenet: Path) -> None:
    source = open_source(Data(name="imagenet", augment="crop_flip"), Where(imagenet, workers=0))
    assert (source.train_size, source.test_size) == (6, 4)
    x, y = next(source.test(4))
    assert x.shape == (4, 3, 224, 224) and y.tolist() == [0, 0, 1, 1]
    assert x[0].mean() < x[2].mean()
    whole = list(source.train(5, 1, Batches(2, 0, 3)))
    assert sorted(torch.cat([y for _, y in whole]).tolist()) == [0, 0, 0, 1, 1, 1]
    (later,) = source.train(5, 1, Batches(2, 2, 3))
    assert later[0].equal(whole[2][0]) and later[1].equal(whole[2][1])


def test_imagenet_that_is_missing_or_damaged(imagenet: Path) -> None:
    with pytest.raises(DataError, match=r"has no folder 'train', and not the archives ILSVRC2012_img_train\.tar \(MD5"):
        open_source(Data(name="imagenet"), Where(imagenet / "elsewhere"))
    damaged = next((imagenet / "imagenet" / "val" / "n01440764").iterdir())
    damaged.write_bytes(b"not a picture")
    source = open_source(Data(name="imagenet"), Where(imagenet, workers=0))
    with pytest.raises(DataError, match=f"{damaged.name} cannot be decoded"):
        list(source.test(4))


@pytest.mark.parametrize("mode,kind", [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "PNG")])
def test_both_decoders_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, kind: str
) -> None:
    """ImageNet holds JPEGs in CMYK and grey, and a PNG under the name .JPEG, which only PIL takes."""
    image = pytest.importorskip("PIL.Image")
    torchcodec = pytest.importorskip("torchcodec.decoders")
    path = tmp_path / "image.JPEG"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    image.fromarray(pixels).convert(mode).save(path, kind)
    taken: list[str] = []
    for name in ("_jpeg_decoder", "_decoded_by_pil"):
        inner = getattr(imagenet_files, name)
        monkeypatch.setattr(imagenet_files, name, lambda *a, name=name, inner=inner: taken.append(name) or inner(*a))
    found = imagenet_files._decoded(str(path))
    assert imagenet_files._jpeg_decoder() is torchcodec.decode_jpeg
    assert ("_decoded_by_pil" in taken) == (kind == "PNG")
    assert found.shape == (3, 180, 220) and found.dtype == torch.uint8
    monkeypatch.setattr(imagenet_files, "_jpeg_decoder", lambda: None)
    assert imagenet_files._decoded(str(path)).equal(found)


def test_an_empty_folder_of_imagenet_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).mkdir(parents=True)
    with pytest.raises(DataError, match="train holds no folders of images, one per class"):
        open_source(Data(name="imagenet"), Where(tmp_path))


def test_digits_need_no_file(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    source = open_source(Data(name="digits"), Where(tmp_path))
    assert (source.train_size, source.test_size) == (1437, 360)
    x, y = next(source.test(360))
    assert x.shape == (360, 1, 28, 28) and set(y.tolist()) == set(range(10))
    assert abs(float(x.mean())) < 0.1 and abs(float(x.std()) - 1) < 0.1


def test_mazes_are_moved_with_their_solutions() -> None:
    data = Data(name="mazes", cells=5, train_count=20, test_count=6)
    source = open_source(data, Where())
    x, y = next(source.train(0, 0, Batches(20, 0, 1)))
    assert x.shape == (20, 3, 32, 32) and y.shape == (20, 32, 32) and set(x.unique().tolist()) == {0.0, 1.0}
    assert bool((x.amax(1)[y == 1] == 1).all())  # every solution pixel is free
    corners = torch.stack([torch.nonzero(image.amax(0))[:, 0].min() for image in x])
    assert corners.min() >= 1 + 2 and corners.unique().numel() > 3  # 5 cells: 22 pixels, offset 5, moved by up to 4
    assert all(a.equal(b) for a, b in zip(next(source.test(6)), next(source.test(6)), strict=True))


def test_mazes_at_one_pixel_per_unit() -> None:
    data = Data(name="mazes", cells=3, canvas=0, posts="closed", train_count=8, test_count=4)
    x, y = next(open_source(data, Where()).test(4))
    assert shape_of(data) == (3, 7, 2) and x.shape == (4, 3, 7, 7) and y.shape == (4, 7, 7)


def naive_window(image: Tensor, top: int, left: int, flip: bool, shift: int) -> Tensor:
    padded = torch.zeros(image.shape[0], image.shape[1] + 2 * shift, image.shape[2] + 2 * shift, dtype=image.dtype)
    padded[:, shift : shift + image.shape[1], shift : shift + image.shape[2]] = image
    cut = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return cut.flip(2) if flip else cut


@given(st.integers(1, 5), st.integers(0, 3), st.booleans(), st.integers(0, 2**16))
def test_each_image_has_its_own_window(count: int, shift: int, flip: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 2, 5, 6), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count, 5, 6), generator=generator)
    draws = EpochDraws.of(count, seed, 0, shift, flip)
    cut, same = windows(images, labels[:, 0, 0], draws, shift)
    assert same.equal(labels[:, 0, 0])
    for i in range(count):
        top, left, mirrored = int(draws.top[i]), int(draws.left[i]), bool(draws.flip[i])
        assert cut[i].equal(naive_window(images[i], top, left, mirrored, shift))
    unmirrored = EpochDraws(draws.order, draws.top, draws.left, torch.zeros_like(draws.flip))
    moved, maps = windows(images, labels, unmirrored, shift)
    for i in range(count):
        assert maps[i].equal(naive_window(labels[i][None], int(draws.top[i]), int(draws.left[i]), False, shift)[0])
        assert moved[i].equal(naive_window(images[i], int(draws.top[i]), int(draws.left[i]), False, shift))


def test_draws_are_uniform_and_repeatable() -> None:
    draws = EpochDraws.of(4500, 3, 7, 4, True)
    assert sorted(draws.order.tolist()) == list(range(4500))
    for values in (draws.top, draws.left):
        counts = torch.bincount(values, minlength=9)
        assert len(counts) == 9 and counts.min() > 400 and counts.max() < 600
    assert 0.45 < float(draws.flip.double().mean()) < 0.55
    assert all(a.equal(b) for a, b in zip(draws, EpochDraws.of(4500, 3, 7, 4, True), strict=True))
    assert not draws.order.equal(EpochDraws.of(4500, 3, 8, 4, True).order)
    assert not draws.order.equal(EpochDraws.of(4500, 4, 7, 4, True).order)


def test_processes_share_a_batch_and_restarts_find_it() -> None:
    data = Data(name="digits", augment="crop_flip")
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    source = InMemory(data, (images, torch.arange(40)), (images, torch.arange(40)), torch.device("cpu"))
    alone = list(source.train(1, 2, Batches(12, 0, 3)))
    halves = [list(source.train(1, 2, Batches(12, 1, 3, rank, 2))) for rank in (0, 1)]
    for step in (1, 2):
        for part in (0, 1):
            together = torch.cat([halves[rank][step - 1][part] for rank in (0, 1)])
            assert together.equal(alone[step][part])
    seen = torch.cat([y for rank in (0, 1) for _, y in source.test(7, rank, 2)])
    assert sorted(seen.tolist()) == list(range(40))


def test_normalisation_follows_its_formula() -> None:
    images = torch.randint(0, 256, (2, 2, 3, 3), dtype=torch.uint8)
    found = normalised(images, (0.3, 0.6), (0.2, 0.5))
    for channel, (mean, deviation) in enumerate(((0.3, 0.2), (0.6, 0.5))):
        expected = (images[:, channel].double() / 255 - mean) / deviation
        torch.testing.assert_close(found[:, channel].double(), expected, rtol=1e-5, atol=1e-6)
