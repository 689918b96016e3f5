#!/usr/bin/env bash
# Three hosts on one machine: each has an address and a lock directory of its own. Needs an etcd.
#
#   LLMLB_CLUSTER=etcd://127.0.0.1:2379/demo examples/cluster/hosts.sh [GPU1 GPU2 FRONT]
#
# gpu1 and gpu2 each run a model server of the service chat, and one of the service index, of which
# one is active; on gpu2 and front a load balancer finds them.
set -euo pipefail
: "${LLMLB_CLUSTER:?is etcd://HOST:PORT/PREFIX}"
gpu1=${1:-127.0.0.2} gpu2=${2:-127.0.0.3} front=${3:-127.0.0.4}
model=("${PYTHON:-python3}" "$(dirname "$0")/model_server.py" '{host}' '{port}')
work=$(mktemp -d)

# llmlb as on that host.
on() {
    local host=$1
    shift
    LLMLB_LOCK_DIR="$work/$host" "$@"
}

end() {
    for host in "$gpu1" "$gpu2" "$front"; do
        on "$host" llmlb stop --all --force >/dev/null || true
    done
    rm -rf "$work"
}
trap end EXIT

say() { printf '\n# %s\n' "$*"; }

ask() { # ADDRESS
    curl --silent --fail --max-time 10 "http://$1/v1/chat/completions" \
        --header 'Content-Type: application/json' --data '{"model":"tiny","messages":[]}' |
        sed 's/.*"content": "\([^"]*\)".*/\1/'
}

# Until it was answered by that.
ask_until() { # ADDRESS PATTERN
    local said=
    for _ in {1..300}; do
        said=$(ask "$1") || true
        # shellcheck disable=SC2053
        [[ $said == $2 ]] && echo "$said" && return
        sleep 0.1
    done
    echo "not answered by $2, but: $said" >&2
    return 1
}

say "A server of chat on each of two hosts, found when it is ready"
for host in "$gpu1" "$gpu2"; do
    on "$host" llmlb serve --detach --host "$host" --port 8000 \
        --service chat --advertise "http://$host:8000" --slots 4 -- "${model[@]}"
done

say "Two load balancers that know no server, and find those there are"
for host in "$gpu2" "$front"; do
    on "$host" llmlb serve --detach --host "$host" --port 9000 --backends-of chat
    ask_until "$host:9000" "$gpu1"
    ask_until "$host:9000" "$gpu2"
done

say "One active server of index, and a standby"
exclusive=(--port 8001 --service index --exclusive --ttl 3 --drain-timeout 0.5)
on "$gpu1" llmlb serve --detach --host "$gpu1" --advertise "http://$gpu1:8001" \
    "${exclusive[@]}" -- "${model[@]}"
on "$gpu2" llmlb serve --host "$gpu2" --advertise "http://$gpu2:8001" \
    "${exclusive[@]}" --wait -- "${model[@]}" 2>"$work/standby.log" &
until grep "is active on" "$work/standby.log"; do sleep 0.1; done
on "$front" llmlb serve --detach --host "$front" --port 9001 --backends-of index
ask_until "$front:9001" "$gpu1, token *"

say "What runs on all hosts"
llmlb status --cluster

say "A second start is refused, and told by whom"
on "$front" llmlb serve --host "$front" --advertise "http://$front:8001" \
    "${exclusive[@]}" -- "${model[@]}" && exit 1

say "kill -9 of the llmlb that guards the active one: its server ends, and the standby takes over"
pid=$(on "$gpu1" llmlb status 8001 --format json | sed 's/.*"launcher_pid":\([0-9]*\).*/\1/')
kill -KILL "$pid"
ask_until "$front:9001" "$gpu2, token *"

say "A server is stopped from another host, and no request is lost"
llmlb stop --cluster --service chat --host "$gpu1"
ask "$front:9000"
ask "$gpu2:9000"

say "What is left"
llmlb status --cluster
