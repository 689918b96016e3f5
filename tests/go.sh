#!/bin/sh
# Vets and tests the Go module and its launcher against an installed library, and runs the
# documentation's example:
#   test.sh PREFIX DIRECTORY
set -eu
prefix=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
PKG_CONFIG_PATH=$prefix/lib/pkgconfig
LD_LIBRARY_PATH=$prefix/lib
GOCACHE=${GOCACHE:-$out/cache}
# There is nothing to fetch.
GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=1
export PKG_CONFIG_PATH LD_LIBRARY_PATH GOCACHE GOFLAGS GOPROXY GOTOOLCHAIN CGO_ENABLED
GO=${GO:-go}

for module in "$here/../go" "$here/../examples/go"; do
    cd "$module"
    unformatted=$("$("$GO" env GOROOT)/bin/gofmt" -l .)
    [ -z "$unformatted" ] || {
        echo "not formatted, mend it with gofmt -w: $unformatted" >&2
        exit 1
    }
    "$GO" vet ./...
    # GODEBUG makes cgo check what Go memory C gets to see.
    GODEBUG=cgocheck=1 "$GO" test -race -count=1 ./...
done

mkdir -p "$out/readme"
sed -n '/^```go$/,/^```$/{/^```/d;p;}' ../../ffi/README.md > "$out/readme/main.go"
"$GO" build -o "$out/readme/readme-go" "$out/readme/main.go"
sh ../../tests/c/readme.sh "$out/readme/readme-go"
