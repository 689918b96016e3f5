#!/usr/bin/env bash
# Three hosts on one machine: two with a model server (a stand-in for vLLM), two with a load balancer,
# and one etcd. What each host has of its own is an address of the loopback and a lock directory.
#
#   LLMLB=path/to/llmlb ETCD=path/to/etcd examples/cluster/run.sh
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
llmlb=${LLMLB:-llmlb}
etcd=${ETCD:-etcd}
python=${PYTHON:-python3}
work=$(mktemp -d)
started=()

cleanup() {
    kill -TERM "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

say() { printf '\n== %s\n' "$*"; }

# Ports that nobody has.
read -r client peer port balancer < <("$python" - <<'PY'
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in held))
PY
)

export LLMLB_CLUSTER=etcd://127.0.0.1:$client/example

"$etcd" --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$client" \
    --advertise-client-urls "http://127.0.0.1:$client" --listen-peer-urls "http://127.0.0.1:$peer" \
    --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
    --initial-cluster "default=http://127.0.0.1:$peer" >"$work/etcd.log" 2>&1 &
started+=($!)

# on HOST WORDS...: what is typed on that host.
on() {
    local host=$1
    shift
    mkdir -p "$work/$host"
    LLMLB_LOCK_DIR=$work/$host "$llmlb" "$@"
}

# serve HOST PORT WORDS...: the same, in the background.
serve() {
    local host=$1 port=$2
    shift 2
    mkdir -p "$work/$host"
    LLMLB_LOCK_DIR=$work/$host "$llmlb" serve --host "$host" --port "$port" "$@" \
        >>"$work/$host/log" 2>&1 &
    started+=($!)
}

# until_shown HOST TEXT: waits until the cluster's status has it.
until_shown() {
    for _ in {1..600}; do
        if on "$1" status --cluster 2>/dev/null | grep -q "$2"; then return; fi
        sleep 0.1
    done
    echo "$2 is not shown"
    tail -n 20 "$work"/*/log
    exit 1
}

# ask HOST: which model server answers the load balancer there.
ask() {
    "$python" - "http://$1:$balancer/v1/chat/completions" <<'PY'
import json, sys, urllib.request
body = json.dumps({"model": "qwen3", "messages": []}).encode()
headers = {"Content-Type": "application/json"}
with urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers), timeout=60) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
PY
}

say "two hosts with a model server, found as service chat"
for host in 127.0.0.1 127.0.0.2; do
    serve "$host" "$port" --service chat --advertise "http://$host:$port" --ttl 2 -- \
        "$python" "$here/model.py" "$host" "{port}"
done
until_shown 127.0.0.3 "127.0.0.1 .*Running *qwen3"
until_shown 127.0.0.3 "127.0.0.2 .*Running *qwen3"

say "two load balancers that find them; the first is the only active one of its service"
serve 127.0.0.3 "$balancer" --backends-of chat --service front --exclusive --ttl 3 \
    --drain-timeout 0.5 --advertise "http://127.0.0.3:$balancer"
serve 127.0.0.2 "$balancer" --backends-of chat
until_shown 127.0.0.3 "127.0.0.3 .*Running *qwen3"
on 127.0.0.3 status --cluster
for host in 127.0.0.3 127.0.0.2; do
    for _ in {1..600}; do
        if ask "$host" >"$work/answer" 2>/dev/null; then break; fi
        sleep 0.1
    done
    echo "by $host: $(cat "$work/answer")"
done

say "the model server of 127.0.0.1 is stopped from another host; nobody notices"
on 127.0.0.3 stop --cluster --service chat --host 127.0.0.1 --timeout 60
for _ in 1 2 3; do
    [[ $(ask 127.0.0.3) == "I am 127.0.0.2" ]]
    [[ $(ask 127.0.0.2) == "I am 127.0.0.2" ]]
done
on 127.0.0.3 status --cluster

say "a second active load balancer is refused, and told by whom"
if on 127.0.0.1 serve --host 127.0.0.1 --port "$balancer" --backends-of chat --service front \
    --exclusive --ttl 3 --drain-timeout 0.5 --advertise "http://127.0.0.1:$balancer" 2>"$work/refused"
then
    echo "it serves"
    exit 1
fi
grep -A2 "^Error: Service front is active on 127.0.0.3" "$work/refused"

say "the end"
on 127.0.0.3 stop --cluster --service chat --all --timeout 60
on 127.0.0.3 stop --cluster --service front --timeout 60
on 127.0.0.3 status --cluster
