#!/bin/sh
# Runs README's two commands on a bare Debian, which has git and certificates and nothing else:
#   scripts/bare.sh bookworm            # or trixie, forky: a system made by debootstrap, in a folder of its own
#   scripts/bare.sh trixie COMMAND…     # any other command, in a clone of what is committed
#   scripts/bare.sh --list              # the systems
# MOE_TESTS in the environment: only the tests whose path matches this regular expression.
# Ends with 77, and one line that says why, where the machine does not allow it.
# Each run begins with a fresh copy of the system in $MOE_BARE_FOLDER (/var/tmp/moe-bare), which is kept.
set -eu
. "$(dirname -- "$0")/setup.sh"
cd "$moe_root"
folder=${MOE_BARE_FOLDER:-/var/tmp/moe-bare}
suites='bookworm trixie forky'

skip() { say "bare.sh: not run: $*"; exit 77; }

suite=${1:-}
[ "$suite" != --list ] || { printf '%s\n' $suites; exit; }
case " $suites " in *" $suite "*) ;; *) say "bare.sh: the system is \"$suite\", expected one of: $suites"; exit 2 ;; esac
shift

[ "$(id -u)" = 0 ] || skip "only root may chroot; this is $(id -un)"
unshare --mount true 2>/dev/null || skip "this machine allows no mounts (unshare --mount)"
unshare --mount chroot / true 2>/dev/null || skip "this machine allows no chroot"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v debootstrap >/dev/null || [ ! -e $keyring ]; then
  [ "$manager" = apt-get ] || skip "debootstrap is not installed"
  say "Installing debootstrap and debian-archive-keyring: what makes a minimal Debian, and what proves it is one"
  install_packages debootstrap debian-archive-keyring >/dev/null || skip "debootstrap could not be installed"
fi

# The machine's own mirror and ways to the network.
take_settings() {  # system
  cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
  apt-config dump | grep -E '^Acquire::(Check-|https?::|ftp::|Retries|ForceIPv)' >"$1/etc/apt/apt.conf.d/90of-the-machine" || true
  if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
    cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/"
    chroot "$1" update-ca-certificates >/dev/null 2>&1
  fi
}

mkdir -p "$folder"
pristine=$folder/$suite
if [ ! -d "$pristine" ]; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Origin: Debian' 2>/dev/null |
    grep -v security | head -n 1)
  mirror=${mirror:-http://deb.debian.org/debian}
  script=/usr/share/debootstrap/scripts/$suite
  [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid  # a suite younger than debootstrap
  say "Making a minimal $suite in $pristine from $mirror"
  rm -rf "$pristine.part"
  if ! debootstrap --variant=minbase --include=git,ca-certificates --keyring="$keyring" \
    "$suite" "$pristine.part" "$mirror" "$script" >"$pristine.log" 2>&1; then
    tail -n 5 "$pristine.log" >&2
    say "bare.sh: debootstrap failed: $pristine.log"
    exit 1
  fi
  take_settings "$pristine.part"
  mv "$pristine.part" "$pristine"
fi

system=$(mktemp -d "$folder/$suite.XXXXXX")
trap 'rm -rf --one-file-system "$system"' EXIT
trap 'exit 1' HUP INT TERM
cp -a --reflink=auto "$pristine/." "$system"
git clone -q --depth 1 "file://$moe_root" "$system/root/eigen-moe"

# Mounts are the run's own, and gone with it.
inside() {
  unshare --mount sh -c '
    system=$1; shift
    mount --rbind /dev "$system/dev"
    mount -t proc proc "$system/proc" 2>/dev/null || mount --rbind /proc "$system/proc"
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
      ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
      ${MOE_TESTS:+MOE_TESTS="$MOE_TESTS"} \
      chroot "$system" sh -c "cd /root/eigen-moe && exec \"\$@\"" sh "$@"' sh "$system" "$@"
}

say "Debian $(cat "$system/etc/debian_version") ($suite), $(git -C "$system/root/eigen-moe" log -1 --format='%h %s')"
if [ $# -gt 0 ]; then
  inside "$@"
else
  inside scripts/compare.sh --shape 64,96,4,2 --tokens 1,4
  inside scripts/test.sh
fi
