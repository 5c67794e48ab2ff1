"""Whatever botocore reaches the saver reaches: s3fs and obstore by the same endpoint, region, trust and proxies."""

import datetime
import http.server
import ipaddress
import os
import re
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import fsspec
import pytest
from botocore.awsrequest import AWSResponse
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.checkpoint.transfer import open_ranges, open_writer
from pipeline.run.run_dir import RunDir
from pipeline.run.s3_client import locate
from tests.support.s3_front import FOUND, Front, fronted


@pytest.fixture
def front(s3: str) -> Iterator[Callable[..., http.server.ThreadingHTTPServer]]:
    """Starts servers in front of the S3 server."""
    with ExitStack() as stack:

        def start(region: str | None = None, context: ssl.SSLContext | None = None) -> http.server.ThreadingHTTPServer:
            behind = urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
            kind = type("Kind", (Front,), {"behind": behind, "region": region, "seen": []})
            return stack.enter_context(fronted(kind, context))

        yield start


@pytest.fixture(autouse=True)
def _alone(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user without settings, and clients that no other test has made."""
    for name in ("AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def address(server: http.server.ThreadingHTTPServer, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.server_port}"


def carries(url: str) -> None:
    """Write by the saver's way and read by that of small files, and the other way round."""
    run = RunDir(f"{url}/{uuid.uuid4().hex[:12]}/run")
    assert run.s3 is not None
    writer = open_writer(run, "checkpoints/step-00000001.ckpt")
    writer.write(b"weights")
    writer.close()
    assert run.read("checkpoints/step-00000001.ckpt") == b"weights"
    run.write("x.json", b"{}")
    assert bytes(open_ranges(run, "x.json")(0, 2)) == b"{}"


def test_an_endpoint_in_the_services_section_of_the_configuration(
    s3: str, front: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = front()
    (tmp_path / "config").write_text(
        f"[default]\nservices = ours\n[services ours]\ns3 =\n  endpoint_url = {address(server)}\n"
    )
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    carries(s3)
    assert any(request.startswith("PUT") for request in server.RequestHandlerClass.seen)


def test_the_endpoint_of_s3_alone_goes_before_that_of_all_services(
    s3: str, front: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address(front()))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    carries(s3)


def test_credentials_of_a_profile(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    credentials = "".join(f"{name.lower()} = {os.environ[name]}\n" for name in names)
    (tmp_path / "config").write_text(f"[profile lab]\n{credentials}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    carries(s3)


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"])
def test_a_server_whose_certificate_a_private_authority_has_signed(
    s3: str, front: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle, context = private_authority(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address(front(context=context), "https"))
    if name == "ca_bundle":
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {bundle}\n")
    else:
        monkeypatch.setenv(name, str(bundle))
    carries(s3)


@pytest.mark.parametrize("place", ["environment", "configuration"])
def test_checksums_that_not_every_server_takes_are_sent_where_the_user_asks_for_them(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def choice() -> str:
        return str(RunDir(f"{s3}/run").fs.s3.meta.config.request_checksum_calculation)

    assert choice() == "when_required"
    if place == "environment":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    else:
        (tmp_path / "config").write_text("[default]\nrequest_checksum_calculation = when_supported\n")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert choice() == "when_supported"
    assert RunDir(f"{s3}/run").s3 is not None


@pytest.mark.parametrize("region", ["eu-west-1", "ap-south-1"])
def test_a_bucket_outside_the_configured_region(
    s3: str, front: Any, monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address(front(region=region)))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    carries(s3)
    found = locate(s3.removeprefix("s3://"))
    assert found is not None
    assert found.region == region


def test_a_proxy_is_used_by_both(s3: str, front: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = front()
    monkeypatch.setenv("HTTP_PROXY", address(server))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store")
    carries(s3)
    seen = server.RequestHandlerClass.seen
    assert any(re.fullmatch(r"PUT http://store/.*ckpt.*", request) for request in seen)
    assert any(re.fullmatch(r"PUT http://store/.*json.*", request) for request in seen)


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"},
        {"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost,127.0.0.1"},
        {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "*"},
        {"ALL_PROXY": "http://127.0.0.1:9"},
        {"HTTPS_PROXY": "http://127.0.0.1:9"},
    ],
    ids=lambda value: " ".join(f"{name}={text}" for name, text in value.items()),
)
def test_a_proxy_that_is_not_for_this_endpoint_is_used_by_none(
    s3: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    carries(s3)


def test_the_host_holds_the_bucket_where_amazon_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answered(request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, 200, {FOUND: "eu-west-1"}, SimpleNamespace(stream=lambda: iter(())))

    real = botocore.session.Session.create_client

    def create_client(*arguments: Any, **named: Any) -> Any:
        client = real(*arguments, **named)
        client.meta.events.register_last("before-send.s3", answered)
        return client

    monkeypatch.setattr(botocore.session.Session, "create_client", create_client)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")

    def location(bucket: str) -> tuple[str, bool, str]:
        found = locate(bucket)
        assert found is not None
        return found.endpoint, found.in_host, found.region

    assert location("our-bucket") == ("https://our-bucket.s3.eu-west-1.amazonaws.com", True, "eu-west-1")
    assert location("our.bucket") == ("https://s3.eu-west-1.amazonaws.com", False, "eu-west-1")
    (tmp_path / "config").write_text("[default]\nuse_dualstack_endpoint = true\ns3 =\n  addressing_style = path\n")
    assert location("our-bucket") == ("https://s3.dualstack.eu-west-1.amazonaws.com", False, "eu-west-1")


def private_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return the file of an authority's certificate, and a context for a server of 127.0.0.1 that it vouches for."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, issuer: str, key: Any, signer: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
        builder = x509.CertificateBuilder().subject_name(named[0]).issuer_name(named[1]).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
            now + datetime.timedelta(days=1)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(signer, hashes.SHA256())

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("our authority", "our authority", authority, authority, x509.BasicConstraints(True, None))
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = certificate("127.0.0.1", "our authority", key, authority, x509.BasicConstraints(False, None), addresses)
    bundle, served = folder / "authority.pem", folder / "server.pem"
    bundle.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    served.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served)
    return bundle, context
