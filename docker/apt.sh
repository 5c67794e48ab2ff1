#!/bin/sh
# Install Debian packages within a build, and leave no caches. $1 is the secret that may hold a certificate.
set -eu
ca=$1
shift
[ -f "$ca" ] || ca=/etc/ssl/certs/ca-certificates.crt
apt-get -q -o Acquire::https::CAInfo="$ca" update
DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::https::CAInfo="$ca" install -y --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old
