# SPDX-License-Identifier: MIT
# What install.sh reads to install packages: Debian's, or Fedora's of the same content. It asks first where
# there is a terminal, and where it cannot install it says once what is missing: much works without.
# shellcheck shell=sh disable=SC2154 # here, kind, work, yes, python, say and fail are install.sh's

lacking=
install_words='apt-get install --no-install-recommends'

# install_system_packages: sets $lacking to the packages that are not there afterwards.
install_system_packages() {
    system_is_looked_at=yes
    if command -v dpkg-query >/dev/null 2>&1; then
        family=apt distribution=Debian
    elif command -v dnf >/dev/null 2>&1 && command -v rpm >/dev/null 2>&1; then
        family=dnf distribution=Fedora
        install_words='dnf install --setopt=install_weak_deps=False'
        say_what_fedora_lacks
    else
        say 'This is neither like Debian nor like Fedora; what these Debian packages have is expected to be'
        say 'there:'
        wrapped "$(names_in system.txt)"
        return
    fi
    lacking=$(not_installed "$(names_in system.txt)")
    wished=
    [ "$kind" = run ] || wished=$(not_installed "$(names_in system-dev.txt)")
    [ -n "$lacking$wished" ] || return 0

    how=$(way_to_root)
    if [ "$how" = none ]; then
        say_what_is_missing 'As root, an administrator installs them:' ''
        return
    fi
    if [ -z "$yes" ] && [ -z "${CI-}" ] && [ -t 0 ] && [ -t 2 ]; then
        if ! may_install; then
            [ "$how" = root ] && sudo='' || sudo='sudo '
            say_what_is_missing 'To install them later:' "$sudo"
            return
        fi
    else
        say "Installing $distribution packages: $lacking $wished"
    fi
    if [ "$how" = ask ] && ! sudo -v; then
        say_what_is_missing 'sudo does not let you. As root, an administrator installs them:' ''
        return
    fi
    [ "$how" = root ] && sudo='' || sudo=sudo
    if [ $family = dnf ]; then
        dnf_install
        return
    fi
    apt_get update || say 'apt-get update failed; going on with the package lists that are there.'
    # shellcheck disable=SC2086 # a list of words
    if [ -n "$lacking" ] && ! apt_get install $lacking; then
        tail -n 20 "$work/apt" >&2
        fail 'apt could not install the packages named above' \
            'see the lines above; then run the same command again' 3
    fi
    # Tests that miss these are skipped, and say so.
    # shellcheck disable=SC2086 # a list of words
    [ -z "$wished" ] || apt_get install $wished ||
        say "Not installed, and only needed by tests, which then are skipped: $wished"
    lacking=
}

# names_in FILE: the packages that it lists for this machine; "name [!arm64]" is not for arm64, as in Debian's
# own control files.
names_in() {
    case $(dpkg --print-architecture 2>/dev/null || uname -m 2>/dev/null) in
    arm64 | aarch64) leave_out='\[!arm64\]' ;;
    *) leave_out='^#' ;;
    esac
    names=$(grep -v '^#' "$here/$1" | grep -v "$leave_out" | sed 's/ .*//' | tr '\n' ' ')
    # A Python that is not the distribution's python3 has packages of its own.
    case ${python-} in
    python3.*) names=$(printf '%s' "$names" | sed "s/python3-venv/$python-venv/") ;;
    esac
    [ "${family-apt}" = apt ] || names=$(in_fedora "$names")
    printf '%s' "$names"
}

# in_fedora NAMES: what they are called there, each once; what Debian always has besides.
in_fedora() {
    result=
    for package in apt dpkg $1; do
        name=$(sed -n "s/^$package \([^ -][^ ]*\).*/\1/p" "$here/system-fedora.txt")
        case " $result" in *" $name "*) ;; *) result="$result${name:+$name }" ;; esac
    done
    printf '%s' "$result"
}

say_what_fedora_lacks() {
    say 'Fedora does not have, of what is used here:'
    for package in $(grep -v '^#' "$here/system.txt" | sed 's/ .*//'); do
        sed -n "s/^$package - /  $package: /p" "$here/system-fedora.txt" >&2
    done
}

not_installed() {
    result=
    if [ $family = dnf ]; then
        for package in $1; do
            rpm -q --whatprovides "$package" >/dev/null 2>&1 || result="$result$package "
        done
    else
        # shellcheck disable=SC2016,SC2086 # the dollars are dpkg-query's; a list of words
        there=$(dpkg-query -W -f '${db:Status-Status}=${Package} ' $1 2>/dev/null || true)
        for package in $1; do
            case " $there " in *" installed=$package "*) ;; *) result="$result$package " ;; esac
        done
    fi
    printf '%s' "${result% }"
}

# dnf_install: installs what there is; what this Fedora does not have is said.
dnf_install() {
    # shellcheck disable=SC2086 # lists of words
    $sudo dnf install --assumeyes --quiet --setopt=install_weak_deps=False --setopt=strict=False \
        $lacking $wished </dev/null >"$work/dnf" 2>&1 || tail -n 20 "$work/dnf" >&2
    lacking=$(not_installed "$lacking")
    wished=$(not_installed "$wished")
    [ -z "$lacking$wished" ] || say "dnf could not install: $lacking $wished"
}

# way_to_root: prints root, sudo (without a password), ask (sudo may ask for one), or none.
way_to_root() {
    if [ "$(id -u)" = 0 ]; then
        echo root
    elif ! command -v sudo >/dev/null 2>&1; then
        echo none
    elif sudo -n true 2>/dev/null; then
        echo sudo
    elif [ -t 0 ] && [ -t 2 ]; then
        echo ask
    else
        echo none
    fi
}

# say_what_is_missing WORDS SUDO: once, as the line that installs it.
say_what_is_missing() {
    [ -n "$lacking" ] || return 0
    line="${2}$install_words $lacking"
    # As in a container: apt finds nothing before it has fetched its lists.
    [ $family = dnf ] || [ -n "$(find /var/lib/apt/lists -name '*_Packages*' 2>/dev/null | head -n 1)" ] ||
        line="${2}apt-get update && $line"
    say "$(echo "$lacking" | wc -w) $distribution packages are missing on this machine. $1"
    say ''
    say "    $line"
    say ''
    say 'What needs none of them works all the same. Programs that work without being installed (dtc, cpp...)'
    say 'are fetched into the cache when a task needs them; a task that needs another one says which.'
}

may_install() {
    # shellcheck disable=SC2086 # a list of words
    set -- $lacking $wished
    say "First use: $# $distribution packages are to be installed:"
    wrapped "$*"
    say "$(sizes "$@")"
    say 'Python packages take 140 to 250 MB more, in .venv. What tasks fetch and build is kept in'
    say '~/.cache/npu-bsp: about 2 GB after ./inv bringup.'
    printf 'Install them with %s now? [Y/n] ' $family >&2
    read -r answer || answer=n
    case $answer in '' | [Yy] | [Yy][Ee][Ss]) return 0 ;; *) return 1 ;; esac
}

# sizes PACKAGES: what apt says that they take, with what they depend on.
sizes() {
    planned=
    [ $family = dnf ] || planned=$(LC_ALL=C apt-get install --print-uris --no-install-recommends -o Debug::NoLocking=1 "$@" 2>/dev/null |
        sed -n 's/^Need to get \(.*\) of archives\.$/To fetch: \1./p
            s/^After this operation, \(.*\) of additional disk space will be used\.$/On disk: \1./p') || true
    [ -n "$planned" ] && printf '%s' "$planned" | tr '\n' ' ' || printf 'They take about 900 MB on disk.'
}

wrapped() { printf '%s\n' "$1" | fold -s -w 76 | sed 's/^/  /' >&2; }

# apt_get WORDS: runs apt-get as root; on a terminal with one line that says how far it is.
apt_get() {
    command=$1
    shift
    case $command in install) set -- --yes --no-install-recommends "$@" ;; esac
    {
        # shellcheck disable=SC2086 # $sudo is a word or nothing
        $sudo env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get "$command" -q \
            -o APT::Status-Fd=1 "$@" </dev/null 2>&1 9<&- && echo apt-ended-well
    } | follow
}

follow() {
    : >"$work/apt"
    well=1
    while IFS= read -r line; do
        case $line in
            dlstatus:* | pmstatus:*) draw "$line" ;;
            apt-ended-well) well=0 ;;
            *) printf '%s\n' "$line" >>"$work/apt" ;;
        esac
    done
    ! can_draw || printf '\r\033[K' >&2
    return $well
}

can_draw() { [ -t 2 ] && [ -z "${NO_COLOR-}" ] && case ${TERM-dumb} in '' | dumb) false ;; esac; }

# draw STATUS: kind:package:percent:words, as apt has it; short enough for any terminal.
draw() {
    can_draw || return 0
    kind_of=${1%%:*}
    rest=${1#*:}
    package=${rest%%:*}
    rest=${rest#*:}
    case $kind_of in dlstatus) doing=fetching package= ;; *) doing=installing ;; esac
    printf '\r\033[K  %s %s %% %.20s' "$doing" "${rest%%.*}" "$package" >&2
}
