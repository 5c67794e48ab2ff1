#!/bin/sh
# Build the image, as `make image` does. From the environment: IMAGE, BASE_IMAGE, TORCH (cuda or cpu), TORCH_INDEX,
# DOCKER, BUILD_ARGS (more options of `docker build`), PYTHON (whose pip may have a wheel that the build's lacks).
#
# The settings of this machine's pip are passed to the build as secrets: PIP_CERT, PIP_CONFIG_FILE, PIP_INDEX_URL.
# Proxies are passed as Docker's predefined arguments, which no image keeps.
set -eu
cd "$(dirname "$0")/.."
image=${IMAGE:-torchx-lightning-pipeline:latest} torch=${TORCH:-cuda} docker=${DOCKER:-docker}
case $torch in cuda | cpu) ;; *)
  echo "error: TORCH=$torch: must be cuda or cpu" >&2
  exit 2
  ;;
esac
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT

set -- --file docker/Dockerfile --tag "$image" --build-arg "TORCH=$torch"
if [ -n "${BASE_IMAGE:-}" ]; then set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"; fi
if [ -n "${TORCH_INDEX:-}" ]; then set -- "$@" --build-arg "TORCH_INDEX=$TORCH_INDEX"; fi
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
  if printenv "$name" >/dev/null; then set -- "$@" --build-arg "$name"; fi
done
if [ -n "${PIP_CERT:-}" ]; then set -- "$@" --secret "id=ca,src=$PIP_CERT"; fi
if [ -f "${PIP_CONFIG_FILE:-}" ]; then
  set -- "$@" --secret "id=pip,src=$PIP_CONFIG_FILE"
elif [ -n "${PIP_INDEX_URL:-}" ]; then
  printf '[global]\nindex-url = %s\n' "$PIP_INDEX_URL" >"$secrets/pip.conf"
  set -- "$@" --secret "id=pip,src=$secrets/pip.conf"
fi
if [ "$torch" = cpu ] && [ -n "${PYTHON:-}" ]; then
  # A wheel that only this machine has is part of the build context; otherwise the build asks its indexes.
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest docker/wheels/cpu \
    "$(sed -n 's/^torch==.*/&+cpu/p' pipeline/constraints.txt)" 2>/dev/null || true
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
if ! git diff --quiet HEAD 2>/dev/null; then revision=$revision-changed; fi
# shellcheck disable=SC2086 # BUILD_ARGS holds several words
DOCKER_BUILDKIT=1 "$docker" build "$@" ${BUILD_ARGS:-} \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)" .
