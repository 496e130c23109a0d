# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables are set here for the scripts that source it, and there for here
#
# What the scripts of this folder share. Sourced, never run.
#
# A script declares its options as variables: opt_zone='' makes --zone=VALUE, opt_spot=no makes the
# flag --spot. Words before `--` are commands; those after it are for rmr1_jax.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: these scripts need bash 4.4 or later (macOS: brew install bash)" >&2
    exit 2
fi

opt_help=no opt_dry_run=no opt_yes=no opt_settings=''
WORDS=() # commands
REST=()  # what follows --
INVOKED=''
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$LAUNCH")
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() { # a mistake of the caller's
    warn "error: $*"
    exit 2
}

# Words as a shell would have to be given them.
quoted() {
    local word out=()
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then out+=("$word"); else out+=("${word@Q}"); fi
    done
    printf '%s' "${out[*]}"
}

# set_option NAME VALUE WHERE; no VALUE ('') for a flag
set_option() {
    local variable="opt_${1//-/_}" where=$3
    [[ $1 =~ ^[a-z][a-z-]*$ && -v $variable ]] || die "$where: there is no option --$1 (see --help)"
    if [[ ${!variable} == yes || ${!variable} == no ]]; then
        [[ $2 == '' || $2 == yes || $2 == no ]] || die "$where: --$1 takes no value"
        printf -v "$variable" '%s' "${2:-yes}"
    else
        [[ $2 != '' ]] || die "$where: --$1 needs a value, --$1=VALUE"
        printf -v "$variable" '%s' "$2"
    fi
}

# Options of a file, a line each as on the command line but without the dashes: zone=us-east5-a
read_settings() {
    local line number=0
    [[ -r $1 ]] || die "--settings=$1: there is no such file"
    while IFS= read -r line || [[ $line ]]; do
        number=$((number + 1))
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        if [[ $line == *=* ]]; then
            set_option "${line%%=*}" "${line#*=}" "$1, line $number"
        else
            set_option "$line" '' "$1, line $number"
        fi
    done <"$1"
}

# Fills the declared opt_ variables, WORDS and REST. The command line has precedence over --settings.
parse() {
    local word
    INVOKED=$(quoted "$0" "$@")
    for word in "$@"; do
        case $word in
            --) break ;;
            --settings=*) read_settings "${word#*=}" ;;
        esac
    done
    while (($#)); do
        case $1 in
            --)
                shift
                REST=("$@")
                break
                ;;
            -h) opt_help=yes ;;
            --*=*) set_option "$(name_of "$1")" "${1#*=}" "$0" ;;
            --*) set_option "${1#--}" '' "$0" ;;
            *) WORDS+=("$1") ;;
        esac
        shift
    done
}

name_of() {
    local word=${1#--}
    printf '%s' "${word%%=*}"
}

# The comment at the top of a script is its help.
show_help() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"; }

need() { # OPTION...
    local name variable
    for name in "$@"; do
        variable="opt_${name//-/_}"
        [[ ${!variable} ]] || die "--$name=VALUE is missing (see --help)"
    done
}

check_name() {
    [[ $opt_name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
        die "--name=$opt_name: lower-case letters, digits and dashes, at most 40, a letter first"
}

check_number() { # OPTION...
    local name variable
    for name in "$@"; do
        variable="opt_${name//-/_}"
        [[ ${!variable} =~ ^[0-9]+$ ]] || die "--$name=${!variable}: a whole number is needed"
    done
}

check_stage() {
    [[ ${REST[*]-} == *--stage=* ]] ||
        die "say what to run after --, for example: -- --stage=sft --config=RECIPE --workdir=DIR"
}

# rest_option NAME: the value of --NAME=VALUE among what is for rmr1_jax
rest_option() {
    local word
    for word in ${REST[@]+"${REST[@]}"}; do
        [[ $word == "--$1="* ]] && printf '%s' "${word#*=}" && return
    done
    return 0
}

# How long processes wait for one another: machines of one run come at different times.
JOIN=--join_timeout=1800

# find_one_another METHOD: for the processes of a run, unless the caller has said how
find_one_another() {
    # That every process takes itself for the only one is the failure that destroys a run.
    [[ $(rest_option distributed)$(rest_option coordinator) ]] || REST=("--distributed=$1" "${REST[@]}")
    [[ $(rest_option join_timeout) ]] || REST=("$JOIN" "${REST[@]}")
}

# end_of PID: waits for a child whatever signals come, which end a wait, too; returns its status
end_of() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    wait "$1"
}

has_tool() { command -v "$1" >/dev/null 2>&1; }
tool() { has_tool "$1" || die "$1 is not installed or not on the PATH: $2"; }

# confirm WHAT: before what costs money or destroys something
confirm() {
    local answer
    if [[ $opt_yes == yes || $opt_dry_run == yes ]]; then return; fi
    [[ -t 0 ]] || die "$1 Nobody is here to be asked: add --yes."
    read -r -p "$1 Go on? [y/N] " answer
    [[ $answer == [yY]* ]] || die "stopped, as you said; nothing was changed"
}

dry() { [[ $opt_dry_run == yes ]]; }
show() { say "+ $(quoted "$@")"; }

failed() { # WHAT STATUS REASON
    warn "error: $1 failed (exit status $2${3:+: $3}). What is done is kept; to go on, run again: $INVOKED"
    exit 1
}

last_line() { sed '/^[[:space:]]*$/d' "$1" | tail -n 1; }

# attempt WHAT COMMAND...: shows the command, and runs it unless this is a dry run
attempt() {
    local what=$1 status=0
    shift
    show "$@"
    dry && return
    { "$@" 2>&1 1>&3 3>&- | tee "$SCRATCH/errors" >&2; } 3>&1 || status=$?
    ((status == 0)) || failed "$what" "$status" "$(last_line "$SCRATCH/errors")"
}

# ask COMMAND...: a reading call, in dry runs too. Its output is in ANSWER, its errors in
# $SCRATCH/errors; returns its status.
ask() {
    local status=0
    ANSWER=$("$@" 2>"$SCRATCH/errors" </dev/null) || status=$?
    return "$status"
}

# must_ask WHAT COMMAND...
must_ask() {
    local what=$1 status=0
    shift
    ask "$@" || status=$?
    ((status == 0)) || failed "$what" "$status" "$(last_line "$SCRATCH/errors")"
}

mode_of() { stat -c %a "$1" 2>/dev/null || stat -f %Lp "$1"; }

# Lines NAME=VALUE. Its name may stand on command lines, its values may not.
check_env_file() {
    [[ $1 ]] || return 0
    local line value word number=0
    [[ -f $1 && -r $1 ]] || die "--env-file=$1: there is no such file"
    [[ $(mode_of "$1") == 600 ]] || die "--env-file=$1 can be read by others: chmod 600 $(quoted "$1")"
    while IFS= read -r line || [[ $line ]]; do
        number=$((number + 1))
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "$1, line $number: NAME=VALUE is expected"
        value=${line#*=}
        ((${#value} >= 8)) || continue
        for word in ${REST[@]+"${REST[@]}"}; do
            [[ $word != *"$value"* ]] || die "the value of ${line%%=*} in $1 also stands on the \
command line, where everybody on a machine can read it: leave it out there"
        done
    done <"$1"
}

# Puts the lines of a file into the environment as they are, without running them.
load_env_file() {
    local line
    [[ -f $1 ]] || return 0
    while IFS= read -r line || [[ $line ]]; do
        [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] && export "${line?}"
    done <"$1"
    return 0
}

# The first Python of at least 3.12 that can make environments; nothing where there is none.
find_python() {
    local python
    for python in python3.12 python3.13 python3; do
        if "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 0
}

# install_package EXTRA ADVICE: into $opt_venv, which is made with the Python that ADVICE says how to
# come by; EXTRA is nothing, or the accelerator's, such as [cuda]
install_package() {
    local python
    if [[ ! -x $opt_venv/bin/python ]]; then
        python=$(find_python)
        [[ $python ]] || die "no Python of at least 3.12 with venv was found: $2"
        attempt "making the environment" "$python" -m venv "$opt_venv"
    fi
    attempt "installing the package" "$opt_venv/bin/python" -m pip install --quiet \
        --disable-pip-version-check --constraint "$REPOSITORY/constraints.txt" \
        --editable "$REPOSITORY$1"
}

# Sets EXTRA to that of --cuda, else to what the driver can do; to CUDA 13 where there is none to ask.
choose_cuda() {
    local driver=''
    EXTRA='[cuda]'
    case $opt_cuda in
        12) EXTRA='[cuda12]' ;;
        13) ;;
        '')
            if has_tool nvidia-smi; then
                driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || driver=''
            fi
            if [[ ! $driver =~ ^[0-9]+ ]]; then
                say "No driver is here to ask: CUDA 13, which needs 580 or later (--cuda=12 is for older ones)"
            elif ((BASH_REMATCH[0] < 580)); then
                say "The driver, ${driver%%$'\n'*}, is too old for CUDA 13: CUDA 12"
                EXTRA='[cuda12]'
            fi
            ;;
        *) die "--cuda=$opt_cuda: 12 or 13" ;;
    esac
}

# check_pods: what a run in pods needs, whoever starts them
check_pods() {
    local place option
    [[ ${opt_image##*/} == *[:@]* && $opt_image != *:latest ]] ||
        die "--image=$opt_image: name it with a tag or a digest other than latest, so that a restart runs the same code"
    for option in workdir output; do
        place=$(rest_option "$option")
        [[ ! $place || $place == /mnt/shared/* ]] ||
            die "--$option=$place lies in the pod, and is lost with it: put it under /mnt/shared"
    done
    [[ $(rest_option workdir)$(rest_option output) ]] || die "name where the run is kept: --workdir=/mnt/shared/runs/$opt_name"
    find_one_another gke
}
