#!/bin/sh
# What systemd says to the unit and to the tmpfiles.d lines:
#   check.sh LLMLB DIRECTORY
set -eu
llmlb=$1 out=$2
packaging=$(dirname "$0")
rm -rf "$out"
mkdir -p "$out"
# The example's arguments are understood: what is missing is the server.
code=0
said=$(
    set -a
    # shellcheck source=packaging/example.conf
    . "$packaging/example.conf"
    # Words, as systemd makes of them.
    # shellcheck disable=SC2086
    LLMLB_LOCK_DIR=$out/locks LLMLB_PORT=0 "$llmlb" serve $SERVE_ARGS 2>&1
) || code=$?
[ "$code" = 127 ] || {
    echo "example.conf: $code instead of 127: $said" >&2
    exit 1
}
command -v systemd-analyze >/dev/null || {
    echo "check-units: skipped, as there is no systemd-analyze"
    exit 0
}
# With the program that was built, as verify looks for it, and no manual pages installed.
sed -e "s|/usr/bin/llmlb|$llmlb|" -e 's|man:[^ ]* ||' "$packaging/llmlb@.service" > "$out/llmlb@.service"
# Units of this machine may have faults of their own.
said=$(systemd-analyze verify --recursive-errors=no "$out/llmlb@chat.service" 2>&1) || {
    echo "$said" >&2
    exit 1
}
[ -z "$said" ] || {
    echo "systemd-analyze verify: $said" >&2
    exit 1
}
if command -v systemd-tmpfiles >/dev/null && [ "$(id -u)" = 0 ]; then
    mkdir "$out/root"
    # The names of users are looked up there.
    mkdir "$out/root/etc"
    cp /etc/passwd /etc/group "$out/root/etc/"
    systemd-tmpfiles --create --root="$out/root" "$(realpath "$packaging/llmlb.tmpfiles")"
    for directory in run/llmlb tmp/llmlb; do
        [ "$(stat -c '%a %u' "$out/root/$directory")" = "1777 0" ] || {
            echo "$directory is not made as it should be" >&2
            exit 1
        }
    done
fi
echo "the systemd unit and the tmpfiles.d lines are understood"
