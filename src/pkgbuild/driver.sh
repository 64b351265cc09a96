# Runs phases of a PKGBUILD in one shell, as makepkg does; execute.rs runs this behind walls.
#   $1 the folder in which this tells how far it came   $2 the folder of the packages   then the phases
# CARCH, CHOST and the rest are in the environment.
# Names begin with __rbee so that a recipe's own are never in the way.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "bash $BASH_VERSION is too old: 4.4 or newer is needed"
    exit 90
fi
declare -r __rbee_control=$1 __rbee_packages=$2 startdir=$PWD
shift 2
umask 0022
shopt -s extglob
__rbee_overrides='pkgdesc arch url license groups depends optdepends provides conflicts replaces backup options install
    changelog'

# Words that many recipes borrow from makepkg. To stderr: pkgver() is read from stdout.
msg() { printf "==> $1\n" "${@:2}" >&2; }
msg2() { printf "  -> $1\n" "${@:2}" >&2; }
plain() { printf "    $1\n" "${@:2}" >&2; }
warning() { printf "==> WARNING: $1\n" "${@:2}" >&2; }
error() { printf "==> ERROR: $1\n" "${@:2}" >&2; }

# In a function, as makepkg does it: `declare` at the top of a PKGBUILD makes what is gone after it.
__rbee_source() {
    shopt -u extglob
    if ! source "$startdir/PKGBUILD"; then
        echo "the last command of the PKGBUILD failed" >&2
        exit 91
    fi
    shopt -s extglob
}

__rbee_note() { printf '%s' "$1" >"$__rbee_control/phase"; }

__rbee_failed() {
    ((BASH_SUBSHELL)) || echo "==> $2() failed with exit code $1" >&2
    exit "$1"
}

# The function is called as a plain command: under `if`, `&&` or `!` bash would switch errexit off in all it calls, and a
# build that fails would succeed.
__rbee_run() {
    local __rbee_shopt __rbee_trap
    __rbee_shopt=$(shopt -p)
    local -
    shopt -o -s errexit errtrace
    __rbee_trap=$(trap -p ERR)
    trap "__rbee_failed \$? '$1'" ERR
    cd "$srcdir"
    "$1"
    trap - ERR
    eval "$__rbee_trap"
    eval "$__rbee_shopt"
}

__rbee_has() { declare -F "$1" >/dev/null; }

__rbee_phase() {
    __rbee_note "$1"
    echo "==> Starting $1()..."
    __rbee_run "$1"
}

# pkgver() tells the version; the PKGBUILD is written anew with it and read again, for what was made of the old one.
__rbee_update_version() {
    local new line lines
    __rbee_note pkgver
    echo "==> Starting pkgver()..."
    new=$(__rbee_run pkgver)
    local status=$?
    ((status == 0)) || __rbee_failed "$status" pkgver
    if [[ -z $new || $new = *[[:space:]/:-]* || $new = *[![:ascii:]]* ]]; then
        echo "==> pkgver() told an invalid version: $new" >&2
        exit 93
    fi
    if [[ $new != "$pkgver" ]]; then
        mapfile -t lines <"$startdir/PKGBUILD"
        for line in "${!lines[@]}"; do
            if [[ ${lines[line]} =~ ^(pkgver|pkgrel)=[^\ ]*(.*)$ ]]; then
                case ${BASH_REMATCH[1]} in
                    pkgver) lines[line]=pkgver=$new${BASH_REMATCH[2]} ;;
                    pkgrel) lines[line]=pkgrel=1${BASH_REMATCH[2]} ;;
                esac
            fi
        done
        printf '%s\n' "${lines[@]}" >"$startdir/PKGBUILD" || exit 94
        __rbee_source
        echo "==> Version: $pkgver-$pkgrel"
    fi
}

# One package after the other; what a package function set of a package's own is gone before the next.
__rbee_package() {
    local pkgdir function=$1
    pkgdir=$pkgdirbase/$pkgname
    mkdir "$pkgdir" || exit 94
    if [[ -n $function ]]; then
        __rbee_phase "$function"
    fi
    cd "$startdir"
}

__rbee_all_packages() {
    local __rbee_names __rbee_name __rbee_saved
    if ((${#pkgname[@]} == 1)) && ! __rbee_has "package_$pkgname"; then
        if __rbee_has package; then __rbee_package package; else __rbee_package; fi
        return
    fi
    __rbee_names=("${pkgname[@]}")
    for __rbee_name in $__rbee_overrides; do
        eval "__rbee_saved_$__rbee_name=(\"\${$__rbee_name[@]}\")"
    done
    for pkgname in "${__rbee_names[@]}"; do
        __rbee_package "package_$pkgname"
        for __rbee_name in $__rbee_overrides; do
            __rbee_saved=__rbee_saved_$__rbee_name
            if [[ -n ${!__rbee_saved} ]]; then
                eval "$__rbee_name=(\"\${$__rbee_saved[@]}\")"
            else
                unset -v "$__rbee_name"
            fi
        done
    done
}

unset -v srcdir pkgdir pkgdirbase
__rbee_note PKGBUILD
__rbee_source
pkgbase=${pkgbase:-${pkgname[0]}}
srcdir=$startdir/src
pkgdirbase=$__rbee_packages
pkgdir=$pkgdirbase/$pkgbase
for __rbee_each in "$@"; do
    case $__rbee_each in
        pkgver) if __rbee_has pkgver; then __rbee_update_version; fi ;;
        flags) case " ${options[*]} " in *' !makeflags '*) unset -v MAKEFLAGS ;; esac ;;
        package) __rbee_all_packages ;;
        *) if __rbee_has "$__rbee_each"; then __rbee_phase "$__rbee_each"; fi ;;
    esac
    cd "$startdir"
done
printf '%s\0' "$pkgver" "$pkgrel" "$epoch" >"$__rbee_control/version"
__rbee_note done
exit 0
