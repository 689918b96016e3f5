#!/usr/bin/env bash
# Tests Windows, and checks Windows and macOS, from a Debian machine: see PLATFORM.md for what that
# shows and what it can't.
#
#   tests/cross.sh test-windows    runs the tests of core, the program and the C library under wine
#   tests/cross.sh check-windows   types and lints, all targets, for MSVC
#   tests/cross.sh check-macos     types and lints, all targets, for Apple silicon
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web cargo-web rust-web-src rust-web-clippy)
case "${1:-}" in
    test-windows) packages+=(gcc-mingw-w64-x86-64-win32 wine64 wine) ;;
    check-windows | check-macos) ;;
    *)
        echo "usage: $0 test-windows | check-windows | check-macos" >&2
        exit 2
        ;;
esac

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null || ! grep -qs '^ID=debian$' /etc/os-release; then
        echo "$0: needs Debian 12 or later, for its packages ${packages[*]}" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "$0: needs packages; as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# Debian's toolchain brings the source of std, and builds it for any target.
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")/cross"
export PATH="/usr/bin:$PATH" RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR="$target" CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0
unset RUSTC RUSTC_WRAPPER RUSTFLAGS RUSTUP_TOOLCHAIN
build_std=(-Zbuild-std=std,panic_unwind)

# Types need no objects: what a build script would have a C compiler do for the target is left out,
# and the library that it looks for is empty.
no_objects() {
    local name ar="$target/no-ar"
    mkdir -p "$target"
    cat >"$ar" <<'END'
#!/bin/sh
for word; do
    case "$word" in
        -out:*) : >"${word#-out:}" ;;
        *.a | *.lib) : >"$word" ;;
    esac
done
END
    chmod +x "$ar"
    export SDKROOT=/
    for name in aarch64_apple_darwin x86_64_pc_windows_msvc; do
        export "CC_$name=true" "AR_$name=$ar"
    done
}

check() {
    no_objects
    cargo clippy --workspace --all-targets --target "$1" "${build_std[@]}" -- -D warnings
}

test_windows() {
    local triple=x86_64-pc-windows-gnu
    local package
    local tested=(-p llmlb-lock-core -p llmlb-gateway -p llmlb -p llmlb-tests)
    cargo build "${tested[@]}" --lib --bins --tests --target $triple "${build_std[@]}"
    cargo build -p llmlb-lock-ffi --lib --target $triple "${build_std[@]}"

    unset DISPLAY
    export WINEPREFIX="$target/wine" WINEDEBUG=-all
    export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER="timeout 600 wine"
    # This prefix's processes alone.
    trap '/usr/lib/wine/wineserver -k || true' EXIT
    # What these leave running would hold a pipe open for ever: only files get their output.
    mkdir -p "$WINEPREFIX"
    # By itself it leaves three seconds after its last client, and the next one may come just then.
    /usr/lib/wine/wineserver -p >"$target/wine.log" 2>&1
    wine wineboot -i >>"$target/wine.log" 2>&1
    wine winecfg -v win10 >>"$target/wine.log" 2>&1
    local system="$WINEPREFIX/drive_c/windows/system32"
    if [ ! -e "$system/bcryptprimitives.dll" ]; then
        # Rust's std gets its random numbers there, and wine 8 lacks it.
        x86_64-w64-mingw32-gcc -shared -x c - -ladvapi32 -o "$system/bcryptprimitives.dll" <<'C'
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length)
{
    return RtlGenRandom(data, (ULONG)length);
}
C
    fi
    local result=0
    LLMLB_TEST_WINE=1 LLMLB_BIN="Z:$target/$triple/debug/llmlb.exe" \
        cargo test "${tested[@]}" --lib --bins --tests --no-fail-fast --target $triple \
        "${build_std[@]}" >"$target/windows.log" 2>&1 || result=$?
    cat "$target/windows.log"
    test_windows_c "$target/$triple/debug" || result=$?
    return $result
}

# The C library's own way to be asked to stop.
test_windows_c() {
    local out="$target/c"
    rm -rf "$out"
    mkdir -p "$out/locks"
    x86_64-w64-mingw32-gcc -std=c11 -Wall -Wextra -Werror -Iinclude tests/c/windows/stop_event.c \
        -o "$out/stop_event.exe" "$1/libllmlb_lock.dll.a"
    cp "$1/llmlb_lock.dll" "$out"
    local result=0
    LLMLB_LOCK_DIR="Z:$out/locks" timeout 120 wine "$out/stop_event.exe" >"$out/log" 2>&1 ||
        result=$?
    cat "$out/log"
    return $result
}

case "$1" in
    test-windows) test_windows ;;
    check-windows) check x86_64-pc-windows-msvc ;;
    check-macos) check aarch64-apple-darwin ;;
esac
