#!/usr/bin/env bash
# A service of which one server is active, and one stands by on another host, and a load balancer that
# finds the active one. Three hosts on one machine: each has an address and a lock directory of its
# own. Needs an etcd.
#
#   LLMLB_CLUSTER=etcd://127.0.0.1:2379/demo examples/cluster/standby.sh [GPU1 GPU2 FRONT]
set -euo pipefail
: "${LLMLB_CLUSTER:?is etcd://HOST:PORT/PREFIX}"
gpu1=${1:-127.0.0.2} gpu2=${2:-127.0.0.3} front=${3:-127.0.0.4}
model=("${PYTHON:-python3}" "$(dirname "$0")/model.py" '{host}' '{port}')
# Another takes over within 3 s, and so much of that the server has to end in good order.
exclusive=(--service index --exclusive --ttl 3 --drain-timeout 0.5)
work=$(mktemp -d)

# on HOST WORDS...: what is typed on that host.
on() {
    local host=$1
    shift
    LLMLB_LOCK_DIR="$work/$host" llmlb "$@"
}

serve() { # HOST WORDS...
    local host=$1
    shift
    on "$host" serve --host "$host" --port 8000 --advertise "http://$host:8000" \
        "${exclusive[@]}" "$@" -- "${model[@]}"
}

cleanup() {
    for host in "$gpu1" "$gpu2" "$front"; do
        on "$host" stop --all --force >/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

say() { printf '\n== %s\n' "$*"; }

# answered_by HOST: asks the load balancer until that one answers.
answered_by() {
    local said=
    for _ in {1..600}; do
        said=$(curl --silent --fail --max-time 10 "http://$front:9000/v1/chat/completions" \
            --header 'Content-Type: application/json' --data '{"model":"qwen3","messages":[]}' |
            sed 's/.*"content": "\([^"]*\)".*/\1/') || true
        [[ $said == "I am $1, token "* ]] && echo "$said" && return
        sleep 0.1
    done
    echo "not answered by $1, but: $said" >&2
    return 1
}

say "one server is active, the other waits, and the load balancer finds the one"
serve "$gpu1" --detach
serve "$gpu2" --wait 2>"$work/standby.log" &
until grep "is active on" "$work/standby.log"; do sleep 0.1; done
on "$front" serve --detach --host "$front" --port 9000 --backends-of index
answered_by "$gpu1"
on "$front" status --cluster

say "a second start is refused, and told by whom"
if serve "$front" 2>"$work/refused"; then exit 1; fi
grep -A2 "^Error: " "$work/refused"

say "kill -9 of the llmlb that guards the active one: its server ends, and the standby takes over"
pid=$(on "$gpu1" status 8000 --format json | sed 's/.*"launcher_pid":\([0-9]*\).*/\1/')
kill -KILL "$pid"
answered_by "$gpu2"
# What could not be withdrawn is off the list when its lease ends.
while on "$front" status --cluster | grep "^$gpu1 " >/dev/null; do sleep 0.1; done
on "$front" status --cluster

say "the end, asked for from another host"
on "$front" stop --cluster --service index --timeout 60
on "$front" status --cluster
