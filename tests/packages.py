#!/usr/bin/env python3
"""Looks at what would be published, as whoever gets it from a registry would:

packages.py CARGO TARGET

The packages that `cargo package` has made, and the wheel in TARGET/wheels.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parent.parent
LICENCES = ["LICENSE-APACHE", "LICENSE-MIT"]
THIRD_PARTY = "LICENSE-THIRD-PARTY"


def same(content: bytes | None, original: str, where: str) -> None:
    assert content == (ROOT / original).read_bytes(), f"{where} is not {original}"


def check_crate(package: dict, target: Path) -> None:
    name = f"{package['name']}-{package['version']}"
    with tarfile.open(target / "package" / f"{name}.crate") as archive:
        # Links would lead out of the package.
        files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
        assert len(files) == len(archive.getmembers()), f"{name}: not files alone"
    for licence in LICENCES:
        same(files.get(f"{name}/{licence}"), licence, f"{licence} of {name}")
    readme = files[f"{name}/README.md"].decode()
    # The program's is the project's.
    expected = "llmlb" if package["name"] == "llmlb" else package["name"]
    if package["name"] == "llmlb-lock-ffi":
        expected = "libllmlb_lock"
        header = f"{name}/include/llmlb_lock.h"
        same(files.get(header), "include/llmlb_lock.h", header)
    assert readme.startswith(f"# {expected}\n"), f"{name}: {readme[:40]!r}"
    for field in ["description", "license", "repository", "rust_version"]:
        assert package[field], f"{name}: no {field}"
    assert package["categories"] and 0 < len(package["keywords"]) <= 5, name
    targets = package["metadata"]["docs"]["rs"]["targets"]
    systems = ["linux"] if package["name"] == "llmlb-lock-cluster" else ["linux", "apple", "windows"]
    for system in systems:
        assert any(system in target for target in targets), f"{name}: {system} is not documented"


def check_wheel(path: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        (info,) = {n.split("/")[0] for n in wheel.namelist() if ".dist-info/" in n}
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        for licence in LICENCES:
            same(wheel.read(f"{info}/licenses/{licence}"), licence, f"{path.name}: {licence}")
        others = wheel.read(f"{info}/licenses/{THIRD_PARTY}").decode()
    assert "\npyo3 " in others and "\nserde_json " in others, f"{path.name}: {THIRD_PARTY}"
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert sorted(metadata.get_all("License-File")) == [*LICENCES, THIRD_PARTY]
    assert metadata["Summary"] and metadata["Keywords"] and metadata["Requires-Python"]
    urls = {line.split(",")[0] for line in metadata.get_all("Project-URL")}
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} <= urls, urls
    classifiers = metadata.get_all("Classifier")
    for start in ["Development Status", "Operating System", "Topic", "Typing"]:
        assert any(c.startswith(start) for c in classifiers), start
    # The licence is told by the expression; beside it a classifier is refused.
    assert not any(c.startswith("License ::") for c in classifiers)


def main() -> None:
    cargo, target = sys.argv[1], Path(sys.argv[2])
    said = subprocess.check_output([cargo, "metadata", "--no-deps", "--format-version=1"], cwd=ROOT)
    packages = json.loads(said)["packages"]
    published = [p for p in packages if p["publish"] is None]
    private = [f"--exclude={p['name']}" for p in packages if p["publish"] is not None]
    # Each is built from what is in its package, against the others' packages, here on this system
    # alone; what they depend on is built once for all.
    make = [cargo, "package", "--quiet", "--workspace", "--allow-dirty", *private]
    # Cargo takes a package for the one that had the same version at the same place before, and keeps
    # what it unpacks: so each time at another place, and without a trace.
    unpacked = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"), "registry/src")
    before = set(unpacked.glob("-*"))
    try:
        with tempfile.TemporaryDirectory(prefix="packages-", dir=target) as place:
            subprocess.run([*make, "--target-dir", place], cwd=ROOT, check=True)
            for package in published:
                check_crate(package, Path(place))
    finally:
        for own in set(unpacked.glob("-*")) - before:
            shutil.rmtree(own)
    (wheel,) = (target / "wheels").glob("*.whl")
    check_wheel(wheel)
    names = ", ".join(p["name"] for p in published)
    print(f"ready to be published: {names}; {wheel.name}")


main()
