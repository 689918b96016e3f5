#!/usr/bin/env bash
# Runs the README's first command as it stands there, and its server to the end.
set -euo pipefail
cd "$(dirname "$0")/.."

command=$(sed -n '/^## Two commands/,/^## /p' README.md | sed -n '/^```sh$/{n;p;q}')
port=$(sed 's/.*--port //' <<<"$command")
LLMLB_LOCK_DIR=$(mktemp -d)
export LLMLB_LOCK_DIR
trap 'rm -rf "$LLMLB_LOCK_DIR"' EXIT

echo "+ $command"
coproc server { exec $command 2>&1; }
pid=$server_PID
while read -r -u "${server[0]}" line; do
    echo "$line"
    [[ $line != *"listening on"* ]] || break
done
[[ $line == *"listening on"* ]] || { echo "it does not serve"; exit 1; }
python3 - "$port" <<'PY'
import sys, urllib.request
with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=30) as answer:
    print(answer.read().decode())
PY
if $command; then echo "it serves twice"; exit 1; fi
kill -TERM "$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$LLMLB_LOCK_DIR/serve_$port.lock")"
wait "$pid"
echo "the README's first command works"
