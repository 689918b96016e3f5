#!/usr/bin/env bash
# The Python packages, as they are published: the program (`llmlb`) and the library (`llmlb-lock`).
#   wheels.sh build VENV OUT    wheels for glibc 2.17 and later and for musl, and the sdists, in OUT
#   wheels.sh test VENV OUT     are they what they say, installed, run, and built from the sdists
# VENV has maturin and zig, which links for a C library that is older than this machine's. Elsewhere
# than on Linux, for this system alone. LLMLB_PROGRAM prints the manual pages. PROFILE is cargo's,
# release by default.
set -euo pipefail
what=$1 venv=$2 out=$3 profile=${PROFILE:-release}
cd "$(dirname "$0")/.."
export PATH="$venv/bin:$PATH"
fail() {
    echo "make wheels: $*" >&2
    exit 1
}
machine=$(rustc -vV | sed -n 's/^host: \([^-]*\)-.*/\1/p')

# What maturin puts beside the program: all that is installed below share.
program_data() {
    rm -rf cli/llmlb.data
    ${MAKE:-make} install-program DESTDIR= PREFIX="$PWD/cli/llmlb.data/data" > "$out/data.log" 2>&1 ||
        { cat "$out/data.log" >&2; exit 1; }
    rm -rf cli/llmlb.data/data/{bin,lib,share/doc}
}

build() {
    rm -rf "$out"
    mkdir -p "$out"
    program_data
    for package in cli python; do
        local make=(maturin build --quiet --profile "$profile" --manifest-path "$package/Cargo.toml" --out "$out")
        if [ "$(uname -s)" = Linux ]; then
            "${make[@]}" --zig --target "$machine-unknown-linux-gnu" --compatibility manylinux2014
            if [ -d "$(rustc --print sysroot)/lib/rustlib/$machine-unknown-linux-musl" ]; then
                "${make[@]}" --zig --target "$machine-unknown-linux-musl" --compatibility musllinux_1_2
            else
                echo "wheels for musl: skipped, as Rust has no std for it" \
                    "(rustup target add $machine-unknown-linux-musl)"
            fi
        else
            "${make[@]}"
        fi
        maturin sdist --manifest-path "$package/Cargo.toml" --out "$out" > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
    done
    ls "$out"/*.whl "$out"/*.tar.gz
}

# The newest symbol of glibc that is asked for, at most 2.17.
glibc_of() {
    local newest
    newest=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
    [ "$(printf '%s\n' "$newest" GLIBC_2.17 | sort -V | tail -1)" = GLIBC_2.17 ] ||
        fail "$1 needs $newest"
    echo "$(basename "$1") needs $newest"
}

installed() {
    rm -rf "$out/fresh"
    python3 -m venv "$out/fresh"
    "$out/fresh/bin/pip" install --quiet --disable-pip-version-check "$@"
    said=$("$out/fresh/bin/llmlb" --version)
    [ "$said" = "$("$LLMLB_PROGRAM" --version)" ] || fail "not this program: $said"
    cmp <("$out/fresh/bin/llmlb" man serve) "$out/fresh/share/man/man1/llmlb-serve.1"
    cmp <("$out/fresh/bin/llmlb" completions bash) \
        "$out/fresh/share/bash-completion/completions/llmlb"
    for package in llmlb:hyper llmlb_lock:pyo3; do
        grep -q "^${package#*:} [0-9]" \
            "$out"/fresh/lib/python*/site-packages/"${package%:*}"-*/licenses/LICENSE-THIRD-PARTY ||
            fail "$package: no licences of others"
    done
    (cd "$out" && LLMLB_LOCK_DIR="$out/locks" fresh/bin/python -c '
import llmlb_lock
with llmlb_lock.ServerLock(8000) as lock:
    assert lock.info.port == 8000
')
    rm -rf "$out/fresh" "$out/locks"
}

check() {
    local sdist wheel
    if [ "$(uname -s)" = Linux ]; then
        for wheel in "$out"/*manylinux*.whl; do
            rm -rf "$out/unpacked"
            python3 -m zipfile -e "$wheel" "$out/unpacked"
            while read -r file; do
                glibc_of "$file"
            done < <(find "$out/unpacked" -name llmlb -path '*/scripts/*' -o -name '*.so')
        done
        for wheel in "$out"/llmlb-*musllinux*.whl; do
            [ -e "$wheel" ] || continue
            # Linked statically, it runs here, too.
            python3 -m zipfile -e "$wheel" "$out/musl"
            chmod +x "$out"/musl/*.data/scripts/llmlb
            "$out"/musl/*.data/scripts/llmlb --version > "$out/log" || fail "$wheel does not run"
        done
        installed "$out"/*manylinux*.whl
    else
        installed "$out"/*.whl
    fi
    # As pip does where there is no wheel: by what the sdist has alone, in an environment that has
    # nothing but the toolchain; what others have built of its dependencies is built once.
    mkdir -p "$out/built" "$out/sources"
    for sdist in "$out"/*.tar.gz; do
        tar -xzf "$sdist" -C "$out/sources"
        sdist=$(basename "$sdist" .tar.gz)
        env -i PATH="$PATH" HOME="$HOME" CARGO_INCREMENTAL=0 \
            CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}" \
            "$venv/bin/pip" wheel --quiet --disable-pip-version-check --no-deps \
            --config-settings=build-args="--profile $profile" --wheel-dir "$out/built" \
            "$out/sources/$sdist"
    done
    installed "$out"/built/*.whl
    rm -rf "$out/unpacked" "$out/musl" "$out/built" "$out/sources"
    echo "the wheels are installed and run, and the sdists build"
}

case $what in
    build) build ;;
    test) check ;;
    *) fail "no such thing: $what" ;;
esac
