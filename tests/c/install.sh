#!/bin/sh
# `make install-library` as a package builder runs it, and a build against the result by pkg-config alone:
#   install.sh DIRECTORY
set -eu
out=$1
rm -rf "$out"
mkdir -p "$out"
make="${MAKE:-make} --no-print-directory install-library"
$make DESTDIR="$out/root" PREFIX=/usr LIBDIR=/usr/lib/multi INCLUDEDIR=/usr/include/llmlb > "$out/log"
libraries=$out/root/usr/lib/multi

export PKG_CONFIG_PATH="$libraries/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$out/root"
grep -qx prefix=/usr "$libraries/pkgconfig/llmlb_lock.pc"
# shellcheck disable=SC2046
${CC:-cc} examples/c/launcher.c -o "$out/launcher" $(pkg-config --cflags --libs llmlb_lock)
code=0
said=$(LD_LIBRARY_PATH=$libraries DYLD_LIBRARY_PATH=$libraries "$out/launcher" 2>&1) || code=$?
[ "$code" = 2 ] && [ "$said" = "usage: launcher PORT COMMAND [ARG...]" ]

executable=$(find "$out/root" -type f -perm /111)
[ -z "$executable" ] || {
    echo "nothing here is to be run: $executable" >&2
    exit 1
}
grep -q "^#define LLMLB_ABI_VERSION" "$out/root/usr/include/llmlb/llmlb_lock.h"
# Each function has its page, and there is no other.
pages=$out/root/usr/share/man/man3
${CC:-cc} -E -P include/llmlb_lock.h | sed -n 's/^[A-Za-z_].*[ *]\(llmlb_[a-z_]*\)(.*/\1.3/p' > "$out/expected"
echo llmlb_lock.3 >> "$out/expected"
[ "$(LC_ALL=C ls "$pages")" = "$(LC_ALL=C sort "$out/expected")" ] || {
    echo "manual pages of other functions: $(ls "$pages")" >&2
    exit 1
}
if command -v mandoc > /dev/null; then
    for page in "$pages"/*; do
        mandoc -T lint -W style "$page"
    done
fi
[ "$(pkg-config --modversion llmlb_lock)" = "$(cargo pkgid -p llmlb-lock-ffi | sed 's/.*[#@]//')" ]

${MAKE:-make} --no-print-directory uninstall-library DESTDIR="$out/root" PREFIX=/usr LIBDIR=/usr/lib/multi \
    INCLUDEDIR=/usr/include/llmlb >> "$out/log"
left=$(find "$out/root" ! -type d)
[ -z "$left" ] || {
    echo "left behind by make uninstall-library: $left" >&2
    exit 1
}
echo "make install-library and uninstall-library with DESTDIR work"
