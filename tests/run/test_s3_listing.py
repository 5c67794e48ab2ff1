"""A bucket is listed and read without s3fs, and whatever else lies in it does not get in the way."""

import time
import uuid
from dataclasses import replace
from typing import Any

import fsspec
import obstore
import pytest
from fsspec.config import conf

from pipeline.run.run_dir import RunDir
from pipeline.run.run_listing import RunTree
from pipeline.run.s3_client import locate
from pipeline.run.s3_listing import S3Folder


@pytest.fixture
def url(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex[:12]}"


def opened(url: str) -> S3Folder:
    folder = S3Folder.open(url)
    assert folder is not None
    return folder


def put(url: str, *names: str) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for name in names:
        bucket, _, key = f"{url.removeprefix('s3://')}/{name}".partition("/")
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=name.encode())


def test_every_object_is_listed_once_however_many_parts_the_listing_has(url: str) -> None:
    names = [f"run-{number:03}{end}" for number in range(0, 60, 3) for end in ("/a", "/b/c", "", "-x", "0/d")]
    put(url, *names, "z", "ä/ö")
    found = list(opened(url).files())
    assert sorted(name for name, *_ in found) == sorted([*names, "z", "ä/ö"])
    assert {name: size for name, size, _ in found} == {name: len(name.encode()) for name in [*names, "z", "ä/ö"]}
    assert all(abs(time.time() - modified) < 600 for *_, modified in found)


def test_pages_of_a_listing_follow_one_another(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{folder}/{number}" for folder in "abcdefgh" for number in range(5)]
    put(url, *names)
    real = obstore.list

    def short(*given: Any, **named: Any) -> Any:
        return real(*given, **{**named, "chunk_size": 2})

    monkeypatch.setattr(obstore, "list", short)
    assert sorted(name for name, *_ in opened(url).files()) == names


def test_the_prefix_is_a_folder(url: str) -> None:
    put(url, "one/x", "one-more/x", "one")
    assert [name for name, *_ in opened(f"{url}/one/").files()] == ["x"]
    assert opened(f"{url}//one/").url == f"{url}/one"


def test_what_is_read_comes_in_the_order_that_was_asked_for(url: str) -> None:
    put(url, *(f"{number}" for number in range(20)))
    answers = opened(url).contents(["7", "none", "3", "ä", *map(str, range(20))])
    came = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    assert came[0] == b"7"
    assert came[2] == b"3"
    assert isinstance(came[1], FileNotFoundError)
    assert came[4:] == [f"{number}".encode() for number in range(20)]


@pytest.mark.parametrize("name", ["foreign//double", "foreign/", "foreign/../up", "foreign/./here", " ", "%2F"])
def test_an_object_of_a_strange_name_hides_no_run(url: str, name: str) -> None:
    RunDir(f"{url}/run").write("fit.yaml", b"1")
    put(url, name)
    tree = RunTree(url)
    listings = tree.listings()
    assert [each.url for each in listings] == [f"{url}/run"]
    assert [data for *_, data in tree.read((each, "fit.yaml") for each in listings)] == [b"1"]


def test_a_store_that_does_not_list_in_order_is_listed_by_fsspec(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{folder}/fit.yaml" for folder in "abcdefgh"]
    put(url, *names)
    real = obstore.list

    def unordered(*given: Any, **named: Any) -> Any:
        return real(*given, **{**named, "offset": None})

    monkeypatch.setattr(obstore, "list", unordered)
    with pytest.raises(NotImplementedError):
        list(opened(url).files())
    assert [each.url for each in RunTree(url).listings()] == [f"{url}/{name[0]}" for name in names]


def test_what_fsspec_s_own_configuration_says_only_fsspec_knows(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conf, "s3", {"anon": True})
    assert S3Folder.open(url) is None
    assert S3Folder.open("runs/x") is None
    assert S3Folder.open("file:///x") is None


def test_the_clock_is_the_storage_s(url: str) -> None:
    location = locate(url.split("/")[2])
    assert location is not None
    assert -3 < location.ahead < 3, "this host's own, or one that is set like it"
    for ahead in (0, 3600, -3600):
        now = S3Folder(replace(location, ahead=ahead), "").now
        assert now - time.time() == pytest.approx(ahead - 1, abs=1)
