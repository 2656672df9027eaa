# Unpacks a program of a Debian package into a folder of ours, without installing it: $1 the package, $2 the folder.
# Called by install.go, with sh -c. Needs no root, unless the lists of packages have to be fetched first.
# Keeps: the machine as it is. Installing this package would start its server, and again at each boot.
set -e
export LC_ALL=C
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' HUP INT TERM
cd "$work"
if ! apt-get download -qq "$1" 2>/dev/null; then
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo -n apt-get update -qq; fi
    apt-get download -qq "$1"
fi
dpkg-deb -x "$1"_*.deb files
mkdir -p "$2"
# Each under its name at once: somebody may look for it meanwhile.
for program in files/usr/bin/*; do
    cp "$program" "$2/.new.$$"
    mv -f "$2/.new.$$" "$2/${program##*/}"
done
