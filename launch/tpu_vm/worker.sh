#!/usr/bin/env bash
# What launch/tpu_vm.sh has each worker of a TPU slice do; it lies there with the rest of the code.
#
#   worker.sh status MOUNT        one line: code, ready or not, idle, running, ended or stopped
#   worker.sh setup MOUNT         Python, packages, and MOUNT at /mnt/shared
#   worker.sh start ARGUMENT...   run rmr1_jax with these, unless it is running
#   worker.sh stop                SIGTERM, and wait until the run has saved; it stays stopped
#   worker.sh logs [--follow]     the output of the last run
#
# MOUNT is gs://BUCKET[/FOLDER] (Cloud Storage FUSE) or HOST:/SHARE (NFS).

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

STATE=${RMR1_JAX_STATE:-$HOME/.rmr1_jax}
SHARED=${RMR1_JAX_SHARED:-/mnt/shared}
VENV=$STATE/venv
mkdir -p "$STATE"
chmod 700 "$STATE"

content() { if [[ -f $1 ]]; then cat "$1"; fi; }

# What an installation depends on.
stamp() { cat "$REPOSITORY"/{setup.cfg,pyproject.toml,constraints.txt} | cksum | tr ' ' -; }

is_ready() { [[ $(content "$STATE/setup") == "$(stamp)" && $(content "$STATE/mount") == "$1" ]] && mountpoint -q "$SHARED"; }

# A process id may be another program's by now: after a reboot, say.
is_running() {
    local pid
    pid=$(content "$STATE/pid")
    [[ $pid ]] && kill -0 "$pid" 2>/dev/null && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q 'rmr1_jax\.main'
}

status() {
    local ready=no state=idle
    if is_ready "$1"; then ready=yes; fi
    if is_running; then
        state=running
    elif [[ -f $STATE/stopped && $(content "$STATE/ended") != 0 ]]; then
        state=stopped
    elif [[ -f $STATE/ended ]]; then
        state=ended:$(content "$STATE/ended")
    elif [[ -f $STATE/pid ]]; then
        state=lost # no status was written: the machine was restarted, or memory ran out
    fi
    say "rmr1_jax worker=$(hostname) code=$(content "$STATE/code") ready=$ready state=$state"
}

# A fresh machine updates itself for some minutes, and holds the lock of its package manager.
apt_install() {
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
    sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 install "$@"
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc repository=https://packages.cloud.google.com/apt
    has_tool gcsfuse && return
    curl -fsSL "$repository/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $repository gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_install gcsfuse
}

mount_shared() {
    local bucket folder options=(--implicit-dirs --rename-dir-limit=1000000)
    mountpoint -q "$SHARED" && [[ $(content "$STATE/mount") == "$1" ]] && return
    if mountpoint -q "$SHARED"; then sudo umount "$SHARED"; fi
    sudo mkdir -p "$SHARED"
    if [[ $1 == gs://* ]]; then
        install_gcsfuse
        bucket=${1#gs://}
        folder=${bucket#"${bucket%%/*}"}
        folder=${folder#/}
        if [[ $folder ]]; then options+=(--only-dir "$folder"); fi
        sudo chown "$(id -u):$(id -g)" "$SHARED"
        gcsfuse "${options[@]}" "${bucket%%/*}" "$SHARED"
    else
        has_tool mount.nfs || apt_install nfs-common
        sudo mount -t nfs -o hard,timeo=600,retrans=3 "$1" "$SHARED"
        sudo chmod a+rwxt "$SHARED"
    fi
    echo "$1" >"$STATE/mount"
}

setup() {
    local python
    if is_ready "$1"; then
        say "$(hostname): set up already"
        return
    fi
    python=$(find_python)
    if [[ ! $python ]]; then # the images of TPU VMs have 3.10
        python3 -m pip install --quiet --user --upgrade uv
        python3 -m uv python install --quiet 3.12
        python=$(python3 -m uv python find 3.12)
    fi
    if [[ ! -x $VENV/bin/python ]]; then "$python" -m venv "$VENV"; fi
    if [[ $(content "$STATE/setup") != "$(stamp)" ]]; then
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint "$REPOSITORY/constraints.txt" --editable "${REPOSITORY}[tpu]"
    fi
    mount_shared "$1"
    stamp >"$STATE/setup"
    say "$(hostname): set up"
}

start() {
    local command
    command=$(quoted "$@")
    if is_running; then
        [[ $(content "$STATE/command") == "$command" ]] ||
            die "$(hostname): another run is going: $(content "$STATE/command")"
        say "$(hostname): running already"
        return
    fi
    rm -f "$STATE/ended" "$STATE/stopped"
    echo "$command" >"$STATE/command"
    say "--- $(date -u +%FT%TZ) $command" >>"$STATE/log"
    nohup setsid bash "${BASH_SOURCE[0]}" supervise "$@" </dev/null >>"$STATE/log" 2>&1 &
    for _ in {1..100}; do # until its process is there to be asked about
        if is_running || [[ -f $STATE/ended ]]; then break; fi
        sleep 0.1
    done
    say "$(hostname): started"
}

supervise() {
    local pid status
    load_env_file "$STATE/env"
    cd "$REPOSITORY"
    "$VENV/bin/python" -m rmr1_jax.main "$@" &
    pid=$!
    echo "$pid" >"$STATE/pid"
    trap 'kill -TERM "$pid" 2>/dev/null || true' TERM INT HUP
    while :; do # a signal ends the wait, not the run
        status=0
        wait "$pid" || status=$?
        kill -0 "$pid" 2>/dev/null || break
    done
    echo "$status" >"$STATE/ended"
}

stop() {
    local pid
    touch "$STATE/stopped" # also where it has just ended: whoever watches it would start it again
    if ! is_running; then
        say "$(hostname): nothing is running"
        return
    fi
    pid=$(content "$STATE/pid")
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    say "$(hostname): stopped"
}

logs() {
    touch "$STATE/log"
    if [[ ${1-} == --follow ]]; then exec tail -n 200 -F "$STATE/log"; else tail -n 200 "$STATE/log"; fi
}

command=${1-help}
shift || true
case $command in
    status | setup | start | supervise | stop | logs) "$command" "$@" ;;
    *) show_help ;;
esac
