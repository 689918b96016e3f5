"""The load balancers that are compared: how each is set up and started, and its version.

Each is set up for the best that it is known to do here, with a second between looks at a backend
where that can be said, and ten minutes for an answer, as an answer may take that long.
"""

import contextlib
import dataclasses
import http.client
import importlib.metadata
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import bench

# Seconds for a peer to be there, and to end.
PATIENCE = 60
GRACE = 10
KEY = "sk-0f6b1d7c9e2a4853b7d0c1e8f9a2635d"
ALIAS = ("gpt-4o", "alpha-7b")
# By the name that tiktoken's cache has for it.
VOCABULARY = (
    "site-packages/litellm/litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790"
)
# By what peers can't be asked for at all.
NO_OPTION = "there is no option for it"


class Unsupported(Exception):
    """What is wanted of a peer can't be said to it."""


class Failed(Exception):
    """It does not start."""


@dataclasses.dataclass
class Setup:
    directory: Path
    # Of each backend, its URL and its models.
    backends: list
    # Of the requests that a backend may have at a time.
    limit: int = 0
    # "session" or "prefix"; "off", where it has to be said.
    affinity: str = ""
    alias: bool = False
    key: str = ""
    # Certificate and key, in two files.
    tls: tuple = ()
    workers: int = bench.WORKERS
    # Whether one that has its state in a process may be several of them.
    many: bool = False
    port: int = dataclasses.field(default_factory=bench.free_port)
    metrics_port: int = dataclasses.field(default_factory=bench.free_port)

    def models(self):
        return sorted({model for _, models in self.backends for model in models})

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return str(path)


class Running:
    """A peer that has been started."""

    def __init__(self, peer, setup):
        self.peer, self.setup, self.port = peer, setup, setup.port
        self.log = setup.directory / "log"
        self.process = self.launch(self.log)
        try:
            self.wait()
            peer.started(self)
        except BaseException:
            self.end()
            raise

    def wait(self):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(self.why()) from error
            time.sleep(0.02)

    def why(self):
        """The line of its log that says most of why it has ended."""
        lines = self.log.read_text(errors="replace").splitlines()
        said = [x for x in lines if re.search("fail|refuse|alert|cannot", x, re.IGNORECASE)]
        return re.sub(r"\x1b\[[0-9;]*m", "", (said or lines or ["not a word"])[0]).strip()[:160]

    def launch(self, log):
        """Its command, which is given its own log."""
        environment = {**os.environ, **self.peer.environment(self.setup)}
        with log.open("w") as out:
            command = self.peer.command(self.setup)
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def end(self):
        for signum in (signal.SIGTERM, signal.SIGKILL):
            self.process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
                return

    def ask(self, method, path, body=None, headers=None, timeout=GRACE, port=None):
        """The status, and all of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        if self.setup.tls:
            # Whose certificate it is, is looked at elsewhere.
            anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                "127.0.0.1", port or self.port, timeout=timeout, context=anybody
            )
        key = {"Authorization": f"Bearer {self.setup.key}"} if self.setup.key else {}
        kind = {"Content-Type": "application/json"} if body is not None else {}
        with contextlib.closing(connection):
            body = json.dumps(body) if isinstance(body, dict) else body
            connection.request(method, path, body, {**kind, **key, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()


class Peer:
    name = ""
    # The header that keeps a session with its backend.
    session = "X-Session-ID"
    metrics = "/metrics"

    def environment(self, _setup):
        return {}

    def started(self, running):
        """Waits for what can't be seen from the requests."""

    # What ends it in good order.
    stop = signal.SIGTERM

    def metrics_port(self, setup):
        return setup.port

    def change(self, running, backends):
        """Has it serve from these, without an end."""
        raise Unsupported(NO_OPTION)


class Llmlb(Peer):
    name = "llmlb"

    def __init__(self, program):
        self.program = program

    def policy(self, affinity):
        return affinity

    def version(self):
        out = subprocess.run(
            [self.program, "--version"], capture_output=True, text=True, check=True
        )
        return out.stdout.split()[-1]

    def environment(self, setup):
        return {"LLMLB_LOCK_DIR": str(setup.directory / "locks")}

    def settings(self, setup):
        """What stands behind the URL of each backend."""
        return [f" max={setup.limit}" if setup.limit else ""] * len(setup.backends)

    def backends(self, setup):
        lines = zip(setup.backends, self.settings(setup), strict=True)
        text = "".join(f"{url}{settings}\n" for (url, _), settings in lines)
        new = Path(setup.write("backends.new", text))
        return str(new.replace(setup.directory / "backends"))

    def command(self, setup):
        command = [self.program, "serve", "--port", str(setup.port), "--health-interval", "1"]
        command += ["--workers", str(setup.workers), "--backends-file", self.backends(setup)]
        if setup.affinity:
            command += ["--affinity", setup.affinity]
        if setup.alias:
            command += ["--model-alias", "=".join(ALIAS)]
        if setup.key:
            command += ["--api-key", setup.key]
        if setup.tls:
            command += ["--tls-cert", setup.tls[0], "--tls-key", setup.tls[1]]
        return command

    def change(self, running, backends):
        running.setup.backends = backends
        self.backends(running.setup)
        running.process.send_signal(signal.SIGHUP)


class Debian(Peer):
    """A program from the PATH, that tells its version."""

    flag = ""

    def version(self):
        out = subprocess.run([self.name, self.flag], capture_output=True, text=True, check=True)
        return re.search(r"\d+\.\d+\.\d+", out.stdout + out.stderr)[0]


class Nginx(Debian):
    name, flag = "nginx", "-v"
    stop = signal.SIGQUIT

    def config(self, setup):
        most = f" max_conns={setup.limit}" if setup.limit else ""
        hosts = [url.removeprefix("http://") for url, _ in setup.backends]
        servers = "zone models 64k; " + " ".join(f"server {host}{most};" for host in hosts)
        text = bench.NGINX
        # A body of any size, to another backend when one fails.
        text = text.replace(
            "access_log off;",
            "access_log off; client_max_body_size 0; proxy_read_timeout 600s;\n"
            "    proxy_next_upstream error timeout http_429 http_500 http_502 http_503\n"
            "        non_idempotent;",
        )
        if setup.affinity == "session":
            text = text.replace("least_conn;", "hash $http_x_session_id consistent;")
        elif setup.affinity:
            raise Unsupported(NO_OPTION)
        if setup.key:
            check = f'if ($http_authorization != "Bearer {setup.key}") {{{{ return 401; }}}}'
            text = text.replace("location / {{", f"{check}\n        location / {{{{")
        secure = ""
        if setup.tls:
            secure = " ssl http2; ssl_certificate {}; ssl_certificate_key {}".format(*setup.tls)
        place = {"dir": setup.directory, "port": setup.port, "workers": setup.workers}
        text = text.format(servers=servers, secure=secure, **place)
        return setup.write("nginx.conf", text)

    def command(self, setup):
        # Its workers are another user, who writes here.
        setup.directory.chmod(0o777)
        return ["nginx", "-p", str(setup.directory), "-c", self.config(setup)]

    def change(self, running, backends):
        running.setup.backends = backends
        self.config(running.setup)
        running.process.send_signal(signal.SIGHUP)


HAPROXY_CHECKS = """
    option httpchk GET /health
    default-server check inter 1s fall 3 rise 2 observe layer7 error-limit 3 on-error mark-down
    option redispatch 1
    option abortonclose
    option http-no-delay
    retries 3
    retry-on conn-failure empty-response 500 502 503 504
    timeout queue 30s
"""


class Haproxy(Debian):
    """It reads the model of a body that fits into its buffer, and has a section for each model."""

    name, flag = "haproxy", "-v"
    stop = signal.SIGUSR1

    def config(self, setup):
        text = bench.HAPROXY.split("\nbackend models")[0].format(
            workers=setup.workers, port=setup.port
        )
        bind = f"bind 127.0.0.1:{setup.port}"
        rules = [bind]
        if setup.tls:
            pem = "".join(Path(part).read_text() for part in setup.tls)
            crt = setup.write("both.pem", pem)
            rules = [f"{bind} ssl crt {crt} alpn h2,http/1.1"]
        if setup.key:
            allowed = f'req.hdr(authorization) -m str "Bearer {setup.key}"'
            rules.append(f"http-request deny deny_status 401 unless {{ {allowed} }}")
        exporter = "http-request use-service prometheus-exporter"
        rules.append(f"{exporter} if {{ path {self.metrics} }}")
        text = text.replace(bind, "\n    ".join(rules))
        models = setup.models()
        if len(models) > 1:
            body = "req.body,json_query('$.model')"
            rules = [f"    use_backend {m} if {{ {body} -m str {m} }}" for m in models]
            if setup.alias:
                rules.append(f"    use_backend {ALIAS[1]} if {{ {body} -m str {ALIAS[0]} }}")
            text = text.replace(
                "    default_backend models",
                "\n".join(["    option http-buffer-request", *rules]) + "\n",
            )
        else:
            text = text.replace("default_backend models", f"default_backend {models[0]}")
        for model in models:
            text += f"\nbackend {model}\n    {self.balance(setup)}\n{HAPROXY_CHECKS}"
            most = f" maxconn {setup.limit}" if setup.limit else ""
            for number, (url, served) in enumerate(setup.backends):
                if model in served:
                    text += f"    server s{number} {url.removeprefix('http://')}{most}\n"
        return setup.write("haproxy.cfg", text)

    def balance(self, setup):
        if setup.affinity == "prefix":
            raise Unsupported(NO_OPTION)
        if setup.affinity:
            return f"balance hdr({self.session})\n    hash-type consistent"
        return "balance leastconn"

    def command(self, setup):
        return ["haproxy", "-W", "-db", "-f", self.config(setup)]

    def change(self, running, backends):
        running.setup.backends = backends
        self.config(running.setup)
        running.process.send_signal(signal.SIGUSR2)


class FromPyPI(Peer):
    """A program of a Python package, in a virtual environment of its own."""

    def __init__(self, venvs):
        self.venvs = Path(venvs).absolute()
        self.bin = self.venvs / self.name / "bin"

    def version(self):
        [packages] = self.bin.parent.glob("lib/python*/site-packages")
        [found] = importlib.metadata.distributions(name=self.name, path=[str(packages)])
        return found.version


class SglangRouter(FromPyPI):
    """The common descent of three of them."""

    name = "sglang-router"
    program: tuple[str, ...] = ("python", "-m", "sglang_router.launch_router")
    session = "X-SMG-Routing-Key"
    # The policy that keeps sessions together.
    sticky, level = "manual", "warn"

    def command(self, setup):
        command = [str(self.bin / self.program[0]), *self.program[1:], "--host", "127.0.0.1"]
        command += ["--port", str(setup.port), "--prometheus-host", "127.0.0.1"]
        command += ["--prometheus-port", str(setup.metrics_port), "--log-level", self.level]
        for option in ("health-check-interval", "health-check-timeout", "cb-timeout-duration"):
            command += [f"--{option}-secs", "1" if "cb" not in option else "10"]
        command += ["--worker-startup-check-interval", "1", "--cb-failure-threshold", "3"]
        if self.igw(setup):
            command += ["--enable-igw"]
        else:
            command += ["--worker-urls", *(url for url, _ in setup.backends)]
        command += ["--policy", self.policy(setup.affinity)]
        if setup.limit:
            command += ["--max-concurrent-requests", str(setup.limit * len(setup.backends))]
        if setup.key:
            command += ["--api-key", setup.key]
        if setup.tls:
            command += self.tls(setup)
        return command

    def policy(self, affinity):
        policies = {"session": self.sticky, "prefix": "cache_aware"}
        return policies.get(affinity, "power_of_two")

    def tls(self, setup):
        return ["--tls-cert-path", setup.tls[0], "--tls-key-path", setup.tls[1]]

    def metrics_port(self, setup):
        return setup.metrics_port

    def environment(self, setup):
        return {"RUST_LOG": "warn", **self.vocabulary(setup)}

    def vocabulary(self, setup):
        """OpenAI's, which it downloads for several models, if it is not at hand: LiteLLM's package
        has it."""
        found = next(self.venvs.glob(f"litellm/lib/python*/{VOCABULARY}"), None)
        link = setup.directory / "o200k_base.tiktoken"
        if found and not link.exists():
            link.symlink_to(found)
        return {"TIKTOKEN_ENCODINGS_BASE": str(setup.directory)} if found else {}

    def igw(self, setup):
        """Whether it is in the mode for several models, whose backends come later."""
        return len(setup.models()) > 1

    def started(self, running):
        if self.igw(running.setup):
            for url, _ in running.setup.backends:
                self.add(running, url)

    def add(self, running, url):
        status, answer = running.ask("POST", "/workers", {"url": url})
        if status not in (200, 201, 202):
            raise Unsupported(f"POST /workers: {status} {answer[:80]!r}")

    def remove(self, running, url):
        _, answer = running.ask("GET", "/workers")
        [worker] = [one["id"] for one in json.loads(answer)["workers"] if one["url"] == url]
        status, answer = running.ask("DELETE", f"/workers/{worker}")
        if status not in (200, 202):
            raise Unsupported(f"DELETE /workers: {status} {answer[:80]!r}")

    def change(self, running, backends):
        before = {url for url, _ in running.setup.backends}
        after = {url for url, _ in backends}
        running.setup.backends = backends
        for url in after - before:
            self.add(running, url)
        for url in before - after:
            self.remove(running, url)


class Smg(SglangRouter):
    name = "smg"
    program = ("smg", "launch")
    sticky = "consistent_hashing"

    def igw(self, setup):
        return True

    def command(self, setup):
        command = super().command(setup)
        return command + (["--model-alias", "=".join(ALIAS)] if setup.alias else [])


class VllmRouter(SglangRouter):
    name = "vllm-router"
    program = ("vllm-router",)
    session = "X-Session-ID"
    sticky, level = "consistent_hash", "warning"

    def igw(self, setup):
        return True

    def tls(self, setup):
        raise Unsupported(NO_OPTION)

    def remove(self, running, url):
        status, answer = running.ask("POST", f"/remove_worker?url={url}")
        if status != 200:
            raise Unsupported(f"POST /remove_worker: {status} {answer[:80]!r}")


class Litellm(FromPyPI):
    name = "litellm"
    session = "X-LiteLLM-Session-ID"
    metrics = "/metrics/"

    def environment(self, setup):
        # It would ask for prices elsewhere.
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
        # Else it starts with a key alone.
        keyless = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
        return {**quiet, **keyless, "HOME": str(setup.directory)}

    def config(self, setup):
        models = [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"hosted_vllm/{model}",
                    "api_base": f"{url}/v1",
                    "api_key": "none",
                    **({"max_parallel_requests": setup.limit} if setup.limit else {}),
                },
            }
            for url, served in setup.backends
            for model in served
        ]
        router = {"routing_strategy": "least-busy", "num_retries": 2, "retry_after": 0}
        router |= {"allowed_fails": 2, "cooldown_time": 10, "timeout": 600}
        # It takes the end of streams without a last word for a failure.
        router["disable_cooldowns"] = setup.many
        if setup.alias:
            router["model_group_alias"] = {ALIAS[0]: ALIAS[1]}
        if setup.affinity:
            check = {"session": "session_affinity", "prefix": "prompt_caching"}[setup.affinity]
            router["optional_pre_call_checks"] = [check]
        general = {"background_health_checks": True, "health_check_interval": 1}
        general["enable_health_check_routing"] = True
        if setup.key:
            general["master_key"] = setup.key
        parts = {"model_list": models, "router_settings": router, "general_settings": general}
        parts["litellm_settings"] = {"callbacks": ["prometheus"], "request_timeout": 600}
        # JSON is YAML.
        return setup.write("litellm.yaml", json.dumps(parts, indent=1))

    def command(self, setup):
        command = [str(self.bin / "litellm"), "--config", self.config(setup)]
        command += ["--host", "127.0.0.1", "--port", str(setup.port)]
        if setup.many:
            command += ["--num_workers", str(setup.workers)]
        if setup.tls:
            command += ["--ssl_certfile_path", setup.tls[0], "--ssl_keyfile_path", setup.tls[1]]
        return command

    def started(self, running):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not running.setup.tls:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if running.ask("GET", "/health/liveliness")[0] == 200:
                    return
            time.sleep(0.2)
