#!/bin/sh
# Runs a server from the documentation, which serves until its input ends, twice at once:
#   readme.sh PROGRAM
set -eu
LLMLB_LOCK_DIR=$(mktemp -d)
export LLMLB_LOCK_DIR
mkfifo "$LLMLB_LOCK_DIR/input"
"$1" < "$LLMLB_LOCK_DIR/input" &
server=$!
exec 3> "$LLMLB_LOCK_DIR/input"
tries=0
until [ -e "$LLMLB_LOCK_DIR/serve_8000.lock" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ]
    sleep 0.05
done
code=0
said=$("$1" < /dev/null) || code=$?
[ "$code" = 1 ] && [ "$said" = "Port 8000 is served by PID $server" ] || {
    echo "$1: exit code $code, '$said'" >&2
    exit 1
}
exec 3>&-
wait "$server"
rm "$LLMLB_LOCK_DIR/input"
rmdir "$LLMLB_LOCK_DIR" # the lock file is gone
echo "$(basename "$1") ran as documented"
