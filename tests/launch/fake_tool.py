"""Stands on the PATH as gcloud, kubectl, sbatch and others: records its calls, and fails when told.

What it remembers lies in the folder $FAKE: `calls.jsonl`, `state.json`, `scenario.json`, and a home
folder for each worker of a TPU slice, where commands sent by ssh really run. $FAKE_FAIL is the
number of the call, counted from 1, that fails; or a part of the calls that do.

Options are those of the real tools (gcloud 528, xpk 1.16, kubectl 1.33, Slurm 25.05).
"""

import fcntl
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
TOOL = Path(sys.argv[0]).name
ARGUMENTS = sys.argv[1:]

PLACE = {"project", "zone", "quiet", "format"}
REMOTE = PLACE | {"node", "worker", "command", "tunnel-through-iap", "internal-ip", "recurse"}
OPTIONS = {
    "gcloud auth list": {"filter", "format"},
    "gcloud compute tpus tpu-vm list": PLACE | {"filter"},
    "gcloud compute tpus queued-resources create": PLACE
    | {"accelerator-type", "runtime-version", "node-id", "node-count", "node-prefix", "spot"}
    | {"reserved", "service-account", "network", "subnetwork", "internal-ips"},
    "gcloud compute tpus queued-resources describe": PLACE,
    "gcloud compute tpus queued-resources delete": PLACE | {"force", "async"},
    "gcloud compute tpus queued-resources ssh": REMOTE,
    "gcloud compute tpus queued-resources scp": REMOTE - {"command"},
    "xpk workload list": {"cluster", "project", "zone", "filter-by-job"},
    "xpk workload delete": {"cluster", "project", "zone", "workload", "force"},
    "xpk workload create": {"cluster", "project", "zone", "workload", "tpu-type", "num-slices"}
    | {"docker-image", "storage", "max-restarts", "termination-grace-period-seconds", "spot"}
    | {"on-demand", "env-file", "command", "restart-on-exit-codes"},
    "sbatch": {"job-name", "nodes", "gpus-per-node", "ntasks-per-node", "time", "requeue", "signal"}
    | {"open-mode", "output", "partition", "account", "qos", "constraint", "mem", "cpus-per-task"},
    "squeue": {"noheader", "me", "name", "format"},
    "scancel": {"signal"},
    "srun": {"kill-on-bad-exit", "label"},
    "kubectl config current-context": set(),
    "kubectl config get-contexts": {"output"},
    "kubectl get": {"context", "namespace", "output", "selector", "ignore-not-found"},
    "kubectl create": {"context", "namespace", "from-env-file", "dry-run", "output"},
    "kubectl apply": {"context", "namespace", "filename"},
    "kubectl delete": {"context", "namespace", "ignore-not-found"},
    "kubectl logs": {"context", "namespace", "tail", "selector", "container", "follow"},
    "docker build": {"file", "tag", "build-arg"},
}


def read(name: str) -> dict:
    file = FAKE / name
    return json.loads(file.read_text()) if file.exists() else {}


def write(state: dict) -> None:
    (FAKE / "state.json").write_text(json.dumps(state))


def fail(message: str, status: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def record() -> None:
    inside = "FAKE_WORKER" in os.environ
    with (FAKE / "calls.jsonl").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = 1 + sum(not json.loads(line)["inside"] for line in file)
        call = {"tool": TOOL, "arguments": ARGUMENTS, "inside": inside}
        print(json.dumps(call), file=file)
    wanted = os.environ.get("FAKE_FAIL", "")
    if wanted.isdigit():
        broken = not inside and number == int(wanted)
    else:
        broken = bool(wanted) and wanted in " ".join([TOOL, *ARGUMENTS])
    if broken:
        fail("ERROR: broken on purpose", 7)


def options() -> tuple[list[str], dict[str, str]]:
    words, named = [], {}
    for argument in ARGUMENTS[: ARGUMENTS.index("--")] if "--" in ARGUMENTS else ARGUMENTS:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            named[name] = value
        else:
            words.append(argument)
    command = " ".join([TOOL, *words])
    for known, allowed in OPTIONS.items():
        if TOOL not in ("sbatch", "srun") and command.startswith(known):
            unknown = named.keys() - allowed
            if unknown:
                fail(f"ERROR: unrecognized arguments: {sorted(unknown)}", 2)
    return words, named


def show(records: list[dict], named: dict[str, str]) -> None:
    """Those that --filter=KEY:VALUE or KEY ~ "REGEX" lets through, by --format=value(...)."""
    import re

    [(key, operator, value)] = re.findall(r'^(\w+) ?([:~]) ?"?(.*?)"?$', named["filter"])
    [columns] = re.findall(r"^value\((.+)\)$", named["format"])
    for record in records:
        if re.search(value, record[key]) if operator == "~" else value in record[key].split():
            print(*(record[column] for column in columns.split(",")), sep="\t")


def gcloud() -> None:
    words, named = options()
    if words[:2] == ["auth", "list"]:
        mine = read("scenario.json").get("account", "someone@example.org")
        accounts = {"left@example.org": "", **({mine: "ACTIVE"} if mine else {})}
        show([{"account": name, "status": status} for name, status in accounts.items()], named)
        return
    if words[2:4] == ["tpu-vm", "list"]:
        show(slices(), named)
        return
    action, name = words[3], words[-1].partition(":")[0]
    state = read("state.json")
    if action == "create":
        if "states" in state:
            fail("ERROR: ALREADY_EXISTS")
        state["life"] = state.get("life", -1) + 1
        write(state)
        state |= {key: now()[key] for key in ("states", "probes", "left_out")}
        state["type"] = named["accelerator-type"]
        state["request"] = name
        state["slices"] = int(named.get("node-count", "1"))
        for worker in range(now()["workers"]):
            (FAKE / "workers" / str(worker)).mkdir(parents=True)
        write(state)
        return
    if "states" not in state:
        fail(f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource {name} was not found")
    if action == "describe":
        if "acceleratorType" in named["format"]:
            print(state["type"])
            return
        print(state["states"][0])
        if len(state["states"]) > 1:
            state["states"].pop(0)
            write(state)
    elif action == "delete":
        take_away()
        del state["states"]
        write(state)
    elif action == "scp":
        for home in homes(named, state):
            target = home / ARGUMENTS[5].partition(":")[2]
            mode = target.stat().st_mode if target.exists() else None
            copy(ARGUMENTS[4], target)
            if mode:
                target.chmod(mode)
    elif action == "ssh":
        if state["states"] != ["ACTIVE"] or not (FAKE / "workers").exists():
            fail("ERROR: no route to host")
        command = named.get("command", "true")
        statuses = [0, *(remote(home, command) for home in homes(named, state))]
        if "status" in command and state["probes"]:
            state["probes"] -= 1
            if not state["probes"]:
                take_away()
                state["states"] = [now()["after"]]
                if state["states"] == [""]:
                    del state["states"]
            write(state)
        sys.exit(max(statuses))


def slices() -> list[dict]:
    """All of the zone: those of the request, and others that a careless filter lets through."""
    found = [(name, name, "PREEMPTED", 3) for name in ("run1-2", "run10", "other-run1")]
    state = read("state.json")
    if "states" in state:
        request, count = state["request"], state["slices"]
        names = [request] if count == 1 else [f"{request}-{each}" for each in range(count)]
        condition = "READY" if (FAKE / "workers").exists() else "PREEMPTED"
        found += [(name, request, condition, now()["workers"] // count) for name in names]
    place = "projects/7/locations/z"
    return [
        {
            "name": f"{place}/nodes/{name}",
            "queuedResource": f"{place}/queuedResources/{request}",
            "state": condition,
            "networkEndpoints.len()": workers,
        }
        for name, request, condition, workers in found
    ]


def homes(named: dict[str, str], state: dict) -> list[Path]:
    found = sorted((FAKE / "workers").iterdir())
    if named["worker"] != "all":
        return [found[int(named["worker"])]]
    part, times = state["left_out"]
    if times and part in " ".join(ARGUMENTS):
        state["left_out"] = [part, times - 1]
        write(state)
        return found[:-1]
    return found


def now() -> dict:
    """What the scenario has for a slice that was made for the first, second, ... time."""
    scenario = read("scenario.json")
    lives = scenario.get("lives", [{}])
    life = lives[min(read("state.json").get("life", 0), len(lives) - 1)]
    return {
        "states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
        "workers": 1,
        "probes": 0,  # so many questions for the status, and it is taken away
        "after": "SUSPENDED",  # or nothing: somebody deleted it
        "left_out": ["", 0],  # of calls with this, so many times, the last worker, without an error
        "run": scenario.get("run", {}),
    } | life


def copy(source: Path | str, target: Path) -> None:
    target.write_bytes(Path(source).read_bytes())


def remote(home: Path, command: str) -> int:
    place = {"HOME": str(home), "RMR1_JAX_SHARED": str(home / "shared"), "FAKE_WORKER": home.name}
    import subprocess  # here, as others below: a fake is started hundreds of times

    return subprocess.run(
        ["bash", "-c", command], cwd=home, env=os.environ | place, stdin=subprocess.DEVNULL
    ).returncode


def take_away() -> None:
    import shutil
    import signal

    for pid in (FAKE / "workers").glob("*/.rmr1_jax/pid"):
        with suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(FAKE / "workers", ignore_errors=True)


def python() -> None:
    if ARGUMENTS[:2] == ["-m", "venv"]:
        here = Path(ARGUMENTS[2]) / "bin"
        here.mkdir(parents=True)
        copy(sys.argv[0], here / "python")
        (here / "python").chmod(0o755)
        if now().get("stopped_in_setup"):
            (Path(os.environ["HOME"]) / ".rmr1_jax/stopped").touch()
        if now().get("taken_in_setup"):
            take_away()
            fail("the machine is going down")
    elif ARGUMENTS[:2] == ["-m", "rmr1_jax.main"]:
        run = now()["run"]
        print("running", *ARGUMENTS[2:], "HF_TOKEN" in os.environ, flush=True)
        if run.get("waits"):
            import signal
            import time

            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            print("waiting", flush=True)
            time.sleep(60)
        sys.exit(run.get("status", 0))


def kubectl() -> None:
    words, named = options()
    state = read("state.json")
    if words[:2] == ["config", "current-context"]:
        context = read("scenario.json").get("context", "cluster")
        print(context) if context else fail("error: current-context is not set")
    elif words[:2] == ["config", "get-contexts"]:
        if words[2] != "cluster":
            fail(f"error: context {words[2]} not found")
        print(words[2])
    elif words[0] == "get" and len(words) > 2:
        if words[1] in state:
            print(f"{words[1]}/{words[2]}")
        elif "ignore-not-found" not in named:
            fail(f'Error from server (NotFound): {words[1]} "{words[2]}" not found')
    elif words[0] == "create":
        print("kind: Secret")
    elif words[0] == "apply":
        kind = "secret" if "secret" in named["filename"] else "jobset"
        if kind == "jobset":
            copy(named["filename"], FAKE / "applied.yaml")
        write(state | {kind: True})
    elif words[0] == "delete":
        if state.pop(words[1], None) is None and "ignore-not-found" not in named:
            fail(f'Error from server (NotFound): {words[1]} "{words[2]}" not found')
        write(state)


def xpk() -> None:
    words, named = options()
    state = read("state.json")
    if words[1] == "list":
        print("Jobset Name   Status")
        if "workload" in state:
            print(f"{state['workload']}   Running")
    elif words[1] == "create":
        write(state | {"workload": named["workload"]})
    else:
        state.pop("workload")
        write(state)


def slurm() -> None:
    state = read("state.json")
    if TOOL == "sbatch":
        end = next(i for i, each in enumerate(ARGUMENTS) if not each.startswith("--"))
        names = {each[2:].partition("=")[0] for each in ARGUMENTS[:end]}
        if names - OPTIONS["sbatch"]:
            fail(f"sbatch: unrecognized option {sorted(names - OPTIONS['sbatch'])}")
        write(state | {"job": ARGUMENTS[end:]})
        print("Submitted batch job 41")
    elif TOOL == "squeue":
        options()
        if "job" in state:
            print(f"41 {read('scenario.json').get('job', 'RUNNING')} node[1-2]")
    elif TOOL == "scancel":
        options()
        if "job" in state:
            del state["job"]
            write(state)
    elif TOOL == "srun":
        rest = [each for each in ARGUMENTS if each not in ("--kill-on-bad-exit=0", "--label")]
        os.execv(rest[0], rest)


def docker() -> None:
    options()
    if ARGUMENTS[0] == "manifest" and not read("state.json").get("pushed"):
        fail("no such manifest")
    if ARGUMENTS[0] == "push":
        write({"pushed": True})


def machine() -> None:
    """What belongs to the machine that a worker is."""
    mounted = Path(os.environ["HOME"]) / "mounted"
    if TOOL == "mountpoint":
        sys.exit(0 if mounted.exists() else 32)
    if TOOL in ("gcsfuse", "mount"):
        mounted.touch()
    if TOOL == "sudo":
        os.execvp(ARGUMENTS[0], ARGUMENTS)


HANDLERS = {
    "gcloud": gcloud,
    "kubectl": kubectl,
    "xpk": xpk,
    "docker": docker,
    "python": python,
    "python3.12": python,
}
for each in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
    HANDLERS[each] = slurm
for each in ("mountpoint", "gcsfuse", "mount", "mount.nfs", "umount", "sudo", "chown"):
    HANDLERS[each] = machine

if __name__ == "__main__":
    record()
    HANDLERS[TOOL]()
