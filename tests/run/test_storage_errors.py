"""An outage is retried and never status 2; what the user must change is status 2, wherever it is met."""

import errno
import gzip
import json
import socket
import ssl
import urllib.error
from collections.abc import Callable
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions as boto
import obstore.exceptions
import pytest
import requests
import urllib3
from s3fs.errors import translate_boto_error
from yarl import URL

from pipeline.cache import mapped
from pipeline.checkpoint.foreign import digest
from pipeline.commands.command_parser import readable_run
from pipeline.commands.drill.options import require_new
from pipeline.config.saved_config import with_run_config
from pipeline.errors import StorageAway, UserError
from pipeline.run.lease import Lease
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import StorageFault, classify, http_status, is_away, raise_for_user
from pipeline.training.state.run_state import read_run_state


def client_error(code: str, status: int) -> Exception:
    """What botocore raises of an answer of S3."""
    answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(answer, "GetObject")


def http_error(status: int) -> Exception:
    """What aiohttp raises of an answer."""
    request = aiohttp.RequestInfo(URL("http://x"), "GET", Any, URL("http://x"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(request, (), status=status)


def answered(status: int) -> requests.Response:
    answer = requests.Response()
    answer.status_code = status
    return answer


AWAY = [
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ConnectionResetError(),
    TimeoutError(),
    TimeoutError(),
    socket.gaierror(-3, "Temporary failure in name resolution"),
    OSError(errno.EIO, "I/O"),
    OSError(errno.ESTALE, "stale"),
    OSError(errno.EHOSTUNREACH, "no route to host"),
    OSError(errno.EAGAIN, "try again"),
    boto.EndpointConnectionError(endpoint_url="http://x"),
    boto.ConnectTimeoutError(endpoint_url="http://x"),
    boto.ReadTimeoutError(endpoint_url="http://x"),
    boto.ConnectionClosedError(endpoint_url="http://x"),
    boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    IncompleteRead(b""),
    client_error("InternalError", 500),
    client_error("SlowDown", 503),
    client_error("ServiceUnavailable", 503),
    client_error("RequestTimeout", 408),
    client_error("TooManyRequests", 429),
    translate_boto_error(client_error("SlowDown", 503)),
    translate_boto_error(client_error("InternalError", 500)),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("cut"),
    http_error(502),
    http_error(429),
    obstore.exceptions.GenericError("Generic S3 error: error sending request"),
    urllib.error.HTTPError("http://x", 503, "Service Unavailable", Message(), None),
    requests.exceptions.ConnectTimeout(),
    requests.exceptions.ChunkedEncodingError(),
    requests.exceptions.HTTPError(response=answered(502)),
    urllib3.exceptions.MaxRetryError(urllib3.HTTPConnectionPool("x"), "/"),
    boto.MetadataRetrievalError(error_msg="timed out"),
    StorageAway("for a minute"),
]
REFUSED = [
    PermissionError(errno.EACCES, "denied"),
    FileNotFoundError("The specified bucket does not exist"),
    NotADirectoryError(errno.ENOTDIR, "not a directory"),
    OSError(errno.EROFS, "read-only"),
    OSError(errno.ENOSPC, "full"),
    boto.NoCredentialsError(),
    client_error("AccessDenied", 403),
    client_error("NoSuchBucket", 404),
    client_error("NotImplemented", 501),
    translate_boto_error(client_error("AccessDenied", 403)),
    translate_boto_error(client_error("SignatureDoesNotMatch", 403)),
    http_error(403),
    obstore.exceptions.PermissionDeniedError("denied"),
    obstore.exceptions.NotFoundError("gone"),
    ValueError("Parameter validation failed: Invalid bucket name"),
    urllib.error.HTTPError("http://x", 404, "Not Found", Message(), None),
    requests.exceptions.HTTPError(response=answered(403)),
    ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate in certificate chain"),
    boto.SSLError(endpoint_url="https://x", error="[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    obstore.exceptions.GenericError("error sending request: invalid peer certificate: UnknownIssuer"),
]
DAMAGED = [
    json.JSONDecodeError("x", "y", 0),
    UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
    EOFError(),
    gzip.BadGzipFile("x"),
]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(each, StorageFault.AWAY) for each in AWAY]
    + [(each, StorageFault.REFUSED) for each in REFUSED]
    + [(each, StorageFault.DAMAGED) for each in DAMAGED],
    ids=lambda value: value.name if isinstance(value, StorageFault) else type(value).__name__,
)
def test_an_error_is_classified_by_itself_and_below_another(error: Exception, kind: StorageFault) -> None:
    assert classify(error) is kind
    outer = OSError("s3://b/x cannot be read")
    outer.__cause__ = error
    assert classify(outer) is kind
    assert is_away(outer) == (kind is StorageFault.AWAY)
    with pytest.raises(StorageAway if kind is StorageFault.AWAY else UserError) as caught:
        raise_for_user(error, "run_dir='x' cannot be read", "Fix it")
    assert isinstance(error, StorageAway) or "run_dir='x' cannot be read: " in str(caught.value)
    if kind is not StorageFault.AWAY:
        assert str(caught.value).endswith(("Fix it", "give another place"))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EROFS, "mount it for writing"),
        (errno.EACCES, "Fix the permissions"),
    ],
)
def test_a_refusal_says_what_to_do_about_it(number: int, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        raise_for_user(OSError(number, "refused"), "run_dir='x' cannot be written", "Fix the permissions")


def test_a_status_is_found_behind_what_clients_make_of_it() -> None:
    assert http_status(translate_boto_error(client_error("PreconditionFailed", 412))) == 412
    assert http_status(http_error(404)) == 404
    assert http_status(ValueError()) is None


PLACES: dict[str, Callable[[str], Any]] = {
    "the lease": lambda url: Lease.take(RunDir(url), "launch"),
    "the nonce": lambda url: RunDir(url).write_nonce(),
    "the head of a checkpoint": lambda url: read_run_state(f"{url}/x.ckpt"),
    "the run's configuration": lambda url: with_run_config("test", ["--run_dir", url]),
    "a foreign checkpoint": lambda url: digest(f"{url}/x.ckpt"),
    "a run that a command reads": readable_run,
    "the directory of a drill": lambda url: require_new(RunDir(url)),
}


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let every call of the storage end with this error."""
    from tests.support.ram import RamFileSystem

    def raises(*_: Any, **__: Any) -> Any:
        raise error

    for name in ("cat_file", "cat_ranges", "info", "ls", "open", "pipe_file", "rm_file"):
        monkeypatch.setattr(RamFileSystem, name, raises)


@pytest.mark.parametrize("place", PLACES)
def test_an_outage_is_never_status_2_and_a_refusal_always_is(
    other_storage: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    with pytest.raises(StorageAway, match="Connection refused"):
        PLACES[place](other_storage)
    fail(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(UserError, match="Permission denied"):
        PLACES[place](other_storage)


def test_an_outage_while_a_file_of_the_user_s_is_fetched_can_be_told_from_a_refusal(
    other_storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    fail(monkeypatch, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    with pytest.raises(OSError, match="cannot be read") as caught:
        mapped(f"{other_storage}/x")
    assert is_away(caught.value)
    fail(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError) as refused:
        mapped(f"{other_storage}/x")
    assert not is_away(refused.value)


def test_a_dataset_whose_storage_does_not_answer_is_a_crash_and_one_that_is_missing_is_status_2(
    app: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: Exception) -> None:
        def build(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("pipeline.examples.digits.files", build)

    fit = ("fit", "--config=pipeline/configs/digits.yaml", "--run_dir", tmp_path, "--away_limit=0")
    raises(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    ended = app(*fit)
    assert ended.status == 1, ended.err
    assert "what data, model or trainer read has not answered for 0 s (--away_limit): ConnectionReset" in ended.err
    assert "Traceback" not in ended.err
    raises(FileNotFoundError("digits.csv does not exist"))
    ended = app(*fit)
    assert ended.status == 2, ended.err
    assert "digits.csv does not exist" in ended.err
