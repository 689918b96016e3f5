#!/bin/sh
# Builds the Debian packages of what `make install` installs:
#   deb.sh DIRECTORY VERSION
# By debhelper, and not by cargo-deb: there are three packages, of what `make install` has installed,
# one with a shared library that others depend on by its soname, and the scripts for systemd and
# tmpfiles.d are debhelper's own. cargo-deb packs what one crate builds.
# The packages are put into DIRECTORY. MAKE and what `make install` understands may be set.
set -eu
out=$1 version=$2
command -v dh > /dev/null || {
    echo "make deb: needs debhelper (apt install debhelper)" >&2
    exit 1
}
checkout=$(cd "$(dirname "$0")/.." && pwd)
rm -rf "$out"
mkdir -p "$out/build"
cp -r "$checkout/packaging/debian" "$out/build/debian"
# Of the crates that are linked into both.
{
    echo
    "${PYTHON:-python3}" "$checkout/packaging/third_party.py" debian "${CARGO:-cargo}"
} >> "$out/build/debian/copyright"
# As /etc/logrotate.d/llmlb.
cp "$checkout/packaging/llmlb.logrotate" "$out/build/debian/llmlb.logrotate"
cd "$out/build"
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$checkout" log -1 --format=%ct 2> /dev/null || date +%s)
fi
export SOURCE_DATE_EPOCH
sed -e "s/@VERSION@/$version/" -e "s/@DATE@/$(date -u -R -d "@$SOURCE_DATE_EPOCH")/" \
    debian/changelog.in > debian/changelog
rm debian/changelog.in
cp "$checkout/CHANGELOG.md" CHANGELOG.md
{
    ${MAKE:-make} -C "$checkout" install DESTDIR="$out/build/debian/tmp" PREFIX=/usr \
        LIBDIR="/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)" INCLUDEDIR=/usr/include \
        PROGRAM_ZSH=share/zsh/vendor-completions/_llmlb &&
        debian/rules binary
} > "$out/log" 2>&1 || {
    cat "$out/log" >&2
    exit 1
}
rm -r "$out/build"
ls "$out"/*.deb
