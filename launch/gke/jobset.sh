#!/usr/bin/env bash
# A run on the TPUs of a GKE cluster, as a JobSet (which the cluster has to know: kubectl api-resources).
#
#   launch/gke/jobset.sh apply --name=NAME --image=IMAGE --accelerator=v5e --topology=4x4 \
#       --bucket=BUCKET -- --stage=sft --config=RECIPE --workdir=/mnt/shared/runs/NAME
#
# Commands, each of which may be repeated:
#   render   print the manifest                 status   the JobSet and its pods
#   apply    start it, unless it is there       logs     of one process (--follow)
#   delete   end it; the pods get SIGTERM, and save first; the Secret goes as well
#
#   --name=NAME              of the JobSet
#   --image=IMAGE            made by launch/docker/build.sh, with a tag or digest
#   --accelerator=KIND       v4, v5e, v5p, v6e or tpu7x
#   --topology=AxB[xC]       of a slice, as its node pool has it
#   --slices=N               slices joined over the data centre network (1)
#   --chips-per-host=N       4, unless the slice is one host of v5e or v6e
#   --spot                   on nodes that may be taken away
#   --bucket=BUCKET          Cloud Storage, or
#   --claim=NAME             a PersistentVolumeClaim for many readers and writers (Filestore): seen by
#                            all processes at /mnt/shared; --workdir has to lie there
#   --env-file=FILE          NAME=VALUE lines for the run (HF_TOKEN, WANDB_API_KEY), mode 600, kept
#                            as the Secret NAME-env; without it, such a Secret is used if it is there
#   --service-account=NAME   of Kubernetes, which may use the bucket (default)
#   --namespace=NAME --context=NAME    as kubectl has them
#   --restarts=N             new starts at most (50)
#   --grace=SECONDS          that a pod has for saving when it is told to end (300; spot nodes leave less)
#   --slice=S --host=H       logs: of which process (0, 0)
#   --follow                 logs: go on as they are written
#   --settings=FILE          options, a line each without the dashes
#   --yes                    do not ask before starting or ending
#   --dry-run                show what would be done; only reads
#
# Exit status: 0 done; 1 a step failed; 2 a mistake in the command.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
shopt -u patsub_replacement 2>/dev/null || true # & is not special in what is filled in

opt_name='' opt_image='' opt_accelerator='' opt_topology='' opt_slices=1 opt_chips_per_host=''
opt_spot=no opt_bucket='' opt_claim='' opt_env_file='' opt_service_account=default
opt_namespace=default opt_context='' opt_restarts=50 opt_grace=300 opt_slice=0 opt_host=0
opt_follow=no

KUBECTL=(kubectl)
LABEL=''
PRESENT=no

# Sets LABEL, CHIPS (of a host) and HOSTS (of a slice).
check_slice() {
    local chips=1 side sides
    case $opt_accelerator in
        v4) LABEL=tpu-v4-podslice ;;
        v5e) LABEL=tpu-v5-lite-podslice ;;
        v5p) LABEL=tpu-v5p-slice ;;
        v6e) LABEL=tpu-v6e-slice ;;
        tpu7x) LABEL=tpu7x ;;
        *) die "--accelerator=$opt_accelerator: v4, v5e, v5p, v6e or tpu7x" ;;
    esac
    sides=2
    [[ $opt_accelerator == v5e || $opt_accelerator == v6e ]] || sides=3
    [[ $opt_topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){$((sides - 1))}$ ]] ||
        die "--topology=$opt_topology: $opt_accelerator has $sides sides, such as $([[ $sides == 2 ]] && echo 4x4 || echo 2x2x2)"
    for side in ${opt_topology//x/ }; do chips=$((chips * side)); done
    CHIPS=$opt_chips_per_host
    if [[ ! $CHIPS ]]; then CHIPS=$((sides == 2 && chips <= 8 ? chips : chips < 4 ? chips : 4)); fi
    [[ $CHIPS =~ ^[1248]$ && $((chips % CHIPS)) == 0 ]] ||
        die "--chips-per-host=$CHIPS: the $chips chips of $opt_topology are not so many to a host"
    HOSTS=$((chips / CHIPS))
}

check_run() {
    need name image accelerator topology
    check_name
    check_number slices restarts grace
    check_stage
    check_env_file "$opt_env_file"
    check_slice
    [[ $opt_image =~ ^[A-Za-z0-9./_:@-]+$ ]] ||
        die "--image=$opt_image: name it with a tag or a digest other than latest, so that a restart runs the same code"
    [[ $opt_bucket || $opt_claim ]] || die "--bucket=BUCKET or --claim=NAME is missing: a pod's own disk goes with it"
    [[ ! $opt_bucket || ! $opt_claim ]] || die "--bucket and --claim: one of the two"
    opt_bucket=${opt_bucket#gs://}
    [[ $opt_bucket$opt_claim =~ ^[a-z0-9][a-z0-9._-]*$ ]] || die "--bucket or --claim: $opt_bucket$opt_claim is no name"
    check_pods
}

# JSON is YAML.
json_list() {
    local word out=()
    for word in "$@"; do
        [[ $word != *[$'\n\r\t']* ]] || die "an argument holds a line break or a tab: $(quoted "$word")"
        word=${word//\\/\\\\}
        out+=("\"${word//\"/\\\"}\"")
    done
    local IFS=,
    printf '[%s]' "${out[*]}"
}

render() {
    local text spot='' volume
    text=$(<"$LAUNCH/gke/jobset.yaml.in")
    if [[ $opt_spot == yes ]]; then
        spot='                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule'
    fi
    if [[ $opt_bucket ]]; then
        volume="                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $opt_bucket
                      mountOptions: implicit-dirs,rename-dir-limit=1000000"
    else
        volume="                  persistentVolumeClaim:
                    claimName: $opt_claim"
    fi
    # What users wrote comes last: it may hold anything.
    text=${text/$'\n@SPOT@'/${spot:+$'\n'}$spot}
    text=${text/@VOLUME@/$volume}
    text=${text//@NAME@/$opt_name}
    text=${text//@NAMESPACE@/$opt_namespace}
    text=${text//@RESTARTS@/$opt_restarts}
    text=${text//@SLICES@/$opt_slices}
    text=${text//@HOSTS@/$HOSTS}
    text=${text//@GCSFUSE@/$([[ $opt_bucket ]] && echo true || echo false)}
    text=${text//@GRACE@/$opt_grace}
    text=${text//@SERVICE_ACCOUNT@/$opt_service_account}
    text=${text//@ACCELERATOR@/$LABEL}
    text=${text//@TOPOLOGY@/$opt_topology}
    text=${text//@CHIPS@/$CHIPS}
    text=${text//@SECRET@/$opt_name-env}
    text=${text//@IMAGE@/$opt_image}
    text=${text/@ARGUMENTS@/$(json_list "${REST[@]}")}
    printf '%s\n' "$text"
}

# Sets PRESENT.
look() {
    local config=(current-context)
    if [[ $opt_context ]]; then
        KUBECTL+=("--context=$opt_context")
        config=(get-contexts "$opt_context" --output=name)
    fi
    KUBECTL+=("--namespace=$opt_namespace")
    if ! has_tool kubectl; then
        dry || die "kubectl is not installed or not on the PATH: gcloud components install kubectl"
        warn "kubectl is not here: shown as if nothing existed yet"
        return
    fi
    if ! ask kubectl config "${config[@]}" || [[ ! $ANSWER ]]; then
        dry || die "kubectl knows no cluster${opt_context:+ by --context=$opt_context}: gcloud container clusters get-credentials CLUSTER --location=PLACE"
        warn "kubectl knows no cluster${opt_context:+ by --context=$opt_context}: shown as if nothing existed yet"
        return
    fi
    if ask "${KUBECTL[@]}" get jobset "$opt_name" --output=name; then
        PRESENT=yes
    elif grep -q "doesn't have a resource type" "$SCRATCH/errors"; then
        die "the cluster does not know JobSets: install them, https://jobset.sigs.k8s.io/docs/installation"
    elif ! grep -qi 'not *found' "$SCRATCH/errors"; then
        failed "asking for $opt_name" 1 "$(last_line "$SCRATCH/errors")"
    fi
}

apply() {
    local manifest=$SCRATCH/$opt_name.yaml secret=$SCRATCH/secret.yaml
    render >"$manifest"
    look
    if [[ $PRESENT == yes ]]; then
        say "$opt_name is there already; $0 status shows how it does. To start another, delete it or choose another --name"
        return
    fi
    confirm "This starts $opt_slices x $opt_accelerator $opt_topology ($((opt_slices * HOSTS)) hosts), \
which costs money where nodes are made for it."
    if [[ $opt_env_file ]]; then
        show "${KUBECTL[@]}" create secret generic "$opt_name-env" "--from-env-file=$opt_env_file" --dry-run=client --output=yaml
        if ! dry; then
            must_ask "making the Secret" "${KUBECTL[@]}" create secret generic "$opt_name-env" \
                "--from-env-file=$opt_env_file" --dry-run=client --output=yaml
            printf '%s\n' "$ANSWER" >"$secret"
        fi
        attempt "storing the Secret" "${KUBECTL[@]}" apply "--filename=$secret"
    fi
    if dry; then sed 's/^/  | /' "$manifest"; fi
    attempt "starting $opt_name" "${KUBECTL[@]}" apply "--filename=$manifest"
}

pods() { printf '%s' "jobset.sigs.k8s.io/jobset-name=$opt_name"; }

parse "$@"
verb=${WORDS[0]-}
if [[ $opt_help == yes || ! $verb ]]; then
    show_help
    if [[ $opt_help == yes ]]; then exit 0; else exit 2; fi
fi
((${#WORDS[@]} == 1)) || die "one command at a time: ${WORDS[*]}"
case $verb in
    render)
        check_run
        render
        ;;
    apply)
        check_run
        apply
        ;;
    status | logs | delete)
        need name
        check_name
        check_number slice host
        look
        if [[ $PRESENT == no ]] && ! dry; then
            if [[ $verb == logs ]]; then die "$opt_name is not there"; fi
            say "$opt_name is not there"
            if [[ $verb == status ]]; then exit 0; fi
        fi
        case $verb in
            status)
                attempt "asking for the JobSet" "${KUBECTL[@]}" get jobset "$opt_name"
                attempt "asking for the pods" "${KUBECTL[@]}" get pods "--selector=$(pods)" --output=wide
                ;;
            logs)
                follow=()
                if [[ $opt_follow == yes ]]; then follow=(--follow); fi
                attempt "reading the log" "${KUBECTL[@]}" logs --tail=200 \
                    "--selector=$(pods),jobset.sigs.k8s.io/job-index=$opt_slice,batch.kubernetes.io/job-completion-index=$opt_host" \
                    --container=rmr1-jax ${follow[@]+"${follow[@]}"}
                ;;
            delete)
                if [[ $PRESENT == yes ]] || dry; then
                    confirm "This ends $opt_name on all its hosts, and deletes the Secret $opt_name-env."
                    attempt "deleting $opt_name" "${KUBECTL[@]}" delete jobset "$opt_name" --ignore-not-found
                else # it may have failed to start after its Secret was stored
                    must_ask "asking for the Secret" "${KUBECTL[@]}" get secret "$opt_name-env" --ignore-not-found --output=name
                    [[ $ANSWER ]] || exit 0
                    confirm "This deletes the Secret $opt_name-env."
                fi
                attempt "deleting the Secret" "${KUBECTL[@]}" delete secret "$opt_name-env" --ignore-not-found
                ;;
        esac
        ;;
    *) die "$verb is no command of $0 (see --help)" ;;
esac
