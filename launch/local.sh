#!/usr/bin/env bash
# Install and run on this machine.
#
#   launch/local.sh run --device=cuda -- --stage=judge --model=MODEL_DIR --input=pairs.jsonl
#
# Commands, each of which may be repeated:
#   setup    make the environment and install the package (what is there already stays)
#   run      setup, then run; ^C and SIGTERM reach the run, which saves first; ^C again ends it at once
#
#   --device=KIND       cpu, cuda or tpu
#   --cuda=N            12 or 13 (13, but 12 where the driver is older than 580)
#   --processes=N       split the run over N processes of this machine (1); with cuda, each gets its
#                       share of --gpus
#   --gpus=N            how many GPUs there are, with --processes (8)
#   --port=N            on which the processes find each other (12321)
#   --venv=DIR          the environment (.venv of this checkout)
#   --env-file=FILE     NAME=VALUE lines for the run (HF_TOKEN, WANDB_API_KEY); mode 600
#   --log-dir=DIR       output of all processes but the first (runs/logs of this checkout)
#   --settings=FILE     options, a line each without the dashes
#   --dry-run           show what would be done
#
# Exit status: that of the run (of several processes, the first one that failed); 1 a step failed;
# 2 a mistake in the command.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

opt_device='' opt_cuda='' opt_processes=1 opt_gpus=8 opt_port=12321 opt_venv=$REPOSITORY/.venv opt_env_file=''
opt_log_dir=$REPOSITORY/runs/logs
PIDS=()
STATE=starting # then running, stopping; or the signal that came while starting

setup() {
    local stamp
    EXTRA=''
    case $opt_device in
        cpu) ;;
        cuda) choose_cuda ;;
        tpu) EXTRA='[tpu]' ;;
        *) die "--device=$opt_device: cpu, cuda or tpu" ;;
    esac
    stamp="$opt_device $EXTRA $(cat "$REPOSITORY"/{setup.cfg,pyproject.toml,constraints.txt} | cksum)"
    if [[ -f $opt_venv/.rmr1_jax && $(<"$opt_venv/.rmr1_jax") == "$stamp" ]]; then
        say "$opt_venv is set up already"
        return
    fi
    install_package "$EXTRA" "install python3.12 and python3.12-venv"
    if ! dry; then echo "$stamp" >"$opt_venv/.rmr1_jax"; fi
}

# Starts process number $1; what it writes goes to the screen from the first, to files from others.
start() {
    local command=("$opt_venv/bin/python" -m rmr1_jax.main) share=$((opt_gpus / opt_processes)) gpus
    if ((opt_processes > 1)); then
        command+=("--coordinator=127.0.0.1:$opt_port" "--process_count=$opt_processes" "--process_index=$1")
        if [[ $opt_device == cuda ]]; then
            gpus=$(seq -s, $(($1 * share)) $((($1 + 1) * share - 1)))
            command=(env "CUDA_VISIBLE_DEVICES=$gpus" "${command[@]}")
        fi
    fi
    if [[ $opt_device == cpu ]]; then command=(env JAX_PLATFORMS=cpu "${command[@]}"); fi
    command+=("${REST[@]}")
    show "${command[@]}"
    if dry; then return; fi
    # Job control puts it into a process group of its own, which ^C at a terminal does not reach, and
    # leaves it SIGINT, which bash has others in the background ignore.
    set -m
    if (($1 == 0)); then
        "${command[@]}" </dev/null &
    else
        "${command[@]}" </dev/null >"$opt_log_dir/process_$1.log" 2>&1 &
    fi
    set +m
    PIDS+=($!)
}

# stop SIGNAL: hands the first one on, once all are started; ^C after that kills them, and whatever
# they have started.
stop() {
    if [[ $STATE == starting ]]; then
        STATE=$1
    elif [[ $STATE == running ]]; then
        STATE=stopping
        kill "-$1" "${PIDS[@]}" 2>/dev/null || true
    elif [[ $1 == INT ]]; then
        kill -KILL -- "${PIDS[@]/#/-}" 2>/dev/null || true
    fi
}

run() {
    local number pid signal status result=0
    if ((opt_processes > 1)); then attempt "making the folder of the logs" mkdir -p "$opt_log_dir"; fi
    load_env_file "$opt_env_file"
    trap 'stop TERM' TERM HUP
    trap 'stop INT' INT
    for ((number = 0; number < opt_processes; number++)); do start "$number"; done
    signal=$STATE STATE=running
    if [[ $signal != starting ]]; then stop "$signal"; fi
    for number in "${!PIDS[@]}"; do
        pid=${PIDS[$number]}
        status=0
        end_of "$pid" || status=$?
        if ((status != 0 && number > 0)); then
            warn "process $number ended with status $status: $opt_log_dir/process_$number.log"
        fi
        if ((result == 0)); then result=$status; fi
    done
    exit "$result"
}

parse "$@"
verb=${WORDS[0]-}
if [[ $opt_help == yes || ! $verb ]]; then
    show_help
    if [[ $opt_help == yes ]]; then exit 0; else exit 2; fi
fi
((${#WORDS[@]} == 1)) || die "one command at a time: ${WORDS[*]}"
need device
check_number processes gpus port
((opt_processes > 0)) || die "--processes=0: at least one is needed"
case $verb in
    setup) setup ;;
    run)
        check_stage
        check_env_file "$opt_env_file"
        if [[ $opt_device == cuda ]] && ((opt_gpus % opt_processes)); then
            die "--gpus=$opt_gpus cannot be shared by --processes=$opt_processes"
        fi
        if [[ $opt_device == tpu ]] && ((opt_processes > 1)); then
            die "--processes=$opt_processes: the chips of a TPU machine belong to one process"
        fi
        setup
        run
        ;;
    *) die "$verb is no command of $0 (see --help)" ;;
esac
