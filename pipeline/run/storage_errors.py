"""What an error of any storage means: the storage is away, it refuses, or what it returned is damaged.

Every place that turns a storage's error into an exit status asks here. An outage is a crash that is retried; only what
the user must change ends a run with status 2.
"""

import errno
import gzip
import json
import pickle
import re
import socket
import ssl
import zipfile
import zlib
from enum import Enum
from typing import NoReturn

from pipeline.errors import StorageAway, UserError, chain
from pipeline.errors import in_one_line as storage_error


class StorageFault(Enum):
    """Which kind of error a storage raised."""

    AWAY = "away"
    """No answer, or the server's own failure: the same call may succeed later."""
    REFUSED = "refused"
    """An answer that stays the same until the user changes a name, a permission, a credential or a quota."""
    DAMAGED = "damaged"
    """The bytes came, and are not what they should be."""


_AWAY_ERRNOS = (
    errno.EBUSY,
    errno.EIO,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ESTALE,
    getattr(errno, "EREMOTEIO", errno.EIO),
)
"""Of a network disk, and of s3fs for a server that is busy or fails; Python has classes for the other ones."""
_AWAY_STATUSES = (408, 425, 429)
_AWAY_CLASSES = {
    "ChunkedEncodingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "CredentialRetrievalError",
    "DeadlineExceeded",
    "GenericError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "MaxRetryError",
    "MetadataRetrievalError",
    "NewConnectionError",
    "ProtocolError",
    "RemoteDisconnected",
    "ServiceUnavailable",
    "Timeout",
    "TimeoutError",
    "TransportError",
}
"""Of aiohttp, botocore, google-api-core, httpx, obstore, requests and urllib3, which need not be installed. obstore has
a class of its own for each refusal, and GenericError for a connection that failed or a server that kept failing."""
_NO_TRUST = re.compile(r"certificate.verify.failed|invalid peer certificate|certificate verify", re.IGNORECASE)
"""What clients say of a certificate that the user's CA bundle does not vouch for: no later call will succeed."""
_DAMAGED_CLASSES = (
    EOFError,
    UnicodeDecodeError,
    gzip.BadGzipFile,
    json.JSONDecodeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


_ADVICE = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "Free some space there, raise the quota, or give another place",
    (errno.EROFS,): "It is mounted read-only: mount it for writing, or give another place",
    (errno.ENAMETOOLONG,): "Give a shorter name",
}


def classify(error: BaseException) -> StorageFault:
    """Classify an error by its whole chain, since clients wrap what the network said in errors of their own."""
    causes = chain(error)
    if any(isinstance(each, ssl.SSLCertVerificationError) or _NO_TRUST.search(str(each)) for each in causes):
        return StorageFault.REFUSED
    if any(_is_outage(each) for each in causes):
        return StorageFault.AWAY
    if any(isinstance(each, _DAMAGED_CLASSES) for each in causes):
        return StorageFault.DAMAGED
    return StorageFault.REFUSED


def is_away(error: BaseException) -> bool:
    """Return whether the same call may succeed later, without the user changing anything."""
    return classify(error) is StorageFault.AWAY


def describe_outage(error: BaseException) -> str:
    """Return in one line the client's error that means an outage, not what a library that has no errors for it made."""
    found = (each for each in chain(error) if _is_outage(each) and type(each) not in (ValueError, RuntimeError))
    return storage_error(next(found, error))


def raise_for_user(error: BaseException, what: str, advice: str) -> NoReturn:
    """Raise what an error of a storage means for the user.

    Args:
        error: As the storage raised it.
        what: What could not be done, such as `run_dir='s3://b/x' cannot be read`.
        advice: What the user must change where the storage refuses.

    Raises:
        StorageAway: The storage does not answer: a crash, which is retried.
        UserError: It refuses, or what it holds is damaged: status 2.
    """
    if isinstance(error, (StorageAway, UserError)):
        raise error
    if is_away(error):
        raise StorageAway(f"{what}: the storage does not answer: {storage_error(error)}") from error
    raise UserError(f"{what}: {storage_error(error)}. {_specific_advice(error) or advice}") from error


def _specific_advice(error: BaseException) -> str | None:
    """Return what an error says by itself that the user must change."""
    numbers = {each.errno for each in chain(error) if isinstance(each, OSError)}
    return next((advice for known, advice in _ADVICE.items() if numbers & set(known)), None)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of any client of HTTP, None for any other error."""
    cause = error.__cause__ or error
    answer = getattr(cause, "response", None)
    if isinstance(answer, dict):  # botocore's
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # aiohttp's, urllib's and google-api-core's, azure's; requests' and httpx's have it in their answer.
    found = [answer, *(getattr(of, name, None) for of in (cause, answer) for name in ("status", "code", "status_code"))]
    return next((int(each) for each in found if isinstance(each, int) and 100 <= each < 600), None)


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, (StorageAway, ConnectionError, TimeoutError, BlockingIOError, socket.gaierror)):
        return True
    status = http_status(error) or 0
    if status in _AWAY_STATUSES or (status >= 500 and status != 501):  # 501: this store will never do it
        return True
    if isinstance(error, OSError) and error.errno in _AWAY_ERRNOS:
        return True
    return any(kind.__name__ in _AWAY_CLASSES for kind in type(error).__mro__)
