#!/usr/bin/env bash
# Build an image of this checkout, and push it.
#
#   launch/docker/build.sh --for=tpu --image=REGISTRY/NAME:TAG --push
#
#   --for=KIND        tpu or cuda
#   --image=IMAGE     its name, with a tag other than latest
#   --push            to the registry of its name; one that is there already is left as it is
#   --user-id=N       who the image runs as (10001)
#   --settings=FILE   options, a line each without the dashes
#   --yes             do not ask before pushing
#   --dry-run         show what would be done; only reads
#
# Exit status: 0 done; 1 a step failed; 2 a mistake in the command.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

opt_for='' opt_image='' opt_push=no opt_user_id=10001

parse "$@"
if [[ $opt_help == yes ]]; then
    show_help
    exit 0
fi
((${#WORDS[@]} == 0)) || die "${WORDS[*]}: only options are expected (see --help)"
need for image
check_number user-id
[[ $opt_for == tpu || $opt_for == cuda ]] || die "--for=$opt_for: tpu or cuda"
[[ ${opt_image##*/} == *:* && $opt_image != *:latest ]] || die "--image=$opt_image: give it a tag other than latest"
if ! has_tool docker; then
    dry || die "docker is not installed or not on the PATH: https://docs.docker.com/engine/install"
    warn "docker is not here: shown as if nothing existed yet"
elif [[ $opt_push == yes ]] && ask docker manifest inspect "$opt_image"; then
    say "$opt_image is in its registry already; give changed code another tag"
    exit 0
fi
attempt "building the image" docker build "--file=$LAUNCH/docker/Dockerfile.$opt_for" \
    "--tag=$opt_image" "--build-arg=USER_ID=$opt_user_id" "$REPOSITORY"
if [[ $opt_push == yes ]]; then
    confirm "This puts $opt_image into its registry."
    attempt "pushing the image" docker push "$opt_image"
fi
