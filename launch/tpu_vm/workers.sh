# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables are set in tpu_vm.sh for here, and here for there
#
# What is done on all workers of a slice. Sourced by tpu_vm.sh.

# on_workers WHAT COMMAND: on all workers of all slices
on_workers() {
    attempt "$1" "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" --node=all --worker=all "--command=$2"
}

copy_to_workers() { # WHAT FILE NAME
    attempt "$1" "${QUEUE[@]}" scp "$2" "$opt_name:$3" "${REMOTE[@]}" --node=all --worker=all
}

# Sets WORKERS to the lines of all workers' status; fails if they cannot be reached.
probe() {
    local command
    command="if [ -f $ON_WORKER ]; then bash $ON_WORKER status $(quoted "${opt_mount:--}"); \
else echo \"rmr1_jax worker=\$(hostname) code= ready=no state=idle\"; fi"
    WORKERS=''
    if dry && [[ $STATE != ACTIVE ]]; then return; fi
    ask "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" --node=all --worker=all "--command=$command" || return
    WORKERS=$(grep -o 'rmr1_jax worker=.*' <<<"$ANSWER" || true)
    [[ $WORKERS ]]
}

# A slice that has just come takes a while to let anybody in.
reach() {
    local try
    for try in 1 2 3 4 5; do
        if probe; then return; fi
        if ((try < 5)); then sleep "$opt_poll"; fi
    done
    failed "reaching the workers" 1 "$(last_line "$SCRATCH/errors")"
}

# all WORD: whether it stands in every worker's line
all() { [[ $WORKERS ]] && ! grep -qvE -- "$1" <<<"$WORKERS"; }
any() { grep -qE -- "$1" <<<"$WORKERS"; }

# The files that belong to the code: what git would keep, or all but what is made.
code_files() {
    local file
    if git -C "$REPOSITORY" rev-parse --git-dir >/dev/null 2>&1; then
        git -C "$REPOSITORY" ls-files -z --cached --others --exclude-standard
    else
        (cd "$REPOSITORY" && find . -name '.[a-z]*' -prune -o -name __pycache__ -prune -o -type f -print0)
    fi | sort -z | while IFS= read -r -d '' file; do
        if [[ -f $REPOSITORY/$file ]]; then printf '%s\0' "$file"; fi
    done
}

sync() {
    local sum archive=$SCRATCH/rmr1_jax.tar.gz
    code_files >"$SCRATCH/files"
    sum=$(cd "$REPOSITORY" && xargs -0 cksum <"$SCRATCH/files" | cksum | tr ' ' -)
    if all " code=$sum "; then
        say "The code is on all workers already"
        return
    fi
    if any state=running; then die "a run is going on $opt_name, and its code is not to change \
under it: stop it first, or leave it"; fi
    attempt "packing the code" tar -C "$REPOSITORY" --null -T "$SCRATCH/files" -czf "$archive"
    copy_to_workers "copying the code" "$archive" rmr1_jax.tar.gz
    # The old code stays until the new one is whole.
    on_workers "unpacking the code" "set -e; rm -rf rmr1_jax.part; mkdir -p rmr1_jax.part .rmr1_jax; \
tar -xzf rmr1_jax.tar.gz -C rmr1_jax.part; rm -rf rmr1_jax; mv rmr1_jax.part rmr1_jax; \
echo $sum >.rmr1_jax/code"
    CHANGED=yes
}
CHANGED=no

setup() {
    if [[ $CHANGED == yes && $WORKERS ]] && ! dry; then reach; fi # other code may need other packages
    if all ' ready=yes '; then
        say "All workers are set up already"
        return
    fi
    on_workers "setting up the workers" "bash $ON_WORKER setup $(quoted "$opt_mount")"
}

run() {
    if [[ $opt_env_file ]] && ! all state=running; then
        on_workers "making room for the environment file" "mkdir -p -m 700 .rmr1_jax; umask 077; touch .rmr1_jax/env"
        copy_to_workers "copying the environment file" "$opt_env_file" .rmr1_jax/env
    fi
    on_workers "starting the run" "bash $ON_WORKER start $(quoted "${REST[@]}")"
}
