# Reads a PKGBUILD and writes what it declares as NUL-terminated fields; bridge.rs runs this behind walls and fields.rs
# reads the result. Names begin with __rbee so that a recipe's own are never in the way.
#   $1 the PKGBUILD   $2 the file for the fields   $3 seconds of processor time
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "bash $BASH_VERSION is too old: 4.4 or newer is needed"
    exit 90
fi
ulimit -t "$3"
umask 0022
shopt -s extglob
startdir=$PWD

__rbee_arrays='arch backup checkdepends conflicts depends groups license makedepends noextract optdepends options
    provides replaces source validpgpkeys xdata cksums md5sums sha1sums sha224sums sha256sums sha384sums sha512sums b2sums'
__rbee_strings='changelog epoch install pkgbase pkgdesc pkgname pkgrel pkgver url'
__rbee_functions='prepare pkgver build check package'
for __rbee_name in $__rbee_arrays $__rbee_strings; do
    unset -v "$__rbee_name"
    for __rbee_other in $(compgen -A variable "${__rbee_name}_"); do unset -v "$__rbee_other"; done
done
for __rbee_name in $__rbee_functions $(compgen -A function package_); do unset -f "$__rbee_name"; done

# In a function, as makepkg does it: `declare` at the top of a PKGBUILD makes what is gone after it.
__rbee_source() {
    shopt -u extglob
    source "$1"
}
if ! __rbee_source "$1"; then
    echo "the last command of the PKGBUILD failed" >&2
    exit 91
fi
shopt -s extglob

__rbee_tell() {
    local __rbee_kind __rbee_keys __rbee_key __rbee_value
    __rbee_kind=$(builtin declare -p "$1" 2>/dev/null) || return 0
    __rbee_kind=${__rbee_kind#declare -}
    case ${__rbee_kind%%[ =]*} in
        *A*) builtin printf 'map\0%s\0' "$1" ;;
        *a*)
            builtin eval "__rbee_keys=(\"\${!$1[@]}\")"
            builtin printf 'array\0%s\0%s\0' "$1" "${#__rbee_keys[@]}"
            for __rbee_key in "${__rbee_keys[@]}"; do
                builtin eval "__rbee_value=\${$1[$__rbee_key]}"
                builtin printf '%s\0%s\0' "$__rbee_key" "$__rbee_value"
            done
            ;;
        # Declared and never set is as if it were not there.
        *) [[ -n ${!1+set} ]] && builtin printf 'string\0%s\0%s\0' "$1" "${!1}" ;;
    esac
}

{
    builtin printf 'rbee-fields-1\0'
    for __rbee_name in $__rbee_arrays $__rbee_strings; do
        __rbee_tell "$__rbee_name"
        for __rbee_other in $(compgen -A variable "${__rbee_name}_"); do __rbee_tell "$__rbee_other"; done
    done
    for __rbee_name in $__rbee_functions $(compgen -A function package_); do
        if builtin declare -F "$__rbee_name" >/dev/null; then
            case $__rbee_name in
                package*) builtin printf 'function\0%s\0%s\0' "$__rbee_name" "$(builtin declare -f "$__rbee_name")" ;;
                *) builtin printf 'function\0%s\0\0' "$__rbee_name" ;;
            esac
        fi
    done
    builtin printf 'end\0'
} >"$2" || exit 92
exit 0
