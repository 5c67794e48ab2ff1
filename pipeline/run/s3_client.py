"""How a bucket is reached: endpoint, region, credentials, certificates, proxy and addressing, as botocore says.

s3fs asks botocore by itself. obstore, which moves checkpoints, knows a part of the environment and nothing of the AWS
configuration, so it is given botocore's answers: what one of them reaches, the other does, too.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.run.storage_errors import is_away

_PROFILE = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
_DEFAULT_REGION = "us-east-1"
_TIMEOUT = timedelta(seconds=300)
"""Of one request: a part of a large file may take minutes."""
_RETRIES: Any = {"max_retries": 10, "retry_timeout": timedelta(seconds=180)}
"""Of a request that a server does not answer, or by an error of its own, before anybody hears of it."""


@dataclass(frozen=True)
class S3Location:
    """How botocore reaches a bucket.

    Attributes:
        bucket: Its name.
        endpoint: The URL before `/<bucket>/<key>`, or before `/<key>` where the host name holds the bucket.
        in_host: Whether it does.
        region: Of the bucket, by which requests are signed.
        credentials: botocore's, which renew themselves.
        certificates: The file of the certificate authorities to trust beside the system's; None: only those.
        proxy: The URL of the proxy for this endpoint; None: no proxy.
        ahead: Seconds by which the storage's clock is ahead of this host's, to the second.
    """

    bucket: str
    endpoint: str
    in_host: bool
    region: str
    credentials: Any
    certificates: str | None
    proxy: str | None
    ahead: float = 0.0

    def object_store(self) -> Any:
        """Return an obstore client of the bucket."""
        from obstore.store import S3Store  # noqa: PLC0415 - part of the extra for S3

        options: dict[str, Any] = {"allow_http": self.endpoint.startswith("http:"), "timeout": _TIMEOUT}
        # Without a proxy of its own obstore asks the environment: name one that is not for this host.
        options["proxy_url"] = self.proxy or "http://none.invalid"
        if self.proxy is None:
            options["proxy_excludes"] = str(urlsplit(self.endpoint).hostname)
        if self.certificates is not None:
            options["root_certificate"] = Path(self.certificates).read_bytes()
        make: Any = S3Store
        return make(
            self.bucket,
            endpoint=self.endpoint,
            virtual_hosted_style_request=self.in_host,
            region=self.region,
            credential_provider=self._credentials,
            client_options=options,
            retry_config=_RETRIES,
        )

    def _credentials(self) -> dict[str, Any]:
        now = self.credentials.get_frozen_credentials()
        found = {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token}
        # botocore renews those of a role by itself: ask it again soon.
        return {**found, "expires_at": datetime.now(UTC) + timedelta(minutes=5)}


def profile() -> dict[str, Any]:
    """Return what the AWS configuration says of the profile in use; nothing where there is none."""
    files = [os.path.expanduser(os.environ.get(name, default)) for name, default in _FILES.items()]
    return _profile(*(os.environ.get(name) for name in _PROFILE), *((path, _version(path)) for path in files))


def _version(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        state = os.stat(path)
        return state.st_mtime_ns, state.st_size
    return None


@cache
def _profile(*_of: Any) -> dict[str, Any]:
    """Read the profile once for each choice of it, and each state of the files: it takes a tenth of a second."""
    try:
        import botocore.session  # noqa: PLC0415 - comes with s3fs
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    except ImportError:
        return {}
    try:
        return dict(botocore.session.Session().get_scoped_config())
    except BotoCoreError:  # a profile that is not there: whoever opens a connection says so
        return {}


def locate(bucket: str) -> S3Location | None:
    """Ask botocore how it reaches a bucket; return None without credentials.

    Raises:
        Exception: The storage does not answer.
    """
    import botocore.session  # noqa: PLC0415 - comes with s3fs
    from botocore.utils import get_environ_proxies  # noqa: PLC0415

    session = botocore.session.Session()
    credentials = session.get_credentials()
    if credentials is None:
        return None
    sent: list[str] = []
    client = session.create_client("s3")
    # What is sent last went to the bucket's own region, by all rules of botocore's: dual stack, names with dots, ...
    client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.url))
    headers = _headers(client, bucket)
    region = headers.get("x-amz-bucket-region") or client.meta.region_name or _DEFAULT_REGION
    url = urlsplit(sent[-1])
    path = url.path.rstrip("/")
    in_host = not path.endswith(f"/{bucket}")
    endpoint = f"{url.scheme}://{url.netloc}{path if in_host else path.removesuffix(f'/{bucket}')}"
    return S3Location(
        bucket=bucket,
        endpoint=endpoint,
        in_host=in_host,
        region=region,
        credentials=credentials,
        certificates=session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE"),
        proxy=get_environ_proxies(endpoint).get(url.scheme),
        ahead=_seconds_ahead(headers.get("date")),
    )


def _headers(client: Any, bucket: str) -> dict[str, str]:
    """Return the headers of an answer about a bucket: they tell its region, also those of a refusal, and the time."""
    from botocore.exceptions import ClientError  # noqa: PLC0415

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if is_away(error):
            raise
        answer = error.response
    return dict(answer["ResponseMetadata"].get("HTTPHeaders", {}))


def _seconds_ahead(date: str | None) -> float:
    with suppress(TypeError, ValueError):
        return (parsedate_to_datetime(str(date)) - datetime.now(UTC)).total_seconds()
    return 0.0
