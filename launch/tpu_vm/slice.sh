# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables are set in tpu_vm.sh for here, and here for there
#
# The slice and its request: asked for, waited for, given back. Sourced by tpu_vm.sh.

# get_state [TRIES]: whoever waits for days outlives a network that is gone for minutes
get_state() {
    local try
    STATE=''
    [[ $LOGGED_IN == yes ]] || return 0
    for ((try = ${1:-1}; ; try--)); do
        if ask "${QUEUE[@]}" describe "$opt_name" "${PLACE[@]}" '--format=value(state.state)'; then
            STATE=$ANSWER
            return
        fi
        if grep -qiE 'NOT_FOUND|was not found' "$SCRATCH/errors"; then return; fi
        if ((try <= 1)); then break; fi
        sleep "$opt_poll"
    done
    failed "asking for the state of $opt_name" 1 "$(last_line "$SCRATCH/errors")"
}

is_dead() { [[ $STATE == SUSPEND* || $STATE == FAILED || $GONE == yes ]]; }

delete_request() { # WHAT
    attempt "$1" "${QUEUE[@]}" delete "$opt_name" "${PLACE[@]}" --force
}

create() {
    local command
    command=("${QUEUE[@]}" create "$opt_name" "${PLACE[@]}" "--accelerator-type=$opt_accelerator"
        "--runtime-version=$opt_runtime")
    case $opt_slices in
        1) command+=("--node-id=$opt_name") ;;
        *) command+=("--node-count=$opt_slices" "--node-prefix=$opt_name") ;;
    esac
    case $opt_capacity in
        spot) command+=(--spot) ;;
        reserved) command+=(--reserved) ;;
    esac
    if [[ $opt_service_account ]]; then command+=("--service-account=$opt_service_account"); fi
    if [[ $opt_network ]]; then command+=("--network=$opt_network"); fi
    if [[ $opt_subnetwork ]]; then command+=("--subnetwork=$opt_subnetwork"); fi
    if [[ $opt_internal_ips == yes ]]; then command+=(--internal-ips); fi

    get_state
    while [[ $STATE == DELETING ]] && ! dry; do
        say "$opt_name is being deleted; waiting"
        sleep "$opt_poll"
        get_state
    done
    if [[ $STATE ]] && ! is_dead; then
        must_ask "asking what $opt_name is" "${QUEUE[@]}" describe "$opt_name" "${PLACE[@]}" \
            '--format=value(tpu.nodeSpec[0].node.acceleratorType)'
        [[ ! $ANSWER || $ANSWER == "$opt_accelerator" ]] || die "$opt_name exists and is a $ANSWER, \
not a $opt_accelerator: choose another --name, or delete it"
        say "$opt_name exists ($STATE)"
        return
    fi
    confirm "This asks for $opt_slices x $opt_accelerator ($opt_capacity) in $opt_zone of project \
$opt_project, which costs money from when it is there until it is deleted."
    if [[ $STATE ]]; then
        say "$opt_name is $STATE: its slice is gone, and is asked for again"
        delete_request "deleting the old request"
    fi
    attempt "asking for the slice" "${command[@]}"
    STATE='' GONE=no
}

wait_for_it() {
    local before='' since=$SECONDS
    while :; do
        if dry && [[ $STATE != ACTIVE ]]; then
            show "${QUEUE[@]}" describe "$opt_name" "${PLACE[@]}" '--format=value(state.state)'
            say "  (every $opt_poll s, until ACTIVE)"
            return
        fi
        get_state 20
        if [[ $STATE != "$before" ]]; then
            say "$(date +%T) $opt_name: ${STATE:-not there} (after $(((SECONDS - since) / 60)) min)"
        fi
        before=$STATE
        if [[ $STATE == ACTIVE ]]; then return; fi
        [[ $STATE ]] || failed "waiting for $opt_name" 1 "it is not there"
        if is_dead; then return 1; fi
        sleep "$opt_poll"
    done
}

be_active() {
    get_state
    if dry && [[ $STATE != ACTIVE ]]; then return; fi
    [[ $STATE == ACTIVE ]] || die "$opt_name is ${STATE:-not there}: create it and wait until it is ACTIVE"
}

# Sets LISTED to how many slices there are, EXPECTED to how many workers they have, and GONE to
# whether machines are gone, which the request may not say yet.
list_slices() {
    local state workers
    ask gcloud compute tpus tpu-vm list "${PLACE[@]}" "--filter=queuedResource ~ \"/$opt_name\$\"" \
        '--format=value(state,networkEndpoints.len())' || return
    LISTED=0 EXPECTED=0 GONE=no
    while read -r state workers; do
        [[ $state ]] || continue
        LISTED=$((LISTED + 1)) EXPECTED=$((EXPECTED + workers))
        case $state in PREEMPTED | TERMINATED | STOPPED) GONE=yes ;; esac
    done <<<"$ANSWER"
}
LISTED=0 EXPECTED=0 GONE=no

say_gone() { say "$(date +%T) $opt_name was taken away, though its request is $STATE"; }

# Whether machines are gone, which it then says.
taken_away() { list_slices && [[ $GONE == yes ]] && say_gone; }

delete() {
    get_state
    if [[ ! $STATE && $LOGGED_IN == yes ]]; then
        say "$opt_name is not there: nothing to delete"
        return
    fi
    delete_request "deleting $opt_name"
}
