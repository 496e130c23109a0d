#!/usr/bin/env bash
# A run on a TPU slice, by queued resources of Google Cloud.
#
#   launch/tpu_vm.sh up --name=NAME --project=P --zone=Z --accelerator=TYPE --capacity=KIND \
#       --mount=WHERE -- --stage=sft --config=RECIPE --workdir=/mnt/shared/runs/NAME
#
# Commands, each of which may be repeated: what is done is not done again.
#   up       all of create, wait, sync, setup and run, then watch until the run ends; a slice that
#            was preempted is made again, and the run goes on from its last checkpoint; after stop
#            or delete, from wherever, nothing is started again
#   create   ask for the slice               sync     copy the code to all workers
#   wait     until it is there               setup    Python, packages and the mount, on all workers
#   run      start on all workers            status   the slice, and what each worker does
#   logs     of one worker (--follow)        ssh      a shell on one worker, or: ssh -- COMMAND
#   stop     let the run save, and end it    delete   give the slice back
#
# What                     (in a file, a line each without the dashes: --settings=FILE)
#   --name=NAME            of the slice and of its request
#   --project=P --zone=Z   where
#   --accelerator=TYPE     v5litepod-16, v5p-128, v6e-8, v4-32, ...
#   --capacity=KIND        spot, on-demand or reserved
#   --slices=N             slices joined over the data centre network (1)
#   --mount=WHERE          gs://BUCKET[/FOLDER] or HOST:/SHARE (NFS, such as Filestore), which all
#                          workers see at /mnt/shared; --workdir has to lie there
#   --env-file=FILE        NAME=VALUE lines for the run (HF_TOKEN, WANDB_API_KEY); mode 600
# More
#   --runtime=VERSION      of the TPU software (what TYPE needs)
#   --service-account=A --network=N --subnetwork=N --internal-ips    as gcloud has them; with the
#                          last, workers are reached through IAP
#   --worker=I --node=S    which worker (0) of which slice (0) logs and ssh go to
#   --follow               logs: go on as they are written
#   --detach               up: return once the run has started
#   --delete-when-done     up: give the slice back when the run has ended well
#   --restarts=N           up: so many new starts at most (50)
#   --poll=SECONDS         between questions while waiting (30)
#   --yes                  do not ask before what costs money or ends something
#   --dry-run              show what would be done; only reads
#
# Exit status: 0 done; 1 a step failed; 2 a mistake in the command; up: that of the run, 143 where
# stop or delete ended it.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=launch/tpu_vm/slice.sh
source "$LAUNCH/tpu_vm/slice.sh"
# shellcheck source=launch/tpu_vm/workers.sh
source "$LAUNCH/tpu_vm/workers.sh"

opt_name='' opt_project='' opt_zone='' opt_accelerator='' opt_capacity='' opt_slices=1
opt_mount='' opt_env_file='' opt_runtime='' opt_service_account='' opt_network=''
opt_subnetwork='' opt_internal_ips=no opt_worker=0 opt_node=0 opt_follow=no opt_detach=no
opt_delete_when_done=no opt_restarts=50 opt_poll=30

SHARED=/mnt/shared
ON_WORKER=rmr1_jax/launch/tpu_vm/worker.sh
QUEUE=(gcloud compute tpus queued-resources)
STATE='' # of the request; '' if there is none
PLACE=() REMOTE=()

check() {
    need name project zone
    check_name
    check_number slices restarts poll
    ((opt_slices > 0)) || die "--slices=0: at least one is needed"
    PLACE=("--project=$opt_project" "--zone=$opt_zone" --quiet)
    REMOTE=("${PLACE[@]}")
    if [[ $opt_internal_ips == yes ]]; then REMOTE+=(--tunnel-through-iap); fi
    if ! has_tool gcloud; then
        dry || die "gcloud is not installed or not on the PATH: https://cloud.google.com/sdk/docs/install"
        warn "gcloud is not here: shown as if nothing existed yet"
    elif ! ask gcloud auth list --filter=status:ACTIVE '--format=value(account)' || [[ ! $ANSWER ]]; then
        dry || die "gcloud is not logged in: gcloud auth login"
        warn "gcloud is not logged in: shown as if nothing existed yet"
    else
        LOGGED_IN=yes
    fi
}
LOGGED_IN=no

check_mount() {
    need mount
    [[ $opt_mount =~ ^gs://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._/-]+)?$ || $opt_mount =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$ ]] ||
        die "--mount=$opt_mount: gs://BUCKET[/FOLDER] or HOST:/SHARE is expected"
}

check_run() {
    local place option
    check_mount
    check_stage
    check_env_file "$opt_env_file"
    for option in workdir output; do
        place=$(rest_option "$option")
        [[ ! $place || $place == "$SHARED"/* ]] || die "--$option=$place lies on the disk of one \
worker, and is lost with it: put it under $SHARED, where --mount is"
    done
    [[ $(rest_option workdir)$(rest_option output) ]] ||
        die "name where the run is kept: --workdir=$SHARED/runs/$opt_name (or --output, as the stage has it)"
    find_one_another tpu
}

check_create() {
    need accelerator capacity
    case $opt_capacity in
        spot | on-demand | reserved) ;;
        *) die "--capacity=$opt_capacity: spot, on-demand or reserved" ;;
    esac
    [[ $opt_runtime ]] || case $opt_accelerator in
        v5litepod-* | v5e-*) opt_runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) opt_runtime=v2-alpha-tpuv5 ;;
        v6e-*) opt_runtime=v2-alpha-tpuv6e ;;
        v2-* | v3-* | v4-*) opt_runtime=tpu-ubuntu2204-base ;;
        tpu7x-*) die "--accelerator=$opt_accelerator: this generation is had through GKE only, see launch/gke" ;;
        *) die "--accelerator=$opt_accelerator is not known here: name its TPU software, --runtime=VERSION" ;;
    esac
    opt_accelerator=${opt_accelerator/#v5e-/v5litepod-}
}

say_costs() {
    say "$opt_name is still there and costs money: $0 delete --name=$opt_name --project=$opt_project --zone=$opt_zone"
}

# A slice that is taken away leaves its request; only whoever deletes it takes that away.
exit_if_deleted() {
    get_state 20
    if [[ ! $STATE || $STATE == DELETING ]]; then
        say "$(date +%T) $opt_name was deleted, and is not made again"
        exit 143
    fi
}

exit_if_stopped() {
    if any ' state=stopped$'; then
        say "$(date +%T) the run was stopped, and is not started again"
        say_costs
        exit 143
    fi
}

UNMET=0
# Until the run ends. Returns 0 if the slice or a worker was lost, and a new start is worth it.
watch() {
    local lost=0 status
    say "Watching. ^C ends only the watching; run the same command again to go on with it."
    while :; do
        sleep "$opt_poll"
        exit_if_deleted
        if [[ $STATE != ACTIVE ]]; then
            say "$(date +%T) $opt_name was taken away ($STATE)"
            return
        fi
        if ! probe; then
            lost=$((lost + 1))
            say "$(date +%T) the workers cannot be reached ($lost of 10): $WHY"
            if taken_away; then return; fi
            ((lost < 10)) || failed "reaching the workers" 1 "$WHY"
            continue
        fi
        lost=0
        # Where one has ended, JAX ends the others.
        if any state=running; then continue; fi
        exit_if_stopped
        if all ' state=ended:0$'; then
            say "$(date +%T) the run is done"
            return 10
        fi
        # 1 and 2 are for the user to fix. All else may go away: 3, a device failed or another process
        # is gone; 134, aborted by JAX for the same reason; 137, killed; no status, a restarted machine.
        if ! any ' state=ended:[12]$'; then
            # All are there and none was killed, but they did not meet: more time may not help.
            if all ' state=ended:(3|134)$'; then UNMET=$((UNMET + 1)); else UNMET=0; fi
            if ((UNMET == 3)); then
                say_costs
                failed "starting the run" 3 "its processes did not find one another, three times in a row: see the logs"
            fi
            say "$(date +%T) the run was interrupted"
            return
        fi
        status=$(sed -nE 's/.* state=ended:([12])$/\1/p' <<<"$WORKERS" | head -n 1)
        warn "error: the run ended with status $status; its last lines, of worker 0:"
        "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" --node=0 --worker=0 "--command=bash $ON_WORKER logs" >&2 || true
        warn "$opt_name is still there and costs money: mend it and run the same command again, or $0 delete"
        exit "$status"
    done
}

# prepare START: code, packages and the run, on a slice that may be taken away at any time
prepare() {
    sync
    setup
    if (($1 > 0)); then # it may have been stopped meanwhile
        must_reach
        exit_if_stopped
    fi
    run
}

# Whether a step failed because there is no slice any more, which may be known only later.
slice_is_gone() {
    local try
    for try in 1 2; do
        get_state 20
        if [[ ! $STATE ]] || is_dead || taken_away; then return; fi
        if ((try < 2)); then sleep "$opt_poll"; fi
    done
    return 1
}

up() {
    local start ended prepared
    for ((start = 0; start <= opt_restarts; start++)); do
        if ((start > 0)); then
            exit_if_deleted
            opt_yes=yes # whoever agreed to the first one agreed to its successors
        fi
        create
        if ! wait_for_it || ! reach; then
            ((start < opt_restarts)) || break
            sleep "$opt_poll"
            continue
        fi
        if all state=running; then
            say "The run is going on all workers"
        else
            set +e # or nothing ends the subshell but a step that fails
            (
                set -e
                prepare "$start"
            )
            prepared=$?
            set -e
            if ((prepared == 1)) && slice_is_gone; then continue; fi
            ((prepared == 0)) || exit "$prepared"
        fi
        if dry; then
            say "  (then every $opt_poll s: describe, and status of all workers, until the run ends; \
a slice that is gone is deleted and made again)"
            if [[ $opt_delete_when_done == yes ]]; then delete_request "deleting $opt_name"; fi
            return
        fi
        if [[ $opt_detach == yes ]]; then return; fi
        ended=0
        watch || ended=$?
        if ((ended == 10)); then
            if [[ $opt_delete_when_done == yes ]]; then
                delete
            else
                say_costs
            fi
            return
        fi
    done
    failed "keeping $opt_name alive" 1 "gone or interrupted $((opt_restarts + 1)) times"
}

on_one_worker() {
    be_active
    show "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" "--node=$opt_node" "--worker=$opt_worker" "$@"
    if dry; then return; fi
    "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" "--node=$opt_node" "--worker=$opt_worker" "$@"
}

parse "$@"
verb=${WORDS[0]-}
if [[ $opt_help == yes || ! $verb ]]; then
    show_help
    if [[ $opt_help == yes ]]; then exit 0; else exit 2; fi
fi
case $verb in
    up | create | wait | sync | setup | run | status | logs | ssh | stop | delete) ;;
    *) die "$verb is no command of $0 (see --help)" ;;
esac
((${#WORDS[@]} == 1)) || die "one command at a time: ${WORDS[*]}"
case $verb in
    up) check_create && check_run ;;
    run) check_run ;;
    create) check_create ;;
    setup) check_mount ;;
esac
check
case $verb in
    up) up ;;
    create) create ;;
    wait) wait_for_it || failed "waiting for $opt_name" 1 "it is $STATE, so create or up has to ask for it again" ;;
    sync | setup | run)
        be_active
        must_reach
        "$verb"
        ;;
    status)
        get_state
        say "$opt_name: ${STATE:-not there}"
        if [[ $STATE == ACTIVE ]]; then
            must_reach
            say "$WORKERS"
        fi
        ;;
    logs)
        follow=''
        if [[ $opt_follow == yes ]]; then follow=' --follow'; fi
        on_one_worker "--command=bash $ON_WORKER logs$follow"
        ;;
    ssh)
        if ((${#REST[@]})); then on_one_worker "--command=$(quoted "${REST[@]}")"; else on_one_worker; fi
        ;;
    stop)
        be_active
        confirm "This ends what runs on $opt_name, after it has saved."
        on_workers "stopping the run" "bash $ON_WORKER stop"
        ;;
    delete)
        confirm "This deletes $opt_name with what is on its disks, and ends what runs there."
        delete
        ;;
esac
