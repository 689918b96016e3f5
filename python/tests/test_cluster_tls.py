"""An etcd that shows a certificate and asks for one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the cluster is for Linux", allow_module_level=True)

import trustme
from etcd import Etcd, Tls, binary
from llmlb_lock.cluster import (
    AlreadyActive,
    CertificateError,
    Cluster,
    Record,
    Snapshot,
    Unreachable,
)
from support import PATIENCE


def certificates(directory: Path, name: str) -> Tls:
    """A CA, and a certificate by it for 127.0.0.1 that serves and identifies."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    tls = Tls(*(directory / f"{name}-{kind}.pem" for kind in ("ca", "certificate", "key")))
    ca.cert_pem.write_to_path(tls.ca)
    issued.cert_chain_pems[0].write_to_path(tls.certificate)
    issued.private_key_pem.write_to_path(tls.key)
    return tls


def test_with_certificates_each_side_proves_who_it_is(tmp_path: Path) -> None:
    if binary() is None:
        pytest.skip("there is no etcd: run `make test-python`, or set LLMLB_ETCD")
    ours, others = certificates(tmp_path, "ours"), certificates(tmp_path, "others")
    record = Record("chat", "gpu1", 8000)
    with Etcd(ours) as etcd:
        url = etcd.url("tls")
        cluster = Cluster.connect(url, ca=ours.ca, certificate=(ours.certificate, ours.key))
        with cluster.acquire("chat", record, ttl=3, drain=0.5) as active:
            assert active.remaining > 0
            with cluster.register(active.record) as registration:
                assert registration.wait_registered(PATIENCE)
                with cluster.watch("chat") as watch:
                    assert next(watch) == Snapshot((active.record,))
            # The same in the URL, and as texts.
            whole = f"{url}?ca={ours.ca}&cert={ours.certificate}&key={ours.key}"
            with pytest.raises(AlreadyActive) as refused:
                Cluster.connect(whole).acquire("chat", Record("chat", "gpu2", 8000))
            assert refused.value.host == "gpu1"
            assert str(ours.key) not in repr(Cluster.connect(whole))
            texts = str(ours.certificate), str(ours.key)
            again = Cluster.connect(url, ca=str(ours.ca), certificate=texts)
            assert len(again.servers()) == 1

        # Neither is taken on trust: who asks, and who answers.
        stranger = (others.certificate, others.key)
        for wrong in (
            Cluster.connect(url, ca=ours.ca),
            Cluster.connect(url, ca=ours.ca, certificate=stranger),
            Cluster.connect(url, ca=others.ca, certificate=(ours.certificate, ours.key)),
            Cluster.connect(url, certificate=(ours.certificate, ours.key)),
            Cluster.connect(url.replace("etcds", "etcd")),
        ):
            with pytest.raises(Unreachable, match=f"127\\.0\\.0\\.1:{etcd.port}"):
                wrong.servers()


def test_a_certificate_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    tls = certificates(tmp_path, "ours")
    junk, none = tmp_path / "junk.pem", tmp_path / "none.pem"
    junk.write_text("junk")
    for certificate, named in (
        ((none, tls.key), none),
        ((tls.certificate, none), none),
        ((junk, tls.key), junk),
        ((tls.certificate, junk), junk),
    ):
        with pytest.raises(CertificateError, match=named.name):
            Cluster.connect("etcds://h1", ca=tls.ca, certificate=certificate)
