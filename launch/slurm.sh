#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster, on one node or several.
#
#   launch/slurm.sh submit --name=NAME --nodes=2 --gpus=8 --time=24:00:00 --partition=P \
#       -- --stage=sft --config=RECIPE --workdir=/shared/runs/NAME
#
# Commands, each of which may be repeated:
#   setup    make the environment and install the package for CUDA: once, on the login node, in a
#            folder that the nodes see as well
#   submit   queue the job, unless one of this name is queued or running
#   status   of the job            logs     of the last job of this name (--follow)
#   cancel   let the run save, and end it
#
# The job is told two minutes before its time is over or it is preempted: the run saves, the job is
# queued again and goes on from there. So it is where a process was killed, is gone or did not come,
# until that has happened three times in a row.
#
#   --name=NAME         of the job
#   --nodes=N --gpus=N  nodes (1), GPUs of each (8)
#   --processes=KIND    one process per gpu or per node (gpu)
#   --time=LIMIT        as sbatch has it, such as 24:00:00
#   --partition=P --account=A --qos=Q --constraint=C --gpu-type=T --cpus=N --mem=M
#                       handed to sbatch; --cpus is for each process
#   --cuda=N            setup: 12 or 13 (13, but 12 where this node has a driver older than 580)
#   --venv=DIR          the environment (.venv of this checkout)
#   --env-file=FILE     NAME=VALUE lines for the run (HF_TOKEN, WANDB_API_KEY); mode 600
#   --log-dir=DIR       where the output goes (runs/slurm of this checkout)
#   --lead=SECONDS      how long before the end the job is told (120)
#   --restarts=N        how often the job may queue itself again (100)
#   --follow            logs: go on as they are written
#   --settings=FILE     options, a line each without the dashes
#   --yes               do not ask before queueing or cancelling
#   --dry-run           show what would be done; only reads
#
# Exit status: 0 done; 1 a step failed; 2 a mistake in the command.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# shellcheck disable=SC2034  # some are read by name
opt_name='' opt_nodes=1 opt_gpus=8 opt_processes=gpu opt_time='' opt_partition='' opt_account=''
# shellcheck disable=SC2034
opt_qos='' opt_constraint='' opt_gpu_type='' opt_cpus='' opt_mem='' opt_venv=$REPOSITORY/.venv
opt_cuda='' opt_env_file='' opt_log_dir=$REPOSITORY/runs/slurm opt_lead=120 opt_restarts=100 opt_follow=no

# Sets JOBS to the lines "ID STATE NODES" of the jobs of this name.
find_jobs() {
    JOBS=''
    if ! has_tool squeue; then
        dry || die "squeue is not installed or not on the PATH: run this on a login node of the cluster"
        warn "Slurm is not here: shown as if nothing were queued"
        return
    fi
    must_ask "asking for the jobs named $opt_name" squeue --noheader --me "--name=$opt_name" '--format=%i %T %N'
    JOBS=$ANSWER
}

setup() {
    choose_cuda
    install_package "$EXTRA" "load a module that has one"
}

submit() {
    local command tasks=$opt_gpus gpus=$opt_gpus option variable
    need time
    check_stage
    check_env_file "$opt_env_file"
    check_number nodes gpus lead restarts
    ((opt_nodes > 0 && opt_gpus > 0)) || die "--nodes and --gpus: at least one is needed"
    [[ $opt_processes == gpu || $opt_processes == node ]] || die "--processes=$opt_processes: gpu or node"
    if [[ $opt_processes == node ]]; then tasks=1; fi
    if [[ $opt_gpu_type ]]; then gpus=$opt_gpu_type:$opt_gpus; fi
    find_jobs
    if [[ $JOBS ]]; then
        say "A job of this name is there already: $JOBS"
        return
    fi
    dry || tool sbatch "run this on a login node of the cluster"
    [[ -x $opt_venv/bin/python ]] || dry || die "$opt_venv has no Python: run $0 setup --venv=$(quoted "$opt_venv")"
    confirm "This queues $opt_nodes x $opt_gpus GPUs for up to $opt_time, again after each time limit \
until the run is done."
    command=(sbatch "--job-name=$opt_name" "--nodes=$opt_nodes" "--gpus-per-node=$gpus"
        "--ntasks-per-node=$tasks" "--time=$opt_time" --requeue "--signal=TERM@$opt_lead"
        --open-mode=append "--output=$opt_log_dir/$opt_name-%j.log")
    for option in partition account qos constraint mem; do
        variable=opt_$option
        if [[ ${!variable} ]]; then command+=("--$option=${!variable}"); fi
    done
    if [[ $opt_cpus ]]; then command+=("--cpus-per-task=$opt_cpus"); fi
    attempt "making the folder of the logs" mkdir -p "$opt_log_dir"
    attempt "queueing the job" "${command[@]}" "$LAUNCH/slurm.sbatch" "$REPOSITORY" "$opt_venv" \
        "$opt_log_dir" "$opt_restarts" "$opt_env_file" "${REST[@]}"
}

# Paths of the job, which may start in another folder.
make_absolute() {
    local name variable
    for name in "$@"; do
        variable=opt_${name//-/_}
        [[ ! ${!variable} || ${!variable} == /* ]] || printf -v "$variable" '%s' "$PWD/${!variable}"
    done
}

logs() {
    local newest='' file
    for file in "$opt_log_dir/$opt_name"-*.log; do
        if [[ -e $file && (! $newest || $file -nt $newest) ]]; then newest=$file; fi
    done
    if [[ ! $newest ]] && dry; then newest=$opt_log_dir/$opt_name-JOB.log; fi
    [[ $newest ]] || die "$opt_log_dir holds no log of $opt_name: it has not started yet, or never was queued"
    show tail -n 200 "$newest"
    if dry; then return; fi
    if [[ $opt_follow == yes ]]; then exec tail -n 200 -F "$newest"; else tail -n 200 "$newest"; fi
}

cancel() {
    local job running=no
    find_jobs
    if [[ ! $JOBS ]]; then
        say "No job named $opt_name is there: nothing to cancel"
        return
    fi
    confirm "This ends $JOBS."
    while read -r job state _; do
        # Tells a job that starts, or queues itself again, just now.
        attempt "noting that it is not to go on" touch "$opt_log_dir/$opt_name-$job.cancelled"
        if [[ $state == RUNNING ]]; then # its steps get it, and save
            attempt "ending the run of job $job" scancel --signal=TERM "$job"
            running=yes
        else
            attempt "cancelling job $job" scancel "$job"
        fi
    done <<<"$JOBS"
    if [[ $running == yes ]]; then say "The run saves and ends; $0 status --name=$opt_name says when"; fi
}

parse "$@"
verb=${WORDS[0]-}
if [[ $opt_help == yes || ! $verb ]]; then
    show_help
    if [[ $opt_help == yes ]]; then exit 0; else exit 2; fi
fi
((${#WORDS[@]} == 1)) || die "one command at a time: ${WORDS[*]}"
make_absolute venv log-dir env-file
case $verb in
    setup) setup ;;
    submit | status | logs | cancel)
        need name
        check_name
        case $verb in
            status)
                find_jobs
                say "${JOBS:-No job named $opt_name is queued or running}"
                ;;
            *) "$verb" ;;
        esac
        ;;
    *) die "$verb is no command of $0 (see --help)" ;;
esac
