#!/usr/bin/env bash
# A run on the TPUs of a cluster that XPK manages.
#
#   launch/gke/xpk.sh create --name=NAME --cluster=C --project=P --zone=Z --accelerator=v5litepod-16 \
#       --image=IMAGE --storage=S -- --stage=sft --config=RECIPE --workdir=/mnt/shared/runs/NAME
#
# Commands, each of which may be repeated:
#   create   start the workload, unless it is there     status   of the workload
#   delete   end it
#
#   --name=NAME           of the workload
#   --cluster=C --project=P --zone=Z    made with xpk cluster create
#   --accelerator=TYPE    v5litepod-16, v5p-128, v6e-256, ...
#   --slices=N            slices joined over the data centre network (1)
#   --image=IMAGE         made by launch/docker/build.sh, with a tag or digest
#   --storage=S           attached with xpk storage attach --mount-point=/mnt/shared, where --workdir
#                         has to lie
#   --env-file=FILE       NAME=VALUE lines for the run (HF_TOKEN, WANDB_API_KEY), mode 600. XPK writes
#                         them into the workload, where whoever may read workloads reads them: use
#                         jobset.sh, which keeps them in a Secret, where that is too many
#   --capacity=KIND       spot or on-demand; without it, what the cluster has
#   --restarts=N          new starts at most (50)
#   --grace=SECONDS       for saving when the run is told to end (300)
#   --settings=FILE       options, a line each without the dashes
#   --yes                 do not ask before starting or ending
#   --dry-run             show what would be done; only reads
#
# Exit status: 0 done; 1 a step failed; 2 a mistake in the command.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

opt_name='' opt_cluster='' opt_project='' opt_zone='' opt_accelerator='' opt_slices=1 opt_image=''
opt_storage='' opt_env_file='' opt_capacity='' opt_restarts=50 opt_grace=300

PLACE=()
PRESENT=no

check_run() {
    need accelerator image storage
    check_number slices restarts grace
    check_stage
    check_env_file "$opt_env_file"
    [[ ! $opt_capacity || $opt_capacity == spot || $opt_capacity == on-demand ]] ||
        die "--capacity=$opt_capacity: spot or on-demand"
    check_pods
}

# Sets PRESENT.
look() {
    PLACE=("--cluster=$opt_cluster" "--project=$opt_project" "--zone=$opt_zone")
    if ! has_tool xpk; then
        dry || die "xpk is not installed or not on the PATH: pip install xpk"
        warn "xpk is not here: shown as if nothing existed yet"
        return
    fi
    if ! ask xpk workload list "${PLACE[@]}" "--filter-by-job=$opt_name"; then
        dry || failed "asking for $opt_name" 1 "$(last_line "$SCRATCH/errors")"
        warn "xpk could not ask the cluster: shown as if nothing existed yet"
        return
    fi
    if grep -qE "^${opt_name}[[:space:]]" <<<"$ANSWER"; then PRESENT=yes; fi
}

create() {
    local command
    if [[ $PRESENT == yes ]]; then
        say "$opt_name is there already. To start another, delete it or choose another --name"
        return
    fi
    confirm "This starts $opt_slices x $opt_accelerator on $opt_cluster, which costs money where nodes are made for it."
    command=(xpk workload create "${PLACE[@]}" "--workload=$opt_name" "--tpu-type=$opt_accelerator"
        "--num-slices=$opt_slices" "--docker-image=$opt_image" "--storage=$opt_storage"
        "--max-restarts=$opt_restarts" "--termination-grace-period-seconds=$opt_grace"
        # 3: a device failed or another process is gone; 134: aborted by JAX for the same reason, which
        # is 139 for the first process of a container; 137: killed; 143: saved after SIGTERM.
        "--restart-on-exit-codes=3,134,137,139,143")
    if [[ $opt_capacity ]]; then command+=("--$opt_capacity"); fi
    if [[ $opt_env_file ]]; then command+=("--env-file=$opt_env_file"); fi
    attempt "starting $opt_name" "${command[@]}" "--command=python -m rmr1_jax.main $(quoted "${REST[@]}")"
}

parse "$@"
verb=${WORDS[0]-}
if [[ $opt_help == yes || ! $verb ]]; then
    show_help
    if [[ $opt_help == yes ]]; then exit 0; else exit 2; fi
fi
((${#WORDS[@]} == 1)) || die "one command at a time: ${WORDS[*]}"
case $verb in
    create | status | delete)
        need name cluster project zone
        check_name
        if [[ $verb == create ]]; then check_run; fi
        look
        ;;
    *) die "$verb is no command of $0 (see --help)" ;;
esac
case $verb in
    create) create ;;
    status) if [[ $PRESENT == yes ]]; then say "$ANSWER"; else say "$opt_name is not there"; fi ;;
    delete)
        if [[ $PRESENT == no ]] && ! dry; then
            say "$opt_name is not there: nothing to delete"
            exit 0
        fi
        confirm "This ends $opt_name on all its hosts."
        attempt "deleting $opt_name" xpk workload delete "${PLACE[@]}" "--workload=$opt_name" --force
        ;;
esac
