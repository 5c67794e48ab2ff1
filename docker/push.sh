#!/bin/sh
# Push the image to a registry, as `make image-push REGISTRY=host/team` does, under its version and revision.
set -eu
image=${IMAGE:-torchx-lightning-pipeline:latest} docker=${DOCKER:-docker} registry=${1:-}
if [ -z "$registry" ]; then
  echo 'error: REGISTRY is empty: give a host and a path, such as REGISTRY=registry.example.com/team' >&2
  exit 2
fi
label() { "$docker" image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$1\"}}" "$image"; }
version=$(label version) revision=$(label revision)
case $revision in *-changed)
  echo "error: $image was built from a changed working tree, and its name would not say what is in it: commit, and build it again" >&2
  exit 2
  ;;
esac
name=${image##*/}
target=${registry%/}/${name%%:*}:$version-$(printf %.12s "$revision")
"$docker" tag "$image" "$target"
"$docker" push --quiet "$target"
