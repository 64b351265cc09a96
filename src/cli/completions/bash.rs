//! For bash 3.2 and later, without the bash-completion package.

use super::{
    EVERYWHERE, global_flags, nodes, own_flags, pattern, programs, quoted, roles, tag, tokens,
    values_of_arguments,
};
use std::fmt::Write;

/// The line is cut at blanks here: bash's own words also break at `=` and `:`, which URLs and addresses have.
const WALK: &str = r#"
_rbee_kind() {
    local known
    for known in $flags $_rbee_global; do
        case $known in
        "$1="*) kind=${known#*=}; return 0 ;;
        "$1") return 1 ;;
        esac
    done
    return 1
}

_rbee_offer() {
    local IFS=$'\n'
    case $1 in
    @files) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$2")) ;;
    @dirs) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$2")) ;;
    ?*) COMPREPLY=($(compgen -W "${1//,/$IFS}" -- "$2")) ;;
    esac
}

_rbee() {
    local line=${COMP_LINE:0:COMP_POINT} at='' next='' flags='' args='' kind='' known i last cur
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    last=$((${#words[@]} - 1))
    COMPREPLY=()
    _rbee_start "${words[0]##*/}"
    _rbee_facts "$at"
    for ((i = 1; i < last; i++)); do
        case ${words[i]} in
        -*=*) ;;
        -*) _rbee_kind "${words[i]}" && ((i++)) ;;
        help) [[ -z $at ]] && _rbee_facts '' ;;
        *)
            if [[ " $next " == *" ${words[i]} "* ]]; then
                at="${at:+$at }${words[i]}"
                _rbee_facts "$at"
            fi
            ;;
        esac
    done
    cur=${words[last]}
    if ((i > last)); then
        _rbee_offer "$kind" "$cur"
        return
    fi
    case $cur in
    -*=*)
        _rbee_kind "${cur%%=*}" || return
        _rbee_offer "$kind" "${cur#*=}"
        # Where `=` does not break words, a reply is the whole word.
        [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/${cur%%=*}=}")
        ;;
    -*)
        for known in $flags $_rbee_global $_rbee_everywhere; do
            known=${known%%=*}
            [[ $known == "$cur"* ]] && COMPREPLY+=("$known")
        done
        ;;
    *)
        if [[ $next ]]; then
            COMPREPLY=($(compgen -W "$next" -- "$cur"))
        else
            _rbee_offer "$args" "$cur"
        fi
        ;;
    esac
}
"#;

pub fn script() -> String {
    let mut text = "# Completions of rbee for bash: source <(rbee completions bash)\n\n".to_owned();
    let global: Vec<String> = global_flags().flat_map(tokens).collect();
    let everywhere: Vec<&str> = EVERYWHERE.iter().map(|(name, _)| *name).collect();
    let _ = writeln!(text, "_rbee_global={}", quoted(&global.join(" ")));
    let _ = writeln!(text, "_rbee_everywhere={}\n", quoted(&everywhere.join(" ")));
    text.push_str("_rbee_start() {\n    case $1 in\n");
    for (link, words) in roles() {
        let _ = writeln!(text, "    {link}) at={} ;;", quoted(&words));
    }
    text.push_str("    esac\n}\n\n_rbee_facts() {\n    next='' flags='' args=''\n    case $1 in\n");
    for node in nodes() {
        let next: Vec<&str> = node.next.iter().map(|(word, _)| *word).collect();
        let _ = write!(text, "    {})", pattern(&node));
        if !next.is_empty() {
            let _ = write!(text, " next={}", quoted(&next.join(" ")));
        }
        if let Some(command) = node.command {
            let flags: Vec<String> = own_flags(command).flat_map(tokens).collect();
            let args = tag(values_of_arguments(command));
            let _ = write!(text, " flags={} args={}", quoted(&flags.join(" ")), quoted(&args));
        }
        text.push_str(" ;;\n");
    }
    let _ = write!(text, "    esac\n}}\n{WALK}\ncomplete -F _rbee {}\n", programs());
    text
}
