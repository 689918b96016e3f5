#!/bin/sh
# Compiles the C tests and the C example against an installed library and runs them:
#   run.sh PREFIX DIRECTORY
# As C11 against the shared library, as C11 against the static one, as C++, and under valgrind.
set -eu
prefix=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
CC=${CC:-cc} CXX=${CXX:-c++}
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
cflags="-Wall -Wextra -Werror -pedantic -g $(pkg-config --cflags llmlb_lock)"
libs="$(pkg-config --libs llmlb_lock) -Wl,-rpath,$prefix/lib -pthread"
# The archive by its name, as both are in one directory; pkg-config knows what it needs.
static="$prefix/lib/libllmlb_lock.a
    $(pkg-config --static --libs llmlb_lock | sed 's/-L[^ ]*//; s/-lllmlb_lock//')"

rm -rf "$out"
mkdir -p "$out/shared" "$out/static" "$out/c++"
tests=$(cd "$here" && echo *.c)

# $flags and $libs are lists.
# shellcheck disable=SC2086
for test in $tests; do
    name=${test%.c}
    $CC -std=c11 $cflags "$here/$test" -o "$out/shared/$name" $libs
    $CC -std=c11 $cflags "$here/$test" -o "$out/static/$name" $static
    $CXX -x c++ -std=c++17 $cflags "$here/$test" -x none -o "$out/c++/$name" $libs
done
# shellcheck disable=SC2086
{
    $CC -std=c11 $cflags "$root/examples/c/launcher.c" -o "$out/launcher" $libs
    # The example in the documentation is a whole program.
    sed -n '/^```c$/,/^```$/{/^```/d;p;}' "$root/ffi/README.md" > "$out/readme.c"
    $CC -std=c11 $cflags "$out/readme.c" -o "$out/readme" $libs
}
# The header says nothing that only some standards know.
for std in c89 c99 c11 c17 c2x; do
    $CC -std=$std -pedantic-errors -Wall -Wextra -Werror -Wstrict-prototypes -fsyntax-only \
        -x c "$prefix/include/llmlb_lock.h"
done
for std in c++98 c++11 c++14 c++17 c++20 c++2b; do
    $CXX -std=$std -pedantic-errors -Wall -Wextra -Werror -fsyntax-only \
        -x c++ "$prefix/include/llmlb_lock.h"
done
export LLMLB_LAUNCHER="$out/launcher"

for kind in shared static c++; do
    echo "== $kind"
    for test in $tests; do
        "$out/$kind/${test%.c}"
    done
done

if command -v valgrind > /dev/null; then
    echo "== valgrind"
    for test in $tests; do
        # Forked children are checked as well, up to their exec. Their reports are kept in files:
        # most of what an older valgrind says is that it does not know pidfd_open, whose absence
        # is a case of its own.
        log=$out/valgrind-${test%.c}
        valgrind --leak-check=full --errors-for-leak-kinds=definite,indirect,possible \
            --show-leak-kinds=definite,indirect,possible --error-exitcode=99 \
            --suppressions="$here/valgrind.supp" --log-file="$log-%p" "$out/shared/${test%.c}" || {
            cat "$log"-*
            exit 1
        }
        # A child that was killed has no exit code of valgrind's.
        if grep -l 'ERROR SUMMARY: [1-9]' "$log"-*; then
            cat "$log"-*
            exit 1
        fi
    done
else
    echo "== valgrind: not installed, SKIPPED"
fi

echo "== README"
sh "$here/readme.sh" "$out/readme"

if command -v nm > /dev/null && [ "$(uname -s)" = Linux ]; then
    echo "== exported symbols and size"
    library=$prefix/lib/libllmlb_lock.so
    nm -D --defined-only "$library" | sed 's/.* //; s/@.*//' | sort > "$out/exported"
    # What is declared for this system.
    # shellcheck disable=SC2086
    $CC $cflags -E -P "$prefix/include/llmlb_lock.h" |
        sed -n 's/^[A-Za-z_].*[ *]\(llmlb_[a-z_]*\)(.*/\1/p' | sort > "$out/declared"
    [ "$(wc -l < "$out/declared")" -gt 30 ]
    diff "$out/declared" "$out/exported"
    # The archive has no symbols either that could meet those of another Rust library.
    nm -g --defined-only "$prefix/lib/libllmlb_lock.a" | sed -n 's/.* [A-Z] //p' | sort > "$out/archived"
    diff "$out/declared" "$out/archived"
    soname=$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
    [ -e "$prefix/lib/$soname" ]
    readelf -d "$out/shared/stories" | grep -q "NEEDED.*\[$soname\]"
    size=$(wc -c < "$library")
    echo "$soname: $size bytes"
    [ "$size" -lt 1000000 ]
fi
