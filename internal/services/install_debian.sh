# Installs the packages given as arguments, on Debian and Ubuntu, as root.
# Called by install.go, with sh -c.
# Keeps: no server of the system is created or started, now or when the machine starts. While installing, postgresql-common is
# told not to create its usual cluster, and gets its own configuration back afterwards; services of the other packages are
# not started, and turned off. (The Redis server comes in redis-tools, which has no service.)
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
conf=/etc/postgresql-common/createcluster.conf
saved=
changed=
services=
policy=/usr/sbin/policy-rc.d
forbidden=

restore() {
    if [ -n "$forbidden" ]; then
        rm -f "$policy"
    fi
    if [ -z "$changed" ]; then
        return
    fi
    if [ -n "$saved" ]; then
        mv -f "$saved" "$conf"
    elif [ -f /usr/share/postgresql-common/createcluster.conf ]; then
        cp /usr/share/postgresql-common/createcluster.conf "$conf"
    else
        rm -f "$conf"
    fi
}

for package; do
    case $package in
    nginx | haproxy | pgbouncer)
        # What was there before stays as it is.
        if ! dpkg-query -s "$package" >/dev/null 2>&1; then
            services="$services $package"
        fi
        ;;
    esac
done
if [ -n "$services" ] && [ ! -e "$policy" ]; then
    forbidden=yes
    trap restore EXIT
    trap 'exit 143' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
for package; do
    if [ "$package" = postgresql ]; then
        mkdir -p "${conf%/*}"
        if [ -e "$conf" ]; then
            saved="$conf.before-commitcast"
            cp -p "$conf" "$saved"
        fi
        changed=yes
        trap restore EXIT
        trap 'exit 143' HUP INT TERM
        echo 'create_main_cluster = false' >>"$conf"
        break
    fi
done

# A repository that cannot be reached need not be the one that is wanted.
apt-get update -qq || true
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold "$@"
for service in $services; do
    update-rc.d "$service" disable >/dev/null 2>&1 || true
    deb-systemd-helper disable "$service.service" >/dev/null 2>&1 || true
done
