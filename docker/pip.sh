#!/bin/sh
# pip within a build: install into the environment $1, with the index, the certificate and the wheels of the build.
# A private index and its certificate are secrets (ids pip and ca): mounted for one line, and in no layer.
set -eu
environment=$1
shift
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -f /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
if [ -n "${TORCH_INDEX:-}" ]; then export PIP_EXTRA_INDEX_URL="$TORCH_INDEX"; fi
if [ -d "/wheels/${TORCH:-}" ]; then export PIP_FIND_LINKS="/wheels/$TORCH"; fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
exec /opt/tools/bin/pip --python "$environment/bin/python" install --quiet "$@"
