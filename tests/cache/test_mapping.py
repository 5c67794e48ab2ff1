"""A file is mapped where it lies, and a pickled array says where that is."""

import gzip
import hashlib
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.cache import fetch, mapped
from tests.support.web_host import DATA, Host


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_PAUSE", 0)
    return tmp_path / "cache"


def bins(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


def put(url: str, data: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)
    return url


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_local_file_is_mapped_where_it_lies(prefix: str, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    array = mapped(f"{prefix}{tmp_path}/file", sha256=hashlib.sha256(DATA).hexdigest())
    assert array.tobytes() == DATA
    assert not array.flags.writeable
    assert array.source is not None
    assert array.source.path == f"{tmp_path}/file"
    assert not folder.exists()
    (tmp_path / "file").write_bytes(b"")
    assert len(mapped(f"{tmp_path}/file", decompress=True)) == 0
    with pytest.raises(FileNotFoundError):
        mapped(f"{tmp_path}/other")
    with pytest.raises(OSError, match="is not a file"):
        mapped(str(tmp_path))


def test_a_changed_file_is_fetched_again_and_the_old_one_stays_with_its_readers(storage: str, folder: Path) -> None:
    (folder.parent / "run").mkdir()
    url = put(f"{storage}/file", gzip.compress(DATA))
    old = mapped(url, decompress=True)
    put(url, gzip.compress(DATA[::-1]))
    new = mapped(url, decompress=True)
    assert new.tobytes() == DATA[::-1]
    assert pickle.loads(pickle.dumps(old)).tobytes() == DATA, "its workers read what it reads"
    for path in bins(folder):
        path.unlink()
    assert old.tobytes() == DATA
    with pytest.raises(OSError, match="changed or removed since it was mapped"):
        pickle.loads(pickle.dumps(old))


def test_a_pickled_array_says_where_it_lies(host: Host, tmp_path: Path) -> None:
    array = mapped(host.url)
    views = (array, array[1:].view(">u4"), array[:3_000_000].reshape(3000, 1000)[5::7, ::-2].T, array[5:5])
    for view in views:
        data = pickle.dumps(view)
        assert len(data) < 1500
        again = pickle.loads(data)
        assert np.array_equal(again, view)
        assert again.dtype == view.dtype
        assert not again.size or not again.flags.writeable
    computed = array[[1, 2, 3]] + np.uint8(1)
    assert np.array_equal(pickle.loads(pickle.dumps(computed)), computed)
    assert computed.source is None
    (tmp_path / "file").write_bytes(DATA)
    local = pickle.dumps(mapped(f"{tmp_path}/file"))
    assert pickle.loads(local).tobytes() == DATA
    (tmp_path / "file").write_bytes(DATA[::-1])
    with pytest.raises(OSError, match="changed or removed"):
        pickle.loads(local)
