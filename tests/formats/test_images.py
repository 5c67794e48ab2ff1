"""Pictures in folders, or by a file of labels, on any storage."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data import DataModule
from pipeline.data.pictures import pixels_of
from pipeline.errors import UserError
from pipeline.formats import Images
from tests.support.formats import digits, png, put, write_images

X, Y = digits(48)
ORDER = sorted(range(48), key=lambda at: (Y[at], at))


def test_a_folder_for_each_class(storage: str) -> None:
    dataset = Images(write_images(storage, 48), mode="L")
    assert dataset.classes == [str(number) for number in range(10)]
    assert list(dataset.targets) == [int(Y[at]) for at in ORDER]
    pixels, targets = dataset.__getitems__([3, 0, 47])
    assert targets.tolist() == [int(Y[ORDER[at]]) for at in (3, 0, 47)]
    assert torch.allclose(pixels.flatten(1), torch.from_numpy(X[[ORDER[3], ORDER[0], ORDER[47]]]), atol=1 / 255)
    assert pixels_of(dataset, 3).shape == (8, 8)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.__getitems__([3, 0, 47])[0], pixels)
    assert again.fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_of_labels(form: str, storage: str) -> None:
    for at, name in enumerate(("b.png", "a/a.png", "c.png")):
        put(f"{storage}/{name}", png((X[at].reshape(8, 8) * 255).astype(np.uint8)))
    text = "file,label\nb.png,dog\na/a.png,cat\n" if form == "csv" else json.dumps({"b.png": "dog", "a/a.png": "cat"})
    labels = put(f"{storage}.{form}", text.encode())
    dataset = Images(storage, labels)
    assert (dataset.classes, len(dataset), list(dataset.targets)) == (["cat", "dog"], 2, [0, 1]), "c.png has no label"
    assert dataset[1][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\nb.pgn,dog\n", r"1 of 1 files are not in .*'b\.pgn'; did you mean 'b\.png'"),
        ("file,label\n", "it has 1 rows"),
        ("file,label\nb.png\n", "row 2 has one"),
        ('file,label\n"b.png,dog\n', "is no CSV file"),
        ("file,label\nb.png,1\nb.png,2\n", r"names 'b\.png' twice"),
        ("\x00\x00", "must have a header|is no CSV"),
        ("{", "is no JSON file"),
        ("[1]", "must be a JSON object"),
    ],
)
def test_labels_that_fit_nothing_are_named(text: str, words: str, tmp_path: Path) -> None:
    put(str(tmp_path / "in/b.png"), png(np.zeros((2, 2), np.uint8)))
    name = "l.json" if text[0] in "[{" else "l.csv"
    with pytest.raises(UserError, match=words):
        Images(str(tmp_path / "in"), put(str(tmp_path / name), text.encode()))


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    write_images(str(tmp_path), 48)
    (tmp_path / "10").mkdir()
    put(str(tmp_path / "11/notes.txt"), b"x")
    with pytest.raises(UserError, match="2 classes have no pictures: 10, 11"):
        Images(str(tmp_path))
    assert len(Images(str(tmp_path), classes=[*map(str, range(12))]).classes) == 12, "where the user says so"
    with pytest.raises(UserError, match="has pictures of '9', which is not in classes"):
        Images(str(tmp_path), classes=[*map(str, range(9)), "10", "11"])
    put(str(tmp_path / "loose.png"), b"x")
    with pytest.raises(UserError, match=r"1 pictures lie in no folder of a class, such as loose\.png"):
        Images(str(tmp_path))
    with pytest.raises(UserError, match=r"no file that ends with \.png"):
        Images(str(tmp_path / "11"))


def test_a_damaged_picture_and_several_sizes_are_named(tmp_path: Path) -> None:
    write_images(str(tmp_path), 48)
    victim = next((tmp_path / "3").iterdir())
    victim.write_bytes(victim.read_bytes()[:60])
    dataset = Images(str(tmp_path))
    at = list(dataset.targets).index(3)
    with pytest.raises(UserError, match=rf"3/{victim.name} \(60 bytes\) is no whole picture"):
        dataset.__getitems__([0, at])
    victim.write_bytes(png(np.zeros((9, 5), np.uint8)))
    dataset = Images(str(tmp_path))
    with pytest.raises(UserError, match=r"has 8 x 8 pixels, and .* 9 x 5: a batch needs one size"):
        dataset.__getitems__([0, at])
    assert Images(str(tmp_path), size=(4, 6)).__getitems__([0, at])[0].shape == (2, 3, 4, 6)
    shutil.rmtree(tmp_path / "3")
    with pytest.raises(UserError, match=r"cannot be read: FileNotFoundError"):
        dataset[at]


def flipped(picture: torch.Tensor) -> torch.Tensor:
    return picture.flip(-1) if torch.rand(()) < 0.5 else picture


def test_augmentation_is_the_same_for_a_sample_whatever_the_workers(tmp_path: Path) -> None:
    write_images(str(tmp_path), 48)
    found = []
    for workers in (0, 2):
        data = DataModule(train=Images(str(tmp_path), transform=flipped), batch_size=8, num_workers=workers)
        found.append(torch.cat([batch[0] for batch in data.train_dataloader()]))
    assert torch.equal(*found)
    plain = torch.cat([batch[0] for batch in DataModule(train=Images(str(tmp_path)), batch_size=8).train_dataloader()])
    assert 0 < sum(torch.equal(a, b) for a, b in zip(plain, found[0], strict=True)) < 48
