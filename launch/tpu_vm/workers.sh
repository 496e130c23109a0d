# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables are set in tpu_vm.sh for here, and here for there
#
# What is done on all workers of a slice. Sourced by tpu_vm.sh.

# on_workers WHAT COMMAND: on all workers of all slices. gcloud leaves out, without an error, slices
# that it does not reach, so the workers that did it are counted.
on_workers() {
    local count
    if ((LISTED == 0)) && ! dry; then
        list_slices || failed "asking for the workers of $opt_name" 1 "$(last_line "$SCRATCH/errors")"
    fi
    attempt "$1" "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" --node=all --worker=all \
        "--command=$2 && echo \"rmr1_jax done on \$(hostname)\"" | tee "$SCRATCH/said" || exit
    if dry; then return; fi
    count=$(grep -c '^rmr1_jax done on ' "$SCRATCH/said" || true)
    ((count > 0 && count == EXPECTED)) || failed "$1" 1 "$count of $EXPECTED workers did it"
}

# Nothing says which workers a copy did not reach: what is done with it next has to fail there.
copy_to_workers() { # WHAT FILE NAME
    attempt "$1" "${QUEUE[@]}" scp "$2" "$opt_name:$3" "${REMOTE[@]}" --node=all --worker=all
}

# Sets WORKERS to the lines of all workers' status; fails, with the reason in WHY, unless all answer.
probe() {
    local command answered
    command="if [ -f $ON_WORKER ]; then bash $ON_WORKER status $(quoted "${opt_mount:--}"); \
else echo \"rmr1_jax worker=\$(hostname) code= ready=no state=idle\"; fi"
    if ! ask "${QUEUE[@]}" ssh "$opt_name" "${REMOTE[@]}" --node=all --worker=all "--command=$command"; then
        WHY=$(last_line "$SCRATCH/errors")
        return 1
    fi
    WORKERS=$(grep -o 'rmr1_jax worker=.*' <<<"$ANSWER" || true)
    answered=$(grep -c . <<<"$WORKERS" || true)
    WHY="$answered of $EXPECTED workers answered"
    if ((LISTED < opt_slices)); then WHY="$LISTED of $opt_slices slices are listed"; fi
    ((LISTED >= opt_slices && answered == EXPECTED))
}
WORKERS='' WHY=''

# A slice that has just come takes a while to let anybody in. Returns 1 if it is taken away meanwhile.
reach() {
    local try
    if dry && [[ $STATE != ACTIVE ]]; then return; fi
    for try in 1 2 3 4 5; do
        if ! list_slices; then
            WHY=$(last_line "$SCRATCH/errors")
        elif [[ $GONE == yes ]]; then
            say_gone
            return 1
        elif probe; then
            return
        fi
        if ((try < 5)); then sleep "$opt_poll"; fi
    done
    failed "reaching the workers" 1 "$WHY"
}

must_reach() { reach || failed "reaching the workers" 1 "$opt_name was taken away"; }

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
    local sum archive
    code_files >"$SCRATCH/files"
    sum=$(cd "$REPOSITORY" && xargs -0 cksum <"$SCRATCH/files" | cksum | tr ' ' -)
    if all " code=$sum "; then
        say "The code is on all workers already"
        return
    fi
    if any state=running; then die "a run is going on $opt_name, and its code is not to change \
under it: stop it first, or leave it"; fi
    archive=rmr1_jax-$sum.tar.gz # so that no other one is unpacked
    attempt "packing the code" tar -C "$REPOSITORY" --null -T "$SCRATCH/files" -czf "$SCRATCH/$archive"
    copy_to_workers "copying the code" "$SCRATCH/$archive" "$archive"
    # The old code stays until the new one is whole.
    on_workers "unpacking the code" "rm -rf rmr1_jax.part && mkdir -p rmr1_jax.part .rmr1_jax && \
tar -xzf $archive -C rmr1_jax.part && rm -rf rmr1_jax && mv rmr1_jax.part rmr1_jax && \
rm -f rmr1_jax-*.tar.gz && echo $sum >.rmr1_jax/code"
    CHANGED=yes
}
CHANGED=no

setup() {
    if [[ $CHANGED == yes && $WORKERS ]] && ! dry; then must_reach; fi # other code may need other packages
    if all ' ready=yes '; then
        say "All workers are set up already"
        return
    fi
    on_workers "setting up the workers" "bash $ON_WORKER setup $(quoted "$opt_mount")"
}

run() {
    local arrived=''
    if [[ $opt_env_file ]] && ! all state=running; then
        on_workers "making room for the environment file" "mkdir -p -m 700 .rmr1_jax && umask 077 && : >.rmr1_jax/env"
        copy_to_workers "copying the environment file" "$opt_env_file" .rmr1_jax/env
        arrived="[ \$(wc -c <.rmr1_jax/env) = $(($(wc -c <"$opt_env_file"))) ] || \
{ echo \"\$(hostname): the environment file is not here\" >&2; false; } && "
    fi
    on_workers "starting the run" "${arrived}bash $ON_WORKER start $(quoted "${REST[@]}")"
}
