#!/usr/bin/env python3
"""Whose code the program and the libraries contain, and under which licences, made from what cargo
knows and from the licences that the crates bring.

    third_party.py debian CARGO   paragraphs as they stand in a Debian copyright file
    third_party.py text CARGO     every licence in full, for whatever else is built of them

Where a crate may be had under several licences, it is under MIT here if that is one of them.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
ROOTS = {
    "debian": ("llmlb", "llmlb-lock-ffi"),
    "text": ("llmlb", "llmlb-lock-ffi", "llmlb-lock-python"),
}
FILES = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")
COPYRIGHT = re.compile(r"^\W*(copyright\b.*(\d|\(c\)|©).*|©.*)$", re.IGNORECASE)
APACHE = "Apache License Version 2.0, January 2004"
LINE = "-" * 80
COMMON = "On Debian systems, the full text of this licence is in\n/usr/share/common-licenses/{}."


def metadata(cargo):
    host = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    host = re.search(r"^host: (\S+)$", host, re.MULTILINE)[1]
    ask = [cargo, "metadata", "--format-version=1", "--locked", "--filter-platform", host]
    ask += ["--manifest-path", str(ROOT / "Cargo.toml")]
    return json.loads(subprocess.run(ask, check=True, capture_output=True, text=True).stdout)


def linked(known, roots):
    """What becomes a part of what is built: no macros, nothing that only builds or tests."""
    packages = {package["id"]: package for package in known["packages"]}
    nodes = {node["id"]: node for node in known["resolve"]["nodes"]}
    waiting = [id for id, package in packages.items() if package["name"] in roots]
    seen = set(waiting)
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            id = dependency["pkg"]
            kinds = [kind["kind"] for kind in dependency["dep_kinds"]]
            targets = [kind for target in packages[id]["targets"] for kind in target["kind"]]
            if None in kinds and "proc-macro" not in targets and id not in seen:
                seen.add(id)
                waiting.append(id)
    found = [packages[id] for id in seen if packages[id]["source"] is not None]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def is_mit(text):
    return "Permission is hereby granted, free of charge" in text


def licences(package):
    """The texts that go with a crate, of the licence that is taken."""
    directory = pathlib.Path(package["manifest_path"]).parent
    files = sorted(file for file in directory.iterdir() if file.is_file())
    files = [file for file in files if file.name.upper().startswith(FILES)]
    texts = [file.read_text(errors="replace") for file in files]
    expression = package["license"] or "see the text"
    if "MIT" in re.split(r"[ /()]+", expression) and " AND " not in expression:
        texts = [text for text in texts if is_mit(text)][:1] or [(ROOT / "LICENSE-MIT").read_text()]
        return "Expat", texts
    if not texts:
        raise SystemExit(f"{package['name']} {package['version']} brings no licence text")
    return expression.replace("/", " OR ").replace(" OR ", " or ").replace(" AND ", " and "), texts


def parts(text):
    """Who it is by, and what it says, apart: the latter is the same for many."""
    text = text.replace("\r\n", "\n")
    by = [line.strip() for line in text.splitlines() if COPYRIGHT.match(line)]
    by = [line for line in by if "[yyyy]" not in line and "{yyyy}" not in line]
    if APACHE in " ".join(text.split()):
        return [line for line in by if "owner" not in line], COMMON.format("Apache-2.0")
    body = "\n".join(line.rstrip() for line in text.splitlines() if not COPYRIGHT.match(line))
    return by, re.sub(r"\n{3,}", "\n\n", body).strip("\n")


def paragraphs(packages):
    groups = {}
    for package in packages:
        name, texts = licences(package)
        divided = [parts(text) for text in texts]
        by = [line for lines, _ in divided for line in lines]
        by = by or package["authors"] or [f"The {package['name']} authors"]
        body = "\n\n".join(dict.fromkeys(body for _, body in divided))
        key = (name, " ".join(body.split()).lower())
        group = groups.setdefault(key, {"body": body, "files": [], "by": []})
        group["files"].append(f"crates/{package['name']}-{package['version']}/*")
        group["by"] += [f"{package['name']}: {line}" for line in dict.fromkeys(by)]
    for (name, _), group in sorted(groups.items()):
        yield "\n".join(
            [
                "Files: " + "\n ".join(group["files"]),
                "Copyright: " + "\n ".join(group["by"]),
                f"License: {name}",
                *(f" {line}" if line.strip() else " ." for line in group["body"].splitlines()),
            ]
        )


def in_full(packages):
    """What each crate brings, as it is; the same words once."""
    texts = {}
    for package in packages:
        name, brought = licences(package)
        for text in brought:
            text = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").splitlines())
            names = texts.setdefault((name, text.strip("\n")), [])
            names.append(f"{package['name']} {package['version']}")
    yield "This contains code of the crates below, each under the licence that follows its name."
    for (name, text), names in texts.items():
        name = "MIT" if name == "Expat" else name
        yield "\n".join([LINE, *names, f"Licence: {name}", LINE, "", text])


if __name__ == "__main__":
    kind, cargo = sys.argv[1:]
    packages = linked(metadata(cargo), ROOTS[kind])
    made = {"debian": paragraphs, "text": in_full}[kind](packages)
    print("\n\n".join(made))
